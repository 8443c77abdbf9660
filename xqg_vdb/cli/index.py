"""`xqg-vdb load`, `add`, `delete`, `augment`, `migrate` and `verify`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import (
    PATH,
    Inputs,
    Model,
    Place,
    collection_argument,
    command,
    corpus_argument,
    input_options,
    language_codes,
    layout_options,
    load_options,
    model_options,
    place_options,
    ray_option,
    recipe_options,
    say,
    show,
    takes,
)
from xqg_vdb.errors import CorruptError, DataError, MismatchError, XqgError
from xqg_vdb.progress import bars
from xqg_vdb.types import Hybrid, Recipe, UpdateReport, option

if TYPE_CHECKING:
    from xqg_vdb.index.augment import AugmentReport, Wishes
    from xqg_vdb.index.load import LoadOptions, LoadReport
    from xqg_vdb.index.verify import Verification
    from xqg_vdb.store.layout import CollectionOptions


@dataclass(frozen=True)
class _Searches:
    """How the questions of a collection's users are calibrated, and whether their words are searched, too."""

    questions: Path | None = option(None, "Your users' questions, to calibrate on.")
    calibration: float | None = option(None, "λ of this collection's searches  [default: the encoder's]", least=0)
    no_calibration: bool = option(False, "Do not calibrate the questions of this collection.")
    hybrid: bool = option(False, "Also vectors of the words (BM25), for search --hybrid.")
    hybrid_lang: str | None = option(
        None, "Language of stemmer and stop words, or none  [default: the passages']", metavar="LANG"
    )

    def __post_init__(self) -> None:
        if self.calibration is not None and not isfinite(self.calibration):
            raise ValueError(f"--calibration must be a finite number, got {self.calibration}")
        if self.calibration is not None and self.no_calibration:
            raise ValueError("give --calibration or --no-calibration, not both")
        if self.hybrid_lang is not None and not self.hybrid:
            raise ValueError("--hybrid-lang is for --hybrid: give that, too")


@command(
    example="xqg-vdb load corpus.jsonl wiki\nxqg-vdb load corpus.jsonl wiki --queries queries.jsonl --build vectors/"
)
@corpus_argument
@collection_argument
@model_options
@input_options
@recipe_options
@takes("searches", "xqg_vdb.cli.index._Searches", title="Searches of the collection")
@ray_option
@load_options
@layout_options
@place_options
def load(
    corpus: Path,
    collection: str,
    model: Model,
    inputs: Inputs,
    recipe: Recipe,
    searches: _Searches,
    ray: str | None,
    options: LoadOptions,
    layout: CollectionOptions,
    place: Place,
) -> None:
    """Load CORPUS into COLLECTION, its generated queries folded into the passages' vectors.

    CORPUS is JSON, TSV, CSV, Parquet or a folder (docs/inputs.md). If it is stopped, the same command continues; run
    again on the same corpus, it writes nothing. Searches see the old version until the new one is complete.
    """
    from xqg_vdb.index.load import check_inputs
    from xqg_vdb.index.load import load as run

    if searches.hybrid:
        options = replace(options, hybrid=Hybrid(searches.hybrid_lang))
    strength = 0.0 if searches.no_calibration else searches.calibration
    check_inputs(corpus, collection, queries=inputs.queries, questions=searches.questions)
    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open(options=layout)))
        card = None
        with suppress(DataError, MismatchError, CorruptError):  # none yet, or one that the load itself judges
            card = store.card(collection)
        encoder = stack.enter_context(model.open(made=card, collection=collection, calibration=strength))
        if ray is not None:
            from xqg_vdb.integrations.ray import on_cluster

            encoder = stack.enter_context(on_cluster(ray, encoder, encoder.again, workers=model.threads))
        progress = stack.enter_context(bars(unit=" passages"))
        report = run(
            corpus, collection, encoder=encoder, store=store, queries=inputs.queries, recipe=_spelt(recipe),
            questions=searches.questions, options=options, rejects=inputs.rejects(), progress=progress,
        ).report  # fmt: skip
    show(report, _load_lines(report, [*place.typed(), *model.typed()]))


def _spelt(recipe: Recipe) -> Recipe:
    """The recipe with its languages as collections spell them."""
    from xqg_vdb.texts.languages import normalize

    langs = tuple(sorted({normalize(code) for code in recipe.query_langs or ()}))
    return replace(recipe, query_langs=langs or None)


def _counts(counts: Mapping[str, int], nothing: str = "") -> str:
    """Such as `3 de, 4 sw`; what is 0 is not told."""
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or nothing


def _load_lines(report: LoadReport, typed: list[str]) -> Iterator[str]:
    if report.unchanged:
        yield f"{report.collection}: {report.passages} passages; nothing changed, so nothing was written (--force)"
    else:
        folded = _counts(report.queries, "none")
        of = f", chunks of {report.documents} documents" if report.documents else ""
        yield f"{report.collection}: {report.passages} passages{of}; queries folded in: {folded}"
    if report.reused:
        yield f"not encoded again: {report.reused} passages"
    if skipped := _counts({name: report.counts[name] for name in ("duplicates", "blank", "rejected")}):
        yield f"left out: {skipped}"
    if report.rejected_lines:
        yield f"left out of the queries and questions: {report.rejected_lines} rejected"
    if report.unused_queries:
        yield f"{report.unused_queries} query records belong to no passage of this corpus"
    if report.replaced:
        say(f"replaced: {report.replaced}")
    for note in report.notes:
        say(f"note: {note}")
    say("next: " + shlex.join(["xqg-vdb", "search", report.collection, "your question", *typed]))


@command(example="xqg-vdb add new.jsonl wiki --queries new-queries.jsonl")
@corpus_argument
@collection_argument
@model_options
@input_options
@click.option(
    "--default-lang", metavar="LANG", shell_complete=language_codes,
    help="Language of passages that name none  [default: detected]",
)  # fmt: skip
@place_options
def add(corpus: Path, collection: str, model: Model, inputs: Inputs, default_lang: str | None, place: Place) -> None:
    """Add the passages of CORPUS to COLLECTION, or replace those of their ids; searches continue meanwhile.

    They get the collection's own recipe, language means and options. What is there already is neither encoded nor
    written, and without --queries keeps those that it has. Stopped at any point, the same command continues.
    """
    from xqg_vdb.index.update import add as run

    with (
        place.collection(collection) as held,
        model.open(made=held.card, collection=collection) as encoder,
        bars(unit=" passages") as progress,
    ):
        report = run(
            corpus, collection, encoder=encoder, store=held.store, queries=inputs.queries or None,
            rejects=inputs.rejects(), default_lang=default_lang, progress=progress,
        )  # fmt: skip
        held.store.indexed(collection)
    show(report, _update_lines(report))


@command(example="xqg-vdb delete wiki p12 p13\nxqg-vdb delete wiki --ids gone.txt")
@collection_argument
@click.argument("ids", nargs=-1)
@click.option("--ids", "file", type=PATH, help="A file of ids, one a line.")
@place_options
def delete(collection: str, ids: tuple[str, ...], file: Path | None, place: Place) -> None:
    """Delete passages of COLLECTION by their IDS; searches continue. Those that are not there are no error."""
    from xqg_vdb.index.update import delete as run
    from xqg_vdb.texts.records import line_of, text_lines

    if bool(ids) == (file is not None):
        raise click.UsageError("give ids, or a file of them with --ids")
    if file is not None:
        ids = tuple(text for _, text in text_lines(file, line_of))
    with closing(place.open()) as store:
        report = run(ids, collection, store=store)
    show(report, _update_lines(report))


def _update_lines(report: UpdateReport) -> Iterator[str]:
    done = {"added": report.added, "replaced": report.replaced, "deleted": report.deleted,
            "there already": report.unchanged, "not there": len(report.missing)}  # fmt: skip
    yield f"{report.collection}: {_counts(done, 'nothing to do')}; {report.passages} passages"
    if report.not_folded:
        say(f"note: queries in {', '.join(report.not_folded)} are left out, as this collection's recipe has none")
    if report.unused_queries:
        say(f"{report.unused_queries} query records belong to no passage of this corpus")
    if report.cut:
        from xqg_vdb.index.encode import cut_in_words

        say(f"note: {' '.join(cut_in_words(report.cut))}")


@command(
    example="xqg-vdb augment docs --queries queries.jsonl --encoder my-model/ \\\n    --url http://localhost:6333\n"
    "xqg-vdb augment docs --undo --url http://localhost:6333\nxqg-vdb augment wiki --new --url http://localhost:6333"
)
@collection_argument
@model_options
@input_options
@click.option("--undo", is_flag=True, help="Delete the copy; an alias points where it pointed before.")
@click.option("--new", is_flag=True, help="Of a collection of `load`: take in what LangChain and others wrote into it.")
@takes("wishes", "xqg_vdb.index.augment.Wishes")
@recipe_options
@place_options
def augment(
    collection: str, model: Model, inputs: Inputs, undo: bool, new: bool, wishes: Wishes, recipe: Recipe, place: Place
) -> None:
    """Fold generated queries into COLLECTION of a Qdrant server, whoever made it (LangChain, LlamaIndex, Haystack ...).

    Its passages are not encoded again, except a sample that shows whether the encoder is the one that made the
    vectors. A copy is made, and its name appears when it is complete. Stopped at any point, the same
    command continues.

    --new adds the points that stock stores wrote into a collection of `xqg-vdb load` as `xqg-vdb add` would, and
    removes theirs.
    """
    from xqg_vdb.index.augment import Wishes as Made
    from xqg_vdb.index.augment import augment as run
    from xqg_vdb.index.augment import undo as take_back
    from xqg_vdb.index.update import take_in
    from xqg_vdb.store.server.store import ServerStore

    if undo == (new or bool(inputs.queries)):
        raise click.UsageError("give --queries, --new, or --undo")
    if new and (wishes, recipe) != (Made(), Recipe()):
        raise click.UsageError("--new takes no recipe and no options of a copy: the collection's card has them")
    with closing(place.open()) as store:
        if not isinstance(store, ServerStore):
            raise DataError("augment is for collections on a Qdrant server: give its address with --url.")
        if undo:
            said = take_back(collection, store=store, to=wishes.to)
            show({"undone": said}, [said])
            return
        store.foreign(collection)  # a wrong name says so before a model is exported
        if new:
            card = store.card(collection)
            with model.open(made=card, collection=collection) as encoder, bars(unit=" passages") as progress:
                added, left = take_in(
                    collection, store=store, encoder=encoder, queries=inputs.queries or None,
                    rejects=inputs.rejects(), progress=progress,
                )  # fmt: skip
            show({**asdict(added), "left": left}, _update_lines(added))
            for reason in left[:5]:
                say(f"left as it is: point {reason}")
            return
        with model.open() as encoder, bars(unit=" points") as progress:
            report = run(
                collection, store=store, encoder=encoder, queries=inputs.queries, recipe=_spelt(recipe),
                wishes=wishes, rejects=inputs.rejects(), progress=progress,
            )  # fmt: skip
    show(report, _augment_lines(report))


def _augment_lines(report: AugmentReport) -> Iterator[str]:
    counts = report.counts
    folded = _counts(report.queries, "none")
    yield f"{report.collection}: {counts['points']} points ({report.layout}); queries folded in: {folded}"
    yield f"the encoder made these vectors: median cosine {report.cosine:.4f} on a sample"
    yield f"fused vector: {report.vector or 'the unnamed one'}; the originals: collection {report.source}"
    missing = {"without a text": counts["without_text"], "without the vector": counts["without_vector"],
               "without queries": counts["without_queries"]}  # fmt: skip
    if said := _counts(missing):
        yield f"points: {said}"
    if counts["unused_queries"]:
        yield f"{counts['unused_queries']} query records belong to no point of this collection"


@command(example="xqg-vdb migrate wiki --path xqg-data --to-url http://localhost:6333 \\\n    --quantization scalar")
@collection_argument
@click.option("--to-path", metavar="DIR", type=click.Path(file_okay=False), help="Copy into this embedded store.")
@click.option("--to-url", metavar="URL", help="Copy to this server (key from XQG_VDB_TO_API_KEY, XQG_VDB_API_KEY).")
@click.option("--to-name", metavar="NAME", help="Under this name  [default: the same]")
@layout_options
@place_options
def migrate(
    collection: str, to_path: str | None, to_url: str | None, to_name: str | None, layout: CollectionOptions,
    place: Place,
) -> None:  # fmt: skip
    """Copy COLLECTION into another store without encoding anything again; stopped, the same command continues.

    Without --to-path and --to-url the copy is a new version in the same store: that is how a collection gets other
    options, such as --quantization. It keeps those that are not given.
    """
    if to_path and to_url:
        raise click.UsageError("give --to-path or --to-url, not both")
    from xqg_vdb.index.migrate import migrate as copy

    elsewhere = to_path is not None or to_url is not None
    key = os.environ.get("XQG_VDB_TO_API_KEY") if elsewhere else None
    there = replace(place, path=to_path, url=to_url) if elsewhere else place
    with closing(place.open()) as source, bars(unit=" passages") as progress, ExitStack() as stack:
        if not elsewhere:
            kept = source.card(collection).storage
            try:
                layout = replace(layout, **{**kept, **layout.layout()})
            except (TypeError, ValueError):
                raise CorruptError(f"The card of {collection} has odd options ({kept!r:.80}); load it again.") from None
        target = stack.enter_context(closing(there.open(options=layout, api_key=key)))
        card = copy(source, collection, target, to_name=to_name, progress=progress)
    name = to_name or collection
    show(
        {"collection": name, "passages": card.count, "version": card.version, "digest": card.digest},
        [f"{name}: {card.count} passages, searches see {card.version}"],
    )


@command(example="xqg-vdb verify wiki --build vectors/")
@collection_argument
@click.option("--build", type=PATH, help="Compare sampled vectors with what this build makes.")
@click.option("--sample", type=click.IntRange(min=1), default=1000, show_default=True, help="How many of them.")
@place_options
def verify(collection: str, build: Path | None, sample: int, place: Place) -> None:
    """Read every point of COLLECTION, compare counts, texts and vectors with its card; exit code 8 if they differ."""
    from xqg_vdb.index.verify import verify as check

    with closing(place.open()) as store, bars(unit=" points") as progress:
        verification = check(store, collection, build=build, sample=sample, progress=progress)
        with suppress(XqgError):  # of a collection that others made, nothing is said
            if grey := store.admin.state(collection.partition("@")[0]).details.get("grey"):
                say(f"The index of {collection} is grey: {grey}.")
    show(verification, _verify_lines(collection, verification))
    if verification.problems:
        raise CorruptError(f"{collection} is damaged: {'; '.join(verification.problems)}. Load it again.")


def _verify_lines(collection: str, found: Verification) -> Iterator[str]:
    yield f"{collection} {found.version}: {found.points} points ({_counts(found.languages, 'none')})"
    for library, n in found.others.items():
        yield f"{n} of them were not loaded by xqg-vdb, but written by {library}; searches find them, too"
    if found.lowest_cosine is not None:
        yield f"{found.compared} vectors compared with the build, lowest cosine {found.lowest_cosine:.6f}"
    if found.since_load:
        yield f"since the load: {found.since_load}"
    if not found.problems:
        yield "all is well"
