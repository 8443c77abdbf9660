"""The folder of an embedded collection: version folders, the pointer to the published one, and durable small files.

    <store>/<name>/CURRENT            {"version": "v0002", "kept": ["v0001"]}, replaced atomically
    <store>/<name>/load.lock          held by the one loader
    <store>/<name>/v0001/shard/       the engine's files
    <store>/<name>/v0001/card.json    the card: the wanted one while loading, the final one once published
    <store>/<name>/v0001/cursor.json  {"rows": rows of the input that are durable, "points": points at that moment}
    <store>/<name>/v0001/LOCK         held by the one process that reads this version

Versions that the pointer keeps are finished ones that can be rolled back to. Of all others, one above the published
version is unfinished, one below it is finished with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xqg_vdb.errors import CorruptError, LockedError
from xqg_vdb.files import FileLock, disk_errors, empty_bin, remove_folder, write_json
from xqg_vdb.store.operations import VersionState
from xqg_vdb.types import Card

_VERSION = re.compile(r"v(\d{4,})")
_SUM = "sha256"


@dataclass(slots=True)
class Version:
    """One version folder. shard: the engine's folder. lock: of its reader."""

    path: Path
    name: str = field(init=False)
    shard: Path = field(init=False)
    lock: Path = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.shard, self.lock = self.path.name, self.path / "shard", self.path / "LOCK"

    @property
    def number(self) -> int:
        """4 of v0004."""
        return int(self.name[1:])

    def card(self) -> Card:
        """Its card. Raises CorruptError when it is missing or not one."""
        path = self.path / "card.json"
        try:
            record = json.loads(path.read_bytes())
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
            record = json.loads(path.read_bytes())
            return int(record["rows"]), int(record["points"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path} is damaged ({error!r}).") from error

    def write_cursor(self, *, rows: int, points: int) -> None:
        """Replace the cursor, durably; only after the engine's flush."""
        write_json(self.path / "cursor.json", {"rows": rows, "points": points})


@dataclass(slots=True)
class Folder:
    """The folder of one collection; need not exist. pointer: the file that names the published version."""

    path: Path
    name: str = field(init=False)
    pointer: Path = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.pointer = self.path.name, self.path / "CURRENT"

    def loading(self, *, busy: str = "is being loaded by") -> FileLock:
        """The one loader's lock, taken. Raises LockedError that names who has it, DiskError."""
        with disk_errors(self.path):
            return FileLock.take(self.path / "load.lock", busy=f"Collection {self.name!r} in {self.path.parent} {busy}")

    def stamp(self) -> tuple[int, int] | None:
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
            record = json.loads(self.pointer.read_bytes())
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
            folders = (path for path in self.path.iterdir() if path.is_dir())
            versions = [Version(path) for path in folders if _VERSION.fullmatch(path.name)]
            return sorted(versions, key=lambda version: version.number)
        return []

    def next_version(self) -> Version:
        """The one after all that there are."""
        versions = self.versions()
        return Version(self.path / f"v{versions[-1].number + 1 if versions else 1:04d}")

    def replace_by(self, version: Version) -> None:
        """Publish a copy of the published version in its place, in one step; others are kept as they are."""
        write_json(self.pointer, {"version": version.name, "kept": [old.name for old in self.kept()]})

    def point_to(self, version: Version, *, keep: int) -> None:
        """Make `version` the published one, in one step; of those before it, the latest `keep` - 1 are kept."""
        before = [old.name for old in [self.current(), *self.kept()] if old is not None and old != version]
        write_json(self.pointer, {"version": version.name, "kept": before[: keep - 1]})

    def remove_unread(self, version: Version) -> bool:
        """Delete a version unless somebody reads it: False then, and its reader deletes it when it moves on."""
        with suppress(LockedError, FileNotFoundError), FileLock.take(version.lock, busy=""):
            remove_folder(version.path)
            return True
        return False

    def sweep(self) -> None:
        """Delete what a crash left in the bin, and versions below the published one that nobody keeps or reads."""
        empty_bin(self.path)
        current, kept = self.current(), self.kept()
        for version in self.versions():
            if current is not None and version.number < current.number and version not in kept:
                self.remove_unread(version)


def version_states(folder: Folder) -> list[VersionState]:
    """All versions, oldest first."""
    current, kept, states = folder.current(), folder.kept(), []
    for version in folder.versions():
        try:
            card = version.card()
        except CorruptError:
            card = None
        lost = current is None and card is not None and bool(card.created)  # finished, and the pointer is gone
        finished = version == current or version in kept or lost
        states.append(VersionState(version.name, published=version == current, finished=finished, card=card))
    return states


def stamp_of(pointer: str) -> tuple[int, int] | None:
    """Modification time and inode of a pointer file; costs one stat, so that every search can afford it."""
    try:
        stat = os.stat(pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_ino


def _sum_of(record: Mapping[str, Any]) -> str:
    """The checksum of a card as it is written: over everything but the checksum."""
    rest = {key: value for key, value in record.items() if key != _SUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
