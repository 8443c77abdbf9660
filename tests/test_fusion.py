"""The fusion equations against slow twins, written passage by passage and query by query as the sources state them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.fusion import fuse, pooled_queries, unit_rows
from xqg_vdb.types import Recipe

DIM = 8


def some_build(seed, *, n=6, langs=("ar", "sw"), counts=None):
    """Passage rows and, per language, each passage's list of query rows."""
    rng = np.random.default_rng(seed)
    passages = rng.standard_normal((n, DIM)).astype(np.float32)
    queries = {
        lang: [
            rng.standard_normal((rng.integers(0, 4) if counts is None else counts, DIM)).astype(np.float32)
            for _ in range(n)
        ]
        for lang in langs
    }
    means = {lang: rng.standard_normal(DIM).astype(np.float32) for lang in langs}
    sums = {
        lang: (np.stack([q.sum(axis=0) for q in rows]), np.array([len(q) for q in rows], np.int32))
        for lang, rows in queries.items()
    }
    return passages, queries, means, sums


def authors_formula(passages, queries, alpha):
    """fuse_embeds.py of ielab/xQG4xDR: every query file's vector is added with weight alpha, one after the other."""
    out = []
    for row, passage in enumerate(passages):
        fused = (1 - alpha) * passage.astype(np.float64)
        for rows in queries.values():
            for query in rows[row]:
                fused += alpha * query.astype(np.float64)
        out.append(fused)
    return np.array(out)


def slow_shrunk(passages, queries, means, *, alpha, k, center):
    out = []
    for row, passage in enumerate(passages):
        own = [(lang, q.astype(np.float64)) for lang, rows in queries.items() for q in rows[row]]
        if center:
            pooled = sum((q - means[lang] for lang, q in own), np.zeros(DIM)) / (len(own) + k)
        else:
            prior = sum(means[lang].astype(np.float64) for lang in queries) / len(queries)
            pooled = (sum((q for _, q in own), np.zeros(DIM)) + k * prior) / (len(own) + k)
        out.append((1 - alpha) * passage + alpha * pooled)
    return np.array(out)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.02, 0.5])
def test_sum_is_the_authors_formula(seed, alpha):
    passages, queries, _, sums = some_build(seed, counts=5)
    fused = fuse(passages, sums, recipe=Recipe(alpha=alpha, pool="sum"), means={}, normalize=False)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, authors_formula(passages, queries, alpha), atol=1e-6)


@given(seed=st.integers(0, 10_000), alpha=st.floats(0.01, 0.99), k=st.floats(0.5, 20), center=st.booleans())
@settings(max_examples=50, deadline=None)
def test_shrunk_is_its_definition(seed, alpha, k, center):
    passages, queries, means, sums = some_build(seed)
    recipe = Recipe(alpha=alpha, pool="shrunk", shrink=k, center=center)
    fused = fuse(passages, sums, recipe=recipe, means=means, normalize=False)
    np.testing.assert_allclose(fused, slow_shrunk(passages, queries, means, alpha=alpha, k=k, center=center), atol=1e-5)


def test_mean_by_hand():
    passages = np.array([[1, 0], [0, 1]], np.float32)
    sums = {"sw": (np.array([[0, 6], [0, 0]], np.float32), np.array([3, 0]))}
    fused = fuse(passages, sums, recipe=Recipe(alpha=0.25, pool="mean"), means={}, normalize=False)
    # first: 0.75·(1, 0) + 0.25·(0, 6/3); second has no queries and keeps its vector
    np.testing.assert_allclose(fused, [[0.75, 0.5], [0, 1]], atol=1e-7)


def test_mean_and_sum_agree_at_the_translated_alpha():
    passages, _, _, sums = some_build(1, counts=5)
    n = 5 * 2
    by_sum = fuse(passages, sums, recipe=Recipe(alpha=0.01, pool="sum"), means={}, normalize=True)
    recipe = Recipe(alpha=n * 0.01 / (1 - 0.01 + n * 0.01), pool="mean")
    np.testing.assert_allclose(by_sum, fuse(passages, sums, recipe=recipe, means={}, normalize=True), atol=1e-6)


def test_scores_are_linear_in_alpha():
    """What makes a sweep over alpha two score tables."""
    passages, _, means, sums = some_build(2)
    question = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
    pooled, _ = pooled_queries(sums, recipe=Recipe(), means=means)
    for alpha in (0.0, 0.2, 0.9):
        fused = fuse(passages, sums, recipe=Recipe(alpha=alpha), means=means, normalize=False)
        np.testing.assert_allclose(
            fused @ question, (1 - alpha) * (passages @ question) + alpha * (pooled @ question), atol=1e-5
        )


def test_normalised_rows_have_length_one():
    passages, _, means, sums = some_build(3)
    fused = fuse(passages, sums, recipe=Recipe(), means=means, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-6)


def test_language_restriction_uses_those_queries_alone():
    passages, _, means, sums = some_build(4)
    one = fuse(passages, sums, recipe=Recipe(query_langs=("sw",)), means=means, normalize=False)
    alone = fuse(passages, {"sw": sums["sw"]}, recipe=Recipe(), means=means, normalize=False)
    np.testing.assert_array_equal(one, alone)


def test_without_queries_or_with_alpha_zero_nothing_changes():
    passages, _, means, sums = some_build(5)
    np.testing.assert_array_equal(fuse(passages, {}, recipe=Recipe(), means={}, normalize=False), passages)
    np.testing.assert_array_equal(
        fuse(passages, sums, recipe=Recipe(alpha=0.0), means=means, normalize=False), passages
    )
    np.testing.assert_allclose(fuse(passages, {}, recipe=Recipe(), means={}, normalize=True), unit_rows(passages))


@pytest.mark.parametrize("recipe", [Recipe(pool="mean"), Recipe(pool="shrunk", shrink=0.0, center=False)])
def test_a_passage_without_queries_keeps_its_vector(recipe):
    passages, _, means, sums = some_build(3, counts=2)
    for total, counts in sums.values():
        total[1], counts[1] = 0.0, 0
    fused = fuse(passages, sums, recipe=recipe, means=means, normalize=False)
    np.testing.assert_array_equal(fused[1], passages[1])
    assert not np.allclose(fused[0], passages[0])
    none = {lang: (np.zeros_like(total), np.zeros_like(counts)) for lang, (total, counts) in sums.items()}
    np.testing.assert_array_equal(fuse(passages, none, recipe=Recipe(pool="sum"), means={}, normalize=False), passages)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_one_query_counts_in_full(pool):
    passages, queries, _, sums = some_build(5, counts=1, langs=("sw",))
    fused = fuse(passages, sums, recipe=Recipe(alpha=0.5, pool=pool), means={}, normalize=False)
    np.testing.assert_allclose(fused, (passages + np.concatenate(queries["sw"])) / 2, rtol=1e-5)
    short = unit_rows(np.float32([[0.3, 0.4]]))
    np.testing.assert_allclose(short, [[0.6, 0.8]], rtol=1e-6)


def test_a_weight_below_one_divides_in_full():
    passages, _, means, sums = some_build(5, counts=0, langs=("sw",))
    recipe = Recipe(alpha=0.5, shrink=0.5, center=False)
    fused = fuse(passages, sums, recipe=recipe, means=means, normalize=False)
    np.testing.assert_allclose(fused, (passages + means["sw"]) / 2, rtol=1e-5)


def test_sum_refuses_unequal_counts():
    passages, _, _, sums = some_build(6)
    with pytest.raises(MismatchError, match=r"found \d to \d: passages with more queries would get a head start"):
        fuse(passages, sums, recipe=Recipe(pool="sum"), means={}, normalize=False)


def test_missing_language_and_missing_mean_are_named():
    passages, _, means, sums = some_build(7)
    with pytest.raises(DataError, match=r"no generated queries in yo \(languages at hand: ar, sw\)"):
        fuse(passages, sums, recipe=Recipe(query_langs=("yo",)), means=means, normalize=False)
    with pytest.raises(DataError, match="needs a mean query vector for ar; use --pool mean"):
        fuse(passages, sums, recipe=Recipe(), means={"sw": means["sw"]}, normalize=False)


def test_recipes_survive_json_and_refuse_nonsense():
    recipe = Recipe(alpha=0.2, pool="mean", query_langs=("sw", "ar"))
    assert Recipe.from_json(recipe.to_json()) == recipe
    for bad in ({"alpha": 1.5}, {"alpha": float("nan")}, {"pool": "max"}, {"shrink": -1.0}):
        with pytest.raises(ValueError):
            Recipe(**bad)
