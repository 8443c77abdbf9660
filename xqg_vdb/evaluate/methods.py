"""The generators of a suite: opened when first asked, shared by its systems, and what they computed kept on disk.

likelihoods-FINGERPRINT.log   log-likelihoods of questions after passages (UPR)
expansions-DIGEST.log         what a model wrote for questions
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import ModelError
from xqg_vdb.evaluate.metrics import Run, ranked
from xqg_vdb.journal import Memo
from xqg_vdb.models.folder import ModelFolder, generator_folder, open_model_folder
from xqg_vdb.progress import Progress, windows
from xqg_vdb.search import Methods
from xqg_vdb.search.expand import (
    BATCH,
    MAX_TOKENS,
    PROMPTS,
    Expander,
    Writer,
    expansion_spec,
    open_writer,
    target_language,
)
from xqg_vdb.search.rerank import INSTRUCTION, Reranker, Scorer, reranker_spec, weight_for
from xqg_vdb.types import Hit, Passage, Question

TIMED = 20
"""Questions that a generator is asked about alone, for the time that a user would wait."""


@dataclass(frozen=True)
class Spent:
    """What a method cost a system. seconds: of this run, for all questions together.

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


def timed_rows(n: int) -> list[int]:
    """Which of n questions are asked about alone: up to 20, evenly along the list, which is sorted by language."""
    count = min(n, TIMED)
    return [i * n // count for i in range(count)]


class MemoScorer(Scorer):
    """Asks its model, opened when first needed, only for likelihoods that `memo` does not hold."""

    def __init__(self, model: str, *, memo: Memo, threads: int) -> None:
        self._opened = cache(partial(Scorer, model, threads=threads))
        self.memo, self.truncated = memo, 0

    def score(self, passage: str, questions: Sequence[str]) -> NDArray[np.float64]:
        """See `Scorer`."""
        keys = [_digest(orjson.dumps([passage, INSTRUCTION, question])) for question in questions]
        if not self.memo.has(keys):
            self._opened()  # outside of what is timed
        scores = self.memo.recall(keys, lambda places: self._compute(passage, [questions[i] for i in places]))
        return np.array(scores, np.float64)

    def _compute(self, passage: str, questions: Sequence[str]) -> list[float]:
        scorer = self._opened()
        scores = scorer.score(passage, questions)
        self.truncated = scorer.truncated
        return [float(score) for score in scores]


class MemoWriter(Writer):
    """Asks another one only for what `memo` does not hold."""

    def __init__(self, writer: Writer, *, memo: Memo) -> None:
        self._writer, self.memo = writer, memo

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return self._writer.describe()

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()

    def write(self, prompts: Sequence[str]) -> list[str]:
        """See `Writer`."""
        keys = [_digest(prompt.encode()) for prompt in prompts]
        texts = self.memo.recall(keys, lambda places: self._writer.write([prompts[i] for i in places]))
        self.failure = self._writer.failure
        return texts


class Generators:
    """Query expansion and UPR for the systems of one suite. folder: where results are kept."""

    def __init__(self, folder: Path, *, threads: int, progress: Progress) -> None:
        self.folder, self.threads, self.progress = folder, threads, progress
        self._folders: dict[str, ModelFolder] = {}
        self._scorers: dict[str, MemoScorer] = {}
        self._writers: dict[tuple[str, str], MemoWriter] = {}
        self._logs: dict[str, Memo] = {}

    def facts(self, methods: Methods) -> dict[str, Any]:
        """What a cell depends on besides the system's own settings; {} without generators.

        Raises ModelError, CorruptError and DataError for models that are not there or are none.
        """
        facts: dict[str, Any] = {}
        if methods.expand is not None:
            method, model = expansion_spec(methods.expand)
            if model.startswith(("http://", "https://")):
                written_by = self._writer(methods).describe()
            else:
                folder = self._model_folder(model)
                chat = (folder.manifest.get("generator") or {}).get("chat")
                written_by = {"fingerprint": folder.fingerprint, "chat": chat}
            facts["expand"] = {
                "method": method, "lang": target_language(method, methods.expand_lang), "prompts": PROMPTS,
                "max_tokens": MAX_TOKENS, "writer": written_by,
            }  # fmt: skip
        if methods.rerank is not None:
            facts["rerank"] = {
                "depth": methods.rerank_depth, "weight": weight_for(methods.rerank, methods.rerank_weight),
                "model": self._model_folder(reranker_spec(methods.rerank)).fingerprint, "instruction": INSTRUCTION,
            }  # fmt: skip
        return facts

    def expand(
        self, methods: Methods, questions: Sequence[Question], *, stage: str
    ) -> tuple[list[tuple[Question, ...]], Spent]:
        """What is searched for in place of each question, whose language is settled, and what that cost.

        Some questions are asked about alone, for their time, the others in batches; a run that is stopped loses one
        batch at most.
        """
        method, _ = expansion_spec(str(methods.expand))
        writer = self._writer(methods)
        expander = Expander(writer, method=method, lang=methods.expand_lang)
        wordings: dict[int, tuple[Question, ...]] = {}
        seconds: list[float] = []
        started, writer.memo.reused = time.perf_counter(), 0
        for row in timed_rows(len(questions)):
            self.progress(stage, len(wordings), len(questions))
            with writer.memo.timed() as took:
                (wordings[row],) = expander.expand([questions[row]])
            seconds += [second for second in took if second is not None]
        for rows in windows([row for row in range(len(questions)) if row not in wordings], BATCH):
            self.progress(stage, len(wordings), len(questions))
            wordings.update(zip(rows, expander.expand([questions[row] for row in rows]), strict=True))
        notes = []
        if reused := writer.memo.reused:
            notes.append(
                f"{reused} of {len(questions)} expansions were kept from before: their times are those of the run "
                "that wrote them"
            )
        if plain := expander.counters()["fallbacks"]:
            why = f" ({writer.failure})" if writer.failure else ""
            notes.append(
                f"{plain:.0f} of {len(questions)} questions were searched as they are: the model wrote nothing of "
                f"use{why}"
            )
        spent = Spent("expand", time.perf_counter() - started, seconds, tuple(notes))
        return [wordings[row] for row in range(len(questions))], spent

    def rank_again(
        self, methods: Methods, run: Run, *, questions: Sequence[Question], passages: Sequence[Passage]
    ) -> tuple[Run, Spent]:
        """The run with the first passages of each question in UPR's order, and what that cost.

        Some questions are asked alone, for their time; the others together, which reads a passage once for all of them.
        What stands behind the first keeps its order and gets scores below theirs, one less a place.
        """
        scorer = self._scorer(reranker_spec(str(methods.rerank)))
        weight = weight_for(methods.rerank, methods.rerank_weight)
        reranker = Reranker(scorer, depth=methods.rerank_depth, weight=weight)
        started, scorer.memo.fresh = time.perf_counter(), 0
        of = {passage.id: passage for passage in passages}
        best = [ranked(run[question.id]) for question in questions]
        hits = [
            [Hit(i, score, of[i].text, title=of[i].title, lang=of[i].lang) for i, score in pairs[: reranker.depth]]
            for pairs in best
        ]
        seconds: list[float] = []
        for done, row in enumerate(rows := timed_rows(len(questions))):
            self.progress("ranking again, one question at a time", done, len(rows))
            with scorer.memo.timed() as took:
                reranker.rerank(questions[row], hits[row])
            if None not in took:  # else its passages were read for many
                seconds.append(sum(second for second in took if second is not None))
        # those that were asked alone are asked again, which costs nothing now
        again: dict[str, list[tuple[str, float]]] = {}
        for question, pairs, first in zip(
            questions, best, reranker.rerank_all(questions, hits, progress=self.progress), strict=True
        ):
            lowest = first[-1].score if first else 0.0
            behind = [(docid, lowest - place) for place, (docid, _) in enumerate(pairs[reranker.depth :], 1)]
            again[question.id] = [*((hit.id, hit.score) for hit in first), *behind]
        asked = {(h.title, h.text, q.text) for q, found in zip(questions, hits, strict=True) for h in found}
        kept = len(asked) - scorer.memo.fresh
        note = (
            f"{kept} of {len(asked)} likelihoods were kept from before: where times stand, they are those of the run "
            "that computed them"
        )
        return again, Spent("rerank", time.perf_counter() - started, seconds, (note,) if kept > 0 else ())

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
            folder = open_model_folder(generator_folder(model))
            if folder.kind == "encoder":
                raise ModelError(f"{folder.path} holds an encoder; give a generator, such as starter:generator.")
            self._folders[model] = folder
        return self._folders[model]

    def _scorer(self, model: str) -> MemoScorer:
        if model not in self._scorers:
            fingerprint = self._model_folder(model).fingerprint
            memo = self._log(f"likelihoods-{fingerprint}", {"likelihoods of": fingerprint}, field="score")
            self._scorers[model] = MemoScorer(model, memo=memo, threads=self.threads)
        return self._scorers[model]

    def _writer(self, methods: Methods) -> MemoWriter:
        _, model = expansion_spec(str(methods.expand))
        key = model, methods.expand_model
        if key not in self._writers:
            writer = open_writer(model, endpoint_model=methods.expand_model, threads=self.threads)
            facts = {**writer.describe(), "max_tokens": MAX_TOKENS}
            digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
            memo = self._log(f"expansions-{digest}", {"expansions of": digest}, field="text")
            self._writers[key] = MemoWriter(writer, memo=memo)
        return self._writers[key]


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()
