"""Searching a Qdrant server from coroutines (AsyncQdrantClient): any number of searches wait without a thread each.

In: a server store. Out: its `search`, awaited. Everything else stays with the store; this file refuses to know how
questions become vectors.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qdrant_client import AsyncQdrantClient, models

from ..types import Hit, Questions
from . import layout
from .retry import NotFound, Server
from .server_names import READ_DEADLINE
from .server_requests import batched_requests, found_in, search_requests

if TYPE_CHECKING:
    from .server import ServerStore


class AsyncServerSearch:
    """`ServerStore.search` for coroutines, with its hits, order, errors and patience; made by `async_search`.

    A client's connections belong to the event loop that opened them, so there is one client for each loop.
    options: with what the store's own client was made.
    """

    def __init__(self, store: ServerStore, server: Server, *, options: Mapping[str, Any]) -> None:
        self._store = store
        self._server = server
        self._options = dict(options)
        self._clients: dict[asyncio.AbstractEventLoop, AsyncQdrantClient] = {}
        self._mutex = threading.Lock()

    async def search(
        self,
        name: str,
        vectors: Questions,
        *,
        k: int,
        langs: Sequence[str] | None,
        using: str,
        exact: bool,
        ef: int | None,
    ) -> list[list[Hit]]:
        """The k best per question, by score, then id; only passages in `langs` when given."""
        rows = layout.check_queries(vectors, k=k)
        layout.check_langs(langs)
        params = models.SearchParams(hnsw_ef=ef, exact=exact)
        requests = partial(search_requests, langs=langs, using=using, params=params)
        found = await self._ask(name, requests(rows, limit=k + 1))

        def ask(questions: Questions, limit: int) -> list[list[layout.Found]]:
            if limit == k + 1:
                return found
            return self._store.ask(name, requests(questions, limit=limit))  # rare: equal scores at the kth place

        return await asyncio.to_thread(layout.best, rows, ask, k=k)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next search opens new ones."""
        with self._mutex:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _ask(self, name: str, requests: Sequence[models.QueryRequest]) -> list[list[layout.Found]]:
        layout.check_name(name)
        client = self._client()
        deadline = min(READ_DEADLINE, self._server.deadline)
        found: list[list[layout.Found]] = []
        for batch in batched_requests(requests):
            try:
                answers = await self._server.call_async(
                    partial(client.query_batch_points, name, batch), deadline=deadline
                )
            except NotFound as error:
                raise await asyncio.to_thread(self._store.missing, name) from error
            found += [found_in(answer) for answer in answers]
        return found

    def _client(self) -> AsyncQdrantClient:
        loop = asyncio.get_running_loop()
        with self._mutex:
            for closed in [one for one in self._clients if one.is_closed()]:
                del self._clients[closed]
            if loop not in self._clients:
                with warnings.catch_warnings():  # of a key over plain http: the store has refused it, or was asked to
                    warnings.simplefilter("ignore", UserWarning)
                    self._clients[loop] = AsyncQdrantClient(**self._options)
            return self._clients[loop]
