"""The store in a folder: Qdrant's own engine in this process (qdrant-edge), no server.

Any number of threads share one store; a collection can be open in one process at a time: the engine locks it.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError, XqgError
from xqg_vdb.files import MIB, FileLock, bytes_on_disk, disk_errors, empty_bin, remove_folder, require_space, sync_tree
from xqg_vdb.store import layout
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.operations import embedded_admin
from xqg_vdb.store.embedded.versions import Folder, Version, stamp_of, version_states
from xqg_vdb.store.embedded.writer import COPY, FREE_SPACE_FLOOR, copy_to_index, open_writer, publish_copy
from xqg_vdb.store.gate import checked
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.operations import Admin, Store, absent, finish
from xqg_vdb.types import Card, CollectionWriter, Hit, PointBatch, QuestionRows, Search, StoredPoint

_log = logging.getLogger(__name__)
_MOST_UNFLUSHED = 8 * MIB  # what an opening may have to read again from the engine's log; a flush stops all searches

# The published version of a collection in a folder, opened for reading: its lock, its card and its shard.


@dataclass(slots=True)
class _Reader:
    """The open shard of a published version, and how many calls are using it right now."""

    version: Version
    pointer: str
    stamp: tuple[int, int]
    card: Card
    shard: engine.Shard
    lock: FileLock | None
    copy: tempfile.TemporaryDirectory[str] | None = None
    users: int = 0
    retired: bool = False
    unflushed: int = 0  # bytes that are durable in the engine's log alone
    changed: set[UUID] | None = None  # points since a copy of it is being indexed
    index_at: int = 0  # bytes outside the graph from which on that is worth another try

    def close(self) -> None:
        """Release the shard and its lock."""
        self.shard.close()
        if self.lock is not None:
            self.lock.release()
        if self.copy is not None:
            self.copy.cleanup()


def open_reader(folder: Folder) -> _Reader | None:
    """Lock, load and check the published version; tries again when it is replaced meanwhile. None: nothing is."""
    busy = f"Collection {folder.name!r} in {folder.path.parent} is in use by"
    with disk_errors(folder.path):
        while True:
            stamp, version = folder.stamp(), folder.current()
            if stamp is None or version is None:
                return None
            if version.path.is_dir() and not os.access(version.path, os.W_OK):
                return _read_only(folder, version, stamp)
            try:
                lock = FileLock.take(version.lock, busy=busy)
                break
            except (LockedError, FileNotFoundError) as error:
                if folder.stamp() != stamp:
                    continue
                if isinstance(error, FileNotFoundError):
                    raise CorruptError(f"{version.path} is missing; load the collection again.") from error
                raise LockedError(f"{error}; close that one, or use a Qdrant server (--url) for several.") from None
    try:
        shutil.rmtree(folder.path / COPY, ignore_errors=True)  # of a process that was killed
        card = version.card()
        return _Reader(version, str(folder.pointer), stamp, card, engine.load_checked(version.shard, card), lock)
    except BaseException:
        lock.release()
        raise


def _read_only(folder: Folder, version: Version, stamp: tuple[int, int]) -> _Reader:
    """A reader of a copy: the engine writes even to read, and nobody can write where the version lies."""
    card, copy = version.card(), tempfile.TemporaryDirectory(prefix="xqg-vdb-")
    try:
        place = Path(copy.name)
        with disk_errors(place):
            require_space(place, needed=bytes_on_disk(version.shard))
            shutil.copytree(version.shard, place / "shard")
        _log.warning("%s may not be written: a copy in %s is searched.", version.path, place)
        shard = engine.load_checked(place / "shard", card)
        return _Reader(version, str(folder.pointer), stamp, card, shard, None, copy)
    except BaseException:
        copy.cleanup()
        raise


class _EmbeddedUpdate:
    """The open shard of a published version while its points are changed; see `types.CollectionUpdate`."""

    def __init__(self, reader: _Reader, *, free_space_floor: int) -> None:
        self._reader = reader
        self._floor = free_space_floor
        self._unsaved = False

    @property
    def card(self) -> Card:
        return self._reader.card

    def find(self, ids: Sequence[str], *, chunks: bool = False) -> dict[str, StoredPoint]:
        with engine.errors(self._reader.version.shard):
            payloads = engine.payloads(self._reader.shard, ids, chunks=chunks)
            points = [layout.stored_point(payload, {}) for payload in payloads]
        return {point.id: point for point in points}

    def upsert(self, batch: PointBatch) -> None:
        rows = checked(batch, card=self.card)
        with disk_errors(self._reader.version.path):
            require_space(self._reader.version.path, needed=max(self._floor, 2 * sum(rows.sizes)))
        self._apply(engine.upsert_operation(rows, batch), rows.ids, size=sum(rows.sizes))

    def delete(self, ids: Sequence[str]) -> None:
        points = list(map(layout.point_id, ids))
        self._apply(engine.delete_operation(points), points, size=16 * len(ids))

    def record(self, card: Card) -> None:
        reader = self._reader
        with disk_errors(reader.version.path), engine.errors(reader.version.shard):
            if self._unsaved:
                engine.sync_log(reader.version.shard)
                self._unsaved = False
            if reader.unflushed > _MOST_UNFLUSHED:
                sync_tree(reader.version.shard)  # the flush has little left to wait for then
                reader.shard.flush()
                reader.unflushed = 0
            reader.version.write_card(card)
        reader.card = card

    def _apply(self, operation: Any, points: Iterable[UUID], *, size: int) -> None:
        self._unsaved = True
        if self._reader.changed is not None:
            self._reader.changed.update(points)
        with engine.errors(self._reader.version.shard):
            self._reader.shard.update(operation)
        self._reader.unflushed += size


class EmbeddedStore(Store):
    """Collections in a folder; see `types.VectorStore`. Opens one when it is first read, and again after a load.

    options: of the collections that it makes.
    free_space_floor: bytes of disk that a load leaves free at least; on a full disk the engine would die of SIGBUS.
    most_unindexed: bytes of vectors outside the graph from which on a copy with all points in it is made in the
        background, and published, as soon as they are a tenth of those in it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        options: CollectionOptions | None = None,
        free_space_floor: int = FREE_SPACE_FLOOR,
        most_unindexed: int = 10 * MIB,
    ) -> None:
        self.path = Path(path)
        self.most_unindexed = most_unindexed
        self._indexing: dict[str, threading.Thread] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.options = options or CollectionOptions()
        self._floor = free_space_floor
        self._readers: dict[str, _Reader] = {}
        self._mutex = threading.Lock()
        self._updating = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self.path)!r})"

    @property
    def admin(self) -> Admin:
        """Versions, states and snapshots."""
        return embedded_admin(self)

    def names(self) -> list[str]:
        """The published collections, sorted."""
        with disk_errors(self.path):
            try:
                folders = [Folder(path) for path in self.path.iterdir() if not path.name.startswith(".")]
            except FileNotFoundError:
                return []
            return sorted(folder.name for folder in folders if folder.stamp() is not None)

    def version(self, name: str) -> str:
        """Which version searches see now: they may lag behind the pointer while its publisher still holds it."""
        with self.reading(name) as reader:
            return reader.version.name

    def card(self, name: str) -> Card:
        """The card of the published version; does not open it. Raises DataError, CorruptError."""
        base, wanted = layout.split_version(name)
        folder = self.folder(base)
        with disk_errors(folder.path):
            version = folder.current()
            if version is None:
                raise self.missing(folder)
            if wanted and not (folder.path / wanted).is_dir():
                raise layout.Moved(f"Collection {base!r} in {self.path} has no version {wanted}.")
            return Version(folder.path / wanted).card() if wanted else version.card()

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card. Raises LockedError when another loader is at work."""
        self.check_process()
        return open_writer(self.folder(name), card=card, options=self.options, free_space_floor=self._floor)

    @contextmanager
    def update(self, name: str) -> Iterator[_EmbeddedUpdate]:
        """The published version, to be changed in place; threads take turns. Raises LockedError while one is loaded."""
        with self._changing(name) as reader:
            yield _EmbeddedUpdate(reader, free_space_floor=self._floor)
            self._index_later(name, reader)

    @contextmanager
    def _changing(self, name: str) -> Iterator[_Reader]:
        folder = self.folder(name)
        busy = "is being loaded or changed by"
        with self._updating, self.reading(name) as reader, folder.loading(busy=busy):
            if reader.lock is None:
                raise DiskError(f"{folder.path} may not be written, so that nothing can be added or deleted.")
            if folder.current() != reader.version:
                raise LockedError(
                    f"Collection {name!r} in {self.path} {busy} a load that is just ending; make the same call again."
                )
            yield reader

    def indexed(self, name: str) -> None:
        """Wait until what was added is in the graph; many points come into it in the background."""
        if (thread := self._indexing.get(name)) is not None:
            thread.join()

    def is_indexing(self, name: str) -> bool:
        """Whether that is under way."""
        return name in self._indexing

    def _index_later(self, name: str, reader: _Reader) -> None:
        waiting = engine.unindexed(reader.shard, reader.card)
        size = 4 * reader.card.encoder.dim * len(reader.card.vectors) * waiting
        many = size >= max(self.most_unindexed, reader.index_at) and 11 * waiting >= reader.card.count
        if many and name not in self._indexing:
            reader.index_at = 2 * size
            thread = threading.Thread(target=self._index, args=(name, reader), daemon=True)
            self._indexing[name] = thread
            thread.start()

    def _index(self, name: str, reader: _Reader) -> None:
        """A copy of a version is indexed, follows what changed meanwhile, and takes its place: no search waits."""
        folder = self.folder(name)
        try:
            with disk_errors(folder.path):
                with self._changing(name), engine.errors(reader.version.shard):
                    reader.shard.flush()
                    copy = copy_to_index(folder, reader.version, free_space_floor=self._floor)
                    reader.changed = set()
                engine.build_index(copy.shard, nice=10, began=partial(self._children.__setitem__, name))
                if self._readers.get(name) is not reader:
                    return
                with self._changing(name) as now:
                    if now is reader:
                        engine.follow(copy.shard, reader.shard, reader.changed)
                        publish_copy(folder, copy, reader.card)
        except (XqgError, OSError) as error:
            if self._readers.get(name) is reader:
                _log.warning("The points that were added to %s are not in its graph yet: %s", name, error)
        finally:
            reader.changed = None
            shutil.rmtree(folder.path / COPY, ignore_errors=True)
            self._children.pop(name, None)
            del self._indexing[name]

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, by score, then id; graph search keeps 100 candidates unless `ef` says otherwise."""
        rows = layout.check_search(questions, search)
        with self.reading(name) as reader, engine.errors(reader.version.shard):
            layout.check_using(reader.card, search.using, name=name, asked=rows)

            async def ask(questions: QuestionRows, limit: int) -> list[list[layout.Found]]:
                return engine.query(reader.shard, questions, limit=limit, search=search)

            first = finish(ask(rows, layout.first_limit(search)))
            return finish(layout.best(rows, first, ask, search=search))

    def fetch(self, name: str, points: Iterable[str]) -> dict[str, Hit]:
        """The passages of those of the points that are there, by the points' ids."""
        with self.reading(name) as reader, engine.errors(reader.version.shard):
            payloads = engine.passages(reader.shard, points)
            return {point: layout.hit_of(0.0, payload) for point, payload in payloads.items()}

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points, of those languages when given."""
        layout.check_langs(passage_langs)
        with self.reading(name) as reader, engine.errors(reader.version.shard):
            return engine.count(reader.shard, passage_langs)

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point of the version that is published when the first one is asked for."""
        with self.reading(name) as reader, engine.errors(reader.version.shard):
            for payload, vectors in engine.scroll(reader.shard, with_vectors=with_vectors):
                yield layout.stored_point(payload, vectors)

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions. Raises DataError when it is unknown, LockedError when in use."""
        self.check_process()
        folder = self.folder(name)
        if not folder.path.is_dir():
            raise self.missing(folder)
        self.let_go(name)
        busy = "cannot be deleted: it is in use by"
        with disk_errors(folder.path), ExitStack() as locks:
            locks.enter_context(folder.loading(busy=busy))
            for version in folder.versions():
                locks.enter_context(FileLock.take(version.lock, busy=f"Collection {name!r} in {self.path} {busy}"))
            remove_folder(folder.path)
            empty_bin(self.path)

    def close(self) -> None:
        """Release handles and locks; calls that are running finish first. The store may be used again."""
        for name in list(self._readers):
            self.let_go(name)

    def folder(self, name: str) -> Folder:
        """The folder of a collection, which need not exist. Raises DataError for what cannot be a name."""
        return Folder(self.path / layout.check_name(name))

    def missing(self, folder: Folder) -> DataError:
        """The error for a collection that is not published: unfinished, or unknown."""
        states = version_states(folder)
        finished = [state.name for state in states if state.finished]
        unfinished = states and absent(folder.name, at=f"in {self.path}", begun=True, finished=finished)
        return unfinished or layout.missing_collection(folder.name, self.names(), where=str(self.path))

    def check_process(self) -> None:
        """Raise LockedError in a forked child."""
        if os.getpid() != self._pid:
            raise LockedError(
                f"The store {self.path} was opened in process {self._pid}, this is process {os.getpid()}: the engine"
                " does not survive a fork. Open the store after the fork, and one process only, or use a Qdrant server"
                " (--url)."
            )

    @contextmanager
    def reading(self, name: str) -> Iterator[_Reader]:
        """The reader of the published version; it stays open until the block ends, whatever is published meanwhile."""
        self.check_process()
        base, wanted = layout.split_version(name)
        with self._mutex:
            reader = self._fresh(base)
            if wanted not in (None, reader.version.name):
                raise layout.Moved(f"Version {wanted} of {base!r} in {self.path} is not the published one.")
            reader.users += 1
        try:
            yield reader
        finally:
            with self._mutex:
                reader.users -= 1
                self._close_unused(reader)

    def _fresh(self, name: str) -> _Reader:
        reader = self._readers.get(name)
        if reader is not None and reader.stamp == (stamp := stamp_of(reader.pointer)):
            return reader
        folder = self.folder(name)
        if reader is not None and stamp is not None and folder.current() == reader.version:
            reader.stamp = stamp  # the pointer was rewritten, but it points here still
            return reader
        try:
            fresh = open_reader(folder)
        except LockedError:
            if reader is None:
                raise
            return reader  # whoever published the new version still has it open: serve the old one until they let go
        if fresh is None:
            raise self.missing(folder)
        self._readers[name] = fresh
        if reader is not None:
            reader.retired = True
            self._close_unused(reader)
            with suppress(OSError):
                folder.sweep()
        return fresh

    def let_go(self, name: str) -> None:
        """Close the reader of a collection as soon as the calls that use it have ended."""
        with self._mutex:
            reader = self._readers.pop(name, None)
            if reader is not None:
                reader.retired = True
                self._close_unused(reader)
        if (child := self._children.get(name)) is not None:
            child.kill()
        self.indexed(name)

    @staticmethod
    def _close_unused(reader: _Reader) -> None:
        if reader.retired and reader.users == 0:
            reader.close()
