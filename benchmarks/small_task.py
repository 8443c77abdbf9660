"""What the benchmarks of the two neighbouring methods share: some of a task's questions, its collection, a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.datasets.task import RetrievalTask, sampled_questions
from xqg_vdb.evaluate.matrix import per_query
from xqg_vdb.evaluate.metrics import group_means, mean, parse_metrics
from xqg_vdb.index.load import load
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.search.retriever import Collection
from xqg_vdb.store import open_store
from xqg_vdb.types import Hit, Question

METRICS = ("R@1", "R@10", "MRR@10")


def options(text: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("XQG_DATA_DIR", "../shared/data")))
    parser.add_argument("--work", type=Path, required=True, help="folder for the collection (kept between runs)")
    parser.add_argument("--model", default="starter:generator", help="generator folder or name")
    parser.add_argument("--task", default="xquad", choices=["xquad", "afriqa"])
    parser.add_argument("--langs", nargs="+", default=["de", "ar", "zh"], help="question languages")
    parser.add_argument("--questions", type=int, default=20, help="a sample of so many of each language")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser


def some_questions(given: argparse.Namespace) -> RetrievalTask:
    """The task with a sample of the questions of each language only."""
    try:
        task = load_task(given.task, given.data_dir)
    except DataError as error:
        sys.exit(f"skipped: {error}")
    return sampled_questions(task.narrowed(q.id for q in task.queries if q.lang in given.langs), given.questions)


def in_turn(task: RetrievalTask) -> list[Question]:
    """The questions, a question of each language at a time: whenever one stops, the languages have equally many."""
    groups: dict[str, list[Question]] = {}
    for query in task.queries:
        groups.setdefault(task.groups[query.id], []).append(query)
    return [query for several in zip_longest(*groups.values()) for query in several if query is not None]


def collection_of(task: RetrievalTask, encoder: Encoder, work: Path) -> Collection:
    """The passages without generated queries, in an embedded collection; encoded once per `work`."""
    work.mkdir(parents=True, exist_ok=True)
    name, store = task.name.replace("+", "-"), open_store(work / "store")
    if name in store.names():
        return Collection(name, store)
    corpus = work / f"{name}.jsonl"
    records = ({"id": p.id, "title": p.title, "text": p.text, "lang": p.lang} for p in task.passages)
    corpus.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return load(str(corpus), name, encoder=encoder, store=store).collection


def measured(task: RetrievalTask, rankings: Mapping[str, Sequence[Hit]]) -> dict[str, dict[str, float]]:
    """Metric -> language -> mean, with `mean` over the languages."""
    # a run holds scores; ranks stand for them, because those of an unfinished re-ranking need not be comparable
    run = {qid: [(hit.id, -float(rank)) for rank, hit in enumerate(hits)] for qid, hits in rankings.items()}
    values = per_query(run, task.qrels, metrics=parse_metrics(METRICS))
    table = {str(metric): group_means(per, groups=task.groups) for metric, per in values.items()}
    return {metric: {**cells, "mean": mean(cells)} for metric, cells in table.items()}


def print_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], langs: Iterable[str]) -> None:
    """R@1 and MRR@10 by language as a Markdown table, a row per system."""
    columns = [*langs, "mean"]
    print("| | " + " | ".join(f"{metric} {lang}" for metric in ("R@1", "MRR@10") for lang in columns) + " |")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for name, cells in rows.items():
        shown = [f"{cells[metric][lang]:.2f}" for metric in ("R@1", "MRR@10") for lang in columns]
        print(f"| {name} | " + " | ".join(shown) + " |")


def by_id(queries: Iterable[Question], hits: Iterable[Sequence[Hit]]) -> dict[str, Sequence[Hit]]:
    """Question id -> its hits."""
    return {query.id: found for query, found in zip(queries, hits, strict=True)}


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr)
