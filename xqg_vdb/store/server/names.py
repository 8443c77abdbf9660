"""The collections on a server: an alias for each, numbered versions behind it, records in their metadata, their points.

Nothing is deleted that has none of our records, or that an alias points to.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal

from xqg_vdb.errors import LockedError, MismatchError, XqgError
from xqg_vdb.store.layout import Moved, missing_collection, split_version
from xqg_vdb.store.operations import absent
from xqg_vdb.store.server.client import Exists, Limited, NoAccess, NotDone, NotFound, Pending, Server
from xqg_vdb.types import Card

CARD_KEY = "xqg_card"
CURSOR_KEY = "xqg_cursor"
NO_ROWS = {"rows": 0}  # of a version that nobody continues: its points may be others
LOADER_KEY = "xqg_loader"
BULK_KEY = "xqg_bulk"
"""Of a version whose index waits: the threshold that the server would have used."""
AUGMENT_KEY = "xqg_augment"
"""Of a copy that `augment` makes: of what, and by which run, so that it can be continued and undone."""
LEAVING_KEY = "xqg_leaving"
"""Of a version that is being deleted. Who deletes writes it, then looks at the aliases; who publishes moves the alias,
then looks for it: whichever comes second sees the other and gives way, without a lock."""
_OURS = frozenset({CARD_KEY, CURSOR_KEY, LOADER_KEY, BULK_KEY, AUGMENT_KEY})
_PAGE = 512
READ_DEADLINE = 30.0
"""Seconds after which reading is given up: somebody waits for it."""
_PROPOSAL_PATIENCE, _PROPOSAL_LOOK = 30.0, 1.0

T = TypeVar("T")


def any_of(key: str, values: Sequence[str] | None) -> models.Filter | None:
    """Only points whose field has one of these values; None for no filter."""
    match = None if values is None else models.MatchAny(any=list(values))
    return None if match is None else models.Filter(must=[models.FieldCondition(key=key, match=match)])


_log = logging.getLogger(__name__)


class Names:
    """What a server has under a name. waited_for: somebody waits, so that it is given up as soon as reading is."""

    def __init__(self, client: QdrantClient, server: Server, *, waited_for: bool = False) -> None:
        self.client, self.server, self._longest = client, server, READ_DEADLINE if waited_for else math.inf
        self.is_local = isinstance(client._client, QdrantLocal)

    def look(self, request: Callable[[], T], *, deadline: float | None = None) -> T:
        """What the request returns."""
        return self.server.call(request, deadline=self.deadline if deadline is None else deadline)

    @property
    def deadline(self) -> float:
        """Seconds after which a request is given up."""
        return min(self._longest, self.server.deadline)

    def collections(self) -> list[str]:
        """Every collection, whoever made it."""
        return [collection.name for collection in self.look(self.client.get_collections).collections]

    def aliases(self) -> dict[str, str]:
        """Every alias with the collection behind it."""
        return {alias.alias_name: alias.collection_name for alias in self.look(self.client.get_aliases).aliases}

    def published(self) -> list[str]:
        """Aliases that point to a version of their own name, sorted."""
        return sorted(name for name, version in self.aliases().items() if version_number(name, version) is not None)

    def target(self, name: str) -> str | None:
        """The collection behind the alias `name`, None when there is no such alias."""
        return self.aliases().get(name)

    def numbered(self, name: str, among: Sequence[str] | None = None) -> list[str]:
        """Collections that are named like versions of `name`, oldest first, whoever made them."""
        numbers = [(version_number(name, full), full) for full in (self.collections() if among is None else among)]
        return [full for number, full in sorted((n, full) for n, full in numbers if n is not None)]

    def new_version(self, name: str, *, past: Sequence[str]) -> str:
        """The name of the next version: past these collections, those that just went too, and past all aliases."""
        numbers = [version_number(name, one) or 0 for one in [*past, *self.aliases()]]
        return f"{name}__v{max(numbers, default=0) + 1:04d}"

    def records(self, name: str, among: Sequence[str] | None = None) -> dict[str, Mapping[str, Any]]:
        """The metadata of its versions, oldest first: of collections that have a record of ours."""
        found: dict[str, Mapping[str, Any]] = {}
        for version in self.numbered(name, among):
            with suppress(NotFound):  # deleted meanwhile
                if is_ours(record := self.metadata(version)):
                    found[version] = record
        return found

    def refuse_foreign(self, name: str, among: Sequence[str] | None = None) -> str | None:
        """The published version of `name`. Raises MismatchError for somebody's collection, or an alias of one."""
        self.refuse_plain(name, among)
        target = self.target(name)
        try:
            record = self.metadata(target) if target else {}
        except NotFound:
            return None
        if target and (version_number(name, target) is None or not is_ours(record)):
            raise MismatchError(
                f"{name!r} on {self.server.where} is an alias of the collection {target!r}, which is no version that"
                " xqg-vdb made; choose another name, or delete that alias first."
            )
        return target

    def refuse_plain(self, name: str, among: Sequence[str] | None = None) -> None:
        """Raise MismatchError when `name` is a collection itself: an alias of that name cannot be made beside it."""
        if name in (self.collections() if among is None else among):
            raise MismatchError(
                f"{self.server.where} has a collection {name!r} that xqg-vdb did not make (its own are aliases); choose"
                " another name, or delete that collection first."
            )

    def missing(self, name: str) -> XqgError:
        """Why `name`, which may be wiki@v0003, cannot be read, with the names that could."""
        base, version = split_version(name)
        try:
            self.look(lambda: self.client.get_collection(base))
        except NoAccess as error:
            return error
        except NotFound:
            pass
        else:
            if version is None:
                return NoAccess(
                    f"The API key may search {base!r} on {self.server.where}, but cannot see its versions; set"
                    " XQG_VDB_API_KEY to one that may read all collections."
                )
        if version:
            return Moved(f"Collection {base!r} on {self.server.where} has no version {version}.")
        records = self.records(base)
        finished = [short(version) for version, record in records.items() if is_finished(record)]
        unfinished = absent(base, at=f"on {self.server.where}", begun=bool(records), finished=finished)
        return unfinished or missing_collection(base, self.published(), where=self.server.where)

    def metadata(self, version: str, *, deadline: float | None = None) -> Mapping[str, Any]:
        """All entries of a version's metadata."""
        return self.look(lambda: self.client.get_collection(version), deadline=deadline).config.metadata or {}

    def write_metadata(self, version: str, record: Mapping[str, Any], *, deadline: float | None = None) -> None:
        """Add or replace entries of a version's metadata."""
        self.look(lambda: self.client.update_collection(version, metadata=dict(record)), deadline=deadline)

    def propose(self, request: Callable[[], object], *, done: Callable[[], bool]) -> None:
        """Send a change that a cluster agrees on, once: of one that it only noted, the effect is waited for."""
        try:
            self.look(request)
        except Pending:
            end = self.server.clock() + _PROPOSAL_PATIENCE
            while self.server.clock() < end:
                self.server.sleep(_PROPOSAL_LOOK)
                if self.look(done):
                    return
            raise

    def create(self, version: str, request: Callable[[], object]) -> None:
        """Make a collection; of two that make it at once, the second finds the first one's."""
        with suppress(Exists):
            self.propose(request, done=lambda: self.client.collection_exists(version))

    def publish(self, name: str, version: str) -> str | None:
        """Point the alias at a version, in the one step that the server saves whole; where it pointed before.

        Raises LockedError when somebody is deleting that version; the alias is then where it was.
        """
        before = self.target(name)
        try:
            self._point(name, version)
            leaving = self.metadata(version).get(LEAVING_KEY)
        except NotFound:
            leaving = True
        if leaving:
            if before not in (None, version):
                self._point(name, before)
            raise LockedError(f"{version} on {self.server.where} is being deleted; look at `xqg-vdb versions {name}`.")
        return before

    def unpublish(self, name: str) -> None:
        """Delete the alias `name`, if there is one."""
        if self.target(name) is not None:
            self._point(name, None)

    def _point(self, name: str, version: str | None) -> None:
        change = (
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
            if version is None  # else it replaces an alias of that name
            else models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=version, alias_name=name))
        )
        self.propose(lambda: self.client.update_collection_aliases([change]), done=lambda: self.target(name) == version)

    def remove(self, version: str) -> bool:
        """Delete a version unless an alias points to it: False then. One that is gone already is fine."""
        try:
            self.write_metadata(version, {LEAVING_KEY: {"by": os.getpid()}})
        except NotFound:
            return True
        if version in self.aliases().values():
            self.write_metadata(version, {LEAVING_KEY: {}})
            return False
        self._warn_of_snapshots(version)
        self.propose(
            lambda: self.client.delete_collection(version), done=lambda: not self.client.collection_exists(version)
        )
        return True

    def _warn_of_snapshots(self, version: str) -> None:
        """Snapshots stay on the server's disk when their version goes, where only its operator reaches them."""
        with suppress(XqgError):
            if left := [shot.name for shot in self.look(lambda: self.client.list_snapshots(version))]:
                _log.warning(
                    "%s: the snapshots of %s stay in its folder snapshots/%s, out of reach for `xqg-vdb snapshot`: %s",
                    self.server.where, version, version, ", ".join(left),
                )  # fmt: skip

    def drop(self, name: str) -> None:
        """Delete the alias and all versions. Raises MismatchError when another alias points to one of them."""
        versions = list(self.records(name))
        if others := [alias for alias, target in self.aliases().items() if alias != name and target in versions]:
            raise MismatchError(
                f"{name!r} on {self.server.where} is searched as {', '.join(sorted(others))} too: delete that alias"
                " first."
            )
        self.unpublish(name)
        for version in versions:
            self.remove(version)

    def pages(
        self, version: str, *, page: int = _PAGE, after: Any = None, vectors: bool | list[str] = False,
        payload: bool | list[str] = True, wanted: models.Filter | None = None,
    ) -> Iterator[list[models.Record]]:  # fmt: skip
        """All points from the one with the id `after` on, a page at a time."""

        def scroll(offset: Any) -> tuple[list[models.Record], Any]:
            return self.client.scroll(
                version, scroll_filter=wanted, limit=self.server.most("limit", page), offset=offset,
                with_payload=payload, with_vectors=vectors,
            )  # fmt: skip

        offset = after
        while True:
            records, offset = self.look(partial(scroll, offset=offset))
            yield records
            if offset is None:
                return

    def count(self, version: str, *, wanted: models.Filter | None = None) -> int:
        """How many points there are; where a server's strict mode forbids an exact count, they are paged through."""
        try:
            return self.look(lambda: self.client.count(version, count_filter=wanted, exact=True)).count
        except Limited:
            return sum(map(len, self.pages(version, page=10_000, payload=False, wanted=wanted)))


def version_number(name: str, version: str) -> int | None:
    """4 for name__v0004; None when it is no version of `name`."""
    found = re.fullmatch(re.escape(name) + r"__v(\d{4,})", version)
    return int(found[1]) if found else None


def short(version: str) -> str:
    """v0004 for name__v0004."""
    return version.rpartition("__")[2]


def completed(status: str) -> None:
    """Raise NotDone, so that the call is repeated, unless the server has carried it out."""
    if status != models.UpdateStatus.COMPLETED.value:
        raise NotDone(f"points were answered with {status}")


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a collection with this metadata was made by xqg-vdb."""
    return not _OURS.isdisjoint(record)


def card_in(record: Mapping[str, Any]) -> Card | None:
    """The card in a collection's metadata; None when there is none, or something else in its place."""
    try:
        return Card.from_json(record[CARD_KEY])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def cursor_in(record: Mapping[str, Any]) -> int:
    """Rows that are durable, by a collection's metadata; 0 where that says nothing."""
    try:
        return int(record[CURSOR_KEY]["rows"])
    except (KeyError, TypeError, ValueError):
        return 0


def is_finished(record: Mapping[str, Any]) -> bool:
    """Whether a version was published once, and is not being deleted."""
    card = card_in(record)
    return card is not None and bool(card.created) and not record.get(LEAVING_KEY)


# Who is loading a version on a server: a record in its metadata that its loader renews, because a server has no locks.

RENEWED_EVERY = 10.0
PATIENCE = 30.0
"""Seconds without a sign of life after which a loader counts as dead; thrice the time between two signs."""
_LOOK_EVERY = 1.0


class Lease:
    """Our record of a version: made with it, renewed while we work, taken out when we stop."""

    def __init__(self, names: Names, version: str) -> None:
        self._names, self._version = names, version
        self._renewed, self._beats = time.monotonic(), 0
        self.id = uuid.uuid4().hex

    def record(self) -> dict[str, Any]:
        """What stands in the metadata."""
        return {"id": self.id, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beats}

    def write(self) -> None:
        """Sign the version."""
        self._beats += 1
        self._renewed = time.monotonic()
        self._names.write_metadata(self._version, {LOADER_KEY: self.record()})

    def renew(self) -> None:
        """Sign again when it is time."""
        if time.monotonic() - self._renewed >= RENEWED_EVERY:
            self.write()

    def release(self) -> None:
        """Take the record out, not another's; a server that is away keeps it, and others find out that it is stale."""
        with suppress(XqgError):
            if (self._names.metadata(self._version, deadline=0.0).get(LOADER_KEY) or {}).get("id") == self.id:
                self._names.write_metadata(self._version, {LOADER_KEY: {}}, deadline=0.0)


class Watch:
    """Looks whether versions are being loaded. A loader that gave no sign of life once is not waited for again."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._silent: list[Mapping[str, Any]] = []
        self.waited = False
        """Whether time has passed in which everything may have changed."""

    def holder(self, version: str) -> str | None:
        """Who is loading the version, such as "process 71 on host"; None when nobody is. Watches 30 s if need be."""
        first = self._record(version)
        if not first or first in self._silent or _is_dead(first):
            return None
        self.waited = True
        for _ in range(round(PATIENCE / _LOOK_EVERY)):
            self._names.server.sleep(_LOOK_EVERY)
            record = self._record(version)
            if not record:
                return None
            if record != first:
                return process_of(record)
        self._silent.append(first)
        return None

    def _record(self, version: str) -> Mapping[str, Any]:
        try:
            record = self._names.metadata(version).get(LOADER_KEY)
        except NotFound:
            return {}
        return record if isinstance(record, dict) else {}


def process_of(record: Mapping[str, Any]) -> str:
    """Whose record it is, for messages."""
    return f"process {record.get('pid')} on {record.get('host')}"


def _is_dead(record: Mapping[str, Any]) -> bool:
    """Whether the record is of a process on this machine that has ended."""
    pid = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False
