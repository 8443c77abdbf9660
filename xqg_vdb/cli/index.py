"""`xqg-vdb load`, `augment`, `migrate` and `verify`."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import (
    BadLines,
    Model,
    Place,
    command,
    json_option,
    layout_options,
    load_options,
    model_options,
    place_options,
    print_json,
    queries_option,
    recipe_options,
    rejects_options,
    say,
    takes,
)
from xqg_vdb.errors import DataError
from xqg_vdb.types import Hybrid, Recipe, UpdateReport, option

if TYPE_CHECKING:
    from xqg_vdb.index.augment import AugmentReport, Wishes
    from xqg_vdb.index.load import LoadOptions, LoadReport
    from xqg_vdb.store.layout import CollectionOptions
    from xqg_vdb.store.server.store import ServerStore


@dataclass(frozen=True)
class Asked:
    """How the questions of a collection's users are calibrated."""

    questions: Path | None = option(None, "Your users' questions, to calibrate on.")
    calibration: float | None = option(None, "λ of this collection's searches  [default: the encoder's]", least=0)
    no_calibration: bool = option(False, "Searches of this collection shall not calibrate.")

    def __post_init__(self) -> None:
        if self.calibration is not None and not isfinite(self.calibration):
            raise ValueError(f"--calibration must be a finite number, got {self.calibration}")
        if self.calibration is not None and self.no_calibration:
            raise ValueError("give --calibration or --no-calibration, not both")

    @property
    def strength(self) -> float | None:
        """The λ, None for the encoder's."""
        return 0.0 if self.no_calibration else self.calibration


@dataclass(frozen=True)
class Words:
    """Whether a collection has vectors of the words, and how they are made."""

    hybrid: bool = option(False, "Also vectors of the words (BM25), for search --hybrid.")
    hybrid_lang: str | None = option(
        None, "Whose stemmer and stop words, or none  [default: the passages']", metavar="LANG"
    )

    def __post_init__(self) -> None:
        if self.hybrid_lang is not None and not self.hybrid:
            raise ValueError("--hybrid-lang says how: give --hybrid with it")


@command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("collection")
@model_options
@queries_option
@recipe_options
@takes("asked", "xqg_vdb.cli.index.Asked")
@load_options
@takes("words", "xqg_vdb.cli.index.Words")
@rejects_options
@layout_options
@place_options
@json_option
def load(
    corpus: Path,
    collection: str,
    model: Model,
    query_files: tuple[Path, ...],
    recipe: Recipe,
    asked: Asked,
    options: LoadOptions,
    words: Words,
    bad: BadLines,
    layout: CollectionOptions,
    place: Place,
    as_json: bool,
) -> None:
    """Load CORPUS into COLLECTION, its generated queries folded into the passages' vectors.

    CORPUS is JSON, TSV, CSV, Parquet or a folder (docs/inputs.md). Stopped at any point, the same command goes on; run
    again on the same corpus, it writes nothing. Searches see the old version until the new one is complete.

    \b
    Example:
      xqg-vdb load corpus.jsonl wiki --queries queries.jsonl --build vectors/
    """  # noqa: D301 - \b is click's
    from xqg_vdb.index.load import check_inputs
    from xqg_vdb.index.load import load as run
    from xqg_vdb.progress import bars

    if words.hybrid:
        options = replace(options, hybrid=Hybrid(words.hybrid_lang))
    files = check_inputs(corpus, collection, queries=query_files, questions=asked.questions)
    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open(options=layout)))
        encoder = stack.enter_context(model.open(calibration=asked.strength))
        progress = stack.enter_context(bars(unit=" passages"))
        report = run(
            corpus, collection, encoder=encoder, store=store, queries=files, recipe=spelt(recipe),
            questions=asked.questions, options=options, rejects=bad.rejects(), progress=progress,
        ).report  # fmt: skip
    if as_json:
        print_json(asdict(report))
        return
    _show_load(report)
    if report.replaced:
        say(f"replaced: {report.replaced}")
    for note in report.notes:
        say(f"note: {note}")
    say("next: " + shlex.join(["xqg-vdb", "search", collection, "your question", *place.typed(), *model.typed()]))


def spelt(recipe: Recipe) -> Recipe:
    """The recipe with its languages as collections spell them."""
    from xqg_vdb.texts.languages import normalize

    langs = tuple(sorted({normalize(code) for code in recipe.query_langs or ()}))
    return replace(recipe, query_langs=langs or None)


def _show_load(report: LoadReport) -> None:
    if report.unchanged:
        click.echo(f"{report.collection}: {report.passages} passages; nothing changed, nothing written (or --force)")
    else:
        folded = ", ".join(f"{n} {lang}" for lang, n in report.queries.items()) or "none"
        click.echo(f"{report.collection}: {report.passages} passages; queries folded in: {folded}")
    if report.reused:
        click.echo(f"not encoded again: {report.reused} passages")
    skipped = {name: report.counts[name] for name in ("duplicates", "blank", "rejected") if report.counts[name]}
    if skipped:
        click.echo("left out: " + ", ".join(f"{n} {name}" for name, n in skipped.items()))
    if report.rejected_lines:
        click.echo(f"left out of the queries and questions: {report.rejected_lines} rejected")
    if report.unused_queries:
        click.echo(f"{report.unused_queries} query records belong to no passage of this corpus")


# `xqg-vdb add` and `xqg-vdb delete`.


@command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("collection")
@model_options
@queries_option
@click.option("--default-lang", metavar="LANG", help="Language of passages that name none  [default: detected]")
@rejects_options
@place_options
@json_option
def add(
    corpus: Path,
    collection: str,
    model: Model,
    query_files: tuple[Path, ...],
    default_lang: str | None,
    bad: BadLines,
    place: Place,
    as_json: bool,
) -> None:
    """Add the passages of CORPUS to COLLECTION, or replace those of their ids; searches go on meanwhile.

    They get the collection's own recipe, language means and options. What is there already is neither encoded nor
    written, and without --queries keeps those that it has. Stopped at any point, the same command goes on.

    \b
    Example:
      xqg-vdb add new.jsonl wiki --queries new-queries.jsonl
    """  # noqa: D301 - \b is click's
    from xqg_vdb.index.update import add as run
    from xqg_vdb.progress import bars

    with ExitStack() as stack:
        held = stack.enter_context(place.collection(collection))
        encoder = stack.enter_context(model.open_for(held))
        progress = stack.enter_context(bars(unit=" passages"))
        report = run(
            corpus, collection, encoder=encoder, store=held.store, queries=query_files or None,
            rejects=bad.rejects(), default_lang=default_lang, progress=progress,
        )  # fmt: skip
    _show_update(report, as_json=as_json)


@command()
@click.argument("collection")
@click.argument("ids", nargs=-1)
@click.option("--ids", "file", type=click.Path(path_type=Path), help="A file of ids, one a line.")
@place_options
@json_option
def delete(collection: str, ids: tuple[str, ...], file: Path | None, place: Place, as_json: bool) -> None:
    """Delete passages of COLLECTION by their IDS; searches go on meanwhile. Those that are not there are no error.

    \b
    Example:
      xqg-vdb delete wiki p12 p13
      xqg-vdb delete wiki --ids gone.txt
    """  # noqa: D301 - \b is click's
    from xqg_vdb.files import disk_errors
    from xqg_vdb.index.update import delete as run

    if bool(ids) == (file is not None):
        raise click.UsageError("give ids, or a file of them with --ids")
    if file is not None:
        with disk_errors(file):
            ids = tuple(line for line in file.read_text("utf-8").splitlines() if line)
    with closing(place.open()) as store:
        report = run(ids, collection, store=store)
    _show_update(report, as_json=as_json)


def _show_update(report: UpdateReport, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    done = {"added": report.added, "replaced": report.replaced, "deleted": report.deleted,
            "there already": report.unchanged, "not there": len(report.missing)}  # fmt: skip
    said = ", ".join(f"{n} {what}" for what, n in done.items() if n) or "nothing to do"
    click.echo(f"{report.collection}: {said}; {report.passages} passages")
    if report.not_folded:
        say(f"note: queries in {', '.join(report.not_folded)} are left out, as this collection's recipe has none")
    if report.unused_queries:
        say(f"{report.unused_queries} query records belong to no passage of this corpus")


# `xqg-vdb augment`.


@command()
@click.argument("collection")
@model_options
@queries_option
@click.option("--undo", is_flag=True, help="Delete the copy; an alias points where it pointed before.")
@takes("wishes", "xqg_vdb.index.augment.Wishes")
@recipe_options
@rejects_options
@place_options
@json_option
def augment(
    collection: str,
    model: Model,
    query_files: tuple[Path, ...],
    undo: bool,
    wishes: Wishes,
    recipe: Recipe,
    bad: BadLines,
    place: Place,
    as_json: bool,
) -> None:
    """Fold generated queries into COLLECTION of a Qdrant server, whoever made it (LangChain, LlamaIndex, Haystack ...).

    Its passages are not encoded again, except a sample that shows whether the encoder is the one that made the
    vectors. A copy is made, and its name appears when it is complete. Stopped at any point, the same
    command goes on.

    \b
    Example:
      xqg-vdb augment docs --queries queries.jsonl --encoder my-model/ \\
          --url http://localhost:6333
      xqg-vdb augment docs --undo --url http://localhost:6333
    """  # noqa: D301 - \b is click's
    from xqg_vdb.index.augment import augment as run
    from xqg_vdb.index.augment import undo as take_back
    from xqg_vdb.progress import bars

    if undo == bool(query_files):
        raise click.UsageError("give --queries, or --undo")
    with ExitStack() as stack:
        store = stack.enter_context(closing(_server(place)))
        if undo:
            said = take_back(collection, store=store, to=wishes.to)
            print_json({"undone": said}) if as_json else click.echo(said)
            return
        store.foreign(collection)  # a wrong name says so before a model is exported
        encoder = stack.enter_context(model.open())
        report = run(
            collection, store=store, encoder=encoder, queries=query_files, recipe=spelt(recipe),
            wishes=wishes, rejects=bad.rejects(), progress=stack.enter_context(bars(unit=" points")),
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        _show_augment(report)


def _server(place: Place) -> ServerStore:
    from xqg_vdb.store.server.store import ServerStore

    store = place.open()
    if not isinstance(store, ServerStore):
        store.close()
        raise DataError("augment is for collections on a Qdrant server: give its address with --url.")
    return store


def _show_augment(report: AugmentReport) -> None:
    counts = report.counts
    folded = ", ".join(f"{n} {lang}" for lang, n in report.queries.items()) or "none"
    click.echo(f"{report.collection}: {counts.points} points ({report.layout}); queries folded in: {folded}")
    click.echo(f"the encoder made these vectors: median cosine {report.cosine:.4f} on a sample")
    click.echo(f"fused vector: {report.vector or 'the unnamed one'}; the originals: collection {report.source}")
    missing = {
        "without a text": counts.without_text,
        "without the vector": counts.without_vector,
        "without queries": counts.without_queries,
    }
    if any(missing.values()):
        click.echo("points: " + ", ".join(f"{n} {what}" for what, n in missing.items() if n))
    if counts.unused_queries:
        click.echo(f"{counts.unused_queries} query records belong to no point of this collection")


# `xqg-vdb migrate`.


@command()
@click.argument("collection")
@click.option("--to-path", metavar="DIR", type=click.Path(file_okay=False), help="Copy into this embedded store.")
@click.option("--to-url", metavar="URL", help="Copy to this server (key from XQG_VDB_TO_API_KEY, XQG_VDB_API_KEY).")
@click.option("--to-name", metavar="NAME", help="Under this name  [default: the same]")
@layout_options
@place_options
@json_option
def migrate(
    collection: str,
    to_path: str | None,
    to_url: str | None,
    to_name: str | None,
    layout: CollectionOptions,
    place: Place,
    as_json: bool,
) -> None:
    """Copy COLLECTION into another store without encoding anything again; stopped, the same command goes on.

    Without --to-path and --to-url the copy is a new version in the same store: that is how a collection gets other
    options, such as --quantization.

    \b
    Example:
      xqg-vdb migrate wiki --path xqg-data --to-url http://localhost:6333 \\
          --quantization scalar
    """  # noqa: D301 - \b is click's
    if to_path and to_url:
        raise click.UsageError("give --to-path or --to-url, not both")
    from xqg_vdb.index.migrate import migrate as copy
    from xqg_vdb.progress import bars

    elsewhere = to_path is not None or to_url is not None
    key = os.environ.get("XQG_VDB_TO_API_KEY") if elsewhere else None
    with ExitStack() as stack:
        source = stack.enter_context(closing(place.open()))
        there = replace(place, path=to_path, url=to_url) if elsewhere else place
        target = stack.enter_context(closing(there.open(options=layout, api_key=key)))
        progress = stack.enter_context(bars(unit=" passages"))
        card = copy(source, collection, target, to_name=to_name, progress=progress)
    name = to_name or collection
    if as_json:
        print_json({"collection": name, "passages": card.count, "version": card.version, "digest": card.digest})
    else:
        click.echo(f"{name}: {card.count} passages, searches see {card.version}")


# `xqg-vdb verify`.


@command()
@click.argument("collection")
@click.option("--build", type=click.Path(path_type=Path), help="Compare sampled vectors with what this build makes.")
@click.option("--sample", type=click.IntRange(min=1), default=1000, show_default=True, help="How many of them.")
@place_options
@json_option
def verify(collection: str, build: Path | None, sample: int, place: Place, as_json: bool) -> None:
    """Read every point of COLLECTION and compare counts, texts and vectors with its card; exit code 8 when they differ.

    \b
    Example:
      xqg-vdb verify wiki --build vectors/
    """  # noqa: D301 - \b is click's
    from xqg_vdb.errors import CorruptError, XqgError
    from xqg_vdb.index.verify import verify as check
    from xqg_vdb.progress import bars

    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open()))
        progress = stack.enter_context(bars(unit=" points"))
        found = check(store, collection, build=build, sample=sample, progress=progress)
        with suppress(XqgError):  # of a collection that others made, nothing is said
            if grey := store.admin.state(collection.partition("@")[0]).details.get("grey"):
                say(f"The index of {collection} is grey: {grey}.")
    if as_json:
        print_json(asdict(found))
    else:
        by_language = ", ".join(f"{n} {lang}" for lang, n in found.languages.items()) or "none"
        click.echo(f"{collection} {found.version}: {found.points} points ({by_language})")
        for library, n in found.others.items():
            click.echo(f"{n} of them were not loaded by xqg-vdb, but written by {library}; searches find them, too")
        if found.lowest_cosine is not None:
            click.echo(f"{found.compared} vectors compared with the build, lowest cosine {found.lowest_cosine:.6f}")
        if found.since_load:
            click.echo(f"since the load: {found.since_load}")
    if found.problems:
        raise CorruptError(f"{collection} is damaged: {'; '.join(found.problems)}. Load it again.")
    if not as_json:
        click.echo("all is well")
