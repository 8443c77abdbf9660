"""Fill a version of an embedded collection and publish it; stopped at any point, the next run continues.

In: a collection folder, a card, batches. Out: a published version. What is durable is what `commit` named: the engine's
flush comes first, then the cursor. This file refuses to know where batches come from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from xqg_vdb.errors import CorruptError, MismatchError, XqgError
from xqg_vdb.files import MIB, FileLock, bytes_on_disk, disk_errors, empty_bin, make_folder, require_space
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.versions import Folder, Version
from xqg_vdb.store.gate import checked
from xqg_vdb.store.layout import CollectionOptions, same_build
from xqg_vdb.types import Card, PointBatch

FREE_SPACE_FLOOR = 256 * MIB
_MARGIN = 100 * MIB

_log = logging.getLogger(__name__)


class EmbeddedWriter:
    """A version that is being filled; see `types.CollectionWriter`. Made by `open_writer`; for one thread."""

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

    def __enter__(self) -> EmbeddedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def committed(self) -> int:
        """Rows that survive a power cut: what the last `commit` named, 0 for a new version."""
        return self._committed

    def upsert(self, batch: PointBatch) -> None:
        """Check, then write. Raises DataError or MismatchError and has written nothing; DiskError; CorruptError.

        After an error of the engine itself the shard's state is unknown, and the writer refuses to go on.
        """
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
        except Exception:
            self._broken = True
            raise
        self._pending += sum(rows.sizes)

    def commit(self, rows: int) -> None:
        """Make everything durable, then record that the first `rows` rows of the input are in. Raises DiskError."""
        shard = self._ready()
        self._require_space(0)
        with engine.errors(self._version.shard):
            shard.flush()
            points = engine.count(shard)
        with disk_errors(self._version.path):
            self._version.write_cursor(rows=rows, points=points)
        self._committed, self._pending = rows, 0

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        """Check the count, build the index, write `card` and make this version the published one; closes the writer.

        Commit the last rows first: a build that is stopped before anything was committed starts over. Older versions
        than those to keep are deleted, unless somebody reads one: then its reader deletes it when it moves on.
        indexed: not called, because the engine builds the index without a word.
        Raises CorruptError when the points are not as many as the card says; the next run then starts over.
        """
        shard = self._ready()
        card = replace(card, storage=self._card.storage)
        if not same_build(card, self._card):
            raise MismatchError("The card to publish describes another build than the one that was loaded.")
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
        """Release the shard and the lock; what was committed stays for the next run."""
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
        raise CorruptError(
            f"{self._version.shard} holds {found:,} points, {card.count:,} were expected: the input changed since a"
            " stopped load, or has an id twice. Run the same command again: it starts over."
        )

    def _finish(self, card: Card) -> None:
        version = self._version
        self._close_shard()  # the index is built in another process
        require_space(version.path, needed=max(self._floor, bytes_on_disk(version.shard) + _MARGIN))
        engine.build_index(version.shard)
        created = card.created or datetime.now(UTC).isoformat(timespec="seconds")
        version.write_card(replace(card, version=version.name, created=created))
        shard = engine.load(version.shard)
        with engine.errors(version.shard):
            found = engine.count(shard)
            shard.close()
        self._check_count(found, card)
        self._folder.point_to(version, keep=self._keep)
        self._folder.sweep()


def open_writer(folder: Folder, *, card: Card, options: CollectionOptions, free_space_floor: int) -> EmbeddedWriter:
    """Continue the newest unfinished version if its card is of the same build, else begin a new one.

    Raises DataError for options that only a server has, LockedError naming the process that loads already, DiskError,
    and nothing for a damaged unfinished version: that one is thrown away with a warning, because everything in it can
    be written again.
    """
    options.refuse_server_only()
    card = replace(card, storage=options.layout())
    with disk_errors(folder.path):
        make_folder(folder.path)
        name = f"Collection {folder.path.name!r} in {folder.path.parent}"
        lock = FileLock.take(folder.load_lock, busy=f"{name} is being loaded by")
        try:
            require_space(folder.path, needed=max(free_space_floor, _MARGIN))
            empty_bin(folder.path)
            version, shard = _resumed(folder, card) or _begun(folder, card, options)
            return EmbeddedWriter(
                folder, version, card=card, shard=shard, lock=lock, keep=options.keep, free_space_floor=free_space_floor
            )
        except BaseException:
            lock.release()
            raise


def _resumed(folder: Folder, card: Card) -> tuple[Version, engine.Shard] | None:
    """The newest unfinished version, open, if it can be continued; all other unfinished ones are removed."""
    current, finished = folder.current(), {version.name for version in folder.kept()}
    above = [version for version in folder.versions() if current is None or version.number > current.number]
    unfinished = [version for version in above if version.name not in finished]
    kept = None
    for version in reversed(unfinished):
        if kept is None and (shard := _continued(version, card)) is not None:
            kept = version, shard
        else:
            folder.remove(version)
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
    versions = folder.versions()
    version = folder.version(versions[-1].number + 1 if versions else 1)
    make_folder(version.path)
    version.shard.mkdir()
    version.write_card(replace(card, version=version.name, count=0, digest="", created=""))
    try:
        return version, engine.create(version.shard, card, options)
    except BaseException:
        shutil.rmtree(version.path, ignore_errors=True)
        raise
