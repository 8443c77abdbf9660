"""What both trainers let a user set: steps, learning rate, batches, checkpoints. Frozen; it knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast.

    batch_size: pairs (encoder) or passages (generator) per optimiser step. micro_batch: as many are in memory at a
    time; None takes all. max_steps: instead of `epochs`. warmup: share of the steps, 0 to 1. eval_every, save_minutes:
    how often dev is evaluated (steps; 0 for the end only) and a checkpoint is written. threads: 0 leaves torch's own.
    Raises ValueError for what cannot be.
    """

    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch: int | None = None
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    seed: int = 313
    eval_every: int = 0
    save_minutes: float = 10.0
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.epochs > 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError("epochs and max_steps must be more than 0")
        if self.batch_size < 1 or (self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size):
            raise ValueError("batch_size must be 1 or more, and micro_batch between 1 and batch_size")
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            raise ValueError("learning_rate must be more than 0, and warmup between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        """What the result depends on: all but how often something is written, and the threads."""
        left_out = ("save_minutes", "threads")
        return {key: value for key, value in asdict(self).items() if key not in left_out}
