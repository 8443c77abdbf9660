"""`xqg-vdb versions`, `xqg-vdb rollback` and `xqg-vdb gc`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from xqg_vdb.cli.options import Place, RecordCommand, command, json_option, place_options, print_json, say
from xqg_vdb.errors import printable


@command()
@click.argument("collection")
@place_options
@json_option
def versions(collection: str, place: Place, as_json: bool) -> None:
    """List the versions of COLLECTION; * marks the one that searches see.

    A load makes a new version and publishes it in one step; `load --keep 2` keeps the one before for `rollback`.

    \b
    Example:
      xqg-vdb versions wiki
    """  # noqa: D301 - \b is click's
    with closing(place.open()) as store:
        states = store.admin.versions(collection)
    if as_json:
        print_json(
            [
                {
                    "version": state.name,
                    "published": state.published,
                    "finished": state.finished,
                    "passages": state.card.count if state.card else None,
                    "created": state.card.created if state.card else None,
                }
                for state in states
            ]
        )
        return
    for state in states:
        mark = "*" if state.published else " "
        card = state.card
        said = f"{card.count} passages, {card.created}" if card and state.finished else "unfinished"
        said = said if state.reachable else "out of reach: a node of the server is away"
        click.echo(f"{mark} {state.name}  {printable(said)}")


@command()
@click.argument("collection")
@click.option("--to", "version", metavar="VERSION", help="Such as v0001  [default: the one before the published]")
@place_options
def rollback(collection: str, version: str | None, place: Place) -> None:
    """Publish an older version of COLLECTION again, in one step; --to also goes forward.

    \b
    Example:
      xqg-vdb rollback wiki
    """  # noqa: D301
    with closing(place.open()) as store:
        published = store.admin.rollback(collection, version=version)
    click.echo(f"{collection}: searches see {published}")


@command()
@click.argument("collection")
@click.option("--keep", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Versions to keep.")
@click.option("--unfinished", is_flag=True, help="Also delete what stopped loads left, which could be continued.")
@place_options
def gc(collection: str, keep: int, unfinished: bool, place: Place) -> None:
    """Delete versions of COLLECTION that are not published, except the latest ones to keep.

    \b
    Example:
      xqg-vdb gc wiki --keep 2
    """  # noqa: D301
    with closing(place.open()) as store:
        gone = store.admin.gc(collection, keep=keep, unfinished=unfinished)
    for version in gone:
        click.echo(f"deleted {version}")
    if not gone:
        say("Nothing to delete.")


# `xqg-vdb snapshot create|list|download|restore`.


@click.group()
def snapshot() -> None:
    """Copies of a collection's published version as single files: make, list, fetch and restore them.

    An embedded store writes a compressed tar with checksums, a server its own snapshots (of one node).

    \b
    Example:
      xqg-vdb snapshot create wiki
    """  # noqa: D301 - \b is click's


@snapshot.command(cls=RecordCommand)
@click.argument("collection")
@place_options
def create(collection: str, place: Place) -> None:
    """Make a snapshot of COLLECTION and print its name; searches go on meanwhile.

    \b
    Example:
      xqg-vdb snapshot create wiki
    """  # noqa: D301 - \b is click's
    with closing(place.open()) as store:
        made = store.admin.create_snapshot(collection)
    click.echo(made.name)


@snapshot.command("list", cls=RecordCommand)
@click.argument("collection")
@place_options
@json_option
def list_(collection: str, place: Place, as_json: bool) -> None:
    """List the snapshots of COLLECTION that its store keeps.

    \b
    Example:
      xqg-vdb snapshot list wiki
    """  # noqa: D301 - \b is click's
    with closing(place.open()) as store:
        kept = store.admin.snapshots(collection)
    if as_json:
        print_json([asdict(snapshot) for snapshot in kept])
        return
    for snapshot in kept:
        click.echo(f"{snapshot.name}\t{snapshot.size}\t{snapshot.created}")
    if not kept:
        say("No snapshots yet; make one with `xqg-vdb snapshot create`.")


@snapshot.command(cls=RecordCommand)
@click.argument("collection")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@place_options
def download(collection: str, name: str, file: Path, place: Place) -> None:
    """Copy the snapshot NAME of COLLECTION into FILE; FILE appears when it is whole.

    \b
    Example:
      xqg-vdb snapshot download wiki \\
          wiki-v0001-20261123T061500000000Z.tar.gz backup.tar.gz
    """  # noqa: D301 - \b is click's
    with closing(place.open()) as store:
        store.admin.download_snapshot(collection, name, file)
    click.echo(str(file))


@snapshot.command(cls=RecordCommand)
@click.argument("collection")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@place_options
def restore(collection: str, file: Path, place: Place) -> None:
    """Publish the snapshot in FILE as a new version of COLLECTION; the version before stays for `rollback`.

    \b
    Example:
      xqg-vdb snapshot restore wiki backup.tar.gz
    """  # noqa: D301 - \b is click's
    with closing(place.open()) as store:
        version = store.admin.restore_snapshot(collection, file)
    click.echo(f"{collection}: searches see {version}")
