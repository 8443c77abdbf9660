"""Take back what `augment` did: the copy goes away, or the original vectors come back from where they were kept.

In: a server's collection. Out: the collection as it was. Nothing is encoded.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.augmenting.keeping import build_of
from xqg_vdb.augmenting.writing import put_back
from xqg_vdb.errors import DataError
from xqg_vdb.progress import Progress, silent
from xqg_vdb.vectors import Build

if TYPE_CHECKING:
    from xqg_vdb.collection.foreign import ForeignCollection
    from xqg_vdb.collection.server import ServerStore


def undo(
    name: str,
    *,
    store: ServerStore,
    to: str | None = None,
    backup: str | PathLike[str] | None = None,
    progress: Progress = silent,
) -> str:
    """Take back what `augment` did to the collection `name` or made of it under the name `to`; says what was done.

    backup: where the folder of that run is now, if it was moved. Vectors come back bit for bit, except that a cosine
    collection scales what it is given to length 1: where that is done to rows which have length 1 already, their last
    bit may differ. Raises DataError when there is nothing to undo, or the originals are not found.
    """
    from xqg_vdb.collection.foreign_copy import remove_copy, remove_unfinished

    found = store.foreign(name)
    record = found.record
    if record.get("mode") in ("overwrite", "add"):
        return _undo_in_place(found, record, backup=backup, progress=progress)
    if record.get("mode") == "copy":
        remove_copy(found.names, name, found.physical, previous=record.get("previous"))
        return f"{name}: the copy {found.physical} is gone; {record['source']} is as it was"
    target = to or f"{name}-xqg"
    removed = remove_unfinished(found, target)
    published = found.names.target(target)
    copied = {} if published in (None, found.physical) else found.at(str(published)).record
    if copied.get("mode") == "copy" and copied.get("source") == found.physical:
        remove_copy(found.names, target, str(published), previous=copied.get("previous"))
        removed.append(str(published))
    if not removed:
        raise DataError(f"{name!r} is not augmented, and {target!r} is no copy of it: there is nothing to undo.")
    return f"{target}: {', '.join(removed)} is gone; {name} is as it was"


def _undo_in_place(
    found: ForeignCollection, record: dict[str, Any], *, backup: str | PathLike[str] | None, progress: Progress
) -> str:
    """Originals back first, then our vectors and records away: stopped anywhere, it is done again."""
    if record.get("mode") == "add":
        found.drop_vector(record["added"])
        found.clear_record()
        return f"{found.name}: vector {record['added']!r} is gone"
    kept, build = record.get("kept"), _backup(record, backup)
    done = 0
    if kept is None or kept in found.dense_vectors():
        done = put_back(found, vector=record["vector"], kept=kept, build=build, progress=progress)
    if kept is not None:
        found.drop_vector(kept)
    found.clear_record()
    return f"{found.name}: the original vectors of {done} points are back"


def _backup(record: dict[str, Any], moved: str | PathLike[str] | None) -> Build | None:
    if not record.get("backup"):
        return None
    folder = Path(record["backup"])
    return build_of(folder if moved is None else Path(moved) / folder.name)
