"""The operators' side of a server: versions, rollback, clean-up, states and snapshots.

In: names. Out: the records of `admin`. An alias is moved in one request before anything is deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx
from qdrant_client import models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import CorruptError, DataError, LockedError
from xqg_vdb.files import disk_errors
from xqg_vdb.store.layout import LANG_KEY, check_name, missing_collection
from xqg_vdb.store.operations import CollectionState, Snapshot, VersionState, rollback_target
from xqg_vdb.store.server.names import CARD_KEY, CURSOR_KEY, READ_DEADLINE, Names, holder, version_number

# Snapshot files from and to a server, over its REST interface: the client library can neither fetch nor send them.

_LONGEST_RESTORE = 6 * 3600.0
"""Seconds that a server may take to unpack what it was sent."""


@dataclass(frozen=True, slots=True)
class RestAddress:
    """Where a server's REST interface is, and the key to it. timeout: seconds for one step of a transfer."""

    base: str
    key: str | None = field(repr=False)
    timeout: float


def download(address: RestAddress, collection: str, snapshot: str, *, to: Path, checksum: str | None) -> None:
    """Copy a snapshot into the file `to`, which appears when it is whole. Raises CorruptError, DiskError."""
    temporary, total = to.with_name(f".{to.name}.tmp"), hashlib.sha256()
    with disk_errors(to), _client(address) as client, _errors():
        try:
            path = f"/collections/{quote(collection, safe='')}/snapshots/{quote(snapshot, safe='')}"
            with client.stream("GET", path) as answer, open(temporary, "wb") as file:
                _refuse_failure(answer)
                for block in answer.iter_bytes(1 << 20):
                    total.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if checksum and total.hexdigest() != checksum:
                raise CorruptError(f"{snapshot} did not arrive as the server has it; download it again.")
            os.replace(temporary, to)
        finally:
            temporary.unlink(missing_ok=True)


def upload(address: RestAddress, collection: str, file: Path) -> None:
    """Make a collection of a snapshot file; one of that name must not exist."""
    with disk_errors(file), open(file, "rb") as snapshot, _client(address) as client, _errors():
        path = f"/collections/{quote(collection, safe='')}/snapshots/upload"
        params = {"wait": "true", "priority": "snapshot"}
        timeout = httpx.Timeout(address.timeout, read=_LONGEST_RESTORE)
        _refuse_failure(client.post(path, params=params, files={"snapshot": (file.name, snapshot)}, timeout=timeout))


def _client(address: RestAddress) -> httpx.Client:
    headers = {"api-key": address.key} if address.key else {}
    return httpx.Client(base_url=address.base, headers=headers, timeout=address.timeout)


def _refuse_failure(answer: httpx.Response) -> None:
    if answer.status_code != httpx.codes.OK:
        answer.read()
        raise UnexpectedResponse(answer.status_code, answer.reason_phrase, answer.content, answer.headers)


@contextmanager
def _errors() -> Iterator[None]:
    """Broken conversations in the client library's words, which `retry` understands."""
    try:
        yield
    except httpx.TransportError as error:
        raise ResponseHandlingException(error) from error


T = TypeVar("T")

_MOST_LANGUAGES = 10_000


class ServerAdmin:
    """See `admin.Admin`. Snapshots are the server's own: of one node, where a cluster has several."""

    def __init__(self, names: Names, *, rest: RestAddress | None) -> None:
        self._names = names
        self._client = names.client
        self._server = names.server
        self._rest = rest

    def versions(self, name: str) -> list[VersionState]:
        """All versions of a collection, oldest first. Raises DataError when there are none."""
        check_name(name)
        published = self._names.target(name)
        states = []
        for version in self._names.versions(name):
            card = self._names.card(version)
            finished = version == published or (card is not None and bool(card.created))
            states.append(VersionState(_short(version), version == published, finished, card))
        if not states:
            raise self._missing(name)
        return states

    def rollback(self, name: str, *, version: str | None = None) -> str:
        """Publish a finished version again, after its points were counted; returns its name.

        Raises DataError when there is none, CorruptError when points are missing.
        """
        states = self.versions(name)
        wanted = rollback_target(name, states, version)
        target = f"{name}__{wanted}"
        card = next(state.card for state in states if state.name == wanted)
        if card is None:
            raise CorruptError(f"{target} on {self._server.where} has no card; load the collection again.")
        self._check_count(target, card.count)
        left = self._names.target(name)
        if left is not None:  # a load of the same build shall write it anew, not put it back as it is
            self._names.write_metadata(left, {CURSOR_KEY: {"rows": 0}})
        self._names.switch(name, target)
        return wanted

    def gc(self, name: str, *, keep: int, unfinished: bool = False) -> list[str]:
        """Delete finished versions except the published and the newest `keep` - 1 others; returns their names.

        unfinished: delete what stopped loads left as well. Raises LockedError when a load is still at work there.
        """
        states = self.versions(name)
        others = [state.name for state in states if state.finished and not state.published]
        gone = others[: max(len(others) - (keep - 1), 0)]
        if unfinished:
            gone += [state.name for state in states if not state.finished]
        for version in gone:
            by = holder(self._names, f"{name}__{version}")
            if by is not None:
                raise LockedError(f"{name}__{version} on {self._server.where} is being loaded by {by}.")
            self._names.remove(f"{name}__{version}")
        return sorted(gone)

    def state(self, name: str) -> CollectionState:
        """What the server says about the published version; it does not say what that takes on disk."""
        version = self._published(name)
        card = self._names.card(version)
        if card is None:
            raise DataError(f"Collection {name!r} on {self._server.where} has no card: xqg-vdb did not make it.")
        info = self._read(lambda: self._client.get_collection(version))
        facet = self._read(lambda: self._client.facet(version, key=LANG_KEY, limit=_MOST_LANGUAGES, exact=True))
        params = info.config.params
        details = {
            "segments": info.segments_count,
            "shards": params.shard_number,
            "replicas": params.replication_factor,
            "write consistency": params.write_consistency_factor,
        }
        return CollectionState(
            card=card,
            points=self._read(lambda: self._client.count(version, exact=True)).count,
            languages=dict(sorted((str(hit.value), hit.count) for hit in facet.hits)),
            indexed=info.indexed_vectors_count or 0,
            status=info.status.value,
            disk_bytes=None,
            details={name: value for name, value in details.items() if value is not None},
        )

    def create_snapshot(self, name: str) -> Snapshot:
        """A snapshot of the published version, made and kept by the server."""
        version = self._published(name)
        before = {one.name for one in self.snapshots(name)}
        made = self._server.call(lambda: self._client.create_snapshot(version, wait=True))
        if made is not None:
            return _described(made)
        return next(one for one in self.snapshots(name) if one.name not in before)

    def snapshots(self, name: str) -> list[Snapshot]:
        """The snapshots of the published version that the server keeps, oldest first."""
        version = self._published(name)
        found = self._read(lambda: self._client.list_snapshots(version))
        return sorted(map(_described, found), key=lambda one: one.created)

    def download_snapshot(self, name: str, snapshot: str, to: Path) -> None:
        """Copy a snapshot into the file `to`, its SHA-256 compared where the server gives one."""
        version = self._published(name)
        found = {one.name: one for one in self._read(lambda: self._client.list_snapshots(version))}
        if snapshot not in found:
            raise DataError(f"Collection {name!r} has no snapshot {snapshot!r}; see `xqg-vdb snapshot list {name}`.")
        checksum = found[snapshot].checksum
        self._server.call(lambda: download(self._address(), version, snapshot, to=to, checksum=checksum))

    def restore_snapshot(self, name: str, file: Path) -> str:
        """Upload a snapshot as a new version, check it, publish it; the version before stays for a rollback.

        Raises DataError for a snapshot of something else, CorruptError when points are missing; it is removed then.
        """
        self._names.refuse_plain(check_name(name))
        numbers = [version_number(name, version) or 0 for version in self._names.versions(name)]
        version = f"{name}__v{max(numbers, default=0) + 1:04d}"
        address = self._address()
        try:
            self._server.call(lambda: upload(address, version, file), deadline=0.0)  # a second try would be hours
            card = self._names.card(version)
            if card is None or not card.created:
                raise DataError(f"{file} is no snapshot of a collection that `xqg-vdb load` finished.")
            self._check_count(version, card.count)
            self._names.write_metadata(version, {CARD_KEY: replace(card, version=_short(version)).to_json()})
        except BaseException:
            self._names.remove(version)
            raise
        self._names.switch(name, version)
        return _short(version)

    def _published(self, name: str) -> str:
        version = self._names.target(check_name(name))
        if version is None:
            raise self._missing(name)
        return version

    def _check_count(self, version: str, expected: int) -> None:
        found = self._read(lambda: self._client.count(version, exact=True)).count
        if found != expected:
            raise CorruptError(
                f"{version} on {self._server.where} holds {found:,} points where its card promises {expected:,};"
                " load the collection again."
            )

    def _address(self) -> RestAddress:
        if self._rest is None:
            raise DataError(f"{self._server.where} makes no snapshots: only a server does, or an embedded store.")
        return self._rest

    def _read(self, request: Callable[[], T]) -> T:
        return self._server.call(request, deadline=min(READ_DEADLINE, self._server.deadline))

    def _missing(self, name: str) -> DataError:
        return missing_collection(name, self._names.published(), where=self._server.where)


def _short(version: str) -> str:
    return version.rpartition("__")[2]


def _described(found: models.SnapshotDescription) -> Snapshot:
    return Snapshot(found.name, found.size, found.creation_time or "")
