"""Tatoeba and BUCC against slow twins of XTREME's utils_retrieve.py, rewritten from its description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.bitext import bucc_f1, bucc_mine, bucc_optimize, nearest_f1


def cos(x, y) -> float:
    return float(x @ y) / (float(np.linalg.norm(x)) * float(np.linalg.norm(y)))


def mine_twin(x, y, k: int, threshold: float) -> dict[tuple[int, int], float]:
    """mine_bitext(retrieval='max', margin='ratio'), one pair at a time."""

    def near(a, pool):  # the k best, ties by row
        return sorted(range(len(pool)), key=lambda j: (-cos(a, pool[j]), j))[:k]

    def level(a, pool):
        found = near(a, pool)
        return sum(cos(a, pool[j]) for j in found) / len(found)

    up, down = [level(a, y) for a in x], [level(b, x) for b in y]

    def margin(i, j):
        return cos(x[i], y[j]) / ((up[i] + down[j]) / 2)

    found = []
    for i in range(len(x)):
        found.append(max(((margin(i, j), i, j) for j in near(x[i], y)), key=lambda c: c[0]))
    for j in range(len(y)):
        found.append(max(((margin(i, j), i, j) for i in near(y[j], x)), key=lambda c: c[0]))
    pairs: dict[tuple[int, int], float] = {}
    seen_x, seen_y = set(), set()
    for score, i, j in sorted(found, key=lambda c: -c[0]):
        if i not in seen_x and j not in seen_y:
            seen_x.add(i)
            seen_y.add(j)
            if score > threshold:
                pairs[i, j] = score
    return pairs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_mining_equals_the_twin(seed, k):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 14)), int(rng.integers(1, 14))
    x = rng.standard_normal((n, 6)) + 2  # a common direction, as encoders have it: cosines stay well above 0
    y = np.concatenate([x[: m // 2] + 0.3 * rng.standard_normal((min(n, m // 2), 6)), rng.standard_normal((m, 6)) + 2])
    y = y[:m]
    pairs = bucc_mine(x, y, source_ids=[f"s{i}" for i in range(n)], target_ids=[f"t{j}" for j in range(m)], k=k)
    expected = mine_twin(x, y, k, 0.0)
    assert pairs.keys() == {(f"s{i}", f"t{j}") for i, j in expected}
    assert [pairs[f"s{i}", f"t{j}"] for i, j in expected] == pytest.approx(list(expected.values()), abs=1e-9)
    assert list(pairs.values()) == sorted(pairs.values(), reverse=True)
    single = bucc_mine(
        x.astype(np.float32), y.astype(np.float32),
        source_ids=[f"s{i}" for i in range(n)], target_ids=[f"t{j}" for j in range(m)], k=k,
    )  # fmt: skip
    assert [single[pair] for pair in pairs if pair in single] == pytest.approx(
        [pairs[pair] for pair in pairs if pair in single], abs=1e-4
    )


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((n, 4)).astype(np.float32) + 0.5 for n in (60, 45))
    ids = dict(source_ids=[f"s{i}" for i in range(60)], target_ids=[f"t{i}" for i in range(45)])
    whole = bucc_mine(x, y, **ids)
    monkeypatch.setattr("xqg_vdb.evaluate.matrix.BLOCK_SCORES", 21)
    tiled = bucc_mine(x, y, **ids)
    assert tiled == pytest.approx(whole, abs=1e-5)


def test_repeated_sentences_take_part_but_do_not_count():
    x = np.array([[1, 0], [0, 1]], dtype=np.float32)
    ids = dict(source_ids=["a", "b"], target_ids=["A", "B"], k=1)
    assert bucc_mine(x, x, **ids) == {("a", "A"): 1.0, ("b", "B"): 1.0}  # 1 / ((1 + 1) / 2)
    assert bucc_mine(x, x, **ids, ignored={"B"}) == {("a", "A"): 1.0}
    assert bucc_mine(x, x, **ids, threshold=1.0) == {}  # more than the threshold, not as much
    assert bucc_mine(x, -x[:, ::-1] * 0, **ids) == {}  # zero rows have no neighbours


def optimize_twin(pairs, gold) -> float:
    """bucc_optimize as published, with a last item that does not end in an IndexError."""
    items = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    best, threshold = 0.0, 0.0
    for i in range(len(items)):
        right = sum(pair in gold for pair, _ in items[: i + 1])
        if right:
            p, r = right / (i + 1), right / len(gold)
            if 2 * p * r / (p + r) > best:
                best = 2 * p * r / (p + r)
                threshold = (items[i][1] + items[min(i + 1, len(items) - 1)][1]) / 2
    return threshold


PAIRS = st.dictionaries(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("ABCDEF")),
    st.one_of(st.sampled_from([0.9, 1.0, 1.1]), st.floats(0.5, 1.5)),
    max_size=12,
)
GOLD = st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("ABCDEF")), max_size=6)


@settings(max_examples=200, deadline=None)
@given(PAIRS, GOLD)
def test_threshold_and_f1_equal_the_twin(pairs, gold):
    threshold = bucc_optimize(pairs, gold)
    assert threshold == pytest.approx(optimize_twin(pairs, gold), abs=1e-9)
    f1, precision, recall = bucc_f1(pairs, gold, threshold=threshold)
    taken = {pair for pair, score in pairs.items() if score >= threshold}
    right = len(taken & gold)
    if right:
        assert f1 == pytest.approx(2 * right / (len(taken) + len(gold)), abs=1e-9)
        assert (precision, recall) == pytest.approx((right / len(taken), right / len(gold)))
    else:
        assert (f1, precision, recall) == (0.0, 0.0, 0.0)


def test_bucc_arithmetic():
    pairs = {("a", "A"): 1.3, ("b", "X"): 1.2, ("c", "C"): 1.1, ("d", "Y"): 1.0}
    gold = {("a", "A"), ("b", "B"), ("c", "C")}
    # F1 after 1, 2, 3, 4 pairs: 2·1/(1+3), 2·1/(2+3), 2·2/(3+3), 2·2/(4+3)
    assert bucc_optimize(pairs, gold) == pytest.approx((1.1 + 1.0) / 2)
    assert bucc_f1(pairs, gold, threshold=1.05) == pytest.approx((4 / 6, 2 / 3, 2 / 3))
    assert bucc_optimize({("a", "A"): 1.3}, gold) == 1.3  # the published script raises IndexError here
    assert bucc_optimize({("x", "X"): 1.3}, gold) == 0.0
    assert bucc_f1({}, set(), threshold=0.0) == (0.0, 0.0, 0.0)


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


def test_errors():
    with pytest.raises(DataError, match="needs an id per row: 1, 1 rows, 1, 2 ids"):
        bucc_mine(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), source_ids=["a"], target_ids=["A", "B"])
