"""Asking the collection of one system: every question for the ranking, some of them alone for the time it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from xqg_vdb.batching import windows
from xqg_vdb.bench.placing import Placed
from xqg_vdb.bench.suite import Search
from xqg_vdb.collection.layout import TEXT_DENSE, TEXT_SPARSE
from xqg_vdb.query_encoding import CALIBRATED_EF
from xqg_vdb.rank_fusion import DEPTH, fuse_ranks
from xqg_vdb.types import Hit, VectorStore

TIMED = 200
TIMED_K = 10

_QUESTIONS_AT_ONCE = 256


def answers(
    store: VectorStore, name: str, placed: Placed, *, k: int, search: Search
) -> Iterator[tuple[list[int], list[list[Hit]]]]:
    """Rows of questions with the k best passages of each, a few hundred at a time."""
    for rows in windows(range(len(placed.questions)), _QUESTIONS_AT_ONCE):
        yield rows, found(store, name, placed, rows, k=k, search=search)


def found(
    store: VectorStore, name: str, placed: Placed, rows: Sequence[int], *, k: int, search: Search
) -> list[list[Hit]]:
    """The k best per question as `Retriever` finds them; fused with those by the words for a hybrid system."""
    depth = k if placed.words is None else max(k, DEPTH)
    breadth = max(depth, CALIBRATED_EF) if search == "graph" else None
    exact = search == "exact"
    asked = placed.questions[list(rows)]
    hits = store.search(name, asked, k=depth, langs=None, using=TEXT_DENSE, exact=exact, ef=breadth)
    if placed.words is None:
        return hits
    words = [placed.words.questions[row] for row in rows]
    spoken = [i for i, one in enumerate(words) if len(one.indices)]
    by_words: list[list[Hit]] = [[] for _ in rows]
    if spoken:
        said = [words[i] for i in spoken]
        more = store.search(name, said, k=depth, langs=None, using=TEXT_SPARSE, exact=exact, ef=None)
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

    def measure(self, store: VectorStore, name: str, placed: Placed, *, search: Search) -> None:
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
