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

from xqg_vdb.cli.methods import expand_options, rerank_options
from xqg_vdb.cli.options import chosen_store, encoder_options, json_option, print_json, say, store_options

if TYPE_CHECKING:
    from xqg_vdb.bench.suite import Suite
    from xqg_vdb.bench.systems import System
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
@click.option("--questions", type=click.IntRange(min=1), help="Only the first so many of each question language.")
@expand_options
@rerank_options
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
    questions: int | None,
    expand: str | None,
    expand_lang: str | None,
    expand_model: str,
    rerank: str | None,
    rerank_depth: int,
    rerank_weight: float,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Measure systems on benchmarks: recall per language, with intervals and paired tests.

    DATASET runs plain against calibrated questions, and with --queries also xQG and its controls; a SUITE.toml says
    itself what it runs. Writes report.json, report.md, report.html and TREC runs to --out. What an earlier run finished
    there is not computed again; stop it with Ctrl-C and start it again at any time.

    --rerank and --expand add systems on top of calibrated questions (and xQG). They cost seconds a question, so limit
    --questions.

    \b
    Example:
      xqg-vdb bench afriqa --data-dir data/ --out reports/afriqa
      xqg-vdb bench afriqa --out reports/upr --rerank upr:starter:generator --rerank-depth 10 --questions 50
    """  # noqa: D301 - \b is click's
    from xqg_vdb.bench.harness import run_suite
    from xqg_vdb.bench.systems import System
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.report import render_terminal, write_report

    methods = System(
        "from the command line", rerank=rerank, rerank_depth=rerank_depth, rerank_weight=rerank_weight,
        expand=expand, expand_lang=expand_lang, expand_model=expand_model,
    )  # fmt: skip
    suite = _suite(what, model=model, queries=queries, search=search, questions=questions, methods=methods)
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


def _suite(
    what: str, *, model: str, queries: Path | None, search: Any, questions: int | None, methods: System
) -> Suite:
    """The suite file, or the preset of a dataset, with what the command line says of either."""
    from xqg_vdb.bench.presets import preset, with_methods
    from xqg_vdb.bench.suite import read_suite
    from xqg_vdb.bench.systems import System, check_system

    if not what.endswith(".toml"):
        check_system(methods)
        suite = with_methods(preset(what, encoder=model, queries=queries), methods)
    elif queries is not None:
        raise click.UsageError("a suite names its own query files; --queries goes with a DATASET")
    elif methods != System(methods.name):
        raise click.UsageError("a suite names its own systems; --rerank and --expand go with a DATASET")
    else:
        suite = read_suite(what)
    return replace(suite, search=search or suite.search, questions=questions or suite.questions)


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
