"""LangChain, LlamaIndex and Haystack: thin wrappers round a ready encoder or retriever, a module and an extra for each.

Every module has the same things: an embedder whose questions are calibrated, for the framework's own Qdrant store; a
retriever that does the whole search; a store, which writes, too; and `language_filter`, which says "only passages in
these languages" in the framework's words. No framework is imported here, so that one does not need the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np
from qdrant_client import models

from xqg_vdb.errors import DataError, LockedError
from xqg_vdb.index.load import load
from xqg_vdb.search import QuestionEncoder
from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
from xqg_vdb.store.layout import point_id
from xqg_vdb.store.operations import finish, here
from xqg_vdb.texts.records import has_content
from xqg_vdb.types import UNKNOWN_LANGUAGE, Hit, Passage, Question, Search

_log = logging.getLogger(__name__)
_AT_ONCE, _CHUNKS_AT_ONCE = 1000, 16  # passages that are looked up together; of each document


def question_vector(encoder: QuestionEncoder, text: str, question_lang: str | None) -> list[float]:
    """The calibrated vector of one question. Raises DataError when it is blank."""
    vector: list[float] = encoder.encode([Question("0", text, question_lang)])[0][0].tolist()
    return vector


def search_options(*given: Any, default: tuple[Any, ...]) -> dict[str, Any]:
    """k, passage_langs, question_lang and where of a search: as a call says, else as its retriever was made."""
    names = ("k", "passage_langs", "question_lang", "where")
    return {
        name: otherwise if value is None else value
        for name, value, otherwise in zip(names, given, default, strict=True)
    }


def metadata_of(hit: Hit, *, known: bool = False) -> dict[str, Any]:
    """What frameworks keep beside a text: the passage's other fields, its language and its title.

    known: leave these two out where there is none, so that what a framework wrote comes back as it was.
    """
    told = {"lang": hit.lang, "title": hit.title}
    unsaid = {name for name, text in told.items() if known and text in ("", UNKNOWN_LANGUAGE)}
    span = {} if hit.span is None else {"span": list(hit.span)}
    return {**hit.meta, **span, **{name: text for name, text in told.items() if name not in unsaid}}


def passage_of(docid: str, text: str, metadata: Mapping[str, Any]) -> Passage:
    """The passage of a framework's document; `lang` and `title` of its metadata are the passage's own."""
    meta = dict(metadata)
    title, lang = meta.pop("title", None) or "", meta.pop("lang", None) or UNKNOWN_LANGUAGE
    return Passage(docid, text, title=str(title), lang=str(lang), meta=meta)


def on_a_thread(method: Any) -> Any:
    """A method that is called without keywords, for coroutines, on a worker thread: what writes encodes."""

    @wraps(method)
    async def run(*arguments: Any) -> Any:
        return await asyncio.to_thread(method, *arguments)

    return run


class Documents:
    """A collection that a framework writes into: the first documents make it, the next ones change it.

    collection: `Collection(name, open_store(…), encoder=…)`, which need not be there yet; where it is, its card says
    how to encode what is added. Generated queries come by `load` and `Collection.add`. Threads may share it.
    """

    def __init__(self, collection: Collection) -> None:
        if not isinstance(collection, Collection):
            raise DataError(f"A Collection(name, open_store(…), encoder=…) is needed, found {collection!r:.80}.")
        self.collection = collection
        self._making = threading.Lock()
        self._asked: AsyncRetriever | None = None
        make = getattr(collection.store, "async_search", None)  # of a server's store alone
        self._server = None if make is None else make()

    def asked(self) -> AsyncRetriever | None:
        """What its questions are asked of; None as long as there is no collection."""
        if self._asked is None and self.collection.name in self.collection.store.names():
            self._asked = AsyncRetriever(Retriever(self.collection.encoder, self.collection))
        return self._asked

    def add(self, passages: Iterable[Passage]) -> None:
        """Add passages, or replace those of their ids; of several with one id, the last. Raises like `load`.

        Blank ones, as an empty file makes them, are left out, and what had their ids is deleted: nothing finds them.
        """
        given = {passage.id: passage for passage in passages}
        last = [passage for passage in given.values() if has_content(passage.text)]
        into = self.collection
        if blank := [passage.id for passage in given.values() if not has_content(passage.text)]:
            _log.warning("%d blank documents are left out, the first %r", len(blank), blank[0])
            self.delete(blank)
        if not last:
            return
        with self._making:
            for _ in range(60):
                if self.asked() is not None:
                    break
                try:
                    load(last, into.name, encoder=into.encoder, store=into.store)
                    return
                except LockedError:  # another process makes it, or has just made it
                    time.sleep(0.5)
        into.add(last)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages, or documents with all their chunks; those that are not there are no error."""
        if self.asked() is not None:
            self.collection.delete(ids)

    def delete_matching(self, where: models.Filter) -> None:
        """Delete what a filter lets through."""
        while gone := [hit.id for hit in finish(self.matching(where, most=_AT_ONCE))]:
            self.delete(gone)

    def count(self) -> int:
        """How many passages, or documents, there are."""
        there = self.asked() is not None
        return self.collection.count() if there and not self.collection.card.chunk else len(self.ids())

    def ids(self) -> list[str]:
        """The id of every passage, or document."""
        points = [] if self.asked() is None else self.collection.scroll()
        return list(dict.fromkeys(str(point.payload.get("id", point.id)) for point in points))

    def with_ids(self, ids: Iterable[str]) -> models.Condition:
        """Only passages, or documents, with these ids."""
        if self.asked() is not None and self.collection.card.chunk:
            return models.FieldCondition(key="id", match=models.MatchAny(any=list(ids)))
        return models.HasIdCondition(has_id=[str(point_id(str(docid))) for docid in ids])

    # For coroutines, too: `aside` a server is asked by an asynchronous client, and else all of it is on a thread.

    async def nearest(self, vector: Sequence[float], search: Search, *, aside: bool = False) -> list[Hit]:
        """The k best passages for one vector."""
        row, (wait, server) = np.asarray(vector, np.float32)[None], self._way(aside)
        if await wait(self.asked) is None:
            return []
        if server is None:
            return list((await wait(partial(self.collection.nearest, row, search)))[0])
        return list((await server.searches(self.collection.name, [(row, search)]))[0][0])

    async def search(self, question: Question, search: Search, *, aside: bool = False) -> list[Hit]:
        """The k best passages for one question."""
        asked = await self._way(aside)[0](self.asked)
        if asked is None:
            return []
        return list((await asked.run([question], search) if aside else asked.retriever.run([question], search))[0].hits)

    async def matching(self, where: Any, *, most: int, aside: bool = False) -> list[Hit]:
        """Up to so many passages, or documents, that a filter lets through, or that there are, in no order."""
        search = Search(most, where=where, exact=True)
        hits = await self.nearest([1.0] * self.collection.encoder.facts.dim, search, aside=aside)
        return await self.get((hit.id for hit in hits), aside=aside) if any(hit.span for hit in hits) else hits

    async def get(self, ids: Iterable[str], *, aside: bool = False) -> list[Hit]:
        """Those of the passages, or whole documents, that are there, in the order of their ids."""
        # the chunks of a document are numbered: as long as the last that was asked for is there, there may be more
        wait, server = self._way(aside)
        if await wait(self.asked) is None:
            return []
        store, name, docids = self.collection.store, self.collection.name, list(dict.fromkeys(map(str, ids)))

        async def fetched(points: Iterable[str]) -> dict[str, Hit]:
            call = wait(partial(store.fetch, name, points)) if server is None else server.fetch(name, points)
            return dict(await call)

        if not (await wait(partial(store.card, name))).chunk:
            points = [str(point_id(docid)) for docid in docids]
            found = await fetched(points)
            return [found[point] for point in points if point in found]
        parts: dict[str, list[Hit]] = {docid: [] for docid in docids}
        first, longer = 0, docids
        while longer:
            numbers = range(first, first + _CHUNKS_AT_ONCE)
            named = {str(point_id(f"{docid}#{number}")): docid for docid in longer for number in numbers}
            for point, hit in (await fetched(named)).items():
                parts[named[point]].append(hit)
            first += _CHUNKS_AT_ONCE
            longer = [docid for docid in longer if len(parts[docid]) == first]
        return [_whole(hits) for hits in parts.values() if hits]

    def _way(self, aside: bool) -> tuple[Any, Any]:
        return (asyncio.to_thread, self._server) if aside else (here, None)


def _whole(chunks: Sequence[Hit]) -> Hit:
    """A document from all its chunks, which may overlap; what stood between two of them was blank."""
    text, end = "", 0
    for chunk in sorted(chunks, key=lambda hit: hit.span or (0, 0)):
        start, stop = chunk.span or (0, len(chunk.text))
        text += " " * bool(text and start > end) + chunk.text[max(end - start, 0) :]
        end = max(end, stop)
    return replace(chunks[0], text=text, span=None)
