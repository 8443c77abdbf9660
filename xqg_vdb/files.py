"""Files as bytes: lines with their positions, atomic writes, checksums, folder locks, and disk errors in words.

In: paths. Out: raw lines, digests, durable files. This file refuses to know JSON, corpora and vectors.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, BinaryIO, cast

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError

MAX_LINE_BYTES = 16 << 20
MAX_GZIP_RATIO = 100
"""JSON lines of prose shrink 3 to 10 times; what shrinks more than 100 times is a bomb or not text."""

_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 1024
_BLOCK = 1 << 16
_RATIO_FREE_BYTES = 64 << 20  # small files may shrink as much as they like


@dataclass(frozen=True, slots=True)
class LongLine:
    """Stands for a line over the limit, which was skipped and never held in memory: its size and its first bytes."""

    size: int
    head: bytes


Line = tuple[int, int, bytes | LongLine]
"""Line number from 1, byte offset in the (unpacked) file, raw line without its newline."""


def open_lines(path: str | Path, *, max_bytes: int = MAX_LINE_BYTES, max_ratio: int = MAX_GZIP_RATIO) -> Iterator[Line]:
    r"""Read the lines of `path`, plain or gzip, split on b"\n" only, without one trailing b"\r" and a leading BOM.

    A line over `max_bytes` comes as a `LongLine`. Memory stays bounded by `max_bytes` whatever the file holds.
    Raises DataError now when `path` is missing or a folder, and while reading when gzip data is cut short or damaged
    or unpacks to more than `max_ratio` times its size; DiskError when it may not be read.
    """
    path = Path(path)
    with disk_errors(path):
        if not path.is_fifo():
            open(path, "rb").close()  # now: a generator would report a wrong name only when it is first read
    return _lines(path, max_bytes, max_ratio)


def _lines(path: Path, max_bytes: int, max_ratio: int) -> Iterator[Line]:
    number, offset = 0, 0
    with disk_errors(path), open(path, "rb") as raw:
        allowed = max(_RATIO_FREE_BYTES, max_ratio * os.fstat(raw.fileno()).st_size)
        packed = path.suffix == ".gz" or raw.peek(2)[:2] == _GZIP_MAGIC
        stream = _unpacked(raw) if packed else cast(BinaryIO, raw)
        try:
            while line := stream.readline(max_bytes + 2):
                number += 1
                body, size = _finish_line(stream, line, max_bytes, allowed - offset if packed else None)
                skip = len(_BOM) if offset == 0 and isinstance(body, bytes) and body.startswith(_BOM) else 0
                yield number, offset + skip, body[skip:] if isinstance(body, bytes) else body
                offset += size
                if packed and offset > allowed:
                    raise DataError(_bomb(path, max_ratio))
        except _TooMuch:
            raise DataError(_bomb(path, max_ratio)) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is cut short or damaged after line {number} ({error}); fetch it again.") from error


def _unpacked(raw: BinaryIO) -> BinaryIO:
    unpacker = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw, mode="rb"))
    return cast(BinaryIO, io.BufferedReader(unpacker, _BLOCK))  # its own buffer is small and slow


class _TooMuch(Exception):
    """A skipped line alone passes the unpacking limit."""


def _bomb(path: Path, max_ratio: int) -> str:
    return f"{path} unpacks to over {max_ratio} times its size, unlike text; unpack it yourself if you trust it."


def _finish_line(stream: BinaryIO, line: bytes, max_bytes: int, allowed: int | None) -> tuple[bytes | LongLine, int]:
    """Return the line without its ending, or its stand-in with the rest skipped, and its size in the file."""
    size = len(line)
    body = line[:-1] if line.endswith(b"\n") else line
    body = body[:-1] if body.endswith(b"\r") else body
    if len(body) <= max_bytes:
        return body, size
    last = line
    while not last.endswith(b"\n") and (last := stream.readline(_BLOCK)):
        size += len(last)
        if allowed is not None and size > allowed:
            raise _TooMuch
    return LongLine(size, line[:_HEAD_BYTES]), size


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears as `path` only when the block ends without an error; it then survives power cuts.

    Raises DataError when the folder is missing, DiskError when the disk is full or may not be written.
    """
    path = Path(path)
    # per thread: two writers of one name must not share a half-written file
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` as `path`, which holds the old or the new bytes at any time. Raises like `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    if os.name == "nt":
        return  # a folder cannot be opened there; NTFS journals its names
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks. Raises DataError when it is missing."""
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Translate OSError inside the block: a wrong path to DataError, a disk that is full or refuses to DiskError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(_missing(Path(path))) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        kind = "a folder" if Path(path).is_dir() else "not inside a folder"
        raise DataError(f"{path} is {kind}; a file was expected.") from error
    except OSError as error:
        raise _disk_error(Path(path), error) from error


def _disk_error(path: Path, error: OSError) -> DiskError | CorruptError | DataError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(
            f"The disk is full while writing {path} ({reason}); free some space and run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(f"{path} may not be used ({reason}); change its permissions or give another path.")
    if error.errno == errno.ENAMETOOLONG:
        return DataError(f"{str(path)[:80]}… is too long for a file name; give a shorter one.")
    if error.errno == errno.EIO:
        return CorruptError(f"{path} cannot be read or written ({reason}); check the disk.")
    return DiskError(f"{path} cannot be used ({reason}).")


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} for {path.name}; create it or correct the path."
    with suppress(OSError):
        near = get_close_matches(path.name, sorted(p.name for p in path.parent.iterdir()), n=3, cutoff=0.6)
        if near:
            return f"There is no file {path}; that folder has {', '.join(near)}."
    return f"There is no file {path}; check the path."


def lock_folder(folder: Path) -> IO[bytes]:
    """Hold `folder/lock` exclusively until the returned file is closed or this process ends, however it ends.

    Raises LockedError at once, naming the process that holds it.
    """
    with disk_errors(folder):
        file = open(folder / "lock", "a+b", buffering=0)  # noqa: SIM115 - the caller closes it
        try:
            _lock(file, folder)
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
        except BaseException:
            file.close()
            raise
        return file


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, where a file that another process holds open cannot be replaced anyway
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(32).decode("ascii", "replace").strip() or "unknown"
        raise LockedError(f"{folder} is used by process {holder}; wait until it ends or use another folder.") from None
