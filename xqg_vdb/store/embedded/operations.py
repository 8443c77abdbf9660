"""The operators' side of the embedded store: versions, rollback, clean-up, states and snapshots.

Whatever changes something holds the loader's lock, and the pointer file is replaced in one step before anything is
deleted.
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
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from xqg_vdb.errors import CorruptError, DataError, LockedError
from xqg_vdb.files import (
    MIB,
    FileLock,
    atomic_file,
    bytes_on_disk,
    disk_errors,
    empty_bin,
    make_folder,
    refuse_pipe,
    require_space,
    sync_folder,
    sync_tree,
    trash_path,
)
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.versions import Folder, Version, version_states
from xqg_vdb.store.operations import (
    Admin,
    CollectionState,
    Snapshot,
    VersionState,
    check_published,
    no_snapshot,
    refuse_existing,
    rollback_target,
)

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
    for leftover in file.parent.glob(".*.tmp*"):  # of a run that was killed; one writer at a time
        leftover.unlink()
    with atomic_file(file) as raw:
        packed = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_FAST)
        with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            sums = {}
            for path in [version.path / "card.json", version.path / "cursor.json", *sorted(version.shard.rglob("*"))]:
                name = path.relative_to(version.path).as_posix()
                if not path.is_file() or f"/{_HALF_WRITTEN}" in name:
                    continue
                with open(path, "rb") as source:
                    sums[name] = hashlib.file_digest(source, "sha256").hexdigest()
                    _add(tar, name, source, size=source.tell())
            record = {"schema": SCHEMA, "collection": collection, "version": version.name, "sha256": sums}
            data = json.dumps(record).encode()
            _add(tar, _LIST, io.BytesIO(data), size=len(data))


def _add(tar: tarfile.TarFile, name: str, source: IO[bytes], *, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    source.seek(0)
    tar.addfile(member, source)


def restore(file: Path, version: Version) -> None:
    """Unpack into `version`, which must not exist; leaves nothing when the file is unfit, damaged, or the disk full."""
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
            sync_tree(place)
            os.replace(place, version.path)
            sync_folder(version.path.parent)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


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
    refuse_pipe(file)
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
                        found[member.name] = _unpack(data, into and into / member.name)
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
    if member.name != _LIST and not _PLAIN_NAME.fullmatch(member.name):
        raise DataError(f"{file} is no snapshot of xqg-vdb: it has a member {member.name[:100]!r}.")
    return data


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
    total = hashlib.sha256()
    if path is None:
        while block := data.read(_BLOCK):
            total.update(block)
        return total.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as out:
        while block := data.read(_BLOCK):
            total.update(block)
            if block.strip(b"\0"):
                require_space(path.parent, needed=_FLOOR)
                out.write(block)
            else:
                out.seek(len(block), os.SEEK_CUR)
        out.truncate()
    return total.hexdigest()


def embedded_admin(store: EmbeddedStore) -> Admin:
    """The operators' side of a store in a folder."""
    return _EmbeddedAdmin(store)


class _EmbeddedAdmin:
    """A snapshot is `<collection>/snapshots/<name>-<version>-<time>.tar.gz`."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def versions(self, name: str) -> list[VersionState]:
        folder = self._store.folder(name)
        with disk_errors(folder.path):
            states = version_states(folder)
        if not states:
            raise self._store.missing(folder)
        return states

    def rollback(self, name: str, *, version: str | None = None) -> str:
        with self._locked(name) as folder:
            wanted = rollback_target(name, self.versions(name), version)
            target = Version(folder.path / wanted)
            _check(target)
            folder.point_to(target, keep=len(folder.kept()) + 1)
        return wanted

    def gc(self, name: str, *, keep: int, unfinished: bool = False) -> list[str]:
        with self._locked(name) as folder:
            check_published(name, self.versions(name))
            current, kept = folder.current(), folder.kept()
            if current is not None and len(kept) > keep - 1:
                folder.point_to(current, keep=keep)
            staying, dropped = [current, *kept[: keep - 1]], kept[keep - 1 :]
            chosen = [
                version
                for version in folder.versions()
                if version not in staying
                and (unfinished or version in dropped or (current is not None and version.number < current.number))
            ]
            gone = [version.name for version in chosen if folder.remove_unread(version)]
            empty_bin(folder.path)
        return gone

    def state(self, name: str) -> CollectionState:
        with self._store.reading(name) as reader, engine.errors(reader.version.shard):
            info = reader.shard.info()
            return CollectionState(
                card=reader.card,
                points=engine.count(reader.shard),
                languages=engine.languages(reader.shard),
                indexed=info.indexed_vectors_count,
                status="yellow" if self._store.is_indexing(name) else "green",
                disk_bytes=bytes_on_disk(reader.version.path),
                details={"segments": info.segments_count},
            )

    def create_snapshot(self, name: str) -> Snapshot:
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
        folder = self._folder(name)
        with disk_errors(folder.path):
            return sorted(map(_described, _shelf(folder).glob("*.tar.gz")), key=lambda snapshot: snapshot.created)

    def download_snapshot(self, name: str, snapshot: str, to: Path) -> None:
        if snapshot not in [kept.name for kept in self.snapshots(name)]:
            raise no_snapshot(name, snapshot)
        refuse_existing(to)
        file = _shelf(self._store.folder(name)) / snapshot
        _checked(file, into=None)
        with atomic_file(to) as out, open(file, "rb") as source:
            shutil.copyfileobj(source, out)

    def restore_snapshot(self, name: str, file: Path) -> str:
        self._store.check_process()
        folder = self._store.folder(name)
        with disk_errors(folder.path):
            make_folder(folder.path)
            with self._locked(name):
                empty_bin(folder.path)
                version = folder.next_version()
                restore(file, version)
                folder.point_to(version, keep=len(folder.kept()) + 2)
        return version.name

    @contextmanager
    def _locked(self, name: str) -> Iterator[Folder]:
        """Holding the loader's lock."""
        self._store.check_process()
        folder = self._folder(name)
        with disk_errors(folder.path), folder.loading():
            yield folder

    def _folder(self, name: str) -> Folder:
        folder = self._store.folder(name)
        if not folder.path.is_dir():
            raise self._store.missing(folder)
        return folder


def _check(version: Version) -> None:
    """Raise CorruptError unless the version can be opened and is whole; one that somebody reads is."""
    with suppress(LockedError), FileLock.take(version.lock, busy=""):
        engine.load_checked(version.shard, version.card()).close()


def _shelf(folder: Folder) -> Path:
    return folder.path / "snapshots"


def _described(file: Path) -> Snapshot:
    facts = file.stat()
    return Snapshot(file.name, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC).isoformat(timespec="seconds"))
