"""UPR in a benchmark: a question's likelihood after a passage is computed once, whatever systems ask for it.

In: a run. Out: the run with its first passages in their new order. Weights and depths of one model share what is kept,
so another weight costs no pass of the model.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import orjson

from xqg_vdb.bench.kept_rows import KeptRows
from xqg_vdb.bench.spent import Ranking, Spent, timed_rows
from xqg_vdb.generation.scoring import INSTRUCTION, Scorer, Scores, open_scorer
from xqg_vdb.progress import Progress
from xqg_vdb.rerank import Reranker
from xqg_vdb.types import Hit, Passage, Query


class KeptScorer:
    """A `Scorer` that asks its model, opened when first needed, only for what `kept` does not hold.

    kept: the log of that model: log-likelihoods, with the seconds of those that were computed for a question `alone`.
    took: those seconds per passage that was asked about, None for passages read for many questions. fresh: how many
    likelihoods were computed. Both are the caller's to reset.
    """

    def __init__(self, model: str, *, kept: KeptRows, threads: int) -> None:
        self._model, self._kept, self._threads = model, kept, threads
        self._scorer: Scorer | None = None
        self.truncated, self.fresh, self.alone = 0, 0, False
        self.took: list[float | None] = []

    def score(self, passage: str, questions: Sequence[str]) -> Scores:
        """See `Scorer`; what is computed is on the disk when this returns."""
        keys = [_key(passage, question) for question in questions]
        new = {key: text for key, text in zip(keys, questions, strict=True) if self._kept.get(key) is None}
        if new:
            self._compute(passage, new)
        rows = [self._kept.get(key) or {} for key in keys]
        self.took += [row.get("seconds") for row in rows]
        return np.array([row["score"] for row in rows], np.float64)

    def _compute(self, passage: str, new: dict[str, str]) -> None:
        if self._scorer is None:
            self._scorer = open_scorer(self._model, threads=self._threads)
        started = time.perf_counter()
        scores = self._scorer.score(passage, list(new.values())).tolist()
        seconds = {"seconds": time.perf_counter() - started} if self.alone else {}
        self.truncated, self.fresh = self._scorer.truncated, self.fresh + len(new)
        self._kept.add([{"key": key, "score": score, **seconds} for key, score in zip(new, scores, strict=True)])


def rank_again(
    run: Ranking,
    *,
    reranker: Reranker,
    scorer: KeptScorer,
    queries: Sequence[Query],
    passages: Sequence[Passage],
    progress: Progress,
) -> tuple[Ranking, Spent]:
    """The run with the first `reranker.depth` passages of each question in their new order, and what that cost.

    scorer: the reranker's. Some questions are asked alone, for their time; the others together, which reads a passage
    once for all of them. What stands behind the first keeps its order and gets scores below theirs, one less a place.
    """
    started, scorer.fresh = time.perf_counter(), 0
    text = {passage.id: passage for passage in passages}
    best = [sorted(run[query.id], key=lambda pair: (-pair[1], pair[0])) for query in queries]
    hits = [[_hit(text[docid], score) for docid, score in own[: reranker.depth]] for own in best]
    alone = timed_rows(len(queries))
    seconds: list[float | None] = []
    for row in alone:
        progress("ranking again, one question at a time", len(seconds), len(alone))
        seconds.append(_seconds_alone(reranker, scorer, queries[row], hits[row]))
    # those that were asked alone are asked again, which costs nothing now
    ranked = reranker.rerank_all(queries, hits, progress=progress)
    found: Ranking = {}
    for query, own, first in zip(queries, best, ranked, strict=True):
        lowest = first[-1].score if first else 0.0
        behind = [(docid, lowest - place) for place, (docid, _) in enumerate(own[reranker.depth :], 1)]
        found[query.id] = [*((hit.id, hit.score) for hit in first), *behind]
    known = [one for one in seconds if one is not None]
    pairs = {(hit.title, hit.text, query.text) for query, own in zip(queries, hits, strict=True) for hit in own}
    return found, Spent("rerank", time.perf_counter() - started, known, _notes(len(pairs), scorer.fresh))


def _seconds_alone(reranker: Reranker, scorer: KeptScorer, query: Query, hits: Sequence[Hit]) -> float | None:
    """What one question takes, or took when it was first asked; None where its passages were read for many."""
    scorer.took, scorer.alone = [], True
    reranker.rerank(query, hits)
    scorer.alone = False
    known = [one for one in scorer.took if one is not None]
    return sum(known) if len(known) == len(scorer.took) else None


def _notes(pairs: int, fresh: int) -> tuple[str, ...]:
    if fresh >= pairs:
        return ()
    return (
        f"{pairs - fresh} of {pairs} likelihoods were kept from before: where times stand, they are those of the run "
        "that computed them",
    )


def _hit(passage: Passage, score: float) -> Hit:
    return Hit(passage.id, score, passage.text, title=passage.title, lang=passage.lang)


def _key(passage: str, question: str) -> str:
    return hashlib.blake2b(orjson.dumps([passage, INSTRUCTION, question]), digest_size=16).hexdigest()
