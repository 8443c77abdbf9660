"""`xqg-vdb load`."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, closing
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xqg_vdb.cli.layout_options import chosen_layout, layout_options
from xqg_vdb.cli.options import chosen_store, encoder_options, json_option, print_json, remembered, say, store_options
from xqg_vdb.cli.recipe_options import chosen_recipe, recipe_options
from xqg_vdb.cli.vector_options import chosen_hybrid, vector_options

if TYPE_CHECKING:
    from xqg_vdb.loading import LoadReport


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("collection")
@encoder_options
@click.option(
    "--queries", "query_files", multiple=True, type=click.Path(path_type=Path), help="Generated queries; repeatable."
)
@recipe_options
@click.option("--questions", type=click.Path(path_type=Path), help="Your users' questions, to calibrate on.")
@click.option(
    "--calibration", type=click.FloatRange(min=0), help="λ of this collection's searches  [default: the encoder's]"
)
@click.option("--no-calibration", is_flag=True, help="Searches of this collection shall not calibrate.")
@click.option(
    "--passage-calibration",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="λ of the passages, for corpora of several languages: 0.5, or 1 where they speak of the same things.",
)
@click.option(
    "--build", type=click.Path(path_type=Path), help="Keep the vectors here: another --alpha then encodes nothing."
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A --build folder of an earlier load: encode only what changed since; repeatable.",
)
@vector_options
@click.option("--distance", type=click.Choice(["cosine", "dot"]), help="Default: what suits the encoder.")
@click.option("--default-lang", help="Language of passages that name none  [default: detected]")
@click.option("--max-rejects", type=click.IntRange(min=0), default=0, show_default=True, help="Bad lines to bear.")
@click.option("--rejects", "rejects_file", type=click.Path(path_type=Path), help="Write bad lines to this file.")
@layout_options
@store_options
@json_option
def load(
    corpus: Path,
    collection: str,
    model: str,
    threads: int | None,
    query_files: tuple[Path, ...],
    questions: Path | None,
    calibration: float | None,
    no_calibration: bool,
    passage_calibration: float,
    build: Path | None,
    reuse: tuple[Path, ...],
    distance: Literal["cosine", "dot"] | None,
    default_lang: str | None,
    max_rejects: int,
    rejects_file: Path | None,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Load CORPUS into COLLECTION, its generated queries folded into the passages' vectors.

    CORPUS is .jsonl, .jsonl.gz, .tsv, .parquet or a BEIR folder. Stopped at any point, the same command goes on; run
    again on the same corpus, it changes nothing. Searches see the old version until the new one is complete.

    \b
    Example:
      xqg-vdb load corpus.jsonl wiki --queries queries.jsonl --build vectors/
    """  # noqa: D301 - \b is click's
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.load_inputs import check_inputs
    from xqg_vdb.loading import load_with_report
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.records import Rejects

    recipe = chosen_recipe()
    for option, value in (("--calibration", calibration), ("--passage-calibration", passage_calibration)):
        if value is not None and not isfinite(value):
            raise click.UsageError(f"{option} must be a finite number, got {value}")
    if calibration is not None and no_calibration:
        raise click.UsageError("give --calibration or --no-calibration, not both")
    rejects = Rejects(max_rejects, rejects_file)
    hybrid = chosen_hybrid()
    files = check_inputs(corpus, collection, queries=query_files, questions=questions)
    with ExitStack() as stack:
        store = stack.enter_context(closing(chosen_store(path, url, options=chosen_layout())))
        strength = 0.0 if no_calibration else calibration
        encoder = stack.enter_context(Encoder(ensure_encoder(model, report=say), threads=threads, calibration=strength))
        progress = stack.enter_context(bars(unit=" passages"))
        report = load_with_report(
            corpus, collection, encoder=encoder, store=store, queries=files, recipe=recipe,
            passage_calibration=passage_calibration, questions=questions,
            build=build, reuse=reuse, distance=distance, keep_plain=bool(remembered("keep_plain")), hybrid=hybrid,
            default_lang=default_lang, rejects=rejects, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
        return
    _show(report)
    for note in report.notes:
        say(f"note: {note}")
    where = ["--path", path] if path else ["--url", url] if url else []
    by = [] if model == "starter" else ["--encoder", model]
    say("next: " + shlex.join(["xqg-vdb", "search", collection, "your question", *where, *by]))


def _show(report: LoadReport) -> None:
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
