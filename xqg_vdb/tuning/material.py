"""What is tuned on: a pool of passages, their generated queries as sums, and questions whose passages are known.

The questions are the user's, with qrels; or, without a single label, generated queries that are held out and asked
again (`hold_out`). In: files, an encoder, perhaps a build folder. Out: vectors and names. This file chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, resolve_languages
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import Sums
from xqg_vdb.kept_vectors import kept_vectors
from xqg_vdb.metrics import Qrels
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.query_vectors import encode_query_files
from xqg_vdb.questions import read_questions
from xqg_vdb.trec import read_qrels
from xqg_vdb.tuning.holding import held_texts, hold_out
from xqg_vdb.tuning.pool import SAMPLE, Pool, opened_build, pool_of_build, pool_of_files, with_queries
from xqg_vdb.types import Query, Vectors


@dataclass(frozen=True)
class Asked:
    """Questions (q, dim) float32, not calibrated, with ids, languages and qrels, row for row."""

    ids: Sequence[str]
    vectors: Vectors
    langs: Sequence[str]
    qrels: Qrels


@dataclass(frozen=True)
class Material:
    """Everything that tuning needs. notes: what a reader of the result should know about the data."""

    pool: Pool
    asked: Asked
    encoder: CalibratedEncoder
    label_free: bool
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
    encoder: CalibratedEncoder,
    build: Path | None = None,
    folder: Path,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> Material:
    """Read questions with their qrels, and a pool of all judged passages and others, `sample` at least.

    build: takes passages and sums from there. Raises DataError when no question is judged or no judged passage is in
    the corpus, MismatchError when the build was made by another encoder.
    """
    judged = read_qrels(qrels)
    wanted = {docid for grades in judged.values() for docid, grade in grades.items() if grade > 0}
    if build is None:
        pool = pool_of_files(corpus, queries, wanted, encoder=encoder, folder=folder, sample=sample, progress=progress)
    else:
        pool = pool_of_build(opened_build(build, encoder), wanted, sample=sample)
    present = wanted & set(pool.ids)
    every = read_questions(questions)
    asked = [q for q in every if any(g > 0 and docid in present for docid, g in judged.get(q.id, {}).items())]
    if not asked:
        raise DataError(
            f"No question in {questions} has a relevant passage of this corpus in {qrels}: are the ids the same?"
        )
    notes = _bare_passages(pool, present)
    if len(asked) < len(every):
        notes.append(f"{len(every) - len(asked)} questions without a relevant passage in the corpus are left out")
    langs = resolve_languages([q.text for q in asked], [q.lang for q in asked])
    vectors = kept_vectors(
        [q.text for q in asked], encode=encoder.encode_queries, encoder=encoder.facts, kind="queries", folder=folder,
        progress=progress, stage="questions",
    )  # fmt: skip
    found = Asked([q.id for q in asked], vectors, langs, {q.id: judged[q.id] for q in asked})
    return Material(pool, found, encoder, False, tuple(notes))


def label_free(
    corpus: Path,
    queries: Sequence[Path],
    *,
    encoder: CalibratedEncoder,
    build: Path | None = None,
    folder: Path,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> Material:
    """Hold out generated queries of up to `sample` passages as pseudo-questions; see `holding.py` for which.

    Raises DataError when no passage has two queries in a language, MismatchError for a build of another encoder or of
    other queries.
    """
    if build is None:
        pool = pool_of_files(corpus, queries, set(), encoder=encoder, folder=folder, sample=sample, progress=progress)
        flat = encode_query_files(queries, pool.ids, encoder=encoder, folder=folder, progress=progress)
        held, rest = hold_out(flat, pool.ids)
        asked = [Query(f"{pool.ids[row]}/{lang}", "", lang) for row, lang in zip(held.owner, held.lang, strict=True)]
        return _pseudo(with_queries(pool, rest), held.vectors, held.owner, asked, encoder)
    opened = opened_build(build, encoder)
    pool = pool_of_build(opened, set(), sample=sample)
    with QueryFile(queries) as table:
        owner, texts = held_texts(table, pool.ids, counts={lang: n for lang, (_, n) in pool.sums(None).items()})
    vectors = kept_vectors(
        [q.text for q in texts], encode=encoder.encode_queries, encoder=encoder.facts, kind="queries", folder=folder,
        progress=progress, stage="held-out queries",
    )  # fmt: skip
    rest_of = _less(pool.sums(None), vectors, owner, [q.lang or "" for q in texts])
    return _pseudo(Pool(pool.ids, pool.passages, lambda _: rest_of, None), vectors, owner, texts, encoder)


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


def _pseudo(
    pool: Pool, vectors: Vectors, owner: NDArray[np.int64], asked: Sequence[Query], encoder: CalibratedEncoder
) -> Material:
    qrels = {q.id: {pool.ids[row]: 1} for q, row in zip(asked, owner.tolist(), strict=True)}
    questions = Asked([q.id for q in asked], vectors, [q.lang or "und" for q in asked], qrels)
    note = "pseudo-questions come from the generator itself: values are not those of real questions"
    return Material(pool, questions, encoder, True, (note,))


def _less(
    sums: Sums, vectors: Vectors, owner: NDArray[np.int64], langs: Sequence[str]
) -> Mapping[str, tuple[Vectors, NDArray[np.int32]]]:
    """`sums` without these query vectors."""
    of = np.array(langs)
    rest = {}
    for lang, (total, counts) in sums.items():
        own = of == lang
        less = total.copy()
        np.subtract.at(less, owner[own], vectors[own])
        rest[lang] = (less, (counts - np.bincount(owner[own], minlength=len(counts))).astype(np.int32))
    return rest
