"""Corpus (and generated queries) into a collection: encode, fuse, write, publish; resumable and idempotent.

Two steps, each of which continues where an earlier run stopped: `encode_corpus` encodes into a build folder;
`write_collection` fuses its rows by a recipe and writes them, with the passages' text, into a new version of
the collection, which replaces the published one at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.calibration import ENOUGH_PASSAGES, TextEncoder, main_languages, pack_means
from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError
from xqg_vdb.files import disk_errors, lock_folder, refuse_pipe, sha256_of
from xqg_vdb.index.build import Build
from xqg_vdb.index.chunks import chunk_setting, splitter
from xqg_vdb.index.encode import Row, cut_in_words, encode_corpus, read_rows, rows_digest
from xqg_vdb.index.write import (
    card_of,
    check_counts,
    finished,
    generated_means,
    measure_passages,
    question_means,
    with_passage_means,
    with_words,
    write_collection,
)
from xqg_vdb.models.folder import cache_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.search import ready_encoder
from xqg_vdb.search.retriever import Collection
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import check_name
from xqg_vdb.store.operations import Store
from xqg_vdb.texts.corpus import as_file, as_files, files_of, read_corpus
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.texts.records import Rejects, expect, open_lines
from xqg_vdb.texts.tables import Records
from xqg_vdb.types import Card, Distance, Hybrid, Recipe, VectorStore, option

# What a load is asked for, checked before a model is opened.


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a corpus becomes a collection; the command line makes its options of these fields.

    passage_calibration: each passage's vector less λ times its language's mean passage vector, before queries are
    folded in. hybrid: sparse vectors (BM25) as well. Raises DataError for values that no corpus could be loaded with.
    """

    build: Path | None = option(None, "Keep the vectors here: another --alpha then encodes nothing.")
    reuse: tuple[Path, ...] = option(
        (), "A --build folder of an earlier load: encode only what changed since; repeatable."
    )
    passage_calibration: float = option(
        0.0,
        "λ of the passages, for corpora of several languages: 0.5, or 1 where they speak of the same things.",
        least=0,
    )
    keep_plain: bool = option(False, "Also the passages' own vectors, text-dense-plain.")
    hybrid: Hybrid | None = None
    distance: Distance | None = option(None, "Default: what suits the encoder.")
    default_lang: str | None = option(None, "Language of passages that name none  [default: detected]")
    chunk: str | None = option(
        None,
        "Cut documents into chunks of so many tokens, each a point; a search finds documents by their best.",
        metavar="TOKENS[:OVERLAP]",
    )
    force: bool = option(False, "Write a new version even where nothing changed.")

    def __post_init__(self) -> None:
        if not (isfinite(self.passage_calibration) and self.passage_calibration >= 0.0):
            raise DataError(f"passage_calibration must be a number from 0 up, got {self.passage_calibration}.")
        if self.chunk:
            chunk_setting(self.chunk)
        if self.hybrid is not None and self.hybrid.lang is not None:
            from xqg_vdb.store.bm25 import check_language  # brings the embedded engine

            check_language(self.hybrid.lang)


def check_inputs(
    corpus: str | PathLike[str],
    name: str,
    *,
    queries: Sequence[Path] = (),
    questions: str | PathLike[str] | None = None,
) -> None:
    """Refuse wrong names at once, before a model is opened or exported.

    Raises DataError for a name that cannot be a collection's, and for files that are missing or of an unknown kind.
    """
    check_name(name)
    refuse_pipe(Path(corpus))  # it is read twice
    read_corpus(Path(corpus))
    for file in [*queries, *([] if questions is None else [Path(questions)])]:
        open_lines(file)


def rejects_of(what: str, *, like: Rejects) -> Rejects:
    """Rejects for another input: as many are allowed, and they are kept in a file beside the first."""
    path = None if like.path is None else like.path.with_name(f"{like.path.stem}.{what}{like.path.suffix}")
    return Rejects(like.max_rejects, path)


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    counts: lines of the corpus (`Rejects.counts`). queries: how many were folded in, by language.
    unused_queries: query records that belong to no passage. rejected_lines: of the query and question files.
    seconds: to "encode", to fuse and "write", and until the "index" was there, which is the engine's work.
    build: the folder that keeps the vectors; None when they were not to be kept. reused: passage vectors that came from
    earlier builds. languages: passages by their language. notes: what the user should know, a sentence each.
    unchanged: nothing was written, because the published version is of the same load. replaced: what was published
    before, in words. cut: of passages that are longer than what the encoder reads: how many `passages`, their `tokens`,
    how many of these are `lost`, and the `first` ids. documents: whose chunks the passages are, 0 where they are whole.
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
    unchanged: bool = False
    replaced: str = ""
    cut: Mapping[str, Any] = field(default_factory=dict)
    documents: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A collection that was loaded, ready to search, and what the load did."""

    collection: Collection
    report: LoadReport


def load(
    corpus: str | PathLike[str] | Records, name: str, *, encoder: TextEncoder | str | Path,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records | None = None, recipe: Recipe | None = None,
    questions: str | PathLike[str] | None = None, store: Store | None = None, options: LoadOptions | None = None,
    rejects: Rejects | None = None, progress: Progress = silent,
) -> Loaded:  # fmt: skip
    """Load a corpus into the collection `name`.

    corpus: a file, a BEIR folder, `Passage`s or dicts, or a data frame. queries: the generated ones, in files or as
    records; recipe: how they are folded in. questions: users' own questions, which refine the calibration of their
    languages for this collection. encoder: ready, or its folder or name. store: by default that of `open_store()`.
    rejects: how many bad lines each input may have; those of the corpus are counted in it. With a path they are kept,
    the other inputs' in files beside it.
    Where the published version came from the same inputs, nothing is written (`LoadOptions.force`). A run that was
    stopped continues when the same call is made again. Raises DataError, MismatchError, LockedError, DiskError,
    ServerError, CorruptError.
    """
    recipe, options = Recipe() if recipe is None else recipe, LoadOptions() if options is None else options
    expect("recipe", recipe, Recipe, "a Recipe, such as Recipe(alpha=0.3)")
    expect("options", options, LoadOptions, "LoadOptions(…)")
    if isinstance(store, str | PathLike | int):
        raise DataError(f"store must be what open_store(…) returns, found {store!r:.80}.")
    if isinstance(encoder, str | Path) or not hasattr(encoder, "facts"):
        encoder = ready_encoder(encoder)
    chosen, rejects = open_store() if store is None else store, rejects or Rejects()
    try:
        with ExitStack() as stack:
            file, files = as_file(corpus, "corpus.jsonl", stack, rejects.left_out), as_files(queries, stack)
            check_inputs(file, name, queries=files, questions=questions)
            report = _load(
                file, name, files, encoder=encoder, recipe=recipe, questions=questions, store=chosen, options=options,
                rejects=rejects, progress=progress,
            )  # fmt: skip
    except BaseException:
        if store is None:
            chosen.close()
        raise
    return Loaded(Collection(name, chosen, encoder=encoder), report)


def _load(
    corpus: Path, name: str, query_files: Sequence[Path], *, encoder: TextEncoder, recipe: Recipe,
    questions: str | PathLike[str] | None, store: VectorStore, options: LoadOptions, rejects: Rejects,
    progress: Progress,
) -> LoadReport:  # fmt: skip
    distance = options.distance or ("cosine" if encoder.facts.normalize else "dot")
    store.names()  # a server that is away says so before hours of encoding
    others = {what: rejects_of(what, like=rejects) for what in ("queries", "questions")}
    for output in (rejects, *others.values()):
        output.refuse_inputs([*files_of(corpus), *query_files, *([] if questions is None else [Path(questions)])])
    with ExitStack() as stack:
        table = stack.enter_context(QueryFile(query_files, rejects=others["queries"])) if query_files else None
        split, cut = splitter(encoder, options.chunk) if options.chunk else None, dict[str, Any]()
        read = partial(read_rows, corpus, default_lang=options.default_lang, split=split)

        def again(queries: QueryFile | None = None) -> Iterator[Row]:
            """The corpus once more: its bad lines are allowed again, and not counted again."""
            return read(queries=queries, rejects=Rejects(rejects.max_rejects))

        def report(passages: int) -> LoadReport:
            unused = table.unused_count if table is not None else 0
            bad = sum(other.rejected for other in others.values())
            documents = 0 if split is None else rejects.accepted
            return LoadReport(name, passages, rejects.counts(), {}, unused, rejected_lines=bad, documents=documents)

        folder = stack.enter_context(_build_folder(options.build, name, fingerprint=encoder.facts.fingerprint))
        inputs = partial(inputs_of, encoder, recipe=recipe, distance=distance, questions=questions, options=options)
        before = None if options.force else published(store, name)
        if before is not None and before.inputs:
            digest = rows_digest(read(queries=table, rejects=rejects, detect=False))
            if before.inputs == inputs(digest) and is_whole(store, name, before):
                return replace(report(before.count), unchanged=True)
            _count_anew(rejects)
        asked = question_means(encoder, questions, rejects=others["questions"])
        started = time.perf_counter()
        encode = partial(
            encode_corpus, corpus, encoder=encoder, queries=table, path=folder, reuse=options.reuse,
            rejects=rejects, default_lang=options.default_lang, split=split, cut=cut,
            progress=progress,
        )  # fmt: skip
        try:
            build, digest, reused = encode()
        except (MismatchError, CorruptError) as error:
            if options.build is not None or (isinstance(error, CorruptError) and not _is_damaged(folder)):
                raise  # the user's own folder, or the disk of the corpus
            _discard(folder)  # of another input, or damaged
            _count_anew(rejects)
            cut.clear()
            build, digest, reused = encode()
        encoded = time.perf_counter()
        generated = generated_means(build.sums())
        card = card_of(
            encoder, rows_digest=digest, recipe=recipe, distance=distance, generated=generated, asked=asked,
            keep_plain=options.keep_plain, chunk=options.chunk or "",
        )  # fmt: skip
        check_counts(build, card)
        if options.passage_calibration:
            means = measure_passages(again(), build, progress=progress)
            card = with_passage_means(card, options.passage_calibration, means)
        if options.hybrid is not None:
            card = with_words(card, options.hybrid, again())
        replaced = _in_words(published(store, name), card)
        total = build.rows
        with store.writer(name, card=replace(card, count=total)) as writer:
            digest, languages = write_collection(again(table), build, writer, card=card, progress=progress)
            moments = [started, encoded, time.perf_counter()]
            progress("indexing", 0, total)
            final = replace(finished(card, count=total, digest=digest), inputs=inputs(card.rows_digest))
            writer.publish(final, indexed=lambda done: progress("indexing", min(done, total), total))
            progress("indexing", total, total)
        moments.append(time.perf_counter())
        return replace(
            report(total),
            queries={lang: generated.counts[lang] for lang in card.query_langs},
            seconds={
                phase: round(end - start, 2)
                for phase, (start, end) in zip(("encode", "write", "index"), pairwise(moments), strict=True)
            },
            build=str(folder) if options.build is not None else None,
            reused=reused,
            languages=dict(sorted(languages.items())),
            notes=(
                *(f"left out of column {column}: {what}" for column, what in rejects.left_out.items()),
                *_notes(languages, asked_for=options.passage_calibration, card=card),
                *cut_in_words(cut),
            ),
            replaced=replaced,
            cut=cut,
        )


def _count_anew(rejects: Rejects) -> None:
    vars(rejects).update(vars(Rejects(rejects.max_rejects, rejects.path)) | {"left_out": rejects.left_out})


def published(store: VectorStore, name: str) -> Card | None:
    """The card of a collection, None where there is none."""
    with suppress(DataError, CorruptError, MismatchError):
        return store.card(name)
    return None


def inputs_of(
    encoder: TextEncoder, digest: str, *, recipe: Recipe, distance: Distance, questions: str | PathLike[str] | None,
    options: LoadOptions,
) -> str:  # fmt: skip
    """A hash of all that the points and the card of a load are made of; digest: of its rows."""
    facts, hybrid = encoder.facts, options.hybrid
    parts = [
        digest, facts.to_json(), encoder.calibration, pack_means(encoder.language_means), recipe.to_json(), distance,
        None if questions is None else sha256_of(Path(questions)), options.passage_calibration, options.keep_plain,
        hybrid is not None and [hybrid.lang], options.default_lang,
    ]  # fmt: skip
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def is_whole(store: VectorStore, name: str, card: Card) -> bool:
    """Whether a new version would be laid out as the published one is, and that one has all its points."""
    try:
        return dict(store.storage) == dict(card.storage) and store.count(name) == card.count
    except CorruptError:
        return False


def _in_words(before: Card | None, card: Card) -> str:
    if before is None:
        return ""
    langs, alpha = ", ".join(before.query_langs), before.recipe.alpha
    same = (before.rows_digest, before.encoder) == (card.rows_digest, card.encoder)
    change = "the same passages, by other options or by --force" if same else "other passages, queries or encoder"
    folded = f"{langs} queries at α {alpha:g}" if langs else "no queries"
    return f"{before.version} ({before.count:,} passages, {folded}, {before.created}): {change}"


def _notes(languages: Mapping[str, int], *, asked_for: float, card: Card) -> list[str]:
    several = main_languages(languages)
    if asked_for and not card.passage_calibration:
        return [
            f"the passages are left as they are: passage calibration is for corpora with {ENOUGH_PASSAGES} passages or"
            " more in each of two languages"
        ]
    if card.passage_calibration and not card.calibration:
        return [
            "the passages are calibrated and this collection's questions are not, which may lose more than it gains"
        ]
    if len(several) > 1 and not asked_for:
        return [
            f"the passages are in {len(several)} languages; where questions in one should find answers in another, load"
            " with --passage-calibration 0.5 (docs/measurements.md)"
        ]
    return []


# The folder in which a load keeps its vectors: the user's, or one in the cache that goes when the load is done.


@contextmanager
def _build_folder(build: Path | None, name: str, *, fingerprint: str) -> Iterator[Path]:
    """Where the vectors are kept; a folder in the cache is removed when the block ends without an error."""
    if build is not None:
        yield build
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


def _is_damaged(folder: Path) -> bool:
    try:
        Build.open(folder).digests()
    except (CorruptError, DataError):
        return True
    return False
