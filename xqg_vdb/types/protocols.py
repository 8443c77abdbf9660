"""What the parts ask of one another: an encoder, a generator, a store and its writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from .cards import Card, EncoderFacts
from .points import PointBatch, Questions, StoredPoint, Vectors
from .texts import GeneratedQueries, Hit, Passage


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into float32 rows in input order; queries and passages have different conventions."""

    @property
    def facts(self) -> EncoderFacts:
        """The conventions and the fingerprint."""
        ...

    def encode_queries(self, texts: Iterable[str], *, langs: Sequence[str | None] | None = None) -> Vectors:
        """Rows (n, dim) for questions, language-calibrated when `langs` is given."""
        ...

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) for passages."""
        ...


@runtime_checkable
class QueryGenerator(Protocol):
    """Writes questions in given languages about passages."""

    def generate(self, passages: Iterable[Passage], *, langs: Sequence[str], n: int) -> Iterator[GeneratedQueries]:
        """One record per passage, in input order."""
        ...


class CollectionWriter(Protocol):
    """An unpublished version of a collection that is being filled; a context manager that closes without publishing."""

    @property
    def committed(self) -> int:
        """Rows that survive a power cut: what the last `commit` named, 0 for a new version."""
        ...

    def upsert(self, batch: PointBatch) -> None:
        """Validate, then write; nothing of a bad batch is written. Raises DataError, DiskError, ServerError."""
        ...

    def commit(self, rows: int) -> None:
        """Make everything durable, then record that the first `rows` rows of the input are in."""
        ...

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        """Check the count, build the index, write the card and switch readers to this version.

        indexed: told how many vectors are indexed so far, where the engine says so.
        """
        ...

    def close(self) -> None:
        """Release the handle and the lock; what was committed stays for the next run."""
        ...

    def __enter__(self) -> CollectionWriter: ...

    def __exit__(self, *exc: object) -> None: ...


class VectorStore(Protocol):
    """Where collections live: a folder (qdrant-edge) or a Qdrant server. `name` is the user's; versions are inside."""

    def names(self) -> list[str]:
        """The published collections, sorted."""
        ...

    def card(self, name: str) -> Card:
        """The card of the published version. DataError when there is no such collection or it is not ours."""
        ...

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card (same encoder, distance, recipe, means)."""
        ...

    def search(
        self,
        name: str,
        vectors: Questions,
        *,
        k: int,
        langs: Sequence[str] | None,
        using: str,
        exact: bool,
        ef: int | None,
    ) -> list[list[Hit]]:
        """The k best per question, ordered by score, then id; only passages in `langs` when given.

        vectors: rows (q, dim), or token weights when `using` is the sparse vector.
        """
        ...

    def count(self, name: str, *, langs: Sequence[str] | None = None) -> int:
        """Exact number of points."""
        ...

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point, in the engine's order."""
        ...

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions."""
        ...

    def close(self) -> None:
        """Release handles and locks."""
        ...
