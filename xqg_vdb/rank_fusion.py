"""Reciprocal rank fusion: several rankings of one question into one.

    score(d) = Σ_r 1 / (60 + rank_r(d))        ranks from 1; 0 for a ranking that d is not in

Cormack, Clarke and Büttcher, SIGIR 2009. It is computed here and not by the engine, whose constant and tie-breaking
differ between versions and stores: equal scores come in the order of ids, in the rankings and in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xqg_vdb.types import Hit

CONSTANT = 60
DEPTH = 100
"""Hits of each ranking that take part, or k where that is more."""


def fuse_ranks(rankings: Sequence[Sequence[Hit]], *, k: int) -> list[Hit]:
    """The k best of rankings that are ordered by score, then id, with their fused scores."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1.0 / (CONSTANT + rank)
            hits.setdefault(hit.id, hit)
    best = sorted(scores, key=lambda docid: (-scores[docid], docid))[:k]
    return [replace(hits[docid], score=scores[docid]) for docid in best]
