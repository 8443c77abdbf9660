"""`xqg-vdb info`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options

if TYPE_CHECKING:
    from xqg_vdb.collection.admin import CollectionState
    from xqg_vdb.types import Card

_MIB = 1 << 20


@click.command()
@click.argument("collection", required=False)
@store_options
@json_option
def info(collection: str | None, path: str | None, url: str | None, as_json: bool) -> None:
    """Show a collection's card (encoder, recipe, calibration), its counts by language, disk and index.

    Without COLLECTION, list the collections. While another process has an embedded collection open, the card is all
    that can be shown.

    \b
    Example:
      xqg-vdb info demo
    """  # noqa: D301 - \b is click's
    from xqg_vdb.errors import LockedError

    with closing(chosen_store(path, url)) as store:
        if collection is None:
            _list(store.names(), as_json=as_json)
            return
        card, state = store.card(collection), None
        try:
            state = store.admin.state(collection)
        except LockedError as error:
            say(f"{error} The card is all that can be shown meanwhile.")
    if as_json:
        facts = {key: value for key, value in asdict(state).items() if key != "card"} if state else None
        print_json({**card.to_json(), "state": facts})
        return
    for name, value in {**_card_rows(card), **(_state_rows(state) if state else {})}.items():
        click.echo(f"{name:12s} {value}")


def _card_rows(card: Card) -> dict[str, str]:
    encoder, recipe = card.encoder, card.recipe
    rows = {
        "passages": f"{card.count} (loaded {card.created}, {card.version})",
        "encoder": f"{encoder.source} {encoder.precision}, {encoder.dim} dimensions, fingerprint {encoder.fingerprint}",
        "distance": card.distance,
        "queries": ", ".join(card.query_langs) or "none",
        "recipe": f"alpha {recipe.alpha}, pool {recipe.pool}" if card.query_langs else "plain passages",
        "calibration": f"λ = {card.calibration}{_passage_side(card)}",
    }
    if len(card.vectors) > 1:
        rows["vectors"] = ", ".join(card.vectors)
    if (words := card.bm25) is not None:
        rows["hybrid"] = f"BM25 over the words, language {words.lang}, {words.avg_len} tokens a passage"
    if card.storage:
        rows["options"] = ", ".join(f"{name} {value}" for name, value in card.storage.items())
    return rows


def _passage_side(card: Card) -> str:
    """What was subtracted from the passages, where anything was."""
    if not card.passage_calibration:
        return ""
    return f", passages λ = {card.passage_calibration:g}, means of {len(card.passage_means) - 1} languages"


def _state_rows(state: CollectionState) -> dict[str, str]:
    details = "".join(f", {value} {name}" for name, value in state.details.items())
    rows = {
        "languages": ", ".join(f"{n} {lang}" for lang, n in state.languages.items()) or "none",
        "index": f"{state.status}, {state.indexed} of {state.points} vectors in a graph{details}",
    }
    if state.disk_bytes is not None:
        rows["disk"] = f"{state.disk_bytes / _MIB:,.1f} MiB"
    return rows


def _list(names: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(names)
    elif names:
        click.echo("\n".join(names))
    else:
        say("No collections yet; make one with `xqg-vdb load` (see its --help).")
