"""A sweep against the slow way: fuse, calibrate, rank everything, measure the run; ties included."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xqg_vdb.calibration import LanguageMeans, calibrate
from xqg_vdb.evaluate import matrix
from xqg_vdb.evaluate.matrix import Setting, id_order, judge, per_query, sweep
from xqg_vdb.evaluate.metrics import parse_metrics
from xqg_vdb.fusion import fuse
from xqg_vdb.types import Recipe

METRICS = parse_metrics(["R@1", "R@3", "Success@2", "MRR@5", "nDCG@4", "MAP@3", "mAP@3"])
QUARTERS = [0.0, 0.25, 0.5, 1.0]  # exact in binary, as are the vectors below: equal scores are equal in both ways


def some_data(seed, *, whole, n=9, q=7, dim=4, langs=("ar", "sw", "yo")):
    """Rows, sums, means, qrels and ids; `whole` vectors are small whole numbers, full of ties.

    Others have none: whether the float32 scores of two copies are equal depends on the machine's matrix product.
    """
    rng = np.random.default_rng(seed)

    def rows(*shape):
        values = rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape)
        return values.astype(np.float32)

    passages = rows(n, dim)
    if whole:
        passages[-2:] = passages[:2]
    sums = {lang: (rows(n, dim), rng.integers(0, 3, n).astype(np.int32)) for lang in langs[:2]}
    for total, counts in sums.values():
        total[counts == 0] = 0
        if whole:
            total[-2:], counts[-2:] = total[:2], counts[:2]
    table = LanguageMeans({lang: rows(dim) for lang in langs[:2]}, dict.fromkeys(langs[:2], 1))
    of = [langs[i % len(langs)] for i in range(q)]  # the third language is not in the table: the mean of the others
    passage_ids = [f"p{i}" for i in rng.permutation(n)]
    query_ids = [f"q{i}" for i in range(q)]
    qrels = {
        qid: {docid: int(rng.integers(-1, 3)) for docid in rng.choice([*passage_ids, "elsewhere"], rng.integers(0, 7))}
        for qid in query_ids[1:]
    }
    return rows(q, dim), passages, sums, table, of, query_ids, passage_ids, {query_ids[0]: {}, **qrels}


def slow(data, recipe, setting, *, normalize, ties):
    """Metric -> question -> value, by fusing and ranking everything in double precision."""
    questions, passages, sums, table, langs, query_ids, passage_ids, qrels = data
    recipe = replace(recipe, alpha=setting.alpha)
    fused = fuse(passages, sums, recipe=recipe, means=table.means, normalize=normalize).astype(np.float64)
    moved = calibrate(questions, langs=langs, table=table, strength=setting.strength, normalize=False)
    scores = np.array([[float(row @ q) for row in fused] for q in moved.astype(np.float64)])
    if not ties:
        assume(np.diff(np.sort(scores)).min() > 1e-5)  # float32 rounding must not decide
    run = {qid: list(zip(passage_ids, line.tolist(), strict=True)) for qid, line in zip(query_ids, scores, strict=True)}
    return per_query(run, qrels, metrics=METRICS)


def fused_by(passages, sums, recipe, table, normalize):
    return lambda alpha: fuse(
        passages, sums, recipe=replace(recipe, alpha=alpha), means=table.means, normalize=normalize
    )


def compare(data, recipe, grid, *, normalize, ties=False):
    questions, passages, sums, table, langs, query_ids, passage_ids, qrels = data
    judged = judge(qrels, query_ids=query_ids, passage_ids=passage_ids)
    found = {
        metric: sweep(
            grid, questions, fused_by(passages, sums, recipe, table, normalize), table=table, langs=langs,
            judged=judged, metric=metric, tie_order=id_order(passage_ids),
        )
        for metric in METRICS
    }  # fmt: skip
    for row, setting in enumerate(grid):
        for metric, values in slow(data, recipe, setting, normalize=normalize, ties=ties).items():
            np.testing.assert_allclose(
                found[metric][row], [values[qid] for qid in query_ids], atol=1e-9, err_msg=f"{setting} {metric}"
            )


recipes = st.builds(
    Recipe,
    pool=st.sampled_from(["shrunk", "mean"]),
    shrink=st.sampled_from([0.0, 1.0, 6.0]),
    center=st.booleans(),
    query_langs=st.sampled_from([None, ("ar",), ()]),
)


@given(seed=st.integers(0, 10_000), alpha=st.sampled_from(QUARTERS), strength=st.sampled_from(QUARTERS))
@settings(max_examples=80, deadline=None)
def test_equal_scores_of_dot_products_are_ranked_alike(seed, alpha, strength):
    data = some_data(seed, whole=True)
    data[2]["ar"][1][:] = 2  # halves: the mean stays exact
    compare(data, Recipe(pool="mean", query_langs=("ar",)), [Setting(alpha, strength)], normalize=False, ties=True)


@given(seed=st.integers(0, 10_000), strength=st.sampled_from(QUARTERS))
@settings(max_examples=40, deadline=None)
def test_equal_cosines_are_ranked_alike(seed, strength):
    """Rows of ±1/2 in four dimensions have length 1, to the last bit."""
    questions, passages, *rest = some_data(seed, whole=True)
    passages = np.where(passages < 0, np.float32(-0.5), np.float32(0.5))
    compare((questions, passages, *rest), Recipe(), [Setting(0.0, strength)], normalize=True, ties=True)


@given(seed=st.integers(0, 10_000), recipe=recipes, normalize=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_sweep_gives_what_fusing_and_searching_gives(seed, recipe, normalize):
    """Many blocks, rows without queries, languages without a mean of their own."""
    data = some_data(seed, whole=False)
    rng = np.random.default_rng(seed)
    grid = [Setting(0.0, 0.0), Setting(float(rng.random()), float(rng.random())), Setting(0.3, 0.0), Setting(1.0, 1.0)]
    if recipe.query_langs != () and recipe.shrink == 0.0:
        grid = grid[:3]  # at α = 1 passages without queries are zero rows, whose length is rounding noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "BLOCK_SCORES", 20)
        compare(data, recipe, grid, normalize=normalize)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_sum_of_equal_counts(seed):
    data = some_data(seed, whole=False)
    for _, counts in data[2].values():
        counts[:] = 3
    compare(data, Recipe(pool="sum"), [Setting(0.01, 0.5), Setting(0.2, 0.0)], normalize=True)


def test_alpha_means_nothing_without_queries():
    questions, passages, _, table, langs, query_ids, ids, qrels = some_data(6, whole=False)
    judged = judge(qrels, query_ids=query_ids, passage_ids=ids)
    first, second = sweep(
        [Setting(0.0, 0.5), Setting(0.9, 0.5)], questions, fused_by(passages, {}, Recipe(), table, True), table=table,
        langs=langs, judged=judged, metric=METRICS[2],
    )  # fmt: skip
    assert (first == second).all()
