"""Questions in, passages out, for coroutines: any number of searches at once share one encoder session.

In: a ready `Retriever`. Out: the same answers, awaited. Encoding runs on worker threads, off the event loop; a server
is asked by an asynchronous client, the embedded engine on the same threads.

Every question is a batch of its own. Encoding the questions of several callers together was measured and brings nothing
on a CPU (`benchmarks/async_search.py`), and an int8 graph rounds a text by its neighbours in the batch, so that a
question's hits would depend on what others ask at the moment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from xqg_vdb.search.retriever import Answer, Retriever, passage_languages
from xqg_vdb.types import Hit, Question, QuestionRows

T = TypeVar("T")


class AsyncSearch(Protocol):
    """The search of a store, for coroutines."""

    async def search(
        self,
        name: str,
        vectors: QuestionRows,
        *,
        k: int,
        langs: Sequence[str] | None,
        using: str,
        exact: bool,
        ef: int | None,
    ) -> list[list[Hit]]:
        """The k best per question, ordered by score, then id."""
        ...

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        ...


@runtime_checkable
class HasAsyncSearch(Protocol):
    """A store that can search for coroutines without a thread for each."""

    def async_search(self) -> AsyncSearch | None:
        """That search; None when this store has none after all."""
        ...


class AsyncRetriever:
    """`Retriever` for coroutines; an asynchronous context manager. May be used in several event loops, one by one.

    threads: questions that are encoded side by side, each on one core; by default as many as there are cores.
    """

    def __init__(self, retriever: Retriever, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
        self.retriever = retriever
        store = retriever.collection.store
        self._server = store.async_search() if isinstance(store, HasAsyncSearch) else None
        self._pool = ThreadPoolExecutor(max_workers=threads or os.cpu_count() or 1, thread_name_prefix="xqg-async")

    async def __aenter__(self) -> AsyncRetriever:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def search(
        self,
        text: str,
        *,
        k: int = 10,
        langs: Sequence[str] | None = None,
        lang: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question; see `Retriever.search`."""
        return list((await self.run([Question("0", text, lang)], k=k, langs=langs, exact=exact))[0].hits)

    async def run(
        self, queries: Sequence[Question], *, k: int = 10, langs: Sequence[str] | None = None, exact: bool = False
    ) -> list[Answer]:
        """The k best passages for each question, in input order; see `Retriever.run`."""
        if self._server is None:
            return await self._in_thread(partial(self.retriever.run, queries, k=k, langs=langs, exact=exact))
        if not queries:
            return []
        wanted = passage_languages(langs)
        retriever, name = self.retriever, self.retriever.collection.name
        asked = await self._in_thread(partial(retriever.encode, queries))
        look_ups = retriever.look_ups(asked, k=k)
        found = await asyncio.gather(
            *(
                self._server.search(
                    name, one.questions, k=one.k, langs=wanted, using=one.using, exact=exact, ef=one.breadth
                )
                for one in look_ups
            )
        )
        if retriever.reranker is None:
            return retriever.answers(queries, asked, look_ups, found, k=k)
        return await self._in_thread(partial(retriever.answers, queries, asked, look_ups, found, k=k))

    async def aclose(self) -> None:
        """Close this event loop's connections and stop the threads; the retriever that was given stays open."""
        if self._server is not None:
            await self._server.aclose()
        await asyncio.to_thread(self._pool.shutdown)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
