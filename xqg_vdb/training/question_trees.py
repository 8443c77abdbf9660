"""Training examples of a decoder-only generator: a passage read once, its questions branching from it.

The layout is that of writing (`generation.causal`): the start token and the passage, then one branch per question: the
ending that names the language, the question, the end token. A branch sees the passage and itself. A batch is one row
of such trees that do not see each other, so nothing is padded, and only the question tokens get logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class TreeCollator:
    """Puts trees into one row.

    window: places that a sliding layer looks back, 0 when there are no such layers. kinds: the model's layer types, for
    models that take a mask for each; () for one mask.
    """

    window: int = 0
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Any) -> TreeCollator:
        """What a transformers configuration asks for."""
        kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
        sliding = "sliding_attention" in kinds if kinds else True
        return cls(int(getattr(config, "sliding_window", None) or 0) if sliding else 0, kinds)

    def __call__(self, trees: Sequence[Tree]) -> dict[str, Any]:
        """One row of S tokens with T question tokens.

        input_ids, position_ids: int64 (1, S). attention_mask: bool (1, 1, S, S), True where a token is seen, or one per
        layer type. logits_to_keep: int64 (T,), the places that predict a question token. labels: int64 (1, T), those.
        """
        import torch

        row = _Row()
        for tree in trees:
            row.add(tree)
        mask = torch.zeros(len(row.ids), len(row.ids), dtype=torch.bool)
        for start, trunk, at, end in row.spans:
            mask[at:end, start:trunk] = True
            mask[at:end, at:end] = torch.ones(end - at, end - at, dtype=torch.bool).tril()
        places = torch.tensor(row.places)
        near = mask & (places[:, None] - places[None, :] < self.window) if self.window else mask
        by_kind = {kind: (near if kind == "sliding_attention" else mask)[None, None] for kind in self.kinds}
        return {
            "input_ids": torch.tensor([row.ids]),
            "position_ids": places[None],
            "attention_mask": by_kind or near[None, None],
            "logits_to_keep": torch.tensor(row.keep),
            "labels": torch.tensor([row.labels]),
        }


@dataclass(slots=True)
class _Row:
    """A row that grows by trees. spans: tree start, end of what is shared, start and end of what sees it and itself."""

    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, tree: Tree) -> None:
        start, shared = len(self.ids), len(tree.shared)
        self.ids += tree.shared
        self.places += range(shared)
        self.spans.append((start, start, start, start + shared))
        for branch in tree.branches:
            at = len(self.ids)
            self.ids += [*branch.ending, *branch.target[:-1]]
            self.places += range(shared, shared + len(self.ids) - at)
            self.spans.append((start, start + shared, at, len(self.ids)))
            self.keep += range(at + len(branch.ending) - 1, len(self.ids))
            self.labels += branch.target
