"""Corpus (and generated queries) into a collection: encode, fuse, write, publish; resumable and idempotent.

Two steps, each of which goes on where an earlier run stopped: `building.keep_vectors` encodes into a build folder;
`writing.write_collection` fuses its rows by a recipe and writes them, with the passages' text, into a new version of
the collection, which replaces the published one at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from math import isfinite
from os import PathLike
from pathlib import Path

import numpy as np

from xqg_vdb.building import Kept, Row, keep_vectors, read_rows
from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans, language_means, pack_means, resolve_languages
from xqg_vdb.collection import Collection, open_store
from xqg_vdb.collection.layout import TEXT_DENSE_MAXSIM, check_name
from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError
from xqg_vdb.files import disk_errors, lock_folder, open_lines
from xqg_vdb.fusion import pooled_queries, recipe_languages
from xqg_vdb.model_folder import cache_folder
from xqg_vdb.passage_calibration import ENOUGH_PASSAGES, main_languages
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.query_rows import keep_query_rows
from xqg_vdb.questions import read_questions
from xqg_vdb.records import Rejects
from xqg_vdb.types import Card, Distance, Hybrid, MoreVectors, Recipe, VectorStore
from xqg_vdb.vectors import Build
from xqg_vdb.writing import measure_passages, vector_names, write_collection

_ENOUGH_QUESTIONS = 30


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    counts: lines of the corpus (`Rejects.counts`). queries: how many were folded in, by language.
    unused_queries: query records that belong to no passage. rejected_lines: of the query and question files.
    build: the folder that keeps the vectors; None when they were not to be kept. reused: passage vectors that came from
    earlier builds. languages: passages by their language. notes: what the user should know, a sentence each.
    """

    collection: str
    passages: int
    counts: dict[str, int]
    queries: dict[str, int]
    unused_queries: int
    rejected_lines: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    build: str | None = None
    reused: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(
    corpus: str | PathLike[str],
    name: str,
    *,
    encoder: CalibratedEncoder,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    recipe: Recipe | None = None,
    passage_calibration: float = 0.0,
    store: VectorStore | None = None,
    questions: str | PathLike[str] | None = None,
    build: str | PathLike[str] | None = None,
    reuse: Sequence[str | PathLike[str]] = (),
    distance: Distance | None = None,
    more_vectors: Sequence[MoreVectors] = (),
    hybrid: Hybrid | None = None,
    default_lang: str | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> Collection:
    """Load a corpus into the collection `name` and return it, ready to search; see `load_with_report` for the rest."""
    chosen = open_store() if store is None else store
    try:
        load_with_report(
            corpus, name, encoder=encoder, store=chosen, queries=queries, recipe=recipe,
            passage_calibration=passage_calibration, questions=questions,
            build=build, reuse=reuse, distance=distance, more_vectors=more_vectors, default_lang=default_lang,
            hybrid=hybrid, rejects=rejects, progress=progress,
        )  # fmt: skip
    except BaseException:
        if store is None:
            chosen.close()
        raise
    return Collection(name, chosen)


def load_with_report(
    corpus: str | PathLike[str],
    name: str,
    *,
    encoder: CalibratedEncoder,
    store: VectorStore,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    recipe: Recipe | None = None,
    passage_calibration: float = 0.0,
    questions: str | PathLike[str] | None = None,
    build: str | PathLike[str] | None = None,
    reuse: Sequence[str | PathLike[str]] = (),
    distance: Distance | None = None,
    more_vectors: Sequence[MoreVectors] = (),
    hybrid: Hybrid | None = None,
    default_lang: str | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> LoadReport:
    """Load a corpus into the collection `name`.

    queries: files of generated queries. recipe: how they are folded in, by default `Recipe()`.
    questions: users' own questions, which refine the calibration of their languages for this collection.
    build: a folder that keeps the vectors, so that a later load with another recipe encodes nothing; without it they
    are kept in the cache until the load is done.
    reuse: build folders of earlier loads with this encoder: what is unchanged is copied from them and not encoded.
    distance: by default `cosine`, or `dot` for encoders that do not normalise.
    passage_calibration: λ of the passages' side, for corpora of several languages (`passage_calibration.py`): each
    passage's vector less λ times its language's mean passage vector, before queries are folded in. 0 leaves them.
    more_vectors: beside the fused vector also the `plain` one, and one per query `languages`, which questions in that
    language are searched by; each costs as much memory as the first. Or `maxsim`: a multivector with a row per query,
    each mixed with the passage, of which the best counts; its queries are encoded a second time, one by one.
    hybrid: make sparse vectors as well, which `Retriever(hybrid=True)` searches beside the dense ones.
    rejects: how many bad lines each input may have; those of the corpus are counted in it. With a path they are kept,
    the other inputs' in files beside it.
    A run that was stopped goes on when the same call is made again. Raises DataError, MismatchError, LockedError,
    DiskError, ServerError, CorruptError.
    """
    if not (isfinite(passage_calibration) and passage_calibration >= 0.0):
        raise DataError(f"passage_calibration must be a number from 0 up, got {passage_calibration}.")
    corpus, recipe, rejects = Path(corpus), recipe or Recipe(), rejects or Rejects()
    distance = distance or ("cosine" if encoder.facts.normalize else "dot")
    query_files = check_inputs(corpus, name, queries=queries, questions=questions)
    vector_names(more_vectors, [])
    if hybrid is not None and hybrid.lang is not None:
        from xqg_vdb.collection.bm25 import check_language  # brings the embedded engine

        check_language(hybrid.lang)
    store.names()  # a server that is away says so before hours of encoding
    others = {what: _rejects_of(what, like=rejects) for what in ("queries", "questions")}
    with ExitStack() as stack:
        table = stack.enter_context(QueryFile(query_files, rejects=others["queries"])) if query_files else None
        asked = _question_means(encoder, questions, rejects=others["questions"])
        folder = stack.enter_context(_build_folder(build, name, fingerprint=encoder.facts.fingerprint))
        started = time.perf_counter()

        def encode() -> Kept:
            return keep_vectors(
                corpus, encoder=encoder, queries=table, path=folder, reuse=[Path(one) for one in reuse],
                rejects=rejects, default_lang=default_lang, progress=progress,
            )  # fmt: skip

        kept = encode() if build is not None else _encode_or_begin_anew(encode, folder, rejects)
        encoded = time.perf_counter()
        card, means = card_of(kept, encoder, recipe=recipe, distance=distance, asked=asked, more=more_vectors)
        if passage_calibration:
            again = Rejects(rejects.max_rejects)
            rows = read_rows(corpus, queries=None, default_lang=default_lang, rejects=again)
            card = _with_passage_means(card, passage_calibration, measure_passages(rows, kept.build, progress=progress))
        each, again = None, Rejects(rejects.max_rejects)
        if hybrid is not None:
            rows = read_rows(corpus, queries=table, default_lang=default_lang, rejects=again)
            card = _with_words(card, hybrid, rows, kept.build)
        if TEXT_DENSE_MAXSIM in card.vectors:
            rows = read_rows(corpus, queries=table, detect=False, rejects=again)
            each = keep_query_rows(rows, encoder=encoder, path=folder / "each-query", progress=progress)
        with store.writer(name, card=card) as writer:
            again = Rejects(rejects.max_rejects)  # counted while encoding
            rows = read_rows(corpus, queries=table, default_lang=default_lang, rejects=again)
            written = write_collection(rows, kept.build, writer, card=card, means=means, each=each, progress=progress)
            total = kept.build.rows
            progress("indexing", 0, total)
            finished = _finished(card, count=total, digest=written.digest)
            writer.publish(finished, indexed=lambda done: progress("indexing", min(done, total), total))
            progress("indexing", total, total)
    return LoadReport(
        collection=name,
        passages=kept.build.rows,
        counts=rejects.counts(),
        queries={lang: int(kept.build.counts[lang].sum()) for lang in card.query_langs},
        unused_queries=table.unused_count if table is not None else 0,
        rejected_lines=sum(other.rejected for other in others.values()),
        seconds={"encode": round(encoded - started, 2), "write": round(time.perf_counter() - encoded, 2)},
        build=str(folder) if build is not None else None,
        reused=kept.reused,
        languages=dict(sorted(written.languages.items())),
        notes=_notes(written.languages, asked_for=passage_calibration, card=card),
    )


def check_inputs(
    corpus: str | PathLike[str],
    name: str,
    *,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    questions: str | PathLike[str] | None = None,
) -> list[Path]:
    """Refuse wrong names at once, before a model is opened or exported; the query files as a list.

    Raises DataError for a name that cannot be a collection's, and for files that are missing or of an unknown kind.
    """
    check_name(name)
    corpus = Path(corpus)
    with disk_errors(corpus):
        is_pipe = corpus.is_fifo()
    if is_pipe:
        raise DataError(f"{corpus} is a pipe, and a load reads the corpus twice: write it to a file first.")
    read_corpus(corpus)
    given = [queries] if isinstance(queries, str | PathLike) else queries or []
    files = [Path(file) for file in given]
    for file in [*files, *([] if questions is None else [Path(questions)])]:
        open_lines(file)
    return files


@contextmanager
def _build_folder(build: str | PathLike[str] | None, name: str, *, fingerprint: str) -> Iterator[Path]:
    """Where the vectors are kept: the user's folder, or one in the cache that this load has to itself.

    That one is removed when the block ends without an error; after one, the next load goes on with it.
    """
    if build is not None:
        yield Path(build)
        return
    folder = cache_folder() / "builds" / f"{name}-{fingerprint}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder)
    except LockedError as error:
        said = str(error).rstrip(".")
        raise LockedError(f"Collection {name!r} is being loaded already: {said} (--build).") from None
    with lock:
        yield folder / "vectors"
        _discard(folder / "vectors")
        shutil.rmtree(folder, ignore_errors=True)


def _discard(vectors: Path) -> None:
    """Remove a build folder of ours in one step as far as the next load can see: killed amid it, some files remain."""
    gone = vectors.with_name("gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        vectors.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _encode_or_begin_anew(encode: Callable[[], Kept], folder: Path, rejects: Rejects) -> Kept:
    """The encoded corpus; what a folder of ours holds of another input, or damaged, is thrown away."""
    try:
        return encode()
    except (MismatchError, CorruptError) as error:
        if isinstance(error, CorruptError) and _can_be_read(folder):
            raise  # the disk of the corpus, then
        _discard(folder)
        vars(rejects).update(vars(Rejects(rejects.max_rejects, rejects.path)))  # what was counted comes again
        return encode()


def _can_be_read(folder: Path) -> bool:
    try:
        Build.open(folder)
    except (CorruptError, DataError):
        return False
    return True


def card_of(
    kept: Kept,
    encoder: CalibratedEncoder,
    *,
    recipe: Recipe,
    distance: Distance,
    asked: LanguageMeans,
    more: Sequence[MoreVectors],
) -> tuple[Card, LanguageMeans]:
    """The card of the collection to be, and the language means that its fusion subtracts.

    Raises DataError when the recipe wants a language without queries, MismatchError when it is `sum` and counts differ.
    """
    build = kept.build
    langs = _folded_languages(build, recipe) if recipe.alpha > 0.0 else []
    refined = encoder.language_means.refined(generated_means(build, langs), capped=True)
    # what users really ask beats what a model generated, which beats the bank
    table = LanguageMeans({**refined.means, **asked.means}, {**refined.counts, **asked.counts})
    own = [lang for lang in table.means if lang in langs or lang in asked.means]
    rows = hashlib.blake2b(build.digests.tobytes(), digest_size=16)
    rows.update(kept.payload_digest.encode())
    card = Card(
        encoder=encoder.facts,
        distance=distance,
        recipe=recipe,
        calibration=encoder.calibration,
        query_langs=tuple(langs),
        query_means=pack_means(LanguageMeans({lang: table.means[lang] for lang in own})),
        rows_digest=rows.hexdigest(),
        vectors=vector_names(more, langs),
    )
    return card, table


def _with_words(card: Card, hybrid: Hybrid, rows: Iterator[Row], kept: Build) -> Card:
    """The card with the settings of its sparse vectors, which the first passages of the corpus decide."""
    from xqg_vdb.collection.bm25 import SAMPLE, settings_of  # brings the embedded engine

    langs = card.recipe.langs or tuple(kept.sums)
    return replace(card, bm25=settings_of(list(islice(rows, SAMPLE)), hybrid, query_langs=langs))


def _folded_languages(build: Build, recipe: Recipe) -> list[str]:
    """The languages whose queries are folded in; what the recipe refuses is refused before anything is written."""
    langs = recipe_languages({lang: (build.sums[lang], build.counts[lang]) for lang in build.sums}, recipe)
    if langs and recipe.pool == "sum":
        # the rule is about the whole corpus, where a window of it may well have equal counts; it looks at no vector
        width = np.zeros((build.rows, 1), dtype=np.float32)
        pooled_queries({lang: (width, build.counts[lang]) for lang in langs}, recipe=recipe, means={})
    return langs


def generated_means(kept: Build, langs: Sequence[str]) -> LanguageMeans:
    """The mean generated-query vector of each language over a whole build."""
    counts = {lang: int(kept.counts[lang].sum()) for lang in langs}
    means = {
        lang: (kept.sums[lang].sum(axis=0, dtype=np.float64) / n).astype(np.float32) for lang, n in counts.items() if n
    }
    return LanguageMeans(means, {lang: counts[lang] for lang in means}, "generated queries")


def _question_means(
    encoder: CalibratedEncoder, questions: str | PathLike[str] | None, *, rejects: Rejects
) -> LanguageMeans:
    """The means of users' questions, empty without a file. Few lean on the bank, thirty speak for themselves."""
    if questions is None:
        return LanguageMeans()
    asked = read_questions(Path(questions), rejects=rejects)
    texts = [question.text for question in asked]
    langs = resolve_languages(texts, [question.lang for question in asked])
    vectors = encoder.encode_queries(texts)
    rows = {lang: vectors[[i for i, own in enumerate(langs) if own == lang]] for lang in sorted(set(langs) - {"und"})}
    if not rows:
        raise DataError(f"None of the questions in {questions} has a language: give each a `lang` field.")
    bank = encoder.language_means
    table = language_means(rows, source="questions")
    few = {lang for lang, n in table.counts.items() if n < _ENOUGH_QUESTIONS and lang in bank.means}
    blended = LanguageMeans({lang: bank.means[lang] for lang in few}, {lang: bank.counts[lang] for lang in few})
    return blended.refined(table)


def _with_passage_means(card: Card, strength: float, table: LanguageMeans) -> Card:
    """`card` with the means of passage-side calibration; as it was for a corpus that is in one language."""
    if len(main_languages(table.counts)) < 2:
        return card
    return replace(card, passage_calibration=strength, passage_means=pack_means(table))


def _notes(languages: Mapping[str, int], *, asked_for: float, card: Card) -> tuple[str, ...]:
    several = main_languages(languages)
    if asked_for and not card.passage_calibration:
        return (
            f"the passages are left as they are: passage calibration is for corpora with {ENOUGH_PASSAGES} passages or"
            " more in each of two languages",
        )
    if card.passage_calibration and not card.calibration:
        return (
            "the passages are calibrated and this collection's questions are not, which may lose more than it gains",
        )
    if len(several) > 1 and not asked_for:
        return (
            f"the passages are in {len(several)} languages; where questions in one should find answers in another, load"
            " with --passage-calibration 0.5 (docs/benchmarks.md)",
        )
    return ()


def _rejects_of(what: str, *, like: Rejects) -> Rejects:
    """Rejects for another input: as many are borne, and they are kept in a file beside the first."""
    path = None if like.path is None else like.path.with_name(f"{like.path.stem}.{what}{like.path.suffix}")
    return Rejects(like.max_rejects, path)


def _finished(card: Card, *, count: int, digest: str) -> Card:
    return replace(card, count=count, digest=digest, created=datetime.now(UTC).isoformat(timespec="seconds"))
