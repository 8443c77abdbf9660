"""The names of collections on a server: an alias per collection, a numbered version behind it, records in its metadata.

In: a client. Out: names, cards, cursors. This file refuses to know points.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_vdb.errors import MismatchError, XqgError
from xqg_vdb.store.server.client import Server
from xqg_vdb.types import Card

CARD_KEY = "xqg_card"
CURSOR_KEY = "xqg_cursor"
READ_DEADLINE = 30.0
"""Seconds after which reading is given up: somebody waits for it."""


class Names:
    """Which versions a server has of a name, and which one its alias points to."""

    def __init__(self, client: QdrantClient, server: Server) -> None:
        self.client = client
        self.server = server

    def published(self) -> list[str]:
        """Aliases that point to a version of their own name, sorted; a wrong address is found out in seconds."""
        deadline = min(READ_DEADLINE, self.server.deadline)
        aliases = self.server.call(self.client.get_aliases, deadline=deadline).aliases
        return sorted(
            one.alias_name for one in aliases if version_number(one.alias_name, one.collection_name) is not None
        )

    def target(self, name: str) -> str | None:
        """The collection behind the alias `name`, None when there is no such alias."""
        aliases = self.server.call(self.client.get_aliases).aliases
        return next((one.collection_name for one in aliases if one.alias_name == name), None)

    def versions(self, name: str) -> list[str]:
        """Its versioned collections, oldest first."""
        found = self.server.call(self.client.get_collections).collections
        numbered = [(version_number(name, one.name), one.name) for one in found]
        return [full for number, full in sorted((n, full) for n, full in numbered if n is not None)]

    def finished(self, name: str) -> list[str]:
        """Those of its versions that were published once, oldest first."""
        cards = {version: self.card(version) for version in self.versions(name)}
        return [version for version, card in cards.items() if card is not None and card.created]

    def refuse_plain(self, name: str) -> None:
        """Raise MismatchError when `name` is a collection itself: an alias of that name cannot be made beside it."""
        found = self.server.call(self.client.get_collections).collections
        if any(one.name == name for one in found):
            raise MismatchError(
                f"{self.server.where} has a collection {name!r} that xqg-vdb did not make (its own are aliases); choose"
                " another name, or delete that collection first."
            )

    def card(self, version: str) -> Card | None:
        """The card of a version, None when it has none."""
        record = self.metadata(version).get(CARD_KEY)
        try:
            return Card.from_json(record) if record else None
        except ValueError:
            return None

    def cursor(self, version: str) -> int:
        """Rows that are durable in a version."""
        record = self.metadata(version).get(CURSOR_KEY)
        return int(record["rows"]) if record else 0

    def write_metadata(self, version: str, record: Mapping[str, Any], *, deadline: float | None = None) -> None:
        """Add or replace entries of a version's metadata."""
        self.server.call(lambda: self.client.update_collection(version, metadata=dict(record)), deadline=deadline)

    def switch(self, name: str, version: str) -> None:
        """Point the alias at a version in one request."""
        self.server.call(lambda: self._switch(name, version))

    def _switch(self, name: str, version: str) -> None:
        """Looks again each time, so that a repeated attempt is right as well."""
        here = models.CreateAlias(collection_name=version, alias_name=name)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=here)]
        aliases = self.client.get_aliases().aliases
        if any(one.alias_name == name for one in aliases):
            gone = models.DeleteAlias(alias_name=name)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        self.client.update_collection_aliases(operations)

    def remove(self, version: str) -> None:
        """Delete a version; one that is gone already is fine."""
        self.server.call(lambda: self.client.delete_collection(version))

    def drop(self, name: str) -> None:
        """Delete the alias and all versions."""
        if self.target(name) is not None:
            operation = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
            self.server.call(lambda: self.client.update_collection_aliases([operation]))
        for version in self.versions(name):
            self.remove(version)

    def metadata(self, version: str) -> Mapping[str, Any]:
        """All entries of a version's metadata."""
        return self.server.call(lambda: self.client.get_collection(version)).config.metadata or {}


def version_number(name: str, version: str) -> int | None:
    """4 for name__v0004; None when it is no version of `name`."""
    found = re.fullmatch(re.escape(name) + r"__v(\d{4,})", version)
    return int(found[1]) if found else None


# Who is loading a version on a server: a record in its metadata that its loader renews, because a server has no locks.

LOADER_KEY = "xqg_loader"
RENEWED_EVERY = 10.0
PATIENCE = 30.0
"""Seconds without a sign of life after which a loader counts as dead; thrice the time between two signs."""
_LOOK_EVERY = 1.0


class Lease:
    """Our record: made with the version, renewed while it works, taken out when it stops."""

    def __init__(self, names: Names, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._renewed = clock()
        self._beats = 0
        self.id = uuid.uuid4().hex

    def record(self) -> dict[str, Any]:
        """What stands in the metadata."""
        return {"id": self.id, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beats}

    def write(self, version: str) -> None:
        """Sign the version."""
        self._beats += 1
        self._renewed = self._clock()
        self._names.write_metadata(version, {LOADER_KEY: self.record()})

    def renew(self, version: str) -> None:
        """Sign again when it is time."""
        if self._clock() - self._renewed >= RENEWED_EVERY:
            self.write(version)

    def release(self, version: str) -> None:
        """Take the record out; a server that is away just now keeps it, and others find out that it is stale."""
        with suppress(XqgError):
            self._names.write_metadata(version, {LOADER_KEY: {}}, deadline=0.0)


def holder(names: Names, version: str) -> str | None:
    """Who is loading the version, such as "process 71 on host"; None when nobody is. Watches for 30 s if need be."""
    first = _record(names, version)
    if not first or _is_dead(first):
        return None
    for _ in range(round(PATIENCE / _LOOK_EVERY)):
        names.server.pause(_LOOK_EVERY)
        record = _record(names, version)
        if not record:
            return None
        if record != first:
            return f"process {record.get('pid')} on {record.get('host')}"
    return None


def _record(names: Names, version: str) -> Mapping[str, Any]:
    record = names.metadata(version).get(LOADER_KEY)
    return record if isinstance(record, dict) else {}


def _is_dead(record: Mapping[str, Any]) -> bool:
    """Whether the record is of a process on this machine that has ended."""
    pid = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
