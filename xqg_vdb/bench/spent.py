"""What a generator cost a system: seconds of this run, seconds of single questions, and how much of it was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

TIMED = 20
"""Questions that a generator is asked about alone, for the time that a user would wait."""


@dataclass(frozen=True)
class Spent:
    """method: which of the two. seconds: of this run, for all questions together.

    alone: seconds of questions that were computed by themselves, whenever that was, as a user would wait for them.
    notes: what a reader of the report must know besides.
    """

    method: Literal["expand", "rerank"]
    seconds: float
    alone: Sequence[float]
    notes: tuple[str, ...] = ()

    def cost(self) -> dict[str, float]:
        """Median and 95th percentile of the milliseconds of a question alone; {} when none was timed."""
        if not self.alone:
            return {}
        p50, p95 = (1000 * np.percentile(self.alone, [50, 95])).tolist()
        return {f"{self.method} p50 ms": round(p50, 1), f"{self.method} p95 ms": round(p95, 1)}


Ranking = dict[str, list[tuple[str, float]]]
"""Question id -> (passage id, score), best first."""

Again = Callable[[Ranking], tuple[Ranking, Spent]]
"""Ranks what was found again."""


def timed_rows(n: int) -> list[int]:
    """Which of n questions are asked about alone: up to 20, evenly along the list, which is sorted by language."""
    count = min(n, TIMED)
    return [i * n // count for i in range(count)]
