"""Metric names of a suite -> the value of every question, by each metric's own module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.answers import answer_recall
from xqg_vdb.evaluate.bitext import bucc_f1, bucc_mine, bucc_optimize
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask
from xqg_vdb.evaluate.metrics import Run, counted, macro_mean, parse_metrics, per_query
from xqg_vdb.evaluate.mixed import WHOLE, measure_mixed, mixed_depth, whole_average_precision
from xqg_vdb.evaluate.records import Compared, Difference, Ends, Result, Value
from xqg_vdb.evaluate.significance import RESAMPLES, Comparison, Interval, compare_groups, mean_interval
from xqg_vdb.evaluate.systems import Placed
from xqg_vdb.types import Passage

BITEXT = "F1"
_ANSWERS = re.compile(r"R@(\d+)kt( strict)?")
_DEPTH_FOR_ANSWERS = 100

Values = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Kinds:
    """Metric names by who computes them."""

    ranking: list[str]
    answers: list[str]
    mixed: list[str]
    vectors: list[str]


def _by_kind(metrics: Sequence[str]) -> _Kinds:
    kinds = _Kinds([], [], [], [])
    for name in metrics:
        if _ANSWERS.fullmatch(name):
            kinds.answers.append(name)
        elif name in (BITEXT, WHOLE):
            kinds.vectors.append(name)
        else:
            (kinds.ranking if mixed_depth(name) is None else kinds.mixed).append(name)
    return kinds


def needed_depth(metrics: Sequence[str]) -> int:
    """How many passages a question must have for these metrics. DataError for what is no metric."""
    kinds = _by_kind(metrics)
    depths = [metric.k for metric in parse_metrics(kinds.ranking)] + [mixed_depth(name) or 1 for name in kinds.mixed]
    return max([1, *depths, *([_DEPTH_FOR_ANSWERS] if kinds.answers else [])])


def check_metrics(metrics: Sequence[str], task: RetrievalTask) -> None:
    """DataError when a metric is unknown or needs what the task lacks (answers, judgements)."""
    kinds = _by_kind(metrics)
    parse_metrics(kinds.ranking)
    if kinds.answers and not task.answers:
        raise DataError(f"{kinds.answers[0]} needs gold answers, and {task.name} has none.")
    judged = [*kinds.ranking, *kinds.mixed, *kinds.vectors]
    if judged and not task.qrels:
        raise DataError(f"{judged[0]} needs relevance judgements, and {task.name} has answers only.")


def judge_run(
    task: RetrievalTask,
    passages: Sequence[Passage],
    placed: Placed,
    run: Run,
    *,
    metrics: Sequence[str],
    by_vectors: bool = True,
) -> tuple[Values, str]:
    """Each metric's value per question, and the tokeniser of the answer recall ("" without one).

    For `F1` (bitext mining) the "questions" are the groups: mining has one number a language pair. by_vectors: the run
    is what the vectors alone give; else there is no whole ranking, and mAP without a cut-off is left out.
    """
    kinds = _by_kind(metrics)
    values: Values = {}
    if kinds.ranking:
        parsed = parse_metrics(kinds.ranking)
        found = per_query(run, task.qrels, metrics=parsed)
        values.update({name: found[metric] for name, metric in zip(kinds.ranking, parsed, strict=True)})
    tokenizer = ""
    if kinds.answers:
        values_of_answers, tokenizer = _answers(task, passages, run, kinds.answers)
        values.update(values_of_answers)
    values.update({name: measure_mixed(name, run, task, passages) for name in kinds.mixed})
    if BITEXT in kinds.vectors:
        values[BITEXT] = _mined(task, passages, placed)
    if WHOLE in kinds.vectors and by_vectors and not task.pooled:
        values[WHOLE] = whole_average_precision(task, passages, questions=placed.questions, rows=placed.passages)
    return {name: values[name] for name in metrics if values.get(name)}, tokenizer


def _answers(task: RetrievalTask, passages: Sequence[Passage], run: Run, names: Sequence[str]) -> tuple[Values, str]:
    text = {passage.id: passage.text for passage in passages}  # without the title, as the official script
    rankings = {qid: [text[docid] for docid, _ in found] for qid, found in run.items()}
    values: Values = {}
    tokenizer = ""
    for name in names:
        budget, strict = _budget(name)
        (result,) = answer_recall(
            rankings, answers=task.answers or {}, langs=task.groups, budgets=[budget],
            mode="strict" if strict else "official",
        )  # fmt: skip
        values[name], tokenizer = dict(result.hits), result.tokenizer
    return values, tokenizer


def _budget(name: str) -> tuple[int, bool]:
    """Tokens, and whether it is the strict mode, of `R@2kt` and `R@2kt strict`."""
    tokens, _, mode = name.removeprefix("R@").partition("kt")
    return 1000 * int(tokens), bool(mode)


def _mined(task: RetrievalTask, passages: Sequence[Passage], placed: Placed) -> dict[str, float]:
    """F1 per language pair; the threshold is the best one on the same gold, as in XTREME's script on its dev split."""
    found: dict[str, float] = {}
    for group in sorted(set(task.groups.values())):
        asked = [row for row, query in enumerate(task.queries) if task.groups[query.id] == group]
        inside = [row for row, p in enumerate(passages) if not task.pooled or p.meta[POOL] == group]
        source_ids, target_ids = [task.queries[row].id for row in asked], [passages[row].id for row in inside]
        pairs = bucc_mine(
            np.asarray(placed.questions[asked]), np.asarray(placed.passages[inside]), source_ids=source_ids,
            target_ids=target_ids, ignored=task.ignored,
        )  # fmt: skip
        gold = [(qid, docid) for qid in source_ids for docid in task.qrels.get(qid, {})]
        found[group] = bucc_f1(pairs, gold, threshold=bucc_optimize(pairs, gold)).f1
    return found


# Values per question -> the records of a report: means with intervals, paired comparisons corrected by Holm.


def summarize(
    values: Mapping[str, float],
    *,
    task: RetrievalTask,
    dataset: str,
    system: str,
    metric: str,
    seconds: Mapping[str, float],
    cost: Mapping[str, float],
    resamples: int = RESAMPLES,
) -> Result:
    """One system's mean by the publisher's average, and each group's, with bootstrap intervals."""
    groups, clusters = _groups_of(metric, values, task), task.clusters()

    def summary(parts: Mapping[str, str]) -> Value:
        own = {qid: values[qid] for qid in parts}
        interval = mean_interval(own, groups=parts, clusters=clusters, resamples=resamples)
        return Value(len(own), macro_mean(own, groups=parts), _ends(interval))

    return Result(
        dataset=dataset,
        system=system,
        metric=metric,
        headline=summary(counted(values, groups=groups, average=task.average)),
        groups={
            name: summary({qid: name for qid in values if groups[qid] == name})
            for name in sorted({groups[qid] for qid in values})
        },
        seconds=seconds,
        cost=cost,
    )


def contrast(
    baseline: Mapping[str, float],
    system: Mapping[str, float],
    *,
    task: RetrievalTask,
    dataset: str,
    metric: str,
    names: tuple[str, str],
    resamples: int = RESAMPLES,
) -> Compared:
    """The paired comparison of `names` = (baseline, system) in every group and of the headline."""
    found = compare_groups(
        baseline, system, groups=_groups_of(metric, baseline, task), clusters=task.clusters(), average=task.average,
        resamples=resamples,
    )  # fmt: skip
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


def _groups_of(metric: str, values: Mapping[str, float], task: RetrievalTask) -> Mapping[str, str]:
    """What the questions of a metric are broken down by."""
    return {group: group for group in values} if metric == BITEXT else task.groups


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
