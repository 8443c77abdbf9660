"""The house keeps its size: what `python tests/house.py` prints is held here."""

import subprocess
from shutil import which

import house
import pytest

AT_THE_ROOT = {
    ".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md",
    "benchmarks", "docker", "docs", "examples", "mkdocs.yml", "pyproject.toml", "requirements-dev.txt", "tests",
    "xqg_vdb",
}  # fmt: skip


@pytest.fixture(scope="module")
def counted():
    return house.counted()


@pytest.mark.parametrize("measure", house.TODAY)
def test_the_house_does_not_grow(counted, measure):
    assert counted[measure] <= house.TODAY[measure], "a new feature pays with what it makes superfluous"


def test_queries_are_folded_in_one_place():
    assert len(house.fusing()) <= 1, house.fusing()


def test_nothing_that_a_command_left_is_tracked():
    """Commands that are tried in a clone write corpora, reports and vectors there."""
    argv = ["git", "-C", str(house.ROOT.parent), "ls-files"]
    listed = subprocess.run(argv, capture_output=True, text=True) if which("git") else None
    if listed is None or listed.returncode:
        pytest.skip("not a clone")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= AT_THE_ROOT
