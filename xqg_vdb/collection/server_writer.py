"""Fill a version of a collection on a server and publish it; stopped at any point, the next run continues.

In: a name, a card, batches. Out: an alias on a finished version. Every write waits until the server has it in its log
and says `completed`; ids are fixed, so that a repeated request changes nothing. This file refuses to know where batches
come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from qdrant_client import QdrantClient, models

from ..errors import CorruptError, MismatchError, ServerError, XqgError
from ..types import Card, PointBatch, Vectors
from .gate import Rows, checked
from .layout import LANG_KEY, TEXT_SPARSE, same_build
from .retry import NotDone, TooLarge
from .server_names import CARD_KEY, CURSOR_KEY, Names, version_number

MAX_REQUEST_BYTES = 8 << 20
"""Servers refuse 32 MiB; smaller requests are also cheaper to repeat."""
_JSON_BYTES_PER_FLOAT32 = 5  # a float32 takes about 20 characters as JSON, four of which the row's size counts
_POLL = 0.5
_DISTANCES = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT}


class ServerWriter:
    """A version that is being filled; see `types.CollectionWriter`. Made by `open_writer`; for one thread."""

    def __init__(self, names: Names, name: str, version: str, *, card: Card, committed: int) -> None:
        self._names = names
        self._client = names.client
        self._server = names.server
        self._name = name
        self._version = version
        self._card = card
        self._committed = committed
        self._closed = False

    def __enter__(self) -> ServerWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def committed(self) -> int:
        """Rows that survive a power cut: what the last `commit` named, 0 for a new version."""
        return self._committed

    def upsert(self, batch: PointBatch) -> None:
        """Check, then write in requests of at most 8 MiB. Raises DataError or MismatchError and has written nothing.

        Raises ServerError when the server stays away or refuses; then some of the requests may have been done.
        """
        self._check_open()
        rows = checked(batch, card=self._card)
        for start, stop in _requests(rows.sizes):
            self._send(rows, batch.vectors, start, stop)

    def commit(self, rows: int) -> None:
        """Record that the first `rows` rows of the input are in; `upsert` has made them durable already."""
        self._check_open()
        self._names.write_metadata(self._version, {CURSOR_KEY: {"rows": rows}})
        self._committed = rows

    def publish(self, card: Card) -> None:
        """Check the count, write `card`, wait for the index, move the alias, delete older versions; closes the writer.

        Raises CorruptError when the points are not as many as the card says; the next run then starts over.
        """
        self._check_open()
        if not same_build(card, self._card):
            raise MismatchError("The card to publish describes another build than the one that was loaded.")
        self._check_count(card)
        created = card.created or datetime.now(UTC).isoformat(timespec="seconds")
        final = replace(card, version=self._version.rpartition("__")[2], created=created)
        self._names.write_metadata(self._version, {CARD_KEY: final.to_json()})
        self._wait_for_index()
        self._server.call(self._switch)
        for version in self._names.versions(self._name):
            if version != self._version:
                self._names.remove(version)
        self.close()

    def close(self) -> None:
        """What was committed stays for the next run."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise XqgError("This writer is closed; ask the store for another one.")

    def _send(self, rows: Rows, vectors: Mapping[str, Vectors], start: int, stop: int) -> None:
        """Write the rows from `start` to `stop`; halves them when the server finds them too large."""
        batch = models.Batch.model_construct(  # the gate has validated; doing it again would cost as much as the rest
            ids=[str(one) for one in rows.ids[start:stop]],
            vectors={name: matrix[start:stop].tolist() for name, matrix in vectors.items()},
            payloads=rows.payloads[start:stop],
        )
        try:
            self._server.call(lambda: self._upsert(batch))
        except TooLarge:
            if stop - start == 1:
                raise
            middle = (start + stop) // 2
            self._send(rows, vectors, start, middle)
            self._send(rows, vectors, middle, stop)

    def _upsert(self, batch: models.Batch) -> None:
        result = self._client.upsert(self._version, batch, wait=True)
        if result.status != models.UpdateStatus.COMPLETED:
            raise NotDone(f"an upsert was answered with {result.status.value}")

    def _check_count(self, card: Card) -> None:
        found = self._server.call(lambda: self._client.count(self._version, exact=True)).count
        if found == card.count:
            return
        self._names.write_metadata(self._version, {CURSOR_KEY: {"rows": 0}})  # nobody continues a version at row 0
        raise CorruptError(
            f"{self._version} on {self._server.where} holds {found:,} points, {card.count:,} were expected: the input"
            " changed since a stopped load, or has an id twice. Run the same command again: it starts over."
        )

    def _wait_for_index(self) -> None:
        """Until the optimizers rest, or the deadline: a search before that is right, but slow."""
        end = time.monotonic() + self._server.deadline
        while time.monotonic() < end:
            status = self._server.call(lambda: self._client.get_collection(self._version)).status
            if status == models.CollectionStatus.RED:
                raise ServerError(f"{self._server.where} cannot build the index of {self._version}; see its log.")
            if status != models.CollectionStatus.YELLOW:
                return
            time.sleep(_POLL)

    def _switch(self) -> None:
        """Point the alias here in one request; looks again each time, so that a repeated attempt is right as well."""
        here = models.CreateAlias(collection_name=self._version, alias_name=self._name)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=here)]
        aliases = self._client.get_aliases().aliases
        if any(one.alias_name == self._name for one in aliases):
            gone = models.DeleteAlias(alias_name=self._name)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        self._client.update_collection_aliases(operations)


def open_writer(names: Names, name: str, *, card: Card, is_local: bool) -> ServerWriter:
    """Continue the newest unfinished version if it has a commit of the same build, else begin a new one."""
    names.refuse_plain(name)
    current = version_number(name, names.target(name) or "") or 0
    kept, highest = None, current
    for version in reversed(names.versions(name)):
        number = version_number(name, version) or 0
        highest = max(highest, number)
        if number <= current:
            continue
        stored = names.card(version)
        if kept is None and stored is not None and same_build(stored, card) and names.cursor(version) > 0:
            kept = version
        else:
            names.remove(version)
    version = kept or f"{name}__v{highest + 1:04d}"
    if kept is None:
        names.server.call(lambda: _create(names.client, version, card=card, is_local=is_local))
    return ServerWriter(names, name, version, card=card, committed=names.cursor(version))


def _create(client: QdrantClient, version: str, *, card: Card, is_local: bool) -> None:
    """The empty collection and its language index; repeating it is harmless."""
    wanted = replace(card, version=version.rpartition("__")[2], count=0, digest="")
    dense = models.VectorParams(size=card.encoder.dim, distance=_DISTANCES[card.distance])
    if not client.collection_exists(version):
        client.create_collection(
            version,
            vectors_config={name: dense for name in card.vectors},
            sparse_vectors_config={TEXT_SPARSE: models.SparseVectorParams()},
            metadata={CARD_KEY: wanted.to_json()},
        )
    if not is_local:  # the local mode has no such index, and says so each time
        keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
        client.create_payload_index(version, LANG_KEY, field_schema=keyword, wait=True)


def _requests(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Spans of rows whose JSON stays below MAX_REQUEST_BYTES; a single row may be above it."""
    start, total = 0, 0
    for at, size in enumerate(sizes):
        estimate = _JSON_BYTES_PER_FLOAT32 * size
        if at > start and total + estimate > MAX_REQUEST_BYTES:
            yield start, at
            start, total = at, 0
        total += estimate
    if start < len(sizes):
        yield start, len(sizes)
