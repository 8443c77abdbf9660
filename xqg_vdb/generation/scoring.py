"""How likely are these questions, given this passage? Teacher forcing on the generators' graphs; nothing is generated.

In: a passage as text, and questions. Out: the mean log-probability of each
question's tokens, (1/|q|) Σ_t log p(q_t | q_<t, passage), the score of UPR (Sachan et al. 2022, equation 3; its code
ranks by the sum, which gives the same order, as |q| is the same for all passages of a question). The graphs gather the
tokens' log-probabilities themselves, so no (tokens, vocabulary) matrix leaves them.

The passage stands first, so it is read once for all of its questions (`branches`). A passage that is too long is cut by
tokens, and the instruction behind it stays: the published code cuts the prompt's end, and with it the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.generation.branches import Branch, common_length, mean_log_probabilities
from xqg_vdb.generation.causal import CausalModel
from xqg_vdb.generation.engine import Stepper
from xqg_vdb.generation.opening import generator_folder
from xqg_vdb.generation.prompt_tokens import CHARACTERS_PER_TOKEN
from xqg_vdb.generation.sampling import Decoding
from xqg_vdb.generation.seq2seq import Seq2SeqGenerator
from xqg_vdb.model_folder import ModelFolder, open_model_folder

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
