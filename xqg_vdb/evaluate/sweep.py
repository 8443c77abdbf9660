"""Many settings of α and λ from two score tables: what makes a sweep instant.

In: question, passage and pooled query rows. Out: per-question metric values for each setting, equal to those of fusing,
calibrating and ranking anew. With v = (1-α)·E + α·g (`fusion.py`) and the question q - λ·μ (`calibration.py`)

    (q - λ·μ)·v = (1-α)·(q·E) + α·(q·g) - λ·((1-α)·(μ·E) + α·(μ·g))
    |v|²        = (1-α)²·|E|² + 2α(1-α)·(E·g) + α²·|g|²

so that a setting costs two multiplications a score, however wide the vectors are. The length of q - λ·μ has no
influence on a ranking and is left out. Tables exist for one block of questions at a time. This file knows no files and
no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.matrix import Judgements, Rows, Values, best_columns, id_order, judge, per_row
from xqg_vdb.evaluate.metrics import Metric, group_means, headline, parse_metrics
from xqg_vdb.evaluate.records import Point, Sweep
from xqg_vdb.evaluate.suite import SweepPlan, System
from xqg_vdb.evaluate.systems import calibrated_passages, means_of, question_languages, rows_of
from xqg_vdb.evaluate.workbench import Workbench
from xqg_vdb.fusion import Sums, pooled_queries, recipe_languages
from xqg_vdb.types import Recipe, Vectors

BLOCK_SCORES = 2**21
"""Scores of a block of questions, 8 MiB a table: smaller ones fit caches better, but make products of matrices slow."""

_PAIRS_WORTH_COUNTING = 4
"""With more judged passages per question, finding the best columns costs less than counting what precedes each."""

_SMALLEST_NORM = np.float32(1e-12)


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """One point of a sweep: α of the recipe, and the λ by which the language mean is subtracted from questions."""

    alpha: float
    strength: float


class ScoreTables:
    """Scores of questions (q, dim) and passages (n, dim) for every (α, λ), without touching the vectors again.

    pooled: g (n, dim), the query side of the fusion; None when nothing is folded in, and α then has no effect.
    takes_part: (n,) bool, rows that have a g; the others keep their vector (`fusion.pooled_queries` returns both).
    means, mean_of: rows (m, dim) and (q,) int, which of them is subtracted from each question; None for no calibration.
    normalize: give fused rows length 1, as `fusion.fuse` does for cosine collections.
    Raises ValueError when the shapes do not fit together.
    """

    def __init__(
        self,
        questions: Vectors,
        passages: Vectors,
        pooled: Vectors | None = None,
        *,
        takes_part: NDArray[np.bool_] | None = None,
        means: Vectors | None = None,
        mean_of: NDArray[np.integer] | None = None,
        normalize: bool,
    ) -> None:
        _refuse_other_shapes(questions, passages, pooled, means, mean_of)
        self._questions = questions
        self._passages = np.asarray(passages, dtype=np.float32)
        if pooled is not None and takes_part is not None and not takes_part.all():
            pooled = np.where(takes_part[:, None], pooled, self._passages)  # (1-α)·E + α·E is E
        self._pooled = pooled
        self._normalize = normalize
        self._mean_of = mean_of
        self._means_e = None if means is None else means @ self._passages.T
        self._means_g = None if means is None or pooled is None else means @ pooled.T
        self._squares = _squares(self._passages, pooled) if normalize else None

    def sweep(
        self,
        settings: Sequence[Setting],
        *,
        judged: Judgements,
        metrics: Sequence[Metric],
        tie_order: NDArray[np.int64] | None = None,
        hidden: NDArray[np.int64] | None = None,
    ) -> dict[Metric, Values]:
        """Measure every setting: metric -> (settings, q) float64, rows in the order of `settings`.

        judged, tie_order: from `matrix.judge` and `id_order`, for these questions and passages.
        hidden: (m, 2) rows of questions and of passages that they shall not find.
        """
        values = {metric: np.empty((len(settings), len(self._questions)), dtype=np.float64) for metric in metrics}
        depth = max((metric.k for metric in metrics), default=1)
        for block, tables in self._blocks():
            part = _judgements_of(judged, block)
            for row, setting in enumerate(settings):
                scores = self._scores(tables, block, setting)
                if hidden is not None:
                    inside = hidden[(hidden[:, 0] >= block.start) & (hidden[:, 0] < block.stop)]
                    scores[inside[:, 0] - block.start, inside[:, 1]] = -np.inf
                rows = _judged_rows(scores, part, k=depth, tie_order=tie_order)
                for metric in metrics:
                    values[metric][row, block] = per_row(rows, part, metric=metric)
        return values

    def _blocks(self) -> Iterator[tuple[slice, tuple[Vectors, Vectors | None]]]:
        """Yield q·E and q·g for as many questions at a time as `BLOCK_SCORES` allows."""
        step = max(1, BLOCK_SCORES // max(1, len(self._passages)))
        for start in range(0, len(self._questions), step):
            block = slice(start, min(start + step, len(self._questions)))
            rows = self._questions[block]
            yield block, (rows @ self._passages.T, None if self._pooled is None else rows @ self._pooled.T)

    def _scores(self, tables: tuple[Vectors, Vectors | None], block: slice, setting: Setting) -> Vectors:
        """Scores (rows of the block, n) of one setting."""
        of_e, of_g = tables
        share_e, share_g = self._shares(setting.alpha)
        scores = np.multiply(of_e, share_e)
        if of_g is not None and setting.alpha != 0.0:
            scores += of_g * share_g
        if setting.strength != 0.0 and self._means_e is not None and self._mean_of is not None:
            shift = self._means_e * share_e
            if self._means_g is not None:
                shift += self._means_g * share_g
            shift *= np.float32(setting.strength)
            owners = self._mean_of[block]
            for one in np.unique(owners):  # in slices: a gathered copy of `shift` would be as large as the table
                rows = slice(None) if (owners == one).all() else owners == one
                scores[rows] -= shift[one]
        return scores

    def _shares(self, alpha: float) -> tuple[Vectors, Vectors]:
        """What a passage's E and g weigh in its fused row, each (n,) float32; the row's length is divided out."""
        kept, added = (1.0, 0.0) if self._pooled is None else (1.0 - alpha, alpha)
        ones = np.ones(len(self._passages), dtype=np.float64)
        if self._squares is not None:
            e_e, e_g, g_g = self._squares
            square = kept * kept * e_e + 2.0 * kept * added * e_g + added * added * g_g
            ones /= np.maximum(np.sqrt(np.maximum(square, 0.0)), _SMALLEST_NORM)
        return (kept * ones).astype(np.float32), (added * ones).astype(np.float32)


def recipe_tables(
    questions: Vectors,
    passages: Vectors,
    sums: Sums,
    *,
    recipe: Recipe,
    table: LanguageMeans,
    langs: Sequence[str | None],
    normalize: bool,
) -> ScoreTables:
    """Make the tables of a recipe (its α is left to the settings) for questions in `langs`, calibrated by `table`.

    table: also holds the mean of each query language that a centred or shrunk recipe subtracts, as in `fusion.fuse`.
    Raises what `fusion.pooled_queries` raises.
    """
    pooled, takes_part = None, None
    if recipe_languages(sums, recipe):
        pooled, takes_part = pooled_queries(sums, recipe=recipe, means=table.means)
    means, mean_of = None, None
    if table.means:
        known = sorted({lang or "" for lang in langs})
        place = {lang: row for row, lang in enumerate(known)}
        means = np.stack([np.asarray(table.mean_of(lang), dtype=np.float32) for lang in known])
        mean_of = np.array([place[lang or ""] for lang in langs], dtype=np.int64)
    return ScoreTables(
        questions, passages, pooled, takes_part=takes_part, means=means, mean_of=mean_of, normalize=normalize
    )


def _judged_rows(scores: Vectors, judged: Judgements, *, k: int, tie_order: NDArray[np.int64] | None) -> Rows:
    """Rank the judged passages: (q, k) rows as from `best_columns`, but -1 wherever an unjudged passage stands.

    That is all a metric looks at. A passage's place is 1 + how many score higher + how many equals have a lower id.
    """
    if len(judged.keys) > _PAIRS_WORTH_COUNTING * len(scores):
        return best_columns(scores, k=k, tie_order=tie_order)
    rows = np.full((len(scores), k), -1, dtype=np.int64)
    query, passage = np.divmod(judged.keys, max(judged.n_passages, 1))
    turn = _occurrence(query)
    for number in range(int(turn.max(initial=-1)) + 1):  # the first judged passage of each question, then the second …
        q, p = query[turn == number], passage[turn == number]
        lines = scores if len(q) == len(scores) else scores[q]
        own = lines[np.arange(len(q)), p][:, None]
        place = np.count_nonzero(lines > own, axis=1)
        equal = lines == own
        for i in np.flatnonzero(np.count_nonzero(equal, axis=1) > 1):
            rivals = np.flatnonzero(equal[i])
            order = rivals if tie_order is None else tie_order[rivals]
            place[i] += np.count_nonzero(order < (p[i] if tie_order is None else tie_order[p[i]]))
        seen = place < k
        rows[q[seen], place[seen]] = p[seen]
    return rows


def _occurrence(sorted_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number equal neighbours from 0."""
    first = np.searchsorted(sorted_values, sorted_values)
    return np.arange(len(sorted_values), dtype=np.int64) - first


def _judgements_of(judged: Judgements, block: slice) -> Judgements:
    """Cut out the judgements of a block of questions."""
    low, high = np.searchsorted(judged.keys, [block.start * judged.n_passages, block.stop * judged.n_passages])
    return Judgements(
        judged.n_passages,
        judged.keys[low:high] - block.start * judged.n_passages,
        judged.grades[low:high],
        judged.relevant[block],
        judged.ideal[block],
    )


def _squares(passages: Vectors, pooled: Vectors | None) -> tuple[Values, Values, Values]:
    """|E|², E·g and |g|² per passage, each (n,) float64."""
    others = passages if pooled is None else pooled
    pairs = ((passages, passages), (passages, others), (others, others))
    e_e, e_g, g_g = (np.einsum("ij,ij->i", a, b, dtype=np.float64) for a, b in pairs)
    return e_e, e_g, g_g


def _refuse_other_shapes(
    questions: Vectors,
    passages: Vectors,
    pooled: Vectors | None,
    means: Vectors | None,
    mean_of: NDArray[np.integer] | None,
) -> None:
    dim = questions.shape[1]
    fits = passages.shape[1] == dim and (pooled is None or pooled.shape == passages.shape)
    fits = fits and (means is None) == (mean_of is None)
    if means is not None and mean_of is not None:
        fits = fits and means.shape[1] == dim and mean_of.shape == (len(questions),)
    if not fits:
        raise ValueError("questions (q, dim), passages (n, dim), pooled (n, dim), means (m, dim) and mean_of (q,)")


# One parameter of a system over several values, ranked in memory: the curves of a report.

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
        langs = list(system.recipe.query_langs or (queries.langs if queries else ()))
        yield ["all"], system, [Setting(alpha, strength)]
        for lang in langs if len(langs) > 1 else ():
            rest = tuple(one for one in langs if one != lang)
            recipe = replace(system.recipe, query_langs=rest)
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
    sums = rows_of(system, material, queries, means=table).sums
    tables = recipe_tables(
        material.question_vectors, passages, sums, recipe=system.recipe, table=table,
        langs=question_languages(system, material), normalize=normalize,
    )  # fmt: skip
    hidden = None
    if material.task.not_itself:
        row_of = {passage.id: row for row, passage in enumerate(material.passages)}
        pairs = [(i, row_of[q.id]) for i, q in enumerate(material.task.queries) if q.id in row_of]
        hidden = np.array(pairs, np.int64).reshape(-1, 2)
    return tables.sweep(settings, judged=judged, metrics=[metric], tie_order=order, hidden=hidden)[metric]


def _point(label: float | str, values: Values, task: RetrievalTask) -> Point:
    own = {query.id: float(value) for query, value in zip(task.queries, values, strict=True)}
    return Point(label, headline(own, groups=task.groups, average=task.average), group_means(own, groups=task.groups))
