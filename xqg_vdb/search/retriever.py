"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

In: an encoder and a collection that it made. Out: hits, best first, ties by id. This file refuses to know how either
works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, resolve_languages, unpack_means
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store import Collection
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_SPARSE, check_hybrid, check_langs
from xqg_vdb.texts.languages import normalize
from xqg_vdb.types import Card, Hit, Question, QuestionRows, Vectors

# Questions into calibrated vectors, each for its language.

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

    def encode(self, queries: Sequence[Question]) -> EncodedQueries:
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


def refuse_blank(queries: Sequence[Question]) -> None:
    """Raise DataError for the first question without text."""
    blank = next((query.id for query in queries if not query.text.strip()), None)
    if blank is not None:
        raise DataError(f"Question {blank!r} is blank: there is nothing to search for.")


# Reciprocal rank fusion: several rankings of one question into one.

CONSTANT = 60
DEPTH = 100
"""Hits of each ranking that take part, or k where that is more."""


def fuse_ranks(rankings: Sequence[Sequence[Hit]], *, k: int) -> list[Hit]:
    """The k best of rankings that are ordered by score, then id, with their fused scores."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1.0 / (CONSTANT + rank)
            hits.setdefault(hit.id, hit)
    best = sorted(scores, key=lambda docid: (-scores[docid], docid))[:k]
    return [replace(hits[docid], score=scores[docid]) for docid in best]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    query: Question
    lang: str
    hits: tuple[Hit, ...]


class QuestionExpander(Protocol):
    """Says what to search with in place of a question (`expansion.Expander`)."""

    def expand(self, queries: Sequence[Question]) -> list[tuple[Question, ...]]:
        """Per question one wording or more; the mean of their vectors is searched. `lang` None is detected."""
        ...


class HitReranker(Protocol):
    """Orders the hits of questions anew (`rerank.Reranker`). depth: how many hits it wants of each."""

    depth: int

    def rerank_all(
        self, queries: Sequence[Question], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
    ) -> list[list[Hit]]:
        """Per question the same hits, best first."""
        ...


@dataclass(frozen=True, slots=True)
class LookUp:
    """One call of a collection's search: the `questions` in `rows`, by the vector `using`, the `k` best of each."""

    using: str
    rows: list[int]
    questions: QuestionRows
    k: int
    breadth: int | None


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
            from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

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
        return list(self.run([Question("0", text, lang)], k=k, langs=langs, exact=exact)[0].hits)

    def run(
        self,
        queries: Sequence[Question],
        *,
        k: int = 10,
        langs: Sequence[str] | None = None,
        exact: bool = False,
        progress: Progress = silent,
    ) -> list[Answer]:
        """The k best passages for each question, in input order.

        progress: told how far the reranker is, the only slow step; ask it about many questions together, because it
            reads each passage once.
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
        return self.answers(queries, asked, look_ups, found, k=k, progress=progress)

    def encode(self, queries: Sequence[Question]) -> EncodedQueries:
        """The first step of `run`: one row per question, the mean over its wordings when there is an expander."""
        if self.expander is None:
            return self.query_encoder.encode(queries)
        refuse_blank(queries)
        wordings = self.expander.expand(queries)
        flat = self.query_encoder.encode([one for several in wordings for one in several])
        starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
        return EncodedQueries(
            mean_rows(flat.vectors, starts, normalize=self.encoder.facts.normalize),
            tuple(flat.langs[start] for start in starts),
            flat.breadth,
            tuple("\n".join(one.text for one in several) for several in wordings),
        )

    def look_ups(self, asked: EncodedQueries, *, k: int) -> list[LookUp]:
        """What to ask the collection: their vectors, and the words of those that have any."""
        wanted = self._depth(k)
        depth = wanted if self._words is None or k < 1 else max(wanted, DEPTH)
        calls = [LookUp(TEXT_DENSE, list(range(len(asked.vectors))), asked.vectors, depth, asked.breadth)]
        if self._words is not None:
            words = [self._words.question(text) for text in asked.texts]
            rows = [row for row, own in enumerate(words) if len(own.indices)]
            if rows:
                calls.append(LookUp(TEXT_SPARSE, rows, [words[row] for row in rows], depth, None))
        return calls

    def answers(
        self,
        queries: Sequence[Question],
        asked: EncodedQueries,
        look_ups: Sequence[LookUp],
        found: Sequence[Sequence[Sequence[Hit]]],
        *,
        k: int,
        progress: Progress = silent,
    ) -> list[Answer]:
        """The last step of `run`: each question's hits, fused when it is hybrid, reranked when asked for, cut to k."""
        rankings: list[list[Sequence[Hit]]] = [[] for _ in queries]
        for one, hits in zip(look_ups, found, strict=True):
            for row, own in zip(one.rows, hits, strict=True):
                rankings[row].append(own)
        merged: Sequence[Sequence[Hit]]
        if self._words is None:
            merged = [several[0] for several in rankings]
        else:
            merged = [fuse_ranks(several, k=self._depth(k)) for several in rankings]
        if self.reranker is not None:
            merged = self.reranker.rerank_all(queries, merged, progress=progress)
        return [
            Answer(query, lang, tuple(hits[:k])) for query, lang, hits in zip(queries, asked.langs, merged, strict=True)
        ]

    def _depth(self, k: int) -> int:
        """How many hits are wanted of the search when k are wanted in the end."""
        return k if self.reranker is None or k < 1 else max(k, self.reranker.depth)


def passage_languages(langs: Sequence[str] | None) -> list[str] | None:
    """The codes under which passages in `langs` are stored, None for all.

    Raises DataError for a bare string, an empty list, and what is no language code.
    """
    check_langs(langs)
    return None if langs is None else [normalize(code) for code in langs]
