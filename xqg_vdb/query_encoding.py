"""Questions into calibrated vectors, each for its language.

In: an encoder, and the collection whose calibration counts. Out: `EncodedQueries`. This file searches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, resolve_languages, unpack_means
from xqg_vdb.collection import Collection
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.languages import normalize
from xqg_vdb.types import Card, Query, Vectors

CALIBRATED_EF = 256
"""Breadth of the graph search for calibrated questions: they lie off the passages' cone, where the engine's default
breadth overlooks more neighbours than it does for plain ones."""


@dataclass(frozen=True, slots=True)
class EncodedQueries:
    """Questions ready for a search.

    vectors: float32 (n, dim). langs: per question the language that it was calibrated for; "" when it was not and none
    was given. breadth: the `ef` to search with, None for the engine's own.
    texts: per question what its words are taken from.
    """

    vectors: Vectors
    langs: tuple[str, ...]
    breadth: int | None
    texts: tuple[str, ...]


class QueryEncoder:
    """Questions into calibrated vectors, for one collection or for any that the encoder made.

    collection: whose calibration to use: its card's λ and the language means that it measured itself; without one,
    the encoder's own. calibration: λ in place of either, 0 to switch it off.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints.
    """

    def __init__(
        self, encoder: CalibratedEncoder, *, collection: Collection | None = None, calibration: float | None = None
    ) -> None:
        self.encoder = encoder
        self.language_means = encoder.language_means
        recommended = encoder.calibration
        if collection is not None:
            card = collection.card
            check_same_encoder(encoder, card, name=collection.name)
            self.language_means = collection_means(encoder, card)
            recommended = card.calibration
        self.strength = recommended if calibration is None else calibration

    def encode(self, queries: Sequence[Query]) -> EncodedQueries:
        """The rows for the questions, in input order, each calibrated for its language; detected when not given.

        Raises DataError for a blank question and for what is no language code.
        """
        refuse_blank(queries)
        asked = [None if query.lang is None else normalize(query.lang) for query in queries]
        texts = [query.text for query in queries]
        vectors = self.encoder.encode_queries(texts)
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
        langs = tuple(lang or "" for lang in asked)
        return EncodedQueries(vectors, langs, CALIBRATED_EF if calibrated else None, tuple(texts))


def mean_rows(vectors: Vectors, starts: NDArray[np.int64], *, normalize: bool) -> Vectors:
    """The mean of each question's wordings, (q, dim) float32; vectors (m, dim), starts (q,): where each one's begin."""
    counts = np.diff(starts, append=len(vectors))
    rows = np.add.reduceat(vectors, starts) / counts[:, None].astype(np.float32)
    if normalize:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(rows, dtype=np.float32)


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


def refuse_blank(queries: Sequence[Query]) -> None:
    """Raise DataError for the first question without text."""
    blank = next((query.id for query in queries if not query.text.strip()), None)
    if blank is not None:
        raise DataError(f"Question {blank!r} is blank: there is nothing to search for.")
