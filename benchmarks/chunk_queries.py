"""Queries of a document that is cut into chunks: fold them into all chunks, or into the nearest one, or into the first.

    python benchmarks/chunk_queries.py --data-dir DATA --work /tmp/chunk-queries

Documents are XQuAD's articles (five paragraphs each) or two paragraphs of one, cut by `--chunk 100:20`; their queries
are the recorded ones of their paragraphs in eleven languages; questions are calibrated and ask for the document.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from xqg_vdb import Encoder, Recipe
from xqg_vdb.evaluate.datasets import data_folder, load_task
from xqg_vdb.fusion import fuse
from xqg_vdb.index.chunks import splitter
from xqg_vdb.index.encode import QueryVectors, encode_cached, encode_query_files
from xqg_vdb.models.folder import encoder_folder
from xqg_vdb.search import QuestionEncoder
from xqg_vdb.types import Passage, Vectors

RECORDED = Path(__file__).parent / "queries" / "xquad-en.starter.filtered.jsonl"


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Encoded texts are kept here.")
@click.option("--encoder", "model", default="starter", show_default=True)
@click.option("--threads", type=int)
def main(data_dir: Path | None, work: Path, model: str, threads: int | None) -> None:
    """Print R@1 and MRR of documents."""
    with Encoder(encoder_folder(model), threads=threads) as encoder:
        task = load_task("xquad", data_folder(data_dir))
        passages = list(task.passages)
        queries = encode_query_files([RECORDED], [passage.id for passage in passages], encoder=encoder, folder=work)
        asked, _ = QuestionEncoder(encoder).encode(task.queries)
        rows = {passage.id: row for row, passage in enumerate(passages)}
        gold = np.array([rows[next(iter(task.qrels[question.id]))] for question in task.queries])
        for size in (5, 2):
            click.echo(f"\n{-(-len(passages) // size)} documents of {size} paragraphs\n\n| | R@1 | MRR |")
            click.echo("|---|---|---|")
            for name, matrix, owners in systems(passages, queries, size=size, encoder=encoder, work=work):
                first, mrr = measured(asked @ matrix.T, owners, gold // size)
                click.echo(f"| {name} | {first:.3f} | {mrr:.3f} |")


def systems(
    passages: list[Passage], queries: QueryVectors, *, size: int, encoder: Encoder, work: Path
) -> list[tuple[str, Vectors, np.ndarray]]:
    """Each with its vectors and the document of every row."""
    split = splitter(encoder, "100:20")
    parts = [passages[start : start + size] for start in range(0, len(passages), size)]
    documents = [replace(part[0], text="\n".join(passage.text for passage in part)) for part in parts]
    chunks = [(chunk, number) for number, document in enumerate(documents) for chunk in split(document)]
    owners = np.array([number for _, number in chunks])
    texts = [document.title_and_text for document in documents], [chunk.title_and_text for chunk, _ in chunks]
    whole, plain = (encode_cached(each, encoder=encoder, kind="passages", folder=work) for each in texts)
    document_of_query = queries.owner // size
    places = [np.flatnonzero(owners == number) for number in range(len(documents))]
    nearest = np.array(
        [places[number][np.argmax(plain[places[number]] @ row)]
         for number, row in zip(document_of_query, queries.vectors, strict=True)]
    )  # fmt: skip
    everywhere = [(query, place) for query, number in enumerate(document_of_query) for place in places[number]]
    means = encoder.language_means.refined(queries.means(), capped=True).means

    def fused(base: Vectors, rows: np.ndarray, at: np.ndarray) -> Vectors:
        moved = QueryVectors(queries.vectors[rows], at, queries.index[rows], queries.lang[rows])
        return fuse(base, moved.sums(passages=len(base)), recipe=Recipe(), means=means, normalize=True)

    every, first = np.arange(len(nearest)), np.array([places[number][0] for number in document_of_query])
    both = np.array(everywhere)
    return [
        ("whole, cut at 512 tokens", whole, np.arange(len(documents))),
        ("whole, with queries", fused(whole, every, document_of_query), np.arange(len(documents))),
        ("chunks", plain, owners),
        ("chunks, queries in all", fused(plain, both[:, 0], both[:, 1]), owners),
        ("chunks, queries in the nearest", fused(plain, every, nearest), owners),
        ("chunks, queries in the first", fused(plain, every, first), owners),
    ]


def measured(scores: np.ndarray, owners: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    """R@1 and MRR of the questions' documents by their best chunk."""
    best = np.full((len(scores), owners.max() + 1), -np.inf)
    for column, owner in enumerate(owners):
        best[:, owner] = np.maximum(best[:, owner], scores[:, column])
    ranks = 1 + (best > best[np.arange(len(gold)), gold][:, None]).sum(axis=1)
    return float((ranks == 1).mean()), float((1 / ranks).mean())


if __name__ == "__main__":
    main()
