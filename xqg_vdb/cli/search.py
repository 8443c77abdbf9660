"""`xqg-vdb search`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options

_SNIPPET = 160


@click.command()
@click.argument("collection")
@click.argument("text", required=False)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many passages.")
@click.option("-l", "--lang", "langs", multiple=True, help="Only passages in this language; repeatable.")
@click.option("--query-lang", help="Language of the question  [default: detected]")
@click.option("--queries", type=click.Path(path_type=Path), help="Ask every question of this file instead of TEXT.")
@click.option("--no-calibration", is_flag=True, help="Do not calibrate for the question's language.")
@click.option("--exact", is_flag=True, help="Compare with every passage instead of walking the graph.")
@click.option("--encoder", "model", metavar="MODEL", help="Folder, hub id or starter  [default: the one that made it]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]")
@store_options
@json_option
def search(
    collection: str,
    text: str | None,
    k: int,
    langs: tuple[str, ...],
    query_lang: str | None,
    queries: Path | None,
    no_calibration: bool,
    exact: bool,
    model: str | None,
    threads: int | None,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Ask COLLECTION a question in any language.

    \b
    Example:
      xqg-vdb search demo 'Mto gani mrefu zaidi barani Afrika?' -k 3
    """
    if (text is None) == (queries is None):
        raise click.UsageError("give a question, or --queries FILE")
    from xqg_vdb.collection import Collection
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.questions import read_questions
    from xqg_vdb.retrieval import Retriever
    from xqg_vdb.types import Query

    asked = read_questions(queries) if queries is not None else [Query("0", text or "", query_lang)]
    with Collection(collection, chosen_store(path, url)) as found:
        folder = ensure_encoder(model or _name_of(found.card.encoder.source), report=say)
        with Encoder(folder, threads=threads) as encoder:
            retriever = Retriever(encoder, found, calibration=0.0 if no_calibration else None)
            answers = retriever.run(asked, k=k, langs=langs or None, exact=exact)
    if as_json:
        print_json([{"id": a.query.id, "text": a.query.text, "lang": a.lang, "hits": [asdict(h) for h in a.hits]} for a in answers])
        return
    for answer in answers:
        if queries is not None:
            click.secho(f"{answer.query.id}\t{answer.query.text}", bold=True)
        for rank, hit in enumerate(answer.hits, 1):
            click.echo(f"{rank:2d}  {hit.score:.3f}  {hit.id}  [{hit.lang}]  {hit.title}")
            click.echo(f"    {_snippet(hit.text)}")


def _name_of(source: str) -> str:
    from xqg_vdb.checkpoints import STARTER_ENCODER
    from xqg_vdb.model_folder import STARTER

    return STARTER if source == STARTER_ENCODER else source


def _snippet(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SNIPPET else line[: _SNIPPET - 1] + "…"
