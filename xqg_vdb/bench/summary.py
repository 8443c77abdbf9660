"""Values per question -> the records of a report: means with intervals, paired comparisons corrected by Holm."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xqg_vdb.bench.records import Compared, Difference, Ends, Result, Value
from xqg_vdb.datasets import RetrievalTask
from xqg_vdb.metrics import group_means, mean
from xqg_vdb.significance import RESAMPLES, Comparison, Interval, compare_groups, mean_interval


def summarize(
    values: Mapping[str, float],
    *,
    groups: Mapping[str, str],
    task: RetrievalTask,
    dataset: str,
    system: str,
    metric: str,
    seconds: Mapping[str, float],
    cost: Mapping[str, float],
    resamples: int = RESAMPLES,
) -> Result:
    """One system's mean by the publisher's average, and each group's, with bootstrap intervals."""
    means = group_means(values, groups=groups)
    macro = task.average == "groups"
    whole = mean_interval(values, groups=groups if macro else None, resamples=resamples)
    members = {name: {qid: v for qid, v in values.items() if groups[qid] == name} for name in means}
    return Result(
        dataset=dataset,
        system=system,
        metric=metric,
        headline=Value(len(values), mean(means) if macro else mean(values), _ends(whole)),
        groups={
            name: Value(len(own), means[name], _ends(mean_interval(own, resamples=resamples)))
            for name, own in members.items()
        },
        seconds=seconds,
        cost=cost,
    )


def contrast(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    groups: Mapping[str, str],
    dataset: str,
    metric: str,
    names: tuple[str, str],
    resamples: int = RESAMPLES,
) -> Compared:
    """The paired comparison of `names` = (baseline, system) in every group and over all."""
    found = compare_groups(baseline, system, groups=groups, resamples=resamples)
    return Compared(
        dataset=dataset,
        metric=metric,
        baseline=names[0],
        system=names[1],
        macro=_difference(found.macro),
        groups={
            name: _difference(one, holm_t=found.holm_t[name], holm_permutation=found.holm_permutation[name])
            for name, one in found.groups.items()
        },
    )


def _difference(found: Comparison, *, holm_t: float | None = None, holm_permutation: float | None = None) -> Difference:
    return Difference(
        n=found.n,
        baseline=found.baseline,
        system=found.system,
        difference=found.difference,
        interval=_ends(found.interval),
        d_z=found.d_z if math.isfinite(found.d_z) else None,
        p_t=found.p_t,
        p_permutation=found.p_permutation,
        holm_t=holm_t,
        holm_permutation=holm_permutation,
    )


def _ends(interval: Interval) -> Ends:
    return None if math.isnan(interval.low) else (interval.low, interval.high)
