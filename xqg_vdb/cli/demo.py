"""`xqg-vdb demo`."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import json_option, print_json, say

if TYPE_CHECKING:
    from xqg_vdb.demo import DemoResult


@click.command()
@click.option(
    "--path",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="./xqg-data",
    show_default=True,
    help="Where the collections go.",
)
@json_option
def demo(path: Path, as_json: bool) -> None:
    """Run the whole flow on the sample corpus with a real multilingual encoder, and show what it gains.

    Exports the starter encoder (once, about two minutes), loads 60 passages in six languages plain and with generated
    queries in ten languages, and asks 600 held-out questions.

    \b
    Example:
      xqg-vdb demo
    """  # noqa: D301 - \b is click's
    from xqg_vdb.collection import open_store
    from xqg_vdb.demo import run_demo
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.model_folder import STARTER
    from xqg_vdb.models import ensure_encoder

    folder = ensure_encoder(STARTER, report=say)
    with closing(open_store(path)) as store, Encoder(folder) as encoder:
        result = run_demo(encoder, store, build=path / "demo-vectors", report=say)
    if as_json:
        print_json({**asdict(result), "example": None})
        return
    _show(result)
    say("\nNext:")
    for arguments in (["search", "demo", "Mto Nile una urefu gani?", "-k", "3"], ["info", "demo"]):
        say("  " + shlex.join(["xqg-vdb", *arguments, "--path", str(path)]))
    say("  xqg-vdb load --help")


def _show(result: DemoResult) -> None:
    from xqg_vdb.demo import SYSTEMS
    from xqg_vdb.languages import english_name

    click.echo(f"\nRecall@1 of {result.questions} held-out questions over {result.passages} passages\n")
    click.echo(f"{'question in':12s}" + "".join(f"{name:>18s}" for name in SYSTEMS))
    for lang, row in result.recall.items():
        click.echo(f"{english_name(lang):12s}" + "".join(f"{row[name]:18.2f}" for name in SYSTEMS))
    click.echo(f"{'mean':12s}" + "".join(f"{result.macro[name]:18.3f}" for name in SYSTEMS))
    if result.example:
        text, lang, hits = result.example
        click.echo(f"\n{english_name(lang)}: {text}")
        for name in SYSTEMS:
            click.echo(f"  {name:17s} → {hits[name].title} [{hits[name].lang}]")
