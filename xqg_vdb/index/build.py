"""The build folder: passage vectors and per-language query sums, kept so that a new recipe needs no new encoding.

    manifest.json  ids  digests.npy  passages.npy  queries.<lang>.npy  counts.<lang>.npy

The `.npy` files are ordinary (float32, int32, uint64; row i belongs to line i of `ids`) and grow in place. The manifest
is the authority: it is replaced only when all that it speaks of is on disk, and what comes after it is cut off at the
next start.
This file refuses to know encoders, recipes and corpus files.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import disk_errors, lock_folder, sync_folder, write_atomic
from xqg_vdb.types import Vectors

# The manifest of a build folder: which encoder made it, how many rows are committed, and the checksums of its files.

LANGUAGE = re.compile(r"[a-z]{2,8}")
LANGUAGE_FILE = re.compile(r"(?:queries|counts)\.([a-z]{2,8})\.npy")

_NAME = "manifest.json"
_TEMPORARY = f".{_NAME}.tmp"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is committed. crcs: CRC-32 of the committed rows by file."""

    fingerprint: str
    dim: int
    rows: int = 0
    ids_bytes: int = 0
    langs: tuple[str, ...] = ()
    complete: bool = False
    crcs: Mapping[str, int] = field(default_factory=dict)

    def arrays(self, *more: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and row shape of the array files, by name; `more` names files of languages that are not committed."""
        names = ["digests.npy", "passages.npy", *more]
        names += [f"{kind}.{lang}.npy" for lang in self.langs for kind in ("queries", "counts")]
        kinds = {"digests": ("<u8", ()), "counts": ("<i4", ())}
        return {name: kinds.get(name.split(".", 1)[0], ("<f4", (self.dim,))) for name in names}

    def require_files(self, folder: Path) -> None:
        """Raise CorruptError when a file that holds committed rows is gone."""
        for name in ("ids", *self.arrays()) if self.rows else ():
            if not (folder / name).is_file():
                raise CorruptError(f"{folder} has lost its file {name}; delete the folder and build it again.")

    def write(self, folder: Path) -> None:
        """Replace the manifest of `folder`, atomically and durably."""
        record = {"schema": 1, **asdict(self)}
        check = hashlib.blake2b(_canonical(record), digest_size=8).hexdigest()
        write_atomic(folder / _NAME, orjson.dumps({**record, "check": check}, option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder`. Raises DataError (there is none), MismatchError (schema), CorruptError."""
        path = folder / _NAME
        if not path.exists():
            raise DataError(f"{folder} holds no kept vectors; `xqg-vdb load … --build {folder}` makes them.")
        with disk_errors(path):
            data = path.read_bytes()
        try:
            record = orjson.loads(data)
            check = record.pop("check")
            if check != hashlib.blake2b(_canonical(record), digest_size=8).hexdigest():
                raise ValueError("wrong checksum")
            if record["schema"] != 1:
                raise MismatchError(
                    f"{path} was written by another version (schema {record['schema']}); build it again."
                )
            known = {f.name: record[f.name] for f in fields(cls)}
            if not all(type(known[name]) is int and known[name] >= 0 for name in ("dim", "rows", "ids_bytes")):
                raise ValueError("a count is no whole number")
            return cls(**{**known, "langs": tuple(_checked_language(lang) for lang in known["langs"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptError(f"{path} is damaged ({error}); delete {folder} and build it again.") from error


def _canonical(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def _checked_language(lang: str) -> str:
    if not LANGUAGE.fullmatch(lang):  # it becomes part of a file name
        raise ValueError(f"{lang!r} is not a language code")
    return lang


def read_or_start(folder: Path, wanted: Manifest) -> Manifest:
    """Return the manifest of an existing build, or write that of a new one.

    Raises DataError when the folder holds something else, MismatchError when the build has another encoder or
    dimension, CorruptError when it is damaged.
    """
    if not (folder / _NAME).exists():
        strange = sorted(p.name for p in folder.iterdir() if p.name != "lock" and not p.name.startswith(_TEMPORARY))
        if strange:
            raise DataError(
                f"{folder} holds {', '.join(strange[:3])} but no manifest.json; give a new or empty folder."
            )
        wanted.write(folder)
        return wanted
    found = Manifest.read(folder)
    if (found.fingerprint, found.dim) != (wanted.fingerprint, wanted.dim):
        raise MismatchError(
            f"{folder} was built by encoder {found.fingerprint} ({found.dim} dimensions), this one is "
            f"{wanted.fingerprint} ({wanted.dim}); use the first encoder, or give another folder."
        )
    found.require_files(folder)
    return found


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Delete what a run that died left behind: files of languages never committed, half-written manifests."""
    with disk_errors(folder):
        for path in folder.iterdir():
            match = LANGUAGE_FILE.fullmatch(path.name)
            if (match and match[1] not in manifest.langs) or path.name.startswith(_TEMPORARY):
                path.unlink()


# Files of rows that grow in place: `.npy` arrays and a list of ids, both readable by anyone at any time.

_HEADER = 128
_BLOCK = 1 << 20


class ArrayFile:
    """A `.npy` file of `dtype` with rows of shape `row_shape`, open for appending.

    rows: how many are written. crc: CRC-32 of their bytes. Not for several threads.
    """

    def __init__(self, path: Path, *, dtype: str, row_shape: tuple[int, ...], rows: int, crc: int) -> None:
        self.path, self._dtype, self._row_shape = path, np.dtype(dtype), row_shape
        self.rows, self.crc = rows, crc
        self._stride = self._dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
        self._file = _open_for_more(path, self._end if rows else 0)
        try:
            with disk_errors(path):
                self._write_header()  # before the cut: at no time may it promise rows that are not there
                self._file.truncate(self._end)
        except BaseException:
            self._file.close()
            raise

    def append(self, values: NDArray[Any]) -> None:
        """Write rows (n, *row_shape) after the last one; they are durable after `flush`."""
        data = np.ascontiguousarray(values, self._dtype).tobytes()
        with disk_errors(self.path):
            _write_all(self._file, self._end, data)
        self.crc = zlib.crc32(data, self.crc)
        self.rows += len(values)

    def extend(self, rows: int) -> None:
        """Add zero rows until there are `rows`; on most file systems they take no space."""
        missing = (rows - self.rows) * self._stride
        self.rows = max(rows, self.rows)
        with disk_errors(self.path):
            self._file.truncate(self._end)
        for done in range(0, missing, _BLOCK):
            self.crc = zlib.crc32(bytes(min(_BLOCK, missing - done)), self.crc)

    def flush(self) -> None:
        """Put all rows on disk and name them in the header."""
        with disk_errors(self.path):
            self._write_header()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def _end(self) -> int:
        return _HEADER + self.rows * self._stride

    def _write_header(self) -> None:
        _write_all(self._file, 0, _header(self._dtype, (self.rows, *self._row_shape)))


def _open_for_more(path: Path, size: int) -> BinaryIO:
    """Open a file whose first `size` bytes were written before, or start it anew when there are none.

    Unbuffered, because a failed write must not be tried again on closing. Raises CorruptError when it is shorter.
    """
    with disk_errors(path):
        file = open(path, "r+b" if size else "w+b", buffering=0)  # noqa: SIM115 - the caller closes it
        found = os.fstat(file.fileno()).st_size
        if found < size:
            file.close()
            raise _too_short(path, found, size)
        return cast(BinaryIO, file)


def _write_all(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    rest = memoryview(data)
    while rest:  # an unbuffered write may take only a part, of 2 GiB at most
        rest = rest[file.write(rest) :]


def _too_short(path: Path, found: int, size: int) -> CorruptError:
    return CorruptError(
        f"{path} has {found:,} bytes where {size:,} were written; delete the folder and build it again."
    )


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def map_array(path: Path, *, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map the first rows of an `ArrayFile`, read-only. Raises CorruptError when they are not all there."""
    kind = np.dtype(dtype)
    needed = _HEADER + kind.itemsize * int(np.prod(shape, dtype=np.int64))
    if needed == _HEADER:
        return np.zeros(shape, kind)  # nothing to map, and a new build may not have the file yet
    with disk_errors(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < needed:
            raise _too_short(path, size, needed)
        # the row count may be ahead of ours: a run that died wrote it before it could commit
        start = file.read(_HEADER)
        if _before_rows(start) != _before_rows(_header(kind, shape)) or start[-1:] != b"\n":
            raise CorruptError(f"{path} has a damaged header; delete the folder and build it again.")
        return np.memmap(file, kind, "r", _HEADER, shape)


def _before_rows(header: bytes) -> tuple[bytes, bytes]:
    """Return the parts of a header that do not depend on the number of rows."""
    start, _, rest = header.partition(b"'shape': (")
    return start, rest.lstrip(b"0123456789").rstrip()


def checksum(values: NDArray[Any]) -> int:
    """CRC-32 of the array's bytes, as `ArrayFile.crc` counts it; read in blocks."""
    crc = 0
    step = max(1, _BLOCK // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        crc = zlib.crc32(np.ascontiguousarray(values[start : start + step]).tobytes(), crc)
    return crc


class IdFile:
    """Ids, one JSON string per line, open for appending. size: bytes written. crc: their CRC-32."""

    def __init__(self, path: Path, *, size: int, crc: int) -> None:
        self.path, self.size, self.crc = path, size, crc
        self._file = _open_for_more(path, size)
        try:
            with disk_errors(path):
                self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise

    def append(self, lines: bytes) -> None:
        """Write what `id_lines` made; durable after `flush`."""
        with disk_errors(self.path):
            _write_all(self._file, self.size, lines)
        self.crc = zlib.crc32(lines, self.crc)
        self.size += len(lines)

    def flush(self) -> None:
        """Put all ids on disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def id_lines(ids: Sequence[str]) -> bytes:
    """Spell ids as the lines of an `IdFile`. Raises DataError for what is no text."""
    try:
        return b"".join(orjson.dumps(id, option=orjson.OPT_APPEND_NEWLINE) for id in ids)
    except orjson.JSONEncodeError as error:
        raise DataError(f"An id cannot be written as UTF-8 ({error}).") from None


def _map_bytes(path: Path, size: int) -> NDArray[np.uint8]:
    with disk_errors(path), open(path, "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found < size:
            raise _too_short(path, found, size)
        return np.memmap(file, np.uint8, "r", 0, (size,))


class Ids(Sequence[str]):
    """The first `rows` ids of an `IdFile`, read when asked for; 8 bytes of memory each.

    Raises CorruptError when the first `size` bytes are not exactly that many lines.
    """

    def __init__(self, path: Path, *, rows: int, size: int) -> None:
        self._path = path
        self._bytes = _map_bytes(path, size) if size else np.zeros(0, np.uint8)
        ends = [np.flatnonzero(self._bytes[at : at + _BLOCK] == ord("\n")) + at + 1 for at in range(0, size, _BLOCK)]
        self._ends = np.concatenate([np.zeros(1, np.int64), *ends])
        if len(self._ends) != rows + 1 or self._ends[-1] != size:
            raise CorruptError(
                f"{path} does not hold the {rows:,} ids that were written; delete the folder and build it again."
            )

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self._at(i) for i in range(len(self)))

    def checksum(self) -> int:
        """CRC-32 of the lines, as `IdFile.crc` counts it."""
        return checksum(self._bytes)

    def _at(self, row: int) -> str:
        try:
            return str(orjson.loads(self._bytes[self._ends[row] : self._ends[row + 1]].tobytes()))
        except orjson.JSONDecodeError as error:
            raise CorruptError(
                f"{self._path} line {row + 1} is damaged ({error}); delete the folder and build it again."
            ) from error


Counts = NDArray[np.int32]
QuerySums = Mapping[str, tuple[Vectors, Counts]]
"""Language -> (sum over each row's query vectors (n, dim) float32, how many queries there were (n,) int32)."""


@dataclass(frozen=True, slots=True)
class Build:
    """Committed rows of a build folder, memory-mapped and read-only; row i of everything belongs to `ids[i]`.

    passages (rows, dim) float32; digests (rows,) uint64, `row_digest`; sums and counts by language, see `QuerySums`.
    complete: whether the run that made them reached the end of its corpus.
    """

    path: Path
    fingerprint: str
    dim: int
    rows: int
    complete: bool
    ids: Sequence[str]
    digests: NDArray[np.uint64]
    passages: Vectors
    sums: Mapping[str, Vectors]
    counts: Mapping[str, Counts]

    @classmethod
    def open(cls, path: str | Path) -> Build:
        """Map what is committed, even while a writer goes on. Raises DataError (no build) or CorruptError (damaged)."""
        path = Path(path)
        manifest = Manifest.read(path)
        manifest.require_files(path)
        arrays = {
            name: map_array(path / name, dtype=dtype, shape=(manifest.rows, *row))
            for name, (dtype, row) in manifest.arrays().items()
        }
        ids = Ids(path / "ids", rows=manifest.rows, size=manifest.ids_bytes)
        return cls(
            path,
            manifest.fingerprint,
            manifest.dim,
            manifest.rows,
            manifest.complete,
            ids,
            arrays["digests.npy"],
            arrays["passages.npy"],
            {lang: arrays[f"queries.{lang}.npy"] for lang in manifest.langs},
            {lang: arrays[f"counts.{lang}.npy"] for lang in manifest.langs},
        )

    @staticmethod
    def create_or_resume(path: str | Path, *, dim: int, fingerprint: str) -> BuildWriter:
        """Open a new or existing folder for appending; see `BuildWriter`."""
        return BuildWriter(path, dim=dim, fingerprint=fingerprint)

    def verify(self) -> None:
        """Read everything and compare with the checksums of the last commit. Raises CorruptError naming the file."""
        manifest = Manifest.read(self.path)
        if manifest.rows != self.rows:
            raise MismatchError(f"{self.path} grew since it was opened; open it again to verify it.")
        found = {"ids": cast(Ids, self.ids).checksum(), "digests.npy": checksum(self.digests)}
        found["passages.npy"] = checksum(self.passages)
        for lang in self.sums:
            found[f"queries.{lang}.npy"] = checksum(self.sums[lang])
            found[f"counts.{lang}.npy"] = checksum(self.counts[lang])
        for name, crc in found.items():
            if manifest.crcs.get(name, 0) != crc:
                raise CorruptError(
                    f"{self.path / name} is not as it was written; delete {self.path} and build it again."
                )


class BuildWriter:
    """Appends to a build folder that it holds exclusively; a context manager that closes without committing.

    A new or empty folder starts a build; an existing build goes on after its last committed row.
    Raises LockedError when another process writes there, MismatchError when the build was made with another encoder or
    dimension, CorruptError when it is damaged, and DataError when the folder holds something else.

    rows: how many rows are committed. complete: whether the last commit said so.
    """

    def __init__(self, path: str | Path, *, dim: int, fingerprint: str) -> None:
        self.path, self.dim = Path(path), dim
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self._stack.enter_context(lock_folder(self.path))
        try:
            self._manifest = read_or_start(self.path, Manifest(fingerprint, dim))
            remove_leftovers(self.path, self._manifest)
            self._arrays = {name: self._array(name, self._manifest) for name in self._manifest.arrays()}
            crc = self._manifest.crcs.get("ids", 0)
            self._ids = IdFile(self.path / "ids", size=self._manifest.ids_bytes, crc=crc)
            self._stack.callback(self._ids.close)
        except BaseException:
            self._stack.close()
            raise

    @property
    def rows(self) -> int:
        """Number of committed rows."""
        return self._manifest.rows

    @property
    def complete(self) -> bool:
        """Whether the last commit ended the build."""
        return self._manifest.complete

    def digest_prefix(self) -> NDArray[np.uint64]:
        """Digests (rows,) uint64 of the committed rows, for checking that the input is still the same."""
        return map_array(self.path / "digests.npy", dtype="<u8", shape=(self.rows,))

    def ids_prefix(self) -> Sequence[str]:
        """Ids of the committed rows."""
        return Ids(self.path / "ids", rows=self.rows, size=self._manifest.ids_bytes)

    def append(
        self, ids: Sequence[str], digests: NDArray[np.uint64], passages: Vectors, query_sums: QuerySums | None = None
    ) -> None:
        """Add n rows: passages (n, dim) float32, digests (n,) uint64, sums and counts of the languages that have any.

        Nothing counts before `commit`. Raises DataError, before anything is written, for wrong shapes or types and for
        values that are not finite; after a DiskError the writer is closed, and a new one goes on from the last commit.
        """
        sums = dict(query_sums or {})
        _check_rows(len(ids), self.dim, digests, passages, sums)
        lines = id_lines(ids)
        try:
            self._ids.append(lines)
            done = self._arrays["digests.npy"].rows
            self._arrays["digests.npy"].append(digests)
            self._arrays["passages.npy"].append(passages)
            for lang, (vectors, counts) in sums.items():
                for name, values in ((f"queries.{lang}.npy", vectors), (f"counts.{lang}.npy", counts)):
                    array = self._arrays.get(name) or self._new_array(name)
                    array.extend(done)
                    array.append(values)
        except BaseException:
            self.close()  # files of different lengths: only the last commit is worth anything now
            raise

    def commit(self, *, complete: bool = False) -> None:
        """Make all appended rows durable and count them; `complete` says that the corpus has no more."""
        rows = self._arrays["digests.npy"].rows
        try:
            for array in self._arrays.values():
                array.extend(rows)
                array.flush()
            self._ids.flush()
            with disk_errors(self.path):
                sync_folder(self.path)  # the names of new files, before the manifest tells of them
            self._manifest = replace(
                self._manifest,
                rows=rows,
                ids_bytes=self._ids.size,
                langs=tuple(sorted({m[1] for name in self._arrays if (m := LANGUAGE_FILE.fullmatch(name))})),
                complete=complete,
                crcs={"ids": self._ids.crc, **{name: array.crc for name, array in sorted(self._arrays.items())}},
            )
            self._manifest.write(self.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files and the lock; rows that were not committed are dropped at the next start."""
        self._stack.close()

    def __enter__(self) -> BuildWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _array(self, name: str, manifest: Manifest) -> ArrayFile:
        dtype, row_shape = manifest.arrays(name)[name]
        crc = manifest.crcs.get(name, 0)
        array = ArrayFile(self.path / name, dtype=dtype, row_shape=row_shape, rows=manifest.rows, crc=crc)
        self._stack.callback(array.close)
        return array

    def _new_array(self, name: str) -> ArrayFile:
        self._arrays[name] = self._array(name, Manifest("", self.dim))
        return self._arrays[name]


def _check_rows(
    n: int, dim: int, digests: NDArray[np.uint64], passages: Vectors, sums: Mapping[str, tuple[Vectors, Counts]]
) -> None:
    _check_array("digests", digests, np.dtype(np.uint64), (n,))
    _check_array("passages", passages, np.dtype(np.float32), (n, dim))
    for lang, (vectors, counts) in sums.items():
        if not LANGUAGE.fullmatch(lang):
            raise DataError(f"{lang!r} is not a normalised language code such as sw.")
        _check_array(f"query sums of {lang}", vectors, np.dtype(np.float32), (n, dim))
        _check_array(f"query counts of {lang}", counts, np.dtype(np.int32), (n,))


def _check_array(what: str, values: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        raise DataError(f"{what}: expected {dtype} {shape}, got {values.dtype} {values.shape}.")
    if dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{what}: row {row} is not finite; the encoder is damaged or its precision too low.")
