"""One cell: one system on one dataset, written into a real collection and asked.

In: a system's vectors. Out: what was found for every question, the metrics' value for every question, and seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from xqg_vdb.errors import CorruptError
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask
from xqg_vdb.evaluate.judge import judge_run, needed_depth
from xqg_vdb.evaluate.matrix import as_run, id_order, search_rows
from xqg_vdb.evaluate.methods import Again, Ranking, Spent
from xqg_vdb.evaluate.metrics import Run, write_run
from xqg_vdb.evaluate.suite import SearchMode
from xqg_vdb.evaluate.systems import Placed
from xqg_vdb.files import write_atomic
from xqg_vdb.progress import windows
from xqg_vdb.search.retriever import DEPTH, fuse_ranks
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_SPARSE, Digest
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, EncoderFacts, Hit, Passage, PointBatch, Search, Vectors, VectorStore

# Asking the collection of one system: every question for the ranking, some of them alone for the time it takes.

TIMED = 200
TIMED_K = 10

_QUESTIONS_AT_ONCE = 256


def answers(
    store: VectorStore, name: str, placed: Placed, *, k: int, search: SearchMode
) -> Iterator[tuple[list[int], list[list[Hit]]]]:
    """Rows of questions with the k best passages of each, a few hundred at a time."""
    for rows in windows(range(len(placed.questions)), _QUESTIONS_AT_ONCE):
        yield rows, found(store, name, placed, rows, k=k, search=search)


def found(
    store: VectorStore, name: str, placed: Placed, rows: Sequence[int], *, k: int, search: SearchMode
) -> list[list[Hit]]:
    """The k best per question as `Retriever` finds them; fused with those by the words for a hybrid system."""
    depth = k if placed.words is None else max(k, DEPTH)
    exact = search == "exact"
    asked = placed.questions[list(rows)]
    hits = store.search(name, asked, Search(depth, using=TEXT_DENSE, exact=exact))
    if placed.words is None:
        return hits
    words = [placed.words.questions[row] for row in rows]
    spoken = [i for i, one in enumerate(words) if len(one.indices)]
    by_words: list[list[Hit]] = [[] for _ in rows]
    if spoken:
        said = [words[i] for i in spoken]
        more = store.search(name, said, Search(depth, using=TEXT_SPARSE, exact=exact))
        for i, own in zip(spoken, more, strict=True):
            by_words[i] = own
    return [fuse_ranks(both, k=k) for both in zip(hits, by_words, strict=True)]


class Cost:
    """What a system costs: bytes of its vectors as they are written, and the time of single look-ups.

    Neither the index nor the text is counted, nor the time in which a question is encoded: they hardly differ.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._milliseconds: list[float] = []

    def measure(self, store: VectorStore, name: str, placed: Placed, *, search: SearchMode) -> None:
        """Count the vectors of the collection, and ask up to 200 questions one by one for 10 passages."""
        self._bytes += 4 * placed.passages.size
        if placed.words is not None:
            self._bytes += sum(one.indices.nbytes + one.values.nbytes for one in placed.words.passages)
        every = range(len(placed.questions))
        for row in every[:: max(len(every) // TIMED, 1)][:TIMED]:
            started = time.perf_counter()
            found(store, name, placed, [row], k=TIMED_K, search=search)
            self._milliseconds.append(1000 * (time.perf_counter() - started))

    def facts(self, passages: int) -> dict[str, float]:
        """Bytes a passage, and the median and the 95th percentile of the milliseconds; {} when nothing was measured."""
        if not self._milliseconds:
            return {}
        p50, p95 = np.percentile(self._milliseconds, [50, 95]).tolist()
        return {"bytes a passage": round(self._bytes / passages), "p50 ms": round(p50, 3), "p95 ms": round(p95, 3)}


# What a cell holds, and its file: finished cells are kept under all that they depend on, and skipped.


@dataclass(frozen=True)
class Cell:
    """What one system did on one dataset.

    values: metric -> question id -> value. seconds: by phase. tokenizer: of the answer recall, if there was any.
    shares: question language -> passage language -> share of the first 20, where the passages have several languages.
    cost: bytes of vectors a passage and milliseconds a look-up, unless all was ranked in memory; milliseconds of a
        question's expansion and reranking. notes: what a reader must know of them.
    """

    values: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    tokenizer: str = ""
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def cell_key(facts: Mapping[str, Any]) -> str:
    """A name for everything that a cell depends on, 24 hexadecimal digits."""
    raw = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(raw, digest_size=12).hexdigest()


def with_spent(cell: Cell, spent: Spent) -> Cell:
    """The cell with what one of its methods cost."""
    return replace(
        cell,
        seconds={**cell.seconds, spent.method: round(spent.seconds, 3)},
        cost={**cell.cost, **spent.cost()},
        notes=(*cell.notes, *spent.notes),
    )


def save_cell(path: Path, cell: Cell, *, run: Path, found: Run) -> None:
    """Keep a cell and its run as a TREC file; the cell comes last, so that where it is, the run is too."""
    write_run(run, found, tag="xqg-vdb")
    write_atomic(path, gzip.compress(orjson.dumps(asdict(cell)), mtime=0))


def load_cell(path: Path) -> Cell | None:
    """A kept cell, None when there is none. CorruptError for a damaged file."""
    if not path.is_file():
        return None
    try:
        record = orjson.loads(gzip.decompress(path.read_bytes()))
        return Cell(**{"cost": {}, **record})
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is damaged ({error}): remove it, and the cell is computed again.") from error


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
    search: SearchMode,
    store: VectorStore | None,
    again: Again | None = None,
) -> tuple[Cell, Run]:
    """Write, ask and judge. store: where the collections go, one a pool, each removed after use; None for `memory`.

    again: ranks what was found again.
    """
    depth = max(depth, needed_depth(metrics)) + task.not_itself
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
    if task.not_itself:
        run = {qid: [pair for pair in pairs if pair[0] != qid][: depth - 1] for qid, pairs in run.items()}
    spent = None
    if again is not None:
        run, spent = again(run)
    started = time.perf_counter()
    by_vectors = again is None and placed.words is None
    values, tokenizer = judge_run(task, passages, placed, run, metrics=metrics, by_vectors=by_vectors)
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
    search: SearchMode,
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
