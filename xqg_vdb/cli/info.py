"""`xqg-vdb info`."""

from __future__ import annotations

from contextlib import closing

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options


@click.command()
@click.argument("collection", required=False)
@store_options
@json_option
def info(collection: str | None, path: str | None, url: str | None, as_json: bool) -> None:
    """Show a collection's card: encoder, recipe, calibration, counts. Without COLLECTION, list the collections.

    \b
    Example:
      xqg-vdb info demo
    """  # noqa: D301 - \b is click's
    with closing(chosen_store(path, url)) as store:
        if collection is None:
            _list(store.names(), as_json=as_json)
            return
        card = store.card(collection)
    if as_json:
        print_json(card.to_json())
        return
    encoder, recipe = card.encoder, card.recipe
    rows = {
        "passages": f"{card.count} (loaded {card.created})",
        "encoder": f"{encoder.source} {encoder.precision}, {encoder.dim} dimensions, fingerprint {encoder.fingerprint}",
        "distance": card.distance,
        "queries": ", ".join(card.query_langs) or "none",
        "recipe": f"alpha {recipe.alpha}, pool {recipe.pool}" if card.query_langs else "plain passages",
        "calibration": f"λ = {card.calibration}",
    }
    for name, value in rows.items():
        click.echo(f"{name:12s} {value}")


def _list(names: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(names)
    elif names:
        click.echo("\n".join(names))
    else:
        say("No collections yet; make one with `xqg-vdb load` (see its --help).")
