"""transformers' `Trainer` with a clock, and with the dual encoder's loss and dev figures.

Needs torch and transformers to be imported; nothing else of ours does before a run starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer

from xqg_vdb.progress import STOPS
from xqg_vdb.train.run import figures, spoken

REPORT_SECONDS = 30.0


def question_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Sum of −log p over the tokens of `labels` (n, T) that are not −100, divided by their number in the whole batch.

    outputs.logits: (n, T, V). num_items_in_batch: their number over all micro batches of a step.
    """
    logits = outputs.logits.flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class WatchedTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that writes a checkpoint every `save_minutes` and reports a line now and then."""

    def watch(self, *, save_minutes: float, batch_size: int, say: Callable[[str], None]) -> None:
        """To be called once, before training. batch_size: examples per step, for the rate."""
        self.remove_callback(PrinterCallback)
        self._every, self._examples, self._say = save_minutes * 60, batch_size, say
        self._began: tuple[float, int] | None = None
        self._saved = self._told = 0.0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One step of `Trainer`; asks for a checkpoint after it when the time has come."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._saved, self._told = (now, self.state.global_step), now, now
        if STOPS or now - self._saved >= self._every:
            self.control.should_save, self._saved = True, now
            self.control.should_training_stop |= bool(STOPS)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the record, and report it when it is a dev figure or the last report was long ago."""
        super().log(logs, start_time)
        step, last, now = self.state.global_step, self.state.max_steps, time.monotonic()
        if any(key.startswith("eval_") for key in logs):
            if 0 < step < last:  # before and after training, the caller says it
                self._say(f"step {step} of {last}, dev: {spoken(figures(logs))}")
        elif "loss" in logs and self._began and (now - self._told >= REPORT_SECONDS or step == last):
            start, first = self._began
            seconds = max((now - start) / max(1, step - first), 1e-9)
            self._told = now
            rate, left = self._examples / seconds, seconds * (last - step) / 60
            self._say(f"step {step} of {last}, loss {logs['loss']:.4f}, {rate:.2f} examples/s, {left:.0f} min to go")
