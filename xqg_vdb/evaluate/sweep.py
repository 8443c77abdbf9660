"""Many settings of α and λ over one pool: what fusing, calibrating and ranking anew gives, without doing all of it.

With v the fused passages at one α and the question q - λ·μ (`calibration.py`) a score is q·v - λ·(μ·v): one product of
matrices for every α, and a subtraction for every λ. The length of q - λ·μ changes no ranking and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.evaluate.matrix import Judgements, Rows, Values, best_columns, per_row, row_blocks
from xqg_vdb.evaluate.metrics import Metric
from xqg_vdb.fusion import Sums, fuse
from xqg_vdb.types import Recipe, Vectors

_PAIRS_WORTH_COUNTING = 4
"""With more judged passages per question, finding the best columns costs less than counting what precedes each."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """α of the recipe, and the λ by which the language mean is subtracted from questions."""

    alpha: float
    strength: float


def sweep(
    settings: Sequence[Setting],
    questions: Vectors,
    passages: Vectors,
    sums: Sums,
    *,
    recipe: Recipe,
    table: LanguageMeans,
    langs: Sequence[str | None],
    normalize: bool,
    judged: Judgements,
    metric: Metric,
    tie_order: NDArray[np.int64] | None = None,
) -> Values:
    """The metric (settings, q) float64 of questions (q, dim) in `langs` over passages (n, dim) with their query sums.

    recipe: its own α does not matter. table: the means of questions' languages, and of each query language that a
    centred or shrunk recipe subtracts. judged, tie_order: from `matrix.judge` and `id_order`, for these questions and
    passages. Raises what `fusion.fuse` raises.
    """
    known = sorted({lang or "" for lang in langs})
    means = np.stack([_mean_of(table, lang, dim=passages.shape[1]) for lang in known])
    mean_of = np.array([known.index(lang or "") for lang in langs], dtype=np.int64)
    values = np.empty((len(settings), len(questions)), dtype=np.float64)
    for alpha in dict.fromkeys(setting.alpha for setting in settings):
        fused = fuse(passages, sums, recipe=replace(recipe, alpha=alpha), means=table.means, normalize=normalize)
        shared = means @ fused.T
        for block in row_blocks(len(questions), len(passages)):
            part, scores = _judgements_of(judged, block), questions[block] @ fused.T
            for row, setting in enumerate(settings):
                if setting.alpha == alpha:
                    moved = scores - np.float32(setting.strength) * shared[mean_of[block]]
                    rows = _judged_rows(moved, part, k=metric.k, tie_order=tie_order)
                    values[row, block] = per_row(rows, part, metric=metric)
    return values


def _mean_of(table: LanguageMeans, lang: str, *, dim: int) -> Vectors:
    mean = table.mean_of(lang)
    return np.zeros(dim, np.float32) if mean is None else np.asarray(mean, dtype=np.float32)


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
