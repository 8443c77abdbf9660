"""Does a quantised generator still write what the original writes? Measured before it may be used.

The original answers each prompt greedily. Then both read that answer back, token by token. In: two folders. Out:
`Agreement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.corpus import read_corpus
from xqg_vdb.generation.engine import Forest, Stepper, open_session
from xqg_vdb.model_folder import GRAPH, TOKENIZER, ModelFolder
from xqg_vdb.questions import sample_corpus

LOWEST_AGREEMENT = 0.85
LARGEST_LOSS = 0.1  # nats per token
PROMPTS, TOKENS, SIGHT = 8, 16, 512


@dataclass(frozen=True)
class Agreement:
    """What `compare` measured over `tokens` greedy tokens of the original.

    exact: share of prompts for which free greedy decoding gives the very same tokens.
    token_agreement: share of places where both think the same token best, given the original's text so far.
    log_probability, original_log_probability: mean per token, of the original's text, in nats; not above the truth,
    because a
        token outside the best 512 counts as the 512th.
    """

    exact: float
    token_agreement: float
    log_probability: float
    original_log_probability: float
    tokens: int

    @property
    def accepted(self) -> bool:
        """Whether the quantised model may stand for the original."""
        loss = self.original_log_probability - self.log_probability
        return self.token_agreement >= LOWEST_AGREEMENT and loss <= LARGEST_LOSS

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"same next token {self.token_agreement:.1%}, same {TOKENS}-token answer {self.exact:.1%}, "
            f"mean log-probability {self.log_probability:.3f} against {self.original_log_probability:.3f} "
            f"over {self.tokens} tokens"
        )


def compare(original: ModelFolder, other: ModelFolder) -> Agreement:
    """Measure `other` against `original`, both of the same kind and tokenizer."""
    first = _Reader(original)
    prompts = first.prompts()
    starts = [first.start(prompt) for prompt in prompts]
    texts = [first.greedy(start) for start in starts]
    own = [first.read(start, text) for start, text in zip(starts, texts, strict=True)]
    del first, starts  # two copies of a large model at once are not needed
    second = _Reader(other)
    places = [second.start(prompt) for prompt in prompts]
    exact = [second.greedy(place) == text for place, text in zip(places, texts, strict=True)]
    read = [second.read(place, text) for place, text in zip(places, texts, strict=True)]
    return Agreement(
        exact=float(np.mean(exact)),
        token_agreement=float(np.mean(np.concatenate([same for same, _ in read]))),
        log_probability=float(np.mean(np.concatenate([value for _, value in read]))),
        original_log_probability=float(np.mean(np.concatenate([value for _, value in own]))),
        tokens=sum(map(len, texts)),
    )


class _Reader:
    """One model: prompts to trees, trees and texts to log-probabilities."""

    def __init__(self, folder: ModelFolder) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.record = folder.manifest["generator"]
        self.stepper = Stepper(open_session(Path(folder.path) / GRAPH, threads=0))
        self.encoder = None
        if folder.kind == "seq2seq-generator":
            self.encoder = open_session(Path(folder.path) / "encoder.onnx", threads=0)

    def prompts(self) -> list[list[int]]:
        passages = islice(read_corpus(sample_corpus().corpus, detect=False), PROMPTS)
        ask = "Generate a German question for this passage: {}" if self.encoder else "Passage: {}\nQuestion:"
        return [list(self.tokenizer.encode(ask.format(p.text)).ids)[:200] for p in passages]

    def start(self, ids: Sequence[int]) -> tuple[Forest, list[int]]:
        """A tree and the tokens that still must be read before the first one is written."""
        if self.encoder is None:
            return self.stepper.empty(1), list(ids)
        from xqg_vdb.generation.engine import ort_value

        seen = np.ones((1, len(ids)), np.bool_)
        values = self.encoder.run(None, {"tokens": np.array([ids], np.int64), "cross_mask": seen})
        names = [node.name for node in self.encoder.get_outputs()]
        context = {name: ort_value(value) for name, value in zip(names, values, strict=True)}
        return self.stepper.empty(1, {**context, "cross_mask": ort_value(seen)}), [int(self.record["start"])]

    def greedy(self, start: tuple[Forest, list[int]]) -> list[int]:
        forest, ids = replace(start[0]), start[1]
        written: list[int] = []
        while len(written) < TOKENS:
            written.append(int(_append(forest, ids, take=[len(ids) - 1], k=1)[0][0, 0]))
            ids = written[-1:]
        return written

    def read(self, start: tuple[Forest, list[int]], text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Per token of `text`: whether it is thought best (bool), and its log-probability."""
        forest, ids = replace(start[0]), [*start[1], *text[:-1]]
        places = range(len(start[1]) - 1, len(ids))
        tokens, values = _append(forest, ids, take=list(places), k=SIGHT)
        same = tokens == np.array(text)[:, None]
        found = np.where(same.any(axis=1), same.argmax(axis=1), tokens.shape[1] - 1)
        return tokens[:, 0] == np.array(text), values[np.arange(len(text)), found]


def _append(forest: Forest, ids: Sequence[int], *, take: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Read `ids`; the k best tokens and their log-probabilities (len(take), k)."""
    old, new = forest.slots, len(ids)
    mask = np.concatenate([np.ones((new, old), np.bool_), np.tril(np.ones((new, new), np.bool_))], axis=1)
    where = np.arange(old, old + new)[None]
    best = forest.step(np.array([ids], np.int64), where, mask[None], np.array(take, np.int64), k=k, norm=True)
    return best.tokens, best.log_probabilities
