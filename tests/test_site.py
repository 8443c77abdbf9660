"""The documentation site builds without a warning: every link, every page of the menu, every documented Python name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_site_builds(tmp_path):
    pytest.importorskip("zensical", reason='pip install "xqg-vdb[docs]"')
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [.]", f"paths: [{ROOT}]"), "utf-8")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    argv = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "build" / "site" / "api" / "index.html").read_text("utf-8")
    assert "xqg_vdb.search.retriever.Retriever" in api and "Raises MismatchError" in api


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in menu] == []


def test_pages_that_say_how_to_leave_reasons_and_measurements_to_others():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = re.findall(r": (\S+\.md)", menu.partition("\n  - Do:\n")[2].partition("\n  - Understand:\n")[0])
    other = re.compile(
        r"^#+ (Measured|Results|Speed|Why .*|What it costs|How it is fast.*|.* claims|Errors)$", re.MULTILINE
    )
    texts = {name: (ROOT / "docs" / name).read_text("utf-8") for name in pages}
    assert len(pages) > 12
    assert {name: other.findall(text) for name, text in texts.items() if other.search(text)} == {}
    assert [name for name, text in texts.items() if "```" not in text] == []


def test_the_menu_has_four_kinds_of_pages_and_the_first_diagram_fits_a_phone():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2].partition("\nmarkdown_extensions")[0]
    assert re.findall(r"^  - (.*):$", menu, re.MULTILINE) == ["Start", "Do", "Understand", "Look up"]
    for page in ("README.md", "docs/index.md"):
        diagram = (ROOT / page).read_text("utf-8").split("```")[1]
        assert max(map(len, diagram.splitlines())) <= 40, page
