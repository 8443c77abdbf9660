"""Corpus and generated queries into a build folder: the expensive half of a load, resumable window by window.

In: a corpus, query files, an encoder. Out: a complete `Build` (`vectors.py`) from which any recipe is fused without
encoding again. This file knows no fusion and no store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.batching import windows
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.build import Build, BuildWriter, QuerySums
from xqg_vdb.progress import Progress, silent
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.texts.queries import QueryFile, row_digest
from xqg_vdb.texts.records import Rejects, open_lines
from xqg_vdb.types import EncoderFacts, GeneratedQueries, Passage, TextEncoder, Vectors

# Rows of earlier build folders for a changed corpus: only what is new or changed is encoded.


@dataclass(frozen=True, slots=True)
class EarlierBuild:
    """Digests (n,) uint64 in ascending order of all rows of `builds`, and which build and row each belongs to."""

    builds: tuple[Build, ...]
    digests: NDArray[np.uint64]
    owners: NDArray[np.int32]
    rows: NDArray[np.int64]

    @classmethod
    def open(cls, folders: Sequence[str | Path], *, encoder: EncoderFacts) -> EarlierBuild:
        """Read the digests of build folders. Raises MismatchError for another encoder's, DataError, CorruptError."""
        builds = tuple(Build.open(folder) for folder in folders)
        for build in builds:
            if build.fingerprint != encoder.fingerprint:
                raise MismatchError(
                    f"The vectors in {build.path} were made with another encoder ({build.fingerprint}, this is "
                    f"{encoder.fingerprint}): leave out --reuse {build.path}."
                )
        digests = np.concatenate([np.zeros(0, np.uint64), *(build.digests for build in builds)])
        order = np.argsort(digests, kind="stable")
        owners = np.repeat(np.arange(len(builds), dtype=np.int32), [build.rows for build in builds])
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(build.rows) for build in builds)])
        return cls(builds, digests[order], owners[order], rows[order])

    def find(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each of `digests` (m,) lies: its position for `passages` and `sums`, -1 for none; (m,) int64."""
        if not len(self.digests):
            return np.full(len(digests), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)

    def passages(self, positions: NDArray[np.int64]) -> Vectors:
        """Passage vectors (m, dim) float32 of the rows at `positions`, none of them -1."""
        found = np.empty((len(positions), self.builds[0].dim), dtype=np.float32)
        for build, chosen, rows in self._by_build(positions):
            found[chosen] = build.passages[rows]
        return found

    def sums(self, positions: NDArray[np.int64]) -> QuerySums:
        """Query sums (m, dim) and counts (m,) of the rows at `positions`, for languages that have any."""
        found: dict[str, tuple[Vectors, NDArray[np.int32]]] = {}
        for build, chosen, rows in self._by_build(positions):
            for lang, counts in build.counts.items():
                if not counts[rows].any():
                    continue
                if lang not in found:
                    found[lang] = (
                        np.zeros((len(positions), build.dim), dtype=np.float32),
                        np.zeros(len(positions), dtype=np.int32),
                    )
                found[lang][0][chosen] = build.sums[lang][rows]
                found[lang][1][chosen] = counts[rows]
        return found

    def _by_build(self, positions: NDArray[np.int64]) -> list[tuple[Build, NDArray[np.bool_], NDArray[np.int64]]]:
        """Per build the mask over `positions` that is its own, and its rows for them."""
        owners, rows = self.owners[positions], self.rows[positions]
        return [(build, owners == i, rows[owners == i]) for i, build in enumerate(self.builds) if (owners == i).any()]


WINDOW = 512
"""Passages per commit: what a killed run encodes again, at most. Windows always start at multiples of it, so that a
resumed run forms the batches of an unbroken one (an int8 model's activations are scaled per batch)."""

_CHECKED_TOGETHER = 65536

Row = tuple[Passage, GeneratedQueries | None]


@dataclass(frozen=True, slots=True)
class Encoded:
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
) -> Encoded:
    """Encode every passage and its queries into the build folder `path`, going on where an earlier run stopped.

    reuse: build folders of this encoder; rows that they hold are copied, not encoded.
    The corpus is read even when everything is encoded: to see that it is the same, and for the counts of `rejects`.
    Raises DataError for a bad corpus, MismatchError when `path` was made from another corpus, other queries or another
    encoder, LockedError, DiskError, CorruptError.
    """
    total, payloads = count_lines(corpus), hashlib.blake2b(digest_size=16)
    known, reused = EarlierBuild.open(reuse, encoder=encoder.facts), 0
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
    return Encoded(Build.open(path), payloads.hexdigest(), reused)


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


def _append(window: Sequence[Row], writer: BuildWriter, encoder: TextEncoder, known: EarlierBuild) -> int:
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


def _joined(sums: QuerySums, known: EarlierBuild, whole: NDArray[np.int64]) -> QuerySums:
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
    vectors = encoder.encode_queries([text for _, _, text in flat], calibrate=False)
    owners = np.array([row for row, _, _ in flat])
    langs = np.array([lang for _, lang, _ in flat])
    sums = {}
    for lang in sorted(set(langs.tolist())):
        chosen = langs == lang
        total = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
        np.add.at(total, owners[chosen], vectors[chosen])
        sums[lang] = (total, np.bincount(owners[chosen], minlength=len(rows)).astype(np.int32))
    return sums


# Vectors of texts, kept on disk under a name made of the texts and the encoder: encoded once, whatever asks for them.


def kept_vectors(
    texts: Sequence[str],
    *,
    encode: Callable[[Sequence[str]], Vectors],
    encoder: EncoderFacts,
    kind: str,
    folder: Path,
    progress: Progress = silent,
    stage: str = "encoding",
) -> Vectors:
    """Rows (len(texts), dim) float32, memory-mapped; encoded now where `folder` does not hold them yet.

    kind: `queries` or `passages`, which have different prefixes. Raises LockedError, DiskError,
    CorruptError, DataError.
    """
    place = folder / f"{kind}-{encoder.fingerprint}-{digest_of(texts)}"
    with Build.create_or_resume(place, dim=encoder.dim, fingerprint=encoder.fingerprint) as writer:
        for start in range(writer.rows, len(texts), WINDOW):
            progress(stage, start, len(texts))
            part = texts[start : start + WINDOW]
            digests = np.array([_text_digest(text) for text in part], dtype=np.uint64)
            writer.append([str(start + i) for i in range(len(part))], digests, encode(part))
            writer.commit(complete=start + WINDOW >= len(texts))
        progress(stage, len(texts), len(texts))
    return Build.open(place).passages


def digest_of(texts: Sequence[str]) -> str:
    """16 hexadecimal digits for a list of texts, order included."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _text_digest(text: str) -> int:
    """Hash a text to 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


# Generated queries as vectors one by one, where a build folder has only their sums: for experiments and for tuning.


@dataclass(frozen=True)
class QueryVectors:
    """Generated queries of one task, flat: query i belongs to passage row owner[i] and is the index[i]-th of lang[i].

    vectors (m, dim) float32; owner, index (m,) int64; lang (m,) str. unused: records that belong to no passage.
    """

    vectors: Vectors
    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    lang: NDArray[np.str_]
    unused: int

    @property
    def langs(self) -> list[str]:
        """The languages, sorted."""
        return sorted(set(self.lang.tolist()))

    def sums(
        self, *, passages: int, n: int | None = None, langs: Sequence[str] | None = None
    ) -> dict[str, tuple[Vectors, NDArray[np.int32]]]:
        """Per language the sum over each passage's first n query vectors (passages, dim), and how many (passages,)."""
        found: dict[str, tuple[Vectors, NDArray[np.int32]]] = {}
        for lang in self.langs if langs is None else langs:
            chosen = self.lang == lang
            if n is not None:
                chosen &= self.index < n
            total = np.zeros((passages, self.vectors.shape[1]), dtype=np.float32)
            np.add.at(total, self.owner[chosen], self.vectors[chosen])
            found[lang] = (total, np.bincount(self.owner[chosen], minlength=passages).astype(np.int32))
        return found

    def means(self) -> tuple[dict[str, Vectors], dict[str, int]]:
        """The mean query vector of each language, and of how many queries."""
        own = {lang: self.vectors[self.lang == lang] for lang in self.langs}
        return {lang: rows.mean(axis=0, dtype=np.float64).astype(np.float32) for lang, rows in own.items()}, {
            lang: len(rows) for lang, rows in own.items()
        }


def encode_query_files(
    files: Sequence[Path],
    ids: Iterable[str],
    *,
    encoder: TextEncoder,
    folder: Path,
    langs: Sequence[str] | None = None,
    progress: Progress = silent,
) -> QueryVectors:
    """Encode the generated queries of the passages `ids` in that order, or take them from `folder`.

    langs: only these. Raises DataError when the files have none for any of them.
    """
    texts, owner, index, lang = [], [], [], []
    with QueryFile(files) as table:
        for row, passage in enumerate(ids):
            record = table.get(passage)
            for code, questions in sorted(record.queries.items()) if record else ():
                for i, text in enumerate(questions if langs is None or code in langs else ()):
                    texts.append(text)
                    owner.append(row)
                    index.append(i)
                    lang.append(code)
        unused = table.unused_count
    if not texts:
        raise DataError(
            f"{', '.join(map(str, files))}: no query belongs to any of these passages; are the ids the corpus's own?"
        )
    vectors = kept_vectors(
        texts, encode=partial(encoder.encode_queries, calibrate=False),
        encoder=encoder.facts, kind="queries", folder=folder, progress=progress, stage=f"queries of {files[0].name}",
    )  # fmt: skip
    return QueryVectors(vectors, np.array(owner), np.array(index), np.array(lang), unused)
