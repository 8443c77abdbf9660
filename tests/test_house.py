"""The house keeps its size: what `python tests/house.py` prints is held here."""

import house
import pytest


@pytest.fixture(scope="module")
def counted():
    return house.counted()


@pytest.mark.parametrize("measure", house.TODAY)
def test_the_house_does_not_grow(counted, measure):
    assert counted[measure] <= house.TODAY[measure], "a new feature pays with what it makes superfluous"


def test_queries_are_folded_in_one_place():
    assert len(house.fusing()) <= 1, house.fusing()
