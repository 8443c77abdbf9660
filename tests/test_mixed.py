"""Measures of one pool of several languages, each against a slow twin that follows its definition."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from xqg_vdb.evaluate.cells import judge_run, needed_depth
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.matrix import as_run, id_order, per_query, search_rows
from xqg_vdb.evaluate.metrics import parse_metrics
from xqg_vdb.evaluate.mixed import (
    has_same_and_cross,
    measure_mixed,
    mixed_depth,
    split_recalls,
    whole_average_precision,
)
from xqg_vdb.evaluate.systems import Placed
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Card, Passage, Question, Recipe

LANGS = ("ar", "de", "zh")
CARD = Card(HashEncoder().facts, "dot", Recipe())
NAMES = ("R@4 same", "R@4 cross", "own@4", "LPR@4", "Lang-nDCG@4", "RankDistance@6", "PEER@6")


def made(seed: int) -> tuple[RetrievalTask, list[Passage], Placed, dict]:
    """Copies of passages in three languages, whose questions want all of them or some; scores with ties."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    passages = [Passage(f"{lang}{i}", "x", lang=lang) for i in range(5) for lang in LANGS]
    queries = tuple(Question(f"q{i}{lang}", "x", lang) for i in range(5) for lang in (*LANGS, "fi"))
    qrels = {q.id: {f"{lang}{q.id[1]}": rng.choice([0, 1, 1, 2]) for lang in LANGS} for q in queries}
    task = RetrievalTask("made", passages, queries, qrels, ("R@4",), {q.id: str(q.lang) for q in queries})
    questions, rows = (numbers.integers(-2, 3, (len(items), 3)).astype(np.float32) for items in (queries, passages))
    found = search_rows(questions, rows, k=len(rows), tie_order=id_order([p.id for p in passages]))
    run = as_run(*found, query_ids=[q.id for q in queries], passage_ids=[p.id for p in passages])
    return task, passages, Placed(rows, questions, CARD), run


def twin(name: str, ids: list[str], grades: dict[str, int], asked: str) -> float | None:
    k = int(name.partition("@")[2].split()[0])
    kind, relevant = name.partition("@")[0], [d for d, grade in grades.items() if grade > 0]
    rank = {docid: ids.index(docid) + 1 if ids.index(docid) < k else k + 1 for docid in relevant}
    if kind == "R":
        wanted = [d for d in relevant if (d[:2] == asked) == name.endswith("same")]
        return sum(rank[d] <= k for d in wanted) / len(wanted) if wanted else None
    if kind == "own":
        return len([d for d in ids[:k] if d.startswith(asked)]) / k
    if kind == "LPR":
        best = min(rank, key=rank.__getitem__, default=None)
        return 1.0 if best is not None and rank[best] <= k and best[:2] == asked else 0.0
    if kind == "Lang-nDCG":
        gains = [grades.get(d, 0) * (2 if d[:2] == asked else 1) for d in ids]
        dcg, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(x[:k])) for x in (gains, sorted(gains)[::-1]))
        return dcg / ideal if ideal else 0.0
    if kind == "RankDistance":
        return max((abs(rank[a] - rank[b]) for a in relevant for b in relevant), default=0)
    return kruskal_p([[rank[d] for d in relevant if d[:2] == lang] for lang in LANGS])


def kruskal_p(samples: list[list[int]]) -> float:
    """H with tied ranks averaged and its correction (Kruskal and Wallis 1952); p by the closed forms for df 1 and 2."""
    samples = [ranks for ranks in samples if ranks]
    everything = sorted(rank for ranks in samples for rank in ranks)
    n = len(everything)
    if len(samples) < 2 or len(set(everything)) < 2:
        return 1.0
    middle = {v: sum(i + 1 for i, w in enumerate(everything) if w == v) / everything.count(v) for v in everything}
    h = 12 / (n * (n + 1)) * sum(sum(middle[v] for v in s) ** 2 / len(s) for s in samples) - 3 * (n + 1)
    h /= 1 - sum(everything.count(v) ** 3 - everything.count(v) for v in set(everything)) / (n**3 - n)
    return math.erfc(math.sqrt(h / 2)) if len(samples) == 2 else math.exp(-h / 2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NAMES)
def test_every_measure_equals_its_twin(seed, name):
    if name.startswith("PEER"):
        pytest.importorskip("scipy")
    task, passages, _, run = made(seed)
    found = measure_mixed(name, run, task, passages)
    expected = {q.id: twin(name, [d for d, _ in run[q.id]], task.qrels[q.id], str(q.lang)) for q in task.queries}
    expected = {qid: value for qid, value in expected.items() if value is not None}
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(set(found.values())) > 1


@pytest.mark.parametrize("seed", range(8))
def test_the_whole_rankings_average_precision_is_that_of_a_run_of_all_passages(seed):
    task, passages, placed, run = made(seed)
    found = whole_average_precision(task, passages, questions=placed.questions, rows=placed.passages)
    (metric,) = parse_metrics([f"MAP@{len(passages)}"])
    assert found == pytest.approx(per_query(run, task.qrels, metrics=[metric])[metric])


def test_recalls_are_split_where_a_pool_has_both_and_metrics_are_known_by_name():
    task, passages, placed, run = made(0)
    assert split_recalls(("R@1", "mAP@20", "R@1 cross")) == ("R@1", "R@1 same", "mAP@20", "R@1 cross")
    assert has_same_and_cross(task, passages)
    assert not has_same_and_cross(task, [p for p in passages if p.lang == "de"])
    assert [mixed_depth(name) for name in ("R@10", "R@10 same", "own", "PEER@5", "own@0")] == [None, 10, None, 5, None]
    assert needed_depth(["R@2", "RankDistance@9", "mAP"]) == 9
    values, _ = judge_run(task, passages, placed, run, metrics=["R@2 same", "mAP"], by_vectors=False)
    assert list(values) == ["R@2 same"], "a reranked or hybrid run has no whole ranking by vectors"
