"""A lock file that says who holds it. The lock itself is flock, so the kernel frees it however its holder ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from ..errors import DiskError, LockedError


class FileLock:
    """A held exclusive lock on a file; made by `take`. Two handles in one process exclude each other, too."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        self._pid = os.getpid()

    @classmethod
    def take(cls, path: Path, *, busy: str) -> FileLock:
        """The lock on `path`, at once. Raises LockedError "`busy` process N ..." when it is held; FileNotFoundError."""
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_ino == _inode(path):
                    _sign(handle)
                    return cls(path, handle)
                os.close(handle)  # it was deleted between opening and locking: take the one that is there now
            except BlockingIOError:
                holder = _holder(handle)
                os.close(handle)
                raise LockedError(f"{busy} {holder}") from None
            except OSError as error:
                os.close(handle)
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise DiskError(f"{path} lies on a file system without locks; use a local disk.") from error
                raise

    def release(self) -> None:
        """Free the lock; again, or in a forked child, it does nothing."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if os.getpid() == self._pid:  # a fork shares the lock: unlocking there would free the parent's
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _inode(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _sign(handle: int) -> None:
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(record).encode(), 0)


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        pid, host, since = record["pid"], record["host"], record["since"]
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has not signed yet
    here = " (this very process: share one store object)" if (pid, host) == (os.getpid(), socket.gethostname()) else ""
    return f"process {pid} on {host} since {since}{here}"
