"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

`Retriever` and its asynchronous twin differ in who waits: the steps between the calls are the same functions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, calibrate, resolve_languages, unpack_means
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store.layout import TEXT_SPARSE, Moved, check_hybrid, check_langs, check_wanted
from xqg_vdb.texts.languages import normalize
from xqg_vdb.types import Card, Hit, Question, QuestionRows, Search, Vectors

if TYPE_CHECKING:
    from xqg_vdb.search.collection import Collection
    from xqg_vdb.store.bm25 import WordWriter

T = TypeVar("T")

MOST_MOVES = 5
"""Times that a run begins anew because its version was replaced and deleted meanwhile."""

CONSTANT = 60  # of reciprocal rank fusion
DEPTH = 100
"""Hits of each ranking that take part in a fusion, or k where that is more."""


@dataclass(frozen=True, slots=True)
class EncodedQuestions:
    """Questions ready for a search.

    vectors: float32 (n, dim). langs: per question the language that it was calibrated for; "" when it was not and none
    was given.
    texts: per question what its words are taken from.
    """

    vectors: Vectors
    langs: tuple[str, ...]
    texts: tuple[str, ...]


class QuestionEncoder:
    """Questions into calibrated vectors, for one collection or for any that the encoder made.

    encoder: ready, or its folder or name.
    collection: whose calibration to use: its card's λ and the language means that it measured itself; without one,
    the encoder's own. calibration: λ in place of either, 0 to switch it off.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints.
    """

    def __init__(
        self,
        encoder: CalibratedEncoder | str | Path,
        *,
        collection: Collection | None = None,
        calibration: float | None = None,
    ) -> None:
        self.encoder = encoder = ready_encoder(encoder)
        self.language_means = encoder.language_means
        recommended = encoder.calibration
        if collection is not None:
            card = collection.card
            check_same_encoder(encoder, card, name=collection.name.partition("@")[0])
            self.language_means = collection_means(encoder, card)
            recommended = card.calibration
        self.strength = recommended if calibration is None else calibration

    def encode(self, questions: Sequence[Question]) -> EncodedQuestions:
        """The rows for the questions, in input order, each calibrated for its language; detected when not given.

        Raises DataError for a blank question and for what is no language code.
        """
        questions = as_questions(questions)
        langs = [None if question.lang is None else normalize(question.lang) for question in questions]
        texts = [question.text for question in questions]
        vectors = self.encoder.encode_queries(texts, calibrate=False)
        calibrated = self.strength != 0.0 and bool(self.language_means.means)
        if calibrated:
            langs = list(resolve_languages(texts, langs))
            unit, table = self.encoder.facts.normalize, self.language_means
            vectors = calibrate(vectors, langs=langs, table=table, strength=self.strength, normalize=unit)
        return EncodedQuestions(vectors, tuple(lang or "" for lang in langs), tuple(texts))


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


def ready_encoder(encoder: CalibratedEncoder | str | Path) -> CalibratedEncoder:
    """The encoder, opened when it is a folder or a name. Raises DataError for what is neither."""
    if isinstance(encoder, str | Path):
        from xqg_vdb.models.encoder import Encoder  # brings onnxruntime

        return Encoder(encoder)
    if not hasattr(encoder, "encode_queries"):
        raise DataError(f"An encoder is needed (such as Encoder('starter') or its name), found {encoder!r:.80}.")
    return encoder


def as_questions(asked: Sequence[Question | str]) -> list[Question]:
    """Questions; plain texts get their place in the list as an id. Raises DataError for a blank one and no text."""
    if isinstance(asked, str | Question):
        raise DataError(f"Give a list of questions, not one: [{asked!r:.60}].")
    questions = [one if isinstance(one, Question) else Question(str(row), one) for row, one in enumerate(asked)]
    for question in questions:
        if not isinstance(question.text, str):
            raise DataError(f"A question is a text, found {question.text!r:.60}; `run` takes a list of several.")
        if not question.text.strip():
            raise DataError(f"Question {question.id!r} is blank: there is nothing to search for.")
    return questions


def passage_languages(langs: Sequence[str] | None) -> list[str] | None:
    """The codes under which passages in `langs` are stored, None for all.

    Raises DataError for a bare string, an empty list, and what is no language code.
    """
    check_langs(langs)
    return None if langs is None else [normalize(code) for code in langs]


def fuse_ranks(rankings: Sequence[Sequence[Hit]], *, k: int) -> list[Hit]:
    """The k best of rankings that are ordered by score, then id, by reciprocal rank fusion, with the fused scores."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1.0 / (CONSTANT + rank)
            hits.setdefault(hit.id, hit)
    best = sorted(scores, key=lambda docid: (-scores[docid], docid))[:k]
    return [replace(hits[docid], score=scores[docid]) for docid in best]


class QuestionExpander(Protocol):
    """Says what to search with in place of a question (`expand.Expander`)."""

    def expand(self, questions: Sequence[Question]) -> list[tuple[Question, ...]]:
        """Per question one wording or more; the mean of their vectors is searched. `lang` None is detected."""
        ...


class HitReranker(Protocol):
    """Orders the hits of questions anew (`rerank.Reranker`). depth: how many hits it wants of each."""

    depth: int

    def rerank_all(
        self, questions: Sequence[Question], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
    ) -> list[list[Hit]]:
        """Per question the same hits, best first."""
        ...


@dataclass(frozen=True, slots=True)
class LookUp:
    """One call of a collection's search: `rows` says which questions `asked` are the vectors or words of."""

    rows: list[int]
    asked: QuestionRows
    search: Search


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    question: Question
    lang: str
    hits: tuple[Hit, ...]


class Retriever:
    """Searches one collection with the encoder that made it; threads may share it.

    encoder: ready, or its folder or name.
    calibration: λ, None for what the collection's card recommends, 0 to switch it off.
    hybrid: search the words as well (BM25) and fuse the two rankings; scores are then the fused ones.
    expander: what to search with in place of a question. reranker: orders the hits anew.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints, and for `hybrid` when
    it was not loaded for that.
    """

    def __init__(
        self,
        encoder: CalibratedEncoder | str | Path,
        collection: Collection,
        *,
        calibration: float | None = None,
        hybrid: bool = False,
        expander: QuestionExpander | None = None,
        reranker: HitReranker | None = None,
    ) -> None:
        if not hasattr(collection, "nearest"):
            raise DataError(f"Retriever(encoder, collection) needs Collection.open(…), found {collection!r:.80}.")
        self.encoder = ready_encoder(encoder)
        self.collection = collection
        self.expander = expander
        self.reranker = reranker
        self._calibration = calibration
        self._hybrid = hybrid
        self._words: WordWriter | None = None
        self._version: str | None = None
        self.bind()

    def bind(self) -> Collection:
        """The version that is published now: a run asks that one all along, with the calibration of its card.

        Raises MismatchError when a load with another encoder has been published meanwhile.
        """
        version = self.collection.version
        bound = self.collection.at(version)
        if version != self._version:
            self.question_encoder = QuestionEncoder(self.encoder, collection=bound, calibration=self._calibration)
            if self._hybrid:
                from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

                self._words = WordWriter(check_hybrid(bound.card, name=self.collection.name))
            self._version = version
        return bound

    def __repr__(self) -> str:
        extras = {"hybrid": self._words, "expander": self.expander, "reranker": self.reranker}
        with_extras = "".join(f", {name}" for name, extra in extras.items() if extra is not None)
        return f"Retriever({self.encoder!r}, {self.collection!r}, λ={self.question_encoder.strength:g}{with_extras})"

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        where: Any = None,
        offset: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question, by score, then id.

        passage_langs: only passages in these languages. question_lang: the question's own; detected when not given.
        where: only passages whose fields say so, `{"source": "wiki", "year": {"gte": 2020}}` or Qdrant's
        `models.Filter` (`store.filters`). offset: leave out so many of the best, for the next page.
        """
        search = Search(k, passage_langs, exact=exact, where=where, offset=offset)
        return list(self.run([Question("0", text, question_lang)], search)[0].hits)

    def run(
        self, questions: Sequence[Question | str], search: Search | None = None, *, progress: Progress = silent
    ) -> list[Answer]:
        """The best passages for each question, in input order; plain texts are questions, too.

        progress: told how far the reranker is, the only slow step; ask it about many questions together, because it
            reads each passage once.
        Raises DataError for a blank question and for what is no language code.
        """
        questions, search = as_questions(questions), search or Search()
        if not questions:
            return []
        for last in range(MOST_MOVES):
            bound = self.bind()
            encoded, calls = self.prepare(questions, search)
            try:
                hits = [bound.nearest(call.asked, call.search) for call in calls]
            except Moved:  # its version was replaced and deleted: all of it again, of the next one
                if last == MOST_MOVES - 1:
                    raise
                continue
            break
        return self.answers(questions, encoded, calls, hits, search=search, progress=progress)

    def encode(self, questions: Sequence[Question]) -> EncodedQuestions:
        """One row per question, the mean over its wordings when there is an expander."""
        if self.expander is None:
            return self.question_encoder.encode(questions)
        wordings = self.expander.expand(questions)
        flat = self.question_encoder.encode([wording for several in wordings for wording in several])
        starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
        return EncodedQuestions(
            mean_rows(flat.vectors, starts, normalize=self.encoder.facts.normalize),
            tuple(flat.langs[start] for start in starts),
            tuple("\n".join(wording.text for wording in several) for several in wordings),
        )

    def prepare(self, questions: Sequence[Question], search: Search) -> tuple[EncodedQuestions, list[LookUp]]:
        """Before the look-ups: the questions' vectors, and what to ask: these, and the words of those that have any."""
        check_wanted(search)
        search = replace(search, passage_langs=passage_languages(search.passage_langs))
        encoded, k = self.encode(questions), self._wanted(search)
        depth = k if self._words is None else max(k, DEPTH)
        dense = replace(search, k=depth, offset=0)
        calls = [LookUp(list(range(len(questions))), encoded.vectors, dense)]
        if self._words is not None:
            words = [self._words.question(text) for text in encoded.texts]
            rows = [row for row, own in enumerate(words) if len(own.indices)]
            if rows:
                sparse = replace(dense, using=TEXT_SPARSE)
                calls.append(LookUp(rows, [words[row] for row in rows], sparse))
        return encoded, calls

    def answers(
        self,
        questions: Sequence[Question],
        encoded: EncodedQuestions,
        calls: Sequence[LookUp],
        found: Sequence[Sequence[Sequence[Hit]]],
        *,
        search: Search,
        progress: Progress = silent,
    ) -> list[Answer]:
        """After the look-ups: each question's hits, fused when it is hybrid, reranked when asked for, cut to a page."""
        rankings: list[list[Sequence[Hit]]] = [[] for _ in questions]
        for call, by_row in zip(calls, found, strict=True):
            for row, hits in zip(call.rows, by_row, strict=True):
                rankings[row].append(hits)
        merged: Sequence[Sequence[Hit]]
        if self._words is None:
            merged = [several[0] for several in rankings]
        else:
            merged = [fuse_ranks(several, k=self._wanted(search)) for several in rankings]
        if self.reranker is not None:
            merged = self.reranker.rerank_all(questions, merged, progress=progress)
        each = zip(questions, encoded.langs, merged, strict=True)
        page = slice(search.offset, search.offset + search.k)
        return [Answer(question, lang, tuple(hits[page])) for question, lang, hits in each]

    def _wanted(self, search: Search) -> int:
        """How many hits are needed for the page that is wanted in the end."""
        last = search.offset + search.k
        return last if self.reranker is None else max(last, self.reranker.depth)


class AsyncRetriever:
    """`Retriever` for coroutines; an asynchronous context manager. May be used in several event loops, one by one.

    Encoding runs on worker threads, off the event loop; a server is asked by an asynchronous client, the embedded
    engine on the same threads. Every question is a batch of its own: encoding those of several callers together brings
    nothing on a CPU (`benchmarks/async_search.py`), and an int8 graph rounds a text by its neighbours in the batch, so
    that a question's hits would depend on what others ask at the moment.

    threads: questions that are encoded side by side, each on one core; by default as many as there are cores.
    """

    def __init__(self, retriever: Retriever, *, threads: int | None = None) -> None:
        if not isinstance(retriever, Retriever):
            raise DataError(f"AsyncRetriever needs a Retriever(encoder, collection), found {retriever!r:.80}.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
        self.retriever = retriever
        make = getattr(retriever.collection.store, "async_search", None)  # of a server's store alone
        self._server = None if make is None else make()
        self._pool = ThreadPoolExecutor(max_workers=threads or os.cpu_count() or 1, thread_name_prefix="xqg-async")

    def __repr__(self) -> str:
        return f"Async{self.retriever!r}"

    async def __aenter__(self) -> AsyncRetriever:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def search(
        self,
        text: str,
        *,
        k: int = 10,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        where: Any = None,
        offset: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question; see `Retriever.search`."""
        search = Search(k, passage_langs, exact=exact, where=where, offset=offset)
        return list((await self.run([Question("0", text, question_lang)], search))[0].hits)

    async def run(self, questions: Sequence[Question | str], search: Search | None = None) -> list[Answer]:
        """The best passages for each question, in input order; see `Retriever.run`."""
        retriever, questions, search = self.retriever, as_questions(questions), search or Search()
        if self._server is None or not questions:
            return await self._in_thread(partial(retriever.run, questions, search))
        for last in range(MOST_MOVES):
            name = (await self._in_thread(retriever.bind)).name
            encoded, calls = await self._in_thread(partial(retriever.prepare, questions, search))
            try:
                found = await asyncio.gather(*(self._server.search(name, call.asked, call.search) for call in calls))
            except Moved:
                if last == MOST_MOVES - 1:
                    raise
                continue
            break
        finish = partial(retriever.answers, questions, encoded, calls, found, search=search)
        return finish() if retriever.reranker is None else await self._in_thread(finish)

    async def aclose(self) -> None:
        """Close this event loop's connections and stop the threads; the retriever that was given stays open."""
        if self._server is not None:
            await self._server.aclose()
        await asyncio.to_thread(self._pool.shutdown)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
