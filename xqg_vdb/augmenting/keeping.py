"""The first pass: stored vectors, and the sums of newly encoded query vectors, into a build folder.

In: a collection and a query file. Out: a complete `Build` whose passages are the collection's own vectors. It is what
fusion reads, and what gives the originals back. Passages are not encoded. This file writes nothing to the collection.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from xqg_vdb.batching import windows
from xqg_vdb.building import WINDOW, query_sums
from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import disk_errors, write_atomic
from xqg_vdb.progress import Progress
from xqg_vdb.queries import QueryFile
from xqg_vdb.types import GeneratedQueries, Passage, TextEncoder, Vectors
from xqg_vdb.vectors import Build, BuildWriter, row_digest

if TYPE_CHECKING:
    from xqg_vdb.collection.foreign import ForeignCollection, ForeignPoint
    from xqg_vdb.collection.foreign_payloads import PayloadLayout

_COUNTS = "counts.json"
_VECTORS = "vectors"
Row = tuple[Passage, GeneratedQueries | None, Vectors]


@dataclass
class PointCounts:
    """What was seen of a collection: points; those without a text, without the vector, without queries.

    unused_queries: query records that belong to no point.
    """

    points: int = 0
    without_text: int = 0
    without_vector: int = 0
    without_queries: int = 0
    unused_queries: int = 0
    first_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Where vectors lie in a collection. original: the vector that keeps them, when `vector` was overwritten."""

    vector: str
    original: str | None
    layout: PayloadLayout

    @property
    def wanted(self) -> list[str]:
        """The vectors to read."""
        return [self.vector, *([self.original] if self.original else [])]

    def vector_of(self, point: ForeignPoint) -> list[float] | None:
        """The point's vector as it was before anything was fused; None when it has none."""
        kept: Any = point.vectors.get(self.original) if self.original else None
        return kept if kept is not None else point.vectors.get(self.vector)


def keep_points(
    source: ForeignCollection, place: Place, table: QueryFile, *, encoder: TextEncoder, folder: Path, progress: Progress
) -> tuple[Build, PointCounts]:
    """The build in `folder`, made or continued. A finished one is taken as it is.

    One that was stopped, and whose points or queries changed since, is begun anew. Raises DataError when no query
    belongs to a point, DiskError, LockedError, ServerError.
    """
    if (folder / _COUNTS).exists():
        with disk_errors(folder):
            counts = PointCounts(**orjson.loads((folder / _COUNTS).read_bytes()))
        return Build.open(folder / _VECTORS), counts
    try:
        counts = _fill(source, place, table, encoder=encoder, folder=folder, progress=progress)
    except (MismatchError, CorruptError):
        shutil.rmtree(folder, ignore_errors=True)
        counts = _fill(source, place, table, encoder=encoder, folder=folder, progress=progress)
    build = Build.open(folder / _VECTORS)
    if not any(column.any() for column in build.counts.values()):
        raise DataError(_no_queries(counts, table))
    with disk_errors(folder):
        write_atomic(folder / _COUNTS, orjson.dumps(asdict(counts)))
    return build, counts


def build_of(folder: Path) -> Build:
    """The finished build in `folder`. Raises DataError when it is not there."""
    if not (folder / _COUNTS).exists():
        raise DataError(f"The original vectors are not in {folder}; say where that folder is now with --backup.")
    return Build.open(folder / _VECTORS)


def _fill(
    source: ForeignCollection, place: Place, table: QueryFile, *, encoder: TextEncoder, folder: Path, progress: Progress
) -> PointCounts:
    counts, total = PointCounts(), source.count()
    facts = encoder.facts
    with Build.create_or_resume(folder / _VECTORS, dim=facts.dim, fingerprint=facts.fingerprint) as writer:
        done = 0
        for window in windows(_rows(source, place, table, counts), WINDOW):
            if done + len(window) <= writer.rows:
                _check(window, writer, done)
            else:
                _append(window, writer, encoder)
                writer.commit()
            done += len(window)
            progress("encoding queries", min(counts.points, total), total)
        if done < writer.rows:
            raise MismatchError(f"{source.name!r} lost points since {folder} was begun.")
        writer.commit(complete=True)
    counts.unused_queries = table.unused_count
    return counts


def _rows(source: ForeignCollection, place: Place, table: QueryFile, counts: PointCounts) -> Iterator[Row]:
    """Every point that has the vector, with its queries."""
    for page in source.pages(vectors=place.wanted, payloads=True):
        for point in page:
            counts.points += 1
            texts, vector = place.layout.wordings(point.payload), place.vector_of(point)
            key = place.layout.key(point.id, point.payload)
            queries = None if key is None else table.get(key)
            counts.without_text += not texts
            counts.without_vector += vector is None
            counts.without_queries += queries is None
            if key is not None and len(counts.first_ids) < 3:
                counts.first_ids.append(key)
            if vector is not None:
                yield Passage(str(point.id), texts[0] if texts else ""), queries, np.asarray(vector, dtype=np.float32)


def _append(window: Sequence[Row], writer: BuildWriter, encoder: TextEncoder) -> None:
    writer.append(
        [passage.id for passage, _, _ in window],
        _digests(window),
        np.stack([vector for _, _, vector in window]),
        query_sums([queries for _, queries, _ in window], encoder),
    )


def _check(window: Sequence[Row], writer: BuildWriter, start: int) -> None:
    if (writer.digest_prefix()[start : start + len(window)] != _digests(window)).any():
        raise MismatchError("The points or their queries changed since the vectors were kept.")


def _digests(window: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([row_digest(passage, queries) for passage, queries, _ in window], dtype=np.uint64)


def _no_queries(counts: PointCounts, table: QueryFile) -> str:
    return (
        f"No generated query belongs to any of the {counts.points:,} points: their ids are such as"
        f" {', '.join(counts.first_ids)}, the query file's such as {', '.join(table.unused(3))}. Say where the points"
        " keep those with --id-key."
    )
