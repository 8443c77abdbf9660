"""`xqg-vdb search`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.methods import chosen_expander, chosen_reranker, expand_options, report_methods, rerank_options
from xqg_vdb.cli.options import chosen_store, json_option, print_json, say, store_options

if TYPE_CHECKING:
    from xqg_vdb.retrieval import Answer

_SNIPPET = 160


@click.command()
@click.argument("collection")
@click.argument("text", required=False)
@click.option("-k", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many passages.")
@click.option("-l", "--lang", "langs", multiple=True, help="Only passages in this language; repeatable.")
@click.option("--query-lang", help="Language of the question  [default: detected]")
@click.option("--queries", type=click.Path(path_type=Path), help="Ask every question of this file instead.")
@click.option("--no-calibration", is_flag=True, help="Do not calibrate for the question's language.")
@click.option("--hybrid", is_flag=True, help="Search the words too (BM25) and fuse both rankings (RRF).")
@click.option("--exact", is_flag=True, help="Compare with every passage instead of walking the graph.")
@click.option("--encoder", "model", metavar="MODEL", help="Folder, hub id or starter  [default: the one that made it]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]")
@expand_options
@rerank_options
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
    hybrid: bool,
    exact: bool,
    model: str | None,
    threads: int | None,
    expand: str | None,
    expand_lang: str | None,
    expand_model: str,
    rerank: str | None,
    rerank_depth: int,
    rerank_weight: float,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Ask COLLECTION a question in any language.

    \b
    Example:
      xqg-vdb search demo 'Mto Nile una urefu gani?' -k 3
      xqg-vdb search demo 'Mto Nile una urefu gani?' -k 3 --rerank upr:starter:generator --rerank-depth 20
    """  # noqa: D301 - \b is click's
    if (text is None) == (queries is None):
        raise click.UsageError("give a question, or --queries FILE")
    from xqg_vdb.collection import Collection
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.models import encoder_of, ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.questions import read_questions
    from xqg_vdb.retrieval import Retriever
    from xqg_vdb.types import Query

    asked = read_questions(queries) if queries is not None else [Query("0", text or "")]
    asked = [replace(query, lang=query.lang or query_lang) for query in asked]
    with Collection(collection, chosen_store(path, url)) as found:
        folder = (
            ensure_encoder(model, report=say) if model else encoder_of(found.card, collection=collection, report=say)
        )
        expander = chosen_expander(expand, lang=expand_lang, endpoint_model=expand_model, threads=threads)
        reranker = chosen_reranker(rerank, depth=rerank_depth, weight=rerank_weight, threads=threads)
        with Encoder(folder, threads=threads) as encoder, bars(unit=" passages") as progress:
            strength = 0.0 if no_calibration else None
            retriever = Retriever(
                encoder, found, calibration=strength, hybrid=hybrid, expander=expander, reranker=reranker
            )
            answers = retriever.run(asked, k=k, langs=langs or None, exact=exact, progress=progress)
    if expander is not None:
        expander.close()
    seconds = report_methods(expander, reranker)
    if as_json:
        print_json([_record(answer) | ({"seconds": seconds} if seconds else {}) for answer in answers])
        return
    for answer in answers:
        if queries is not None:
            click.secho(f"{answer.query.id}\t{answer.query.text}", bold=True)
        _show(answer)


def _show(answer: Answer) -> None:
    if not answer.hits:
        say("Nothing found: the collection has no passage in those languages.")
    for rank, hit in enumerate(answer.hits, 1):
        click.echo(f"{rank:2d}  {hit.score:.3f}  {hit.id}  [{hit.lang}]  {hit.title}")
        click.echo(f"    {_snippet(hit.text)}")


def _record(answer: Answer) -> dict[str, object]:
    query, hits = answer.query, [asdict(hit) for hit in answer.hits]
    return {"id": query.id, "text": query.text, "lang": answer.lang, "hits": hits}


def _snippet(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SNIPPET else line[: _SNIPPET - 1] + "…"
