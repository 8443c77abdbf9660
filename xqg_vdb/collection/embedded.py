"""The store in a folder: Qdrant's own engine in this process (qdrant-edge), no server.

In: a folder. Out: a VectorStore. Any number of threads share one store; a collection can be open in one process at a
time, because the engine locks it. Loading is in `embedded_writer`; this file refuses to know how points get in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CorruptError, DataError, LockedError
from ..types import Card, CollectionWriter, Hit, StoredPoint, Vectors
from . import engine, layout
from .embedded_writer import FREE_SPACE_FLOOR, open_writer
from .locks import FileLock
from .versions import Folder, Stamp, Version, disk_errors, empty_bin, remove_folder, stamp_of


@dataclass(slots=True)
class _Reader:
    """The open shard of a published version, and how many calls are using it right now."""

    version: Version
    pointer: str
    stamp: Stamp
    card: Card
    shard: engine.Shard
    lock: FileLock
    users: int = 0
    retired: bool = False

    def close(self) -> None:
        self.shard.close()
        self.lock.release()


class EmbeddedStore:
    """Collections in a folder; see `types.VectorStore`. Opens one when it is first read, and again after a load.

    free_space_floor: bytes of disk that a load leaves free at least; on a full disk the engine would die of SIGBUS.
    """

    def __init__(self, path: str | os.PathLike[str], *, free_space_floor: int = FREE_SPACE_FLOOR) -> None:
        self.path = Path(path)
        self._floor = free_space_floor
        self._readers: dict[str, _Reader] = {}
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"EmbeddedStore({str(self.path)!r})"

    def __enter__(self) -> EmbeddedStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def names(self) -> list[str]:
        """The published collections, sorted."""
        with disk_errors(self.path):
            try:
                folders = [Folder(path) for path in self.path.iterdir() if not path.name.startswith(".")]
            except FileNotFoundError:
                return []
            return sorted(folder.path.name for folder in folders if folder.stamp() is not None)

    def card(self, name: str) -> Card:
        """The card of the published version; does not open it. Raises DataError, CorruptError."""
        folder = self._folder(name)
        with disk_errors(folder.path):
            version = folder.current()
            if version is None:
                raise self._missing(folder)
            return version.card()

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card. Raises LockedError when another loader is at work."""
        self._check_process()
        return open_writer(self._folder(name), card=card, free_space_floor=self._floor)

    def search(
        self,
        name: str,
        vectors: Vectors,
        *,
        k: int,
        langs: Sequence[str] | None,
        using: str,
        exact: bool,
        ef: int | None,
    ) -> list[list[Hit]]:
        """The k best per row of `vectors` (q, dim), by score, then id; only passages in `langs` when given.

        ef: how many candidates graph search keeps; None is the engine's 100.
        """
        rows = layout.check_queries(vectors, k=k)
        layout.check_langs(langs)
        with self._reading(name) as reader, engine.errors(reader.version.shard):
            layout.check_using(reader.card, using, name=name, dim=rows.shape[1])

            def ask(questions: Vectors, limit: int) -> list[list[layout.Found]]:
                return engine.query(reader.shard, questions, limit=limit, langs=langs, using=using, exact=exact, ef=ef)

            return layout.best(rows, ask, k=k)

    def count(self, name: str, *, langs: Sequence[str] | None = None) -> int:
        """Exact number of points, of those languages when given."""
        layout.check_langs(langs)
        with self._reading(name) as reader, engine.errors(reader.version.shard):
            return engine.count(reader.shard, langs)

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point of the version that is published when the first one is asked for."""
        with self._reading(name) as reader, engine.errors(reader.version.shard):
            for payload, vectors in engine.scroll(reader.shard, with_vectors=with_vectors):
                arrays = {key: np.asarray(value, dtype=np.float32) for key, value in vectors.items()}
                yield StoredPoint(id=str(payload.get("id", "")), payload=payload, vectors=arrays)

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions. Raises DataError when it is unknown, LockedError when in use."""
        self._check_process()
        folder = self._folder(name)
        if not folder.path.is_dir():
            raise self._missing(folder)
        self._retire(name)
        busy = f"Collection {name!r} in {self.path} cannot be deleted: it is in use by"
        with disk_errors(folder.path):
            locks = [FileLock.take(folder.load_lock, busy=busy)]
            try:
                locks += [FileLock.take(version.lock, busy=busy) for version in folder.versions()]
                remove_folder(folder.path)
                empty_bin(self.path)
            finally:
                for lock in locks:
                    lock.release()

    def close(self) -> None:
        """Release handles and locks; calls that are running finish first. The store may be used again."""
        for name in list(self._readers):
            self._retire(name)

    def _folder(self, name: str) -> Folder:
        return Folder(self.path / layout.check_name(name))

    def _missing(self, folder: Folder) -> DataError:
        if folder.versions():
            return DataError(
                f"Collection {folder.path.name!r} in {self.path} is not finished: run the load again, it continues"
                " where it stopped."
            )
        return layout.missing_collection(folder.path.name, self.names(), where=str(self.path))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise LockedError(
                f"The store {self.path} was opened in process {self._pid}, this is process {os.getpid()}: the engine"
                " does not survive a fork. Open the store after the fork, and one process only, or use a Qdrant server"
                " (--url)."
            )

    @contextmanager
    def _reading(self, name: str) -> Iterator[_Reader]:
        """The reader of the published version; it stays open until the block ends, whatever is published meanwhile."""
        self._check_process()
        with self._mutex:
            reader = self._fresh(name)
            reader.users += 1
        try:
            yield reader
        finally:
            with self._mutex:
                reader.users -= 1
                self._close_unused(reader)

    def _fresh(self, name: str) -> _Reader:
        reader = self._readers.get(name)
        if reader is not None and reader.stamp == stamp_of(reader.pointer):
            return reader
        folder = self._folder(name)
        if folder.stamp() is None:
            raise self._missing(folder)
        try:
            fresh = self._readers[name] = self._open(folder)
        except LockedError:
            if reader is None:
                raise
            return reader  # whoever published the new version still has it open: serve the old one until they let go
        if reader is not None:
            reader.retired = True
            self._close_unused(reader)
            with suppress(OSError):
                folder.sweep()
        return fresh

    def _open(self, folder: Folder) -> _Reader:
        """Lock, load and check the published version; tries again when it is replaced meanwhile."""
        busy = f"Collection {folder.path.name!r} in {self.path} is in use by"
        with disk_errors(folder.path):
            while True:
                stamp, version = folder.stamp(), folder.current()
                if stamp is None or version is None:
                    raise self._missing(folder)
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
            card = version.card()
            return _Reader(version, str(folder.pointer), stamp, card, _checked_shard(version, card), lock)
        except BaseException:
            lock.release()
            raise

    def _retire(self, name: str) -> None:
        with self._mutex:
            reader = self._readers.pop(name, None)
            if reader is not None:
                reader.retired = True
                self._close_unused(reader)

    @staticmethod
    def _close_unused(reader: _Reader) -> None:
        if reader.retired and reader.users == 0:
            reader.close()


def _checked_shard(version: Version, card: Card) -> engine.Shard:
    """The open shard, after its points were counted: the engine loads a damaged one with fewer and says nothing."""
    shard = engine.load(version.shard)
    with engine.errors(version.shard):
        found = engine.count(shard)
    if found != card.count:
        shard.close()
        raise CorruptError(
            f"{version.shard} holds {found:,} points where its card promises {card.count:,}: it is damaged; load it"
            " again."
        )
    return shard
