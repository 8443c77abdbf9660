"""The published version of a collection in a folder, opened for reading: its lock, its card and its shard."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CorruptError, LockedError
from ..types import Card
from . import engine
from .disk import disk_errors
from .locks import FileLock
from .versions import Folder, Stamp, Version


@dataclass(slots=True)
class Reader:
    """The open shard of a published version, and how many calls are using it right now."""

    version: Version
    pointer: str
    stamp: Stamp
    card: Card
    shard: engine.Shard
    lock: FileLock
    users: int = 0
    retired: bool = False

    def close(self) -> None:
        """Release the shard and its lock."""
        self.shard.close()
        self.lock.release()


def open_reader(folder: Folder) -> Reader | None:
    """Lock, load and check the published version; tries again when it is replaced meanwhile. None: nothing is.

    Raises LockedError when another process has it open, CorruptError, DiskError.
    """
    busy = f"Collection {folder.path.name!r} in {folder.path.parent} is in use by"
    with disk_errors(folder.path):
        while True:
            stamp, version = folder.stamp(), folder.current()
            if stamp is None or version is None:
                return None
            try:
                lock = FileLock.take(version.lock, busy=busy)
                break
            except (LockedError, FileNotFoundError) as error:
                if folder.stamp() != stamp:
                    continue
                if isinstance(error, FileNotFoundError):
                    raise CorruptError(f"{version.path} is missing; load the collection again.") from error
                raise LockedError(f"{error}; close that one, or use a Qdrant server (--url) for several.") from None
    try:
        card = version.card()
        return Reader(version, str(folder.pointer), stamp, card, engine.load_checked(version.shard, card), lock)
    except BaseException:
        lock.release()
        raise
