"""The operators' side of the embedded store: versions, rollback, clean-up, states and snapshots.

In: a store. Out: the records of `admin`. Whatever changes something holds the loader's lock, and the pointer file is
replaced in one step before anything is deleted, so that a kill at any moment leaves a collection that can be read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from xqg_vdb.errors import CorruptError, DataError, LockedError
from xqg_vdb.files import (
    MIB,
    FileLock,
    bytes_on_disk,
    disk_errors,
    empty_bin,
    make_folder,
    require_space,
    sync_folder,
    trash_path,
)
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.versions import Folder, Version, version_states
from xqg_vdb.store.operations import CollectionState, Snapshot, VersionState, check_published, rollback_target

if TYPE_CHECKING:
    from xqg_vdb.store.embedded.store import EmbeddedStore


# A version of an embedded collection as one file, and back: a compressed tar whose last member lists all checksums.

SCHEMA = 1
_LIST = "snapshot.json"
_BLOCK = 1 << 16
_FLOOR = 256 * MIB
_FAST = 1  # the engine's files are mostly zeros, which any level shrinks
_PLAIN_NAME = re.compile(r"(card\.json|cursor\.json|shard(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+|shard/wal/\.wal)")
_HALF_WRITTEN = ".atomicwrite"  # the engine writes into a folder of such a name, then renames the file out of it
_MOST_MEMBERS = 100_000
_LONGEST_LIST = 64 * MIB
_LONGEST_HEADER = 1 << 14


def write(version: Version, file: Path, *, collection: str) -> None:
    """Write the snapshot of a version that nobody changes meanwhile. Raises DiskError; then there is no file."""
    temporary = file.with_name(f".{file.name}.tmp")
    with disk_errors(file):
        for leftover in file.parent.glob(".*.tmp"):  # of a run that was killed; one writer at a time
            leftover.unlink()
        try:
            with open(temporary, "wb") as raw:
                _pack(version, raw, collection=collection)
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(temporary, file)
            sync_folder(file.parent)
        finally:
            temporary.unlink(missing_ok=True)


def restore(file: Path, version: Version) -> None:
    """Unpack into `version`, which must not exist.

    Raises DataError, CorruptError or DiskError, and leaves nothing then.
    """
    place = trash_path(version.path)  # a crash leaves it where the next run empties the bin
    with disk_errors(version.path):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            _checked(file, into=place)
            unpacked = Version(place)
            card = unpacked.card()
            engine.load_checked(unpacked.shard, card).close()
            unpacked.write_card(replace(card, version=version.name))
            _sync_tree(place)
            os.replace(place, version.path)
            sync_folder(version.path.parent)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


def copy(file: Path, to: Path) -> None:
    """Copy a snapshot after all of it was compared with its checksums. Raises CorruptError, DataError, DiskError."""
    _checked(file, into=None)
    temporary = to.with_name(f".{to.name}.tmp")
    with disk_errors(to):
        try:
            shutil.copyfile(file, temporary)
            os.replace(temporary, to)
        finally:
            temporary.unlink(missing_ok=True)


def _pack(version: Version, raw: IO[bytes], *, collection: str) -> None:
    sums: dict[str, str] = {}
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_FAST) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _files(version):
            name = path.relative_to(version.path).as_posix()
            member = tarfile.TarInfo(name)
            with open(path, "rb") as source:
                member.size = os.fstat(source.fileno()).st_size
                reader = _Hashing(source)
                tar.addfile(member, reader)
            sums[name] = reader.hexdigest()
        record = {"schema": SCHEMA, "collection": collection, "version": version.name, "sha256": sums}
        data = json.dumps(record).encode()
        member = tarfile.TarInfo(_LIST)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._sum = source, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._sum.update(data)
        return data

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


def _files(version: Version) -> Iterator[Path]:
    """Card, cursor and the engine's files; locks and what a kill left half-written stay behind."""
    yield version.path / "card.json"
    cursor = version.path / "cursor.json"
    if cursor.exists():
        yield cursor
    for path in sorted(version.shard.rglob("*")):
        half_written = any(part.startswith(_HALF_WRITTEN) for part in path.relative_to(version.shard).parts)
        if path.is_file() and not half_written:
            yield path


class _Member(tarfile.TarInfo):
    """A member whose header is short: those that carry names or attributes are read into memory as a whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in tarfile.REGULAR_TYPES and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _checked(file: Path, *, into: Path | None) -> None:
    """Read a whole snapshot, its checksums compared, and unpack it when `into` is given."""
    found: dict[str, str] = {}
    listed: dict[str, Any] | None = None
    with disk_errors(file):
        try:
            with tarfile.open(file, mode="r|gz", tarinfo=_Member) as tar:
                for member in tar:
                    if listed is not None or len(found) > _MOST_MEMBERS:
                        raise DataError(f"{file} is no snapshot of xqg-vdb: it has members after its list.")
                    data = _content(tar, member, file)
                    if member.name == _LIST:
                        listed = _list(data, member, file)
                    else:
                        found[member.name] = _unpack(data, into and into / _plain(member.name, file))
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptError(f"{file} is damaged or no snapshot ({error}); take another copy of it.") from error
    if listed is None:
        raise CorruptError(f"{file} is cut short; take another copy of it.")
    wrong = sorted(
        name for name in listed["sha256"].keys() | found.keys() if listed["sha256"].get(name) != found.get(name)
    )
    if wrong or "card.json" not in found:
        raise CorruptError(f"{file} is damaged: {(wrong or ['card.json'])[0]} differs; take another copy of it.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> IO[bytes]:
    data = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if data is None:
        raise DataError(f"{file} is no snapshot of xqg-vdb: {member.name[:100]!r} is not a plain file.")
    return data


def _plain(name: str, file: Path) -> PurePosixPath:
    if not _PLAIN_NAME.fullmatch(name):
        raise DataError(f"{file} is no snapshot of xqg-vdb: it has a member {name[:100]!r}.")
    return PurePosixPath(name)


def _list(data: IO[bytes], member: tarfile.TarInfo, file: Path) -> dict[str, Any]:
    try:
        record = json.loads(data.read()) if member.size <= _LONGEST_LIST else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("sha256"), dict):
        raise DataError(f"{file} is no snapshot of xqg-vdb, or of a later version of it.")
    return record


def _unpack(data: IO[bytes], path: Path | None) -> str:
    """Write a member, leaving its zeros unwritten as the engine does; its SHA-256."""
    total, size = hashlib.sha256(), 0
    if path is None:
        while block := data.read(_BLOCK):
            total.update(block)
        return total.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as out:
        while block := data.read(_BLOCK):
            total.update(block)
            size += len(block)
            if block.strip(b"\0"):
                require_space(path.parent, needed=_FLOOR)
                out.write(block)
            else:
                out.seek(len(block), os.SEEK_CUR)
        out.truncate(size)
    return total.hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


class EmbeddedAdmin:
    """See `admin.Admin`. A snapshot is `<collection>/snapshots/<name>-<version>-<time>.tar.gz`."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def versions(self, name: str) -> list[VersionState]:
        """All versions of a collection, oldest first. Raises DataError when there are none."""
        folder = self._store.folder(name)
        with disk_errors(folder.path):
            states = version_states(folder)
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
            check_published(name, self.versions(name))
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
            write(version, file, collection=name)
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
        copy(_shelf(self._store.folder(name)) / snapshot, to)

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
                restore(file, version)
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
