"""Choosing the next token: greedy, or top-k with seeded numbers.

The numbers depend on nothing but (seed, passage, language, index, step), so any order of passages, any batch size and
any resumed run draw the same. Plain numpy, whole batches at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["sample", "greedy"]
Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How queries are drawn. `greedy` gives one query whatever n is.

    top_k, temperature: for `sample`; 10 and 1.0 are the paper's.
    max_tokens: longest query in tokens; what is longer is cut there.
    """

    mode: Mode = "sample"
    top_k: int = 10
    temperature: float = 1.0
    max_tokens: int = 48
    seed: int = 313

    def __post_init__(self) -> None:
        if self.mode not in ("sample", "greedy"):
            raise ValueError(f"mode must be sample or greedy, got {self.mode!r}")
        if not 1 <= self.top_k <= 1000:
            raise ValueError(f"top_k must lie between 1 and 1000, got {self.top_k}")
        if not 0.0 < self.temperature <= 10.0:
            raise ValueError(f"temperature must be above 0 and at most 10, got {self.temperature}")
        if not 1 <= self.max_tokens <= 1024:
            raise ValueError(f"max_tokens must lie between 1 and 1024, got {self.max_tokens}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def row_key(seed: int, passage_id: str, lang: str, index: int) -> int:
    """The 64-bit key of one query; different in any argument, different everywhere."""
    blob = "\x1f".join((str(seed), passage_id, lang, str(index))).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little")


def uniforms(keys: Keys, step: int) -> NDArray[np.float64]:
    """One number in [0, 1) per key (n,) for this step: SplitMix64 (Steele, Lea, Flood 2014) at counter `step`."""
    with np.errstate(over="ignore"):
        z = keys + _GOLDEN * np.uint64(step + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    scores: NDArray[np.float32], tokens: NDArray[np.int64], *, keys: Keys, step: int, temperature: float
) -> NDArray[np.int64]:
    """One token per row of `scores` and `tokens` (n, k), the k best logits best first.

    Softmax over the k, then inversion.
    """
    scaled = (scores.astype(np.float64) - scores[:, :1]) / temperature
    mass = np.exp(scaled).cumsum(axis=1)
    chosen = (mass <= uniforms(keys, step)[:, None] * mass[:, -1:]).sum(axis=1)
    return np.asarray(np.take_along_axis(tokens, np.minimum(chosen, tokens.shape[1] - 1)[:, None], axis=1)[:, 0])
