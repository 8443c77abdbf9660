"""SIGKILL at random moments; then the same command again, and the result is that of an unbroken run.

Real processes, a real (minute) ONNX encoder, the embedded store. Between the kill and the second run a reader looks:
it sees the collection as it was before, or as it is after; of `add` and `delete`, each point so.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import killing
from cli_cases import environment, write_inputs, write_lines
from tally import Tally
from tiny_model import write_tiny_encoder

from xqg_vdb.store.embedded.store import EmbeddedStore

PASSAGES = 300
WORK = """
import os, signal, sys, time
from pathlib import Path
import numpy, onnxruntime, tokenizers
import xqg_vdb.store.embedded.store
import xqg_vdb.index.load
import xqg_vdb.index.update
import xqg_vdb.index.write as writing
from xqg_vdb.cli import main
from xqg_vdb.generate.run import Job, generate_file
from generation_cases import FakeGenerator

writing.COMMIT_EVERY = 64

class Slow(FakeGenerator):
    def generate_batch(self, *arguments, **options):
        time.sleep(0.002)
        return super().generate_batch(*arguments, **options)

def work(*arguments):
    signal.alarm(int(os.environ.get("XQG_FAULTS_LIMIT", 0)))  # what hangs ends by a signal
    if arguments[0] == "write-queries":
        job = Job(("de", "sw"), 2, shard=(*arguments, "1/1")[3])
        generate_file(Path(arguments[1]), Path(arguments[2]), generator=Slow(size=4), job=job)
        return
    sys.argv = ["xqg-vdb", *arguments]
    main()
"""


MADE = Path(tempfile.mkdtemp(prefix="xqg-faults-")) / "base"
"""The folder from which rounds begin, made once in this process."""
atexit.register(shutil.rmtree, MADE.parent, ignore_errors=True)


def copy(folder, to):
    """A copy of a folder; holes in files stay holes."""
    subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", folder, to], check=True)


class Place:
    """A folder with inputs, a store with two versions and two finished shards: from it each round begins anew."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)
        write_tiny_encoder(folder / "model", calibration=0.5)
        write_inputs(folder, PASSAGES)
        (folder / "more").mkdir()
        write_inputs(folder / "more", PASSAGES // 2, seed=1)
        write_lines(folder / "ids", [])
        (folder / "ids").write_text("\n".join(f"p{i}" for i in range(0, PASSAGES, 3)))
        self.workers = killing.Workers(WORK, folder / "said", environment(folder))

    def command(self, name, at):
        """argv of a command whose store and outputs lie in the folder `at`."""
        here, encoder = self.folder, ["--encoder", self.folder / "model", "--threads", 1]
        store = ["--path", at / "store"]
        first = ["--queries", here / "queries.jsonl", *encoder]
        snapshot = next(iter(sorted((at / "store" / "wiki" / "snapshots").glob("*.tar.gz"))), "none")
        return {
            "load": ["load", here / "corpus.jsonl", "new", *first],
            "load again": ["load", here / "more" / "corpus.jsonl", "wiki", *encoder, "--keep", 2],
            "add": ["add", here / "more" / "corpus.jsonl", "wiki", *encoder],
            "delete": ["delete", "wiki", "--ids", here / "ids"],
            "rollback": ["rollback", "wiki", "--to", "v0001"],
            "gc": ["gc", "wiki", "--keep", 1],
            "snapshot create": ["snapshot", "create", "wiki"],
            "snapshot restore": ["snapshot", "restore", "wiki", snapshot],
            "migrate": ["migrate", "wiki", "--to-path", at / "other"],
            "write-queries": ["write-queries", here / "corpus.jsonl", at / "q.jsonl"],
            "merge": ["merge", at / "sharded.jsonl"],
        }[name] + ([] if name in ("write-queries", "merge") else store)

    def run(self, name, at, env=None):
        """The exit code of one whole run."""
        return self.workers.run(*self.command(name, at), env={"XQG_VDB_CACHE": str(at / "cache"), **(env or {})})

    def base(self):
        """The folder that rounds are copied from."""
        base = self.folder / "base"
        if not base.exists() and MADE.exists():
            copy(MADE, base)
        if not base.exists():
            base.mkdir()
            inputs = [self.folder / "corpus.jsonl", "wiki", "--queries", self.folder / "queries.jsonl"]
            encoder = ["--encoder", self.folder / "model", "--threads", 1, "--path", base / "store"]
            env = {"XQG_VDB_CACHE": str(base / "cache")}
            assert self.workers.run("load", *inputs, *encoder, "--alpha", 0.2, env=env) == 0, self.said()
            assert self.run("snapshot create", base) == 0, self.said()
            assert self.workers.run("load", *inputs, *encoder, "--alpha", 0.4, "--keep", 2, env=env) == 0, self.said()
            for shard in ("1/2", "2/2"):
                sharded = [self.folder / "corpus.jsonl", base / "sharded.jsonl", shard]
                assert self.workers.run("write-queries", *sharded, env=env) == 0, self.said()
            copy(base, MADE)
        return base

    def round(self, name):
        """A fresh copy of the base."""
        at = self.folder / name
        copy(self.base(), at)
        return at

    def said(self):
        return (self.folder / "said").read_text()


def points_of(path, name):
    """{id: content of each point} of a published collection; {} when there is none."""
    with EmbeddedStore(path) as store:
        if name not in store.names():
            return {}
        return {
            point.id: (
                json.dumps(point.payload, sort_keys=True),
                tuple(sorted((key, row.tobytes()) for key, row in point.vectors.items())),
            )
            for point in store.scroll(name, with_vectors=True)
        }


def state(name, at):
    """What a command is there to change."""
    if name in ("write-queries", "merge"):
        out = at / ("q.jsonl" if name == "write-queries" else "sharded.jsonl")
        return out.read_bytes() if out.exists() else b""
    if name == "load":
        return points_of(at / "store", "new")
    if name == "migrate":
        return points_of(at / "other", "wiki") if (at / "other").exists() else {}
    if name == "gc":
        return (points_of(at / "store", "wiki"), versions(at))
    if name == "snapshot create":
        return (points_of(at / "store", "wiki"), snapshots(at) > 1)
    return points_of(at / "store", "wiki")


def versions(at):
    with EmbeddedStore(at / "store") as store:
        return sum(version.finished for version in store.admin.versions("wiki"))


def snapshots(at):
    with EmbeddedStore(at / "store") as store:
        return len(store.admin.snapshots("wiki"))


def between(name, seen, before, after):
    """Whether a reader that came after the kill saw nothing but old and new."""
    if name in ("add", "delete"):
        allowed = [set(before.items()), set(after.items())]
        must = set(before) & set(after)
        return must <= set(seen) and set(seen.items()) <= allowed[0] | allowed[1]
    if name == "gc":
        return seen[0] == before[0] == after[0]
    return seen in (before, after)


def killed(name, of=Place, state=state, between=between):
    """The attack on one command; of: what makes the folders that rounds begin from."""

    def attack(rng, folder, rounds):
        place, tally = of(folder), Tally()
        with place.workers:
            for number in range(2):  # the first takes longer
                at = place.round(f"unbroken-{number}")
                before, began = state(name, at), time.monotonic()
                assert place.run(name, at) == 0, place.said()
            took, after = time.monotonic() - began, state(name, at)
            assert before != after, f"{name} changes nothing"
            for number in range(rounds):
                at = place.round(f"round-{number}")
                delay = rng.uniform(0, took)
                worker = place.workers.start(*place.command(name, at), env={"XQG_VDB_CACHE": str(at / "cache")})
                time.sleep(delay)
                with suppress(ProcessLookupError):  # it was done before
                    os.kill(worker, signal.SIGKILL)
                tally.tried += 1
                tally.hit += place.workers.wait() == -signal.SIGKILL
                where = f"killed after {delay:.3f} s of {took:.3f}"
                if not between(name, state(name, at), before, after):
                    tally.bad.append(f"{where}: a reader saw something else")
                if (code := place.run(name, at)) != 0:
                    tally.bad.append(f"{where}: the same command ended {code}: {place.said()[-300:]}")
                elif state(name, at) != after:
                    tally.bad.append(f"{where}: the result differs")
                shutil.rmtree(at)
        return tally

    return attack


COMMANDS = (
    "load", "load again", "add", "delete", "rollback", "gc", "snapshot create", "snapshot restore", "migrate",
    "write-queries", "merge",
)  # fmt: skip
ATTACKS = {f"SIGKILL of {name}": (2, killed(name)) for name in COMMANDS}
