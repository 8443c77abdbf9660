"""Files that survive a power cut or a kill: the atomic write, the lock, and what a disk refuses in our words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

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
            _remove_abandoned(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _remove_abandoned(path: Path) -> None:
    """Delete what processes that were killed left half-written beside `path`."""
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.name}.tmp-"):
            try:
                os.kill(int(name.rsplit("-", 2)[1]), 0)
            except ProcessLookupError:
                (path.parent / name).unlink(missing_ok=True)
            except (OSError, ValueError):
                continue  # somebody else's, who lives


def refuse_pipe(path: Path) -> None:
    """Raise DataError for what is there and is no file: a pipe would be waited for without end."""
    with disk_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path} is a pipe or a device, which is read once: write it to a file first.")


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


def sync_tree(folder: Path) -> None:
    """Make a folder with all that is in it durable."""
    for path in [*folder.rglob("*"), folder]:  # files, too: syncing a handle of either is the same call
        sync_folder(path)


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks. Raises DataError when it is missing."""
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Translate OSError inside the block: a wrong path to DataError, a disk that is full or refuses to DiskError.

    path: what is meant where the system names no file.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(_missing(Path(error.filename or path))) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; a file was expected.") from error
    except NotADirectoryError as error:
        raise DataError(f"{error.filename or path} is not inside a folder; give another path.") from error
    except OSError as error:
        raise _disk_error(error.filename or path, error) from error


def _disk_error(path: str | Path, error: OSError) -> DiskError | CorruptError | DataError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(
            f"The disk is full while writing {path} ({reason}); free some space and run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(
            f"{path} may not be used ({reason}); change its permissions or give another path (a store is written to"
            " even to read it)."
        )
    if error.errno == errno.ENAMETOOLONG:
        return DataError(f"{str(path)[:80]}… is too long for a file name; give a shorter one.")
    if error.errno == errno.EIO:
        return CorruptError(f"{path} cannot be read or written ({reason}); check the disk.")
    return DiskError(f"{path} cannot be used ({reason}).")


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} for {path.name}; create it or correct the path."
    with suppress(OSError):
        there = sorted(p.name for p in path.parent.iterdir() if p.name != path.name)  # a link to nowhere
        near = get_close_matches(path.name, there, n=3, cutoff=0.6)
        if near:
            return f"There is no file {path}; that folder has {', '.join(near)}."
    return f"There is no file {path}; check the path."


def damage(path: Path) -> str:
    """What is wrong with a file that was downloaded, and what to do; "" where it is there and holds something."""
    what = "is not there, or a link to nothing"
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(40)
        what = "" if start else "is empty"
        what = "is a pointer of Git LFS, not the file itself" if start.startswith(b"version https://git-lfs") else what
    return f"{path} {what}: download it again (`hf download`, or `git lfs pull` in a clone)." if what else ""


def damaged_weights(folder: Path, source: str) -> str:
    """The same of the weights of checkpoint `source`: of model.safetensors, or of the files that its index names."""
    from safetensors import safe_open

    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    named = "" if whole.exists() or not index.is_file() else index.read_text("utf-8", "replace")
    for name in sorted(set(re.findall(r'"([\w.-]+\.safetensors)"', named)) or {whole.name}):
        said = damage(folder / name)
        try:
            if not said:
                safe_open(str(folder / name), "np")
        except Exception as error:  # safetensors raises a class of its own
            said = f"{folder / name} is cut or damaged ({error}): download it again."
        if said:
            return said.replace(str(folder), source)
    return ""


GZIP_MAGIC = b"\x1f\x8b"


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise DataError when a file begins as one of another kind or encoding does."""
    start = head.lstrip() if head.lstrip()[:1] == b"<" else head
    told = next((told for key, told in _foreign().items() if start[: len(key)] in (key, key.upper())), "")
    if encoding := _wide_encoding(head):
        told = f"is {encoding}, not UTF-8; convert it: iconv -f {encoding.split()[0]} -t UTF-8 FILE > NEW"
    if told:
        raise DataError(f"{path} {told}.")


@cache
def _foreign() -> dict[bytes, str]:
    """First bytes, and what to do."""
    known = json.loads(files("xqg_vdb").joinpath("data", "foreign.json").read_bytes())
    return {start.encode("latin-1"): told for start, told in known.items()}


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 where a file begins so, with its mark or, where most characters are ASCII, without."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    order = "BE" if head.startswith(b"\0") else "LE"
    if [byte == 0 for byte in head[:4]] in ([True, True, True, False], [False, True, True, True]):
        return f"UTF-32{order} without a mark"
    low, high = (head[1:64:2], head[:64:2]) if order == "BE" else (head[:64:2], head[1:64:2])
    wide = min(len(low), len(high)) >= 4 and high.count(0) * 3 > 2 * len(high) and 0 not in low
    return f"UTF-16{order} without a mark" if wide else ""


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
    """Write a JSON record as `path`, like `write_atomic`."""
    write_atomic(path, json.dumps(record, ensure_ascii=False, allow_nan=False).encode())


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


class FileLock(AbstractContextManager["FileLock"]):
    """A held exclusive lock on a file, which says who holds it; made by `take`, a context manager.

    It is flock: the kernel frees it however its holder ends. Two handles in one process exclude each other, too.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        self._pid = os.getpid()

    @classmethod
    def take(cls, path: Path, *, busy: str, then: str = "") -> FileLock:
        """The lock on `path`, at once. Raises LockedError "`busy` process N …`then`" when it is held."""
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                held = try_flock(handle)
                with suppress(FileNotFoundError):  # it was deleted since
                    if held and os.fstat(handle).st_ino == path.stat().st_ino:
                        _sign(handle)
                        return cls(path, handle)
                if not held:
                    raise LockedError(f"{busy} {_holder(handle)}{then}")
            except BaseException as error:
                os.close(handle)
                if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise DiskError(f"{path} lies on a file system without locks; use a local disk.") from error
                raise
            os.close(handle)  # it was deleted between opening and locking: take the one that is there now

    def release(self) -> None:
        """Free the lock; again, or in a forked child, it does nothing."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if os.getpid() == self._pid:  # a fork shares the lock: unlocking there would free the parent's
            _unlock(handle)
        os.close(handle)

    def __exit__(self, *exc: object) -> None:
        self.release()


@contextmanager
def new_folder(out: Path, *, result: str = "") -> Iterator[Path]:
    """A folder beside `out` (absent, or empty) that takes its place, or whose `result` does, when all went well.

    What a killed process left there is removed. Raises LockedError while another process makes `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building, lock = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.lock")
    with FileLock.take(lock, busy=f"{out} is being made by"):
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            yield building
            if out.is_dir():
                out.rmdir()  # Windows does not rename onto a folder, and one with something in it must stay
            os.replace(building / result, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)


def lock_folder(folder: Path) -> FileLock:
    """Hold a folder. Raises LockedError at once, naming the process that holds it."""
    with disk_errors(folder):
        return FileLock.take(
            folder / "lock", busy=f"{folder} is used by", then="; wait until it ends or use another folder."
        )


def try_flock(handle: int) -> bool:
    """Lock an open file for this handle alone; False when another one has it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, where a file that another process holds open cannot be replaced anyway
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(handle: int) -> None:
    with suppress(ModuleNotFoundError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def _sign(handle: int) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
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
