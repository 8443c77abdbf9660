"""F1 of translations that are found: of nearest neighbours as in MTEB, and of BUCC 2018's mining of XTREME, exact.

Definitions of the mining: google-research/xtreme `third_party/utils_retrieve.py` (from LASER; Artetxe and Schwenk
2019), with faiss replaced by exact numpy search and, where scores are equal, the order of rows and ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.matrix import search_rows
from xqg_vdb.evaluate.metrics import Qrels, Run, ranked


def nearest_f1(run: Run, qrels: Qrels) -> dict[str, float]:
    """Question id -> its part of the F1 of MTEB's bitext mining, whose mean over a language is that F1 (`F1@1`).

    MTEB takes every sentence of the pool for a class, asks for the nearest sentence, and averages the classes' F1 (the
    weighted F1 of scikit-learn): 0 where another sentence is nearer, else 2 / (1 + the questions it is nearest to).
    """
    nearest = {qid: ranked(run[qid])[0][0] for qid in qrels if run.get(qid)}
    times = Counter(nearest.values())
    right = {qid for qid, docid in nearest.items() if qrels[qid].get(docid, 0) > 0}
    return {qid: 2 / (1 + times[nearest[qid]]) if qid in right else 0.0 for qid in qrels}


def bucc_mine(
    source: NDArray[np.floating],
    target: NDArray[np.floating],
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
    source, target: rows (n, dim) and (m, dim), one per *distinct* sentence text, float32 or, computed so, float64.
    ignored: ids of texts that occur more than once in their file; they take part in the mining, but their pairs are
    dropped, as in XTREME's `read_sent2id`.
    Raises DataError for empty sides and when ids and rows differ in number.
    """
    if (len(source_ids), len(target_ids)) != (len(source), len(target)) or not len(source) or not len(target):
        raise DataError(
            f"mining needs an id per row: {len(source)}, {len(target)} rows, {len(source_ids)}, {len(target_ids)} ids."
        )
    source, target = _unit(source), _unit(target)
    forward, backward = search_rows(source, target, k=k), search_rows(target, source, k=k)
    # of every source, then of every target sentence: the best neighbour and its margin
    targets, forward_margins = _best(forward, backward[1].mean(axis=1))
    sources, backward_margins = _best(backward, forward[1].mean(axis=1))
    rows = np.concatenate([np.arange(len(source)), sources])
    columns = np.concatenate([targets, np.arange(len(target))])
    pairs: dict[tuple[str, str], float] = {}
    for row, column, score in _one_to_one(rows, columns, np.concatenate([forward_margins, backward_margins])):
        left, right = source_ids[row], target_ids[column]
        if score > threshold and left not in ignored and right not in ignored:
            pairs[left, right] = score
    return pairs


def bucc_optimize(pairs: Mapping[tuple[str, str], float], gold: Collection[tuple[str, str]]) -> float:
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


def bucc_f1(
    pairs: Mapping[tuple[str, str], float], gold: Collection[tuple[str, str]], *, threshold: float
) -> tuple[float, float, float]:
    """Compute F1, precision and recall in 0..1 of the pairs that score at least `threshold`; all 0 when none is right.

    In 0..1, where publishers print percent.
    """
    wanted = set(gold)
    taken = [pair for pair, score in pairs.items() if score >= threshold]
    return _f1(sum(pair in wanted for pair in taken), extracted=len(taken), gold=len(wanted))


def _f1(correct: int, *, extracted: int, gold: int) -> tuple[float, float, float]:
    if correct == 0:
        return 0.0, 0.0, 0.0
    precision, recall = correct / extracted, correct / gold
    return 2 * precision * recall / (precision + recall), precision, recall


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Scale rows to length 1; a zero row stays zero, as with faiss.normalize_L2."""
    rows = rows if rows.dtype == np.float64 else np.asarray(rows, dtype=np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.floating] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit


def _best(
    nearest: tuple[NDArray[np.int64], NDArray[np.floating]], others: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best neighbour of every row and its margin, the cosine over the mean of both neighbourhoods' cosines.

    nearest: neighbours and cosines, (n, k). others: mean cosine of the other side's neighbourhoods. A margin is 0,
    which never passes, where that mean is.
    """
    columns, cosines = nearest
    level = (cosines.mean(axis=1)[:, None].astype(np.float64) + others[columns]) / 2
    margins = np.divide(cosines, level, out=np.zeros_like(level), where=level != 0)
    best = margins.argmax(axis=1)[:, None]
    return np.take_along_axis(columns, best, axis=1)[:, 0], margins.max(axis=1)


def _one_to_one(
    source: NDArray[np.int64], target: NDArray[np.int64], scores: NDArray[np.float64]
) -> Iterator[tuple[int, int, float]]:
    seen_source, seen_target = set[int](), set[int]()
    for place in np.lexsort((target, source, -scores)):
        row, column = int(source[place]), int(target[place])
        if row not in seen_source and column not in seen_target:
            seen_source.add(row)
            seen_target.add(column)
            yield row, column, float(scores[place])
