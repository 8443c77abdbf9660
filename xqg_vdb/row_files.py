"""Files of rows that grow in place: `.npy` arrays and a list of ids, both readable by anyone at any time.

In: rows to append, and how many of them count. Out: memory maps. This file refuses to know what the rows mean and which
of them are committed: its caller keeps that, together with the checksums.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import CorruptError, DataError
from xqg_vdb.files import disk_errors

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
