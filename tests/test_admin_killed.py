"""Operators' commands on the embedded store, killed with SIGKILL: there is always a whole collection.

Each command is killed at every named point that it passes on its way, and then run again to its end; beside that, a
process that works without a pause is killed at random moments, wherever that finds it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import killing
import numpy as np
import pytest
from collection_cases import passages, vectors

from xqg_vdb.index.verify import verify
from xqg_vdb.store.embedded.store import EmbeddedStore

KILLS, N = 6, 60

WORK = f"""
import random
from pathlib import Path
from collection_cases import *
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.index.migrate import migrate
from xqg_vdb.errors import DataError

class Desk:
    def __init__(self, place):
        self.place = place
        self.store = EmbeddedStore(place / "store", options=CollectionOptions(keep=3))
        self.other = EmbeddedStore(place / "other")
    def edition(self, number=4):
        card = a_card(alpha=number / 10)
        load(self.store, "wiki", passages({N}, tag=f"{{number}}-"), vectors({N}, seed=number), card=card)
    def unfinished(self):
        with self.store.writer("wiki", card=a_card(alpha=0.9)) as writer:
            writer.upsert(a_batch(passages(30), vectors(30)))
            writer.commit(30)
    def snapshot(self):
        self.store.admin.create_snapshot("wiki")
    def restore(self):
        found = self.store.admin.snapshots("wiki")
        if found:
            self.store.admin.restore_snapshot("wiki", self.place / "store" / "wiki" / "snapshots" / found[-1].name)
    def rollback(self, version="v0001"):
        self.store.admin.rollback("wiki", version=version)
    def gc(self, keep=1, unfinished=True):
        self.store.admin.gc("wiki", keep=keep, unfinished=unfinished)
    def copy(self):
        migrate(self.store, "wiki", self.other)

def work(place, what):
    desk = Desk(Path(place))
    if what == "base":
        desk.edition(1), desk.edition(2), desk.snapshot(), desk.unfinished()
    elif what.isdigit():
        without_a_pause(desk, random.Random(int(what)))
    else:
        getattr(desk, what)()

def without_a_pause(desk, rng):
    def back():
        desk.rollback(rng.choice([one.name for one in desk.store.admin.versions("wiki") if one.finished]))
    steps = [lambda: desk.edition(rng.randrange(1, 5)), desk.snapshot, desk.restore, back, desk.copy,
             lambda: desk.gc(rng.choice([1, 2, 3]), rng.random() < 0.5)]
    while True:
        try:
            rng.choice(steps)() if "wiki" in desk.store.names() else steps[0]()
        except DataError as error:
            assert "to go back to" in str(error), error
"""

PUBLISHES = "os.rename */store/wiki/CURRENT 1"
PASSED = {
    # each command with points that it must pass; those of compiled functions, and amid a clean-up, are not in a trace
    "edition": {
        PUBLISHES, "os.rename */store/wiki/v*/card.json 1", "os.rename */store/wiki/v*/card.json 2",
        "os.rename */store/wiki/v*/cursor.json 1", "shutil.rmtree */store/wiki/.trash-v*-* 1",
    },
    "snapshot": {"os.rename */store/wiki/snapshots/wiki-v*-*T*Z.tar.gz 1"},
    "restore": {PUBLISHES, "os.rename */store/wiki/v* 1"},
    "rollback": {PUBLISHES},
    "gc": {PUBLISHES, "os.rename */store/wiki/.trash-v*-* 1", "os.rename */store/wiki/.trash-v*-* 2"},
    "copy": {"os.rename */other/wiki/CURRENT 1", "os.rename */other/wiki/v*/cursor.json 1"},
}  # fmt: skip
MORE = {
    "edition": [
        "call EdgeShard.create 1", "call EdgeShard.update 1", "call EdgeShard.flush 1", "call EdgeShard.flush 2",
        "call Popen.communicate 1", "call EdgeShard.load 1", "os.remove card.json 1",
    ],
    "restore": ["call EdgeShard.load 1"],
    "rollback": ["call EdgeShard.load 1"],
    "gc": ["os.remove card.json 1", "os.remove card.json 2"],
    "copy": ["call EdgeShard.update 1", "call EdgeShard.flush 1", "call Popen.communicate 1"],
}  # fmt: skip


def check(path):
    """The published version, and every one that could be rolled back to, is one whole edition."""
    with EmbeddedStore(path) as store:
        if "wiki" not in store.names():
            return 0
        finished = [one.name for one in store.admin.versions("wiki") if one.finished]
        first = store.card("wiki").version
        for version in [*(one for one in finished if one != first), first]:
            if version != store.card("wiki").version:
                store.admin.rollback("wiki", version=version)
            assert verify(store, "wiki").problems == ()
            points = {point.id: point for point in store.scroll("wiki", with_vectors=True)}
            number = int(points["p00000"].payload["content"].removeprefix("text ").partition("-")[0])
            wanted = vectors(N, seed=number)
            for i, passage in enumerate(passages(N, tag=f"{number}-")):
                found = points[passage.id]
                assert found.payload["content"] == passage.text
                unit = wanted[i] / np.linalg.norm(wanted[i])
                assert np.allclose(found.vectors["text-dense"], unit, atol=1e-5)
        return len(finished)


def assert_nothing_left_over(place):
    """A clean-up leaves one version of each, whole, and no half-written file."""
    with EmbeddedStore(place / "store") as store, EmbeddedStore(place / "other") as other:
        store.admin.gc("wiki", keep=1, unfinished=True)
        assert len(store.admin.versions("wiki")) == 1 and verify(store, "wiki").problems == ()
        if (other.path / "wiki").is_dir():  # a kill may have come amid the clean-up of the last copy
            other.admin.gc("wiki", keep=1, unfinished=True)
    left = [path.name for path in place.rglob("*") if path.name.startswith(".trash") or path.name.endswith(".tmp")]
    # the next write of either replaces what is left of the last one: a hundred bytes
    assert [one for one in left if not one.startswith((".CURRENT", ".cursor"))] == []


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store with two editions, a third half loaded, and a snapshot."""
    place = tmp_path_factory.mktemp("base")
    with killing.Workers(WORK, place / "said") as workers:
        assert workers.run(place, "base") == 0, workers.said.read_text()
    return place


@pytest.mark.parametrize("what", PASSED)
def test_a_command_killed_at_every_point_leaves_whole_collections(base, tmp_path, what):
    said, trace, number = tmp_path / "said", tmp_path / "trace", 0

    def fresh():
        nonlocal number
        number += 1
        subprocess.run(["cp", "-a", base, tmp_path / str(number)], check=True)  # the engine's files stay sparse
        return tmp_path / str(number)

    with killing.Workers(WORK, said) as workers:
        whole = fresh()
        assert workers.run(whole, what, env=killing.traced(trace)) == 0, said.read_text()
        points = killing.points(trace, whole)
        assert PASSED[what] <= set(points), points
        for point in [*points, *MORE.get(what, ())]:
            place = fresh()
            assert workers.run(place, what, env=killing.at(point)) == -signal.SIGKILL, (point, said.read_text())
            assert check(place / "store") >= 1, point
            check(place / "other")
            assert workers.run(place, what) == 0, (point, said.read_text())
            assert_nothing_left_over(place)


def test_whatever_is_killed_leaves_whole_collections(tmp_path):
    rng = random.Random(7)
    with killing.Workers(WORK, tmp_path / "said") as workers:
        for seed in range(KILLS):
            worker = workers.start(tmp_path, seed)
            time.sleep(rng.uniform(0.1, 1.5))
            with suppress(ProcessLookupError):  # it ended by an error, which the exit code shows
                os.kill(worker, signal.SIGKILL)
            assert workers.wait() == -signal.SIGKILL, workers.said.read_text()
            check(tmp_path / "store")
            check(tmp_path / "other")
        for what in ("edition", "snapshot", "copy"):  # which clear what is left of the last one
            assert workers.run(tmp_path, what) == 0, workers.said.read_text()
    assert_nothing_left_over(tmp_path)
