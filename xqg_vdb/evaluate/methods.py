"""The generators of a suite: opened when first asked, shared by its systems, and what they computed kept on disk.

likelihoods-FINGERPRINT.log   log-likelihoods of questions after passages (UPR)
expansions-DIGEST.log         what a model wrote for questions
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import ModelError
from xqg_vdb.evaluate.suite import Expansion, System
from xqg_vdb.journal import Memo
from xqg_vdb.models.folder import ModelFolder, generator_folder, open_model_folder
from xqg_vdb.progress import Progress, windows
from xqg_vdb.search.expand import BATCH, MAX_TOKENS, PROMPTS, Expander, Writer, open_writer
from xqg_vdb.search.rerank import INSTRUCTION, Reranker, Scorer
from xqg_vdb.types import Hit, Passage, Question, Vectors

# What a generator cost a system: seconds of this run, seconds of single questions, and how much of it was kept.

TIMED = 20
"""Questions that a generator is asked about alone, for the time that a user would wait."""


@dataclass(frozen=True)
class Spent:
    """method: which of the two. seconds: of this run, for all questions together.

    alone: seconds of questions that were computed by themselves, whenever that was, as a user would wait for them.
    notes: what a reader of the report must know besides.
    """

    method: Literal["expand", "rerank"]
    seconds: float
    alone: Sequence[float]
    notes: tuple[str, ...] = ()

    def cost(self) -> dict[str, float]:
        """Median and 95th percentile of the milliseconds of a question alone; {} when none was timed."""
        if not self.alone:
            return {}
        p50, p95 = (1000 * np.percentile(self.alone, [50, 95])).tolist()
        return {f"{self.method} p50 ms": round(p50, 1), f"{self.method} p95 ms": round(p95, 1)}


Ranking = dict[str, list[tuple[str, float]]]
"""Question id -> (passage id, score), best first."""

Again = Callable[[Ranking], tuple[Ranking, Spent]]
"""Ranks what was found again."""


def timed_rows(n: int) -> list[int]:
    """Which of n questions are asked about alone: up to 20, evenly along the list, which is sorted by language."""
    count = min(n, TIMED)
    return [i * n // count for i in range(count)]


# UPR in a benchmark: a question's likelihood after a passage is computed once, whatever systems ask for it.


class MemoScorer(Scorer):
    """Asks its model, opened when first needed, only for likelihoods that `memo` does not hold."""

    def __init__(self, model: str, *, memo: Memo, threads: int) -> None:
        self._folder, self.memo, self._threads = model, memo, threads
        self._scorer: Scorer | None = None
        self.truncated = 0

    def score(self, passage: str, questions: Sequence[str]) -> NDArray[np.float64]:
        """See `Scorer`."""
        keys = [_key(passage, question) for question in questions]
        if self._scorer is None and not self.memo.has(keys):
            self._scorer = Scorer(self._folder, threads=self._threads)
        scores = self.memo.recall(keys, lambda places: self._compute(passage, [questions[i] for i in places]))
        return np.array(scores, np.float64)

    def _compute(self, passage: str, questions: Sequence[str]) -> list[float]:
        if self._scorer is None:
            raise RuntimeError("the scorer is not open")
        scores = self._scorer.score(passage, questions)
        self.truncated = self._scorer.truncated
        return [float(score) for score in scores]


def rank_again(
    run: Ranking,
    *,
    reranker: Reranker,
    scorer: MemoScorer,
    queries: Sequence[Question],
    passages: Sequence[Passage],
    progress: Progress,
) -> tuple[Ranking, Spent]:
    """The run with the first `reranker.depth` passages of each question in their new order, and what that cost.

    scorer: the reranker's. Some questions are asked alone, for their time; the others together, which reads a passage
    once for all of them. What stands behind the first keeps its order and gets scores below theirs, one less a place.
    """
    started, scorer.memo.fresh = time.perf_counter(), 0
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
    return found, Spent(
        "rerank", time.perf_counter() - started, known, _likelihood_notes(len(pairs), scorer.memo.fresh)
    )


def _seconds_alone(reranker: Reranker, scorer: MemoScorer, query: Question, hits: Sequence[Hit]) -> float | None:
    """What one question takes, or took when it was first asked; None where its passages were read for many."""
    scorer.memo.took, scorer.memo.alone = [], True
    reranker.rerank(query, hits)
    scorer.memo.alone = False
    known = [one for one in scorer.memo.took if one is not None]
    return sum(known) if len(known) == len(scorer.memo.took) else None


def _likelihood_notes(pairs: int, fresh: int) -> tuple[str, ...]:
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


# Query expansion in a benchmark: what a system searches for in place of its questions, written once and kept.

Wordings = Sequence[tuple[Question, ...]]


@dataclass(frozen=True)
class WordingVectors:
    """The wordings of all questions one after the other: texts and languages (m,), vectors (m, dim), not calibrated.

    starts: (q,) where each question's begin; it has one at least.
    """

    texts: Sequence[str]
    langs: Sequence[str]
    vectors: Vectors
    starts: NDArray[np.int64]

    def joined(self) -> list[str]:
        """Per question the text that its words are taken from."""
        ends = [*self.starts[1:].tolist(), len(self.texts)]
        return ["\n".join(self.texts[a:b]) for a, b in zip(self.starts.tolist(), ends, strict=True)]


class MemoWriter(Writer):
    """Asks another one only for what `memo` does not hold."""

    def __init__(self, writer: Writer, *, memo: Memo) -> None:
        self._writer, self.memo = writer, memo

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return self._writer.describe()

    def write(self, prompts: Sequence[str]) -> list[str]:
        """See `Writer`."""
        keys = [hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest() for prompt in prompts]
        texts = self.memo.recall(keys, lambda places: self._writer.write([prompts[i] for i in places]))
        self.failure = self._writer.failure
        return texts

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()


def expand_all(
    expander: Expander, writer: MemoWriter, queries: Sequence[Question], *, progress: Progress, stage: str
) -> tuple[Wordings, Spent]:
    """The wordings of every question, and what they cost; the questions' languages must be settled.

    writer: the expander's. Some are asked about alone, for their time, the others in batches; a run that is stopped
    loses one batch at most.
    """
    found: dict[int, tuple[Question, ...]] = {}
    seconds: list[float] = []
    started, writer.memo.reused = time.perf_counter(), 0
    for row in timed_rows(len(queries)):
        progress(stage, len(found), len(queries))
        writer.memo.took, writer.memo.alone = [], True
        found[row] = expander.expand([queries[row]])[0]
        writer.memo.alone = False
        seconds += [one for one in writer.memo.took if one is not None]
    for rows in windows([row for row in range(len(queries)) if row not in found], BATCH):
        progress(stage, len(found), len(queries))
        found.update(zip(rows, expander.expand([queries[row] for row in rows]), strict=True))
    notes = _expansion_notes(expander, writer.memo.reused, len(queries))
    return [found[row] for row in range(len(queries))], Spent("expand", time.perf_counter() - started, seconds, notes)


def vectors_of(wordings: Wordings, encode: Callable[[Sequence[str]], Vectors]) -> WordingVectors:
    """The wordings, encoded as questions."""
    flat = list(chain.from_iterable(wordings))
    starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
    texts = [one.text for one in flat]
    return WordingVectors(texts, [one.lang or "" for one in flat], encode(texts), starts)


def _expansion_notes(expander: Expander, reused: int, questions: int) -> tuple[str, ...]:
    counts, notes = expander.counters(), []
    if reused:
        notes.append(
            f"{reused} of {questions} expansions were kept from before: their times are those of the run "
            "that wrote them"
        )
    if counts["fallbacks"]:
        why = f" ({expander.writer.failure})" if expander.writer.failure else ""
        notes.append(
            f"{counts['fallbacks']:.0f} of {questions} questions were searched as they are: the model wrote nothing of "
            f"use{why}"
        )
    return tuple(notes)


class Methods:
    """Query expansion and UPR for the systems of one suite. folder: where results are kept."""

    def __init__(self, folder: Path, *, threads: int, progress: Progress) -> None:
        self.folder, self.threads, self.progress = folder, threads, progress
        self._folders: dict[str, ModelFolder] = {}
        self._scorers: dict[str, MemoScorer] = {}
        self._writers: dict[tuple[str, str], MemoWriter] = {}
        self._logs: dict[str, Memo] = {}

    def facts(self, system: System) -> dict[str, Any]:
        """What a cell depends on besides the system's own settings; {} without generators.

        Raises ModelError, CorruptError and DataError for models that are not there or are none.
        """
        found: dict[str, Any] = {}
        if (expansion := system.expand) is not None:
            made_by = self._writer_facts(expansion)
            found["expand"] = {
                "method": expansion.method, "lang": expansion.lang, "prompts": PROMPTS, "max_tokens": MAX_TOKENS,
                "writer": made_by,
            }  # fmt: skip
        if (again := system.rerank) is not None:
            found["rerank"] = {
                "depth": again.depth, "weight": again.weight, "model": self._model_folder(again.model).fingerprint,
                "instruction": INSTRUCTION,
            }  # fmt: skip
        return found

    def wordings(self, system: System, queries: Sequence[Question], *, dataset: str) -> tuple[Wordings, Spent] | None:
        """What the system searches for in place of each question, None when it searches for the question."""
        expansion = system.expand
        if expansion is None:
            return None
        writer = self._writer(expansion)
        expander, stage = (
            Expander(writer, method=expansion.method, lang=expansion.lang),
            f"{dataset}: expansions of {system.name}",
        )
        return expand_all(expander, writer, queries, progress=self.progress, stage=stage)

    def again(self, system: System, *, queries: Sequence[Question], passages: Sequence[Passage]) -> Again | None:
        """The system's reranker, ready for a run of these questions; None without one. See `likelihoods.rank_again`."""
        if system.rerank is None:
            return None
        scorer = self._scorer(system.rerank.model)
        reranker = Reranker(scorer, depth=system.rerank.depth, weight=system.rerank.weight)
        return partial(
            rank_again, reranker=reranker, scorer=scorer, queries=queries, passages=passages, progress=self.progress
        )

    def close(self) -> None:
        """Release logs and connections."""
        for log in self._logs.values():
            log.close()
        for writer in self._writers.values():
            writer.close()

    def _log(self, name: str, header: dict[str, Any], *, field: str) -> Memo:
        if name not in self._logs:
            self._logs[name] = Memo(self.folder / f"{name}.log", header=header, field=field)
        return self._logs[name]

    def _model_folder(self, model: str) -> ModelFolder:
        if model not in self._folders:
            found = open_model_folder(generator_folder(model))
            if found.kind == "encoder":
                raise ModelError(f"{found.path} holds an encoder; give a generator, such as starter:generator.")
            self._folders[model] = found
        return self._folders[model]

    def _scorer(self, model: str) -> MemoScorer:
        if model not in self._scorers:
            fingerprint = self._model_folder(model).fingerprint
            memo = self._log(f"likelihoods-{fingerprint}", {"likelihoods of": fingerprint}, field="score")
            self._scorers[model] = MemoScorer(model, memo=memo, threads=self.threads)
        return self._scorers[model]

    def _writer(self, expansion: Expansion) -> MemoWriter:
        key = expansion.model, expansion.served
        if key not in self._writers:
            writer = open_writer(expansion.model, endpoint_model=expansion.served, threads=self.threads)
            facts = {**writer.describe(), "max_tokens": MAX_TOKENS}
            digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
            memo = self._log(f"expansions-{digest}", {"expansions of": digest}, field="text")
            self._writers[key] = MemoWriter(writer, memo=memo)
        return self._writers[key]

    def _writer_facts(self, expansion: Expansion) -> dict[str, Any]:
        """Which model writes, without opening a local one."""
        if expansion.model.startswith(("http://", "https://")):
            return self._writer(expansion).describe()
        found = self._model_folder(expansion.model)
        return {"fingerprint": found.fingerprint, "chat": (found.manifest.get("generator") or {}).get("chat")}
