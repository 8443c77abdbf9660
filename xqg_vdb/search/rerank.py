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
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.generate.local import Seq2SeqGenerator
from xqg_vdb.generate.prompts import CHARACTERS_PER_TOKEN
from xqg_vdb.models.decode import Decoding
from xqg_vdb.models.decoder import CausalModel
from xqg_vdb.models.folder import ModelFolder, generator_folder, open_model_folder
from xqg_vdb.models.forest import Branch, Stepper, common_length, mean_log_probabilities
from xqg_vdb.progress import Progress, silent
from xqg_vdb.types import Hit, Question

# How likely are these questions, given this passage? Teacher forcing on the generators' graphs; nothing is generated.

INSTRUCTION = ". Please write a question based on this passage."  # between a passage and a question; the paper's
MAX_PROMPT_TOKENS = 512  # passage and instruction; the paper's
MAX_QUESTION_TOKENS = 128  # the paper's; what is longer is cut there

Scores = NDArray[np.float64]


class Scorer(Protocol):
    """A model that says how likely a question is. truncated: how often, so far, a passage was cut for a question."""

    truncated: int

    def score(self, passage: str, questions: Sequence[str]) -> Scores:
        """Mean log-probability (n,) of the tokens of each of `questions` (n,), after passage and instruction.

        The passage is read once for all of them. Raises ModelError when the instruction leaves no room for a passage.
        """
        ...


class CausalScorer:
    """Decoder-only models: what all prompts of a passage begin with is read once for all questions."""

    def __init__(self, model: CausalModel, *, chat: Sequence[str] | None = None) -> None:
        self.model, self.truncated = model, 0
        # a base model is led on by "Question:"; a chat model answers, and its answer is the question
        self.before, self.between = (chat[0], chat[1]) if chat else ("", "\nQuestion: ")

    def score(self, passage: str, questions: Sequence[str]) -> Scores:
        """See `Scorer`."""
        if not questions:
            return np.empty(0, np.float64)
        model = self.model
        # the blank before the question belongs to its first token in most vocabularies
        blank = " " if self.between.endswith(" ") else ""
        bos = [] if model.bos is None else [int(model.bos)]
        after = INSTRUCTION + self.between.removesuffix(" ")
        fitted = cache(lambda room: fitted_ids(model.tokenizer, self.before + passage, after, room=room))
        prompts, targets = [], []
        for question in questions:
            target = model.ids(blank + question)[:MAX_QUESTION_TOKENS]
            room = min(MAX_PROMPT_TOKENS, model.max_length - len(target)) - len(bos)
            ids, cut = fitted(room)
            self.truncated += cut
            prompts.append(bos + ids)
            targets.append(target)
        # a prompt's last token predicts the question's first, so it belongs to the branch
        same = min(common_length(prompts), min(map(len, prompts)) - 1)
        branches = [
            Branch([*prompt[same:], *target[:-1]], target) for prompt, target in zip(prompts, targets, strict=True)
        ]
        vocabulary = model.tokenizer.get_vocab_size()
        return mean_log_probabilities(model.forest(1), prompts[0][:same], branches, vocabulary=vocabulary)


class Seq2SeqScorer:
    """Encoder-decoder models: the prompt goes into the encoder, `Question: …` and the end token are scored."""

    def __init__(self, model: Seq2SeqGenerator) -> None:
        self.model, self.truncated = model, 0

    def score(self, passage: str, questions: Sequence[str]) -> Scores:
        """See `Scorer`."""
        if not questions:
            return np.empty(0, np.float64)
        tokenizer, end = self.model.tokenizer, self.model.eos[0]
        prompt, cut = fitted_ids(tokenizer, passage, INSTRUCTION, room=MAX_PROMPT_TOKENS - 1)
        self.truncated += cut * len(questions)
        branches = []
        for question in questions:
            ids = tokenizer.encode(f"Question: {question}", add_special_tokens=False).ids
            target = [*ids[: MAX_QUESTION_TOKENS - 1], end]
            branches.append(Branch([self.model.start, *target[:-1]], target))
        forest = self.model.read([[*prompt, end]])
        return mean_log_probabilities(forest, (), branches, vocabulary=tokenizer.get_vocab_size())


def open_scorer(model: str | Path, *, threads: int = 0) -> CausalScorer | Seq2SeqScorer:
    """The scorer on a generator's folder or name; threads: 0 takes all cores. ModelError for what is no generator."""
    folder = open_model_folder(generator_folder(model))
    if folder.kind == "encoder":
        raise ModelError(f"{folder.path} holds an encoder; UPR needs a generator, such as starter:generator.")
    if folder.kind == "seq2seq-generator":
        reader = Seq2SeqGenerator(folder, decoding=Decoding(mode="greedy"), threads=threads)
        _refuse_old(reader.stepper, folder)
        return Seq2SeqScorer(reader)
    decoder = CausalModel(folder, stop=(), threads=threads)
    _refuse_old(decoder.stepper, folder)
    return CausalScorer(decoder, chat=(folder.manifest.get("generator") or {}).get("chat"))


def _refuse_old(stepper: Stepper, folder: ModelFolder) -> None:
    if not stepper.can_score:
        raise ModelError(f"{folder.path} was exported before generators could score a question: export it again.")


def fitted_ids(tokenizer: Tokenizer, body: str, after: str, *, room: int) -> tuple[list[int], bool]:
    """Token ids of `body + after`, at most `room`, and whether the end of `body` had to go; `after` never does.

    Raises ModelError when `after` alone leaves no room.
    """
    whole = len(body)
    body = body[: room * CHARACTERS_PER_TOKEN]
    ids = list(tokenizer.encode(body + after, add_special_tokens=False).ids)
    while len(ids) > room:
        encoded = tokenizer.encode(body, add_special_tokens=False)
        kept = len(encoded.ids) - (len(ids) - room)
        if kept < 1:
            raise ModelError(f"The instruction leaves no room for a passage in {room} tokens; take a longer model.")
        body = body[: min(encoded.offsets[kept - 1][1], len(body) - 1)]  # shorter each time, whatever the offsets say
        ids = list(tokenizer.encode(body + after, add_special_tokens=False).ids)
    return ids, len(body) < whole


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

    def rerank(self, query: Question, hits: Sequence[Hit]) -> list[Hit]:
        """`rerank_all` for one question."""
        return self.rerank_all([query], [hits])[0]

    def rerank_all(
        self, queries: Sequence[Question], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
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
        self, queries: Sequence[Question], hits: Sequence[Sequence[Hit]], *, progress: Progress
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
