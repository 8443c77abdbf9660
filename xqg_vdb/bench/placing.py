"""A system's two sets of vectors: passages as they are written, questions as they are asked.

This is what `load` and `Retriever` do (the tests compare), with the switches that experiments need: fewer queries,
other language means, and the controls that share everything with xQG but the queries' content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from xqg_vdb.bench.material import Material
from xqg_vdb.bench.systems import System
from xqg_vdb.bench.wordings import WordingVectors
from xqg_vdb.bench.words import Words
from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, language_means, resolve_languages
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import Sums, fuse
from xqg_vdb.passage_calibration import calibrate_passages, passage_means
from xqg_vdb.query_encoding import mean_rows
from xqg_vdb.query_vectors import QueryVectors
from xqg_vdb.types import UNKNOWN_LANGUAGE, Recipe, Vectors

_SHUFFLE_SEED = 313
_PLAIN = Recipe(alpha=0.0)


@dataclass(frozen=True)
class Placed:
    """Passages (n, dim) and questions (q, dim), float32, ready to write and to ask.

    strength: the λ that was used. query_langs: the languages folded in. words: the sparse side of a hybrid system.
    """

    passages: Vectors
    questions: Vectors
    recipe: Recipe
    strength: float
    query_langs: tuple[str, ...]
    words: Words | None = None


def place(
    system: System,
    material: Material,
    *,
    encoder: CalibratedEncoder,
    queries: QueryVectors | None,
    asked: LanguageMeans | None = None,
    wordings: WordingVectors | None = None,
) -> Placed:
    """Fuse the passages and calibrate the questions of one system; asked: the means of `means = "DATASET"`.

    wordings: what is searched for in place of the questions, the mean of each one's vectors.
    Raises DataError when the recipe wants a language that the query file lacks.
    """
    table = means_of(system, encoder=encoder, queries=queries, asked=asked)
    normalize = encoder.facts.normalize
    passages = calibrated_passages(system, material, normalize=normalize)
    sums: Sums = {}
    if queries is not None and system.recipe.alpha > 0.0:
        sums = content_of(system, queries, passages=len(passages), means=table.means)
    recipe = system.recipe if sums else _PLAIN
    strength = encoder.calibration if system.calibration is None else system.calibration
    moved = partial(calibrate, table=table, strength=strength, normalize=normalize)
    if wordings is None:
        questions = moved(material.question_vectors, langs=question_languages(system, material))
    else:
        several = moved(wordings.vectors, langs=wordings.langs)
        questions = mean_rows(several, wordings.starts, normalize=normalize)
    fused = fuse(passages, sums, recipe=recipe, means=table.means, normalize=normalize)
    return Placed(fused, questions, recipe, strength, tuple(sorted(sums)))


def means_of(
    system: System, *, encoder: CalibratedEncoder, queries: QueryVectors | None, asked: LanguageMeans | None
) -> LanguageMeans:
    """The language means of a system. DataError when they shall come from queries that it does not have."""
    bank = encoder.language_means
    if system.means == "bank":
        return bank
    if system.means not in ("refined", "generated"):
        found = asked or LanguageMeans()
        return LanguageMeans({**bank.means, **found.means}, {**bank.counts, **found.counts}, found.source)
    if queries is None:
        if system.means == "generated":
            raise DataError(f"system {system.name!r}: means = 'generated' needs queries.")
        return bank
    generated = LanguageMeans(*queries.means(), "generated queries")
    return generated if system.means == "generated" else bank.refined(generated, capped=True)


def means_of_questions(vectors: Vectors, langs: Sequence[str | None]) -> LanguageMeans:
    """The language means of some dataset's questions, (q, dim)."""
    known = sorted({lang for lang in langs if lang})
    rows = {lang: vectors[[i for i, own in enumerate(langs) if own == lang]] for lang in known}
    return language_means(rows, source="questions")


def question_languages(system: System, material: Material) -> list[str]:
    """The language that each question is calibrated for."""
    asked = material.task.queries
    if system.languages == "unknown":
        return [UNKNOWN_LANGUAGE] * len(asked)
    given = [query.lang if system.languages == "given" else None for query in asked]
    return resolve_languages([query.text for query in asked], given)


def content_of(system: System, queries: QueryVectors, *, passages: int, means: Mapping[str, Vectors]) -> Sums:
    """The query sums that the system folds in: its own, or a control's with the same counts."""
    langs = system.recipe.langs
    missing = sorted(set(langs or ()) - set(queries.langs))
    if missing:
        raise DataError(f"system {system.name!r}: no queries in {', '.join(missing)}; there are {queries.langs}.")
    sums = queries.sums(passages=passages, n=system.n, langs=langs)
    if system.content == "own":
        return sums
    if system.content == "direction":
        return {lang: (own.astype(np.float32)[:, None] * means[lang][None, :], own) for lang, (_, own) in sums.items()}
    has_queries = np.flatnonzero(np.add.reduce([own for _, own in sums.values()]))
    moved = np.arange(passages)
    # a cycle through a random order: nobody keeps its own queries
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(has_queries)
    moved[order] = np.roll(order, 1)
    return {lang: (total[moved], own[moved]) for lang, (total, own) in sums.items()}


def calibrated_passages(system: System, material: Material, *, normalize: bool) -> Vectors:
    """The passages' rows (n, dim) float32, calibrated for their own languages where the system says so."""
    if not system.passage_calibration:
        return material.passage_vectors
    langs = [passage.lang for passage in material.passages]
    table = passage_means([(material.passage_vectors, langs)])
    return calibrate_passages(
        material.passage_vectors, langs=langs, table=table, strength=system.passage_calibration, normalize=normalize
    )
