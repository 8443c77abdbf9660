"""`xqg-vdb list`, `versions`, `rollback`, `gc` and `snapshot`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import Place, collection_argument, command, place_options, say, show
from xqg_vdb.errors import XqgError, printable

if TYPE_CHECKING:
    from xqg_vdb.store.operations import VersionState
    from xqg_vdb.types import VectorStore


@command(example="xqg-vdb versions wiki")
@collection_argument
@place_options
def versions(collection: str, place: Place) -> None:
    """List the versions of COLLECTION; * marks the one that searches see.

    A load makes a new version and publishes it in one step; the one before is kept for `rollback` (`load --keep`).
    """
    with closing(place.open()) as store:
        states = store.admin.versions(collection)
    records = [
        {
            "version": state.name,
            "published": state.published,
            "finished": state.finished,
            "passages": state.card.count if state.card else None,
            "created": state.card.created if state.card else None,
        }
        for state in states
    ]
    show(records, map(_version, states))


def _version(state: VersionState) -> str:
    card = state.card
    said = f"{card.count} passages, {card.created}" if card and state.finished else "unfinished"
    said = said if state.reachable else "out of reach: a node of the server is away"
    return f"{'*' if state.published else ' '} {state.name}  {printable(said)}"


@command("list", example="xqg-vdb list")
@place_options
def list_collections(place: Place) -> None:
    """List the collections of a store: version, number of passages, recipe, and when each was loaded."""
    with closing(place.open()) as store:
        records = [{"collection": name, **_facts(store, name)} for name in store.names()]
    show(
        records,
        (printable("  ".join(str(value) for value in record.values() if value != "")) for record in records),
        nothing="No collections yet; make one with `xqg-vdb load` (see its --help).",
    )


def _facts(store: VectorStore, name: str) -> dict[str, object]:
    try:
        card = store.card(name)
    except XqgError as error:  # one that is damaged, or is not ours, hides no other
        return {"error": str(error)}
    recipe = f"alpha {card.recipe.alpha:g}, {card.recipe.pool}, queries in {', '.join(card.query_langs)}"
    return {
        "version": card.version,
        "passages": card.count,
        "recipe": recipe if card.query_langs else "plain passages",
        "created": card.created,
    }


@command(example="xqg-vdb rollback wiki", json=False)
@collection_argument
@click.option("--to", "version", metavar="VERSION", help="Such as v0001  [default: the one before the published]")
@place_options
def rollback(collection: str, version: str | None, place: Place) -> None:
    """Publish an older version of COLLECTION again, in one step; --to may name a newer one, too."""
    with closing(place.open()) as store:
        published = store.admin.rollback(collection, version=version)
    click.echo(f"{collection}: searches see {published}")


@command(example="xqg-vdb gc wiki --keep 2", json=False)
@collection_argument
@click.option("--keep", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Versions to keep.")
@click.option("--unfinished", is_flag=True, help="Also delete what stopped loads left, which could be continued.")
@place_options
def gc(collection: str, keep: int, unfinished: bool, place: Place) -> None:
    """Delete versions of COLLECTION that are not published, except the latest ones to keep."""
    with closing(place.open()) as store:
        gone = store.admin.gc(collection, keep=keep, unfinished=unfinished)
    for version in gone:
        click.echo(f"deleted {version}")
    if not gone:
        say("Nothing to delete.")


@click.group()
def snapshot() -> None:
    """Copies of a collection's published version as single files: make, list, fetch and restore them.

    An embedded store writes a compressed tar with checksums, a server its own snapshots (of one node).

    \b
    Example:
      xqg-vdb snapshot create wiki
    """  # noqa: D301 - \b is click's


@command(of=snapshot, example="xqg-vdb snapshot create wiki", json=False)
@collection_argument
@place_options
def create(collection: str, place: Place) -> None:
    """Make a snapshot of COLLECTION and print its name.

    Searches continue meanwhile.
    """
    with closing(place.open()) as store:
        made = store.admin.create_snapshot(collection)
    click.echo(made.name)


@command("list", of=snapshot, example="xqg-vdb snapshot list wiki")
@collection_argument
@place_options
def list_(collection: str, place: Place) -> None:
    """List the snapshots of COLLECTION that its store keeps."""
    with closing(place.open()) as store:
        kept = store.admin.snapshots(collection)
    show(
        [asdict(copy) for copy in kept],
        (f"{copy.name}\t{copy.size}\t{copy.created}" for copy in kept),
        nothing="No snapshots yet; make one with `xqg-vdb snapshot create`.",
    )


@command(
    of=snapshot,
    example="xqg-vdb snapshot download wiki \\\n    wiki-v0001-20261123T061500000000Z.tar.gz backup.tar.gz",
    json=False,
)
@collection_argument
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@place_options
def download(collection: str, name: str, file: Path, place: Place) -> None:
    """Copy the snapshot NAME of COLLECTION into FILE.

    FILE appears when it is whole.
    """
    with closing(place.open()) as store:
        store.admin.download_snapshot(collection, name, file)
    click.echo(str(file))


@command(of=snapshot, example="xqg-vdb snapshot restore wiki backup.tar.gz", json=False)
@collection_argument
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@place_options
def restore(collection: str, file: Path, place: Place) -> None:
    """Publish the snapshot in FILE as a version of COLLECTION.

    The version before stays for `rollback`.
    """
    with closing(place.open()) as store:
        version = store.admin.restore_snapshot(collection, file)
    click.echo(f"{collection}: searches see {version}")
