"""Corpus and generated queries into a build folder: the expensive half of a load, resumable window by window.

In: a corpus, query files, an encoder. Out: a complete `Build` (`vectors.py`) from which any recipe is fused without
encoding again. This file knows no fusion and no store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.batching import windows
from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import MismatchError
from xqg_vdb.files import open_lines
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.records import Rejects
from xqg_vdb.reusing import KnownRows
from xqg_vdb.types import GeneratedQueries, Passage, TextEncoder
from xqg_vdb.vectors import Build, BuildWriter, QuerySums, row_digest

WINDOW = 512
"""Passages per commit: what a killed run encodes again, at most. Windows always start at multiples of it, so that a
resumed run forms the batches of an unbroken one (an int8 model's activations are scaled per batch)."""

_CHECKED_TOGETHER = 65536

Row = tuple[Passage, GeneratedQueries | None]


@dataclass(frozen=True, slots=True)
class Kept:
    """An encoded corpus: its vectors, and a hash of what is stored but not encoded (languages, other fields).

    reused: how many of this run's passage vectors were taken from earlier builds.
    """

    build: Build
    payload_digest: str
    reused: int = 0


def keep_vectors(
    corpus: Path,
    *,
    encoder: TextEncoder,
    queries: QueryFile | None,
    path: Path,
    reuse: Sequence[str | Path] = (),
    rejects: Rejects | None = None,
    default_lang: str | None = None,
    progress: Progress = silent,
) -> Kept:
    """Encode every passage and its queries into the build folder `path`, going on where an earlier run stopped.

    reuse: build folders of this encoder; rows that they hold are copied, not encoded.
    The corpus is read even when everything is encoded: to see that it is the same, and for the counts of `rejects`.
    Raises DataError for a bad corpus, MismatchError when `path` was made from another corpus, other queries or another
    encoder, LockedError, DiskError, CorruptError.
    """
    total, payloads = count_lines(corpus), hashlib.blake2b(digest_size=16)
    known, reused = KnownRows.open(reuse, encoder=encoder.facts), 0
    with Build.create_or_resume(path, dim=encoder.facts.dim, fingerprint=encoder.facts.fingerprint) as writer:
        # languages are not encoded: detecting them can wait
        rows = read_rows(corpus, queries=queries, rejects=rejects, default_lang=default_lang, detect=False)
        rows = _hashed(rows, payloads)
        _skip_committed(rows, writer, progress=progress)
        progress("encoding", writer.rows, total)
        for window in windows(rows, WINDOW):
            if writer.complete:
                raise changed_input(writer.path, writer.rows)
            reused += _append(window, writer, encoder, known)
            writer.commit(complete=len(window) < WINDOW)  # in one step: no build goes on amid a window
            progress("encoding", writer.rows, total)
        if not writer.complete:
            writer.commit(complete=True)
    return Kept(Build.open(path), payloads.hexdigest(), reused)


def read_rows(
    corpus: Path,
    *,
    queries: QueryFile | None,
    rejects: Rejects | None = None,
    default_lang: str | None = None,
    detect: bool = True,
) -> Iterator[Row]:
    """Each passage of the corpus with its generated queries, in corpus order; `detect`: find out missing languages."""
    for passage in read_corpus(corpus, rejects=rejects, default_lang=default_lang, detect=detect):
        yield passage, queries.get(passage.id) if queries is not None else None


def count_lines(corpus: Path) -> int | None:
    """How many passages a corpus holds at most, for progress bars; None where counting would mean unpacking it."""
    if corpus.suffix not in (".jsonl", ".tsv") or not corpus.is_file():
        return None
    return sum(1 for _ in open_lines(corpus))


def changed_input(path: Path, row: int) -> MismatchError:
    """The error for a build folder whose corpus or queries are not those that it was made from."""
    return MismatchError(
        f"The corpus or the queries changed since the vectors in {path} were made (first at passage {row + 1}): "
        f"use another --build folder, with --reuse {path} to encode only what changed, or remove that one."
    )


def _hashed(rows: Iterator[Row], digest: hashlib.blake2b) -> Iterator[Row]:
    """`rows` as they are, while what they hold besides the encoded texts goes into `digest`."""
    for passage, queries in rows:
        digest.update(orjson.dumps([passage.lang, passage.meta], option=orjson.OPT_SORT_KEYS))
        yield passage, queries


def _skip_committed(rows: Iterator[Row], writer: BuildWriter, *, progress: Progress) -> None:
    """Read over what is encoded already, checking that it is what was encoded."""
    digests = writer.digest_prefix()
    for start in range(0, len(digests), _CHECKED_TOGETHER):
        for row, digest in enumerate(digests[start : start + _CHECKED_TOGETHER].tolist(), start):
            found = next(rows, None)
            if found is None or row_digest(*found) != digest:
                raise changed_input(writer.path, row)
        progress("checking", min(start + _CHECKED_TOGETHER, len(digests)), len(digests))


def _append(window: Sequence[Row], writer: BuildWriter, encoder: TextEncoder, known: KnownRows) -> int:
    """Add a window's rows; how many of its passage vectors were known. New texts keep the window's order."""
    digests = np.array([row_digest(*row) for row in window], dtype=np.uint64)
    whole = known.find(digests)
    # a passage that had no queries then: its vector serves
    bare = np.array([row_digest(passage, None) for passage, _ in window], dtype=np.uint64)
    passage_at = np.where(whole >= 0, whole, known.find(bare))
    vectors = np.empty((len(window), encoder.facts.dim), dtype=np.float32)
    new, old = np.flatnonzero(passage_at < 0), np.flatnonzero(passage_at >= 0)
    if len(new):
        vectors[new] = encoder.encode_passages([window[row][0].title_and_text for row in new.tolist()])
    if len(old):
        vectors[old] = known.passages(passage_at[old])
    sums = query_sums([None if at >= 0 else queries for at, (_, queries) in zip(whole, window, strict=True)], encoder)
    writer.append([passage.id for passage, _ in window], digests, vectors, _joined(sums, known, whole))
    return len(old)


def _joined(sums: QuerySums, known: KnownRows, whole: NDArray[np.int64]) -> QuerySums:
    """`sums` of a window with those of the rows that are known (whole >= 0) filled in."""
    old = np.flatnonzero(whole >= 0)
    joined = dict(sums)
    for lang, (vectors, counts) in known.sums(whole[old]).items():
        if lang not in joined:
            shape = len(whole), vectors.shape[1]
            joined[lang] = np.zeros(shape, dtype=np.float32), np.zeros(len(whole), dtype=np.int32)
        joined[lang][0][old] = vectors
        joined[lang][1][old] = counts
    return joined


def query_sums(rows: Sequence[GeneratedQueries | None], encoder: TextEncoder) -> QuerySums:
    """Per language the sum of each row's query vectors and their number; all languages are encoded in one stream."""
    flat = [
        (row, lang, text)
        for row, queries in enumerate(rows)
        if queries is not None
        for lang, texts in sorted(queries.queries.items())
        for text in texts
    ]
    if not flat:
        return {}
    vectors = encoder.encode_queries([text for _, _, text in flat])
    owners = np.array([row for row, _, _ in flat])
    langs = np.array([lang for _, lang, _ in flat])
    sums = {}
    for lang in sorted(set(langs.tolist())):
        chosen = langs == lang
        total = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
        np.add.at(total, owners[chosen], vectors[chosen])
        sums[lang] = (total, np.bincount(owners[chosen], minlength=len(rows)).astype(np.int32))
    return sums
