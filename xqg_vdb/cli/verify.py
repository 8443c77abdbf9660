"""`xqg-vdb verify`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, store_options


@click.command()
@click.argument("collection")
@click.option("--build", type=click.Path(path_type=Path), help="Compare sampled vectors with what this build makes.")
@click.option("--sample", type=click.IntRange(min=1), default=1000, show_default=True, help="How many of them.")
@store_options
@json_option
def verify(collection: str, build: Path | None, sample: int, path: str | None, url: str | None, as_json: bool) -> None:
    """Read every point of COLLECTION and compare counts, texts and vectors with its card; exit code 8 when they differ.

    \b
    Example:
      xqg-vdb verify wiki --build vectors/
    """  # noqa: D301 - \b is click's
    from xqg_vdb.errors import CorruptError
    from xqg_vdb.progress import bars
    from xqg_vdb.verifying import verify as check

    with ExitStack() as stack:
        store = stack.enter_context(closing(chosen_store(path, url)))
        progress = stack.enter_context(bars(unit=" points"))
        found = check(store, collection, build=build, sample=sample, progress=progress)
    if as_json:
        print_json(asdict(found))
    else:
        by_language = ", ".join(f"{n} {lang}" for lang, n in found.languages.items()) or "none"
        click.echo(f"{collection} {found.version}: {found.points} points ({by_language})")
        if found.lowest_cosine is not None:
            click.echo(f"{found.compared} vectors compared with the build, lowest cosine {found.lowest_cosine:.6f}")
    if found.problems:
        raise CorruptError(f"{collection} is damaged: {'; '.join(found.problems)}. Load it again.")
    if not as_json:
        click.echo("all is well")
