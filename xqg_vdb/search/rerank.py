"""Order what was found anew: by UPR, how likely the question is given each passage (Sachan et al., EMNLP 2022).

In: questions and their hits. Out: the same hits, best first, with new scores. A generator reads
`Passage: {title} {text}. Please write a question based on this passage.` and is asked how likely the question is; no
training, any generator folder. The price is a pass of that model over every passage, once for all questions that are
asked together, and over every question behind each of its hits. Or by a cross-encoder, which was trained to score
question and passage together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.generate.local import Seq2SeqGenerator
from xqg_vdb.generate.prompts import CHARACTERS_PER_TOKEN
from xqg_vdb.models.decoder import CausalModel, Decoding
from xqg_vdb.models.encoder import ACTIVATIONS, pad_id
from xqg_vdb.models.engine import open_session, open_tokenizer
from xqg_vdb.models.folder import CROSS, GRAPH, TOKENIZER, ModelFolder, generator_folder, open_model_folder
from xqg_vdb.models.forest import Forest, common_length, mean_log_probabilities
from xqg_vdb.progress import Progress, silent
from xqg_vdb.types import Hit, Question

INSTRUCTION = ". Please write a question based on this passage."  # between a passage and a question; the paper's
MAX_PROMPT_TOKENS = 512  # passage and instruction; the paper's
MAX_QUESTION_TOKENS = 128  # the paper's; what is longer is cut there
_LABEL = "Passage: "
WEIGHT = 0.25  # by the starter generator: R@1 +2.4 points on XQuAD, where UPR alone loses 13 (docs/query-time.md)


class Scorer:
    """A generator that says how likely questions are, by teacher forcing on its graph; nothing is generated.

    Or a cross-encoder. model: its folder or name, of the latter after `cross:`. threads: 0 takes all cores. truncated:
    how often, so far, a passage was cut for a question. Raises ModelError for what is none, or was exported before
    generators could score.
    """

    def __init__(self, model: str | Path, *, threads: int = 0) -> None:
        folder, cross = open_model_folder(generator_folder(model)), str(model).startswith(CROSS)
        if folder.kind == "encoder" or cross != (folder.kind == "cross-encoder"):
            raise ModelError(
                f"{folder.path} holds a model of kind {folder.kind}: upr:MODEL wants a generator, such as"
                " starter:generator, and cross:MODEL a cross-encoder."
            )
        self.truncated, self._pairs = 0, open_pairs(folder, threads=threads) if cross else None
        if cross:
            return
        self.model: CausalModel | Seq2SeqGenerator
        if folder.kind == "seq2seq-generator":
            self.model = Seq2SeqGenerator(folder, decoding=Decoding(mode="greedy"), threads=threads)
        else:
            self.model = CausalModel(folder, stop=(), threads=threads)
        if not self.model.stepper.can_score:
            raise ModelError(f"{folder.path} was exported before generators could score a question: export it again.")
        self.chat: Sequence[str] = (folder.manifest.get("generator") or {}).get("chat") or ()

    def score(self, passage: str, questions: Sequence[str]) -> NDArray[np.float64]:
        """Mean log-probability (n,) of the tokens of each of `questions` (n,), after passage and instruction.

        The passage, a `passage_text`, is read once for all of them. Of a cross-encoder: its scores. Raises ModelError
        when the instruction leaves no room for a passage.
        """
        if not questions:
            return np.empty(0, np.float64)
        if self._pairs is not None:
            scores, cut = self._pairs([(question, passage.removeprefix(_LABEL)) for question in questions])
            self.truncated += cut
            return scores
        model = self.model
        if isinstance(model, CausalModel):
            forest, prefix, branches = self._continued(model, passage, questions)
        else:
            forest, prefix, branches = self._decoded(model, passage, questions)
        vocabulary = model.tokenizer.get_vocab_size()
        return mean_log_probabilities(forest, prefix, branches, vocabulary=vocabulary)

    def _continued(
        self, model: CausalModel, passage: str, questions: Sequence[str]
    ) -> tuple[Forest, Sequence[int], list[tuple[list[int], list[int]]]]:
        """Decoder-only: what all prompts of a passage begin with is read once, and each question continues it."""
        # a base model is led on by "Question:"; a chat model answers, and its answer is the question
        before, between = self.chat or ("", "\nQuestion: ")
        # the blank before the question belongs to its first token in most vocabularies
        blank = " " if between.endswith(" ") else ""
        bos = [] if model.bos is None else [int(model.bos)]
        after = INSTRUCTION + between.removesuffix(" ")
        fitted = cache(lambda room: fitted_ids(model.tokenizer, before + passage, after, room=room))
        prompts, targets = [], []
        for question in questions:
            target = model.ids(blank + question)[:MAX_QUESTION_TOKENS]
            ids, cut = fitted(min(MAX_PROMPT_TOKENS, model.max_length - len(target)) - len(bos))
            self.truncated += cut
            prompts.append(bos + ids)
            targets.append(target)
        # a prompt's last token predicts the question's first, so it belongs to the branch
        same = min(common_length(prompts), min(map(len, prompts)) - 1)
        branches = [([*prompt[same:], *target[:-1]], target) for prompt, target in zip(prompts, targets, strict=True)]
        return model.forest(1), prompts[0][:same], branches

    def _decoded(
        self, model: Seq2SeqGenerator, passage: str, questions: Sequence[str]
    ) -> tuple[Forest, Sequence[int], list[tuple[list[int], list[int]]]]:
        """Encoder-decoder: the prompt goes into the encoder, `Question: …` and the end token are scored."""
        end = model.eos[0]
        prompt, cut = fitted_ids(model.tokenizer, passage, INSTRUCTION, room=MAX_PROMPT_TOKENS - 1)
        self.truncated += cut * len(questions)
        branches = []
        for question in questions:
            ids = model.tokenizer.encode(f"Question: {question}", add_special_tokens=False).ids
            target = [*ids[: MAX_QUESTION_TOKENS - 1], end]
            branches.append(([model.start, *target[:-1]], target))
        return model.read([[*prompt, end]]), (), branches


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


def open_pairs(
    folder: ModelFolder, *, threads: int
) -> Callable[[Sequence[tuple[str, str]]], tuple[NDArray[np.float64], int]]:
    """A cross-encoder: from pairs of question and passage to their scores (n,), and how many passages were cut."""
    try:
        record = folder.manifest["cross"]
        activation, longest = ACTIVATIONS[record["activation"]], int(record["max_length"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder.path} does not say how its pairs are scored; export it again.") from error
    session = open_session(folder.path / GRAPH, threads=threads)
    inputs = [node.name for node in session.get_inputs()]
    tokenizer = open_tokenizer(folder.path / TOKENIZER)
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=pad_id(tokenizer))

    def score(pairs: Sequence[tuple[str, str]]) -> tuple[NDArray[np.float64], int]:
        encodings = tokenizer.encode_batch(list(pairs))
        rows = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        (logits, *_) = session.run(None, {name: np.array(rows[name], np.int64) for name in inputs})
        return activation(logits[:, 0].astype(np.float64)), sum(bool(encoding.overflowing) for encoding in encodings)

    return score


class Reranker:
    """UPR with one generator; `Retriever(..., reranker=Reranker("starter:generator"))` uses it. Or a cross-encoder.

    model: a generator's folder or name, `cross:` and a cross-encoder's, or a ready `Scorer`. depth: hits that
        `Retriever` asks the first stage for.
    weight: hits are ranked by weight·z(log-likelihood) + (1 - weight)·z(first score), z to mean 0 and deviation 1 over
        the hits of a question; 1 ranks by the model alone, as UPR does, which a small generator makes worse. By
        default `weight_for` the model.
    threads: CPU threads, 0 for all cores.
    """

    def __init__(
        self, model: str | Path | Scorer, *, depth: int = 100, weight: float | None = None, threads: int = 0
    ) -> None:
        weight = weight_for(model, weight)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie between 0 and 1, got {weight}")
        self.depth, self.weight = depth, weight
        self.scorer = Scorer(model, threads=threads) if isinstance(model, str | Path) else model
        self.questions, self.passages, self.seconds = 0, 0, 0.0

    def rerank(self, question: Question, hits: Sequence[Hit]) -> list[Hit]:
        """`rerank_all` for one question."""
        return self.rerank_all([question], [hits])[0]

    def rerank_all(
        self, questions: Sequence[Question], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
    ) -> list[list[Hit]]:
        """Per question the same hits by their new score, then id; a score is the mean log-probability of a token.

        A passage is read once for all questions that found it. With a weight below 1 a score is the weighted sum of the
        two normalised ones. Scores of different questions are not comparable.
        hits: one sequence per question. progress: told how many of all hits are scored.
        Raises DataError for a blank question and ValueError when there are not as many questions as sequences of hits.
        """
        if len(questions) != len(hits):
            raise ValueError(f"{len(questions)} questions, but hits for {len(hits)}")
        for question in questions:
            if not question.text.strip():
                raise DataError(f"Question {question.id!r} is blank: no passage makes it likely.")
        start = time.perf_counter()
        texts = [" ".join(question.text.split()) for question in questions]
        scores = self._likelihoods(texts, hits, progress=progress)
        ranked = [self._ranked(ranking, likelihood) for ranking, likelihood in zip(hits, scores, strict=True)]
        self.questions += sum(map(bool, hits))
        self.passages += sum(map(len, hits))
        self.seconds += time.perf_counter() - start
        return ranked

    def _likelihoods(
        self, questions: Sequence[str], hits: Sequence[Sequence[Hit]], *, progress: Progress
    ) -> list[NDArray[np.float64]]:
        """Per question a score for each of its hits, made passage by passage."""
        places: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row, ranking in enumerate(hits):
            for column, hit in enumerate(ranking):
                places.setdefault((hit.title, hit.text), []).append((row, column))
        scores, done, total = [np.empty(len(ranking), np.float64) for ranking in hits], 0, sum(map(len, hits))
        for (title, text), where in places.items():
            progress("ranking again", done, total)
            likely = self.scorer.score(passage_text(title, text), [questions[row] for row, _ in where])
            for (row, column), score in zip(where, likely, strict=True):
                scores[row][column] = score
            done += len(where)
        progress("ranking again", done, total)
        return scores

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


def weight_for(model: object, weight: float | None) -> float:
    """The weight that was given, or else what suits the model: a cross-encoder ranks alone."""
    if weight is not None:
        return weight
    return 1.0 if str(model).startswith(CROSS) else WEIGHT


def reranker_spec(spec: str) -> str:
    """The model of `METHOD:MODEL`, as `Reranker` takes it. Raises DataError for another method."""
    method, _, model = spec.partition(":")
    if method not in ("upr", "cross") or not model:
        raise DataError(
            "A reranker is given as upr:MODEL or cross:MODEL, such as upr:starter:generator or cross:models/minilm,"
            f" not {spec[:80]!r}."
        )
    return spec if method == "cross" else model


def passage_text(title: str, text: str) -> str:
    """The start of the prompt, which may be cut at its end."""
    return " ".join(f"{_LABEL}{title} {text}".split())


def standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (n,) moved and scaled to mean 0 and deviation 1; all 0 when they are equal."""
    deviation = scores.std()
    centred = scores - scores.mean()
    return centred / deviation if deviation > 0 else np.zeros_like(centred)
