"""`xqg-vdb demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xqg_vdb.cli.options import json_option, print_json, say

_NAMES = "ar Arabic bn Bengali de German es Spanish ha Hausa ja Japanese ru Russian sw Swahili yo Yoruba zh Chinese".split()


@click.command()
@click.option("--path", type=click.Path(file_okay=False, path_type=Path), default="./xqg-data", show_default=True, metavar="DIR")
@json_option
def demo(path: Path, as_json: bool) -> None:
    """Run the whole flow on the sample corpus with a real multilingual encoder, and show what it gains.

    Exports the starter encoder (once, about two minutes), loads 60 passages in six languages plain and with generated
    queries in ten languages, and asks 600 held-out questions.

    \b
    Example:
      xqg-vdb demo
    """
    from xqg_vdb.collection import open_store
    from xqg_vdb.demo import SYSTEMS, run_demo
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.model_folder import STARTER
    from xqg_vdb.models import ensure_encoder

    folder = ensure_encoder(STARTER, report=say)
    store = open_store(path)
    try:
        with Encoder(folder) as encoder:
            result = run_demo(encoder, store, build=path / "demo-vectors", report=say)
    finally:
        store.close()
    if as_json:
        print_json({**asdict(result), "example": None})
        return
    names = dict(zip(_NAMES[::2], _NAMES[1::2], strict=True))
    click.echo(f"\nRecall@1 of {result.questions} held-out questions over {result.passages} passages\n")
    click.echo(f"{'question in':12s}" + "".join(f"{name:>18s}" for name in SYSTEMS))
    for lang, row in result.recall.items():
        click.echo(f"{names.get(lang, lang):12s}" + "".join(f"{row[name]:18.2f}" for name in SYSTEMS))
    click.echo(f"{'mean':12s}" + "".join(f"{result.macro[name]:18.3f}" for name in SYSTEMS))
    if result.example:
        text, lang, hits = result.example
        click.echo(f"\n{names.get(lang, lang)}: {text}")
        for name in SYSTEMS:
            click.echo(f"  {name:17s} → {hits[name].title} [{hits[name].lang}]")
    click.echo(
        f"\nNext:\n  xqg-vdb search demo 'Mto gani mrefu zaidi barani Afrika?' -k 3 --path {path}\n"
        f"  xqg-vdb info demo --path {path}\n  xqg-vdb load --help"
    )
