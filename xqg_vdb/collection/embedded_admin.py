"""The operators' side of the embedded store: versions, rollback, clean-up, states and snapshots.

In: a store. Out: the records of `admin`. Whatever changes something holds the loader's lock, and the pointer file is
replaced in one step before anything is deleted, so that a kill at any moment leaves a collection that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CorruptError, DataError, LockedError
from . import embedded_snapshots, engine
from .admin import CollectionState, Snapshot, VersionState, rollback_target
from .disk import bytes_on_disk, disk_errors, empty_bin, make_folder
from .locks import FileLock
from .versions import Folder, Version

if TYPE_CHECKING:
    from .embedded import EmbeddedStore


class EmbeddedAdmin:
    """See `admin.Admin`. A snapshot is `<collection>/snapshots/<name>-<version>-<time>.tar.gz`."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def versions(self, name: str) -> list[VersionState]:
        """All versions of a collection, oldest first. Raises DataError when there are none."""
        folder = self._store.folder(name)
        with disk_errors(folder.path):
            current, kept = folder.current(), folder.kept()
            states = [_state(version, current=current, kept=kept) for version in folder.versions()]
        if not states:
            raise self._store.missing(folder)
        return states

    def rollback(self, name: str, *, version: str | None = None) -> str:
        """Publish a finished version again, after it was opened and its points were counted; returns its name.

        Raises DataError when there is none, CorruptError when it is damaged, LockedError while a load is at work.
        """
        with self._locked(name) as folder:
            wanted = rollback_target(name, self.versions(name), version)
            target = Version(folder.path / wanted)
            _check(target)
            folder.point_to(target, keep=len(folder.kept()) + 1)
        return wanted

    def gc(self, name: str, *, keep: int, unfinished: bool = False) -> list[str]:
        """Delete finished versions except the published and the latest `keep` - 1 others; returns their names.

        A version that somebody still reads stays; its reader deletes it when it moves on.
        unfinished: delete what stopped loads left as well.
        """
        with self._locked(name) as folder:
            current, kept = folder.current(), folder.kept()
            if current is not None and len(kept) > keep - 1:
                folder.point_to(current, keep=keep)
            staying = {one.name for one in [current, *kept[: keep - 1]] if one is not None}
            dropped = {one.name for one in kept[keep - 1 :]}
            gone = []
            for version in folder.versions():
                above = current is None or version.number > current.number
                if version.name in staying or (above and version.name not in dropped and not unfinished):
                    continue
                with suppress(LockedError):
                    lock = FileLock.take(version.lock, busy="")
                    folder.remove(version)
                    lock.release()
                    gone.append(version.name)
            empty_bin(folder.path)
        return gone

    def state(self, name: str) -> CollectionState:
        """What the engine says about the published version. Raises DataError, LockedError, CorruptError."""
        with self._store.reading(name) as reader, engine.errors(reader.version.shard):
            info = reader.shard.info()
            return CollectionState(
                card=reader.card,
                points=engine.count(reader.shard),
                languages=engine.languages(reader.shard),
                indexed=info.indexed_vectors_count,
                status="green",  # a version is published when its index is built, and never changed after
                disk_bytes=bytes_on_disk(reader.version.path),
                details={"segments": info.segments_count},
            )

    def create_snapshot(self, name: str) -> Snapshot:
        """The published version as a compressed tar with checksums; searches may go on meanwhile.

        Raises LockedError while a load is at work, DiskError.
        """
        with self._locked(name) as folder:
            version = folder.current()
            if version is None:
                raise self._store.missing(folder)
            make_folder(_shelf(folder))
            moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
            file = _shelf(folder) / f"{name}-{version.name}-{moment}.tar.gz"
            embedded_snapshots.write(version, file, collection=name)
            return _described(file)

    def snapshots(self, name: str) -> list[Snapshot]:
        """The snapshots that lie beside the versions, oldest first."""
        folder = self._store.folder(name)
        if not folder.path.is_dir():
            raise self._store.missing(folder)
        with disk_errors(folder.path):
            return sorted(map(_described, _shelf(folder).glob("*.tar.gz")), key=lambda one: one.created)

    def download_snapshot(self, name: str, snapshot: str, to: Path) -> None:
        """Copy a snapshot into the file `to`, after every file in it was compared with its checksum."""
        if snapshot not in [one.name for one in self.snapshots(name)]:
            raise DataError(f"Collection {name!r} has no snapshot {snapshot!r}; see `xqg-vdb snapshot list {name}`.")
        embedded_snapshots.copy(_shelf(self._store.folder(name)) / snapshot, to)

    def restore_snapshot(self, name: str, file: Path) -> str:
        """Unpack a snapshot into a new version, check it, publish it; the version before stays for a rollback.

        Raises DataError for what is no snapshot, CorruptError for a damaged one; then nothing has changed.
        """
        self._store.check_process()
        folder = self._store.folder(name)
        with disk_errors(folder.path):
            make_folder(folder.path)
            with self._locked(name):
                empty_bin(folder.path)
                versions = folder.versions()
                version = folder.version(versions[-1].number + 1 if versions else 1)
                embedded_snapshots.restore(file, version)
                folder.point_to(version, keep=len(folder.kept()) + 2)
        return version.name

    @contextmanager
    def _locked(self, name: str) -> Iterator[Folder]:
        """Holding the loader's lock."""
        self._store.check_process()
        folder = self._store.folder(name)
        if not folder.path.is_dir():
            raise self._store.missing(folder)
        with disk_errors(folder.path):
            lock = FileLock.take(folder.load_lock, busy=f"Collection {name!r} in {self._store.path} is being loaded by")
            try:
                yield folder
            finally:
                lock.release()


def _state(version: Version, *, current: Version | None, kept: list[Version]) -> VersionState:
    try:
        card = version.card()
    except CorruptError:
        card = None
    finished = version == current or version in kept
    return VersionState(version.name, published=version == current, finished=finished, card=card)


def _check(version: Version) -> None:
    """Raise CorruptError unless the version can be opened and is whole; one that somebody reads is."""
    with suppress(LockedError):
        lock = FileLock.take(version.lock, busy="")
        try:
            engine.load_checked(version.shard, version.card()).close()
        finally:
            lock.release()


def _shelf(folder: Folder) -> Path:
    return folder.path / "snapshots"


def _described(file: Path) -> Snapshot:
    found = file.stat()
    return Snapshot(file.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC).isoformat(timespec="seconds"))
