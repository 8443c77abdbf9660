"""Is the difference between two systems more than noise? Paired tests, bootstrap intervals, corrections, effect sizes.

In: per-question values of two systems on the same questions (`metrics.per_query`). Out: frozen records for reports.
This file knows no metric and no benchmark. Everything random is seeded, so that a report can be made again.

Per language (`compare`): paired t-test (scipy), sign-flip permutation test, percentile bootstrap over questions,
Cohen's d_z. Over all languages (`compare_groups`): the mean of the per-language means, as the publishers report it,
with questions resampled and signs flipped within their language; per-language p-values are corrected by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import MismatchError, MissingExtra

# The mean of group means under resampling: a percentile bootstrap interval and a sign-flip permutation test.

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


__all__ = ["Comparison", "GroupComparison", "Interval", "compare", "compare_groups", "holm", "mean_interval"]

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """System against baseline on n shared questions; differences are system minus baseline, in the metric's unit.

    d_z: mean difference over the standard deviation (n-1) of the differences (Cohen 1988); infinite when all differ
    equally. t, p_t: paired t-test, two-sided. p_permutation: two-sided sign-flip test. With n < 2, t and d_z are NaN
    and both p-values 1: nothing can be concluded. With no difference at all, t and d_z are 0 and both p-values 1.
    """

    n: int
    baseline: float
    system: float
    difference: float
    interval: Interval
    d_z: float
    t: float
    p_t: float
    p_permutation: float


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """System against baseline per group (usually a language) and over all groups.

    groups: name -> its own comparison. holm_t, holm_permutation: name -> p-value corrected for the number of groups.
    macro: means of the group means. Its interval and p_permutation resample questions within groups; its t, p_t and
    d_z come from the groups' mean differences (one number per group): would *other languages* gain?
    """

    groups: Mapping[str, Comparison]
    holm_t: Mapping[str, float]
    holm_permutation: Mapping[str, float]
    macro: Comparison


def compare(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same questions (question id -> value).

    Raises MismatchError when the questions are not the same, MissingExtra without the extra `bench`.
    """
    _refuse_other_questions(baseline, system)
    qids = sorted(baseline)
    before, after = _values(baseline, qids), _values(system, qids)
    change = after - before
    t, p_t = _paired_t(change)
    return Comparison(
        len(qids), _mean(before), _mean(after), _mean(change),
        bootstrap_interval([change], level=level, resamples=resamples, seed=seed),
        _d_z(change), t, p_t, sign_flip_p([change], resamples=resamples, seed=seed),
    )  # fmt: skip


def compare_groups(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    groups: Mapping[str, str],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GroupComparison:
    """Compare per group and over all groups; groups: question id -> group, for every question.

    Raises MismatchError when the questions differ or one has no group, MissingExtra without the extra `bench`.
    """
    _refuse_other_questions(baseline, system)
    members = _members(baseline, groups)
    each = {
        name: compare(
            {qid: baseline[qid] for qid in qids}, {qid: system[qid] for qid in qids},
            level=level, resamples=resamples, seed=seed,
        )
        for name, qids in members.items()
    }  # fmt: skip
    changes = [_values(system, qids) - _values(baseline, qids) for qids in members.values()]
    means = np.array([_mean(change) for change in changes], dtype=np.float64)
    t, p_t = _paired_t(means)
    macro = Comparison(
        len(baseline),
        _mean(np.array([c.baseline for c in each.values()])),
        _mean(np.array([c.system for c in each.values()])),
        _mean(means),
        bootstrap_interval(changes, level=level, resamples=resamples, seed=seed),
        _d_z(means), t, p_t, sign_flip_p(changes, resamples=resamples, seed=seed),
    )  # fmt: skip
    names = list(each)
    return GroupComparison(
        groups=each,
        holm_t=dict(zip(names, holm([c.p_t for c in each.values()]), strict=True)),
        holm_permutation=dict(zip(names, holm([c.p_permutation for c in each.values()]), strict=True)),
        macro=macro,
    )


def mean_interval(
    values: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap one system's mean over questions; with `groups`, the mean of group means, resampled within groups.

    Raises MismatchError when a question has no group, MissingExtra without the extra `bench`.
    """
    members = {"": sorted(values)} if groups is None else _members(values, groups)
    return bootstrap_interval(
        [_values(values, qids) for qids in members.values()], level=level, resamples=resamples, seed=seed
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method (1979), in the given order; none exceeds 1.

    The i-th smallest of m is multiplied by m - i + 1, and no corrected value is smaller than one before it.
    """
    corrected = [0.0] * len(p_values)
    floor = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = floor
    return corrected


def _paired_t(change: Numbers) -> tuple[float, float]:
    if len(change) < 2:
        return math.nan, 1.0
    if np.ptp(change) <= SAME:  # no spread: scipy would divide by zero
        return (0.0, 1.0) if abs(change[0]) <= SAME else (math.copysign(math.inf, change[0]), 0.0)
    result = _scipy_stats().ttest_1samp(change, 0.0)  # what ttest_rel does with the two columns
    return float(result.statistic), float(result.pvalue)


def _d_z(change: Numbers) -> float:
    if len(change) < 2:
        return math.nan
    if np.ptp(change) <= SAME:
        return 0.0 if abs(change[0]) <= SAME else math.copysign(math.inf, change[0])
    return float(change.mean() / change.std(ddof=1))


def _members(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, list[str]]:
    homeless = sorted(set(values) - set(groups))
    if homeless:
        raise MismatchError(f"{len(homeless)} questions have no group, such as {homeless[0]!r}; give a group for each.")
    members: dict[str, list[str]] = {name: [] for name in sorted({groups[qid] for qid in values})}
    for qid in sorted(values):
        members[groups[qid]].append(qid)
    return members


def _refuse_other_questions(baseline: Mapping[str, float], system: Mapping[str, float]) -> None:
    different = sorted(baseline.keys() ^ system.keys())
    if different:
        raise MismatchError(
            f"the two systems were measured on different questions ({len(different)} are in one only, such as "
            f"{different[0]!r}); score unanswered questions 0 instead of leaving them out."
        )


def _values(values: Mapping[str, float], qids: Sequence[str]) -> Numbers:
    return np.array([values[qid] for qid in qids], dtype=np.float64)


def _mean(values: Numbers) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtra('significance tests need scipy; run: pip install "xqg-vdb[bench]"') from error
    return stats
