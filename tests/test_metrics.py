"""Ranking metrics against slow twins written from their definitions, and against arithmetic written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.matrix import as_run, best_columns, id_order, judge, per_query, per_row, row_blocks, search_rows
from xqg_vdb.evaluate.metrics import Metric, group_means, macro_mean, mean, nearest_f1, parse_metrics, ranked

ir_measures = pytest.importorskip("ir_measures", reason="needs the extra dev")

ALL = parse_metrics([f"{kind}@{k}" for kind in ("R", "Success", "MRR", "nDCG", "MAP", "mAP") for k in (1, 3, 20)])

# ---------------------------------------------------------------- the twin: one question, one metric, nothing clever


def twin(ids: list[str], grades: dict[str, int], metric: Metric) -> float:
    top = ids[: metric.k]
    relevant = {docid for docid, grade in grades.items() if grade >= 1}
    if not relevant:
        return 0.0
    if metric.kind == "R":
        return sum(docid in relevant for docid in top) / len(relevant)
    if metric.kind == "Success":
        return float(any(docid in relevant for docid in top))
    if metric.kind == "MRR":
        return next((1 / rank for rank, docid in enumerate(top, 1) if docid in relevant), 0.0)
    if metric.kind == "nDCG":
        best = sorted(grades.values(), reverse=True)[: metric.k]
        gain = sum(max(0, grades.get(docid, 0)) / math.log2(rank + 1) for rank, docid in enumerate(top, 1))
        return gain / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, 1))
    precisions = [
        sum(other in relevant for other in top[:rank]) / rank for rank, docid in enumerate(top, 1) if docid in relevant
    ]
    return sum(precisions) / (len(relevant) if metric.kind == "MAP" else min(len(relevant), metric.k))


def twin_order(scored: list[tuple[str, float]]) -> list[str]:
    """Selection sort by the rule's two sentences."""
    left, order = list(scored), []
    while left:
        best = left[0]
        for pair in left:
            if pair[1] > best[1] or (pair[1] == best[1] and pair[0] < best[0]):
                best = pair
        left.remove(best)
        order.append(best[0])
    return order


IDS = [f"d{i}" for i in range(12)] + ["é", "ü", "日本"]
# few distinct scores make ties; two of them are closer than pytrec_eval can tell apart
SCORES = st.sampled_from([0.9, 0.9 + 1e-10, 0.5, 0.0, -1.0, 2.0])
RANKING = st.dictionaries(st.sampled_from(IDS), SCORES, max_size=15).map(lambda d: list(d.items()))
GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(0, 3), min_size=1, max_size=15)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcde"), RANKING), st.dictionaries(st.sampled_from("abcdef"), GRADES, min_size=1)
)
def test_every_metric_equals_its_twin_on_random_runs_with_ties_and_missing_questions(run, qrels):
    values = per_query(run, qrels, metrics=ALL)
    assert list(values) == list(ALL)
    for metric in ALL:
        assert values[metric].keys() == qrels.keys()
        for qid, grades in qrels.items():
            assert values[metric][qid] == pytest.approx(twin(twin_order(run.get(qid, [])), grades, metric), abs=1e-9)


def through_ir_measures(run, qrels):
    """By pytrec_eval, on strictly falling scores: it keeps them as 32-bit floats and orders ties by descending id."""
    names = {"R": "R", "Success": "Success", "MRR": "RR", "nDCG": "nDCG", "MAP": "AP"}  # mAP is LAReQA's own
    measures = {ir_measures.parse_measure(f"{names[m.kind]}@{m.k}"): m for m in ALL if m.kind in names}
    falling = {qid: {d: float(len(found) - i) for i, (d, _) in enumerate(found)} for qid, found in run.items()}
    results = {(m, qid): 0.0 for m in measures.values() for qid in qrels}
    for result in ir_measures.iter_calc(list(measures), qrels, falling):
        results[measures[result.measure], result.query_id] = result.value
    return results


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_matrix_path_equals_ir_measures_on_tied_scores(seed, k):
    rng = np.random.default_rng(seed)
    n, q = int(rng.integers(1, 20)), int(rng.integers(1, 6))
    passage_ids = [f"p{i}" for i in rng.permutation(n)]  # "p10" < "p2": ids as strings, not as numbers
    query_ids = [f"q{i}" for i in range(q)]
    qrels = {
        qid: {str(d): int(rng.integers(0, 3)) for d in rng.choice([*passage_ids, "not in the pool"], size=3)}
        for qid in query_ids[1:]
    } | {"q0": {}}
    queries, passages = (rng.integers(-1, 2, (m, 3)).astype(np.float32) for m in (q, n))
    rows, scores = search_rows(queries, passages, k=k, tie_order=id_order(passage_ids))
    run = as_run(rows, scores, query_ids=query_ids, passage_ids=passage_ids)
    full = {
        qid: list(zip(passage_ids, (queries[i] @ passages.T).tolist(), strict=True)) for i, qid in enumerate(query_ids)
    }
    for qid in query_ids:
        assert [docid for docid, _ in run[qid]] == twin_order(full[qid])[:k]
    judged = judge(qrels, query_ids=query_ids, passage_ids=passage_ids)
    slow = through_ir_measures(run, qrels)
    for metric in ALL:
        fast = per_row(rows, judged, metric=metric)
        if metric.kind != "mAP":
            assert fast == pytest.approx([slow[metric, qid] for qid in query_ids], abs=1e-9)
        of_run = per_query(run, qrels, metrics=[metric])[metric]
        assert [of_run[qid] for qid in query_ids] == pytest.approx(fast, abs=1e-12)


# ---------------------------------------------------------------- arithmetic

QRELS = {"q": {"a": 1, "b": 2, "c": 1, "x": 0}}
RUN = {"q": [("x", 0.9), ("b", 0.8), ("y", 0.7), ("a", 0.6)]}  # relevant at ranks 2 and 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("R@2", 1 / 3),
        ("R@4", 2 / 3),
        ("Success@1", 0),
        ("Accuracy", 0),
        ("Success@2", 1),
        ("MRR@1", 0),
        ("MRR@10", 1 / 2),
        ("nDCG@4", (2 / math.log2(3) + 1 / math.log2(5)) / (2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4))),
        ("MAP@4", (1 / 2 + 2 / 4) / 3),
        ("MAP@2", (1 / 2) / 3),
        ("mAP@2", (1 / 2) / 2),  # min(3 relevant, cut-off 2)
        ("mAP@4", (1 / 2 + 2 / 4) / 3),
    ],
)
def test_worked_example(name, expected):
    (metric,) = parse_metrics([name])
    assert per_query(RUN, QRELS, metrics=[metric])[metric]["q"] == pytest.approx(expected, abs=1e-12)


def test_tie_rule_beats_pytrec_evals():
    # trec_eval would order equal scores z, b, a
    run = {"q": [("z", 1.0), ("b", 1.0), ("a", 1.0)]}
    (metric,) = parse_metrics(["MRR@10"])
    assert per_query(run, {"q": {"a": 1}}, metrics=[metric])[metric]["q"] == 1.0
    # a gap of 1e-10, which pytrec_eval does not see, still decides
    run = {"q": [("z", 0.9 + 1e-10), ("a", 0.9)]}
    assert per_query(run, {"q": {"z": 1}}, metrics=[metric])[metric]["q"] == 1.0


def test_unanswered_questions_count_zero_and_unknown_ones_not_at_all():
    (metric,) = parse_metrics(["R@1"])
    values = per_query({"q1": [("a", 1.0)], "who": [("a", 1.0)]}, {"q1": {"a": 1}, "q2": {"a": 1}}, metrics=[metric])[
        metric
    ]
    assert values == {"q1": 1.0, "q2": 0.0}
    assert mean(values) == (1 + 0) / 2
    assert math.isnan(mean({}))


def test_macro_is_the_mean_of_language_means():
    values, groups = {"1": 1.0, "2": 0.0, "3": 0.0, "4": 1.0}, {"1": "sw", "2": "sw", "3": "sw", "4": "ar"}
    assert group_means(values, groups=groups) == {"ar": 1.0, "sw": pytest.approx(1 / 3)}
    assert macro_mean(values, groups=groups) == pytest.approx((1 / 3 + 1) / 2)


def test_errors_name_what_is_wrong():
    with pytest.raises(DataError) as error:
        parse_metrics(["R@10", "recall@10", "nDCG", "MRR@0", "MAP@²"])
    assert str(error.value) == (
        "not ranking metrics: recall@10, nDCG, MRR@0, MAP@²; expected R, Success, MRR, nDCG, MAP, mAP and a cut-off, "
        "as nDCG@10 (MAP divides by all relevant passages, mAP by at most the cut-off)."
    )
    with pytest.raises(DataError, match="'a' has the score NaN"):
        ranked([("a", math.nan)])
    with pytest.raises(DataError, match="'a' is ranked twice"):
        ranked([("a", 1.0), ("a", 0.5)])
    assert str(Metric("nDCG", 10)) == "nDCG@10"


def test_best_columns_settles_ties_at_the_cut():
    table = np.array([[1, 3, 3, 3, 0], [5, 5, 5, 5, 5]], dtype=np.float32)
    assert best_columns(table, k=2).tolist() == [[1, 2], [0, 1]]
    backwards = np.array([4, 3, 2, 1, 0])
    assert best_columns(table, k=2, tie_order=backwards).tolist() == [[3, 2], [4, 3]]
    assert best_columns(table, k=9).tolist() == [[1, 2, 3, 0, 4], [0, 1, 2, 3, 4]]


def test_missing_rows_and_empty_qrels_score_zero():
    judged = judge({"q1": {"b": 1}}, query_ids=["q0", "q1"], passage_ids=["a", "b"])
    (metric,) = parse_metrics(["R@2"])
    # the -1 of q1 must not be taken for q0's last passage
    assert per_row(np.array([[0, 1], [-1, 1]]), judged, metric=metric).tolist() == [0.0, 1.0]
    nothing = judge({}, query_ids=["q0"], passage_ids=["a"])
    assert per_row(np.array([[0]]), nothing, metric=metric).tolist() == [0.0]


def test_row_blocks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr("xqg_vdb.evaluate.matrix.BLOCK_SCORES", 10)
    assert [(b.start, b.stop) for b in row_blocks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert [(b.start, b.stop) for b in row_blocks(2, 100)] == [(0, 1), (1, 2)]
    queries, passages = np.eye(7, 4, dtype=np.float32), np.ones((3, 4), dtype=np.float32)
    rows, scores = search_rows(queries, passages, k=2)
    assert rows.tolist() == [[0, 1]] * 7 and scores.shape == (7, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_f1_of_nearest_sentences_is_the_weighted_f1_of_classes(nearest):
    """The twin counts true and false positives class by class, one gold sentence a question."""
    n = len(nearest)
    scores = []
    for wanted in range(n):
        hits = nearest[wanted] == wanted
        precision = hits / nearest.count(wanted) if wanted in nearest else 0.0
        scores.append(2 * precision * hits / (precision + hits) if hits else 0.0)
    run = {f"q{i}": [(f"p{place}", 1.0), ("z", 0.5)] for i, place in enumerate(nearest)}
    found = nearest_f1(run, {f"q{i}": {f"p{i}": 1} for i in range(n)})
    assert sum(found.values()) / n == pytest.approx(sum(scores) / n)
    assert nearest_f1({}, {"q": {"p": 1}}) == {"q": 0.0}
