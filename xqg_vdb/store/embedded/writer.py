"""Fill a version of an embedded collection and publish it; stopped at any point, the next run continues.

What is durable is what `commit` named: the engine's flush comes first, then the cursor.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from xqg_vdb.errors import CorruptError, XqgError
from xqg_vdb.files import (
    MIB,
    FileLock,
    bytes_on_disk,
    disk_errors,
    empty_bin,
    make_folder,
    remove_folder,
    require_space,
    sync_folder,
    sync_tree,
)
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.versions import Folder, Version
from xqg_vdb.store.gate import checked, to_publish, wrong_count
from xqg_vdb.store.layout import CollectionOptions, same_build
from xqg_vdb.types import Card, CollectionWriter, PointBatch

FREE_SPACE_FLOOR = 256 * MIB
_MARGIN = 100 * MIB

_log = logging.getLogger(__name__)


class _EmbeddedWriter(AbstractContextManager["_EmbeddedWriter"]):
    """A version that is being filled, by one thread.

    `publish` wants the last rows committed: a build that is stopped before anything was, starts over. It deletes older
    versions than those to keep, unless somebody reads one: its reader deletes it when it moves on.
    """

    def __init__(
        self,
        folder: Folder,
        version: Version,
        *,
        card: Card,
        shard: engine.Shard,
        lock: FileLock,
        keep: int,
        free_space_floor: int,
    ) -> None:
        self._folder = folder
        self._version = version
        self._card = card
        self._shard: engine.Shard | None = shard
        self._lock = lock
        self._keep = keep
        self._floor = free_space_floor
        self._committed = version.cursor()[0]
        self._pending = 0  # bytes since the last commit
        self._broken = False

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def committed(self) -> int:
        return self._committed

    def upsert(self, batch: PointBatch) -> None:
        shard = self._ready()
        rows = checked(batch, card=self._card)
        if not rows.ids:
            return
        self._require_space(sum(rows.sizes))
        with engine.errors(self._version.shard):
            operation = engine.upsert_operation(rows, batch)
        try:
            with engine.errors(self._version.shard):
                shard.update(operation)
        except Exception:  # the state of the shard is unknown now
            self._broken = True
            raise
        self._pending += sum(rows.sizes)

    def commit(self, rows: int) -> None:
        shard = self._ready()
        self._require_space(0)
        with engine.errors(self._version.shard):
            shard.flush()
            points = engine.count(shard)
        with disk_errors(self._version.path):
            self._version.write_cursor(rows=rows, points=points)
        self._committed, self._pending = rows, 0

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        shard = self._ready()
        card = to_publish(card, self._card, version=self._version.name)
        try:
            with engine.errors(self._version.shard):
                shard.flush()
                found = engine.count(shard)
            with disk_errors(self._version.path):
                self._check_count(found, card)
                self._finish(card)
        finally:
            self.close()

    def close(self) -> None:
        try:
            self._close_shard()
        finally:
            self._lock.release()

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            with engine.errors(self._version.shard):
                shard.close()

    def _ready(self) -> engine.Shard:
        if self._broken:
            raise CorruptError(
                f"An earlier write to {self._version.shard} failed half way; run the same command again: it continues"
                f" after row {self._committed:,}."
            )
        if self._shard is None:
            raise XqgError("This writer is closed; ask the store for another one.")
        return self._shard

    def _require_space(self, coming: int) -> None:
        needed = max(self._floor, 2 * (self._pending + coming) + _MARGIN)
        with disk_errors(self._version.path):
            require_space(self._version.path, needed=needed)

    def _check_count(self, found: int, card: Card) -> None:
        if found == card.count:
            return
        (self._version.path / "card.json").unlink(missing_ok=True)  # without it, nobody continues this version
        raise wrong_count(str(self._version.shard), found, card)

    def _finish(self, card: Card) -> None:
        version = self._version
        self._close_shard()  # the index is built in another process
        require_space(version.path, needed=max(self._floor, bytes_on_disk(version.shard) + _MARGIN))
        engine.build_index(version.shard)
        version.write_card(card)
        shard = engine.load(version.shard)
        with engine.errors(version.shard):
            found = engine.count(shard)
            shard.close()
        self._check_count(found, card)
        self._folder.point_to(version, keep=self._keep)
        self._folder.sweep()


def open_writer(folder: Folder, *, card: Card, options: CollectionOptions, free_space_floor: int) -> CollectionWriter:
    """Continue the newest unfinished version if its card is of the same build, else begin a new one.

    Raises DataError for options that only a server has, LockedError naming the process that loads already, DiskError,
    and nothing for a damaged unfinished version: that one is thrown away with a warning, because everything in it can
    be written again.
    """
    options.refuse_server_only()
    card = replace(card, storage=options.layout())
    with disk_errors(folder.path):
        make_folder(folder.path)
        lock = folder.loading()
        try:
            require_space(folder.path, needed=max(free_space_floor, _MARGIN))
            empty_bin(folder.path)
            version, shard = _resumed(folder, card) or _begun(folder, card, options)
            return _EmbeddedWriter(
                folder, version, card=card, shard=shard, lock=lock, keep=options.keep, free_space_floor=free_space_floor
            )
        except BaseException:
            lock.release()
            raise


def _resumed(folder: Folder, card: Card) -> tuple[Version, engine.Shard] | None:
    """The newest unfinished version, open, if it can be continued; all other unfinished ones are removed."""
    current, finished, kept = folder.current(), folder.kept(), None
    above = [version for version in folder.versions() if current is None or version.number > current.number]
    for version in reversed(above):
        if version in finished:
            continue
        if kept is None and (shard := _continued(version, card)) is not None:
            kept = version, shard
        else:
            remove_folder(version.path)
    return kept


def _continued(version: Version, card: Card) -> engine.Shard | None:
    """The open shard of a version with a commit of the same build, holding at least what its cursor says; else None."""
    try:
        rows, points = version.cursor()
        if rows == 0 or not same_build(version.card(), card):
            return None
        engine.clear_leftovers(version.shard)
        shard = engine.load(version.shard)
        with engine.errors(version.shard):
            found = engine.count(shard)
    except CorruptError as error:
        _log.warning("the unfinished %s is thrown away and loaded again: %s", version.path, error)
        return None
    if found < points:
        shard.close()
        _log.warning("the unfinished %s is thrown away and loaded again: %d points of %d", version.path, found, points)
        return None
    return shard


def _begun(folder: Folder, card: Card, options: CollectionOptions) -> tuple[Version, engine.Shard]:
    version = folder.next_version()
    make_folder(version.path)
    version.shard.mkdir()
    version.write_card(replace(card, version=version.name, count=0, digest="", created=""))
    try:
        return version, engine.create(version.shard, card, options)
    except BaseException:
        shutil.rmtree(version.path, ignore_errors=True)
        raise


COPY = "indexing"  # a folder in that of the collection, while the points of a published version come into the graph


def copy_to_index(folder: Folder, version: Version, *, free_space_floor: int) -> Version:
    """A copy of a version that is flushed, and that nobody changes meanwhile; what another run left goes."""
    place = folder.path / COPY
    shutil.rmtree(place, ignore_errors=True)
    require_space(folder.path, needed=max(free_space_floor, 2 * bytes_on_disk(version.path) + _MARGIN))
    shutil.copytree(version.path, place, ignore=shutil.ignore_patterns(version.lock.name, "card.json"))
    return Version(place)


def publish_copy(folder: Folder, copy: Version, card: Card) -> None:
    """Make a copy the published version, in place of the one that it is of."""
    version = folder.next_version()
    copy.write_card(replace(card, version=version.name))
    sync_tree(copy.path)
    os.replace(copy.path, version.path)
    sync_folder(folder.path)
    folder.replace_by(version)
