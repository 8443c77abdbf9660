"""Operators' commands on the embedded store, killed with SIGKILL at random moments: there is always a whole collection.

Each child works without a pause: loads an edition, rolls back, cleans up, takes and restores snapshots, copies.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from collection_cases import passages, vectors

from xqg_vdb.collection.embedded import EmbeddedStore
from xqg_vdb.verifying import verify

HERE = Path(__file__).parent
KILLS, N = 12, 60

WORKER = f"""
import random, sys
from pathlib import Path
from collection_cases import *
from xqg_vdb.collection import CollectionOptions
from xqg_vdb.collection.embedded import EmbeddedStore
from xqg_vdb.collection.migrate import migrate
from xqg_vdb.errors import DataError
place, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
store = EmbeddedStore(place / "store", options=CollectionOptions(keep=3))
other = EmbeddedStore(place / "other")
def edition():
    number = rng.randrange(1, 5)
    load(store, "wiki", passages({N}, tag=f"{{number}}-"), vectors({N}, seed=number), card=a_card(alpha=number / 10))
def snapshot():
    store.admin.create_snapshot("wiki")
def restore():
    found = store.admin.snapshots("wiki")
    if found:
        store.admin.restore_snapshot("wiki", place / "store" / "wiki" / "snapshots" / found[-1].name)
def back():
    store.admin.rollback("wiki", version=rng.choice([one.name for one in store.admin.versions("wiki") if one.finished]))
steps = dict(edition=edition, snapshot=snapshot, restore=restore, back=back,
             gc=lambda: store.admin.gc("wiki", keep=rng.choice([1, 2, 3]), unfinished=rng.random() < 0.5),
             copy=lambda: migrate(store, "wiki", other))
if "wiki" not in store.names():
    edition()
print("ready", flush=True)
while True:
    name = rng.choice(list(steps))
    print(name, flush=True)
    try:
        steps[name]()
    except DataError as error:
        assert "to go back to" in str(error), error
"""


def start(place, seed, said):
    """What it does goes to the file `said`: a pipe's reader would take in more than the line that it waits for."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    with said.open("w") as out:
        return processes.start(
            [sys.executable, "-c", WORKER, str(place), str(seed)],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": paths},
        )


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


@pytest.mark.timeout(600)
def test_whatever_is_killed_leaves_whole_collections(tmp_path):
    rng, cut, finished, said = random.Random(7), [], 0, tmp_path / "said"
    for seed in range(KILLS):
        process = start(tmp_path, seed, said)
        while "ready" not in said.read_text() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.1, 2.0))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, said.read_text()
        cut += said.read_text().split()[-1:]
        finished += check(tmp_path / "store")
        check(tmp_path / "other")
    assert finished >= KILLS
    assert len(set(cut)) >= 3, f"kills hit few kinds of steps: {cut}"
    with EmbeddedStore(tmp_path / "store") as store, EmbeddedStore(tmp_path / "other") as other:
        store.admin.gc("wiki", keep=1, unfinished=True)
        assert len(store.admin.versions("wiki")) == 1
        store.admin.create_snapshot("wiki")
        if (other.path / "wiki").is_dir():  # a kill may have come amid the clean-up of the last copy
            other.admin.gc("wiki", keep=1, unfinished=True)
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".trash") or path.name.endswith(".tmp")]
    # the next write of either replaces what is left of the last one: a hundred bytes
    assert [one for one in left if not one.startswith((".CURRENT", ".cursor"))] == []
