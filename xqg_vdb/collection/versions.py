"""The folder of an embedded collection: version folders, the pointer to the published one, and durable small files.

    <store>/<name>/CURRENT            {"version": "v0001"}, replaced atomically
    <store>/<name>/load.lock          held by the one loader
    <store>/<name>/v0001/shard/       the engine's files
    <store>/<name>/v0001/card.json    the card: the wanted one while loading, the final one once published
    <store>/<name>/v0001/cursor.json  {"rows": rows of the input that are durable, "points": points at that moment}
    <store>/<name>/v0001/LOCK         held by the one process that reads this version

A version above the published one is unfinished, one below it is finished with. This file refuses to know the engine.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptError, DiskError, LockedError
from ..types import Card
from .locks import FileLock

_VERSION = re.compile(r"v(\d{4,})")
_TRASH = ".trash-"
MIB = 1 << 20

Stamp = tuple[int, int]
"""Modification time and inode of a pointer file."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version folder."""

    path: Path

    @property
    def name(self) -> str:
        """Such as v0001."""
        return self.path.name

    @property
    def number(self) -> int:
        """Such as 1."""
        return int(self.path.name[1:])

    @property
    def shard(self) -> Path:
        """The engine's folder."""
        return self.path / "shard"

    @property
    def lock(self) -> Path:
        """The lock of its reader."""
        return self.path / "LOCK"

    def card(self) -> Card:
        """Its card. Raises CorruptError when it is missing or not one."""
        path = self.path / "card.json"
        try:
            return Card.from_json(_read(path))
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{path} is not a card ({error!r}); load the collection again.") from error

    def write_card(self, card: Card) -> None:
        """Replace the card, durably."""
        write_json(self.path / "card.json", card.to_json())

    def cursor(self) -> tuple[int, int]:
        """(rows, points) that are durable; (0, 0) before the first commit. Raises CorruptError."""
        path = self.path / "cursor.json"
        if not path.exists():
            return 0, 0
        try:
            record = _read(path)
            return int(record["rows"]), int(record["points"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{path} is damaged ({error!r}).") from error

    def write_cursor(self, *, rows: int, points: int) -> None:
        """Replace the cursor, durably; only after the engine's flush."""
        write_json(self.path / "cursor.json", {"rows": rows, "points": points})


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one collection; need not exist."""

    path: Path

    @property
    def pointer(self) -> Path:
        """The file that names the published version."""
        return self.path / "CURRENT"

    @property
    def load_lock(self) -> Path:
        """The lock of the loader."""
        return self.path / "load.lock"

    def stamp(self) -> Stamp | None:
        """Changes whenever another version is published; None when none is."""
        return stamp_of(str(self.pointer))

    def current(self) -> Version | None:
        """The published version, None when there is none. Raises CorruptError when the pointer is damaged."""
        try:
            name = _read(self.pointer)["version"]
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{self.pointer} is damaged ({error!r}); load the collection again.") from error
        if not isinstance(name, str) or not _VERSION.fullmatch(name):
            raise CorruptError(f"{self.pointer} names no version: {name!r}; load the collection again.")
        return Version(self.path / name)

    def versions(self) -> list[Version]:
        """All version folders, oldest first."""
        with suppress(FileNotFoundError):
            found = [Version(path) for path in self.path.iterdir() if _VERSION.fullmatch(path.name)]
            return sorted(found, key=lambda version: version.number)
        return []

    def version(self, number: int) -> Version:
        """The version with this number; need not exist."""
        return Version(self.path / f"v{number:04d}")

    def point_to(self, version: Version) -> None:
        """Make `version` the published one, in one step."""
        write_json(self.pointer, {"version": version.name})

    def remove(self, version: Version) -> None:
        """Delete a version; first out of sight, then file by file, so that a crash leaves no half version."""
        remove_folder(version.path)

    def sweep(self) -> None:
        """Delete what a crash left in the bin, and versions below the published one that nobody reads."""
        empty_bin(self.path)
        current = self.current()
        for version in self.versions():
            if current is None or version.number >= current.number:
                continue
            with suppress(LockedError, FileNotFoundError):
                lock = FileLock.take(version.lock, busy="")
                self.remove(version)
                lock.release()


def stamp_of(pointer: str) -> Stamp | None:
    """The stamp of a pointer file; costs one stat, so that every search can afford it."""
    try:
        found = os.stat(pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ino


def remove_folder(path: Path) -> None:
    """Delete a folder: renamed into the bin beside it, then emptied."""
    bin_path = path.with_name(f"{_TRASH}{path.name}-{os.getpid()}")
    os.replace(path, bin_path)
    sync_folder(path.parent)
    shutil.rmtree(bin_path, ignore_errors=True)


def empty_bin(folder: Path) -> None:
    """Delete what an interrupted `remove_folder` left in `folder`."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name.startswith(_TRASH):
                shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replace a file so that a power cut leaves the old or the new one whole, and the new one once this returns."""
    temporary = path.with_name(f".{path.name}.tmp")  # one writer at a time: the loader
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(record, file, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(path: Path, *, needed: int) -> None:
    """Raise DiskError unless `path` has `needed` free bytes: on a full disk the engine dies of SIGBUS, so ask first."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise DiskError(
            f"{path} needs {needed / MIB:,.0f} MiB of free disk, has {free / MIB:,.0f} MiB; free some space and run"
            " the same command again: it continues where it stopped."
        )


def bytes_on_disk(path: Path) -> int:
    """Bytes that a folder really takes; the engine's files are sparse."""
    return sum(512 * file.stat().st_blocks for file in path.rglob("*") if file.is_file())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate OSError inside the block into a DiskError of one sentence."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DiskError(
                f"{error.filename or path} may not be written ({reason}); the embedded store writes even to read:"
                " change the permissions or give another path."
            ) from error
        raise DiskError(f"{error.filename or path} cannot be used ({reason}).") from error


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
