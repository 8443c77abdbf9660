"""Corpus (and generated queries) into a collection: encode, fuse, write, publish; resumable and idempotent.

Two steps, each of which goes on where an earlier run stopped: `building.keep_vectors` encodes into a build folder;
`write_collection` fuses its rows by a recipe and writes them, with the passages' text, into a new version of the collection,
which replaces the published one at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

import numpy as np

from xqg_vdb.batching import windows
from xqg_vdb.building import Row, changed_input, keep_vectors, read_rows
from xqg_vdb.calibration import LanguageMeans, language_means, pack_means
from xqg_vdb.collection import Collection, open_store
from xqg_vdb.collection.layout import TEXT_DENSE, Digest, check_name
from xqg_vdb.encoding import Encoder, resolve_languages
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.fusion import fuse, recipe_languages
from xqg_vdb.model_folder import cache_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.questions import read_questions
from xqg_vdb.records import Rejects
from xqg_vdb.types import Card, CollectionWriter, Distance, PointBatch, Query, Recipe, VectorStore
from xqg_vdb.vectors import Build, row_digest

WRITE_WINDOW = 512
COMMIT_EVERY = 8192
"""Passages between two flushes of the store: one costs about 0.1 s on a disk."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did: counts of the corpus, queries per language, seconds per phase, where the vectors are kept."""

    collection: str
    passages: int
    counts: dict[str, int]
    queries: dict[str, int]
    unused_queries: int
    seconds: dict[str, float] = field(default_factory=dict)
    build: str | None = None


def load(
    corpus: str | PathLike[str],
    name: str,
    *,
    encoder: Encoder,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    recipe: Recipe | None = None,
    store: VectorStore | None = None,
    questions: str | PathLike[str] | None = None,
    build: str | PathLike[str] | None = None,
    distance: Distance | None = None,
    default_lang: str | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> Collection:
    """Load a corpus into the collection `name` and return it, ready to search; see `load_with_report` for the rest."""
    store = open_store() if store is None else store
    load_with_report(
        corpus, name, encoder=encoder, queries=queries, recipe=recipe, store=store, questions=questions, build=build,
        distance=distance, default_lang=default_lang, rejects=rejects, progress=progress,
    )  # fmt: skip
    return Collection(name, store)


def load_with_report(
    corpus: str | PathLike[str],
    name: str,
    *,
    encoder: Encoder,
    store: VectorStore,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    recipe: Recipe | None = None,
    questions: str | PathLike[str] | None = None,
    build: str | PathLike[str] | None = None,
    distance: Distance | None = None,
    default_lang: str | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> LoadReport:
    """Load a corpus into the collection `name`.

    queries: files of generated queries. recipe: how they are folded in, by default `Recipe()`.
    questions: users' own questions, which refine the calibration of their languages for this collection.
    build: a folder that keeps the vectors, so that a later load with another recipe encodes nothing; without it they are
    kept in the cache until the load is done. distance: by default `cosine`, or `dot` for encoders that do not normalise.
    A run that was stopped goes on when the same call is made again. Raises DataError, MismatchError, LockedError,
    DiskError, ServerError, CorruptError.
    """
    check_name(name)
    corpus, recipe, rejects = Path(corpus), recipe or Recipe(), rejects or Rejects()
    distance = distance or ("cosine" if encoder.facts.normalize else "dot")
    with ExitStack() as stack:
        asked = _question_means(encoder, read_questions(questions)) if questions is not None else LanguageMeans()
        query_file = stack.enter_context(QueryFile(_paths(queries))) if queries is not None else None
        started = time.perf_counter()
        kept, folder = _kept(
            corpus, name, encoder=encoder, queries=query_file, build=build, default_lang=default_lang, rejects=rejects,
            progress=progress,
        )  # fmt: skip
        encoded = time.perf_counter()
        card, means = _card(kept, encoder, recipe=recipe, distance=distance, asked=asked)
        with store.writer(name, card=card) as writer:
            rows = read_rows(corpus, queries=query_file, default_lang=default_lang, rejects=Rejects(rejects.max_rejects))
            digest = write_collection(rows, kept, writer, card=card, means=means, progress=progress)
            progress("indexing", kept.rows, kept.rows)
            writer.publish(_finished(card, count=kept.rows, digest=digest))
    if build is None:
        shutil.rmtree(folder, ignore_errors=True)
    return LoadReport(
        collection=name,
        passages=kept.rows,
        counts=rejects.counts(),
        queries={lang: int(counts.sum()) for lang, counts in sorted(kept.counts.items())},
        unused_queries=query_file.unused_count if query_file is not None else 0,
        seconds={"encode": round(encoded - started, 2), "write": round(time.perf_counter() - encoded, 2)},
        build=str(folder) if build is not None else None,
    )


def write_collection(
    rows: Sequence[Row] | object, kept: Build, writer: CollectionWriter, *, card: Card, means: LanguageMeans, progress: Progress
) -> str:
    """Fuse and write every row that the writer does not have yet; returns the digest of all of them.

    Raises MismatchError when `rows` are not those that the vectors were made from.
    """
    digest, done = Digest(), 0
    first = writer.committed
    for window in windows(rows, WRITE_WINDOW):  # type: ignore[arg-type]
        _check_rows(window, kept, start=done)
        for passage, _ in window:
            digest.add(passage.id, passage.text)
        stop = done + len(window)
        if stop > first:
            writer.upsert(_batch(window, kept, slice(done, stop), card=card, means=means))
            if stop // COMMIT_EVERY > done // COMMIT_EVERY:
                writer.commit(stop)
        done = stop
        progress("writing", done, kept.rows)
    if done != kept.rows:
        raise changed_input(kept.path, done)
    writer.commit(done)
    return digest.hexdigest()


def _batch(window: Sequence[Row], kept: Build, rows: slice, *, card: Card, means: LanguageMeans) -> PointBatch:
    fused = fuse(
        kept.passages[rows],
        {lang: (kept.sums[lang][rows], kept.counts[lang][rows]) for lang in card.query_langs},
        recipe=card.recipe,
        means=means.means,
        normalize=card.distance == "cosine",
    )
    return PointBatch(
        passages=[passage for passage, _ in window],
        vectors={TEXT_DENSE: fused},
        query_langs=[sorted(set(queries.queries) & set(card.query_langs)) if queries else [] for _, queries in window],
    )


def _kept(
    corpus: Path,
    name: str,
    *,
    encoder: Encoder,
    queries: QueryFile | None,
    build: str | PathLike[str] | None,
    default_lang: str | None,
    rejects: Rejects,
    progress: Progress,
) -> tuple[Build, Path]:
    """The encoded corpus. A folder of our own choosing that holds other input is begun anew; one of the user's is not."""
    folder = Path(build) if build is not None else cache_folder() / "builds" / f"{name}-{encoder.facts.fingerprint}"

    def keep() -> Build:
        return keep_vectors(
            corpus, encoder=encoder, queries=queries, path=folder, rejects=rejects, default_lang=default_lang,
            progress=progress,
        )  # fmt: skip

    try:
        return keep(), folder
    except MismatchError:
        if build is not None:
            raise
    shutil.rmtree(folder)
    rejects.read = rejects.accepted = rejects.duplicates = rejects.blank = rejects.rejected = 0
    return keep(), folder


def _card(
    kept: Build, encoder: Encoder, *, recipe: Recipe, distance: Distance, asked: LanguageMeans
) -> tuple[Card, LanguageMeans]:
    """The card of the collection to be, and the language means that its fusion subtracts."""
    sums = {lang: (kept.sums[lang], kept.counts[lang]) for lang in kept.sums}
    langs = recipe_languages(sums, recipe) if recipe.alpha > 0.0 else []
    refined = encoder.language_means.refined(generated_means(kept, langs))
    # what users really ask beats what a model generated, which beats the bank
    table = LanguageMeans({**refined.means, **asked.means}, {**refined.counts, **asked.counts})
    own = [lang for lang in table.means if lang in langs or lang in asked.means]
    card = Card(
        encoder=encoder.facts,
        distance=distance,
        recipe=recipe,
        calibration=encoder.calibration,
        query_langs=tuple(langs),
        query_means=pack_means(LanguageMeans({lang: table.means[lang] for lang in own})),
        rows_digest=hashlib.blake2b(np.ascontiguousarray(kept.digests).tobytes(), digest_size=16).hexdigest(),
        vectors=(TEXT_DENSE,),
    )
    return card, table


def generated_means(kept: Build, langs: Sequence[str]) -> LanguageMeans:
    """The mean generated-query vector of each language over a whole build."""
    counts = {lang: int(kept.counts[lang].sum()) for lang in langs}
    means = {
        lang: (kept.sums[lang].sum(axis=0, dtype=np.float64) / n).astype(np.float32) for lang, n in counts.items() if n
    }
    return LanguageMeans(means, {lang: counts[lang] for lang in means}, "generated queries")


def _question_means(encoder: Encoder, questions: Sequence[Query]) -> LanguageMeans:
    texts = [question.text for question in questions]
    langs = resolve_languages(texts, [question.lang for question in questions])
    vectors = encoder.encode_queries(texts)
    rows = {lang: vectors[[i for i, own in enumerate(langs) if own == lang]] for lang in set(langs) - {"und"}}
    if not rows:
        raise DataError("None of the questions has a language: give each a `lang` field.")
    # few questions lean on the bank; thirty or more speak for themselves
    bank = encoder.language_means
    table = language_means(rows, source="questions")
    few = {lang for lang, n in table.counts.items() if n < 30 and lang in bank.means}
    blended = LanguageMeans({lang: bank.means[lang] for lang in few}, {lang: bank.counts[lang] for lang in few})
    return blended.refined(table)


def _finished(card: Card, *, count: int, digest: str) -> Card:
    from dataclasses import replace

    return replace(card, count=count, digest=digest, created=datetime.now(UTC).isoformat(timespec="seconds"))


def _check_rows(window: Sequence[Row], kept: Build, *, start: int) -> None:
    expected = kept.digests[start : start + len(window)].tolist()
    for i, row in enumerate(window):
        if i >= len(expected) or row_digest(*row) != expected[i]:
            raise changed_input(kept.path, start + i)


def _paths(queries: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    one = isinstance(queries, str | PathLike)
    return [Path(queries)] if one else [Path(path) for path in queries]  # type: ignore[arg-type, union-attr]
