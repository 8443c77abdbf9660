"""One parameter of a system over several values, ranked in memory: the curves of a report.

α and λ come from one pair of score tables (`tuning/sweep.py`); the number of queries a language, and which language is
left out, change the query side of the fusion and need tables of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from xqg_vdb.bench.placing import calibrated_passages, content_of, means_of, question_languages
from xqg_vdb.bench.records import Point, Sweep
from xqg_vdb.bench.suite import SweepPlan
from xqg_vdb.bench.systems import System
from xqg_vdb.bench.workbench import Workbench
from xqg_vdb.datasets import RetrievalTask
from xqg_vdb.errors import DataError
from xqg_vdb.metrics import Metric, group_means, mean, parse_metrics
from xqg_vdb.score_matrix import Judgements, Values, id_order, judge
from xqg_vdb.tuning.sweep import Setting, recipe_tables

DEFAULT_ALPHAS = tuple(round(0.05 * i, 2) for i in range(20))
DEFAULT_STRENGTHS = tuple(round(0.1 * i, 1) for i in range(13))


def run_sweep(bench: Workbench, plan: SweepPlan, dataset: str) -> Sweep:
    """Measure the plan's system at each value. DataError for what cannot be swept there."""
    system = next(one for one in bench.suite.systems if one.name == plan.system)
    task = bench.task(dataset)
    metric = _metric(plan, bench.metrics(dataset))
    if task.pooled or not task.qrels:
        raise DataError(f"sweeps need one pool of passages with judgements; {dataset} is not of that kind.")
    if system.queries is None and plan.parameter != "lambda":
        raise DataError(f"system {system.name!r} folds in no queries: there is nothing to sweep {plan.parameter} over.")
    if system.expand or system.rerank:
        raise DataError(f"system {system.name!r} expands or ranks again: sweeps are made without; name its own base.")
    material = bench.material(system.encoder, dataset)
    judged = judge(
        task.qrels, query_ids=[query.id for query in task.queries], passage_ids=[p.id for p in material.passages]
    )
    order = id_order([passage.id for passage in material.passages])
    points: list[Point] = []
    for labels, one, settings in _variants(bench, plan, system, dataset):
        bench.progress(f"{dataset}: {plan.parameter} of {system.name}", len(points), None)
        for label, values in zip(labels, _measure(bench, one, dataset, settings, metric, judged, order), strict=True):
            points.append(_point(label, values, task))
    return Sweep(dataset, str(metric), system.name, plan.parameter, points)


def _metric(plan: SweepPlan, own: Sequence[str]) -> Metric:
    if plan.metric is not None:
        return parse_metrics([plan.metric])[0]
    for name in own:
        try:
            return parse_metrics([name])[0]
        except DataError:
            continue
    raise DataError('a sweep needs a ranking metric, such as metric = "R@10".')


def _variants(
    bench: Workbench, plan: SweepPlan, system: System, dataset: str
) -> Iterator[tuple[Sequence[float | str], System, Sequence[Setting]]]:
    """Systems that share a pair of tables, with the settings to read off them and the points' labels."""
    recommended = bench.encoder(system.encoder).calibration
    strength = recommended if system.calibration is None else system.calibration
    alpha = system.recipe.alpha
    if plan.parameter == "alpha":
        alphas = plan.values or DEFAULT_ALPHAS
        yield alphas, system, [Setting(value, strength) for value in alphas]
    elif plan.parameter == "lambda":
        strengths = plan.values or DEFAULT_STRENGTHS
        yield strengths, system, [Setting(alpha, value) for value in strengths]
    elif plan.parameter == "n":
        queries = bench.query_vectors(system, dataset)
        most = 1 if queries is None else int(queries.index.max()) + 1
        for n in plan.values or range(1, most + 1):
            yield [n], replace(system, n=int(n)), [Setting(alpha, strength)]
    else:
        queries = bench.query_vectors(system, dataset)
        langs = list(system.recipe.langs or (queries.langs if queries else ()))
        yield ["all"], system, [Setting(alpha, strength)]
        for lang in langs if len(langs) > 1 else ():
            rest = tuple(one for one in langs if one != lang)
            recipe = replace(system.recipe, langs=rest)
            yield [f"without {lang}"], replace(system, recipe=recipe), [Setting(alpha, strength)]


def _measure(
    bench: Workbench,
    system: System,
    dataset: str,
    settings: Sequence[Setting],
    metric: Metric,
    judged: Judgements,
    order: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Values:
    """Values (settings, q) of one system whose α and λ are the settings'."""
    encoder = bench.encoder(system.encoder)
    material, queries = bench.material(system.encoder, dataset), bench.query_vectors(system, dataset)
    table = means_of(system, encoder=encoder, queries=queries, asked=bench.question_means(system))
    normalize = encoder.facts.normalize
    passages = calibrated_passages(system, material, normalize=normalize)
    sums = {} if queries is None else content_of(system, queries, passages=len(passages), means=table.means)
    tables = recipe_tables(
        material.question_vectors, passages, sums, recipe=system.recipe, table=table,
        langs=question_languages(system, material), normalize=normalize,
    )  # fmt: skip
    return tables.sweep(settings, judged=judged, metrics=[metric], tie_order=order)[metric]


def _point(label: float | str, values: Values, task: RetrievalTask) -> Point:
    own = {query.id: float(value) for query, value in zip(task.queries, values, strict=True)}
    groups = group_means(own, groups=task.groups)
    return Point(label, mean(groups) if task.average == "groups" else mean(own), groups)
