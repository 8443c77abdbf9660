"""The command line, as a real process or in this one, and inputs made of words that the tiny encoder knows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from tiny_model import WORDS, write_tiny_encoder

from xqg_vdb.cli.commands import cli
from xqg_vdb.errors import XqgError
from xqg_vdb.models.folder import write_manifest

ROOT = Path(__file__).parents[1]
MAIN = "from xqg_vdb.cli import main; main()"


def command(*arguments, before=""):
    """argv of `xqg-vdb ARGUMENTS`; `before`: Python that runs first."""
    return [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)]


def environment(folder, **more):
    """No variable of the user's points anywhere, no model hub is asked, and no framework reports its use."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XQG_", "HF_"))}
    tree = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # not what may be installed
    kept |= {"PYTHONPATH": tree, "XQG_VDB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    kept["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    return kept | {key: str(value) for key, value in more.items()}


def run_cli(folder, *arguments, before="", more=None, text=True):
    """The finished process of one command, run in `folder`."""
    argv, env = command(*arguments, before=before), environment(folder, **(more or {}))
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=text, check=False)


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_here(folder, *arguments, more=None):
    """The same in this process, as `main` ends it: a process of its own costs a second of imports."""
    wanted = environment(folder, **(more or {}))
    env = {key: None for key in os.environ if key not in wanted} | wanted
    with chdir(folder):
        result = CliRunner().invoke(cli, [str(one) for one in arguments], env=env)
    error = result.exception
    if isinstance(error, XqgError):
        return Done(error.exit_code, result.stdout, f"Error: {error}")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Done(result.exit_code, result.stdout, result.stderr)


def sentence(random_, words):
    return " ".join(random_.choice(WORDS[7:47]) for _ in range(words))


def write_lines(path, records):
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_inputs(folder, n, *, seed=0):
    """corpus.jsonl of n passages in two languages, queries.jsonl with one query for each in two others."""
    rng = random.Random(seed)
    write_lines(folder / "corpus.jsonl", (
        {"id": f"p{i}", "title": sentence(rng, 1), "text": sentence(rng, 8), "lang": "en" if i % 3 else "de", "n": i}
        for i in range(n)
    ))  # fmt: skip
    write_lines(folder / "queries.jsonl", (
        {"id": f"p{i}", "generated_queries": {"sw": [sentence(rng, 4)], "ar": [sentence(rng, 3)]}} for i in range(n)
    ))  # fmt: skip


def write_starter(cache, *, precision="int8", seed=0):
    """A tiny encoder in the place, and with the source, of the starter."""
    folder = write_tiny_encoder(cache / f"starter-{precision}", seed=seed, max_length=64, calibration=0.5)
    manifest = json.loads((folder / "model.json").read_text())
    return write_manifest(folder, {**manifest, "source": "starter:encoder", "precision": precision}).path
