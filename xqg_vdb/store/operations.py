"""What operators do with a store beside loading and searching: versions, rollback, clean-up, states, snapshots.

Both stores have an `admin` that does these things; here is what they have in common: records and policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TypeVar

from xqg_vdb.errors import DataError
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.types import Card, Hit, QuestionRows, Search, VectorStore

T = TypeVar("T")


def finish(steps: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits for an event loop: how what has one path is run without one."""
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    steps.close()
    raise RuntimeError(f"{steps!r} waits for an event loop")


async def here(call: Callable[[], T]) -> T:
    """What `call` returns, at once and in this thread: in place of `asyncio.to_thread`, for `finish`."""
    return call()


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version of a collection: finished ones have a `card` with a date; `published` is the one that is searched.

    reachable: False where a server's node that holds it is away.
    """

    name: str
    published: bool
    finished: bool
    card: Card | None
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What a store says about a published collection right now.

    points: exact. languages: points by language. indexed: vectors in a finished index (small segments have none).
    status: `green` when the index is up to date. disk_bytes: what it takes on disk; None where a server does not say.
    details: other facts of the engine, such as segments, shards and replicas.
    """

    card: Card
    points: int
    languages: Mapping[str, int]
    indexed: int
    status: str
    disk_bytes: int | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot that a store keeps: its name, size in bytes, and time of creation as the store writes it."""

    name: str
    size: int
    created: str


class Admin(Protocol):
    """The operators' side of a store.

    All raise DataError for unknown names, and ServerError or DiskError; what changes something, LockedError while a
    load is at work. Whatever they do, a kill at any moment leaves a collection that can be searched.
    """

    def versions(self, name: str) -> list[VersionState]:
        """All versions of a collection, oldest first."""
        ...

    def rollback(self, name: str, *, version: str | None = None) -> str:
        """Publish a finished version again, the one before the published by default; returns its name.

        Raises CorruptError when points are missing.
        """
        ...

    def gc(self, name: str, *, keep: int, unfinished: bool = False) -> list[str]:
        """Delete finished versions except the published and the latest `keep` - 1 others; returns their names.

        unfinished: delete what stopped loads left as well; they could otherwise be continued.
        Raises DataError when finished versions are there and none is published.
        """
        ...

    def state(self, name: str) -> CollectionState:
        """What the store says about the published version."""
        ...

    def create_snapshot(self, name: str) -> Snapshot:
        """A copy of the published version as one file, kept by the store.

        Raises MismatchError where a server's node holds only some of the shards: the file would be a part.
        """
        ...

    def snapshots(self, name: str) -> list[Snapshot]:
        """The snapshots that the store keeps of the collection, oldest first."""
        ...

    def download_snapshot(self, name: str, snapshot: str, to: Path) -> None:
        """Copy a snapshot into the file `to`, its checksum compared. Raises DataError for a file that is there."""
        ...

    def restore_snapshot(self, name: str, file: Path) -> str:
        """Make a snapshot file the published version of `name`; the one before stays for a rollback. Returns its name.

        Raises DataError for a snapshot of something else, CorruptError for a damaged one; then nothing has changed.
        """
        ...


class Store(VectorStore, Protocol):
    """A store with its operators' side, and what both stores do alike. options: of the collections that it makes."""

    options: CollectionOptions

    @property
    def admin(self) -> Admin:
        """Versions, states and snapshots."""
        ...

    @property
    def storage(self) -> Mapping[str, Any]:
        """What the cards of its new collections say of their options."""
        return self.options.layout()

    def searches(self, name: str, look_ups: Sequence[tuple[QuestionRows, Search]]) -> list[list[list[Hit]]]:
        """What `search` finds for each of several, in as few requests as carry them."""
        return [self.search(name, questions, search) for questions, search in look_ups]

    def fetch(self, name: str, points: Iterable[str]) -> dict[str, Hit]:
        """The passages of those of the points that are there, by the points' ids."""
        ...

    def indexed(self, name: str) -> None:
        """Wait until what was added is in the graph, where this process sees to it in the background."""

    def __reduce__(self) -> NoReturn:
        raise DataError(
            f"{self!r} cannot be pickled or copied: its connections and locks belong to this process. Open it anew in"
            " each process: open_store(…)."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def rollback_target(name: str, states: Sequence[VersionState], wanted: str | None) -> str:
    """Which finished version to publish again, by default the newest below the published one.

    The published one may be asked for: a rollback that was killed at its end can be run again.
    """
    published = next((state.name for state in states if state.published), None)
    others = [state.name for state in states if state.finished and not state.published]
    if wanted is not None and wanted == published:
        return wanted
    if not others:
        raise DataError(
            f"Collection {name!r} has no other finished version to go back to: `xqg-vdb load --keep 2` keeps one."
        )
    if wanted is None and published is None:
        raise unpublished(name, others)
    older = [other for other in others if _number(other) < _number(published or "")]
    if wanted is None and older:
        return older[-1]
    if wanted is None:
        raise DataError(f"Collection {name!r} has no older version than {published}; newer ones: {', '.join(others)}.")
    if wanted not in others:
        raise DataError(f"Collection {name!r} has no version {wanted!r} to go back to; it has {', '.join(others)}.")
    return wanted


def check_published(name: str, states: Sequence[VersionState]) -> None:
    """Raise DataError when there are finished versions and none is published: which of them to keep, nobody knows."""
    finished = [state.name for state in states if state.finished]
    if finished and not any(state.published for state in states):
        raise unpublished(name, finished)


def absent(name: str, *, at: str, begun: bool, finished: Sequence[str]) -> DataError | None:
    """The error for a collection that has versions, of which none is published; None when it has none."""
    if finished:
        return unpublished(name, finished)
    if not begun:
        return None
    return DataError(f"Collection {name!r} {at} is not finished: run the load again, it continues where it stopped.")


def unpublished(name: str, finished: Sequence[str]) -> DataError:
    """The error for a collection whose pointer, or alias, is lost."""
    return DataError(
        f"Collection {name!r} has the finished versions {', '.join(finished)}, and none is published: publish one with"
        f" `xqg-vdb rollback {name} --to {finished[-1]}`."
    )


def refuse_existing(to: Path) -> None:
    """Raise DataError where a file is that a snapshot would replace: it may be the only other copy."""
    if os.path.lexists(to):
        raise DataError(f"{to} is there already: remove it, or give another FILE.")


def no_snapshot(name: str, snapshot: str) -> DataError:
    """The error for an unknown snapshot."""
    return DataError(f"Collection {name!r} has no snapshot {snapshot!r}; see `xqg-vdb snapshot list {name}`.")


def latest(finished: Sequence[str], count: int, *, first: str | None = None) -> list[str]:
    """`count` of the finished versions, oldest first, that stay beside the published one: `first`, then the newest."""
    before = [first] if first in finished and first is not None else []
    return [*before, *(version for version in reversed(finished) if version != first)][: max(count, 0)]


def _number(version: str) -> int:
    return int(version.removeprefix("v") or 0)
