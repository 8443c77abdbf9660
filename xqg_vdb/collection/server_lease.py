"""Who is loading a version on a server: a record in its metadata that its loader renews, because a server has no locks.

In: a version. Out: a lease, or who else holds it. No clock is compared with another machine's: a record that does not
change while one watches it is a dead loader's. This file refuses to know what is loaded.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..errors import XqgError
from .server_names import Names

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
