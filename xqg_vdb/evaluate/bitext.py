"""BUCC 2018's mining of XTREME, exact and blockwise: sentence rows of two languages give pairs, and those their F1.

Definitions: google-research/xtreme `third_party/utils_retrieve.py` (from LASER; Artetxe and Schwenk 2019), with faiss
replaced by exact numpy search and, where scores are equal, the order of rows and ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.matrix import Rows, row_blocks

Matrix = NDArray[np.floating]
"""Sentence rows, float32 as encoders give them; float64 is computed in float64."""

Pairs = Mapping[tuple[str, str], float]
"""(source sentence id, target sentence id) -> margin score, best first."""

TILE_COLUMNS = 2**14


@dataclass(frozen=True, slots=True)
class BitextF1:
    """BUCC's numbers in 0..1 (publishers ×100) at `threshold`; n: pairs extracted, n_gold: pairs in the gold file."""

    f1: float
    precision: float
    recall: float
    threshold: float
    n: int
    n_gold: int


def bucc_mine(
    source: Matrix,
    target: Matrix,
    *,
    source_ids: Sequence[str],
    target_ids: Sequence[str],
    ignored: Collection[str] = frozenset(),
    k: int = 4,
    threshold: float = 0.0,
) -> dict[tuple[str, str], float]:
    """Mine sentence pairs, best first, with their margins: XTREME's `mine_bitext`, retrieval "max", margin "ratio".

    Every sentence's k nearest neighbours in the other language are scored cos(x, y) / ((mean_k(x) + mean_k(y)) / 2),
    where mean_k is the mean cosine of a sentence's own k neighbours. The best of each, from both sides, are merged and
    taken greedily, each sentence once, while the score exceeds `threshold`.
    source, target: rows (n, dim) and (m, dim), one per *distinct* sentence text. ignored: ids of texts that occur more
    than once in their file; they take part in the mining, but their pairs are dropped, as in XTREME's `read_sent2id`.
    Raises DataError for empty sides and when ids and rows differ in number.
    """
    if (len(source_ids), len(target_ids)) != (len(source), len(target)) or not len(source) or not len(target):
        raise DataError(
            f"mining needs an id per row: {len(source)}, {len(target)} rows, {len(source_ids)}, {len(target_ids)} ids."
        )
    forward, backward = _neighbours(_unit(source), _unit(target), k=k)
    candidates = _best_candidates(forward, backward)
    pairs: dict[tuple[str, str], float] = {}
    for row, column, score in _one_to_one(*candidates):
        left, right = source_ids[row], target_ids[column]
        if score > threshold and left not in ignored and right not in ignored:
            pairs[left, right] = score
    return pairs


def bucc_optimize(pairs: Pairs, gold: Collection[tuple[str, str]]) -> float:
    """Find the score threshold with the best F1 on `gold`: midway between the last pair taken and the next one.

    XTREME's `bucc_optimize`, which fails when the last pair is the best place to stop: there, the last score.
    0 when no gold pair was mined.
    """
    wanted = set(gold)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    best_f1, threshold, correct = 0.0, 0.0, 0
    for place, (pair, score) in enumerate(ordered):
        correct += pair in wanted
        f1 = _f1(correct, extracted=place + 1, gold=len(wanted))[0]
        if f1 > best_f1:
            following = ordered[place + 1][1] if place + 1 < len(ordered) else score
            best_f1, threshold = f1, (score + following) / 2
    return threshold


def bucc_f1(pairs: Pairs, gold: Collection[tuple[str, str]], *, threshold: float) -> BitextF1:
    """Compute F1, precision and recall of the pairs that score at least `threshold`; all 0 when none is right."""
    wanted = set(gold)
    taken = [pair for pair, score in pairs.items() if score >= threshold]
    f1, precision, recall = _f1(sum(pair in wanted for pair in taken), extracted=len(taken), gold=len(wanted))
    return BitextF1(f1, precision, recall, threshold, len(taken), len(wanted))


def _f1(correct: int, *, extracted: int, gold: int) -> tuple[float, float, float]:
    if correct == 0:
        return 0.0, 0.0, 0.0
    precision, recall = correct / extracted, correct / gold
    return 2 * precision * recall / (precision + recall), precision, recall


def _unit(rows: Matrix) -> Matrix:
    """Scale rows to length 1; a zero row stays zero, as with faiss.normalize_L2."""
    rows = rows if rows.dtype == np.float64 else np.asarray(rows, dtype=np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Matrix = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit


@dataclass(slots=True)
class _Nearest:
    """The best neighbours found so far: columns (n, ≤k) and cosines (n, ≤k), best first, equals by column."""

    columns: Rows
    cosines: Matrix

    def offer(self, rows: slice, table: Matrix, *, first_column: int) -> None:
        """Merge the cosines `table` of these rows with columns from `first_column` on, all beyond earlier ones."""
        k = self.columns.shape[1]
        found, values = _take_best(table, k)
        columns = np.concatenate([self.columns[rows], found + first_column], axis=1)
        cosines = np.concatenate([self.cosines[rows], values], axis=1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        self.columns[rows] = np.take_along_axis(columns, best, axis=1)
        self.cosines[rows] = np.take_along_axis(cosines, best, axis=1)

    @property
    def mean(self) -> Matrix:
        return np.asarray(self.cosines.mean(axis=1))


def _neighbours(source: Matrix, target: Matrix, *, k: int) -> tuple[_Nearest, _Nearest]:
    """Find the k nearest in the other language, for both sides, in one pass over tiles of the cosine matrix."""
    forward = _nothing_yet(len(source), min(k, len(target)), source.dtype)
    backward = _nothing_yet(len(target), min(k, len(source)), source.dtype)
    for rows in row_blocks(len(source), TILE_COLUMNS):
        for start in range(0, len(target), TILE_COLUMNS):
            columns = slice(start, min(start + TILE_COLUMNS, len(target)))
            tile = source[rows] @ target[columns].T
            backward.offer(columns, np.array(tile.T, order="C"), first_column=rows.start)
            forward.offer(rows, tile, first_column=start)
    return forward, backward


def _take_best(table: Matrix, k: int) -> tuple[Rows, Matrix]:
    """Take the k greatest numbers of every row out of `table`, which is spoilt: columns and values, best first.

    For a handful of neighbours argmax passes are several times faster than a partition; the first of equals wins.
    """
    columns = np.empty((len(table), min(k, table.shape[1])), dtype=np.int64)
    values = np.empty(columns.shape, dtype=table.dtype)
    every = np.arange(len(table))
    for place in range(columns.shape[1]):
        columns[:, place] = table.argmax(axis=1)
        values[:, place] = table[every, columns[:, place]]
        table[every, columns[:, place]] = -np.inf
    return columns, values


def _nothing_yet(n: int, k: int, dtype: np.dtype[Any]) -> _Nearest:
    return _Nearest(np.zeros((n, k), dtype=np.int64), np.full((n, k), -np.inf, dtype=dtype))


def _best_candidates(forward: _Nearest, backward: _Nearest) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """Pick the best-scored neighbour of every source, then of every target sentence: two row arrays, margins."""
    own = np.arange(len(forward.columns), dtype=np.int64), np.arange(len(backward.columns), dtype=np.int64)
    margins = _margins(forward, backward), _margins(backward, forward)
    best = margins[0].argmax(axis=1), margins[1].argmax(axis=1)
    source = np.concatenate([own[0], backward.columns[own[1], best[1]]])
    target = np.concatenate([forward.columns[own[0], best[0]], own[1]])
    return source, target, np.concatenate([margins[0].max(axis=1), margins[1].max(axis=1)])


def _margins(side: _Nearest, other: _Nearest) -> NDArray[np.float64]:
    """Divide cosines by the mean of both neighbourhoods, (n, k) float64; 0, which never passes, where that is 0."""
    level = (side.mean[:, None].astype(np.float64) + other.mean[side.columns]) / 2
    return np.divide(side.cosines, level, out=np.zeros_like(level), where=level != 0)


def _one_to_one(source: Rows, target: Rows, scores: NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    seen_source, seen_target = set[int](), set[int]()
    for place in np.lexsort((target, source, -scores)):
        row, column = int(source[place]), int(target[place])
        if row not in seen_source and column not in seen_target:
            seen_source.add(row)
            seen_target.add(column)
            yield row, column, float(scores[place])
