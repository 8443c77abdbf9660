"""The second pass: fused vectors into the collection itself, or into a copy of it; and the originals back.

In: a complete build and a card. Out: written points. Every step gives the same when it is done again, because it starts
from the originals in the build. This file encodes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.fusion import fuse
from xqg_vdb.progress import Progress
from xqg_vdb.types import Card, Vectors
from xqg_vdb.vectors import Build

if TYPE_CHECKING:
    from xqg_vdb.collection.foreign import ForeignCollection, ForeignPoint, PointId
    from xqg_vdb.collection.foreign_copy import ForeignCopy

_COMMIT_PAGES = 16


class Fused:
    """Fused vectors by point id, computed page by page. `rows`: the build's row of each point."""

    def __init__(self, build: Build, *, card: Card, means: LanguageMeans) -> None:
        self.build, self._card, self._means = build, card, means
        self.rows = rows_by_id(build)

    def of(self, rows: Sequence[int]) -> Vectors:
        """Vectors (n, dim) float32 of these rows of the build."""
        at = np.asarray(rows, dtype=np.int64)
        sums = {lang: (self.build.sums[lang][at], self.build.counts[lang][at]) for lang in self._card.query_langs}
        # of a `dot` collection with vectors of length 1, the fused ones have that length, too
        normalize = self._card.distance == "cosine" or self._card.encoder.normalize
        return fuse(
            self.build.passages[at], sums, recipe=self._card.recipe, means=self._means.means, normalize=normalize
        )

    def langs_of(self, row: int) -> list[str]:
        """The languages of the queries that are folded into a row."""
        return [lang for lang in self._card.query_langs if self.build.counts[lang][row]]


def rows_by_id(build: Build) -> dict[str, int]:
    """The row of each point."""
    return {point: row for row, point in enumerate(build.ids)}


def write_in_place(
    source: ForeignCollection, fused: Fused, *, into: str, keep_in: str | None, progress: Progress
) -> int:
    """Write fused vectors into the vector `into` of the points themselves, the originals into `keep_in` when given.

    Both in one step per point. What is noted in the collection's record lets the next run go on. Returns how many
    points came after the first pass: they are left alone.
    """
    record, unknown = source.record, 0
    after = record.get("after")
    for number, page in zip(count(1), source.pages(vectors=[], payloads=False, after=after), strict=False):
        known = [(point.id, fused.rows[str(point.id)]) for point in page if str(point.id) in fused.rows]
        unknown += len(page) - len(known)
        if known:
            rows = [row for _, row in known]
            columns = {into: fused.of(rows)}
            if keep_in is not None:
                columns[keep_in] = np.asarray(fused.build.passages[rows])
            source.write_vectors([point for point, _ in known], columns)
            progress("writing", rows[-1] + 1, fused.build.rows)
        if page and number % _COMMIT_PAGES == 0:
            source.write_metadata(record={**record, "after": page[-1].id})
    return unknown


def write_copy(source: ForeignCollection, copy: ForeignCopy, fused: Fused, *, vector: str, progress: Progress) -> None:
    """Copy every point with payload and all vectors, `vector` of those in the build being the fused one."""
    pages = source.pages(vectors=None, payloads=True, after=copy.after)
    for number, page in zip(count(1), pages, strict=False):
        known = [i for i, point in enumerate(page) if str(point.id) in fused.rows]
        rows = [fused.rows[str(page[i].id)] for i in known]
        points = list(page)
        for i, row, values in zip(known, rows, fused.of(rows).tolist() if rows else [], strict=True):
            payload = _with_langs(page[i].payload, fused.langs_of(row))
            points[i] = replace(page[i], vectors={**page[i].vectors, vector: values}, payload=payload)
        copy.upsert(points)
        if rows:
            progress("copying", rows[-1] + 1, fused.build.rows)
        if page and number % _COMMIT_PAGES == 0:
            copy.commit(page[-1].id)


def put_back(
    source: ForeignCollection, *, vector: str, kept: str | None, build: Build | None, progress: Progress
) -> int:
    """Give `vector` its original values again, from the vector `kept` or from a build; returns of how many points."""
    rows, done, total = {} if build is None else rows_by_id(build), 0, source.count()
    for page in source.pages(vectors=[kept] if kept else [], payloads=False):
        ids, originals = _originals(page, kept=kept, build=build, rows=rows)
        if ids:
            source.write_vectors(ids, {vector: np.asarray(originals, dtype=np.float32)})
        done += len(ids)
        progress("putting back", done, total)
    return done


def _originals(
    page: Sequence[ForeignPoint], *, kept: str | None, build: Build | None, rows: Mapping[str, int]
) -> tuple[list[PointId], NDArray[Any]]:
    if kept is not None:
        having = [point for point in page if point.vectors.get(kept) is not None]
        return [point.id for point in having], np.array([point.vectors[kept] for point in having])
    known = [point.id for point in page if str(point.id) in rows]
    return known, np.zeros(0) if build is None else build.passages[[rows[str(one)] for one in known]]


def _with_langs(payload: dict[str, Any], langs: Sequence[str]) -> dict[str, Any]:
    """Our own layout says which languages are folded in; others' payloads stay as they are."""
    meta = payload.get("meta")
    if not isinstance(meta, dict) or "query_langs" not in meta:
        return payload
    return {**payload, "meta": {**meta, "query_langs": list(langs)}}
