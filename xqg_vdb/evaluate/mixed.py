"""Measures of one pool of several languages: are questions answered from their own language only.

R@k same, R@k cross   recall of the relevant passages in the question's language, and in the others
mAP                   LAReQA's mean average precision over the whole ranking (Roy et al. 2020), beside mAP@20
own@k                 share of the first k passages that are in the question's language
LPR@k, Lang-nDCG@k    language preference rate and nDCG with gains by language (MLAIRE, arXiv 2605.07249): is the first
                      relevant passage in the question's language; and a relevant passage there gains twice its grade
RankDistance@k        places between the first and the last of the relevant passages, copies of each other (Yang et al.
                      2025, arXiv 2509.06195); lower is better; what is not among the first k stands at k + 1
PEER@k                probability of equal expected rank: p of the Kruskal-Wallis test of the relevant passages' ranks
                      by language (Yang et al., SIGIR 2024); 1 where they have one language. With one relevant passage a
                      language it is a constant of their number, so it needs several
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.matrix import id_order, row_blocks
from xqg_vdb.evaluate.metrics import Run, ranked
from xqg_vdb.evaluate.significance import scipy_stats
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage, Vectors

WHOLE = "mAP"
_MEASURE = re.compile(r"(R|own|LPR|Lang-nDCG|RankDistance|PEER)@(\d+)( same| cross)?")


def mixed_depth(name: str) -> int | None:
    """How many passages a question must have for this measure; None for what is no measure of this file."""
    match = _MEASURE.fullmatch(name)
    if match is None or (match[1] == "R") != bool(match[3]) or not int(match[2]):
        return None
    return int(match[2])


def split_recalls(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics, every recall followed by its two parts."""
    recalls = re.compile(r"R@\d+")
    return tuple(
        part
        for name in dict.fromkeys(metrics)
        for part in ([name, f"{name} same", f"{name} cross"] if recalls.fullmatch(name) else [name])
        if part == name or part not in metrics
    )


def has_same_and_cross(task: RetrievalTask, passages: Sequence[Passage]) -> bool:
    """Tell whether some question has relevant passages in its own and in another language, in one pool."""
    lang_of = {passage.id: passage.lang for passage in passages}
    if task.pooled or len(set(lang_of.values())) < 2:
        return False
    wanted = ((query.lang, task.qrels.get(query.id, {})) for query in task.queries)
    found = (
        (lang, {lang_of[d] for d, grade in grades.items() if grade > 0 and d in lang_of}) for lang, grades in wanted
    )
    return any(lang in langs and len(langs) > 1 for lang, langs in found)


def measure_mixed(name: str, run: Run, task: RetrievalTask, passages: Sequence[Passage]) -> dict[str, float]:
    """Question id -> value of the measure; `R@k same` and `cross` are of questions that have such passages only."""
    match = _MEASURE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no measure of pools of several languages")
    k, lang_of = int(match[2]), {passage.id: passage.lang for passage in passages}
    values: dict[str, float] = {}
    for query in task.queries:
        asked = query.lang or UNKNOWN_LANGUAGE
        first = [docid for docid, _ in ranked(run.get(query.id, ()))[:k]]
        grades = {docid: grade for docid, grade in task.qrels.get(query.id, {}).items() if grade > 0}
        if match[3]:
            grades = {d: g for d, g in grades.items() if (lang_of.get(d) == asked) == (match[3] == " same")}
        if grades or not match[3]:
            own = {docid for docid in (*first, *grades) if lang_of.get(docid) == asked}
            values[query.id] = _measured(match[1], first, grades, own, lang_of, k)
    return values


def _measured(
    kind: str, first: Sequence[str], grades: Mapping[str, int], own: set[str], lang_of: Mapping[str, str], k: int
) -> float:
    """One question's value: first: what it found; grades: of the relevant passages; own: those in its language."""
    ranks = {docid: rank for rank, docid in enumerate(first, start=1)}
    places = {docid: ranks.get(docid, k + 1) for docid in grades}
    match kind:
        case "R":
            return len(grades.keys() & ranks.keys()) / len(grades)
        case "own":
            return sum(docid in own for docid in first) / len(first) if first else 0.0
        case "LPR":
            return float(next((docid for docid in first if docid in grades), None) in own)
        case "Lang-nDCG":
            gain = {docid: grade * (1 + (docid in own)) for docid, grade in grades.items()}
            ideal = _dcg(sorted(gain.values(), reverse=True)[:k])
            return _dcg([gain.get(docid, 0) for docid in first]) / ideal if ideal else 0.0
        case "RankDistance":
            return float(max(places.values()) - min(places.values())) if places else 0.0
        case _:
            return _peer(places, lang_of)


def _dcg(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def _peer(places: Mapping[str, int], lang_of: Mapping[str, str]) -> float:
    samples: dict[str, list[int]] = {}
    for docid, rank in places.items():
        samples.setdefault(lang_of.get(docid, UNKNOWN_LANGUAGE), []).append(rank)
    if len(samples) < 2 or len(set(places.values())) < 2:
        return 1.0
    return float(scipy_stats().kruskal(*samples.values()).pvalue)


def whole_average_precision(
    task: RetrievalTask, passages: Sequence[Passage], *, questions: Vectors, rows: Vectors
) -> dict[str, float]:
    """Average precision over the ranking of all passages, for questions (q, dim) and passages' rows (n, dim)."""
    order, row_of = id_order([p.id for p in passages]), {p.id: row for row, p in enumerate(passages)}
    values: dict[str, float] = {}
    for block in row_blocks(len(questions), len(rows)):
        scores = questions[block] @ rows.T
        for line, query in zip(scores, task.queries[block], strict=True):
            relevant = [docid for docid, grade in task.qrels.get(query.id, {}).items() if grade > 0]
            wanted = [row_of[docid] for docid in relevant if docid in row_of]
            # places from 1 when the scores are ranked, equal ones by `order`
            higher = np.array([np.count_nonzero(line > line[column]) for column in wanted], np.int64)
            places = 1 + higher + [np.count_nonzero(order[line == line[c]] < order[c]) for c in wanted]
            hits = np.arange(1, len(places) + 1)
            values[query.id] = float((hits / np.sort(places)).sum() / len(relevant)) if relevant else 0.0
    return values
