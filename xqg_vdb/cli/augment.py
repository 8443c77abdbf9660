"""`xqg-vdb augment`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import chosen_store, encoder_options, json_option, print_json, say, store_options
from xqg_vdb.cli.recipe_options import chosen_recipe, recipe_options
from xqg_vdb.errors import DataError

if TYPE_CHECKING:
    from xqg_vdb.augmenting import AugmentReport
    from xqg_vdb.collection.server import ServerStore


@click.command()
@click.argument("collection")
@encoder_options
@click.option(
    "--queries", "query_files", multiple=True, type=click.Path(path_type=Path), help="Generated queries; repeatable."
)
@click.option("--to", metavar="NAME", help="Name of the new collection  [default: COLLECTION-xqg]")
@click.option("--undo", is_flag=True, help="Delete the copy; an alias points where it pointed before.")
@click.option("--vector", metavar="VECTOR", help='The searched vector, "" for the unnamed  [default: recognised]')
@click.option("--text-key", metavar="KEY", help="Where payloads have the text  [default: recognised]")
@click.option("--id-key", metavar="KEY", help="Where payloads have the queries' id  [default: recognised, or point id]")
@recipe_options
@click.option(
    "--sample", type=click.IntRange(1, 256), default=32, show_default=True, help="Passages to check the encoder on."
)
@click.option("--max-rejects", type=click.IntRange(min=0), default=0, show_default=True, help="Bad lines to bear.")
@store_options
@json_option
def augment(
    collection: str,
    model: str,
    threads: int | None,
    query_files: tuple[Path, ...],
    to: str | None,
    undo: bool,
    vector: str | None,
    text_key: str | None,
    id_key: str | None,
    sample: int,
    max_rejects: int,
    path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Fold generated queries into COLLECTION of a Qdrant server, whoever made it (LangChain, LlamaIndex, Haystack ...).

    Its passages are not encoded again, except a sample that shows whether the encoder is the one that made the
    vectors. A copy is made, and its name appears when it is complete. Stopped at any point, the same
    command goes on.

    \b
    Example:
      xqg-vdb augment docs --queries queries.jsonl --encoder my-model/ --url http://localhost:6333
      xqg-vdb augment docs --undo --url http://localhost:6333
    """  # noqa: D301 - \b is click's
    from xqg_vdb.augmenting import Wishes
    from xqg_vdb.augmenting import augment as run
    from xqg_vdb.augmenting import undo as take_back
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.records import Rejects

    if undo == bool(query_files):
        raise click.UsageError("give --queries, or --undo")
    recipe = chosen_recipe()
    with ExitStack() as stack:
        store = stack.enter_context(closing(_server(path, url)))
        if undo:
            said = take_back(collection, store=store, to=to)
            print_json({"undone": said}) if as_json else click.echo(said)
            return
        store.foreign(collection)  # a wrong name says so before a model is exported
        encoder = stack.enter_context(Encoder(ensure_encoder(model, report=say), threads=threads))
        report = run(
            collection, store=store, encoder=encoder, queries=query_files, recipe=recipe,
            wishes=Wishes(to, vector, text_key, id_key), sample=sample, rejects=Rejects(max_rejects),
            progress=stack.enter_context(bars(unit=" points")),
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)


def _server(path: str | None, url: str | None) -> ServerStore:
    from xqg_vdb.collection.server import ServerStore

    store = chosen_store(path, url)
    if not isinstance(store, ServerStore):
        store.close()
        raise DataError("augment is for collections on a Qdrant server: give its address with --url.")
    return store


def _show(report: AugmentReport) -> None:
    counts = report.counts
    folded = ", ".join(f"{n} {lang}" for lang, n in report.queries.items()) or "none"
    click.echo(f"{report.collection}: {counts.points} points ({report.layout}); queries folded in: {folded}")
    click.echo(f"the encoder made these vectors: median cosine {report.cosine:.4f} on a sample")
    click.echo(f"fused vector: {report.vector or 'the unnamed one'}; the originals: collection {report.source}")
    missing = {
        "without a text": counts.without_text,
        "without the vector": counts.without_vector,
        "without queries": counts.without_queries,
    }
    if any(missing.values()):
        click.echo("points: " + ", ".join(f"{n} {what}" for what, n in missing.items() if n))
    if counts.unused_queries:
        click.echo(f"{counts.unused_queries} query records belong to no point of this collection")
