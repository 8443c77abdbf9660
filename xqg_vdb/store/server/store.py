"""The store on a Qdrant server (qdrant-client), also its in-memory stand-in `:memory:`.

In: a client. Out: a VectorStore. A collection `wiki` is the alias of a versioned one, `wiki__v0001`, whose metadata
holds the card and the loader's cursor. Loading is in `server_writer`; this file refuses to know how points get in.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal
from qdrant_client.qdrant_remote import QdrantRemote

from xqg_vdb.errors import DataError
from xqg_vdb.store import layout
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.client import NotFound, Server, checked_address
from xqg_vdb.store.server.names import CARD_KEY, READ_DEADLINE, Names
from xqg_vdb.store.server.operations import RestAddress, ServerAdmin
from xqg_vdb.store.server.requests import batched_requests, found_in, language_filter, search_params, search_requests
from xqg_vdb.store.server.writer import open_writer
from xqg_vdb.types import Card, CollectionWriter, Hit, QuestionRows, Search, StoredPoint

if TYPE_CHECKING:
    from xqg_vdb.store.server.foreign import ForeignCollection


# Searching a Qdrant server from coroutines (AsyncQdrantClient): any number of searches wait without a thread each.


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

    async def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, by score, then id."""
        rows, k = layout.check_search(questions, search), search.k
        params = models.SearchParams(hnsw_ef=search.ef, exact=search.exact)
        requests = partial(search_requests, search=search, params=params)
        found = await self._ask(name, requests(rows, limit=k + 1))

        def ask(questions: QuestionRows, limit: int) -> list[list[layout.Found]]:
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


T = TypeVar("T")

_SCROLL_PAGE = 512


class ServerStore:
    """Collections on a server; see `types.VectorStore`. Threads may share one store as they may share the client.

    client: a ready client, which stays the caller's to close.
    where: how messages name the server. options: of the collections that it makes.
    deadline: seconds without success after which a write is given up; reads are given up after 30 at the latest.
    """

    def __init__(
        self,
        client: QdrantClient,
        *,
        where: str = "the Qdrant server",
        deadline: float = 600.0,
        secret: str | None = None,
        options: CollectionOptions | None = None,
    ) -> None:
        self._client = client
        self._options = options or CollectionOptions()
        self._rest: RestAddress | None = None
        self._server = Server(where, deadline=deadline, secret=secret)
        self._owned = False
        self._is_local = isinstance(client._client, QdrantLocal)
        self._names = Names(client, self._server)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout: int = 60,
        deadline: float = 600.0,
        insecure: bool = False,
        grpc_port: int | None = None,
        options: CollectionOptions | None = None,
    ) -> ServerStore:
        """A store on the server at `url` (`:memory:` for one inside this process); sends nothing yet.

        timeout: seconds for one request. insecure: allow the key to travel unencrypted to another machine.
        grpc_port: speak gRPC on this port instead of REST. options: of the collections that it makes.
        Raises DataError for a URL without host or with a password in it, ServerError for a key that would be readable
        on the way.
        """
        if url == ":memory:":
            store = cls(QdrantClient(":memory:"), where=url, deadline=deadline, options=options)
        else:
            where = checked_address(url, api_key=api_key, insecure=insecure)
            with warnings.catch_warnings():  # of a key over plain http: refused above, or asked for
                warnings.simplefilter("ignore", UserWarning)
                client = QdrantClient(
                    url=url,
                    api_key=api_key,
                    timeout=timeout,
                    check_compatibility=False,
                    prefer_grpc=grpc_port is not None,
                    grpc_port=grpc_port or 6334,
                    grpc_options={"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1},
                )
            store = cls(client, where=where, deadline=deadline, secret=api_key, options=options)
            store._rest = RestAddress(cast(QdrantRemote, client._client).rest_uri, api_key, timeout)
        store._owned = True
        return store

    def __repr__(self) -> str:
        return f"ServerStore({self._server.where!r})"

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def admin(self) -> ServerAdmin:
        """Versions, states and snapshots."""
        return ServerAdmin(self._names, rest=self._rest)

    def foreign(self, name: str) -> ForeignCollection:
        """Any collection of the server, whoever made it. Raises DataError when there is none of that name."""
        from xqg_vdb.store.server.foreign import ForeignCollection

        return ForeignCollection(self._names, name, is_local=self._is_local)

    def names(self) -> list[str]:
        """The published collections, sorted; those that others made are not among them."""
        return self._names.published()

    def card(self, name: str) -> Card:
        """The card of the published version. Raises DataError when there is no such collection or it is not ours."""
        info = self._read(name, lambda: self._client.get_collection(name))
        record = (info.config.metadata or {}).get(CARD_KEY)
        try:
            return Card.from_json(cast(Mapping[str, Any], record))
        except ValueError as error:
            raise DataError(
                f"Collection {name!r} on {self._server.where} has no card of xqg-vdb: it was not made by `xqg-vdb"
                " load`."
            ) from error

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card.

        Two loaders of equal builds help each other; of different ones the later is refused while the earlier lives.
        Raises LockedError then, MismatchError when a collection, not an alias, has that name.
        """
        layout.check_name(name)
        return open_writer(self._names, name, card=card, options=self._options, is_local=self._is_local)

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, by score, then id; without an `ef`, the server's own."""
        rows = layout.check_search(questions, search)
        # the local mode is always exact and warns when it is asked to be
        params = None if self._is_local else search_params(exact=search.exact, ef=search.ef)

        def ask(questions: QuestionRows, limit: int) -> list[list[layout.Found]]:
            return self.ask(name, search_requests(questions, limit=limit, search=search, params=params))

        return layout.best(rows, ask, k=search.k)

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points, of those languages when given."""
        layout.check_langs(passage_langs)
        wanted = language_filter(passage_langs)
        return self._read(name, lambda: self._client.count(name, count_filter=wanted, exact=True)).count

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point of the version that is published when the first one is asked for."""
        physical = self._names.target(layout.check_name(name)) or name
        offset: Any = None
        while True:
            page = partial(self._client.scroll, physical, limit=_SCROLL_PAGE, offset=offset, with_vectors=with_vectors)
            records, offset = self._read(name, page)
            yield from map(_stored, records)
            if offset is None:
                return

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions. Raises DataError when unknown, MismatchError when not ours."""
        self._names.refuse_plain(layout.check_name(name))
        if self._names.target(name) is None and not self._names.versions(name):
            raise self.missing(name)
        self._names.drop(name)

    def close(self) -> None:
        """Close the client if `connect` made it."""
        if self._owned:
            self._client.close()

    def ask(self, name: str, requests: Sequence[models.QueryRequest]) -> list[list[layout.Found]]:
        """The server's own answers to the requests, in their order."""
        batches = batched_requests(requests)
        answers = [self._read(name, partial(self._client.query_batch_points, name, batch)) for batch in batches]
        return [found_in(answer) for batch in answers for answer in batch]

    def async_search(self) -> AsyncServerSearch | None:
        """Its search for coroutines, with the same address, key and patience; None for the in-memory stand-in."""
        if self._is_local:
            return None

        return AsyncServerSearch(self, self._server, options=self._client.init_options)

    def _read(self, name: str, request: Callable[[], T]) -> T:
        layout.check_name(name)
        try:
            return self._server.call(request, deadline=min(READ_DEADLINE, self._server.deadline))
        except NotFound as error:
            raise self.missing(name) from error

    def missing(self, name: str) -> DataError:
        """Why `name` cannot be read, with the names that could."""
        if self._names.versions(name):
            return DataError(
                f"Collection {name!r} on {self._server.where} is not finished: run the load again, it continues where"
                " it stopped."
            )
        return layout.missing_collection(name, self.names(), where=self._server.where)


def _stored(record: models.Record) -> StoredPoint:
    return layout.stored_point(record.payload or {}, cast(Mapping[str, Any], record.vector or {}))
