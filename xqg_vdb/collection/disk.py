"""Files and folders of the embedded store that survive a power cut or a kill, and what a disk refuses in words of ours.

In: paths. Out: written files, or a DiskError of one sentence. This file refuses to know what the files mean.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import DiskError

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


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
def disk_errors(path: Path) -> Iterator[None]:
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
