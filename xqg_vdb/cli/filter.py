"""`xqg-vdb filter`."""

from __future__ import annotations

from pathlib import Path

import click

from xqg_vdb.cli.options import json_option, print_json


@click.command("filter")
@click.argument("queries", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--max-characters", type=click.IntRange(min=1), default=200, show_default=True, help="Longest query.")
@json_option
def filter_queries(queries: Path, out: Path, max_characters: int, as_json: bool) -> None:
    """Write the good ones of the generated QUERIES to OUT, and say how many were left out and why.

    Rules: wrong language (detected), empty, repeated, repetitive, too long, no question.

    \b
    Example:
      xqg-vdb filter queries.jsonl good.jsonl
    """  # noqa: D301 - \b is click's
    from xqg_vdb.generation.filtering import filter_file
    from xqg_vdb.generation.filters import QueryFilter, Rules

    rules = QueryFilter(Rules(max_characters=max_characters))
    provenance = filter_file(queries, out, query_filter=rules)
    if as_json:
        print_json({"path": str(out), **provenance})
        return
    click.echo(f"{out}  {provenance['passages']} passages, {provenance['queries']} queries kept")
    for reason, count in provenance["rejected"].items():
        click.echo(f"  {reason:<24}{count}")
