"""How likely is this question, given this passage? Teacher forcing on the generators' graphs; nothing is generated.

In: passages as text, an instruction, a question. Out: the mean log-probability of the question's tokens per passage,
(1/|q|) Σ_t log p(q_t | q_<t, passage), the score of UPR (Sachan et al. 2022, equation 3; its code ranks by the sum,
which gives the same order, as |q| is the same for all passages of a question). The graphs gather the tokens'
log-probabilities themselves, so no (tokens, vocabulary) matrix leaves them.

Passages are cut by tokens where they are too long, and the instruction behind them stays: the published code cuts the
prompt's end, and with it the instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.batching import token_budget_batches
from xqg_vdb.errors import ModelError
from xqg_vdb.generation.causal import CausalModel
from xqg_vdb.generation.engine import Stepper
from xqg_vdb.generation.opening import generator_folder
from xqg_vdb.generation.prompt_tokens import CHARACTERS_PER_TOKEN
from xqg_vdb.generation.sampling import Decoding
from xqg_vdb.generation.seq2seq import Seq2SeqGenerator
from xqg_vdb.model_folder import ModelFolder, open_model_folder

MAX_PROMPT_TOKENS = 512  # passage and instruction; the paper's
MAX_QUESTION_TOKENS = 128  # the paper's; what is longer is cut there
BATCH_TOKENS = 2048  # rows × longest prompt
BATCH_LOGITS = 2**25  # scored tokens × vocabulary inside the graph: 128 MiB of float32

Scores = NDArray[np.float64]


class Scorer(Protocol):
    """A model that says how likely a question is."""

    truncated: int

    def score(self, passages: Sequence[str], instruction: str, question: str) -> Scores:
        """Mean log-probability (n,) of the question's tokens after each of `passages` (n,) and the instruction."""
        ...


class CausalScorer:
    """Decoder-only models: prompt and question in one pass, only the question's places reach the output layer."""

    def __init__(self, model: CausalModel, *, chat: Sequence[str] | None = None) -> None:
        self.model, self.truncated = model, 0
        # a base model is led on by "Question:"; a chat model answers, and its answer is the question
        self.before, self.between = (chat[0], chat[1]) if chat else ("", "\nQuestion: ")

    def score(self, passages: Sequence[str], instruction: str, question: str) -> Scores:
        """See `Scorer`."""
        # the blank before the question belongs to its first token in most vocabularies
        blank = " " if self.between.endswith(" ") else ""
        target = self.model.ids(blank + question)[:MAX_QUESTION_TOKENS]
        after = instruction + self.between.removesuffix(" ")
        bos = [] if self.model.bos is None else [int(self.model.bos)]
        room = min(MAX_PROMPT_TOKENS, self.model.max_length - len(target)) - len(bos)
        prompts = []
        for passage in passages:
            ids, cut = fitted_ids(self.model.tokenizer, self.before + passage, after, room=room)
            prompts.append(bos + ids)
            self.truncated += cut
        scores = np.empty(len(passages), np.float64)
        for rows in _batches(list(map(len, prompts)), len(target), self.model.tokenizer.get_vocab_size()):
            scores[rows] = self._pass([prompts[i] for i in rows], target)
        return scores

    def _pass(self, prompts: Sequence[Sequence[int]], target: Sequence[int]) -> Scores:
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max()) + len(target) - 1
        tokens = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt) + len(target) - 1] = [*prompt, *target[:-1]]
        # padding stands behind everything that is scored, where a causal mask hides it
        mask = np.broadcast_to(np.tril(np.ones((longest, longest), np.bool_)), (len(prompts), longest, longest))
        positions = np.broadcast_to(np.arange(longest), tokens.shape)
        take = (np.arange(len(prompts)) * longest + lengths - 1)[:, None] + np.arange(len(target))
        found = self.model.forest(len(prompts)).log_probabilities(
            tokens, np.ascontiguousarray(positions), np.ascontiguousarray(mask), take.ravel(), _tiled(target, prompts)
        )
        return _means(found, len(target))


class Seq2SeqScorer:
    """Encoder-decoder models: the prompt goes into the encoder, `Question: …` and the end token are scored."""

    def __init__(self, model: Seq2SeqGenerator) -> None:
        self.model, self.truncated = model, 0

    def score(self, passages: Sequence[str], instruction: str, question: str) -> Scores:
        """See `Scorer`."""
        tokenizer, end = self.model.tokenizer, self.model.eos[0]
        ids = tokenizer.encode(f"Question: {question}", add_special_tokens=False).ids
        target = [*ids[: MAX_QUESTION_TOKENS - 1], end]
        prompts = []
        for passage in passages:
            ids, cut = fitted_ids(tokenizer, passage, instruction, room=MAX_PROMPT_TOKENS - 1)
            prompts.append([*ids, end])
            self.truncated += cut
        scores = np.empty(len(passages), np.float64)
        for rows in _batches(list(map(len, prompts)), len(target), tokenizer.get_vocab_size()):
            scores[rows] = self._pass([prompts[i] for i in rows], target)
        return scores

    def _pass(self, prompts: Sequence[Sequence[int]], target: Sequence[int]) -> Scores:
        rows, length = len(prompts), len(target)
        tokens = np.tile(np.array([self.model.start, *target[:-1]], np.int64), (rows, 1))
        positions = np.tile(np.arange(length), (rows, 1))
        mask = np.tile(np.tril(np.ones((length, length), np.bool_)), (rows, 1, 1))
        forest = self.model.read(prompts)
        found = forest.log_probabilities(tokens, positions, mask, np.arange(rows * length), _tiled(target, prompts))
        return _means(found, length)


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


def _batches(lengths: Sequence[int], targets: int, vocabulary: int) -> list[NDArray[np.intp]]:
    rows = max(1, BATCH_LOGITS // (targets * vocabulary))
    return token_budget_batches([length + targets for length in lengths], budget=BATCH_TOKENS, max_rows=rows)


def _tiled(target: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.tile(np.array(target, np.int64), len(prompts))


def _means(found: NDArray[np.float32], length: int) -> Scores:
    return np.asarray(found.reshape(-1, length).mean(axis=1, dtype=np.float64))
