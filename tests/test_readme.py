"""README can be read in one go; tests/test_journeys.py runs what it prints."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_it_can_be_read_in_one_go():
    assert len(README.read_text("utf-8").splitlines()) <= 120
