"""Whether two rankings are the same, without asking more of two float computations than they can promise."""

import pytest


def assert_best(found, scores, *, k, atol=1e-5):
    """`found` are the k best of `scores` {id: score}, best first; two that are nearer than `atol` in either order."""
    assert len(set(found)) == len(found) == min(k, len(scores))
    best = sorted(map(float, scores.values()), reverse=True)[:k]
    assert [float(scores[one]) for one in found] == pytest.approx(best, rel=0, abs=atol)


def assert_same(found, expected, *, atol=1e-5):
    """Two rankings [(id, score)] agree; two ids that are nearer than `atol` in either order, also across the end."""
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=0, abs=atol)
    known = dict(expected)
    assert len(dict(found)) == len(found)
    for docid, score in found:
        assert score == pytest.approx(known.get(docid, expected[-1][1]), rel=0, abs=atol), docid


def scored(hits):
    """(id, score) of hits."""
    return [(hit.id, hit.score) for hit in hits]
