"""Training examples of a decoder-only generator: a passage read once, its questions branching from it.

The layout is that of writing (`generation.causal`): the start token and the passage, then one branch per question: the
ending that names the language, the question, the end token. A branch sees the passage and itself. A batch is one row
of such trees that do not see each other, so nothing is padded, and only the question tokens get logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xqg_vdb.generation.prompt_tokens import passage_tokens
from xqg_vdb.generation.prompts import CausalPrompt
from xqg_vdb.training.pairs import TrainingPair, content_key

BRANCHES = 8  # of one tree; a passage with more questions becomes several trees


@dataclass(frozen=True, slots=True)
class Branch:
    """ending: ids that name the language; target: ids of the question, with the end token."""

    ending: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """shared: ids of the start token, the prefix and the passage."""

    shared: tuple[int, ...]
    branches: tuple[Branch, ...]


def question_trees(
    pairs: Sequence[TrainingPair],
    *,
    encode: Callable[[str], list[int]],
    prompt: CausalPrompt,
    bos: int | None,
    eos: int,
    max_question_tokens: int,
) -> list[Tree]:
    """One tree per passage, in the order in which passages first occur. encode: text to ids without special tokens."""
    start = [] if bos is None else [bos]
    groups: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        groups.setdefault(content_key(pair.positive), []).append(pair)
    trees = []
    for members in groups.values():
        ids, _ = passage_tokens(encode, prompt, members[0].positive, room=prompt.max_passage_tokens)
        branches = [
            Branch(
                tuple(encode(prompt.ending(pair.lang))),
                (*encode(" " + " ".join(pair.query.split()))[:max_question_tokens], eos),
            )
            for pair in members
        ]
        shared = tuple(start + encode(prompt.prefix) + ids)
        trees += [Tree(shared, tuple(branches[i : i + BRANCHES])) for i in range(0, len(branches), BRANCHES)]
    return trees


def collate_trees(trees: Sequence[Tree]) -> dict[str, Any]:
    """One row of trees as tensors.

    input_ids, position_ids: int64 (1, S). attention_mask: bool (1, 1, S, S), True where a token is seen.
    logits_to_keep: int64 (T,), the places that predict a question token. labels: int64 (1, T), those tokens.
    """
    import torch

    ids: list[int] = []
    places: list[int] = []
    keep: list[int] = []
    labels: list[int] = []
    spans: list[tuple[int, int, int, int]] = []  # tree start, end of the shared part, branch start, branch end
    for tree in trees:
        start, shared = len(ids), len(tree.shared)
        ids += tree.shared
        places += range(shared)
        spans.append((start, start, start, start + shared))
        for branch in tree.branches:
            at = len(ids)
            ids += [*branch.ending, *branch.target[:-1]]
            places += range(shared, shared + len(ids) - at)
            spans.append((start, start + shared, at, len(ids)))
            keep += range(at + len(branch.ending) - 1, len(ids))
            labels += branch.target
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for start, trunk, at, end in spans:
        mask[at:end, start:trunk] = True
        mask[at:end, at:end] = torch.ones(end - at, end - at, dtype=torch.bool).tril()
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([places]),
        "attention_mask": mask[None, None],
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([labels]),
    }
