"""One cell: one system on one dataset, written into a real collection, asked, and judged by each metric's own module.

In: a system's vectors. Out: what was found for every question, the metrics' value for every question, and seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson

from xqg_vdb.errors import CorruptError, DataError
from xqg_vdb.evaluate.datasets.task import POOL, RetrievalTask
from xqg_vdb.evaluate.matrix import as_run, id_order, per_query, search_rows
from xqg_vdb.evaluate.methods import Spent
from xqg_vdb.evaluate.metrics import Run, answer_recall, nearest_f1, parse_metrics, ranked, word_tokenizer
from xqg_vdb.evaluate.mixed import WHOLE, measure_mixed, mixed_depth, whole_average_precision
from xqg_vdb.evaluate.systems import Placed
from xqg_vdb.files import write_atomic
from xqg_vdb.progress import windows
from xqg_vdb.store.layout import DEPTH, TEXT_DENSE, TEXT_SPARSE, digest, fuse_ranks
from xqg_vdb.types import UNKNOWN_LANGUAGE, Hit, Passage, PointBatch, Search, Vectors, VectorStore

NEAREST = "F1@1"
SHARE_DEPTH = 20
_ANSWERS = re.compile(r"R@(\d+)kt( strict)?")
_DEPTH_FOR_ANSWERS = 100
_TIMED, _TIMED_K = 200, 10
_QUESTIONS_AT_ONCE, _PASSAGES_AT_ONCE = 256, 1024
_NAME = "xqg-bench"


@dataclass(frozen=True)
class Cell:
    """What one system did on one dataset; its file is kept under all that it depends on.

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

    def and_spent(self, spent: Spent) -> Cell:
        """The cell with what one of its methods cost."""
        return replace(
            self,
            seconds={**self.seconds, spent.method: round(spent.seconds, 3)},
            cost={**self.cost, **spent.cost()},
            notes=(*self.notes, *spent.notes),
        )

    def save(self, path: Path) -> None:
        """Write its file."""
        write_atomic(path, gzip.compress(orjson.dumps(asdict(self)), mtime=0))


def load_cell(path: Path) -> Cell | None:
    """A kept cell, None when there is none. CorruptError for a damaged file."""
    if not path.is_file():
        return None
    try:
        return Cell(**orjson.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise CorruptError(f"{path} is damaged ({error}): remove it, and the cell is computed again.") from error


def run_cell(
    task: RetrievalTask,
    passages: Sequence[Passage],
    placed: Placed,
    *,
    metrics: Sequence[str],
    depth: int,
    search: Search | None = None,
    store: VectorStore | None = None,
    again: Callable[[Run], tuple[Run, Spent]] | None = None,
) -> tuple[Cell, Run]:
    """Write, ask and judge. store: where the collections go, one a pool, each removed after use; None ranks in memory.

    search: exact, or how broad. again: ranks what was found again.
    """
    depth = max(depth, needed_depth(metrics)) + task.not_itself
    search = search or Search(exact=True)
    seconds, milliseconds = {"write": 0.0, "search": 0.0}, list[float]()
    run: dict[str, Sequence[tuple[str, float]]] = {}
    for rows, asked in _pools(task, passages):
        inside = placed.inside(rows, asked) if task.pooled else placed
        part, ids = [passages[row] for row in rows], [task.queries[row].id for row in asked]
        started = time.perf_counter()
        if store is None:
            known = [passage.id for passage in part]  # what an exact search of the real collection finds
            ranked = search_rows(inside.questions, inside.passages, k=depth, tie_order=id_order(known))
            run |= as_run(*ranked, query_ids=ids, passage_ids=known)
        else:
            _write(store, part, inside)
            seconds["write"] += (written := time.perf_counter()) - started
            started = written
            run |= _ask(store, inside, ids, search=replace(search, k=depth))
        seconds["search"] += time.perf_counter() - started
        if store is not None:
            milliseconds += _lookups(store, inside, search=replace(search, k=_TIMED_K))
            store.delete(_NAME)
    if task.not_itself:
        run = {qid: [pair for pair in pairs if pair[0] != qid][: depth - 1] for qid, pairs in run.items()}
    final, spent = (run, None) if again is None else again(run)
    started = time.perf_counter()
    by_vectors = again is None and placed.words is None
    values, tokenizer = judge_run(task, passages, placed, final, metrics=metrics, by_vectors=by_vectors)
    seconds["judge"] = time.perf_counter() - started
    cell = Cell(
        values,
        {name: round(value, 3) for name, value in seconds.items()},
        tokenizer,
        _language_shares(task, passages, final),
        _cost(placed, milliseconds),
    )
    return cell if spent is None else cell.and_spent(spent), final


def _pools(task: RetrievalTask, passages: Sequence[Passage]) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of the passages and of the questions of each pool; one pool with everything unless the task is pooled."""
    if not task.pooled:
        yield list(range(len(passages))), list(range(len(task.queries)))
        return
    for group in sorted(set(task.groups.values())):
        inside = [row for row, passage in enumerate(passages) if passage.meta[POOL] == group]
        yield inside, [row for row, query in enumerate(task.queries) if task.groups[query.id] == group]


def _write(store: VectorStore, passages: Sequence[Passage], placed: Placed) -> None:
    """Write one system's passages, replacing what an unfinished run left there."""
    if _NAME in store.names():
        store.delete(_NAME)
    rows: Vectors = np.ascontiguousarray(placed.passages, dtype=np.float32)
    card = replace(placed.card, rows_digest=hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest())
    with store.writer(_NAME, card=card) as writer:
        for start in range(0, len(passages), _PASSAGES_AT_ONCE):
            window = slice(start, start + _PASSAGES_AT_ONCE)
            part = passages[window]
            words = placed.words and placed.words[0][window]
            writer.upsert(PointBatch(part, {TEXT_DENSE: rows[window]}, [()] * len(part), sparse=words))
        writer.commit(len(passages))
        texts = ((passage.id, passage.text) for passage in passages)
        writer.publish(replace(card, count=len(passages), digest=digest(texts)))


def _ask(
    store: VectorStore, placed: Placed, ids: Sequence[str], *, search: Search
) -> dict[str, list[tuple[str, float]]]:
    run = {}
    for rows in windows(range(len(ids)), _QUESTIONS_AT_ONCE):
        for row, hits in zip(rows, _found(store, placed, rows, search), strict=True):
            run[ids[row]] = [(hit.id, hit.score) for hit in hits]
    return run


def _found(store: VectorStore, placed: Placed, rows: Sequence[int], search: Search) -> list[list[Hit]]:
    """The k best per question as `Retriever` finds them; fused with those by the words for a hybrid system."""
    k = search.k
    search = replace(search, k=k if placed.words is None else max(k, DEPTH))
    hits = store.search(_NAME, placed.questions[list(rows)], search)
    if placed.words is None:
        return hits
    words = [placed.words[1][row] for row in rows]
    spoken = [i for i, weights in enumerate(words) if len(weights.indices)]
    by_words: list[list[Hit]] = [[] for _ in rows]
    if spoken:
        by_words_alone = replace(search, using=TEXT_SPARSE)
        for i, more in zip(spoken, store.search(_NAME, [words[i] for i in spoken], by_words_alone), strict=True):
            by_words[i] = more
    return [fuse_ranks(both, k=k) for both in zip(hits, by_words, strict=True)]


def _lookups(store: VectorStore, placed: Placed, *, search: Search) -> list[float]:
    """Milliseconds of up to 200 questions that are asked one by one for 10 passages."""
    milliseconds, n = [], len(placed.questions)
    for row in range(n)[:: max(n // _TIMED, 1)][:_TIMED]:
        started = time.perf_counter()
        _found(store, placed, [row], search)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


def _cost(placed: Placed, milliseconds: Sequence[float]) -> dict[str, float]:
    """Bytes of a passage's vectors, and median and 95th percentile of the milliseconds; {} when nothing was measured.

    Neither the index nor the text is counted, nor the time in which a question is encoded: they hardly differ.
    """
    if not milliseconds:
        return {}
    sparse = placed.words[0] if placed.words is not None else ()
    written = 4 * placed.passages.size + sum(weights.indices.nbytes + weights.values.nbytes for weights in sparse)
    p50, p95 = np.percentile(milliseconds, [50, 95]).tolist()
    return {"bytes a passage": round(written / len(placed.passages)), "p50 ms": round(p50, 3), "p95 ms": round(p95, 3)}


def _language_shares(task: RetrievalTask, passages: Sequence[Passage], run: Run) -> dict[str, dict[str, float]]:
    """Which languages the first 20 passages are in, by the question's language; {} for passages of one language."""
    lang_of = {passage.id: passage.lang for passage in passages}
    langs = sorted(set(lang_of.values()))
    if len(langs) < 2 or task.pooled:
        return {}
    seen: dict[str, Counter[str]] = {}
    for query in task.queries:
        best = ranked(run[query.id])[:SHARE_DEPTH]
        seen.setdefault(query.lang or UNKNOWN_LANGUAGE, Counter()).update(lang_of[docid] for docid, _ in best)
    return {asked: {lang: n[lang] / n.total() for lang in langs} for asked, n in sorted(seen.items())}


# Metric names of a suite -> the value of every question, by each metric's own module.


def _rankings(metrics: Sequence[str]) -> list[str]:
    """Those that `per_query` computes, or nobody."""
    others = (WHOLE, NEAREST)
    return [name for name in metrics if not (name in others or _ANSWERS.fullmatch(name) or mixed_depth(name))]


def needed_depth(metrics: Sequence[str]) -> int:
    """How many passages a question must have for these metrics. DataError for what is no metric."""
    depths = [metric.k for metric in parse_metrics(_rankings(metrics))]
    depths += [_DEPTH_FOR_ANSWERS if _ANSWERS.fullmatch(name) else mixed_depth(name) or 1 for name in metrics]
    return max(depths, default=1)


def check_metrics(metrics: Sequence[str], task: RetrievalTask) -> None:
    """DataError when a metric is unknown or needs what the task lacks (answers, judgements)."""
    needed_depth(metrics)
    for name in metrics:
        answers = _ANSWERS.fullmatch(name)
        if answers and not task.answers:
            raise DataError(f"{name} needs gold answers, and {task.name} has none.")
        if not answers and not task.qrels:
            raise DataError(f"{name} needs relevance judgements, and {task.name} has answers only.")


def judge_run(
    task: RetrievalTask,
    passages: Sequence[Passage],
    placed: Placed,
    run: Run,
    *,
    metrics: Sequence[str],
    by_vectors: bool = True,
) -> tuple[dict[str, dict[str, float]], str]:
    """Each metric's value per question, and the tokeniser of the answer recall ("" without one).

    by_vectors: the run is what the vectors alone give; else there is no whole ranking, and mAP without a cut-off is
    left out.
    """
    names = _rankings(metrics)
    ranking = per_query(run, task.qrels, metrics=parse_metrics(names)) if names else {}
    values = {name: ranking[metric] for name, metric in zip(names, parse_metrics(names), strict=True)}
    tokenizer = ""
    for name in metrics:
        if match := _ANSWERS.fullmatch(name):
            values[name], tokenizer = _answered(task, passages, run, budget=1000 * int(match[1]), strict=bool(match[2]))
        elif name == NEAREST:
            values[name] = nearest_f1(run, task.qrels)
        elif name == WHOLE and by_vectors and not task.pooled:
            values[name] = whole_average_precision(task, passages, questions=placed.questions, rows=placed.passages)
        elif mixed_depth(name):
            values[name] = measure_mixed(name, run, task, passages)
    return {name: values[name] for name in metrics if values.get(name)}, tokenizer


def _answered(
    task: RetrievalTask, passages: Sequence[Passage], run: Run, *, budget: int, strict: bool
) -> tuple[dict[str, float], str]:
    text = {passage.id: passage.text for passage in passages}  # without the title, as the official script
    rankings = {qid: [text[docid] for docid, _ in pairs] for qid, pairs in run.items()}
    name, tokenize = word_tokenizer()
    hits = answer_recall(rankings, answers=task.answers or {}, budget=budget, strict=strict, tokenize=tokenize)
    return hits, name
