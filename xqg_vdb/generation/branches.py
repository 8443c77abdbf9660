"""Given texts behind one context: every text's log-probability, while the context is read once for all of them.

In: a forest of one tree, tokens that all texts share, and the texts as *branches*, which see the tree, the shared
tokens and themselves, not each other. Out: the mean log-probability of each branch's targets. Branches go through the
model in chunks, so that neither the logits nor the attention grows with their number; when one chunk takes all,
shared tokens and branches are a single pass, and no cache is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.generation.causal import branching_mask
from xqg_vdb.generation.engine import Forest

CHUNK_LOGITS = 2**25  # targets × vocabulary inside the graph: 128 MiB of float32
CHUNK_TOKENS = 512  # tokens of the branches side by side; attention is computed between all of them, mostly in vain


@dataclass(frozen=True, slots=True)
class Branch:
    """`tokens` to read, the last of them predicting `targets` one by one: len(targets) <= len(tokens)."""

    tokens: Sequence[int]
    targets: Sequence[int]


def mean_log_probabilities(
    forest: Forest, shared: Sequence[int], branches: Sequence[Branch], *, vocabulary: int
) -> NDArray[np.float64]:
    """Per branch (n,) the mean log-probability of its targets after the tree, `shared` and its own tokens before them.

    forest: one tree, all of whose slots count, at positions 0, 1, …; `shared` may be appended to it.
    """
    if not branches:
        return np.empty(0, np.float64)
    chunks = list(_chunks(branches, most_targets=max(1, CHUNK_LOGITS // vocabulary)))
    if len(chunks) > 1 and shared:
        _append(forest, shared)
        shared = ()
    return np.concatenate([_pass(forest, shared, chunk) for chunk in chunks])


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` (one or more) begin with."""
    # whatever the first and the last in order agree in, those between them have too
    first, last = min(texts, key=list), max(texts, key=list)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))


def _chunks(branches: Sequence[Branch], *, most_targets: int) -> Iterator[list[Branch]]:
    """Consecutive branches within both bounds; a larger one is a chunk of its own."""
    chunk: list[Branch] = []
    targets = tokens = 0
    for branch in branches:
        targets, tokens = targets + len(branch.targets), tokens + len(branch.tokens)
        if chunk and (targets > most_targets or tokens > CHUNK_TOKENS):
            yield chunk
            chunk, targets, tokens = [], len(branch.targets), len(branch.tokens)
        chunk.append(branch)
    yield chunk


def _append(forest: Forest, tokens: Sequence[int]) -> None:
    old, new = forest.slots, len(tokens)
    nothing = np.zeros(0, np.int64)  # no place reaches the output layer
    mask = branching_mask(old, new, [])
    forest.step(np.array([tokens], np.int64), np.arange(old, old + new)[None], mask[None], nothing, k=1)


def _pass(forest: Forest, shared: Sequence[int], chunk: Sequence[Branch]) -> NDArray[np.float64]:
    lengths, counts = np.array([(len(branch.tokens), len(branch.targets)) for branch in chunk]).T
    old, start = forest.slots, forest.slots + len(shared)
    tokens = np.array([*shared, *(token for branch in chunk for token in branch.tokens)], np.int64)
    positions = np.concatenate([np.arange(old, start), *(np.arange(start, start + length) for length in lengths)])
    ends = len(shared) + np.cumsum(lengths)
    take = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    targets = np.array([token for branch in chunk for token in branch.targets], np.int64)
    mask = branching_mask(old, len(shared), lengths.tolist())
    found = forest.log_probabilities(tokens[None], positions[None], mask[None], take, targets)
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(found.astype(np.float64), starts) / counts)
