"""Training examples of an encoder-decoder generator: the paper's prompt in, the question's tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xqg_vdb.generation.prompt_tokens import seq2seq_tokens
from xqg_vdb.generation.prompts import SEQ2SEQ_TEMPLATE
from xqg_vdb.training.pairs import TrainingPair


@dataclass(frozen=True, slots=True)
class Example:
    """prompt: ids that the encoder reads; target: ids of the question, with the end token."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


def seq2seq_examples(
    pairs: Sequence[TrainingPair],
    *,
    encode: Callable[[str], list[int]],
    eos: int,
    max_input: int,
    max_question_tokens: int,
) -> list[Example]:
    """One example per pair, in order. encode: text to ids without special tokens."""
    return [
        Example(
            tuple(seq2seq_tokens(encode, SEQ2SEQ_TEMPLATE, p.positive, lang=p.lang, max_input=max_input, eos=eos)[0]),
            (*encode(" ".join(p.query.split()))[:max_question_tokens], eos),
        )
        for p in pairs
    ]


@dataclass(frozen=True, slots=True)
class Seq2SeqCollator:
    """Pads a batch. pad, start: ids that fill up and that the decoder begins with."""

    pad: int
    start: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """input_ids, attention_mask: int64 (n, S). decoder_input_ids, labels: int64 (n, T); −100 where nothing is."""
        import torch

        prompts, targets = [e.prompt for e in examples], [e.target for e in examples]
        shifted = [(self.start, *target[:-1]) for target in targets]
        return {
            "input_ids": torch.tensor(_padded(prompts, self.pad)),
            "attention_mask": torch.tensor(_padded([(1,) * len(prompt) for prompt in prompts], 0)),
            "decoder_input_ids": torch.tensor(_padded(shifted, self.pad)),
            "labels": torch.tensor(_padded(targets, -100)),
        }


def _padded(rows: Sequence[tuple[int, ...]], value: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [[*row, *([value] * (longest - len(row)))] for row in rows]
