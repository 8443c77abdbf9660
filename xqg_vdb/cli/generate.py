"""`xqg-vdb generate`, `merge` and `filter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xqg_vdb.cli.options import PATH, command, corpus_argument, ray_option, say, show, takes
from xqg_vdb.errors import printable
from xqg_vdb.progress import bars
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.generate.filters import QueryFilter
    from xqg_vdb.generate.output import Summary
    from xqg_vdb.generate.run import BatchGenerator
    from xqg_vdb.models.decoder import Decoding


@dataclass(frozen=True)
class _Wishes:
    """Who writes, and what is written."""

    generator: str | None = option(None, "Model folder, hub id exported before, or starter:generator.", metavar="MODEL")
    endpoint: str | None = option(
        None, "OpenAI-compatible server instead; key from XQG_VDB_GENERATOR_KEY.", metavar="URL"
    )
    endpoint_model: str = option("default", "Model name for --endpoint.", metavar="NAME")
    concurrency: int = option(8, "Requests at a time.", least=1, most=256)
    query_langs: tuple[str, ...] = option(
        (), "Language to write in; repeat it.  [required]", flags=("-l", "--query-langs")
    )
    n: int = option(5, "Queries per language.", least=1, most=1000, flags=("-n",))
    prompt: Literal["chat", "pivot", "few-shot", "finetuned"] | None = option(None, "[default: what suits the model]")
    shard: str = option("1/1", "Every n-th passage only; join with `xqg-vdb merge`.", metavar="i/n")
    reuse: Path | None = option(None, "OUT of an earlier run: write only what is new or changed since.")
    max_rejects: int = option(0, "Bad records to skip  [default: 0]", least=0)
    threads: int | None = option(None, "CPU threads  [default: all]", least=1)

    def __post_init__(self) -> None:
        if not self.query_langs:
            raise ValueError("Missing option '-l' / '--query-langs'.")
        if bool(self.generator) == bool(self.endpoint):
            raise ValueError("give --generator or --endpoint, one of them")


@command(
    example="xqg-vdb export starter:generator --accept-license\n"
    "xqg-vdb generate corpus.jsonl queries.jsonl \\\n    --generator starter:generator -l de -l es -n 3 --filter\n"
    "xqg-vdb generate new.jsonl new.out.jsonl --reuse old.out.jsonl \\\n    --generator starter:generator -l de -n 3"
)
@corpus_argument
@click.argument("out", type=PATH)
@takes("wishes", "xqg_vdb.cli.generate._Wishes")
@ray_option
@click.option("--price", nargs=2, type=click.FloatRange(min=0), metavar="READ WRITTEN", help="Price per 1M tokens.")
@takes("decoding", "xqg_vdb.models.decoder.Decoding")
@click.option("--filter/--no-filter", "filtered", default=False, help="Leave out bad queries, after a second try.")
@takes("rules", "xqg_vdb.generate.filters.QueryFilter", only=("skip",))
def generate(
    corpus: Path,
    out: Path,
    wishes: _Wishes,
    ray: str | None,
    price: tuple[float, float] | None,
    decoding: Decoding,
    filtered: bool,
    rules: QueryFilter,
) -> None:
    """Write questions in other languages for every passage of CORPUS to OUT, a JSON-lines file.

    A run that was stopped continues when the same command is run again. When the corpus has changed, --reuse
    takes the queries of unchanged passages from the last OUT, of the same settings; more languages are written besides.
    """
    from xqg_vdb.generate.endpoint import EndpointGenerator
    from xqg_vdb.generate.filters import look
    from xqg_vdb.generate.local import open_generator
    from xqg_vdb.generate.run import Job, generate_file
    from xqg_vdb.texts.queries import read_queries
    from xqg_vdb.texts.records import Rejects

    if wishes.endpoint and ray:
        raise click.UsageError("--ray runs a --generator; an --endpoint is asked from here, with --concurrency")
    langs = wishes.query_langs
    Job(langs, wishes.n, wishes.shard)  # a wrong code is named before a model is loaded
    with ExitStack() as stack:
        generator: BatchGenerator
        if wishes.endpoint:
            asked = EndpointGenerator(
                wishes.endpoint, wishes.endpoint_model, concurrency=wishes.concurrency, seed=decoding.seed,
                temperature=decoding.temperature, max_tokens=decoding.max_tokens, price=price or (0.0, 0.0),
            )  # fmt: skip
            generator = stack.enter_context(asked)
        else:
            make = partial(
                open_generator, str(wishes.generator), query_langs=langs, prompt=wishes.prompt, decoding=decoding
            )
            generator = make(threads=wishes.threads or 0)
            if ray is not None:
                from xqg_vdb.integrations.ray import on_cluster

                generator = stack.enter_context(on_cluster(ray, generator, make, workers=wishes.threads))
        good = replace(rules, examples=generator.examples) if filtered else None
        summary = generate_file(
            corpus, out, generator=generator, job=Job(langs, wishes.n, wishes.shard, good), reuse=wishes.reuse,
            rejects=Rejects(wishes.max_rejects), progress=stack.enter_context(bars(unit=" passages")),
        )  # fmt: skip
    examples, doubts = look(read_queries(out)) if summary.path == out else ({}, ())
    told = ("passages", "queries", "rejected", "resumed", "reused", "gaps")
    record = {"path": str(summary.path), "seconds": round(summary.seconds, 3)}
    show({**record, **{name: getattr(summary, name) for name in told}}, _summary_lines(summary, examples))
    for doubt in doubts:
        say(
            f"Warning: {doubt} Read some before you load them; take a larger model, or leave {doubt.split(':')[0]} out."
        )
    if summary.gaps:
        hint = f" ({generator.failure}); the same command asks about them once more" if generator.failure else ""
        say(f"{summary.gaps} passages have no query in one language or more{hint}")


def _summary_lines(summary: Summary, examples: Mapping[str, list[str]]) -> Iterator[str]:
    yield f"{summary.path}  {summary.passages} passages, {summary.queries} queries in {summary.seconds:.0f} s"
    yield from _rejected_lines(summary.rejected, summary.queries)
    for name, count in summary.reused.items():
        yield f"  {count} passages as in {name}"
    if summary.resumed:
        say(f"{summary.resumed} passages were there already")
    for lang, texts in examples.items():
        for text in texts:
            yield f"  {lang:<6}{printable(text)}"


@command(example="xqg-vdb merge queries.jsonl")
@click.argument("out", type=PATH)
def merge(out: Path) -> None:
    """Join the finished shards of OUT (OUT.shard-1-of-4 and so on, copied into one folder); say which are missing."""
    from xqg_vdb.generate.output import merge_shards

    made = merge_shards(out)
    told = f"{made['passages']} passages, {made['queries']} queries from {made['shards']} shards"
    show({"path": str(out), **made}, [f"{out}  {told}"])


@command("filter", example="xqg-vdb filter queries.jsonl good.jsonl")
@click.argument("queries", type=PATH)
@click.argument("out", type=PATH)
@takes("rules", "xqg_vdb.generate.filters.QueryFilter")
def filter_queries(queries: Path, out: Path, rules: QueryFilter) -> None:
    """Write the good ones of the generated QUERIES to OUT, and say how many were left out and why.

    Rules: wrong language (detected), empty, repeated, repetitive, too long, no question.
    """
    from xqg_vdb.generate.filters import filter_file

    made = filter_file(queries, out, query_filter=rules)
    head = f"{out}  {made['passages']} passages, {made['queries']} queries kept"
    show({"path": str(out), **made}, [head, *_rejected_lines(made["rejected"], made["queries"])])


def _rejected_lines(rejected: Mapping[str, int], kept: int) -> Iterator[str]:
    from xqg_vdb.generate.filters import dominant

    for reason, count in rejected.items():
        yield f"  {reason:<24}{count}"
    if rule := dominant(rejected, kept):
        say(f'The rule "{rule}" rejected more than half: look at some queries; --skip "{rule}" switches it off.')
