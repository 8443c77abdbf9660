"""`xqg-vdb bench`."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xqg_vdb.cli.options import chosen_store, encoder_options, json_option, print_json, say, store_options

if TYPE_CHECKING:
    from xqg_vdb.bench.suite import Suite
    from xqg_vdb.progress import Progress


@click.command()
@click.argument("what", metavar="DATASET|SUITE.toml")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of reports, runs and kept vectors.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the benchmarks  [default: XQG_DATA_DIR]")
@click.option(
    "--download", is_flag=True, help="Fetch what the data folder lacks from the publishers, checksums checked."
)
@click.option("--vectors", type=click.Path(path_type=Path), help="Where encoded texts are kept  [default: OUT/vectors]")
@encoder_options
@click.option("--queries", type=click.Path(path_type=Path), help="Generated queries of DATASET's passages: adds xQG.")
@click.option(
    "--search",
    type=click.Choice(["exact", "graph", "memory"]),
    help="Exact or graph search of a real collection, or ranking in memory  [default: exact, or the suite's]",
)
@store_options
@json_option
def bench(
    what: str,
    out: Path,
    data_dir: Path | None,
    download: bool,
    vectors: Path | None,
    model: str,
    threads: int | None,
    queries: Path | None,
    search: Literal["exact", "graph", "memory"] | None,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Measure systems on benchmarks: recall per language, with intervals and paired tests.

    DATASET runs plain against calibrated questions, and with --queries also xQG and its controls; a SUITE.toml says
    itself what it runs. Writes report.json, report.md, report.html and TREC runs to --out. What an earlier run finished
    there is not computed again; stop it with Ctrl-C and start it again at any time.

    \b
    Example:
      xqg-vdb bench afriqa --data-dir data/ --out reports/afriqa
    """  # noqa: D301 - \b is click's
    from xqg_vdb.bench.harness import run_suite
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.report import render_terminal, write_report

    suite = _suite(what, model=model, queries=queries, search=search)
    with ExitStack() as stack:
        store = stack.enter_context(closing(chosen_store(path, url))) if path or url else None

        def open_encoder(name: str) -> Encoder:
            return stack.enter_context(Encoder(ensure_encoder(name, report=say), threads=threads))

        progress = stack.enter_context(bars(unit=""))
        if download:
            _download(suite, data_dir, progress=progress)
        report = run_suite(
            suite, data_dir=data_dir, out=out, open_encoder=open_encoder, vectors=vectors, store=store,
            threads=threads or len(os.sched_getaffinity(0)), command=_command(), progress=progress,
        )  # fmt: skip
    written = write_report(report, out)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(render_terminal(report))
    say("reports: " + ", ".join(map(str, written)))


def _suite(what: str, *, model: str, queries: Path | None, search: Any) -> Suite:
    """The suite file, or the preset of a dataset."""
    from xqg_vdb.bench.presets import preset
    from xqg_vdb.bench.suite import read_suite

    if not what.endswith(".toml"):
        return preset(what, encoder=model, queries=queries, search=search or "exact")
    if queries is not None:
        raise click.UsageError("a suite names its own query files; --queries goes with a DATASET")
    suite = read_suite(what)
    return suite if search is None else replace(suite, search=search)


def _download(suite: Suite, data_dir: Path | None, *, progress: Progress) -> None:
    from xqg_vdb.datasets import data_folder
    from xqg_vdb.datasets.download import download

    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    for dataset in suite.datasets:
        download(dataset, data_folder(data_dir), progress=progress)


def _command() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["xqg-vdb", *sys.argv[1:]])
