"""The passages that are tuned on, with the sums of their generated queries: from files, or from a build folder."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.fusion import Sums
from xqg_vdb.kept_vectors import kept_vectors
from xqg_vdb.progress import Progress
from xqg_vdb.queries import QueryFile
from xqg_vdb.query_vectors import QueryVectors, encode_query_files
from xqg_vdb.tuning.holding import hash_order
from xqg_vdb.types import Vectors
from xqg_vdb.vectors import Build

SumsOf = Callable[[int | None], Sums]
"""The query sums with the first n queries of each passage and language, or all of them (None)."""


SAMPLE = 2000
"""Passages to tune on: enough for intervals of a percent, few enough to encode in minutes."""


@dataclass(frozen=True)
class Pool:
    """Passages in memory: ids, rows (p, dim) float32, and the sums of their queries' vectors.

    most_queries: the most that a passage has in one language; None when only sums are known, and n cannot be tuned.
    """

    ids: Sequence[str]
    passages: Vectors
    sums: SumsOf
    most_queries: int | None


def opened_build(build: Path, encoder: CalibratedEncoder) -> Build:
    """The finished build folder, with generated queries in it.

    Raises MismatchError when another encoder made it, DataError when it is not complete or has no queries.
    """
    opened = Build.open(build)
    if opened.fingerprint != encoder.facts.fingerprint:
        raise MismatchError(
            f"{build} was made by the encoder {opened.fingerprint}, not by {encoder.facts.source} "
            f"({encoder.facts.fingerprint}): tune with that encoder, or with another --build."
        )
    if not opened.complete or not opened.sums:
        what = "is not complete" if not opened.complete else "holds no generated queries"
        raise DataError(f"{build} {what}: run `xqg-vdb load CORPUS NAME --queries FILE --build {build}` first.")
    return opened


def pool_of_build(build: Build, wanted: set[str], *, sample: int) -> Pool:
    """Rows of a build: what is wanted and others, those with queries first, `sample` at least if there are as many."""
    has = np.add.reduce([counts for counts in build.counts.values()]) > 0
    size = max(sample, len(wanted))
    chosen = heapq.nsmallest(
        size,
        range(build.rows),
        key=lambda row: (build.ids[row] not in wanted, not has[row], hash_order(build.ids[row])),
    )
    rows = np.sort(np.array(chosen, dtype=np.int64))
    sums = {lang: (np.asarray(build.sums[lang][rows]), np.asarray(build.counts[lang][rows])) for lang in build.sums}
    return Pool([build.ids[row] for row in rows.tolist()], np.asarray(build.passages[rows]), lambda _: sums, None)


def pool_of_files(
    corpus: Path,
    queries: Sequence[Path],
    wanted: set[str],
    *,
    encoder: CalibratedEncoder,
    folder: Path,
    sample: int,
    progress: Progress,
) -> Pool:
    """Encode a sample of the corpus: what is wanted and others; what has queries when nothing is wanted.

    Without labels only passages with queries are asked for: others in the pool would flatter every recipe that gives
    passages with queries a head start.
    """
    with QueryFile(queries) as table:
        chosen = heapq.nsmallest(
            max(sample, len(wanted)),
            (p for p in read_corpus(corpus, detect=False) if wanted or table.get(p.id) is not None),
            key=lambda p: (p.id not in wanted, hash_order(p.id)),
        )
    chosen.sort(key=lambda p: p.id)
    ids = [p.id for p in chosen]
    rows = kept_vectors(
        [p.title_and_text for p in chosen], encode=encoder.encode_passages, encoder=encoder.facts, kind="passages",
        folder=folder, progress=progress, stage="passages",
    )  # fmt: skip
    flat = encode_query_files(queries, ids, encoder=encoder, folder=folder, progress=progress)
    return with_queries(Pool(ids, rows, lambda _: {}, None), flat)


def with_queries(pool: Pool, queries: QueryVectors) -> Pool:
    """The pool with these generated queries of its passages, and no others."""
    most = int(queries.index.max(initial=0)) + 1
    return Pool(pool.ids, pool.passages, lambda n: queries.sums(passages=len(pool.ids), n=n), most)
