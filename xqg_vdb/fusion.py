"""Folding query vectors into passage vectors: the equations of the paper and of this project, and nothing else.

With S_l and c_l the sum and the count of a passage's query vectors in language l, n = Σ_l c_l, μ_l the language's mean
query vector, k the recipe's `shrink`:

    sum     v = (1-α)·E + α·Σ_l S_l                                 xQG: Zhuang, Shou, Zuccon, SIGIR 2023
    mean    v = (1-α)·E + α·Σ_l S_l / n                             E itself where n = 0
    shrunk  v = (1-α)·E + α·(Σ_l S_l + k·μ̄) / (n + k)               μ̄ = mean of μ_l over the recipe's languages
    shrunk, centred (default)
            v = (1-α)·E + α·Σ_l (S_l - c_l·μ_l) / (n + k)           adds content only; E's direction where n = 0

One rule for length (`Card.has_unit_rows`): rows get length 1 (`normalize`) where the distance is cosine or the
encoder's own have it; others stay as they come out.

The sum is linear in α, so scores of any α are `(1-α)·(q·E) + α·(q·g)` with `g = pooled_queries(...)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.types import Recipe, Vectors

Counts = NDArray[np.integer]
Sums = Mapping[str, tuple[Vectors, Counts]]
"""language -> (sum of query vectors (n, dim), number of queries (n,)), rows in passage order."""


def fuse(passages: Vectors, sums: Sums, *, recipe: Recipe, means: Mapping[str, Vectors], normalize: bool) -> Vectors:
    """Fused vectors (n, dim) float32 for passage rows (n, dim).

    means: mean query vector (dim,) per language; needed by `shrunk` for each of the recipe's languages.
    normalize: give every row length 1 afterwards (see above).
    Raises MismatchError when `sum` meets passages with different numbers of queries, DataError when a language is
    missing from `sums` or `means`.
    """
    fused: Vectors = np.asarray(passages, dtype=np.float32)
    langs = recipe_languages(sums, recipe)
    if langs and recipe.alpha > 0.0:
        pooled, has_queries = pooled_queries(sums, recipe=recipe, means=means)
        # a passage without queries keeps its vector under `mean` and `sum`; `shrunk` has a value for it
        alpha = np.where(has_queries, np.float32(recipe.alpha), np.float32(0.0))[:, None]
        fused = ((1.0 - alpha) * fused + alpha * pooled).astype(np.float32)
    return unit_rows(fused) if normalize else fused


def pooled_queries(sums: Sums, *, recipe: Recipe, means: Mapping[str, Vectors]) -> tuple[Vectors, NDArray[np.bool_]]:
    """The query side g of the fusion, (n, dim) float32, and which rows take part in it (n,) bool."""
    langs = recipe_languages(sums, recipe)
    total: Vectors = np.add.reduce([sums[lang][0] for lang in langs], dtype=np.float32)
    counts = np.add.reduce([sums[lang][1] for lang in langs], dtype=np.int64)
    if recipe.pool == "sum":
        refuse_unequal_counts(counts)
        return total, counts > 0
    if recipe.pool == "mean":
        return total / np.maximum(counts, 1)[:, None].astype(np.float32), counts > 0
    missing = [lang for lang in langs if lang not in means]
    if missing:
        raise DataError(
            f"pool 'shrunk' needs a mean query vector for {', '.join(missing)}; use --pool mean, or --langs."
        )
    weight = (counts + recipe.shrink).astype(np.float32)[:, None]
    if recipe.center:
        for lang in langs:
            total -= sums[lang][1].astype(np.float32)[:, None] * means[lang]
        everywhere = np.ones(len(counts), dtype=np.bool_)
        return total / np.maximum(weight, np.float32(1e-9)), everywhere
    prior = np.mean([means[lang] for lang in langs], axis=0, dtype=np.float32)
    takes_part = weight[:, 0] > 0
    return (total + np.float32(recipe.shrink) * prior) / np.maximum(weight, np.float32(1e-9)), takes_part


def recipe_languages(sums: Collection[str], recipe: Recipe) -> list[str]:
    """The languages that a recipe folds in, sorted. Raises DataError when one of them has no queries at all."""
    if recipe.query_langs is None:
        return sorted(sums)
    missing = sorted(set(recipe.query_langs) - set(sums))
    if missing:
        have = ", ".join(sorted(sums)) or "none"
        raise DataError(f"There are no generated queries in {', '.join(missing)} (languages at hand: {have}).")
    return sorted(set(recipe.query_langs))


def unit_rows(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


def refuse_unequal_counts(counts: NDArray[np.int64]) -> None:
    """Raise MismatchError unless every passage has as many queries (n,), which pool `sum` needs."""
    if len(counts) and counts.min() != counts.max():
        raise MismatchError(
            f"pool 'sum' needs equally many queries for every passage, found {counts.min()} to {counts.max()}: "
            "passages with more queries would get a head start on every question. Use --pool shrunk or mean."
        )


def mean_rows(vectors: Vectors, starts: NDArray[np.int64], *, normalize: bool) -> Vectors:
    """The mean of each question's wordings, (q, dim) float32; vectors (m, dim), starts (q,): where each one's begin."""
    counts = np.diff(starts, append=len(vectors))
    rows: Vectors = np.asarray(np.add.reduceat(vectors, starts) / counts[:, None].astype(np.float32), dtype=np.float32)
    return unit_rows(rows) if normalize else rows
