"""The card of a collection to be, and the language means that its fusion subtracts: from kept vectors and wishes.

In: a build, an encoder, a recipe. Out: a `Card` that a store makes a version of. This file writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np

from xqg_vdb.calibration import (
    CalibratedEncoder,
    LanguageMeans,
    language_means,
    main_languages,
    pack_means,
    resolve_languages,
)
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import pooled_queries, recipe_languages
from xqg_vdb.index.build import Build
from xqg_vdb.index.encode import Encoded, Row
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_DENSE_PLAIN
from xqg_vdb.texts.questions import read_questions
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import Card, Distance, Hybrid, Recipe

_ENOUGH_QUESTIONS = 30


def card_of(
    kept: Encoded,
    encoder: CalibratedEncoder,
    *,
    recipe: Recipe,
    distance: Distance,
    asked: LanguageMeans,
    keep_plain: bool,
) -> tuple[Card, LanguageMeans]:
    """The card of the collection to be, and the language means that its fusion subtracts.

    Raises DataError when the recipe wants a language without queries, MismatchError when it is `sum` and counts differ.
    """
    build = kept.build
    langs = _folded_languages(build, recipe) if recipe.alpha > 0.0 else []
    refined = encoder.language_means.refined(generated_means(build, langs), capped=True)
    # what users really ask beats what a model generated, which beats the bank
    table = LanguageMeans({**refined.means, **asked.means}, {**refined.counts, **asked.counts})
    own = [lang for lang in table.means if lang in langs or lang in asked.means]
    rows = hashlib.blake2b(build.digests.tobytes(), digest_size=16)
    rows.update(kept.payload_digest.encode())
    card = Card(
        encoder=encoder.facts,
        distance=distance,
        recipe=recipe,
        calibration=encoder.calibration,
        query_langs=tuple(langs),
        query_means=pack_means(LanguageMeans({lang: table.means[lang] for lang in own})),
        rows_digest=rows.hexdigest(),
        vectors=(TEXT_DENSE, TEXT_DENSE_PLAIN) if keep_plain else (TEXT_DENSE,),
    )
    return card, table


def _folded_languages(build: Build, recipe: Recipe) -> list[str]:
    """The languages whose queries are folded in; what the recipe refuses is refused before anything is written."""
    langs = recipe_languages({lang: (build.sums[lang], build.counts[lang]) for lang in build.sums}, recipe)
    if langs and recipe.pool == "sum":
        # the rule is about the whole corpus, where a window of it may well have equal counts; it looks at no vector
        width = np.zeros((build.rows, 1), dtype=np.float32)
        pooled_queries({lang: (width, build.counts[lang]) for lang in langs}, recipe=recipe, means={})
    return langs


def generated_means(kept: Build, langs: Sequence[str]) -> LanguageMeans:
    """The mean generated-query vector of each language over a whole build."""
    counts = {lang: int(kept.counts[lang].sum()) for lang in langs}
    means = {
        lang: (kept.sums[lang].sum(axis=0, dtype=np.float64) / n).astype(np.float32) for lang, n in counts.items() if n
    }
    return LanguageMeans(means, {lang: counts[lang] for lang in means}, "generated queries")


def question_means(
    encoder: CalibratedEncoder, questions: str | PathLike[str] | None, *, rejects: Rejects
) -> LanguageMeans:
    """The means of users' questions, empty without a file. Few lean on the bank, thirty speak for themselves."""
    if questions is None:
        return LanguageMeans()
    asked = read_questions(Path(questions), rejects=rejects)
    texts = [question.text for question in asked]
    langs = resolve_languages(texts, [question.lang for question in asked])
    vectors = encoder.encode_queries(texts, calibrate=False)
    rows = {lang: vectors[[i for i, own in enumerate(langs) if own == lang]] for lang in sorted(set(langs) - {"und"})}
    if not rows:
        raise DataError(f"None of the questions in {questions} has a language: give each a `lang` field.")
    bank = encoder.language_means
    table = language_means(rows, source="questions")
    few = {lang for lang, n in table.counts.items() if n < _ENOUGH_QUESTIONS and lang in bank.means}
    blended = LanguageMeans({lang: bank.means[lang] for lang in few}, {lang: bank.counts[lang] for lang in few})
    return blended.refined(table)


def with_passage_means(card: Card, strength: float, table: LanguageMeans) -> Card:
    """`card` with the means of passage-side calibration; as it was for a corpus that is in one language."""
    if len(main_languages(table.counts)) < 2:
        return card
    return replace(card, passage_calibration=strength, passage_means=pack_means(table))


def with_words(card: Card, hybrid: Hybrid, rows: Iterator[Row]) -> Card:
    """The card with the settings of its sparse vectors, which the first passages of the corpus decide."""
    from xqg_vdb.store.bm25 import SAMPLE, settings_of  # brings the embedded engine

    return replace(card, bm25=settings_of([passage for passage, _ in islice(rows, SAMPLE)], hybrid))


def finished(card: Card, *, count: int, digest: str) -> Card:
    """The card to publish with so many points, as of now."""
    return replace(card, count=count, digest=digest, created=datetime.now(UTC).isoformat(timespec="seconds"))
