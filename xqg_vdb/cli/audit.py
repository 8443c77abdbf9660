"""`xqg-vdb audit`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options

if TYPE_CHECKING:
    from xqg_vdb.tuning.audit import Audited, Share

_SHOWN = 5


@click.command()
@click.argument("collection")
@click.argument("query_files", metavar="QUERIES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Found means among the first k.")
@click.option("--sample", type=click.IntRange(min=10), default=2000, show_default=True, help="Passages to ask for.")
@click.option("--encoder", "model", metavar="MODEL", help="Folder, hub id or starter  [default: the one that made it]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]")
@store_options
@json_option
def audit(
    collection: str,
    query_files: tuple[Path, ...],
    k: int,
    sample: int,
    model: str | None,
    threads: int | None,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Tell which languages COLLECTION fails, worst first, without labels.

    Do generated QUERIES find their own passages? One query per passage and language is asked, plain and calibrated. A
    collection that has these queries folded in is judged too kindly.

    \b
    Example:
      xqg-vdb audit wiki queries.jsonl -k 10
    """  # noqa: D301 - \b is click's
    from xqg_vdb.collection import Collection
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.files import open_lines
    from xqg_vdb.model_folder import cache_folder
    from xqg_vdb.models import encoder_of, ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.tuning.audit import audit as run_audit

    for file in query_files:
        open_lines(file)
    with ExitStack() as stack:
        found = stack.enter_context(Collection(collection, chosen_store(path, url)))
        made_by = (
            ensure_encoder(model, report=say) if model else encoder_of(found.card, collection=collection, report=say)
        )
        encoder = stack.enter_context(Encoder(made_by, threads=threads))
        progress = stack.enter_context(bars(unit=""))
        result = run_audit(
            found, query_files, encoder=encoder, folder=cache_folder() / "tuning", k=k, sample=sample, progress=progress
        )
    if as_json:
        print_json(asdict(result))
        return
    _show(result)


def _show(found: Audited) -> None:
    click.echo(f"{found.collection}: {found.passages} of {found.in_collection} passages asked for; recall@{found.k}\n")
    click.echo("language  queries  calibrated            plain                 folded in")
    for one in found.languages:
        folded = "yes" if one.folded else "no"
        click.echo(f"{one.lang:8s}  {one.queries:7d}  {_words(one.calibrated)}  {_words(one.plain)}  {folded}")
    few = ", ".join(found.lost[:_SHOWN]) + (" …" if len(found.lost) > _SHOWN else "")
    click.echo(f"\nfound by no language: {len(found.lost)} passages" + (f" ({few})" if found.lost else ""))
    if any(one.folded for one in found.languages):
        click.echo("note: queries of the languages marked yes are folded in; these were made to find their passages.")
    click.echo("note: an estimate without labels ranks languages and says nothing about α; `xqg-vdb tune` does.")
    if found.strangers:
        ids = ", ".join(found.first_strangers)
        click.echo(f"note: {found.strangers} query records are of no passage of the collection ({ids})")


def _words(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
