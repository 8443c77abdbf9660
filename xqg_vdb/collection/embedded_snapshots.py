"""A version of an embedded collection as one file, and back: a compressed tar whose last member lists all checksums.

In: a version folder, or a file that somebody brings. Out: the other. The engine has no snapshots of its own to make;
reading a shard changes none of its files, so a copy while nobody loads is consistent. A file from outside is untrusted:
members have plain names of known kinds, links are refused, and nothing counts before all checksums and points do.
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
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import CorruptError, DataError
from . import engine
from .disk import MIB, disk_errors, require_space, sync_folder, trash_path
from .versions import Version

SCHEMA = 1
_LIST = "snapshot.json"
_BLOCK = 1 << 16
_FLOOR = 256 * MIB
_FAST = 1  # the engine's files are mostly zeros, which any level shrinks
_PLAIN_NAME = re.compile(r"(card\.json|cursor\.json|shard(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+|shard/wal/\.wal)")
_HALF_WRITTEN = ".atomicwrite"  # the engine writes into a folder of such a name, then renames the file out of it
_MOST_MEMBERS = 100_000
_LONGEST_LIST = 64 * MIB


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


def _checked(file: Path, *, into: Path | None) -> None:
    """Read a whole snapshot, its checksums compared, and unpack it when `into` is given."""
    found: dict[str, str] = {}
    listed: dict[str, Any] | None = None
    with disk_errors(file):
        try:
            with tarfile.open(file, mode="r|gz") as tar:
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
