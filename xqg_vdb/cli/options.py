"""Options that several commands share, and small printing helpers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker
    from xqg_vdb.store.layout import CollectionOptions
    from xqg_vdb.store.operations import Store
    from xqg_vdb.train.encoder import EncoderSettings
    from xqg_vdb.train.generator import GeneratorSettings
    from xqg_vdb.train.pairs import TrainingPair
    from xqg_vdb.types import Hybrid, Recipe


F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = 60
_KEY = "xqg_vdb.options."


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta[f"{_KEY}{parameter.name}"] = value


remembered_option = partial(click.option, expose_value=False, callback=_remember)
"""An option that several commands share: `remembered` reads it, so that commands need not hand it on."""


def remembered(name: str) -> Any:
    """What the command that runs was given for a `remembered_option`; None when it has no such option."""
    return click.get_current_context().meta.get(_KEY + name)


def store_options(command: F) -> F:
    """--path and --url: where the data lives; --grpc and --timeout: how to speak to a server."""
    for option in (
        remembered_option(
            "--timeout",
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help=f"For one request to a server  [default: {_TIMEOUT}]",
        ),
        remembered_option("--grpc", is_flag=True, help="Speak gRPC to the server (port 6334, or XQG_VDB_GRPC_PORT)."),
        click.option("--url", metavar="URL", help="Qdrant server (XQG_VDB_URL; API key from XQG_VDB_API_KEY)."),
        click.option(
            "--path",
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="Embedded store  [default: XQG_VDB_PATH or ./xqg-data]",
        ),
    ):
        command = option(command)
    return command


def encoder_options(command: F) -> F:
    """--encoder and --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]"),
        click.option(
            "--encoder",
            "model",
            metavar="MODEL",
            default="starter",
            show_default=True,
            help="Folder, hub id or starter.",
        ),
    ):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """--json: machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def chosen_store(
    path: str | None, url: str | None, *, options: CollectionOptions | None = None, api_key: str | None = None
) -> Store:
    """The store of --path or --url, spoken to as --grpc and --timeout say."""
    if path and url:
        raise click.UsageError("give --path or --url, not both")
    from xqg_vdb.store import open_store

    timeout, grpc = remembered("timeout") or _TIMEOUT, bool(remembered("grpc"))
    return open_store(path, url=url, api_key=api_key, timeout=timeout, grpc=grpc, options=options)


def say(line: str) -> None:
    """One line of progress, to stderr."""
    click.echo(line, err=True)


def print_json(value: object) -> None:
    """One JSON document to stdout."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:  # a path that is not Unicode
        text = json.dumps(value, indent=2)
    click.echo(text)


# The options of `load` and `migrate` that say how a collection is laid out and filled.

_COUNT = click.IntRange(min=1)


def layout_options(command: F) -> F:
    """Versions to keep, quantisation, graph, disk, and what only a server has; read by `chosen_layout`."""
    for option in reversed(_LAYOUT):
        command = option(command)
    return command


def chosen_layout() -> CollectionOptions:
    """The options of the command that runs."""
    from xqg_vdb.store.layout import CollectionOptions

    given = {one.name: remembered(one.name) for one in fields(CollectionOptions)}
    return CollectionOptions(**{name: value for name, value in given.items() if value is not None})


_LAYOUT = [
    remembered_option(
        "--keep", metavar="N", type=_COUNT, help="Finished versions to keep, for `rollback`  [default: 1]"
    ),
    remembered_option(
        "--quantization",
        type=click.Choice(["scalar", "binary", "product", "turbo"]),
        help="Search small copies of the vectors, and compare the best candidates again with the full ones.",
    ),
    remembered_option("--hnsw-m", metavar="N", type=_COUNT, help="Edges per node of the graph."),
    remembered_option(
        "--hnsw-ef-construct", metavar="N", type=click.IntRange(min=4), help="Candidates while it is built."
    ),
    remembered_option("--on-disk-vectors", is_flag=True, default=None, help="Leave the full vectors on disk."),
    remembered_option("--on-disk-payload", is_flag=True, default=None, help="Leave the texts on disk."),
    remembered_option("--shards", metavar="N", type=_COUNT, help="Shards (server)."),
    remembered_option("--replication-factor", metavar="N", type=_COUNT, help="Copies of each shard (server)."),
    remembered_option(
        "--write-consistency", metavar="N", type=_COUNT, help="Copies that must confirm a write (server)."
    ),
    remembered_option(
        "--parallel", metavar="N", type=click.IntRange(1, 64), help="Connections that write at once (server)."
    ),
    remembered_option("--bulk/--no-bulk", default=None, help="Index after the last point (server)  [default: --bulk]"),
]


# --expand and --rerank: the two neighbouring methods, for commands that search.


def rerank_options(command: F) -> F:
    """--rerank and what belongs to it."""
    for option in (
        click.option(
            "--rerank-weight",
            type=click.FloatRange(0, 1),
            default=0.25,
            show_default=True,
            help="Weight of UPR against the first score; 1 is UPR alone.",
        ),
        click.option(
            "--rerank-depth",
            type=click.IntRange(1, 10_000),
            default=100,
            show_default=True,
            help="Passages that are ranked again.",
        ),
        click.option("--rerank", metavar="upr:MODEL", help="Rank again by how likely a generator finds the question."),
    ):
        command = option(command)
    return command


def expand_options(command: F) -> F:
    """--expand and what belongs to it."""
    for option in (
        click.option(
            "--expand-model", metavar="NAME", default="default", show_default=True, help="Model name at an endpoint."
        ),
        click.option("--expand-lang", metavar="CODE", help="Language of the expansion  [default: the question's]"),
        click.option(
            "--expand",
            metavar="METHOD:MODEL",
            help="Search also with a generator's (or an endpoint URL's) translation of the question, or with a passage "
            "that it writes: translation or pseudo-document.",
        ),
    ):
        command = option(command)
    return command


def chosen_reranker(spec: str | None, *, depth: int, weight: float, threads: int | None) -> Reranker | None:
    """The reranker of --rerank, None without."""
    if spec is None:
        return None
    from xqg_vdb.search.rerank import open_reranker

    return open_reranker(spec, depth=depth, weight=weight, threads=threads or 0)


def chosen_expander(spec: str | None, *, lang: str | None, endpoint_model: str, threads: int | None) -> Expander | None:
    """The expander of --expand, None without."""
    if spec is None:
        return None
    from xqg_vdb.search.expand import Expander, expansion_spec

    method, model = expansion_spec(spec)
    return Expander(model, method=method, lang=lang, endpoint_model=endpoint_model, threads=threads or 0)


def report_methods(expander: Expander | None, reranker: Reranker | None) -> dict[str, float]:
    """Say on stderr what the methods did; returns mean seconds a question, for JSON."""
    seconds: dict[str, float] = {}
    if expander is not None:
        counts = expander.counters()
        seconds["expand"] = _per_question(counts)
        say(
            f"Expanded {counts['questions']:.0f} questions, {seconds['expand']:.2f} s each "
            f"({counts['fallbacks']:.0f} searched as they are)."
        )
        if expander.writer.failure:
            say(expander.writer.failure)
    if reranker is not None:
        counts = reranker.counters()
        seconds["rerank"] = _per_question(counts)
        say(
            f"Ranked {counts['passages']:.0f} passages again, {seconds['rerank']:.2f} s a question "
            f"({counts['passages_cut']:.0f} passages cut)."
        )
    return seconds


def _per_question(counts: Mapping[str, float]) -> float:
    return round(counts["seconds"] / max(counts["questions"], 1), 4)


# The options of `load` and `augment` that say how queries are folded into a passage's vector.

_RECIPE = [
    remembered_option(
        "--alpha", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Weight of the queries."
    ),
    remembered_option(
        "--pool",
        type=click.Choice(["shrunk", "mean", "sum"]),
        default="shrunk",
        show_default=True,
        help="How queries are pooled; sum is the paper's.",
    ),
    remembered_option(
        "--shrink", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Strength of pool shrunk."
    ),
    remembered_option("--no-center", is_flag=True, help="Fold in the queries' language too, not only their content."),
    remembered_option("--query-langs", multiple=True, help="Fold in queries in this language only; repeatable."),
]


def recipe_options(command: F) -> F:
    """Weight, pooling and languages; read by `chosen_recipe`."""
    for option in reversed(_RECIPE):
        command = option(command)
    return command


def chosen_recipe() -> Recipe:
    """The recipe of the command that runs. Raises UsageError for what cannot be one, such as an alpha of nan."""
    from xqg_vdb.texts.languages import normalize
    from xqg_vdb.types import Recipe

    try:
        langs = tuple(sorted({normalize(code) for code in remembered("query_langs")})) or None
        return Recipe(
            alpha=remembered("alpha"),
            pool=remembered("pool"),
            shrink=remembered("shrink"),
            center=not remembered("no_center"),
            query_langs=langs,
        )
    except ValueError as error:  # nan is within every range
        raise click.UsageError(str(error)) from error


# Options that both `xqg-vdb train` commands have, and what they ask for.

S = TypeVar("S", "EncoderSettings", "GeneratorSettings")

_POSITIVE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)
_TRAINING = [
    remembered_option(
        "--pairs", "sources", multiple=True, required=True, metavar="SOURCE",
        help="afriqa, or a .jsonl or SQuAD .json file; repeat it.",
    ),
    remembered_option("--dev", "dev_sources", multiple=True, metavar="SOURCE", help="Pairs to evaluate on."),
    remembered_option("--data-dir", type=click.Path(path_type=Path), help="For afriqa  [default: XQG_DATA_DIR]"),
    remembered_option("--question-langs", multiple=True, help="Question language; repeat it  [default: all]"),
    remembered_option(
        "--english", type=click.Choice(["no", "also", "only"]), default="no", show_default=True,
        help="The questions' human English translations.",
    ),
    remembered_option("--drop-leaks", is_flag=True, help="Leave out pairs whose passage or question is in --dev."),
    remembered_option("--max-errors", type=click.IntRange(min=0), default=0, help="Bad records to skip  [default: 0]"),
    remembered_option("--preset", type=click.Choice(["xqg"]), help="The paper's recipe; other options change it."),
    remembered_option("--epochs", type=_ABOVE_ZERO, help="[default: 3]"),
    remembered_option("--max-steps", type=_POSITIVE, help="Instead of --epochs."),
    remembered_option("--batch-size", type=_POSITIVE, help="Per step: pairs, or a decoder-only model's passages."),
    remembered_option("--micro-batch", type=_POSITIVE, help="As many in memory at a time  [default: all]"),
    remembered_option("--learning-rate", type=_ABOVE_ZERO),
    remembered_option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps  [default: 0.1]"),
    remembered_option("--eval-every", type=click.IntRange(min=0), help="Steps; 0: before and after only."),
    remembered_option("--dev-limit", type=_POSITIVE, help="Dev examples, evenly spread."),
    remembered_option("--save-minutes", type=click.FloatRange(0), help="Between checkpoints  [default: 10]"),
    remembered_option("--seed", type=int, help="[default: 313]"),
    remembered_option("--threads", type=_POSITIVE, help="CPU threads  [default: all]"),
]  # fmt: skip


def training_options(command: F) -> F:
    """Which pairs, how long and how fast; read by `chosen_pairs` and `chosen_settings`."""
    for option in reversed(_TRAINING):
        command = option(command)
    return command


def chosen_pairs() -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training and dev pairs of the command that runs. Raises MissingExtra before minutes of reading, DataError."""
    from xqg_vdb.train.pairs import Selection, read_training_pairs
    from xqg_vdb.train.run import need_training_packages

    need_training_packages()
    selection = Selection(**{one.name: remembered(one.name) for one in fields(Selection)})
    sources, dev_sources = remembered("sources"), remembered("dev_sources")
    return read_training_pairs(sources, dev_sources, data_dir=remembered("data_dir"), selection=selection, say=say)


def chosen_settings(plain: S, *, preset: S, own: Mapping[str, Any]) -> S:
    """The trainer's settings, or with --preset the paper's, with what the user said; None is what nobody said.

    own: options of this trainer alone. Epochs that were asked for are not cut by a preset's steps.
    """
    from xqg_vdb.train.run import Schedule

    start = preset if remembered("preset") else plain
    plan = given({one.name: remembered(one.name) for one in fields(Schedule)})
    schedule = replace(start.schedule, max_steps=None) if "epochs" in plan else start.schedule
    chosen = given({"dev_limit": remembered("dev_limit"), **own})
    return replace(start, schedule=replace(schedule, **plan), **chosen)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user said."""
    return {name: value for name, value in options.items() if value is not None}


# The options of `load` that say which vectors a point has beside the fused one.


def vector_options(command: F) -> F:
    """Plain vectors, and words; the latter are read by `chosen_hybrid`."""
    for option in reversed(_VECTORS):
        command = option(command)
    return command


def chosen_hybrid() -> Hybrid | None:
    """What the sparse vectors are to be made from; None for none."""
    from xqg_vdb.types import Hybrid

    lang = remembered("hybrid_lang")
    if remembered("hybrid"):
        return Hybrid(lang=lang)
    if lang is not None:
        raise click.UsageError("--hybrid-lang says how: give --hybrid with it")
    return None


_VECTORS = [
    remembered_option("--keep-plain", is_flag=True, help="Also the passages' own vectors, text-dense-plain."),
    remembered_option("--hybrid", is_flag=True, help="Also vectors of the words (BM25), for search --hybrid."),
    remembered_option(
        "--hybrid-lang", metavar="LANG", help="Whose stemmer and stop words, or none  [default: the passages']"
    ),
]
