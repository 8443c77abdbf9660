"""Token-budget batches: which texts of a window go through the model together.

Texts are ordered by length and cut into batches whose padded size (rows × longest) stays within a budget of tokens,
so one 500-token passage never pads thirty short ones, and memory is bounded whatever the corpus holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items (the last one shorter); reads no further ahead than one window."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def token_budget_batches(lengths: Sequence[int], *, budget: int, max_rows: int) -> list[NDArray[np.intp]]:
    """Indices into `lengths`, grouped so that rows × longest <= budget (a single longer text makes a batch of its own).

    Every index occurs exactly once; longest texts come first, so the first batch shows the peak of memory.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = min(max(1, budget // longest), max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches
