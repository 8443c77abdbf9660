"""`xqg-vdb info`."""

from __future__ import annotations

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, store_options


@click.command()
@click.argument("collection", required=False)
@store_options
@json_option
def info(collection: str | None, path: str | None, url: str | None, as_json: bool) -> None:
    """Show a collection's card: encoder, recipe, calibration, counts. Without COLLECTION, list the collections.

    \b
    Example:
      xqg-vdb info demo
    """
    store = chosen_store(path, url)
    try:
        if collection is None:
            names = store.names()
            print_json(names) if as_json else click.echo("\n".join(names) or "no collections yet: xqg-vdb load --help")
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
    finally:
        store.close()
