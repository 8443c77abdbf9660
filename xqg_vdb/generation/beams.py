"""Beam search over trees. A beam's history is its row of seen slots: re-ordering beams copies booleans, never a cache.

The rules are those of `transformers` (length_penalty=1, early_stopping=False): 2·beams candidates a step, finished ones
are ranked by mean log-probability, and a stem is done when no open beam is better than its worst finished one.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from xqg_vdb.generation.decoding import Stems, grow, width_of, without_finished
from xqg_vdb.generation.engine import Best, Clock, Forest, Ints
from xqg_vdb.generation.sampling import Decoding


@dataclass
class Beam:
    """An open hypothesis: its stem, the row it grew from, its tokens and the sum of their log-probabilities."""

    stem: int
    parent: int
    tokens: list[int]
    score: float

    @property
    def mean(self) -> float:
        """Mean log-probability of a token."""
        return self.score / len(self.tokens)


@dataclass
class Finished:
    """The best finished hypotheses of one stem, best first."""

    size: int
    beams: list[Beam] = field(default_factory=list)

    def add(self, beam: Beam) -> None:
        """Keep it if it is among the best."""
        self.beams = sorted([*self.beams, beam], key=lambda found: -found.mean)[: self.size]

    def settled(self, best_open: float) -> bool:
        """Whether no open beam with a mean of at most `best_open` can come in."""
        return len(self.beams) == self.size and self.beams[-1].mean >= best_open


def search(
    forest: Forest, stems: Stems, settings: Decoding, *, samples: int, stops: Set[int], clock: Clock
) -> list[list[int]]:
    """Token ids of the `samples` best hypotheses per stem, stem by stem; `stems.best` needs its log_norm."""
    finished = [Finished(settings.beams) for _ in stems.tree]
    beams = [Beam(stem, stem, [], 0.0) for stem in range(len(stems.tree))]
    tree, visible, best = stems.tree, stems.visible, stems.best
    for step in range(settings.max_tokens):
        now = time.perf_counter()
        beams = _extend(beams, best, finished, settings, stops, last=step + 1 == settings.max_tokens)
        clock.add("sampling", now)
        if not beams:
            break
        parent = np.array([beam.parent for beam in beams])
        forest, tree = without_finished(forest, tree[parent])
        now = time.perf_counter()
        position = stems.position[[beam.stem for beam in beams]] + step
        tokens = np.array([beam.tokens[-1] for beam in beams])
        best, visible = grow(forest, tree, visible[parent], tokens, position, k=width_of(settings), norm=True)
        clock.add("decode", now)
    return [result.beams[min(i, len(result.beams) - 1)].tokens for result in finished for i in range(samples)]


def _extend(
    beams: list[Beam], best: Best, finished: list[Finished], settings: Decoding, stops: Set[int], *, last: bool
) -> list[Beam]:
    """The open beams after one more token; those that end, all of them when it is the last, go to `finished`."""
    owners: Ints = np.array([beam.stem for beam in beams])
    totals = best.log_probabilities.astype(np.float64) + np.array([beam.score for beam in beams])[:, None]
    kept: list[Beam] = []
    for stem in np.unique(owners):
        rows = np.flatnonzero(owners == stem)
        order = np.argsort(-totals[rows], axis=None, kind="stable")[: 2 * settings.beams]
        grown = [_child(beams, rows[i // totals.shape[1]], i % totals.shape[1], best, totals) for i in order.tolist()]
        for beam in grown[: settings.beams]:
            if last or beam.tokens[-1] in stops:
                finished[stem].add(beam)
        still = [beam for beam in grown if beam.tokens[-1] not in stops][: settings.beams]
        if not last and still and not finished[stem].settled(still[0].mean):
            kept += still
    return kept


def _child(beams: list[Beam], row: int, column: int, best: Best, totals: np.ndarray) -> Beam:
    token = int(best.tokens[row, column])
    return Beam(beams[row].stem, int(row), [*beams[row].tokens, token], float(totals[row, column]))
