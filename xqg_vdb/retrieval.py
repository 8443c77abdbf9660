"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

In: an encoder and a collection that it made. Out: hits, best first, ties by id. This file refuses to know how either
works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, resolve_languages, unpack_means
from xqg_vdb.collection import Collection
from xqg_vdb.collection.layout import check_langs
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.languages import normalize
from xqg_vdb.types import Card, Hit, Query

CALIBRATED_EF = 256
"""Breadth of the graph search for calibrated questions: they lie off the passages' cone, where the engine's default
breadth overlooks more neighbours than it does for plain ones."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    query: Query
    lang: str
    hits: tuple[Hit, ...]


class Retriever:
    """Searches one collection with the encoder that made it.

    calibration: λ, None for what the collection's card recommends, 0 to switch it off.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints.
    """

    def __init__(self, encoder: CalibratedEncoder, collection: Collection, *, calibration: float | None = None) -> None:
        self.encoder = encoder
        self.collection = collection
        card = collection.card
        check_same_encoder(encoder, card, name=collection.name)
        self.strength = card.calibration if calibration is None else calibration
        self.language_means = collection_means(encoder, card)

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        langs: Sequence[str] | None = None,
        lang: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question, by score, then id.

        langs: only passages in these languages. lang: the question's own language; detected when not given.
        """
        return list(self.run([Query("0", text, lang)], k=k, langs=langs, exact=exact)[0].hits)

    def run(
        self, queries: Sequence[Query], *, k: int = 10, langs: Sequence[str] | None = None, exact: bool = False
    ) -> list[Answer]:
        """The k best passages for each question, in input order.

        Raises DataError for a blank question and for what is no language code.
        """
        if not queries:
            return []
        _refuse_blank(queries)
        check_langs(langs)
        texts = [query.text for query in queries]
        vectors = self.encoder.encode_queries(texts)
        asked = [None if query.lang is None else normalize(query.lang) for query in queries]
        calibrated = self.strength != 0.0 and bool(self.language_means.means)
        if calibrated:
            asked = list(resolve_languages(texts, asked))
            vectors = calibrate(
                vectors,
                langs=asked,
                table=self.language_means,
                strength=self.strength,
                normalize=self.encoder.facts.normalize,
            )
        wanted = None if langs is None else [normalize(code) for code in langs]
        breadth = CALIBRATED_EF if calibrated else None
        found = self.collection.search(vectors, k=k, langs=wanted, exact=exact, ef=breadth)
        return [Answer(query, lang or "", tuple(hits)) for query, lang, hits in zip(queries, asked, found, strict=True)]


def check_same_encoder(encoder: CalibratedEncoder, card: Card, *, name: str) -> None:
    """Raise MismatchError unless the collection's vectors and this encoder's are comparable."""
    mine, theirs = encoder.facts, card.encoder
    if mine.fingerprint != theirs.fingerprint:
        raise MismatchError(
            f"Collection {name!r} was made by {theirs.source} ({theirs.precision}, fingerprint {theirs.fingerprint}),"
            f" not by {mine.source} ({mine.precision}, fingerprint {mine.fingerprint}): search with that encoder, or"
            " load again."
        )


def collection_means(encoder: CalibratedEncoder, card: Card) -> LanguageMeans:
    """The encoder's language means, with those that the collection measured on its own queries in their place."""
    own = unpack_means(card.query_means, dim=card.encoder.dim)
    bank = encoder.language_means
    return LanguageMeans({**bank.means, **own.means}, {**bank.counts, **own.counts}, bank.source)


def _refuse_blank(queries: Sequence[Query]) -> None:
    blank = next((query.id for query in queries if not query.text.strip()), None)
    if blank is not None:
        raise DataError(f"Question {blank!r} is blank: there is nothing to search for.")
