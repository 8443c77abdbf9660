"""Is the difference between two systems more than noise? Paired tests, bootstrap intervals, corrections, effect sizes.

Everything random is seeded, so that a report can be made again. Questions that belong together (translations of one
question, questions of one passage) are a cluster: drawn together, and their signs flipped together. Without clusters
every question is its own.

Per group (`compare`): paired t-test (scipy), sign-flip permutation test, percentile bootstrap, Cohen's d_z. Over all
(`compare_groups`): the same mean as the report's headline; the groups' p-values are corrected by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import MismatchError, MissingExtra
from xqg_vdb.evaluate.metrics import Average, counted
from xqg_vdb.evaluate.records import Difference, Ends

_Numbers = NDArray[np.float64]

EXACT_UP_TO = 14
"""So many clusters that differ have at most 16,384 sign patterns, which are all tried."""
SAME = 1e-12
"""Sums of the same numbers in another order differ by less."""

_BLOCK_NUMBERS = 2**23
_MULTINOMIAL_PAYS = 8


class _Places:
    """Which group and which cluster each question belongs to, as numbers, and how many of each there are."""

    def __init__(
        self, qids: Sequence[str], groups: Mapping[str, str] | None, clusters: Mapping[str, str] | None
    ) -> None:
        names = [""] * len(qids) if groups is None else [groups[qid] for qid in qids]
        owners = qids if clusters is None else [clusters.get(qid, qid) for qid in qids]
        known, self.group = np.unique(names, return_inverse=True)
        others, self.cluster = np.unique(owners, return_inverse=True)
        self.groups, self.clusters = len(known), len(others)

    def totals(self, values: _Numbers) -> _Numbers:
        """Sums of values by cluster and group, (clusters, groups)."""
        flat = self.cluster * self.groups + self.group
        sums = np.bincount(flat, weights=values, minlength=self.clusters * self.groups)
        return sums.astype(np.float64).reshape(self.clusters, self.groups)

    def group_means(self, values: _Numbers) -> _Numbers:
        """The mean of each group, (groups,)."""
        return np.array([_mean(values[self.group == group]) for group in range(self.groups)], dtype=np.float64)

    def shares(self, values: _Numbers) -> _Numbers:
        """What each cluster contributes to the mean of group means, (clusters,): their sum is that mean."""
        sizes = np.bincount(self.group, minlength=self.groups)
        weights = values / (sizes[self.group] * max(self.groups, 1))
        return np.bincount(self.cluster, weights=weights, minlength=self.clusters).astype(np.float64)


def sign_flip_p(shares: _Numbers, *, resamples: int, seed: int) -> float:
    """Two-sided p of the sum of shares (clusters,) when each could as well have the other sign.

    Exact over all sign patterns of up to `EXACT_UP_TO` shares that are not 0, else (1 + as extreme) / (1 + resamples).
    scipy.stats.permutation_test gives the same p (tests compare them) at about 25 times the cost.
    """
    weighted = shares[np.abs(shares) > SAME]  # flipping a zero changes nothing
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


def _bootstrap(values: _Numbers, places: _Places, *, resamples: int, seed: int) -> Ends:
    """Percentile interval at 95 % of the mean of group means, clusters drawn with replacement; None without two.

    A cluster is drawn in the place of one that touches the same groups, so that every group keeps its questions; those
    that have no such fellow are drawn among each other.
    """
    sums, counts = places.totals(values), places.totals(np.ones_like(values))
    strata = _strata(counts > 0)
    if all(len(members) < 2 for members in strata):
        return None
    rng = np.random.default_rng(seed)
    total, n = (np.zeros((resamples, places.groups)) for _ in range(2))
    for members in strata:
        touched = np.flatnonzero(counts[members].any(axis=0))
        rows = np.concatenate([sums[members][:, touched], counts[members][:, touched]], axis=1)
        drawn = _resampled_totals(rows, resamples=resamples, rng=rng)
        total[:, touched] += drawn[:, : len(touched)]
        n[:, touched] += drawn[:, len(touched) :]
    observed = np.broadcast_to(sums.sum(axis=0) / counts.sum(axis=0), total.shape)
    means = np.divide(total, n, out=observed.copy(), where=n > 0).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _strata(touches: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Rows of the clusters that touch the same groups, given (clusters, groups); those without a fellow together."""
    if not len(touches):
        return []
    kinds = np.unique(touches, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(kinds)
    alone = np.flatnonzero(sizes[kinds] == 1)
    several = [np.flatnonzero(kinds == kind) for kind in np.flatnonzero(sizes > 1)]
    return [*several, alone] if len(alone) else several


def _resampled_totals(rows: _Numbers, *, resamples: int, rng: np.random.Generator) -> _Numbers:
    """Sums of `resamples` samples of as many rows (n, m) with replacement, (resamples, m).

    A metric has few distinct values (R@k two, MRR@10 eleven), and how often each is drawn is multinomial: drawing these
    numbers costs as much as there are values, not as there are rows.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    few = len(distinct) * _MULTINOMIAL_PAYS < rows.size / 2
    sums = np.empty((resamples, rows.shape[1]), dtype=np.float64)
    block = max(1, _BLOCK_NUMBERS // (len(distinct) if few else rows.size))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if few:
            sums[start : start + size] = rng.multinomial(len(rows), counts / len(rows), size=size) @ distinct
        else:
            sums[start : start + size] = rows[rng.integers(0, len(rows), size=(size, len(rows)))].sum(axis=1)
    return sums


RESAMPLES = 10_000


def compare(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two systems on the same questions (question id -> value), by their means or means of group means.

    clusters: question id -> what it belongs to. d_z: mean difference over the standard deviation (n-1) of the
    differences (Cohen 1988); None with one question or where all differ equally. p_t: paired t-test over the clusters'
    sums, or the groups' means, two-sided. p_permutation: two-sided sign-flip test. With one question, and with no
    difference at all, both p-values are 1.
    Raises MismatchError when the questions are not the same, MissingExtra without the extra `bench`.
    """
    _refuse_other_questions(baseline, system)
    qids = sorted(baseline)
    before, after = (np.array([values[qid] for qid in qids], dtype=np.float64) for values in (baseline, system))
    change, places = after - before, _Places(qids, groups, clusters)
    shares = places.shares(change)
    # t-test and d_z: over what the mean is over, clusters and questions or groups
    tested, spread = (shares * len(shares), change) if groups is None else [places.group_means(change)] * 2
    first, second, difference = (_mean(places.group_means(values)) for values in (before, after, change))
    return Difference(
        len(qids), first, second, difference, _bootstrap(change, places, resamples=resamples, seed=seed),
        _d_z(spread), _paired_t(tested), sign_flip_p(shares, resamples=resamples, seed=seed),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """System against baseline over all groups (usually languages) and in each, corrected by Holm for their number.

    macro: all values are of the headline's mean (see `metrics.counted`). Where that is one over groups, p_t and d_z
    come from the groups' mean differences, one number per group: would *other languages* gain?
    """

    groups: Mapping[str, Difference]
    macro: Difference


def compare_groups(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    groups: Mapping[str, str],
    clusters: Mapping[str, str] | None = None,
    average: Average = "groups",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GroupComparison:
    """Compare per group and over all; groups: question id -> group, for every question; average: of the headline.

    Raises MismatchError when the questions differ or one has no group, MissingExtra without the extra `bench`.
    """
    _refuse_other_questions(baseline, system)

    def within(qids: Iterable[str], parts: Mapping[str, str] | None = None) -> Difference:
        before, after = ({qid: values[qid] for qid in qids} for values in (baseline, system))
        return compare(before, after, groups=parts, clusters=clusters, resamples=resamples, seed=seed)

    each = {name: within(qids) for name, qids in _members(baseline, groups).items()}
    by_t, by_permutation = holm([d.p_t for d in each.values()]), holm([d.p_permutation for d in each.values()])
    corrected = {
        name: replace(own, holm_t=t, holm_permutation=p)
        for (name, own), t, p in zip(each.items(), by_t, by_permutation, strict=True)
    }
    parts = counted(baseline, groups=groups, average=average)
    return GroupComparison(corrected, within(list(parts), parts if average == "groups" else None))


def mean_interval(
    values: Mapping[str, float],
    *,
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ends:
    """Bootstrap one system's mean over questions at 95 %; with `groups`, the mean of group means. None without two.

    Raises MismatchError when a question has no group.
    """
    if groups is not None:
        _members(values, groups)
    qids = sorted(values)
    numbers = np.array([values[qid] for qid in qids], dtype=np.float64)
    return _bootstrap(numbers, _Places(qids, groups, clusters), resamples=resamples, seed=seed)


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


def _paired_t(change: _Numbers) -> float:
    if len(change) < 2:
        return 1.0
    if np.ptp(change) <= SAME:  # no spread: scipy would divide by zero
        return 1.0 if abs(change[0]) <= SAME else 0.0
    return float(scipy_stats().ttest_1samp(change, 0.0).pvalue)  # what ttest_rel does with the two columns


def _d_z(change: _Numbers) -> float | None:
    if len(change) < 2:
        return None
    if np.ptp(change) <= SAME:
        return 0.0 if abs(change[0]) <= SAME else None
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


def _mean(values: _Numbers) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def scipy_stats() -> Any:
    """scipy.stats. Raises MissingExtra without the extra `bench`."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtra('significance tests need scipy; run: pip install "xqg-vdb[bench]"') from error
    return stats
