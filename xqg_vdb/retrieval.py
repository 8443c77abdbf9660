"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

In: an encoder and a collection that it made. Out: hits, best first, ties by id. This file refuses to know how either
works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, resolve_languages, unpack_means
from xqg_vdb.collection import Collection
from xqg_vdb.collection.layout import (
    TEXT_DENSE,
    TEXT_DENSE_MAXSIM,
    TEXT_DENSE_PLAIN,
    TEXT_SPARSE,
    check_hybrid,
    check_langs,
    language_vector,
)
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.languages import normalize
from xqg_vdb.rank_fusion import DEPTH, fuse_ranks
from xqg_vdb.types import Card, Hit, Query, Questions, Vectors

CALIBRATED_EF = 256
"""Breadth of the graph search for calibrated questions: they lie off the passages' cone, where the engine's default
breadth overlooks more neighbours than it does for plain ones."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    query: Query
    lang: str
    hits: tuple[Hit, ...]


class QuestionExpander(Protocol):
    """Says what to search with in place of a question (`expansion.Expander`)."""

    def expand(self, queries: Sequence[Query]) -> list[tuple[Query, ...]]:
        """Per question one wording or more; the mean of their vectors is searched. `lang` None is detected."""
        ...


class HitReranker(Protocol):
    """Orders the hits of a question anew (`rerank.Reranker`). depth: how many hits it wants."""

    depth: int

    def rerank(self, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        """The same hits, best first."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedQueries:
    """Questions ready for a search.

    vectors: float32 (n, dim). langs: per question the language that it was calibrated for; "" when it was not and none
    was given. breadth: the `ef` to search with, None for the engine's own. using: per question the vector to search by.
    texts: per question what its words are taken from.
    """

    vectors: Vectors
    langs: tuple[str, ...]
    breadth: int | None
    using: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LookUp:
    """One call of a collection's search: the `questions` in `rows`, by the vector `using`, the `k` best of each."""

    using: str
    rows: list[int]
    questions: Questions
    k: int
    breadth: int | None


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
        self._names: frozenset[str] = frozenset()
        recommended = encoder.calibration
        if collection is not None:
            card = collection.card
            check_same_encoder(encoder, card, name=collection.name)
            self.language_means = collection_means(encoder, card)
            recommended = card.calibration
            self._names = frozenset(card.vectors)
        self.strength = recommended if calibration is None else calibration

    def encode(self, queries: Sequence[Query]) -> EncodedQueries:
        """The rows for the questions, in input order, each calibrated for its language; detected when not given.

        Raises DataError for a blank question and for what is no language code.
        """
        _refuse_blank(queries)
        asked = [None if query.lang is None else normalize(query.lang) for query in queries]
        texts = [query.text for query in queries]
        vectors = self.encoder.encode_queries(texts)
        calibrated = self.strength != 0.0 and bool(self.language_means.means)
        if calibrated or self._has_language_vectors():
            asked = list(resolve_languages(texts, asked))
        if calibrated:
            vectors = calibrate(
                vectors,
                langs=asked,
                table=self.language_means,
                strength=self.strength,
                normalize=self.encoder.facts.normalize,
            )
        langs = tuple(lang or "" for lang in asked)
        using = tuple(map(self._vector_of, langs))
        return EncodedQueries(vectors, langs, CALIBRATED_EF if calibrated else None, using, tuple(texts))

    def _has_language_vectors(self) -> bool:
        return bool(self._names - {TEXT_DENSE, TEXT_DENSE_PLAIN, TEXT_DENSE_MAXSIM})

    def _vector_of(self, lang: str) -> str:
        """The multivector, or that of the question's language, where there is one; the general one serves the rest."""
        if TEXT_DENSE_MAXSIM in self._names:
            return TEXT_DENSE_MAXSIM
        own = language_vector(lang)
        return own if own in self._names else TEXT_DENSE


class Retriever:
    """Searches one collection with the encoder that made it; threads may share it.

    calibration: λ, None for what the collection's card recommends, 0 to switch it off.
    hybrid: search the words as well (BM25) and fuse the two rankings (`rank_fusion`); scores are then the fused ones.
    expander: what to search with in place of a question. reranker: orders the hits anew.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints, and for `hybrid` when
    it was not loaded for that.
    """

    def __init__(
        self,
        encoder: CalibratedEncoder,
        collection: Collection,
        *,
        calibration: float | None = None,
        hybrid: bool = False,
        expander: QuestionExpander | None = None,
        reranker: HitReranker | None = None,
    ) -> None:
        self.encoder = encoder
        self.collection = collection
        self.query_encoder = QueryEncoder(encoder, collection=collection, calibration=calibration)
        self.expander = expander
        self.reranker = reranker
        self._words = None
        if hybrid:
            settings = check_hybrid(collection.card, name=collection.name)
            from xqg_vdb.collection.bm25 import WordWriter  # brings the embedded engine

            self._words = WordWriter(settings)

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
        wanted = passage_languages(langs)
        asked = self.encode(queries)
        look_ups = self.look_ups(asked, k=k)
        found = [
            self.collection.search(one.questions, k=one.k, langs=wanted, using=one.using, exact=exact, ef=one.breadth)
            for one in look_ups
        ]
        return self.answers(queries, asked, look_ups, found, k=k)

    def encode(self, queries: Sequence[Query]) -> EncodedQueries:
        """The first step of `run`: one row per question, the mean over its wordings when there is an expander."""
        if self.expander is None:
            return self.query_encoder.encode(queries)
        _refuse_blank(queries)
        wordings = self.expander.expand(queries)
        flat = self.query_encoder.encode([one for several in wordings for one in several])
        starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
        rows = np.add.reduceat(flat.vectors, starts) / np.array([[len(several)] for several in wordings], np.float32)
        if self.encoder.facts.normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return EncodedQueries(
            np.asarray(rows, dtype=np.float32),
            tuple(flat.langs[start] for start in starts),
            flat.breadth,
            tuple(flat.using[start] for start in starts),
            tuple("\n".join(one.text for one in several) for several in wordings),
        )

    def look_ups(self, asked: EncodedQueries, *, k: int) -> list[LookUp]:
        """What to ask the collection: one call per vector that questions search by, and one for the words of all."""
        wanted = self._depth(k)
        depth = wanted if self._words is None or k < 1 else max(wanted, DEPTH)
        calls = []
        for using in sorted(set(asked.using)):
            rows = [row for row, own in enumerate(asked.using) if own == using]
            calls.append(LookUp(using, rows, asked.vectors[rows], depth, asked.breadth))
        if self._words is not None:
            words = [self._words.question(text) for text in asked.texts]
            rows = [row for row, own in enumerate(words) if len(own.indices)]
            if rows:
                calls.append(LookUp(TEXT_SPARSE, rows, [words[row] for row in rows], depth, None))
        return calls

    def answers(
        self,
        queries: Sequence[Query],
        asked: EncodedQueries,
        look_ups: Sequence[LookUp],
        found: Sequence[Sequence[Sequence[Hit]]],
        *,
        k: int,
    ) -> list[Answer]:
        """The last step of `run`: each question's hits, fused when it is hybrid, reranked when asked for, cut to k."""
        rankings: list[list[Sequence[Hit]]] = [[] for _ in queries]
        for one, hits in zip(look_ups, found, strict=True):
            for row, own in zip(one.rows, hits, strict=True):
                rankings[row].append(own)
        if self._words is None:
            merged = [several[0] for several in rankings]
        else:
            merged = [fuse_ranks(several, k=self._depth(k)) for several in rankings]
        return self._ranked(queries, asked, merged, k=k)

    def _depth(self, k: int) -> int:
        """How many hits are wanted of the search when k are wanted in the end."""
        return k if self.reranker is None or k < 1 else max(k, self.reranker.depth)

    def _ranked(
        self, queries: Sequence[Query], asked: EncodedQueries, found: Sequence[Sequence[Hit]], *, k: int
    ) -> list[Answer]:
        ranked = found if self.reranker is None else list(map(self.reranker.rerank, queries, found))
        return [
            Answer(query, lang, tuple(hits[:k])) for query, lang, hits in zip(queries, asked.langs, ranked, strict=True)
        ]


def passage_languages(langs: Sequence[str] | None) -> list[str] | None:
    """The codes under which passages in `langs` are stored, None for all.

    Raises DataError for a bare string, an empty list, and what is no language code.
    """
    check_langs(langs)
    return None if langs is None else [normalize(code) for code in langs]


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
