"""Files as bytes: lines with their positions, atomic writes, checksums, folder locks, and disk errors in words.

In: paths. Out: raw lines, digests, durable files. This file refuses to know JSON, corpora and vectors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, BinaryIO

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError


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


# Files and folders of the embedded store that survive a power cut or a kill, and what a disk refuses in words of ours.

MIB = 1 << 20
_TRASH = ".trash-"


def trash_path(path: Path) -> Path:
    """Where a folder lies while it is thrown away, or not finished yet: `empty_bin` deletes it after a crash."""
    return path.with_name(f"{_TRASH}{path.name}-{os.getpid()}")


def remove_folder(path: Path) -> None:
    """Delete a folder: renamed into the bin beside it, then emptied."""
    bin_path = trash_path(path)
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


def require_space(path: Path, *, needed: int) -> None:
    """Raise DiskError unless `path` has `needed` free bytes: on a full disk the engine dies of SIGBUS, so ask first."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise DiskError(
            f"{path} needs {needed / MIB:,.0f} MiB of free disk, has {free / MIB:,.0f} MiB; free some space and run"
            " the same command again: it continues where it stopped."
        )


def bytes_on_disk(path: Path) -> int:
    """Bytes that a folder really takes; the engine's files are sparse, and may come and go while they are counted."""
    blocks = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                blocks += os.lstat(os.path.join(folder, name)).st_blocks
    return 512 * blocks


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
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


# A lock file that says who holds it. The lock itself is flock, so the kernel frees it however its holder ends.


class FileLock:
    """A held exclusive lock on a file; made by `take`. Two handles in one process exclude each other, too."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        self._pid = os.getpid()

    @classmethod
    def take(cls, path: Path, *, busy: str) -> FileLock:
        """The lock on `path`, at once. Raises LockedError "`busy` process N ..." when it is held; FileNotFoundError."""
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_ino == _inode(path):
                    _sign(handle)
                    return cls(path, handle)
                os.close(handle)  # it was deleted between opening and locking: take the one that is there now
            except BlockingIOError:
                holder = _holder(handle)
                os.close(handle)
                raise LockedError(f"{busy} {holder}") from None
            except OSError as error:
                os.close(handle)
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise DiskError(f"{path} lies on a file system without locks; use a local disk.") from error
                raise

    def release(self) -> None:
        """Free the lock; again, or in a forked child, it does nothing."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if os.getpid() == self._pid:  # a fork shares the lock: unlocking there would free the parent's
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _inode(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _sign(handle: int) -> None:
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(record).encode(), 0)


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        pid, host, since = record["pid"], record["host"], record["since"]
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has not signed yet
    here = " (this very process: share one store object)" if (pid, host) == (os.getpid(), socket.gethostname()) else ""
    return f"process {pid} on {host} since {since}{here}"
