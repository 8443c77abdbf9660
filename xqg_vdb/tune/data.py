"""What tuning looks at: passages with the sums of their queries, and questions with known passages (`TuneData`)."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from xqg_vdb.index.encode import Row, encode_cached, encode_query_files
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
class TuneData:
    """Everything that tuning needs: passages (p, dim) and questions (q, dim) float32, not calibrated, with their names.

    sums: the query sums of the passages. notes: what a reader of the result should know about the data.
    """

    encoder: TextEncoder
    ids: Sequence[str]
    passages: Vectors
    sums: Sums
    question_ids: Sequence[str] = ()
    questions: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))
    langs: Sequence[str] = ()
    qrels: Qrels = field(default_factory=dict)
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
    qrels: Path | Qrels,
    encoder: TextEncoder,
    build: Path | None = None,
    passage_calibration: float = 0.0,
    folder: Path,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> TuneData:
    """Read questions with their qrels, and all judged passages and others, `sample` at least.

    build: takes passages and sums from there. passage_calibration: passages are those that such a load would write.
    Raises DataError when no question is judged or no judged passage is in the corpus, MismatchError when the build was
    made by another encoder.
    """
    every = read_questions(questions)
    judged = qrels if isinstance(qrels, Mapping) else read_qrels(qrels)
    wanted = {docid for grades in judged.values() for docid, grade in grades.items() if grade > 0}
    if build is None:
        data = _of_files(corpus, queries, wanted, encoder=encoder, folder=folder, sample=sample, progress=progress)
    else:
        data = _of_build(build, wanted, encoder=encoder, sample=sample)
    present = wanted & set(data.ids)
    asked = [q for q in every if any(g > 0 and docid in present for docid, g in judged.get(q.id, {}).items())]
    if not asked:
        told = qrels if isinstance(qrels, Path) else "the qrels"
        raise DataError(
            f"No question in {questions} has a relevant passage of this corpus in {told}: are the ids the same?"
        )
    notes = _bare_passages(data, present)
    if len(asked) < len(every):
        notes.append(f"{len(every) - len(asked)} questions without a relevant passage in the corpus are left out")
    data = replace(
        data,
        question_ids=[q.id for q in asked],
        questions=encode_cached(
            [q.text for q in asked], encoder=encoder, kind="queries", folder=folder,
            progress=progress, stage="questions",
        ),
        langs=resolve_languages([q.text for q in asked], [q.lang for q in asked]),
        qrels={q.id: judged[q.id] for q in asked},
        notes=tuple(notes),
    )  # fmt: skip
    if not passage_calibration:
        return data
    return _with_calibrated_passages(data, corpus, strength=passage_calibration, build=build, progress=progress)


def _with_calibrated_passages(
    data: TuneData, corpus: Path, *, strength: float, build: Path | None, progress: Progress
) -> TuneData:
    """`data` with the passages that `load --passage-calibration` would write; as it was for a corpus in one language.

    The means are those of the whole build where there is one, else those of the passages that are tuned on.
    """
    lang_of = dict.fromkeys(data.ids, UNKNOWN_LANGUAGE)

    def read() -> Iterator[Row]:
        for passage in read_corpus(corpus):
            if passage.id in lang_of:
                lang_of[passage.id] = passage.lang
            yield passage, None

    if build is not None:
        table = measure_passages(read(), Build.open(build), progress=progress)
    else:
        deque(read(), maxlen=0)
        table = passage_means([(data.passages, list(lang_of.values()))])
    if len(main_languages(table.counts)) < 2:
        return replace(data, notes=(*data.notes, "the corpus is in one language: passages stay as they are"))
    passages = calibrate_passages(
        data.passages, langs=list(lang_of.values()), table=table, strength=strength,
        normalize=data.encoder.facts.normalize,
    )  # fmt: skip
    return replace(data, passages=passages)


def _of_build(folder: Path, wanted: set[str], *, encoder: TextEncoder, sample: int) -> TuneData:
    """Rows of a build: what is wanted and others, those with queries first, `sample` at least if there are as many."""
    build = Build.open(folder)
    if build.fingerprint != encoder.facts.fingerprint:
        raise MismatchError(
            f"{folder} was made by the encoder {build.fingerprint}, not by {encoder.facts.source} "
            f"({encoder.facts.fingerprint}): tune with that encoder, or with another --build."
        )
    if not build.complete:
        raise DataError(f"{folder} is not complete: {_LOAD} --build {folder}` first.")

    def ranks() -> Iterator[tuple[bool, bool, int, int]]:
        row = 0
        for window in build.windows():
            for docid, count in zip(window.ids, window.counts(window.sums).tolist(), strict=True):
                yield docid not in wanted, not count, hash_order(docid), row
                row += 1

    chosen = heapq.nsmallest(max(sample, len(wanted)), ranks())
    window = build.take(np.sort(np.array([row for *_, row in chosen], dtype=np.int64)))
    if not window.sums:
        raise DataError(f"{folder} holds no generated queries: {_LOAD} --build {folder}` first.")
    return TuneData(encoder, window.ids, window.passages, window.sums)


def _of_files(
    corpus: Path,
    queries: Sequence[Path],
    wanted: set[str],
    *,
    encoder: TextEncoder,
    folder: Path,
    sample: int,
    progress: Progress,
) -> TuneData:
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
    return TuneData(encoder, ids, rows, flat.sums(passages=len(ids)))


def _bare_passages(data: TuneData, asked: set[str]) -> list[str]:
    """Warn when the passages that are asked for have queries more often than the others."""
    has = np.add.reduce([counts for _, counts in data.sums.values()]) > 0
    judged = np.array([docid in asked for docid in data.ids])
    if judged.all() or has[judged].mean() - has[~judged].mean() < 0.1:
        return []
    return [
        f"{has[judged].mean():.0%} of the passages asked for have queries, but {has[~judged].mean():.0%} of the others:"
        " recipes that give passages with queries a head start (pool mean, not centred) are flattered"
    ]
