"""The card of a collection to be, with the language means that its fusion subtracts: from a build and wishes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import (
    CalibratedEncoder,
    LanguageMeans,
    language_means,
    main_languages,
    pack_means,
    resolve_languages,
)
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import recipe_languages, refuse_unequal_counts
from xqg_vdb.index.build import Window
from xqg_vdb.index.encode import Encoded, Row
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_DENSE_PLAIN
from xqg_vdb.texts.corpus import read_questions
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import Card, Distance, Hybrid, Recipe

_ENOUGH_QUESTIONS = 30
_NOTHING = LanguageMeans()


def card_of(
    encoded: Encoded,
    encoder: CalibratedEncoder,
    *,
    recipe: Recipe,
    distance: Distance,
    generated: LanguageMeans,
    asked: LanguageMeans = _NOTHING,
    keep_plain: bool = False,
) -> Card:
    """The card of the collection to be.

    generated: `generated_means` of the build. asked: the means of users' questions.
    Raises DataError when the recipe wants a language without queries, MismatchError when it is `sum` and counts differ.
    """
    build = encoded.build
    langs = recipe_languages(generated.counts, recipe) if recipe.alpha > 0.0 else []
    if langs and recipe.pool == "sum":  # before anything is written: the rule is about the whole corpus
        none = np.zeros(build.window, np.int32)
        counts = [sum(w.sums[lang][1] if lang in w.sums else none[: len(w)] for lang in langs) for w in build.windows()]
        refuse_unequal_counts(np.concatenate(counts))
    folded = LanguageMeans({lang: generated.means[lang] for lang in langs}, generated.counts)
    refined = encoder.language_means.refined(folded, capped=True).means
    # what users really ask beats what a model generated, which beats the bank
    means = {**{lang: refined[lang] for lang in langs}, **asked.means}
    rows = hashlib.blake2b(build.digests().tobytes(), digest_size=16)
    rows.update(encoded.payload_digest.encode())
    return Card(
        encoder=encoder.facts,
        distance=distance,
        recipe=recipe,
        calibration=encoder.calibration,
        query_langs=tuple(langs),
        query_means=pack_means(LanguageMeans(means)),
        rows_digest=rows.hexdigest(),
        vectors=(TEXT_DENSE, TEXT_DENSE_PLAIN) if keep_plain else (TEXT_DENSE,),
    )


def generated_means(windows: Iterable[Window]) -> LanguageMeans:
    """The mean generated-query vector of each language over a whole build, with how many queries there are."""
    totals: dict[str, NDArray[np.float64]] = {}
    counts: Counter[str] = Counter()
    for window in windows:
        for lang, (rows, n) in window.sums.items():
            totals[lang] = totals.get(lang, 0.0) + rows.sum(axis=0, dtype=np.float64)
            counts[lang] += int(n.sum())
    means = {lang: (total / counts[lang]).astype(np.float32) for lang, total in sorted(totals.items())}
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
    rows = {
        lang: vectors[[i for i, known in enumerate(langs) if known == lang]] for lang in sorted(set(langs) - {"und"})
    }
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
