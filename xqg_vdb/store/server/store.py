"""The store on a Qdrant server (qdrant-client), also its in-memory stand-in `:memory:`.

A collection `wiki` is the alias of a versioned one, `wiki__v0001`, whose metadata holds the card and the loader's
cursor. A search asks the version that the alias points to by its own name, all of its requests the same one.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.qdrant_remote import QdrantRemote

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.models.remote import certificates, ending, is_loopback, proxy_errors
from xqg_vdb.progress import windows
from xqg_vdb.store import layout
from xqg_vdb.store.filters import as_filter
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.operations import Admin, Store, finish, here
from xqg_vdb.store.server import Address, checked_address, checked_key
from xqg_vdb.store.server.client import OLDEST_SERVER, NoAccess, NotFound, Server, TooLarge, seconds_left, timed
from xqg_vdb.store.server.names import Names, any_of, card_in, short
from xqg_vdb.store.server.operations import server_admin
from xqg_vdb.store.server.points import payload_in, querying, ranked
from xqg_vdb.store.server.writer import open_helper, open_update, open_writer
from xqg_vdb.types import Card, CollectionUpdate, CollectionWriter, Hit, QuestionRows, Search, SparseVector, StoredPoint

if TYPE_CHECKING:
    from xqg_vdb.store.server.foreign import ForeignCollection

T = TypeVar("T")
_LookUps = Sequence[tuple[QuestionRows, Search]]
_Row = tuple[Any, Search, int]
_Send = Callable[[Any], Any]  # makes one request with the client that it is given

_MOST_MOVES = 5
"""Times that a search begins anew because its version was replaced and deleted meanwhile."""
_QUERY_BATCH = 64
_POINTS_AT_ONCE = 1000


class ServerStore(Store):
    """Collections on a server; see `types.VectorStore`. Threads may share one store as they may share the client.

    client: a ready client, which stays the caller's to close.
    where: how messages name the server. options: of the collections that it makes.
    deadline: seconds without success after which a write is given up; reads are given up after 30 at the latest.
    """

    def __init__(
        self, client: QdrantClient, *, where: str = "the Qdrant server", deadline: float = 600.0,
        secret: str | None = None, options: CollectionOptions | None = None,
    ) -> None:  # fmt: skip
        self._client = client
        self.options = options or CollectionOptions()
        self._rest: Callable[[], httpx.Client] | None = None
        self._grpc_port: int | None = None
        self._server = Server(where, deadline=deadline, secret=secret)
        self._owned = False
        self._updating = threading.Lock()
        self._names = Names(client, self._server)
        self.looks = Names(client, self._server, waited_for=True)

        async def ask(send: _Send) -> Any:
            return self.looks.look(partial(send, client))

        self._reader = _Reader(self.looks, ask)

    @classmethod
    def connect(
        cls, url: str, *, api_key: str | None = None, timeout: int = 60, deadline: float = 600.0,
        insecure: bool = False, grpc: bool = False, grpc_port: int | None = None,
        options: CollectionOptions | None = None,
    ) -> ServerStore:  # fmt: skip
        """A store on the server at `url` (`:memory:` for one inside this process); sends nothing yet.

        The arguments are those of `store.open_store`; see `checked_address` for what raises. insecure: allow the key
        to travel unencrypted to another machine. grpc_port: of gRPC, by default the one after that of `url`.
        """
        if url == ":memory:":
            store = cls(QdrantClient(":memory:"), where=url, deadline=deadline, options=options)
            store._owned = True
            return store
        api_key = checked_key(api_key)
        address = checked_address(url, api_key=api_key, insecure=insecure, grpc=grpc, grpc_port=grpc_port)
        clients = []  # all are held: one that goes closes its connections
        proxied = not is_loopback(urlsplit(address.url).hostname)  # no proxy in the way of this machine
        way: dict[str, Any] = {"trust_env": proxied, "verify": certificates()}

        def opened() -> QdrantClient:
            with proxy_errors(), warnings.catch_warnings():  # of a key over plain http: refused above, or asked for
                warnings.simplefilter("ignore", UserWarning)
                clients.append(QdrantClient(
                    url=address.url, api_key=api_key, timeout=timeout, check_compatibility=False,
                    headers={"accept-encoding": "identity"}, **way,  # what it packs comes in two pieces, one 40 ms late
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),  # kept on loopback, too
                    prefer_grpc=address.grpc_port is not None, grpc_port=address.grpc_port or 6334,
                    grpc_options={"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1},
                ))  # fmt: skip
            remote = cast(QdrantRemote, clients[-1]._client)
            ending(remote.openapi_client.client._client, lambda: min(timeout, seconds_left()))
            if address.grpc_port is not None:
                remote._init_grpc_channel()
                remote._grpc_channel_pool[:] = map(timed, remote._grpc_channel_pool)
            return clients[-1]

        client = opened()
        store = cls(client, where=address.where, deadline=deadline, secret=api_key, options=options)
        store._owned, store._grpc_port = True, address.grpc_port
        headers, base = {"api-key": api_key} if api_key else {}, cast(QdrantRemote, client._client).rest_uri
        store._rest = lambda: httpx.Client(base_url=base, headers=headers, timeout=timeout, **way)
        store._server.before_first = partial(store._check_server, store._rest, address)
        store._server.after_fork = lambda: setattr(client, "_client", opened()._client)
        return store

    def __repr__(self) -> str:
        return f"ServerStore({self._server.where!r})"

    @property
    def admin(self) -> Admin:
        """Versions, states and snapshots."""
        return server_admin(self.looks, rest=self._rest, grpc_port=self._grpc_port)

    def foreign(self, name: str) -> ForeignCollection:
        """Any collection of the server, whoever made it. Raises DataError when there is none of that name."""
        from xqg_vdb.store.server.foreign import ForeignCollection

        self.looks.collections()  # a server that is away says so soon, though a copy is waited for
        return ForeignCollection(self._names, name)

    def names(self) -> list[str]:
        """The published collections, sorted; those that others made are not among them."""
        return self.looks.published()

    def version(self, name: str) -> str:
        """Which version searches see now, such as v0003: wiki@v0003 is that one; "" for what has no versions."""
        return finish(self._reader.version(name))

    def card(self, name: str) -> Card:
        """The card of the published version. Raises DataError when there is no such collection or it is not ours."""
        base, version = layout.split_version(name)
        physical = f"{base}__{version}" if version else base
        try:
            info = self.looks.look(lambda: self._client.get_collection(physical))
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
        """A new version, or the unfinished one of an equal card; see `writer.open_writer`."""
        layout.check_name(name)
        return open_writer(self._names, name, card=card, options=self.options)

    def helper(self, version: str, *, card: Card) -> CollectionWriter:
        """Writes into the version that somebody else's `writer` fills; see `writer.open_helper`."""
        if self._grpc_port is None:
            self._server.before_first = None  # that one has asked which server this is
        return open_helper(self._names, version, card=card, options=self.options)

    @contextmanager
    def update(self, name: str) -> Iterator[CollectionUpdate]:
        """The published version, to be changed in place; threads take turns, other processes wait or are refused.

        Raises LockedError, MismatchError for a collection that is not ours, `Moved` when a load replaced the version.
        """
        version = self.looks.refuse_foreign(layout.check_name(name))
        if version is None:
            raise self.looks.missing(name)
        try:
            with self._updating, open_update(self._names, name, version, options=self.options) as update:
                yield update
            if self.physical(name) != version:
                raise NotFound(version)
        except NotFound as error:
            raise layout.Moved(
                f"Collection {name!r} on {self._server.where} was loaded anew, or deleted, meanwhile: make the same"
                " call again."
            ) from error

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, by score, then id; without an `ef`, the server's own."""
        return self.searches(name, [(questions, search)])[0]

    def searches(self, name: str, look_ups: _LookUps) -> list[list[list[Hit]]]:
        """What `search` finds for each of several, in as few requests as carry them."""
        return finish(self._reader.searches(name, look_ups))

    def fetch(self, name: str, points: Iterable[str]) -> dict[str, Hit]:
        """The passages of those of the points that are there, by the points' ids."""
        return finish(self._reader.fetch(name, points))

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points, of those languages when given."""
        layout.check_langs(passage_langs)

        async def run(physical: str) -> int:
            return self.looks.count(physical, wanted=any_of(layout.LANG_KEY, passage_langs))

        return finish(self._reader.bound(name, run))

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point of the version that is published when the first one is asked for."""
        physical = self.physical(name)
        try:
            for page in self.looks.pages(physical, vectors=with_vectors):
                for record in page:
                    given: Any = record.vector or {}
                    yield layout.stored_point(record.payload or {}, given if isinstance(given, dict) else {"": given})
        except NotFound as error:
            raise self.looks.missing(name) from error

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions. Raises DataError when unknown, MismatchError when not ours."""
        target = self.looks.refuse_foreign(layout.check_name(name))
        if target is None and not self._names.records(name):
            raise self.looks.missing(name)
        self._names.drop(name)

    def close(self) -> None:
        """Close the client if `connect` made it."""
        if self._owned:
            self._client.close()

    def async_search(self) -> _AsyncReader | None:
        """Its searches for coroutines, with the same address, key and patience; None for the in-memory stand-in."""
        return None if self._names.is_local else _AsyncReader(self.looks, self._client.init_options)

    def physical(self, name: str) -> str:
        """The collection that `name` is just now; `name` itself where a key may not see what is behind it."""
        return finish(self._reader.physical(name))

    def _check_server(self, rest: Callable[[], httpx.Client], address: Address, deadline: float | None) -> None:
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
                with rest() as client:
                    result = client.get("/collections", timeout=5.0).json()["result"]
                seen = {collection["name"] for collection in result["collections"]}
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                return
            if seen == set(self.looks.collections()):
                return
        raise MismatchError(
            f"{address.url} and gRPC port {address.grpc_port} are two different servers: they have other collections."
            " Name the right port in XQG_VDB_GRPC_PORT, or write --url grpc://host:port."
        )


class _Reader:
    """Searches, and what they must know first. ask: sends one request, with patience; aside: runs what would wait."""

    def __init__(
        self, looks: Names, ask: Callable[[_Send], Awaitable[Any]], *, aside: Callable[..., Awaitable[Any]] = here
    ) -> None:
        self._looks, self._most, self._ask, self._aside = looks, looks.server.most, ask, aside
        self._quantized: dict[str, bool] = {}

    async def physical(self, name: str) -> str:
        """See `ServerStore`."""
        base, version = layout.split_version(name)
        if version:
            return f"{base}__{version}"
        aliases = (await self._ask(methodcaller("get_aliases"))).aliases
        return next((alias.collection_name for alias in aliases if alias.alias_name == base), base)

    async def version(self, name: str) -> str:
        """See `ServerStore`."""
        physical = await self.physical(name)
        return "" if physical == name else short(physical)

    async def bound(self, name: str, run: Callable[[str], Awaitable[T]]) -> T:
        """What `run` returns of the collection behind `name`; anew as a whole when that was replaced meanwhile."""
        for _ in range(_MOST_MOVES):
            physical = await self.physical(name)
            try:
                return await run(physical)
            except NotFound as error:
                gone = error
            if await self.physical(name) == physical:
                break
        raise await self._aside(partial(self._looks.missing, name)) from gone

    async def searches(self, name: str, look_ups: _LookUps) -> list[list[list[Hit]]]:
        """What each of several look-ups finds; for equal scores at the end, more is asked for."""
        checked = [(layout.check_search(questions, search), search) for questions, search in look_ups]
        first = [(row, search, layout.first_limit(search)) for rows, search in checked for row in rows]

        async def run(physical: str) -> list[list[list[Hit]]]:
            async def more(search: Search, rows: QuestionRows, limit: int) -> list[list[layout.Found]]:
                return await self._query(physical, [(row, search, limit) for row in rows])

            answers = iter(await self._query(physical, first))
            return [
                await layout.best(rows, islice(answers, len(rows)), partial(more, search), search=search)
                for rows, search in checked
            ]

        return await self.bound(name, run)

    async def fetch(self, name: str, points: Iterable[str]) -> dict[str, Hit]:
        """See `ServerStore`."""
        ids = [int(point) if point.isdecimal() else point for point in points]

        async def run(physical: str) -> dict[str, Hit]:
            parts = [
                await self._ask(methodcaller("retrieve", physical, part)) for part in windows(ids, _POINTS_AT_ONCE)
            ]
            return {str(point.id): layout.hit_of(0.0, payload_in(point)) for part in parts for point in part}

        return await self.bound(name, run)

    async def _query(self, physical: str, rows: Sequence[_Row]) -> list[list[layout.Found]]:
        """As many of them in one request as it carries, and each as broad as the server is known to allow."""
        quantized, found = await self._is_quantized(physical), list[list[layout.Found]]()

        def send(client: Any) -> Any:
            batch = rows[len(found) :][: self._most("search batch size", _QUERY_BATCH)]
            return querying(client, physical, [self._request(*row, quantized=quantized) for row in batch])

        while len(found) < len(rows):
            try:
                answers = await self._ask(send)
            except TooLarge:  # for a rate limit, of which each question takes one
                size = self._most("search batch size", min(_QUERY_BATCH, len(rows) - len(found)))
                if size == 1:
                    raise
                self._looks.server.limits["search batch size"] = size // 2
            else:
                found += ranked(answers)
        return found

    def _request(self, row: Any, search: Search, limit: int, *, quantized: bool) -> models.QueryRequest:
        wanted, most, params = any_of(layout.LANG_KEY, search.passage_langs), self._most, None
        limit = max(most("limit", limit), (search.offset + search.k) * search.per_document if search.texts else 1)
        if search.where is not None:
            asked = as_filter(search.where)
            wanted = asked if wanted is None else models.Filter(must=[wanted, asked])
        if not self._looks.is_local:  # that one is always exact, and warns when it is asked to be
            again = models.QuantizationSearchParams(
                ignore=search.exact, rescore=True, oversampling=float(most("oversampling", round(layout.OVERSAMPLING)))
            )  # candidates among quantised vectors are compared again with the full ones
            ef, quantization = most("hnsw_ef", search.ef), again if quantized else None
            params = models.SearchParams(hnsw_ef=ef, exact=search.exact, quantization=quantization)
        if isinstance(row, SparseVector):
            row = models.SparseVector(indices=row.indices.tolist(), values=row.values.tolist())
        else:
            row = row.tolist()
        return models.QueryRequest(
            query=row, using=search.using, filter=wanted, params=params, limit=limit, with_payload=search.texts
        )

    async def _is_quantized(self, physical: str) -> bool:
        """Whether the collection keeps small copies of its vectors; asked once, a version never changes that."""
        if self._looks.is_local:
            return False
        if physical not in self._quantized:
            config = (await self._ask(methodcaller("get_collection", physical))).config
            vectors = config.params.vectors
            named = [vectors] if isinstance(vectors, models.VectorParams) else list((vectors or {}).values())
            own = any(params.quantization_config is not None for params in named)
            self._quantized[physical] = own or config.quantization_config is not None
        return self._quantized[physical]


class _AsyncReader(_Reader):
    """For coroutines. Connections belong to the event loop that opened them, so each loop has a client of its own.

    options: with what the store's own client was made.
    """

    def __init__(self, looks: Names, options: Mapping[str, Any]) -> None:
        async def ask(send: _Send) -> Any:
            return await looks.server.call_async(lambda: send(self._client()), deadline=looks.deadline)

        super().__init__(looks, ask, aside=asyncio.to_thread)
        # nothing may be left open when a loop ends that nobody closed us in: what the client does by default
        self._options = {name: value for name, value in options.items() if name != "limits"}
        self._clients: dict[asyncio.AbstractEventLoop, AsyncQdrantClient] = {}
        self._mutex, self._process = threading.Lock(), os.getpid()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next search opens new ones."""
        with self._mutex:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _client(self) -> AsyncQdrantClient:
        loop = asyncio.get_running_loop()
        with self._mutex:
            if os.getpid() != self._process:  # threads of gRPC stayed behind at a fork: REST, and nothing is freed
                self._process, self._parents, self._clients = os.getpid(), self._clients, {}
                self._options["prefer_grpc"] = False
            for closed in [known for known in self._clients if known.is_closed()]:
                del self._clients[closed]
            if loop not in self._clients:
                # warnings of a key over plain http: the store has refused it, or was asked to
                with proxy_errors(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    self._clients[loop] = AsyncQdrantClient(**self._options)
            return self._clients[loop]
