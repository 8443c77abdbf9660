"""The folder of an embedded collection: version folders, the pointer to the published one, and durable small files.

    <store>/<name>/CURRENT            {"version": "v0002", "kept": ["v0001"]}, replaced atomically
    <store>/<name>/load.lock          held by the one loader
    <store>/<name>/v0001/shard/       the engine's files
    <store>/<name>/v0001/card.json    the card: the wanted one while loading, the final one once published
    <store>/<name>/v0001/cursor.json  {"rows": rows of the input that are durable, "points": points at that moment}
    <store>/<name>/v0001/LOCK         held by the one process that reads this version

Versions that the pointer keeps are finished ones that can be rolled back to. Of all others, one above the published
version is unfinished, one below it is finished with. This file refuses to know the engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xqg_vdb.errors import CorruptError, LockedError
from xqg_vdb.files import FileLock, empty_bin, remove_folder, write_json
from xqg_vdb.store.operations import VersionState
from xqg_vdb.types import Card

_VERSION = re.compile(r"v(\d{4,})")

_SUM = "sha256"

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
            record = _read(path)
            card, noted = Card.from_json(record), record.get(_SUM, "")
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path} is not a card ({error!r:.200}); load the collection again.") from error
        if noted and noted != _sum_of(record):  # cards of earlier versions have none
            raise CorruptError(f"{path} was changed after it was written: it is damaged; load the collection again.")
        return card

    def write_card(self, card: Card) -> None:
        """Replace the card, durably."""
        record = card.to_json()
        write_json(self.path / "card.json", {**record, _SUM: _sum_of(record)})

    def cursor(self) -> tuple[int, int]:
        """(rows, points) that are durable; (0, 0) before the first commit. Raises CorruptError."""
        path = self.path / "cursor.json"
        if not path.exists():
            return 0, 0
        try:
            record = _read(path)
            return int(record["rows"]), int(record["points"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
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
        return self._pointed()[0]

    def kept(self) -> list[Version]:
        """Finished versions that can be rolled back to, the latest published first. Raises CorruptError."""
        return [version for version in self._pointed()[1] if version.path.is_dir()]

    def _pointed(self) -> tuple[Version | None, list[Version]]:
        try:
            record = _read(self.pointer)
            names = [record["version"], *record.get("kept", [])]
        except FileNotFoundError:
            return None, []
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptError(f"{self.pointer} is damaged ({error!r}); load the collection again.") from error
        for name in names:
            if not isinstance(name, str) or not _VERSION.fullmatch(name):
                raise CorruptError(f"{self.pointer} names no version: {name!r}; load the collection again.")
        current, *kept = [Version(self.path / name) for name in names]
        return current, kept

    def versions(self) -> list[Version]:
        """All version folders, oldest first."""
        with suppress(FileNotFoundError):
            found = [Version(path) for path in self.path.iterdir() if _VERSION.fullmatch(path.name)]
            return sorted(found, key=lambda version: version.number)
        return []

    def version(self, number: int) -> Version:
        """The version with this number; need not exist."""
        return Version(self.path / f"v{number:04d}")

    def point_to(self, version: Version, *, keep: int) -> None:
        """Make `version` the published one, in one step; of those before it, the latest `keep` - 1 are kept."""
        current, kept = self.current(), self.kept()
        before = [one for one in [current, *kept] if one is not None and one.name != version.name]
        write_json(self.pointer, {"version": version.name, "kept": [one.name for one in before[: keep - 1]]})

    def remove(self, version: Version) -> None:
        """Delete a version; first out of sight, then file by file, so that a crash leaves no half version."""
        remove_folder(version.path)

    def sweep(self) -> None:
        """Delete what a crash left in the bin, and versions below the published one that nobody keeps or reads."""
        empty_bin(self.path)
        current, kept = self.current(), {version.name for version in self.kept()}
        for version in self.versions():
            if current is None or version.number >= current.number or version.name in kept:
                continue
            with suppress(LockedError, FileNotFoundError):
                lock = FileLock.take(version.lock, busy="")
                self.remove(version)
                lock.release()


def version_states(folder: Folder) -> list[VersionState]:
    """All versions, oldest first."""
    current, kept = folder.current(), folder.kept()
    return [_state(version, current=current, kept=kept) for version in folder.versions()]


def _state(version: Version, *, current: Version | None, kept: list[Version]) -> VersionState:
    try:
        card = version.card()
    except CorruptError:
        card = None
    lost = current is None and card is not None and bool(card.created)  # finished, and the pointer is gone
    finished = version == current or version in kept or lost
    return VersionState(version.name, published=version == current, finished=finished, card=card)


def stamp_of(pointer: str) -> Stamp | None:
    """The stamp of a pointer file; costs one stat, so that every search can afford it."""
    try:
        found = os.stat(pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ino


def _sum_of(record: Mapping[str, Any]) -> str:
    """The checksum of a card as it is written: over everything but the checksum."""
    rest = {key: value for key, value in record.items() if key != _SUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
