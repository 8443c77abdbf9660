"""What is tuned on: passages with the sums of their generated queries, and questions whose passages are known.

In: files, an encoder, perhaps a build folder. Out: vectors and names. This file chooses nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xqg_vdb.calibration import (
    LanguageMeans,
    TextEncoder,
    calibrate_passages,
    main_languages,
    passage_means,
    resolve_languages,
)
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.evaluate.metrics import Qrels, read_qrels
from xqg_vdb.fusion import Sums
from xqg_vdb.index.build import Build
from xqg_vdb.index.encode import Row, encode_cached, encode_query_files, read_rows
from xqg_vdb.index.write import measure_passages
from xqg_vdb.progress import Progress, silent
from xqg_vdb.texts.corpus import read_corpus, read_questions
from xqg_vdb.types import UNKNOWN_LANGUAGE, Vectors

SAMPLE = 2000
"""Passages to tune on: enough for intervals of a percent, few enough to encode in minutes."""

_LOAD = "run `xqg-vdb load CORPUS NAME --queries FILE"
_SEED = b"xqg tuning 1"


def hash_order(text: str) -> int:
    """Give a text a fixed pseudo-random number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=_SEED).digest(), "big")


@dataclass(frozen=True)
class Pool:
    """Passages in memory: ids and rows (p, dim) float32, row for row.

    sums: the query sums with the first n queries of each passage and language, or with all of them (None).
    most_queries: the most that a passage has in one language; None when only sums are known, and n cannot be tuned.
    """

    ids: Sequence[str]
    passages: Vectors
    sums: Callable[[int | None], Sums]
    most_queries: int | None


@dataclass(frozen=True)
class TuneData:
    """Everything that tuning needs.

    question_ids, questions (q, dim) float32, not calibrated, and langs: row for row.
    notes: what a reader of the result should know about the data.
    """

    pool: Pool
    question_ids: Sequence[str]
    questions: Vectors
    langs: Sequence[str]
    qrels: Qrels
    encoder: TextEncoder
    notes: tuple[str, ...] = ()

    def means(self, sums: Sums) -> LanguageMeans:
        """The language means that a load of these sums would search with: the encoder's own, refined by the queries."""
        counts = {lang: int(n.sum()) for lang, (_, n) in sums.items()}
        means = {
            lang: (total.sum(axis=0, dtype=np.float64) / counts[lang]).astype(np.float32)
            for lang, (total, _) in sums.items()
            if counts[lang]
        }
        generated = LanguageMeans(means, {lang: counts[lang] for lang in means}, "generated queries")
        return self.encoder.language_means.refined(generated, capped=True)


def labelled(
    corpus: Path,
    queries: Sequence[Path],
    *,
    questions: Path,
    qrels: Path,
    encoder: TextEncoder,
    build: Path | None = None,
    folder: Path,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> TuneData:
    """Read questions with their qrels, and a pool of all judged passages and others, `sample` at least.

    build: takes passages and sums from there. Raises DataError when no question is judged or no judged passage is in
    the corpus, MismatchError when the build was made by another encoder.
    """
    every, judged = read_questions(questions), read_qrels(qrels)
    wanted = {docid for grades in judged.values() for docid, grade in grades.items() if grade > 0}
    if build is None:
        pool = _pool_of_files(corpus, queries, wanted, encoder=encoder, folder=folder, sample=sample, progress=progress)
    else:
        pool = _pool_of_build(build, wanted, encoder=encoder, sample=sample)
    present = wanted & set(pool.ids)
    asked = [q for q in every if any(g > 0 and docid in present for docid, g in judged.get(q.id, {}).items())]
    if not asked:
        raise DataError(
            f"No question in {questions} has a relevant passage of this corpus in {qrels}: are the ids the same?"
        )
    notes = _bare_passages(pool, present)
    if len(asked) < len(every):
        notes.append(f"{len(every) - len(asked)} questions without a relevant passage in the corpus are left out")
    langs = resolve_languages([q.text for q in asked], [q.lang for q in asked])
    vectors = encode_cached(
        [q.text for q in asked], encoder=encoder, kind="queries", folder=folder,
        progress=progress, stage="questions",
    )  # fmt: skip
    qrels_asked = {q.id: judged[q.id] for q in asked}
    return TuneData(pool, [q.id for q in asked], vectors, langs, qrels_asked, encoder, tuple(notes))


def with_calibrated_passages(
    data: TuneData, corpus: Path, *, strength: float, build: Path | None = None, progress: Progress = silent
) -> TuneData:
    """`data` with the passages that `load --passage-calibration` would write; as it was for a corpus in one language.

    The means are those of the whole build where there is one, else those of the pool that is tuned on.
    Raises DataError for a bad corpus, MismatchError when it is not the build's.
    """
    if not strength:
        return data
    pool = data.pool
    lang_of = dict.fromkeys(pool.ids, UNKNOWN_LANGUAGE)

    def rows() -> Iterator[Row]:
        for passage, queries in read_rows(corpus, queries=None):
            if passage.id in lang_of:
                lang_of[passage.id] = passage.lang
            yield passage, queries

    if build is not None:
        table = measure_passages(rows(), Build.open(build), progress=progress)
    else:
        for _ in rows():
            pass
        table = passage_means([(pool.passages, list(lang_of.values()))])
    if len(main_languages(table.counts)) < 2:
        return replace(data, notes=(*data.notes, "the corpus is in one language: passages stay as they are"))
    passages = calibrate_passages(
        pool.passages, langs=list(lang_of.values()), table=table, strength=strength,
        normalize=data.encoder.facts.normalize,
    )  # fmt: skip
    return replace(data, pool=replace(pool, passages=passages))


def _pool_of_build(folder: Path, wanted: set[str], *, encoder: TextEncoder, sample: int) -> Pool:
    """Rows of a build: what is wanted and others, those with queries first, `sample` at least if there are as many."""
    build = Build.open(folder)
    if build.fingerprint != encoder.facts.fingerprint:
        raise MismatchError(
            f"{folder} was made by the encoder {build.fingerprint}, not by {encoder.facts.source} "
            f"({encoder.facts.fingerprint}): tune with that encoder, or with another --build."
        )
    if not build.complete:
        raise DataError(f"{folder} is not complete: {_LOAD} --build {folder}` first.")
    ranks = (
        (docid not in wanted, not has, hash_order(docid), row)
        for row, (docid, has) in enumerate(_ids_and_queries(build))
    )
    chosen = heapq.nsmallest(max(sample, len(wanted)), ranks)
    window = build.take(np.sort(np.array([row for *_, row in chosen], dtype=np.int64)))
    if not window.sums:
        raise DataError(f"{folder} holds no generated queries: {_LOAD} --build {folder}` first.")
    return Pool(window.ids, window.passages, lambda _: window.sums, None)


def _ids_and_queries(build: Build) -> Iterator[tuple[str, bool]]:
    for window in build.windows():
        yield from zip(window.ids, (window.counts(window.sums) > 0).tolist(), strict=True)


def _pool_of_files(
    corpus: Path,
    queries: Sequence[Path],
    wanted: set[str],
    *,
    encoder: TextEncoder,
    folder: Path,
    sample: int,
    progress: Progress,
) -> Pool:
    """Encode a sample of the corpus: what is wanted and others."""
    chosen = heapq.nsmallest(
        max(sample, len(wanted)),
        read_corpus(corpus, detect=False),
        key=lambda p: (p.id not in wanted, hash_order(p.id)),
    )
    chosen.sort(key=lambda p: p.id)
    ids = [p.id for p in chosen]
    rows = encode_cached(
        [p.title_and_text for p in chosen], encoder=encoder, kind="passages",
        folder=folder, progress=progress, stage="passages",
    )  # fmt: skip
    flat = encode_query_files(queries, ids, encoder=encoder, folder=folder, progress=progress)
    return Pool(ids, rows, lambda n: flat.sums(passages=len(ids), n=n), int(flat.index.max()) + 1)


def _bare_passages(pool: Pool, asked: set[str]) -> list[str]:
    """Warn when the passages that are asked for have queries more often than the others."""
    has = np.add.reduce([counts for _, counts in pool.sums(None).values()]) > 0
    judged = np.array([docid in asked for docid in pool.ids])
    if judged.all() or has[judged].mean() - has[~judged].mean() < 0.1:
        return []
    return [
        f"{has[judged].mean():.0%} of the passages asked for have queries, but {has[~judged].mean():.0%} of the others:"
        " recipes that give passages with queries a head start (pool mean, not centred) are flattered"
    ]
