"""The decoding loop: from trees with stems to token lists; greedy and seeded top-k sampling.

A *stem* is a place from which rows start: the end of a prompt in one language. All samples of a language leave from the
same stem, and see its slots without copying them. Finished rows leave the batch at once, finished trees too. In: a
forest, stems, keys. Out: token ids per row. This file knows no text, no prompt and no model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from xqg_vdb.generation.engine import Best, Bools, Clock, Forest, Ints
from xqg_vdb.generation.sampling import Decoding, Keys, draw


@dataclass(frozen=True)
class Stems:
    """Where rows start, one entry per stem.

    The best first tokens, the tree, the slots seen (stems, P), the next position.
    """

    best: Best
    tree: Ints
    visible: Bools
    position: Ints


def samples_of(settings: Decoding, n: int) -> int:
    """Texts per stem: greedy has one answer."""
    return 1 if settings.mode == "greedy" else n


def width_of(settings: Decoding) -> int:
    """How many of the best tokens every step must know."""
    return 1 if settings.mode == "greedy" else settings.top_k


def decode(
    forest: Forest,
    stems: Stems,
    keys: Sequence[int],
    settings: Decoding,
    *,
    samples: int,
    stops: Set[int],
    clock: Clock,
) -> list[list[int]]:
    """Token ids of `samples` texts per stem, stem by stem, each ending with its stop token when there was one.

    keys: one sampling key per text, unused when greedy.
    """
    rows = np.repeat(np.arange(len(stems.tree)), samples)
    written: list[list[int]] = [[] for _ in rows]
    numbers = np.array(keys, np.uint64)
    live = np.arange(len(rows))
    tree, visible, best = stems.tree[rows], stems.visible[rows], stems.best.rows(rows)
    for step in range(settings.max_tokens):
        now = time.perf_counter()
        chosen = _choose(best, numbers[live], step, settings)
        for row, token in zip(live.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        going = ~np.isin(chosen, list(stops))
        live, tree, visible, chosen = live[going], tree[going], visible[going], chosen[going]
        clock.add("sampling", now)
        if not len(live) or step + 1 == settings.max_tokens:
            break
        forest, tree = without_finished(forest, tree)
        now = time.perf_counter()
        position = stems.position[rows[live]] + step
        best, visible = grow(forest, tree, visible, chosen, position, k=width_of(settings))
        clock.add("decode", now)
    return written


def grow(forest: Forest, tree: Ints, visible: Bools, tokens: Ints, positions: Ints, *, k: int) -> tuple[Best, Bools]:
    """Append one token to each row (all arrays have one entry per row); returns the best next ones and the new sight.

    Rows of a tree lie side by side in its new slots; trees with fewer rows than the widest are padded with unseen
    slots.
    """
    order = np.argsort(tree, kind="stable")
    counts = np.bincount(tree, minlength=len(forest.positions))
    column = np.empty(len(tree), np.int64)
    column[order] = np.arange(len(tree)) - np.repeat(np.cumsum(counts) - counts, counts)
    trees, width, slots = len(counts), int(counts.max()), forest.slots
    seen = np.concatenate([visible, column[:, None] == np.arange(width)[None, :]], axis=1)
    ids, places = np.zeros((trees, width), np.int64), np.zeros((trees, width), np.int64)
    mask = np.zeros((trees, width, slots + width), np.bool_)
    ids[tree, column], places[tree, column], mask[tree, column] = tokens, positions, seen
    return forest.step(ids, places, mask, tree * width + column, k=k), seen


def without_finished(forest: Forest, tree: Ints) -> tuple[Forest, Ints]:
    """The forest without trees that no row is in, and the trees' new numbers."""
    kept = np.unique(tree)
    if len(kept) == len(forest.positions):
        return forest, tree
    return forest.keep(kept), np.searchsorted(kept, tree)


def _choose(best: Best, keys: Keys, step: int, settings: Decoding) -> Ints:
    if settings.mode == "greedy":
        return best.tokens[:, 0]
    return draw(best.scores, best.tokens, keys=keys, step=step, temperature=settings.temperature)
