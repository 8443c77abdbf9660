"""Exact search and ranking metrics as matrix arithmetic: the fast path beside `metrics.py`, for vectors held in memory.

In: query and passage rows, or a matrix of scores. Out: the best passage rows per query under the one tie rule (score
descending, then id ascending) and per-query values, which tests compare with those of ir-measures (trec_eval's).
Memory stays bounded: scores exist for one block of queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.evaluate.metrics import Metric, Qrels, Run, ranked
from xqg_vdb.types import Vectors

Rows = NDArray[np.int64]
"""Passage row numbers, best first, one line per query; -1 where a query has fewer results."""

Values = NDArray[np.float64]
"""One number per query."""

BLOCK_SCORES = 2**24
"""Scores held at once by `search_rows`: 64 MiB of float32."""


def search_rows(
    queries: NDArray[np.floating], passages: NDArray[np.floating], *, k: int, tie_order: NDArray[np.int64] | None = None
) -> tuple[Rows, NDArray[np.floating]]:
    """Find the k best passages by dot product: rows and scores (q, min(k, n)), for queries (q, dim), passages (n, dim).

    Both may be float64, and are then computed so. tie_order: from `id_order`, so that equal scores come by ascending
    id; row order without it.
    """
    width = min(k, len(passages))
    rows = np.empty((len(queries), width), dtype=np.int64)
    scores: NDArray[np.floating] = np.empty((len(queries), width), dtype=np.result_type(queries, passages))
    for block in row_blocks(len(queries), len(passages)):
        table = queries[block] @ passages.T
        rows[block] = best_columns(table, k=k, tie_order=tie_order)
        scores[block] = np.take_along_axis(table, rows[block], axis=1)
    return rows, scores


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices over the rows of an (n_rows, n_columns) matrix of which each holds about `BLOCK_SCORES` numbers."""
    step = max(1, BLOCK_SCORES // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def id_order(ids: Sequence[str]) -> NDArray[np.int64]:
    """Give every id its place in ascending order, (n,): what breaks ties."""
    places = np.empty(len(ids), dtype=np.int64)
    places[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return places


def best_columns(table: NDArray[np.floating], *, k: int, tie_order: NDArray[np.int64] | None = None) -> Rows:
    """Find the columns of the k greatest numbers of every row, best first, (rows, min(k, columns)); exact on ties."""
    n = table.shape[1]
    places = np.arange(n, dtype=np.int64) if tie_order is None else tie_order
    if k >= n:
        columns = np.broadcast_to(np.arange(n, dtype=np.int64), table.shape).copy()
    else:
        columns = np.argpartition(table, n - k, axis=1)[:, n - k :].astype(np.int64, copy=False)
        _settle_boundary_ties(table, columns, places)
    values = np.take_along_axis(table, columns, axis=1)
    best_first = np.lexsort((places[columns], -values), axis=1)
    return np.take_along_axis(columns, best_first, axis=1)


def _settle_boundary_ties(table: NDArray[np.floating], columns: Rows, places: NDArray[np.int64]) -> None:
    """Replace, in place, the members of `columns` that argpartition picked at random among equals of the k-th score."""
    chosen = np.take_along_axis(table, columns, axis=1)
    last = chosen.min(axis=1, keepdims=True)
    tied_rows = np.flatnonzero((table == last).sum(axis=1) > (chosen == last).sum(axis=1))
    for row in tied_rows:
        sure = np.flatnonzero(table[row] > last[row])
        equal = np.flatnonzero(table[row] == last[row])
        equal = equal[np.argsort(places[equal])][: columns.shape[1] - len(sure)]
        columns[row] = np.concatenate([sure, equal])


@dataclass(frozen=True, slots=True)
class _Judgements:
    """Qrels in the row numbers of one pool: made once per task by `judge`, used for every system.

    keys: sorted query_row · n_passages + passage_row of the judged pairs, with `grades` beside them.
    relevant (q,): number of passages graded 1 or more; ideal (q, m): the grades, best first, padded with 0. Both count
    passages that the pool lacks, as trec_eval does.
    """

    n_passages: int
    keys: NDArray[np.int64]
    grades: NDArray[np.int64]
    relevant: NDArray[np.int64]
    ideal: NDArray[np.int64]


def judge(qrels: Qrels, *, query_ids: Sequence[str], passage_ids: Sequence[str]) -> _Judgements:
    """Prepare qrels for queries and passages in these row orders; a query without qrels has nothing relevant."""
    row_of = {docid: row for row, docid in enumerate(passage_ids)}
    pairs = sorted(
        (query * len(passage_ids) + row_of[docid], grade)
        for query, qid in enumerate(query_ids)
        for docid, grade in qrels.get(qid, {}).items()
        if docid in row_of
    )
    graded = [sorted((g for g in qrels.get(qid, {}).values() if g > 0), reverse=True) for qid in query_ids]
    ideal = np.zeros((len(query_ids), max(map(len, graded), default=0)), dtype=np.int64)
    for query, grades in enumerate(graded):
        ideal[query, : len(grades)] = grades
    keys, values = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return _Judgements(len(passage_ids), keys, values, (ideal > 0).sum(axis=1), ideal)


def gains(rows: Rows, judged: _Judgements) -> NDArray[np.int64]:
    """Look up the grade of every ranked passage, same shape as `rows`; 0 where unjudged or where the row is -1."""
    if not len(judged.keys):
        return np.zeros(rows.shape, dtype=np.int64)
    wanted = np.arange(len(rows), dtype=np.int64)[:, None] * judged.n_passages + rows
    place = np.minimum(np.searchsorted(judged.keys, wanted), len(judged.keys) - 1)
    known = (judged.keys[place] == wanted) & (rows >= 0)
    return np.where(known, judged.grades[place], 0)


def per_query(run: Run, qrels: Qrels, *, metrics: Sequence[Metric]) -> dict[Metric, dict[str, float]]:
    """Measure a run: metric -> question id -> value in 0..1, for every question of `qrels`.

    A question without a ranking scores 0; questions that only `run` knows are ignored. trec_eval itself merges scores
    closer than about 1e-9 and orders ties by descending id. Raises DataError for NaN scores or repeated ids.
    """
    depth = max((metric.k for metric in metrics), default=0)
    tops = [[docid for docid, _ in ranked(run.get(qid, ()))][:depth] for qid in qrels]
    row_of = {docid: row for row, docid in enumerate(dict.fromkeys(docid for ids in tops for docid in ids))}
    rows = np.full((len(tops), depth), -1, dtype=np.int64)
    for line, ids in zip(rows, tops, strict=True):
        line[: len(ids)] = [row_of[docid] for docid in ids]
    judged = judge(qrels, query_ids=list(qrels), passage_ids=list(row_of))
    measured = {metric: per_row(rows, judged, metric=metric).tolist() for metric in metrics}
    return {metric: dict(zip(qrels, values, strict=True)) for metric, values in measured.items()}


def per_row(rows: Rows, judged: _Judgements, *, metric: Metric) -> Values:
    """Compute `metric` for every query, (q,) float64."""
    grade, k = np.maximum(gains(rows, judged)[:, : metric.k], 0), metric.k
    match metric.kind:
        case "R":
            return _ratio((grade > 0).sum(axis=1), judged.relevant)
        case "Success":
            return np.asarray((grade > 0).any(axis=1), dtype=np.float64)
        case "MRR":
            return np.asarray(((grade > 0) / _ranks(grade)).max(axis=1, initial=0.0), dtype=np.float64)
        case "nDCG":
            return _ratio(_dcg(grade), _dcg(judged.ideal[:, :k]))
        case "MAP":  # trec_eval's
            return _ratio(_precision_sum(grade), judged.relevant)
        case "mAP":  # LAReQA's
            return _ratio(_precision_sum(grade), np.minimum(judged.relevant, k))


def _ranks(grade: NDArray[np.int64]) -> Values:
    return np.arange(1, grade.shape[1] + 1, dtype=np.float64)


def _precision_sum(grade: NDArray[np.int64]) -> Values:
    """Sum over the relevant ranks of the precision there."""
    hit = grade > 0
    return np.asarray((np.cumsum(hit, axis=1) / _ranks(grade) * hit).sum(axis=1), dtype=np.float64)


def _dcg(grades: NDArray[np.int64]) -> Values:
    return np.asarray((grades / np.log2(_ranks(grades) + 1)).sum(axis=1), dtype=np.float64)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Values:
    """Divide; 0 where a query has nothing relevant."""
    share: Values = np.divide(part, whole, out=np.zeros(len(part), dtype=np.float64), where=whole > 0)
    return share


def as_run(
    rows: Rows, scores: NDArray[np.floating], *, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> dict[str, list[tuple[str, float]]]:
    """Turn the ranking into a run for `per_query`, TREC files and answer recall."""
    return {
        qid: [(passage_ids[row], float(score)) for row, score in zip(line, line_scores, strict=True) if row >= 0]
        for qid, line, line_scores in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }


# Many settings of α and λ over one pool: what fusing, calibrating and ranking anew gives, without doing all of it.
#
# With v the fused passages at one α and the question q - λ·μ (`calibration.py`) a score is q·v - λ·(μ·v): one product
# of matrices for every α, and a subtraction for every λ. The length of q - λ·μ changes no ranking and is left out.


class Setting(NamedTuple):
    """α of the recipe, and the λ by which the language mean is subtracted from questions."""

    alpha: float
    strength: float


def sweep(
    settings: Sequence[Setting],
    questions: Vectors,
    fused: Callable[[float], Vectors],
    *,
    table: LanguageMeans,
    langs: Sequence[str | None],
    judged: _Judgements,
    metric: Metric,
    tie_order: NDArray[np.int64] | None = None,
) -> Values:
    """The metric (settings, q) float64 of questions (q, dim) in `langs`; fused: the passages' rows (n, dim) at an α.

    table: the means of the questions' languages. judged, tie_order: from `judge` and `id_order`, for these questions
    and passages.
    """
    known = sorted({lang or "" for lang in langs})
    none = np.zeros(questions.shape[1], np.float32)
    means = np.stack([none if (mean := table.mean_of(lang)) is None else mean for lang in known]).astype(np.float32)
    mean_of = np.array([known.index(lang or "") for lang in langs], dtype=np.int64)
    rows = np.empty((len(settings), len(questions), min(metric.k, judged.n_passages)), dtype=np.int64)
    for alpha in dict.fromkeys(setting.alpha for setting in settings):
        passages = fused(alpha)
        shared = means @ passages.T
        for block in row_blocks(len(questions), len(passages)):
            scores = questions[block] @ passages.T
            for row, setting in enumerate(settings):
                if setting.alpha == alpha:
                    moved = scores - np.float32(setting.strength) * shared[mean_of[block]]
                    rows[row, block] = best_columns(moved, k=metric.k, tie_order=tie_order)
    return np.stack([per_row(of, judged, metric=metric) for of in rows])
