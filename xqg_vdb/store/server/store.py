"""The store on a Qdrant server (qdrant-client), also its in-memory stand-in `:memory:`.

A collection `wiki` is the alias of a versioned one, `wiki__v0001`, whose metadata holds the card and the loader's
cursor. A search asks the version that the alias points to by its own name, all of its requests the same one.
"""

from __future__ import annotations

import asyncio
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal
from qdrant_client.qdrant_remote import QdrantRemote

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.store import layout
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.client import (
    OLDEST_SERVER,
    Address,
    Limited,
    NoAccess,
    NotFound,
    Server,
    checked_address,
    checked_key,
)
from xqg_vdb.store.server.names import Names, card_in, short
from xqg_vdb.store.server.operations import RestAddress, ServerAdmin
from xqg_vdb.store.server.requests import (
    Limits,
    batched_requests,
    exact_count,
    found_in,
    language_filter,
    pages,
    search_params,
    search_requests,
)
from xqg_vdb.store.server.writer import ServerUpdate, open_update, open_writer
from xqg_vdb.types import Card, CollectionWriter, Hit, QuestionRows, Search, StoredPoint

if TYPE_CHECKING:
    from xqg_vdb.store.server.foreign import ForeignCollection

T = TypeVar("T")

_MOST_MOVES = 5
"""Times that a search begins anew because its version was replaced and deleted meanwhile."""


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
        rows, first = layout.check_search(questions, search), search.offset + search.k + 1
        for last in range(_MOST_MOVES):
            physical = await asyncio.to_thread(self._store.physical, name)
            requests = await asyncio.to_thread(self._store.requests_for, physical, search)
            try:
                found = await self._ask(physical, requests(rows, first))
            except NotFound as error:
                if last == _MOST_MOVES - 1 or not await asyncio.to_thread(self._store.moved, name, physical):
                    raise await asyncio.to_thread(self._store.looks.missing, name) from error
                continue
            break

        def ask(questions: QuestionRows, limit: int) -> list[list[layout.Found]]:
            if limit == first:
                return found
            return self._store.ask(physical, requests(questions, limit))  # rare: equal scores at the kth place

        return await asyncio.to_thread(layout.best, rows, ask, search=search)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next search opens new ones."""
        with self._mutex:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _ask(self, physical: str, requests: Sequence[models.QueryRequest]) -> list[list[layout.Found]]:
        client, deadline = self._client(), self._server.read_deadline
        while True:
            found: list[list[layout.Found]] = []
            try:
                for batch in batched_requests(requests, self._store.limits):
                    answers = await self._server.call_async(
                        partial(client.query_batch_points, physical, batch), deadline=deadline
                    )
                    found += map(found_in, answers)
            except Limited as error:
                self._store.limits.learn(error)
                continue
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
        self._updating = threading.Lock()
        self._is_local = isinstance(client._client, QdrantLocal)
        self._names = Names(client, self._server)
        self.looks = Names(client, self._server, waited_for=True)
        self._quantized: dict[str, bool] = {}
        self.limits = Limits()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout: int = 60,
        deadline: float = 600.0,
        insecure: bool = False,
        grpc: bool = False,
        grpc_port: int | None = None,
        options: CollectionOptions | None = None,
    ) -> ServerStore:
        """A store on the server at `url` (`:memory:` for one inside this process); sends nothing yet.

        timeout: seconds for one request. insecure: allow the key to travel unencrypted to another machine.
        grpc: speak gRPC instead of REST, on the port after that of `url`, or on `grpc_port`.
        url: may also be grpc://host:port (or grpcs), whose REST port is the one before.
        options: of the collections that it makes.
        Raises DataError for a URL without host or with a password in it, ServerError for a key that would be readable
        on the way.
        """
        if url == ":memory:":
            store = cls(QdrantClient(":memory:"), where=url, deadline=deadline, options=options)
            store._owned = True
            return store
        api_key = checked_key(api_key)
        address = checked_address(url, api_key=api_key, insecure=insecure, grpc=grpc, grpc_port=grpc_port)
        with warnings.catch_warnings():  # of a key over plain http: refused above, or asked for
            warnings.simplefilter("ignore", UserWarning)
            client = QdrantClient(
                url=address.url,
                api_key=api_key,
                timeout=timeout,
                check_compatibility=False,
                prefer_grpc=address.grpc_port is not None,
                grpc_port=address.grpc_port or 6334,
                grpc_options={"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1},
            )
        store = cls(client, where=address.where, deadline=deadline, secret=api_key, options=options)
        store._owned = True
        store._rest = RestAddress(cast(QdrantRemote, client._client).rest_uri, api_key, timeout)
        store._server.before_first = partial(store._check_server, store._rest, address)
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
        return ServerAdmin(self.looks, rest=self._rest, limits=self.limits)

    def foreign(self, name: str) -> ForeignCollection:
        """Any collection of the server, whoever made it. Raises DataError when there is none of that name."""
        from xqg_vdb.store.server.foreign import ForeignCollection

        return ForeignCollection(self._names, name, is_local=self._is_local)

    @property
    def storage(self) -> Mapping[str, Any]:
        """What the cards of its new collections say of their options."""
        return self._options.layout()

    def names(self) -> list[str]:
        """The published collections, sorted; those that others made are not among them."""
        return self.looks.published()

    def version(self, name: str) -> str:
        """Which version searches see now, such as v0003: wiki@v0003 is that one; "" for what has no versions."""
        base, version = layout.split_version(name)
        return version or short(self.looks.target(base) or "")

    def card(self, name: str) -> Card:
        """The card of the published version. Raises DataError when there is no such collection or it is not ours."""
        base, version = layout.split_version(name)
        physical = f"{base}__{version}" if version else base
        try:
            info = self._server.read(lambda: self._client.get_collection(physical))
        except NotFound as error:
            raise self.looks.missing(name) from error
        card = card_in(info.config.metadata or {})
        if card is None:
            raise DataError(
                f"Collection {name!r} on {self._server.where} has no card of xqg-vdb: it was not made by `xqg-vdb"
                " load`."
            )
        return card

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card.

        Two loaders of equal builds help each other; of different ones the later is refused while the earlier lives.
        Raises LockedError then, MismatchError when somebody else's collection, or an alias of one, has that name.
        """
        layout.check_name(name)
        return open_writer(self._names, name, card=card, options=self._options, is_local=self._is_local)

    @contextmanager
    def update(self, name: str) -> Iterator[ServerUpdate]:
        """The published version, to be changed in place; threads take turns, other processes wait or are refused.

        Raises LockedError, MismatchError for a collection that is not ours, `Moved` when a load replaced the version.
        """
        version = self._names.refuse_foreign(layout.check_name(name))
        if version is None:
            raise self.looks.missing(name)
        try:
            with self._updating, open_update(self._names, name, version, options=self._options) as update:
                yield update
            if self.moved(name, version):
                raise NotFound(version)
        except NotFound as error:
            raise layout.Moved(
                f"Collection {name!r} on {self._server.where} was loaded anew, or deleted, meanwhile: make the same"
                " call again."
            ) from error

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, by score, then id; without an `ef`, the server's own."""
        rows = layout.check_search(questions, search)

        def run(physical: str) -> list[list[Hit]]:
            requests = self.requests_for(physical, search)

            def ask(questions: QuestionRows, limit: int) -> list[list[layout.Found]]:
                return self.ask(physical, requests(questions, limit))

            return layout.best(rows, ask, search=search)

        return self._bound(name, run)

    def requests_for(self, physical: str, search: Search) -> Callable[[QuestionRows, int], list[models.QueryRequest]]:
        """Makes the requests of questions and a limit; for both clients."""
        # the local mode is always exact and warns when it is asked to be
        params = None if self._is_local else search_params(search, quantized=self._is_quantized(physical))
        return lambda questions, limit: search_requests(questions, limit=limit, search=search, params=params)

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points, of those languages when given."""
        layout.check_langs(passage_langs)
        wanted = language_filter(passage_langs)
        count = partial(exact_count, self._client, self._server.read, limits=self.limits, wanted=wanted)
        return self._bound(name, count)

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point of the version that is published when the first one is asked for."""
        physical = self.physical(name)
        try:
            for page in pages(self._client, self._server.read, physical, limits=self.limits, vectors=with_vectors):
                yield from map(_stored, page)
        except NotFound as error:
            raise self.looks.missing(name) from error

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions. Raises DataError when unknown, MismatchError when not ours."""
        target = self._names.refuse_foreign(layout.check_name(name))
        if target is None and not self._names.versions(name):
            raise self.looks.missing(name)
        self._names.drop(name)

    def close(self) -> None:
        """Close the client if `connect` made it."""
        if self._owned:
            self._client.close()

    def ask(self, physical: str, requests: Sequence[models.QueryRequest]) -> list[list[layout.Found]]:
        """The server's own answers to the requests, in their order."""
        while True:
            try:
                answers = [
                    self._server.read(partial(self._client.query_batch_points, physical, batch))
                    for batch in batched_requests(requests, self.limits)
                ]
            except Limited as error:
                self.limits.learn(error)
                continue
            return [found_in(answer) for batch in answers for answer in batch]

    def async_search(self) -> AsyncServerSearch | None:
        """Its search for coroutines, with the same address, key and patience; None for the in-memory stand-in."""
        if self._is_local:
            return None
        return AsyncServerSearch(self, self._server, options=self._client.init_options)

    def physical(self, name: str) -> str:
        """The collection that `name` is just now; `name` itself where a key may not see what is behind it."""
        base, version = layout.split_version(name)
        return f"{base}__{version}" if version else self.looks.target(base) or base

    def moved(self, name: str, physical: str) -> bool:
        """Whether `name` is another collection now."""
        return self.physical(name) != physical

    def _bound(self, name: str, run: Callable[[str], T]) -> T:
        """What `run` returns of the collection behind `name`; anew as a whole when that was replaced meanwhile."""
        for _ in range(_MOST_MOVES):
            physical = self.physical(name)
            try:
                return run(physical)
            except NotFound as error:
                if not self.moved(name, physical):
                    raise self.looks.missing(name) from error
        raise self.looks.missing(name)

    def _is_quantized(self, physical: str) -> bool:
        """Whether the collection keeps small copies of its vectors; asked once, a version never changes that."""
        if physical not in self._quantized:
            config = self._server.read(lambda: self._client.get_collection(physical)).config
            vectors = config.params.vectors
            named = [vectors] if isinstance(vectors, models.VectorParams) else list((vectors or {}).values())
            own = any(params.quantization_config is not None for params in named)
            self._quantized[physical] = own or config.quantization_config is not None
        return self._quantized[physical]

    def _check_server(self, rest: RestAddress, address: Address, deadline: float | None) -> None:
        """Raise MismatchError for a server that is too old, and for REST and gRPC ends of two different servers.

        The ends are known by the names of their collections; a server whose REST port is closed to us is believed.
        """
        with suppress(NotFound, NoAccess):  # a proxy that shows only what is needed
            said = self._server.call(self._client.info, deadline=deadline).version
            numbers = re.match(r"(\d+)\.(\d+)", said)
            if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER:
                oldest = ".".join(map(str, OLDEST_SERVER))
                raise MismatchError(f"{address.where} is Qdrant {said}; xqg-vdb needs {oldest} or later: update it.")
        if address.grpc_port is None:
            return
        for _ in range(3):  # another client may make a collection between the two looks
            try:
                key = {"api-key": rest.key} if rest.key else {}
                answer = httpx.get(f"{rest.base}/collections", headers=key, timeout=5.0)
                seen = {one["name"] for one in answer.json()["result"]["collections"]}
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                return
            if seen == {one.name for one in self._server.read(self._client.get_collections).collections}:
                return
        raise MismatchError(
            f"{rest.base} and gRPC port {address.grpc_port} are two different servers: they have other collections."
            " Name the right port in XQG_VDB_GRPC_PORT, or write --url grpc://host:port."
        )


def _stored(record: models.Record) -> StoredPoint:
    vectors: Any = record.vector
    return layout.stored_point(record.payload or {}, vectors if isinstance(vectors, dict) else {})
