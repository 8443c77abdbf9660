"""`xqg-vdb snapshot create|list|download|restore`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options


@click.group()
def snapshot() -> None:
    """Copies of a collection's published version as single files: make, list, fetch and restore them.

    An embedded store writes a compressed tar with checksums, a server its own snapshots (of one node).

    \b
    Example:
      xqg-vdb snapshot create wiki
    """  # noqa: D301 - \b is click's


@snapshot.command()
@click.argument("collection")
@store_options
def create(collection: str, path: str | None, url: str | None) -> None:
    """Make a snapshot of COLLECTION and print its name; searches go on meanwhile."""
    with closing(chosen_store(path, url)) as store:
        made = store.admin.create_snapshot(collection)
    click.echo(made.name)


@snapshot.command("list")
@click.argument("collection")
@store_options
@json_option
def list_(collection: str, path: str | None, url: str | None, as_json: bool) -> None:
    """List the snapshots of COLLECTION that its store keeps."""
    with closing(chosen_store(path, url)) as store:
        found = store.admin.snapshots(collection)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    for one in found:
        click.echo(f"{one.name}\t{one.size}\t{one.created}")
    if not found:
        say("No snapshots yet; make one with `xqg-vdb snapshot create`.")


@snapshot.command()
@click.argument("collection")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@store_options
def download(collection: str, name: str, file: Path, path: str | None, url: str | None) -> None:
    """Copy the snapshot NAME of COLLECTION into FILE; FILE appears when it is whole."""
    with closing(chosen_store(path, url)) as store:
        store.admin.download_snapshot(collection, name, file)
    click.echo(str(file))


@snapshot.command()
@click.argument("collection")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@store_options
def restore(collection: str, file: Path, path: str | None, url: str | None) -> None:
    """Publish the snapshot in FILE as a new version of COLLECTION; the version before stays for `rollback`."""
    with closing(chosen_store(path, url)) as store:
        version = store.admin.restore_snapshot(collection, file)
    click.echo(f"{collection}: searches see {version}")
