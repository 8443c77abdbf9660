"""UPR: order what was found by how likely the question is, given each passage (Sachan et al., EMNLP 2022).

In: questions and their hits. Out: the same hits, best first, with new scores. A generator reads
`Passage: {title} {text}. Please write a question based on this passage.` and is asked how likely the question is; no
training, any generator folder. The price is a pass of that model over every passage, once for all questions that are
asked together, and over every question behind each of its hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError
from xqg_vdb.generation.scoring import Scorer, open_scorer
from xqg_vdb.progress import Progress, silent
from xqg_vdb.types import Hit, Query

METHODS = ("upr",)
WEIGHT = 0.25  # by the starter generator: R@1 +2.4 points on XQuAD, where UPR alone loses 13 (docs/reranking.md)


class Reranker:
    """UPR with one generator; `Retriever(..., reranker=Reranker("starter:generator"))` uses it.

    model: a generator's folder or name, or a ready `Scorer`. depth: hits that `Retriever` asks the first stage for.
    weight: hits are ranked by weight·z(log-likelihood) + (1 - weight)·z(first score), z to mean 0 and deviation 1 over
        the hits of a question; 1 ranks by the generator alone, as UPR does, which a small generator makes worse.
    threads: CPU threads, 0 for all cores.
    Raises ModelError for what is no generator or was exported before generators could score.
    """

    def __init__(
        self,
        model: str | Path | Scorer,
        *,
        depth: int = 100,
        weight: float = WEIGHT,
        threads: int = 0,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie between 0 and 1, got {weight}")
        self.depth, self.weight = depth, weight
        self.scorer: Scorer = open_scorer(model, threads=threads) if isinstance(model, str | Path) else model
        self.questions, self.passages, self.seconds = 0, 0, 0.0

    def rerank(self, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        """`rerank_all` for one question."""
        return self.rerank_all([query], [hits])[0]

    def rerank_all(
        self, queries: Sequence[Query], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
    ) -> list[list[Hit]]:
        """Per question the same hits by their new score, then id; a score is the mean log-probability of a token.

        A passage is read once for all questions that found it. With a weight below 1 a score is the weighted sum of the
        two normalised ones. Scores of different questions are not comparable.
        hits: one sequence per question. progress: told how many of all hits are scored.
        Raises DataError for a blank question and ValueError when there are not as many questions as sequences of hits.
        """
        if len(queries) != len(hits):
            raise ValueError(f"{len(queries)} questions, but hits for {len(hits)}")
        for query in queries:
            if not query.text.strip():
                raise DataError(f"Question {query.id!r} is blank: no passage makes it likely.")
        start = time.perf_counter()
        ranked = [
            self._ranked(own, likelihood)
            for own, likelihood in zip(hits, self._likelihoods(queries, hits, progress=progress), strict=True)
        ]
        self.questions += sum(1 for own in hits if own)
        self.passages += sum(map(len, hits))
        self.seconds += time.perf_counter() - start
        return ranked

    def _likelihoods(
        self, queries: Sequence[Query], hits: Sequence[Sequence[Hit]], *, progress: Progress
    ) -> list[NDArray[np.float64]]:
        """Per question a score for each of its hits."""
        questions = [_one_line(query.text) for query in queries]
        told = partial(progress, "ranking again", total=sum(map(len, hits)))
        return _by_passage(self.scorer, questions, hits, told=told)

    def _ranked(self, hits: Sequence[Hit], likelihood: NDArray[np.float64]) -> list[Hit]:
        scores = likelihood
        if self.weight < 1.0 and hits:
            first = np.array([hit.score for hit in hits], np.float64)
            scores = self.weight * standardised(likelihood) + (1.0 - self.weight) * standardised(first)
        scored = [replace(hit, score=float(score)) for hit, score in zip(hits, scores, strict=True)]
        return sorted(scored, key=lambda hit: (-hit.score, hit.id))

    def counters(self) -> dict[str, float]:
        """Questions, passages, passages cut because they were too long, and seconds so far."""
        counts = {"questions": self.questions, "passages": self.passages, "passages_cut": self.scorer.truncated}
        return {**counts, "seconds": round(self.seconds, 3)}


def open_reranker(spec: str, *, depth: int, weight: float, threads: int) -> Reranker:
    """The reranker of `METHOD:MODEL`, such as `upr:starter:generator`. Raises DataError for another method."""
    return Reranker(reranker_spec(spec), depth=depth, weight=weight, threads=threads)


def reranker_spec(spec: str) -> str:
    """The model of `METHOD:MODEL`. Raises DataError for another method."""
    method, colon, model = spec.partition(":")
    if method not in METHODS or not colon or not model:
        raise DataError(f"A reranker is given as upr:MODEL, such as upr:starter:generator, not {spec[:80]!r}.")
    return model


def passage_text(title: str, text: str) -> str:
    """The start of the prompt, which may be cut at its end."""
    return " ".join(f"Passage: {title} {text}".split())


def standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (n,) moved and scaled to mean 0 and deviation 1; all 0 when they are equal."""
    deviation = scores.std()
    centred = scores - scores.mean()
    return centred / deviation if deviation > 0 else np.zeros_like(centred)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _by_passage(
    scorer: Scorer, questions: Sequence[str], hits: Sequence[Sequence[Hit]], *, told: Callable[[int], None]
) -> list[NDArray[np.float64]]:
    """Passage by passage; beside the hits, nothing but a number for each of them is kept."""
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, own in enumerate(hits):
        for column, hit in enumerate(own):
            places.setdefault((hit.title, hit.text), []).append((row, column))
    scores, done = [np.empty(len(own), np.float64) for own in hits], 0
    for (title, text), where in places.items():
        told(done)
        found = scorer.score(passage_text(title, text), [questions[row] for row, _ in where])
        for (row, column), score in zip(where, found, strict=True):
            scores[row][column] = score
        done += len(where)
    told(done)
    return scores
