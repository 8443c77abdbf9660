"""The mean of group means under resampling: a percentile bootstrap interval and a sign-flip permutation test.

In: one array of per-question numbers per group. Out: an interval or a p-value. Seeded, so that a report can be made
again; this file knows no metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

EXACT_UP_TO = 14
"""So many questions that differ have at most 16,384 sign patterns, which are all tried."""
SAME = 1e-12
"""Sums of the same numbers in another order differ by less."""

_BLOCK_NUMBERS = 2**23
_MULTINOMIAL_PAYS = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile bootstrap interval at `level`; both ends NaN when there is nothing to resample (n < 2)."""

    low: float
    high: float
    level: float


def sign_flip_p(changes: Sequence[Numbers], *, resamples: int, seed: int) -> float:
    """Two-sided p of the mean of group means when each question's difference could as well have the other sign.

    Exact over all sign patterns of up to `EXACT_UP_TO` differing questions, else (1 + as extreme) / (1 + resamples).
    scipy.stats.permutation_test gives the same p (tests compare them) at about 25 times the cost.
    """
    weighted = np.concatenate([change / (len(change) * len(changes)) for change in changes])
    weighted = weighted[weighted != 0.0]  # flipping a zero changes nothing
    observed = abs(float(weighted.sum())) - SAME
    if len(weighted) <= EXACT_UP_TO:
        patterns = np.array(list(product((-1.0, 1.0), repeat=len(weighted))), dtype=np.float64)
        return float((np.abs(patterns @ weighted) >= observed).mean())
    # equal sizes flip together: of c equal numbers a binomial share keeps its sign
    sizes, counts = np.unique(np.abs(weighted), return_counts=True)
    rng = np.random.default_rng(seed)
    extreme, block = 0, max(1, _BLOCK_NUMBERS // len(sizes))
    for start in range(0, resamples, block):
        kept = rng.binomial(counts, 0.5, size=(min(block, resamples - start), len(sizes)))
        sums = (2.0 * kept - counts) @ sizes
        extreme += int((np.abs(sums) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def bootstrap_interval(groups: Sequence[Numbers], *, level: float, resamples: int, seed: int) -> Interval:
    """Percentile interval of the mean of group means; a group of one question keeps its value in every resample."""
    many = tuple(group for group in groups if len(group) > 1)
    fixed = sum(float(group[0]) for group in groups if len(group) == 1)
    if not many:
        return Interval(math.nan, math.nan, level)

    rng = np.random.default_rng(seed)
    macro = (sum(_resampled_means(group, resamples=resamples, rng=rng) for group in many) + fixed) / len(groups)
    low, high = np.quantile(macro, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _resampled_means(values: Numbers, *, resamples: int, rng: np.random.Generator) -> Numbers:
    """Means of `resamples` samples with replacement, (resamples,); the distribution of scipy.stats.bootstrap's.

    A metric has few distinct values (R@k two, MRR@10 eleven), and how often each is drawn is multinomial: drawing these
    numbers costs as much as there are values, not as there are questions.
    """
    distinct, counts = np.unique(values, return_counts=True)
    means = np.empty(resamples, dtype=np.float64)
    few = len(distinct) * _MULTINOMIAL_PAYS < len(values)
    block = max(1, _BLOCK_NUMBERS // (len(distinct) if few else len(values)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if few:
            drawn = rng.multinomial(len(values), counts / len(values), size=size) @ distinct / len(values)
        else:
            drawn = values[rng.integers(0, len(values), size=(size, len(values)))].mean(axis=1)
        means[start : start + size] = drawn
    return means
