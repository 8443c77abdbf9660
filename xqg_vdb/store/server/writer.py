"""Fill a version of a collection on a server and publish it; stopped at any point, the next run continues.

Every write waits until the server has it in its log and says `completed`; ids are fixed, so that a repeated request
changes nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Self

from qdrant_client import models

from xqg_vdb.errors import DataError, LockedError, MismatchError, ServerError, XqgError
from xqg_vdb.store.gate import Rows, checked, to_publish, wrong_count
from xqg_vdb.store.layout import LANG_KEY, TEXT_SPARSE, CollectionOptions, point_id, same_build, stored_point
from xqg_vdb.store.operations import latest
from xqg_vdb.store.server.client import Limited, Refused, TooLarge
from xqg_vdb.store.server.names import (
    AUGMENT_KEY,
    BULK_KEY,
    CARD_KEY,
    CURSOR_KEY,
    LEAVING_KEY,
    LOADER_KEY,
    NO_ROWS,
    Lease,
    Names,
    Watch,
    any_of,
    card_in,
    completed,
    cursor_in,
    is_finished,
    process_of,
    short,
    version_number,
)
from xqg_vdb.store.server.points import upserting
from xqg_vdb.types import Card, CollectionWriter, PointBatch, StoredPoint

_log = logging.getLogger(__name__)

# What a new collection on a server is made of, and its index, which is built after the last point.

POLL = 0.1
_LOOKS = 25
GREY_PATIENCE = 30.0
"""Seconds that a server may take to start what it says is to be done."""
_WOKEN_EVERY = 10.0
_USUAL_THRESHOLD = 10_000  # kB, in case that a server names none
_DISTANCES = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT}
_QUANTIZATIONS: dict[str | None, Any] = {
    None: None,
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
    ),
    "product": models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    "turbo": models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4, always_ram=True)
    ),
}


def _prepare(names: Names, version: str, info: models.CollectionInfo, *, card: Card, bulk: bool) -> None:
    """The indexes of fields, and no vector index yet in bulk mode; repeating it is harmless.

    So few points that the server builds no index of their vectors are spared that mode's steps.
    """
    client, call, config = names.client, names.server.call, info.config
    keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
    for key in {LANG_KEY, *(["id"] if card.chunk else [])} - info.payload_schema.keys():
        with suppress(Limited):  # it makes filters fast, and nothing needs it
            call(partial(client.create_payload_index, version, key, field_schema=keyword, wait=False))
    is_noted = bool((config.metadata or {}).get(BULK_KEY))
    threshold = config.optimizer_config.indexing_threshold
    threshold = _USUAL_THRESHOLD if threshold is None else threshold
    kilobytes = card.count * card.encoder.dim * len(card.vectors) * 4 / 1024
    if not bulk or (not is_noted and (threshold == 0 or 0 < kilobytes < threshold)):  # 0: the operator wants no index
        return
    if not is_noted:  # the threshold that the server would use is noted first
        names.write_metadata(version, {BULK_KEY: {"indexing_threshold": threshold}})
    _set_threshold(names, version, 0)


def _set_threshold(names: Names, version: str, threshold: int | None) -> None:
    """From how many kB on a server indexes; setting what is set wakes one that was restarted (grey)."""
    threshold_only = models.OptimizersConfigDiff(indexing_threshold=threshold)
    names.server.call(lambda: names.client.update_collection(version, optimizers_config=threshold_only))


def build_index(
    names: Names, version: str, *, indexed: Callable[[int], object] | None = None, meanwhile: Callable[[], object] = int
) -> None:
    """End the bulk mode, then wait until the optimizers rest.

    indexed: told how many vectors are indexed so far. meanwhile: called at every look.
    It continues without the index, with a warning, when the server's deadline passes without a vector indexed: a search
    before that is right, but slow. Raises ServerError when the server says that it cannot.
    """
    server, clock, look = names.server, names.server.clock, partial(names.client.get_collection, version)
    info = server.call(look)
    noted = (info.config.metadata or {}).get(BULK_KEY)
    threshold = int(noted["indexing_threshold"]) if isinstance(noted, dict) and noted else None
    if threshold is not None:  # what it was before; the server then starts to index
        _set_threshold(names, version, threshold)
        info = server.call(look)
    changed, seen, woken, greens = clock(), (-1, -1), clock(), 0
    while True:
        count = info.indexed_vectors_count or 0
        if indexed is not None:
            indexed(count)
        if info.status == models.CollectionStatus.RED:
            raise ServerError(f"{server.where} cannot build the index of {version}; see its log.")
        greens = greens + 1 if info.status == models.CollectionStatus.GREEN else 0
        if greens and (greens > 1 or threshold is None):  # one look just after the change can be early
            return
        meanwhile()
        if (count, info.segments_count) != seen:
            changed, seen = clock(), (count, info.segments_count)
        is_grey = info.status == models.CollectionStatus.GREY
        if is_grey and clock() - woken >= _WOKEN_EVERY:
            _set_threshold(names, version, threshold or info.config.optimizer_config.indexing_threshold)
            woken = clock()
        if clock() - changed > min(GREY_PATIENCE if is_grey else server.deadline, server.deadline):
            _log.warning("%s: the index of %s is still %s; continuing", server.where, version, info.status.value)
            return
        server.sleep(POLL)
        info = server.call(look)


MAX_REQUEST_BYTES = 8 << 20
"""Servers refuse 32 MiB; smaller requests are also cheaper to repeat."""
_JSON_BYTES_PER_FLOAT32 = 5  # a float32 takes about 20 characters as JSON, four of which the row's size counts


class _ServerWriter:
    """A version that is being filled; see `types.CollectionWriter`. For one thread; made by `open_writer`."""

    def __init__(
        self, names: Names, name: str, version: str, *, card: Card, options: CollectionOptions, lease: Lease,
        committed: int = 0,
    ) -> None:  # fmt: skip
        self._names, self._client, self._server = names, names.client, names.server
        self._name, self._version, self._card, self._lease = name, version, card, lease
        self._keep, self._committed, self._closed = options.keep, committed, False
        self._connections, self._pool = options.parallel, ThreadPoolExecutor(options.parallel)
        self._sending: deque[Future[None]] = deque()
        self._most_bytes = MAX_REQUEST_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self._await()
        finally:
            self.close()

    @property
    def committed(self) -> int:
        return self._committed

    @property
    def version(self) -> str:
        """The collection that is filled, as the server knows it."""
        return self._version

    def renew(self) -> None:
        """Say that this load is alive, when it is time."""
        self._lease.renew()

    def upsert(self, batch: PointBatch) -> None:
        """Check, then write in requests of at most 8 MiB. Raises DataError or MismatchError and has written nothing.

        It returns while the last requests are under way, so that the next batch is made meanwhile. A later call or
        `commit` raises what befell them: ServerError when the server stays away, DataError naming the passage that it
        refuses; then some of the requests may have been done.
        """
        self._check_open()
        rows = checked(batch, card=self._card)
        self._lease.renew()
        for start, stop in _requests(rows.sizes, most=self._most_bytes):
            write = upserting(self._names, self._version, rows, batch, slice(start, stop))
            self._begin(partial(self._send, rows, batch, start, stop, write))

    def commit(self, rows: int) -> None:
        self._check_open()
        self._await()
        self._names.write_metadata(self._version, {CURSOR_KEY: {"rows": rows}})
        self._committed = rows

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        self._check_open()
        self._await()
        card = to_publish(card, self._card, version=short(self._version))
        if (found := self._names.count(self._version)) != card.count:
            self._names.write_metadata(self._version, {CURSOR_KEY: NO_ROWS})
            raise wrong_count(f"{self._version} on {self._server.where}", found, card)
        if not self._names.is_local:
            build_index(self._names, self._version, indexed=indexed, meanwhile=self._lease.renew)
        self._names.write_metadata(self._version, {CARD_KEY: card.to_json(), LOADER_KEY: {}})
        self._clean_up(self._names.publish(self._name, self._version))
        self._stop_sending()

    def _clean_up(self, before: str | None) -> None:
        """Delete the versions that are not to be kept, but not what somebody began after this one."""
        records = self._names.records(self._name)
        finished = [version for version, record in records.items() if is_finished(record) and version != self._version]
        staying = {self._version, *latest(finished, self._keep - 1, first=before)}
        number = version_number(self._name, self._version) or 0
        for version, record in records.items():
            is_later = not is_finished(record) and (version_number(self._name, version) or 0) > number
            if version not in staying and not is_later:
                self._names.remove(version)

    def close(self) -> None:
        if not self._closed:
            self._stop_sending()
            self._lease.release()

    def _stop_sending(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)  # after an error, what is under way is not tried again

    def _check_open(self) -> None:
        if self._closed:
            raise XqgError("This writer is closed; ask the store for another one.")

    def _begin(self, send: Callable[[], None]) -> None:
        """Send beside what is under way already, when a connection is free."""
        self._await(fewer_than=self._connections)
        self._sending.append(self._pool.submit(send))

    def _await(self, *, fewer_than: int = 1) -> None:
        """Wait until so few requests are under way; after one that failed nothing may be committed any more."""
        try:
            while len(self._sending) >= fewer_than:
                self._sending.popleft().result()
        except BaseException:
            self.close()
            raise

    def _send(self, rows: Rows, points: PointBatch, start: int, stop: int, write: Callable[[], str]) -> None:
        """Write these rows; by halves when the server finds them too large, or refuses a point that is to be found."""

        def attempt() -> None:
            self._check_open()
            completed(write())

        try:
            self._server.call(attempt)
        except (TooLarge, Refused) as error:
            if isinstance(error, TooLarge):  # later requests are made as small
                self._most_bytes = min(self._most_bytes, _JSON_BYTES_PER_FLOAT32 * sum(rows.sizes[start:stop]) // 2)
            if stop - start == 1:
                if isinstance(error, TooLarge):
                    raise
                docid = rows.payloads[start]["id"]
                raise DataError(f"Passage {docid!r} cannot be stored: {error}") from error
            middle = (start + stop) // 2
            for half in ((start, middle), (middle, stop)):
                self._send(rows, points, *half, upserting(self._names, self._version, rows, points, slice(*half)))


class _ServerUpdate(_ServerWriter):
    """The published version of a collection while its points are changed; see `types.CollectionUpdate`."""

    @property
    def card(self) -> Card:
        return self._card

    def _begin(self, send: Callable[[], None]) -> None:
        send()  # what a call writes is done when it returns

    def find(self, ids: Sequence[str], *, chunks: bool = False) -> dict[str, StoredPoint]:
        if chunks:
            records = list(chain.from_iterable(self._names.pages(self._version, wanted=any_of("id", ids))))
        else:
            points = [str(point_id(docid)) for docid in ids]
            records = self._server.call(lambda: self._client.retrieve(self._version, points, with_payload=True))
        found = [stored_point(record.payload or {}, {}) for record in records]
        return {point.id: point for point in found}

    def delete(self, ids: Sequence[str]) -> None:
        points = models.PointIdsList(points=[str(point_id(docid)) for docid in ids])
        self._server.call(lambda: self._client.delete(self._version, points, wait=True))

    def record(self, card: Card) -> None:
        """Replace the card. Raises LockedError when somebody else has taken over."""
        for _ in range(_LOOKS):  # a node of a cluster may show what was written a tenth of a second later
            by = self._names.metadata(self._version).get(LOADER_KEY) or {}
            if by.get("id") == self._lease.id:
                break
            self._server.sleep(POLL)
        else:
            raise LockedError(
                f"Collection {self._name!r} on {self._server.where} is being changed by {process_of(by)}; make the same"
                " call again."
            )
        self._lease.write()
        self._names.write_metadata(self._version, {CARD_KEY: card.to_json()})
        self._card = card


def open_update(names: Names, name: str, version: str, *, options: CollectionOptions) -> _ServerUpdate:
    """Sign the published version. Raises LockedError while somebody else changes it, MismatchError for copies."""
    record = names.metadata(version)
    card = card_in(record)
    if card is None or record.get(AUGMENT_KEY):
        raise MismatchError(
            f"{name!r} on {names.server.where} is no collection that `xqg-vdb load` made: add to the one that it was"
            " made from, and augment that again."
        )
    by = Watch(names).holder(version)
    if by is not None:
        raise LockedError(f"Collection {name!r} on {names.server.where} is being changed by {by}; wait until it ends.")
    lease = Lease(names, version)
    lease.write()
    return _ServerUpdate(names, name, version, card=card, options=options, lease=lease)


def _requests(sizes: list[int], *, most: int) -> Iterator[tuple[int, int]]:
    """Spans of rows whose JSON stays below `most` bytes; a single row may be above it."""
    start, total = 0, 0
    for at, size in enumerate(sizes):
        estimate = _JSON_BYTES_PER_FLOAT32 * size
        if at > start and total + estimate > most:
            yield start, at
            start, total = at, 0
        total += estimate
    if start < len(sizes):
        yield start, len(sizes)


# Which version of a collection on a server a load fills: the unfinished one of an equal card, or a new one.


def open_writer(names: Names, name: str, *, card: Card, options: CollectionOptions) -> CollectionWriter:
    """Continue the newest unfinished version of the same build, else begin a new one.

    Two loaders of equal builds help each other; of different ones the later is refused (LockedError), also when the
    earlier ended while this was found out. MismatchError when somebody else's collection, or alias, has that name.
    """
    card = replace(card, storage=options.layout())
    watch = Watch(names)
    while True:  # what was read before a wait is not true after it
        watch.waited = False
        among = names.collections()
        current = version_number(name, names.refuse_foreign(name, among) or "") or 0
        records = names.records(name, among).items()
        later = {v: record for v, record in records if (version_number(name, v) or 0) > current}
        kept = _continued(names, name, later, card=card, watch=watch)
        if not watch.waited:
            break
    version = kept or names.new_version(name, past=among)
    lease, committed = Lease(names, version), cursor_in(later.get(version, {}))
    with ExitStack() as undo:
        undo.callback(lease.release)
        if kept is None:
            _begin_version(names, version, card=card, options=options, lease=lease)
        elif not is_finished(later[kept]):
            lease.write()
        if not committed:
            info = names.look(lambda: names.client.get_collection(version))
            record, by = info.config.metadata or {}, (info.config.metadata or {}).get(LOADER_KEY) or {}
            if kept is None and by.get("id") != lease.id and not _same(record, card):  # two began at once
                raise _busy(names, name, process_of(by))
            if not names.is_local and not cursor_in(record):  # the local one has no indexes, and says so each time
                _prepare(names, version, info, card=card, bulk=options.bulk)
        undo.pop_all()
    return _ServerWriter(names, name, version, card=card, options=options, lease=lease, committed=committed)


class _NoLease(Lease):
    def write(self) -> None:
        """Nothing: the one that is helped has signed."""

    renew = release = write


def open_helper(names: Names, version: str, *, card: Card, options: CollectionOptions) -> CollectionWriter:
    """Writes points into the version that somebody else's writer fills and will publish; it holds no lease."""
    return _ServerWriter(names, "", version, card=card, options=options, lease=_NoLease(names, version))


def _continued(names: Names, name: str, later: dict[str, Any], *, card: Card, watch: Watch) -> str | None:
    """The one to continue of the versions above the published one; others of them go. Stops after a wait."""
    kept = None
    for version, record in reversed(later.items()):
        same = _same(record, card)
        if is_finished(record) and not same:
            continue
        if kept is None and same and record.get(CURSOR_KEY) != NO_ROWS and not record.get(LEAVING_KEY):
            kept = version
            continue
        by = watch.holder(version)
        if by is not None:
            raise _busy(names, name, by)
        if watch.waited:
            record = names.records(name).get(version, {})
            if is_finished(record) and not _same(record, card):
                raise LockedError(
                    f"Collection {name!r} on {names.server.where} was loaded a moment ago from another corpus or with"
                    " other options; if yours is to replace it, run the same command again."
                )
            return None
        elif not is_finished(record):
            names.remove(version)
    return kept


def _same(record: Mapping[str, Any], card: Card) -> bool:
    stored = card_in(record)
    return stored is not None and same_build(stored, card)


def _begin_version(names: Names, version: str, *, card: Card, options: CollectionOptions, lease: Lease) -> None:
    """Create the version; of two loaders that do so at once, the server lets one, and the other finds its record."""
    wanted = replace(card, version=short(version), count=0, digest="", created="")
    vectors = models.VectorParams(
        size=card.encoder.dim, distance=_DISTANCES[card.distance], on_disk=options.on_disk_vectors
    )
    sparse = models.SparseVectorParams(modifier=models.Modifier.IDF if card.bm25 is not None else None)
    graph = models.HnswConfigDiff(m=options.hnsw_m, ef_construct=options.hnsw_ef_construct)
    names.create(version, partial(
        names.client.create_collection, version,
        vectors_config=dict.fromkeys(card.vectors, vectors), sparse_vectors_config={TEXT_SPARSE: sparse},
        shard_number=options.shards, replication_factor=options.replication_factor,
        write_consistency_factor=options.write_consistency, on_disk_payload=options.on_disk_payload,
        hnsw_config=graph if graph.model_dump(exclude_none=True) else None,
        quantization_config=_QUANTIZATIONS[options.quantization],
        metadata={CARD_KEY: wanted.to_json(), LOADER_KEY: lease.record()},
    ))  # fmt: skip


def _busy(names: Names, name: str, by: str) -> LockedError:
    return LockedError(
        f"Collection {name!r} on {names.server.where} is being loaded by {by}, from another corpus or with other"
        " options; wait until that load has ended."
    )
