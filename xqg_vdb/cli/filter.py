"""`xqg-vdb filter`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from xqg_vdb.cli.options import encoder_options, json_option, print_json, say


@click.command("filter")
@click.argument("queries", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--corpus", type=click.Path(path_type=Path), help="The passages: adds the checks by an encoder.")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Round trip: find one's passage in k."
)
@click.option("--no-round-trip", is_flag=True, help="Without that check.")
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100, max_open=True),
    help="Drop this share of each language's queries: those least like their passage (doc2query--).",
)
@click.option("--max-characters", type=click.IntRange(min=1), default=200, show_default=True, help="Longest query.")
@encoder_options
@json_option
def filter_queries(
    queries: Path,
    out: Path,
    corpus: Path | None,
    top_k: int,
    no_round_trip: bool,
    percentile: float | None,
    max_characters: int,
    model: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the good ones of the generated QUERIES to OUT, and say how many were left out and why.

    Rules: wrong language (detected), empty, repeated, repetitive, too long, no question. With --corpus also: does the
    encoder find the query's own passage?

    \b
    Example:
      xqg-vdb filter queries.jsonl good.jsonl --corpus corpus.jsonl --top-k 10
    """  # noqa: D301 - \b is click's
    from xqg_vdb.corpus import read_corpus
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.generation.filtering import EncoderCheck, filter_file
    from xqg_vdb.generation.filters import QueryFilter, Rules
    from xqg_vdb.models import ensure_encoder

    if corpus is None and (percentile is not None or no_round_trip):
        raise click.UsageError("--percentile and --no-round-trip need --corpus")
    rules = QueryFilter(Rules(max_characters=max_characters))
    with ExitStack() as stack:
        check = None
        if corpus is not None:
            read_corpus(corpus)  # a wrong name is told before a model is opened
            encoder = stack.enter_context(Encoder(ensure_encoder(model, report=say), threads=threads))
            check = EncoderCheck(encoder, corpus, None if no_round_trip else top_k, percentile)
        provenance = filter_file(queries, out, query_filter=rules, check=check)
    if as_json:
        print_json({"path": str(out), **provenance})
        return
    click.echo(f"{out}  {provenance['passages']} passages, {provenance['queries']} queries kept")
    for reason, count in provenance["rejected"].items():
        click.echo(f"  {reason:<24}{count}")
