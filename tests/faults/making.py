"""SIGKILL of what makes models: `export` and `train`, of minute checkpoints, with torch (extra train).

A reader that comes after the kill finds no model, or the whole one; the same command then ends as an unbroken one does.
"""

import json
from hashlib import sha256
from importlib.util import find_spec

import killing
import kills
from cli_cases import environment
from generation_cases import tiny_checkpoint
from tally import Tally
from training_cases import tiny_bert, twenty_pairs, write_pairs

WORK = """
import json, sys
import onnx, onnxruntime, torch, transformers, accelerate, sentence_transformers
import xqg_vdb.export.encoder, xqg_vdb.export.generator, xqg_vdb.train.encoder, xqg_vdb.train.generator
from xqg_vdb.cli import main

def work(*arguments):
    sys.argv = ["xqg-vdb", *arguments]
    main()
"""


def digest(path):
    """Of a file's content; of the records that say how long things took, without that."""
    if path.name == "training.json":
        return ""
    if path.name != "model.json":
        return sha256(path.read_bytes()).hexdigest()
    timed = ("speed", "engines", "fastest_engine", "checksum")
    return {key: value for key, value in json.loads(path.read_bytes()).items() if key not in timed}


class Checkpoints(kills.Place):
    """Checkpoints and pairs; a round begins with an empty folder."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)
        tiny_bert(folder / "encoder")
        tiny_checkpoint("llama", folder / "generator")
        write_pairs(folder / "pairs.jsonl", twenty_pairs())
        self.workers = killing.Workers(WORK, folder / "said", {**environment(folder), "OMP_NUM_THREADS": "1"})

    def command(self, name, at):
        """argv of a command whose OUT is `at / "out"`."""
        verb, kind = name.split()
        if verb == "export":
            more = ["--generator", "--precision", "fp32"] if kind == "generator" else ["--pooling", "mean"]
            return ["export", self.folder / kind, at / "out", *more]
        pairs = ["--pairs", self.folder / "pairs.jsonl", "--dev", self.folder / "pairs.jsonl", "--dev-limit", 2]
        steps = ["--max-steps", 8, "--batch-size", 6, "--save-minutes", 0, "--threads", 1, "--micro-batch", 2]
        return ["train", kind, self.folder / kind, at / "out", *pairs, *steps]

    def base(self):
        """An empty folder."""
        (self.folder / "base").mkdir(exist_ok=True)
        return self.folder / "base"


def made(name, at):
    """{file: its digest} of all that a command left in OUT and beside it, {} while OUT is no model."""
    if not any((at / "out" / manifest).exists() for manifest in ("model.json", "config.json")):
        return {}
    return {
        str(path.relative_to(at)): digest(path)
        for path in at.rglob("*") if path.is_file() and "cache" not in path.relative_to(at).parts
    }  # fmt: skip


def whole(name, seen, before, after):
    """Whether a reader saw no model, or all of it; what else lies there the next command clears away."""
    return seen == before or after.items() <= seen.items()


def attack(name):
    """SIGKILL of the command; without the extra it is not run."""

    def run(rng, folder, rounds):
        if find_spec("sentence_transformers") is None or find_spec("accelerate") is None:
            tally = Tally()
            tally.note("not run: needs the extras export and train")
            return tally
        return kills.killed(name, of=Checkpoints, state=made, between=whole)(rng, folder, rounds)

    return run


COMMANDS = ("export encoder", "export generator", "train encoder", "train generator")
ATTACKS = {f"SIGKILL of {name}": (2, attack(name)) for name in COMMANDS}
