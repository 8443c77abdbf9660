"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

A `Collection` is a name in a store with the encoder of its questions. `Retriever` has what a search can do besides; its
asynchronous twin differs in who waits: the steps before and after the look-ups are the same functions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import mean_rows
from xqg_vdb.models.folder import folder_of
from xqg_vdb.progress import Progress, per_process, silent, traced
from xqg_vdb.search import QuestionEncoder, as_questions, named, passage_languages, ready_encoder
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import DEPTH, TEXT_SPARSE, Moved, check_hybrid, check_wanted, contenders, fuse_points
from xqg_vdb.store.operations import Store, finish, here
from xqg_vdb.texts.records import Rejects, expect
from xqg_vdb.texts.tables import Records
from xqg_vdb.types import Card, Hit, Question, QuestionRows, Search, StoredPoint, UpdateReport, Vectors

if TYPE_CHECKING:
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker
    from xqg_vdb.store.bm25 import WordWriter

T = TypeVar("T")

MOST_MOVES = 5
"""Times that a run begins anew because its version was replaced and deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    question: Question
    lang: str
    hits: tuple[Hit, ...]


class _Asked:
    """What answers several questions answers one."""

    def run(self, questions: Sequence[Question | str], search: Search | None = None) -> list[Answer]:
        """The best passages for each question, in input order."""
        raise NotImplementedError

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


class Collection(_Asked, AbstractContextManager["Collection"]):
    """One published collection of a store. A context manager that closes the store.

    encoder: ready, or its folder or name; without one, `search` opens the encoder that the card names.
    """

    def __init__(self, name: str, store: Store, *, encoder: TextEncoder | str | Path | None = None) -> None:
        if not hasattr(store, "search"):
            raise DataError(
                f"Collection(name, store) needs an open store, found {store!r:.80}: write Collection.open({name!r:.80},"
                " path=…) or (…, url=…)."
            )
        self.name = name
        self.store = store
        self._encoder = encoder

    @classmethod
    def open(
        cls,
        name: str,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
        encoder: TextEncoder | str | Path | None = None,
    ) -> Collection:
        """The collection `name` in the folder `path` or on the server at `url`; see `open_store` for what is not given.

        Raises DataError when there is none of that name; LockedError when another process reads the folder, so that a
        second worker of a service is refused at its start.
        """
        store = open_store(path, url=url, api_key=api_key)
        try:
            store.card(name)
            store.version(name)
        except BaseException:
            store.close()
            raise
        return cls(name, store, encoder=encoder)

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {self.store!r})"

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def card(self) -> Card:
        """Who made its vectors and how; read anew each time, because a load may publish another version."""
        return self.store.card(self.name)

    @property
    def version(self) -> str:
        """Which version searches see now, such as v0003; "" where it has none."""
        return self.store.version(self.name)

    def at(self, version: str) -> Collection:
        """The same, bound to one version: its searches raise `Moved` when that one is gone."""
        return Collection(f"{self.name.partition('@')[0]}@{version}", self.store) if version else self

    @cached_property
    def encoder(self) -> TextEncoder:
        """What its questions are encoded with. Raises ModelError when none was given and the card's cannot be found."""
        return ready_encoder(self._encoder or folder_of(self.card.encoder, collection=self.name))

    @cached_property
    def _retriever(self) -> Retriever:
        return Retriever(self.encoder, self)

    def run(self, questions: Sequence[Question | str], search: Search | None = None) -> list[Answer]:
        """The best passages for each of several questions, encoded together; see `Retriever.run`."""
        return self._retriever.run(questions, search)

    def nearest(self, questions: QuestionRows, search: Search | None = None) -> list[list[Hit]]:
        """The k best for each row, by score, then id."""
        return self.store.search(self.name, questions, search or Search())

    def count(self, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of passages, of those languages when given."""
        return self.store.count(self.name, passage_langs=passage_langs)

    def scroll(self, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point, in the engine's order."""
        return self.store.scroll(self.name, with_vectors=with_vectors)

    def add(
        self,
        passages: str | os.PathLike[str] | Records,
        *,
        queries: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Records | None = None,
        rejects: Rejects | None = None,
    ) -> UpdateReport:
        """Add passages, or replace those of their ids, by the collection's own card; see `index.update.add`."""
        update = import_module("xqg_vdb.index.update")  # which stands above this folder
        report: UpdateReport = update.add(
            passages, self.name, encoder=self.encoder, store=self.store, queries=queries, rejects=rejects
        )
        return report

    def delete(self, ids: Iterable[str]) -> UpdateReport:
        """Delete passages; ids that are not there are reported, and no error."""
        report: UpdateReport = import_module("xqg_vdb.index.update").delete(ids, self.name, store=self.store)
        return report

    def close(self) -> None:
        """Close the store, and the encoder if it was opened here."""
        self.store.close()
        opened = self.__dict__.get("encoder")
        if opened is not None and opened is not self._encoder:
            opened.close()


class Retriever(_Asked):
    """Searches one collection with the encoder that made it; threads may share it.

    encoder: ready, or its folder or name.
    calibration: λ, None for what the collection's card recommends, 0 to switch it off.
    hybrid: search the words as well (BM25) and fuse the two rankings; scores are then the fused ones.
    expander: what to search with in place of a question. reranker: orders the hits anew.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints, and for `hybrid` when
    it was not loaded for that.
    """

    def __init__(
        self, encoder: TextEncoder | str | Path, collection: Collection, *, calibration: float | None = None,
        hybrid: bool = False, expander: Expander | None = None, reranker: Reranker | None = None,
    ) -> None:  # fmt: skip
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
        self._bind(collection.version)

    def _bind(self, version: str) -> Collection:
        """The version that is published now: a run asks that one all along, with the calibration of its card.

        Raises MismatchError when a load with another encoder has been published meanwhile.
        """
        bound = self.collection.at(version)
        if version != self._version:
            self.question_encoder = QuestionEncoder(self.encoder, collection=bound, calibration=self._calibration)
            self._per_document = 4 if bound.card.chunk else 1
            if self._hybrid:
                from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

                self._words = WordWriter(check_hybrid(bound.card, name=self.collection.name))
            self._version = version
        return bound

    def __repr__(self) -> str:
        extras = {"hybrid": self._words, "expander": self.expander, "reranker": self.reranker}
        with_extras = "".join(f", {name}" for name, extra in extras.items() if extra is not None)
        return f"Retriever({self.encoder!r}, {self.collection!r}, λ={self.question_encoder.strength:g}{with_extras})"

    def run(
        self, questions: Sequence[Question | str], search: Search | None = None, *, progress: Progress = silent
    ) -> list[Answer]:
        """The best passages for each question, in input order; plain texts are questions, too.

        progress: told how far the reranker is, the only slow step; ask it about many questions together, because it
            reads each passage once.
        Raises DataError for a blank question and for what is no language code.
        """
        store = self.collection.store

        async def look(call: Callable[[Any], Any]) -> Any:
            return call(store)

        return finish(self.steps(questions, search, look=look, progress=progress))

    async def steps(
        self, asked: Sequence[Question | str], search: Search | None, *,
        look: Callable[[Callable[[Any], Any]], Awaitable[Any]],
        work: Callable[[Callable[[], Any]], Awaitable[Any]] = here, progress: Progress = silent,
    ) -> list[Answer]:  # fmt: skip
        """`run`. look: makes a call to the store, or to its twin for coroutines; work: computes, here or beside."""
        questions, search = as_questions(asked), Search() if search is None else search
        expect("search", search, Search, "a Search, such as Search(k=5)")
        if not questions:
            return []
        facts = {"collection": self.collection.name, "questions": len(questions), "k": search.k}
        with traced("search", {**facts, "lambda": self.question_encoder.strength}) as noted:
            for left in reversed(range(MOST_MOVES)):
                version = await look(methodcaller("version", self.collection.name))
                name, langs, calls, spoken = await work(partial(self._prepare, version, questions, search))
                noted["lang"], known = named(langs), dict[str, Hit | None]()
                try:
                    hits = await look(methodcaller("searches", name, calls))
                    words = dict(zip(spoken, hits[-1], strict=True)) if spoken else {}
                    rankings = [[ranking, *filter(None, [words.get(row)])] for row, ranking in enumerate(hits[0])]
                    while wanted := self._unknown(rankings, known, search):
                        found = await look(methodcaller("fetch", name, wanted))
                        known |= wanted | found
                        if len(found) == len(wanted):
                            break
                    break
                except Moved:  # its version was replaced and deleted: all of it again, of the next one
                    if not left:
                        raise
            answers = partial(self._answers, questions, langs, rankings, known, search=search, progress=progress)
            answered: list[Answer] = answers() if self.reranker is None else await work(answers)
            return answered

    def encode(self, questions: Sequence[Question]) -> tuple[Vectors, list[str], list[str]]:
        """Per question its row, the mean over its wordings when there is an expander; its language; its words."""
        if self.expander is None:
            rows, langs = self.question_encoder.encode(questions)
            return rows, langs, [question.text for question in questions]
        wordings = self.expander.expand(questions)
        rows, langs = self.question_encoder.encode([wording for several in wordings for wording in several])
        starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
        texts = ["\n".join(wording.text for wording in several) for several in wordings]
        rows = mean_rows(rows, starts, normalize=self.encoder.facts.normalize)
        return rows, [langs[start] for start in starts], texts

    def _prepare(
        self, version: str, questions: Sequence[Question], search: Search
    ) -> tuple[str, list[str], list[tuple[QuestionRows, Search]], list[int]]:
        """The name of the version, the questions' languages, and the look-ups: vectors, words of those with any."""
        check_wanted(search)
        search = replace(search, passage_langs=passage_languages(search.passage_langs))
        name, k = self._bind(version).name, self._wanted(search)
        rows, langs, texts = self.encode(questions)
        wanted = k if self._words is None else max(k, DEPTH)
        texts_at_once = not self._ids_first()
        dense = replace(search, k=wanted, offset=0, per_document=self._per_document, texts=texts_at_once)
        words = {row: self._words.question(text) for row, text in enumerate(texts)} if self._words else {}
        spoken = [row for row, tokens in words.items() if len(tokens.indices)]
        sparse = [([words[row] for row in spoken], replace(dense, using=TEXT_SPARSE))] if spoken else []
        return name, langs, [(rows, dense), *sparse], spoken

    def _unknown(
        self, rankings: Sequence[Sequence[Sequence[Hit]]], known: Mapping[str, Hit | None], search: Search
    ) -> dict[str, Hit | None]:
        """Between the look-ups, when it is hybrid: the points whose passages are still to be fetched, each as gone."""
        if not self._ids_first():
            return {}
        k = self._wanted(search)
        return {point: None for several in rankings for point in contenders(several, known, k=k)}

    def _answers(
        self, questions: Sequence[Question], langs: Sequence[str], rankings: Sequence[Sequence[Sequence[Hit]]],
        known: Mapping[str, Hit | None], *, search: Search, progress: Progress,
    ) -> list[Answer]:  # fmt: skip
        """After the look-ups: each question's hits, fused when it is hybrid, reranked when asked for, cut to a page."""
        hybrid, k = self._words is not None, self._wanted(search)
        merged = [fuse_points(several, known, k=k) if hybrid else list(several[0]) for several in rankings]
        if self.reranker is not None:
            facts = {"passages": sum(map(len, merged)), "depth": self.reranker.depth, "lang": named(langs)}
            with traced("rerank", facts):
                merged = list(self.reranker.rerank_all(questions, merged, progress=progress))
        page = slice(search.offset, search.offset + search.k)
        each = zip(questions, langs, merged, strict=True)
        return [Answer(question, lang, tuple(best[page])) for question, lang, best in each]

    def _ids_first(self) -> bool:
        """Rankings of a hundred for ten hits; of documents in chunks, the texts say what is of one document."""
        return self._words is not None and self._per_document == 1

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
        workers = threads or os.cpu_count() or 1
        self._pool = per_process(partial(ThreadPoolExecutor, workers, thread_name_prefix="xqg-async"))

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
        if self._server is None:
            return await self._in_thread(partial(self.retriever.run, questions, search))

        async def look(call: Callable[[Any], Awaitable[Any]]) -> Any:
            return await call(self._server)

        return await self.retriever.steps(questions, search, look=look, work=self._in_thread)

    async def add(
        self,
        passages: str | os.PathLike[str] | Records,
        *,
        queries: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Records | None = None,
        rejects: Rejects | None = None,
    ) -> UpdateReport:
        """`Collection.add` on a thread of its own, so that searches continue; cancelled, it still runs to its end."""
        of = self.retriever
        collection = Collection(of.collection.name, of.collection.store, encoder=of.encoder)
        return await asyncio.to_thread(partial(collection.add, passages, queries=queries, rejects=rejects))

    async def delete(self, ids: Iterable[str]) -> UpdateReport:
        """`Collection.delete`, in the same way."""
        return await asyncio.to_thread(self.retriever.collection.delete, ids)

    async def aclose(self) -> None:
        """Close this event loop's connections and stop the threads; the retriever that was given stays open."""
        if self._server is not None:
            await self._server.aclose()
        await asyncio.to_thread(self._pool().shutdown)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # with the caller's context: a trace continues in the thread
        return await asyncio.get_running_loop().run_in_executor(self._pool(), copy_context().run, call)
