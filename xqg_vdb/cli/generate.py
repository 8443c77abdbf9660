"""`xqg-vdb generate` and `xqg-vdb merge`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xqg_vdb.cli.options import command, json_option, print_json, say, takes
from xqg_vdb.errors import printable
from xqg_vdb.progress import bars

if TYPE_CHECKING:
    from xqg_vdb.generate.filters import QueryFilter
    from xqg_vdb.generate.output import Summary
    from xqg_vdb.generate.run import BatchGenerator
    from xqg_vdb.models.decode import Decoding


@command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--generator", "model", metavar="MODEL", help="Model folder, hub id exported before, or starter:generator."
)
@click.option("--endpoint", metavar="URL", help="OpenAI-compatible server instead; key from XQG_VDB_GENERATOR_KEY.")
@click.option(
    "--endpoint-model", metavar="NAME", default="default", show_default=True, help="Model name for --endpoint."
)
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests at a time.")
@click.option("--price", nargs=2, type=click.FloatRange(min=0), metavar="READ WRITTEN", help="Per million tokens.")
@click.option("-l", "--query-langs", multiple=True, required=True, help="Language to write in; repeat it.")
@click.option("-n", "n", type=click.IntRange(1, 1000), default=5, show_default=True, help="Queries per language.")
@click.option(
    "--prompt", type=click.Choice(["chat", "pivot", "few-shot", "finetuned"]), help="[default: what suits the model]"
)
@takes("decoding", "xqg_vdb.models.decode.Decoding")
@click.option("--shard", metavar="i/n", default="1/1", help="Every n-th passage only; join with `xqg-vdb merge`.")
@click.option(
    "--reuse", type=click.Path(path_type=Path), help="OUT of an earlier run: write only what is new or changed since."
)
@click.option("--filter/--no-filter", "filtered", default=False, help="Leave out bad queries, after a second try.")
@takes("rules", "xqg_vdb.generate.filters.QueryFilter", only=("skip",))
@click.option("--max-errors", type=click.IntRange(min=0), default=0, show_default=True, help="Bad records to skip.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]")
@json_option
def generate(
    corpus: Path,
    out: Path,
    model: str | None,
    endpoint: str | None,
    endpoint_model: str,
    concurrency: int,
    price: tuple[float, float] | None,
    query_langs: tuple[str, ...],
    n: int,
    prompt: Literal["chat", "pivot", "few-shot", "finetuned"] | None,
    decoding: Decoding,
    shard: str,
    reuse: Path | None,
    filtered: bool,
    rules: QueryFilter,
    max_errors: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write questions in other languages for every passage of CORPUS to OUT, a JSON-lines file.

    A run that was stopped goes on where it was when the same command is run again. When the corpus has changed, --reuse
    takes the queries of unchanged passages from the last OUT, of the same settings; more languages are written besides.

    \b
    Example:
      xqg-vdb export starter:generator --accept-license
      xqg-vdb generate corpus.jsonl queries.jsonl \\
          --generator starter:generator -l de -l sw -n 3 --filter
      xqg-vdb generate new.jsonl new.out.jsonl --reuse old.out.jsonl \\
          --generator starter:generator -l de -n 3
    """  # noqa: D301 - \b is click's
    if bool(model) == bool(endpoint):
        raise click.UsageError("give --generator or --endpoint, one of them")
    from xqg_vdb.generate.endpoint import EndpointGenerator
    from xqg_vdb.generate.local import open_generator
    from xqg_vdb.generate.run import Job, generate_file
    from xqg_vdb.texts.records import Rejects

    Job(query_langs, n, shard)  # a wrong code is named before a model is loaded
    with ExitStack() as stack:
        generator: BatchGenerator
        if endpoint:
            asked = EndpointGenerator(
                endpoint, endpoint_model, concurrency=concurrency, temperature=decoding.temperature,
                max_tokens=decoding.max_tokens, seed=decoding.seed, price=price or (0.0, 0.0),
            )  # fmt: skip
            generator = stack.enter_context(asked)
        else:
            generator = open_generator(
                str(model), query_langs=query_langs, prompt=prompt, decoding=decoding, threads=threads or 0
            )
        good = replace(rules, examples=generator.examples()) if filtered else None
        job, rejects = Job(query_langs, n, shard, good), Rejects(max_errors)
        show = stack.enter_context(bars(unit=" passages"))
        summary = generate_file(
            corpus, out, generator=generator, job=job, reuse=reuse, rejects=rejects, progress=show
        )  # fmt: skip
    _print(summary, as_json=as_json)
    if summary.path == out:
        _show_some(out, as_json=as_json)
    if summary.gaps:
        hint = f" ({generator.failure}); the same command asks about them once more" if generator.failure else ""
        say(f"{summary.gaps} passages have no query in one language or more{hint}")


def _show_some(out: Path, *, as_json: bool) -> None:
    from xqg_vdb.generate.filters import look
    from xqg_vdb.texts.queries import read_queries

    examples, doubts = look(read_queries(out))
    for lang, texts in () if as_json else examples.items():
        for text in texts:
            click.echo(f"  {lang:<6}{printable(text)}")
    for doubt in doubts:
        say(
            f"Warning: {doubt} Read some before you load them; take a larger model, or leave {doubt.split(':')[0]} out."
        )


@command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--keep-shards", is_flag=True, help="Leave the shards' logs where they are.")
@json_option
def merge(out: Path, keep_shards: bool, as_json: bool) -> None:
    """Join the finished shards of OUT (OUT.shard-1-of-4 and so on, copied into one folder), or say which are missing.

    \b
    Example:
      xqg-vdb merge queries.jsonl
    """  # noqa: D301 - \b is click's
    from xqg_vdb.generate.output import merge_shards

    provenance = merge_shards(out, keep_logs=keep_shards)
    if as_json:
        print_json({"path": str(out), **provenance})
        return
    click.echo(
        f"{out}  {provenance['passages']} passages, {provenance['queries']} queries from {provenance['shards']} shards"
    )


def _print(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print_json(_record(summary))
        return
    click.echo(f"{summary.path}  {summary.passages} passages, {summary.queries} queries in {summary.seconds:.0f} s")
    _print_rejected(summary.rejected, summary.queries)
    for name, count in summary.reused.items():
        click.echo(f"  {count} passages as in {name}")
    if summary.resumed:
        say(f"{summary.resumed} passages were there already")


def _record(summary: Summary) -> dict[str, object]:
    return {
        "path": str(summary.path),
        "passages": summary.passages,
        "queries": summary.queries,
        "seconds": round(summary.seconds, 3),
        "rejected": dict(summary.rejected),
        "resumed": summary.resumed,
        "reused": dict(summary.reused),
        "gaps": summary.gaps,
    }


# `xqg-vdb filter`.


@command("filter")
@click.argument("queries", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@takes("rules", "xqg_vdb.generate.filters.QueryFilter")
@json_option
def filter_queries(queries: Path, out: Path, rules: QueryFilter, as_json: bool) -> None:
    """Write the good ones of the generated QUERIES to OUT, and say how many were left out and why.

    Rules: wrong language (detected), empty, repeated, repetitive, too long, no question.

    \b
    Example:
      xqg-vdb filter queries.jsonl good.jsonl
    """  # noqa: D301 - \b is click's
    from xqg_vdb.generate.filters import filter_file

    provenance = filter_file(queries, out, query_filter=rules)
    if as_json:
        print_json({"path": str(out), **provenance})
        return
    click.echo(f"{out}  {provenance['passages']} passages, {provenance['queries']} queries kept")
    _print_rejected(provenance["rejected"], provenance["queries"])


def _print_rejected(rejected: Mapping[str, int], kept: int) -> None:
    from xqg_vdb.generate.filters import dominant

    for reason, count in rejected.items():
        click.echo(f"  {reason:<24}{count}")
    if rule := dominant(rejected, kept):
        say(f'The rule "{rule}" rejected more than half: look at some queries; --skip "{rule}" switches it off.')
