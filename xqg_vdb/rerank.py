"""UPR: order what was found by how likely the question is, given each passage (Sachan et al., EMNLP 2022).

In: a question and its hits. Out: the same hits, best first, with new scores. A generator reads
`Passage: {title} {text}. Please write a question based on this passage.` and is asked how likely the question is; no
training, any generator folder. The price is a pass of that model over every hit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError
from xqg_vdb.generation.scoring import Scorer, open_scorer
from xqg_vdb.languages import detect, english_name, normalize
from xqg_vdb.types import UNKNOWN_LANGUAGE, Hit, Query

METHODS = ("upr",)
INSTRUCTION = ". Please write a question based on this passage."
INSTRUCTION_IN = ". Please write a question in {language} based on this passage."


class Reranker:
    """UPR with one generator; `Retriever(..., reranker=Reranker("starter:generator"))` uses it.

    model: a generator's folder or name, or a ready `Scorer`. depth: hits that `Retriever` asks the first stage for.
    weight: 1 ranks by the generator alone, as UPR does; between 0 and 1 by
        weight·z(log-likelihood) + (1 - weight)·z(first score), z to mean 0 and deviation 1 over the hits of a question.
    name_language: name the question's language in the instruction; not UPR's text, but its questions are all English.
    threads: CPU threads, 0 for all cores.
    Raises ModelError for what is no generator or was exported before generators could score.
    """

    def __init__(
        self,
        model: str | Path | Scorer,
        *,
        depth: int = 100,
        weight: float = 1.0,
        name_language: bool = False,
        threads: int = 0,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie between 0 and 1, got {weight}")
        self.depth, self.weight, self.name_language = depth, weight, name_language
        self.scorer: Scorer = open_scorer(model, threads=threads) if isinstance(model, str | Path) else model
        self.questions, self.passages, self.seconds = 0, 0, 0.0

    def rerank(self, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        """The same hits by their new score, then id; the score is the mean log-probability of a question's token.

        With a weight below 1 it is the weighted sum of the two normalised scores. Scores of different questions are not
        comparable. Raises DataError for a blank question.
        """
        if not query.text.strip():
            raise DataError(f"Question {query.id!r} is blank: no passage makes it likely.")
        if not hits:
            return []
        start = time.perf_counter()
        likelihood = self.scorer.score(list(map(passage_text, hits)), self.instruction(query), _one_line(query.text))
        scores = likelihood
        if self.weight < 1.0:
            first = np.array([hit.score for hit in hits], np.float64)
            scores = self.weight * standardised(likelihood) + (1.0 - self.weight) * standardised(first)
        self.questions, self.passages = self.questions + 1, self.passages + len(hits)
        self.seconds += time.perf_counter() - start
        scored = [replace(hit, score=float(score)) for hit, score in zip(hits, scores, strict=True)]
        return sorted(scored, key=lambda hit: (-hit.score, hit.id))

    def instruction(self, query: Query) -> str:
        """What follows the passage."""
        if not self.name_language:
            return INSTRUCTION
        lang = detect([query.text])[0] if query.lang is None else normalize(query.lang)
        return INSTRUCTION if lang == UNKNOWN_LANGUAGE else INSTRUCTION_IN.replace("{language}", english_name(lang))

    def counters(self) -> dict[str, float]:
        """Questions, passages, passages cut because they were too long, and seconds so far."""
        counts = {"questions": self.questions, "passages": self.passages, "passages_cut": self.scorer.truncated}
        return {**counts, "seconds": round(self.seconds, 3)}


def open_reranker(
    spec: str, *, depth: int = 100, weight: float = 1.0, name_language: bool = False, threads: int = 0
) -> Reranker:
    """The reranker of `METHOD:MODEL`, such as `upr:starter:generator`. Raises DataError for another method."""
    method, colon, model = spec.partition(":")
    if method not in METHODS or not colon or not model:
        raise DataError(f"A reranker is given as upr:MODEL, such as upr:starter:generator, not {spec[:80]!r}.")
    return Reranker(model, depth=depth, weight=weight, name_language=name_language, threads=threads)


def passage_text(hit: Hit) -> str:
    """The start of the prompt, which may be cut at its end."""
    return " ".join(f"Passage: {hit.title} {hit.text}".split())


def standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (n,) moved and scaled to mean 0 and deviation 1; all 0 when they are equal."""
    deviation = scores.std()
    centred = scores - scores.mean()
    return centred / deviation if deviation > 0 else np.zeros_like(centred)


def _one_line(text: str) -> str:
    return " ".join(text.split())
