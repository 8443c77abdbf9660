"""One cell: one system on one dataset, written into a real collection and asked.

In: a system's vectors. Out: what was found for every question, the metrics' value for every question, and seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from xqg_vdb.bench.asking import Cost, answers
from xqg_vdb.bench.cell_files import Cell, with_spent
from xqg_vdb.bench.judging import judge_run, needed_depth
from xqg_vdb.bench.placing import Placed
from xqg_vdb.bench.spent import Again, Ranking
from xqg_vdb.bench.suite import Search
from xqg_vdb.collection.layout import TEXT_DENSE, Digest
from xqg_vdb.datasets import RetrievalTask
from xqg_vdb.datasets.task import POOL
from xqg_vdb.metrics import Run
from xqg_vdb.score_matrix import as_run, id_order, search_rows
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, EncoderFacts, Passage, PointBatch, Vectors, VectorStore

SHARE_DEPTH = 20
_WINDOW = 1024


def run_cell(
    task: RetrievalTask,
    passages: Sequence[Passage],
    placed: Placed,
    *,
    encoder: EncoderFacts,
    metrics: Sequence[str],
    depth: int,
    search: Search,
    store: VectorStore | None,
    again: Again | None = None,
) -> tuple[Cell, Run]:
    """Write, ask and judge. store: where the collections go, one a pool, each removed after use; None for `memory`.

    again: ranks what was found again.
    """
    depth = max(depth, needed_depth(metrics))
    seconds, cost = {"write": 0.0, "search": 0.0}, Cost()
    run: Ranking = {}
    for rows, asked in _pools(task, passages):
        inside = placed if not task.pooled else _inside(placed, rows, asked)
        part = [passages[row] for row in rows]
        ids = [task.queries[row].id for row in asked]
        if store is None:
            started = time.perf_counter()
            run.update(rank_in_memory(inside, ids, passage_ids=[passage.id for passage in part], k=depth))
            seconds["search"] += time.perf_counter() - started
        else:
            asking = partial(_ask, store, part, inside, ids, encoder=encoder, depth=depth, search=search)
            run.update(asking(seconds=seconds, cost=cost))
    spent = None
    if again is not None:
        run, spent = again(run)
    started = time.perf_counter()
    values, tokenizer = judge_run(task, passages, placed, run, metrics=metrics)
    seconds["judge"] = time.perf_counter() - started
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    cell = Cell(values, rounded, tokenizer, language_shares(task, passages, run), cost.facts(len(passages)))
    return cell if spent is None else with_spent(cell, spent), run


def language_shares(task: RetrievalTask, passages: Sequence[Passage], run: Run) -> dict[str, dict[str, float]]:
    """Which languages the first 20 passages are in, by the question's language; {} for passages of one language."""
    lang_of = {passage.id: passage.lang for passage in passages}
    if len(set(lang_of.values())) < 2 or task.pooled:
        return {}
    seen: dict[str, Counter[str]] = {}
    for query in task.queries:
        best = sorted(run[query.id], key=lambda hit: (-hit[1], hit[0]))[:SHARE_DEPTH]
        seen.setdefault(query.lang or UNKNOWN_LANGUAGE, Counter()).update(lang_of[docid] for docid, _ in best)
    return {
        asked: {lang: found[lang] / found.total() for lang in sorted(set(lang_of.values()))}
        for asked, found in sorted(seen.items())
    }


def rank_in_memory(
    placed: Placed, ids: Sequence[str], *, passage_ids: Sequence[str], k: int
) -> dict[str, list[tuple[str, float]]]:
    """What an exact search of the real collection finds, by matrix product; ids: of the questions."""
    found = search_rows(placed.questions, placed.passages, k=k, tie_order=id_order(passage_ids))
    return as_run(*found, query_ids=ids, passage_ids=passage_ids)


def _inside(placed: Placed, rows: Sequence[int], asked: Sequence[int]) -> Placed:
    """One pool of a pooled task: these passages, these questions."""
    words = placed.words and placed.words.inside(rows, asked)
    return replace(placed, passages=placed.passages[rows], questions=placed.questions[asked], words=words)


def _pools(task: RetrievalTask, passages: Sequence[Passage]) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of the passages and of the questions of each pool; one pool with everything unless the task is pooled."""
    if not task.pooled:
        yield list(range(len(passages))), list(range(len(task.queries)))
        return
    for group in sorted(set(task.groups.values())):
        inside = [row for row, passage in enumerate(passages) if passage.meta[POOL] == group]
        yield inside, [row for row, query in enumerate(task.queries) if task.groups[query.id] == group]


def _ask(
    store: VectorStore,
    passages: Sequence[Passage],
    placed: Placed,
    ids: Sequence[str],
    *,
    encoder: EncoderFacts,
    depth: int,
    search: Search,
    seconds: dict[str, float],
    cost: Cost,
) -> dict[str, list[tuple[str, float]]]:
    name = "xqg-bench"
    started = time.perf_counter()
    write_passages(store, name, passages, placed, encoder=encoder)
    written = time.perf_counter()
    run: dict[str, list[tuple[str, float]]] = {}
    for block, found in answers(store, name, placed, k=depth, search=search):
        run.update({ids[row]: [(h.id, h.score) for h in hits] for row, hits in zip(block, found, strict=True)})
    seconds["write"] += written - started
    seconds["search"] += time.perf_counter() - written
    cost.measure(store, name, placed, search=search)
    store.delete(name)
    return run


def write_passages(
    store: VectorStore, name: str, passages: Sequence[Passage], placed: Placed, *, encoder: EncoderFacts
) -> None:
    """Write one system's passages as the collection `name`, replacing what an unfinished run left there."""
    if name in store.names():
        store.delete(name)
    digest = Digest()
    for passage in passages:
        digest.add(passage.id, passage.text)
    card = Card(
        encoder=encoder,
        distance="cosine" if encoder.normalize else "dot",
        recipe=placed.recipe,
        bm25=None if placed.words is None else placed.words.settings,
        query_langs=placed.query_langs,
        rows_digest=_rows_digest(placed.passages),
    )
    with store.writer(name, card=card) as writer:
        for start in range(0, len(passages), _WINDOW):
            window = slice(start, start + _WINDOW)
            writer.upsert(_batch(passages, placed, window))
        writer.commit(len(passages))
        writer.publish(replace(card, count=len(passages), digest=digest.hexdigest()))


def _batch(passages: Sequence[Passage], placed: Placed, rows: slice) -> PointBatch:
    vectors = {TEXT_DENSE: np.ascontiguousarray(placed.passages[rows], dtype=np.float32)}
    words = None if placed.words is None else placed.words.passages[rows]
    return PointBatch(passages[rows], vectors, [()] * len(passages[rows]), sparse=words)


def _rows_digest(rows: Vectors) -> str:
    return hashlib.blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=16).hexdigest()
