"""Snapshot files from and to a server, over its REST interface: the client library can neither fetch nor send them.

In: an address, names, files. Out: files, or a collection on the server. This file refuses to know what is in them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ..errors import CorruptError
from .disk import disk_errors

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
