"""The points of somebody's collection: their vectors and their queries' sums into a build; then fused, into a copy.

In: a collection and a query file. Out: a complete `Build` whose passages are the collection's own vectors, then points.
Either pass goes on where it was stopped. Passages are not encoded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xqg_vdb.batching import windows
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.fusion import fuse
from xqg_vdb.index.build import Build, BuildWriter
from xqg_vdb.index.encode import WINDOW, query_sums
from xqg_vdb.progress import Progress
from xqg_vdb.texts.queries import QueryFile, row_digest
from xqg_vdb.types import Card, GeneratedQueries, Passage, TextEncoder, Vectors

if TYPE_CHECKING:
    from xqg_vdb.store.server.foreign import ForeignCollection, ForeignCopy, PayloadLayout


_COMMIT_PAGES = 16
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


def keep_points(
    source: ForeignCollection,
    vector: str,
    layout: PayloadLayout,
    table: QueryFile,
    *,
    encoder: TextEncoder,
    folder: Path,
    progress: Progress,
) -> tuple[Build, PointCounts]:
    """The build in `folder`, made, continued, or seen to be that of these points.

    One whose points or queries changed since is begun anew. Raises DataError when no query belongs to a point,
    DiskError, LockedError, ServerError.
    """
    fill = partial(_fill, source, vector, layout, table, encoder=encoder, folder=folder, progress=progress)
    try:
        counts = fill()
    except (MismatchError, CorruptError):
        shutil.rmtree(folder, ignore_errors=True)
        counts = fill()
    build = Build.open(folder)
    if not any(column.any() for column in build.counts.values()):
        raise DataError(_no_queries(counts, table))
    return build, counts


def write_copy(
    source: ForeignCollection,
    copy: ForeignCopy,
    build: Build,
    *,
    card: Card,
    means: LanguageMeans,
    vector: str,
    progress: Progress,
) -> None:
    """Copy every point with payload and all vectors, `vector` of those in the build being the fused one."""
    rows = {point: row for row, point in enumerate(build.ids)}
    pages = source.pages(vectors=None, after=copy.after)
    for number, page in zip(count(1), pages, strict=False):
        points, known = list(page), [i for i, point in enumerate(page) if str(point.id) in rows]
        at = [rows[str(page[i].id)] for i in known]
        for i, row, fused in zip(known, at, _fused(build, at, card, means).tolist() if at else [], strict=True):
            langs = [lang for lang in card.query_langs if build.counts[lang][row]]
            payload = _with_langs(page[i].payload, langs)
            points[i] = replace(page[i], vectors={**page[i].vectors, vector: fused}, payload=payload)
        copy.upsert(points)
        if at:
            progress("copying", at[-1] + 1, build.rows)
        if page and number % _COMMIT_PAGES == 0:
            copy.commit(page[-1].id)


def _fill(
    source: ForeignCollection,
    vector: str,
    layout: PayloadLayout,
    table: QueryFile,
    *,
    encoder: TextEncoder,
    folder: Path,
    progress: Progress,
) -> PointCounts:
    counts, total, done = PointCounts(), source.count(), 0
    facts = encoder.facts
    with Build.create_or_resume(folder, dim=facts.dim, fingerprint=facts.fingerprint) as writer:
        for window in windows(_rows(source, vector, layout, table, counts), WINDOW):
            if done + len(window) <= writer.rows:
                _check(window, writer, done)
            elif writer.complete:
                raise MismatchError(f"{source.name!r} got points since {folder} was made.")
            else:
                _append(window, writer, encoder)
                writer.commit(complete=len(window) < WINDOW)  # in one step: no build goes on amid a window
            done += len(window)
            progress("encoding queries", min(counts.points, total), total)
        if done < writer.rows:
            raise MismatchError(f"{source.name!r} lost points since {folder} was begun.")
        if not writer.complete:
            writer.commit(complete=True)
    counts.unused_queries = table.unused_count
    return counts


def _rows(
    source: ForeignCollection, vector: str, layout: PayloadLayout, table: QueryFile, counts: PointCounts
) -> Iterator[Row]:
    """Every point that has the vector, with its queries."""
    for page in source.pages(vectors=[vector]):
        for point in page:
            texts, values = layout.wordings(point.payload), point.vectors.get(vector)
            key = layout.key(point.id, point.payload)
            queries = None if key is None else table.get(key)
            counts.points += 1
            counts.without_text += not texts
            counts.without_vector += values is None
            counts.without_queries += queries is None
            if key is not None and len(counts.first_ids) < 3:
                counts.first_ids.append(key)
            if values is not None:
                yield Passage(str(point.id), texts[0] if texts else ""), queries, np.asarray(values, dtype=np.float32)


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


def _fused(build: Build, rows: Sequence[int], card: Card, means: LanguageMeans) -> Vectors:
    at = np.asarray(rows, dtype=np.int64)
    sums = {lang: (build.sums[lang][at], build.counts[lang][at]) for lang in card.query_langs}
    # of a `dot` collection with vectors of length 1, the fused ones have that length, too
    normalize = card.distance == "cosine" or card.encoder.normalize
    return fuse(build.passages[at], sums, recipe=card.recipe, means=means.means, normalize=normalize)


def _with_langs(payload: dict[str, Any], langs: Sequence[str]) -> dict[str, Any]:
    """Our own layout says which languages are folded in; others' payloads stay as they are."""
    meta = payload.get("meta")
    if not isinstance(meta, dict) or "query_langs" not in meta:
        return payload
    return {**payload, "meta": {**meta, "query_langs": list(langs)}}
