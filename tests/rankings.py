"""Whether a ranking is that of some scores, without asking more of two float computations than they can promise."""

import pytest


def assert_best(found, scores, *, k, atol=1e-5):
    """`found` are the k best of `scores` {id: score}, best first; two that are nearer than `atol` in either order."""
    assert len(set(found)) == len(found) == min(k, len(scores))
    best = sorted(scores.values(), reverse=True)[:k]
    assert [float(scores[one]) for one in found] == pytest.approx(best, rel=0, abs=atol)
