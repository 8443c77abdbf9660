"""The examples are run as their readers run them, with a tiny encoder in the starter's place.

`examples/afriqa.py` needs the benchmark's data and minutes; its parts are tested elsewhere.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import environment, write_starter

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"langchain_rag": "langchain_core", "llama_index_rag": "llama_index", "haystack_rag": "haystack"}


def run(name, folder, *arguments):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    write_starter(folder / "cache")
    argv, env = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments], environment(folder)
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_rag_shows_three_english_passages_and_the_question(name, tmp_path):
    out = run(name, tmp_path, "Welcher Fluss ist das?")
    assert "Welcher Fluss ist das?" in out
    assert (out.count("[") == 3) or out.count(",", out.rindex("from:")) == 2


def test_own_corpus(tmp_path):
    lines = run("own_corpus", tmp_path).splitlines()
    assert sorted(line.split(" ", 1)[1].split(":")[0] for line in lines) == ["Amazon", "Nile"]


def test_augment_collection(tmp_path):
    pytest.importorskip("langchain_qdrant", reason="needs langchain-qdrant")
    before, folded, after = run("augment_collection", tmp_path, "Welcher Fluss ist das?").splitlines()
    assert folded == "docs-xqg: 1200 queries in 10 languages folded in"
    assert (before.count(","), after.count(",")) == (2, 2)


def test_choosing_alpha(tmp_path):
    out = run("choosing_alpha", tmp_path).splitlines()
    assert out[0].startswith("α = 0.00  MRR@10 0.") and out[-1].startswith("60 passages in")
    assert out[-2].startswith("chosen: Recipe(")
