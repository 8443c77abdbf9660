"""The points of somebody's collection: their vectors and their queries' sums into a build; then fused, into a copy.

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

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.index.build import Build, BuildWriter, Digests, Window
from xqg_vdb.index.card import generated_means
from xqg_vdb.index.encode import digests_of, query_sums
from xqg_vdb.index.write import folded_langs, vectors_of
from xqg_vdb.progress import Progress
from xqg_vdb.store.layout import TEXT_DENSE
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, GeneratedQueries, Passage, TextEncoder, Vectors

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


def encode_points(
    source: ForeignCollection,
    vector: str,
    layout: PayloadLayout,
    table: QueryFile,
    *,
    encoder: TextEncoder,
    folder: Path,
    progress: Progress,
) -> tuple[Build, LanguageMeans, PointCounts]:
    """The build in `folder`, made, continued, or seen to be that of these points, and its queries' means.

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
    generated = generated_means(build.windows())
    if not generated.counts:
        raise DataError(_no_queries(counts, table))
    return build, generated, counts


def write_copy(
    source: ForeignCollection, copy: ForeignCopy, build: Build, *, card: Card, vector: str, progress: Progress
) -> None:
    """Copy every point with payload and all vectors, `vector` of those in the build being the fused one."""
    rows = {point: row for row, point in enumerate(build.ids())}
    pages = source.pages(vectors=None, after=copy.after)
    for number, page in zip(count(1), pages, strict=False):
        points, known = list(page), [i for i, point in enumerate(page) if str(point.id) in rows]
        if known:
            window = build.take(np.array([rows[str(page[i].id)] for i in known]))
            fused = vectors_of(window, langs=[UNKNOWN_LANGUAGE] * len(known), card=card)[TEXT_DENSE].tolist()
            for i, values, langs in zip(known, fused, folded_langs(window, card), strict=True):
                payload = _with_langs(page[i].payload, langs)
                points[i] = replace(page[i], vectors={**page[i].vectors, vector: values}, payload=payload)
        copy.upsert(points)
        if known:
            progress("copying", rows[str(page[known[-1]].id)] + 1, build.rows)
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
    counts, total, facts = PointCounts(), source.count(), encoder.facts

    def encode(rows: Sequence[Row], digests: Digests) -> Window:
        sums = query_sums([queries for _, queries, _ in rows], encoder)
        vectors = np.stack([values for _, _, values in rows])
        return Window([passage.id for passage, _, _ in rows], digests, vectors, sums)

    with BuildWriter(folder, dim=facts.dim, fingerprint=facts.fingerprint) as writer:
        writer.fill(
            _rows(source, vector, layout, table, counts),
            digests=lambda rows: digests_of([(passage, queries) for passage, queries, _ in rows]),
            encode=encode,
            say=lambda _: progress("encoding queries", min(counts.points, total), total),
        )
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


def _no_queries(counts: PointCounts, table: QueryFile) -> str:
    return (
        f"No generated query belongs to any of the {counts.points:,} points: their ids are such as"
        f" {', '.join(counts.first_ids)}, the query file's such as {', '.join(table.unused(3))}. Say where the points"
        " keep those with --id-key."
    )


def _with_langs(payload: dict[str, Any], langs: Sequence[str]) -> dict[str, Any]:
    """Our own layout says which languages are folded in; others' payloads stay as they are."""
    meta = payload.get("meta")
    if not isinstance(meta, dict) or "query_langs" not in meta:
        return payload
    return {**payload, "meta": {**meta, "query_langs": list(langs)}}
