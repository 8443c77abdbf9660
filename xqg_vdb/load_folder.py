"""The folder in which a load keeps its vectors: the user's, or one in the cache that goes when the load is done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from xqg_vdb.building import Kept
from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError
from xqg_vdb.files import disk_errors, lock_folder
from xqg_vdb.model_folder import cache_folder
from xqg_vdb.records import Rejects
from xqg_vdb.vectors import Build


@contextmanager
def build_folder(build: str | PathLike[str] | None, name: str, *, fingerprint: str) -> Iterator[Path]:
    """Where the vectors are kept: the user's folder, or one in the cache that this load has to itself.

    That one is removed when the block ends without an error; after one, the next load goes on with it.
    """
    if build is not None:
        yield Path(build)
        return
    folder = cache_folder() / "builds" / f"{name}-{fingerprint}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder)
    except LockedError as error:
        said = str(error).rstrip(".")
        raise LockedError(f"Collection {name!r} is being loaded already: {said} (--build).") from None
    with lock:
        yield folder / "vectors"
        _discard(folder / "vectors")
        shutil.rmtree(folder, ignore_errors=True)


def _discard(vectors: Path) -> None:
    """Remove a build folder of ours in one step as far as the next load can see: killed amid it, some files remain."""
    gone = vectors.with_name("gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        vectors.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def encode_or_begin_anew(encode: Callable[[], Kept], folder: Path, rejects: Rejects) -> Kept:
    """What `encode` returns; what a folder of ours holds of another input, or damaged, is thrown away."""
    try:
        return encode()
    except (MismatchError, CorruptError) as error:
        if isinstance(error, CorruptError) and _can_be_read(folder):
            raise  # the disk of the corpus, then
        _discard(folder)
        vars(rejects).update(vars(Rejects(rejects.max_rejects, rejects.path)))  # what was counted comes again
        return encode()


def _can_be_read(folder: Path) -> bool:
    try:
        Build.open(folder)
    except (CorruptError, DataError):
        return False
    return True
