"""`xqg-vdb migrate`."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing

import click

from xqg_vdb.cli.layout_options import chosen_layout, layout_options
from xqg_vdb.cli.options import chosen_store, json_option, print_json, store_options


@click.command()
@click.argument("collection")
@click.option("--to-path", metavar="DIR", type=click.Path(file_okay=False), help="Copy into this embedded store.")
@click.option("--to-url", metavar="URL", help="Copy to this server (key from XQG_VDB_TO_API_KEY, XQG_VDB_API_KEY).")
@click.option("--to-name", metavar="NAME", help="Under this name  [default: the same]")
@layout_options
@store_options
@json_option
def migrate(
    collection: str,
    to_path: str | None,
    to_url: str | None,
    to_name: str | None,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Copy COLLECTION into another store without encoding anything again; stopped, the same command goes on.

    Without --to-path and --to-url the copy is a new version in the same store: that is how a collection gets other
    options, such as --quantization.

    \b
    Example:
      xqg-vdb migrate wiki --path xqg-data --to-url http://localhost:6333 --quantization scalar
    """  # noqa: D301 - \b is click's
    if to_path and to_url:
        raise click.UsageError("give --to-path or --to-url, not both")
    from xqg_vdb.collection.migrate import migrate as copy
    from xqg_vdb.progress import bars

    elsewhere = to_path is not None or to_url is not None
    key = os.environ.get("XQG_VDB_TO_API_KEY") if elsewhere else None
    with ExitStack() as stack:
        source = stack.enter_context(closing(chosen_store(path, url)))
        place = (to_path, to_url) if elsewhere else (path, url)
        target = stack.enter_context(closing(chosen_store(*place, options=chosen_layout(), api_key=key)))
        progress = stack.enter_context(bars(unit=" passages"))
        card = copy(source, collection, target, to_name=to_name, progress=progress)
    name = to_name or collection
    if as_json:
        print_json({"collection": name, "passages": card.count, "version": card.version, "digest": card.digest})
    else:
        click.echo(f"{name}: {card.count} passages, searches see {card.version}")
