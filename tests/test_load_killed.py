"""`xqg-vdb load` killed again and again ends with the collection of an unbroken run, bit for bit.

Real processes, a real (minute) ONNX encoder, the embedded store, SIGKILL: at every named point that an unbroken run
passes, and at random moments. One thing differs from the command as users run it: the store is flushed every 512
passages, not every 8,192, so that 1,500 passages meet several flushes.
"""

import json
import os
import random
import signal
import time
from contextlib import suppress

import killing
import numpy as np
import pytest
from cli_cases import environment, write_inputs
from rankings import assert_best
from tiny_model import write_tiny_encoder

from xqg_vdb.models.encoder import Encoder
from xqg_vdb.search.retriever import Collection, Retriever
from xqg_vdb.store.embedded.store import EmbeddedStore

PASSAGES = 1500
WORK = """
import sys
import numpy, onnxruntime, tokenizers
import xqg_vdb.store.embedded.store
import xqg_vdb.index.load
import xqg_vdb.index.write as writing
from xqg_vdb.cli import main

writing.COMMIT_EVERY = 512

def work(*arguments):
    sys.argv = ["xqg-vdb", *arguments]
    main()
"""
WITH_ALL = ("--hybrid", "--keep-plain")
ENCODED, BUILDING = "os.rename */cache/builds/*", "call Popen.communicate 1"  # the index
COMMITTED, PUBLISHES = "os.rename */store/wiki/v*/cursor.json", "os.rename */store/wiki/CURRENT 1"
PASSED = {f"{COMMITTED} 1", f"{COMMITTED} 3", "os.rename */store/wiki/v*/card.json 2", PUBLISHES}
MORE = ["call Session.run 3", "call EdgeShard.update 2", "call EdgeShard.flush 2", BUILDING]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("killed")
    write_tiny_encoder(place / "model", calibration=0.5)
    write_inputs(place, PASSAGES)
    return place


@pytest.fixture(scope="module")
def loads(place):
    """`loads(name, *more)`: run, or start, one load into the folder `name` with more options and environment."""
    with killing.Workers(WORK, place / "said", environment(place)) as workers:
        yield Loads(place, workers)


class Loads:
    def __init__(self, place, workers):
        self.place, self.workers = place, workers

    def start(self, name, *more, env=None):
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        self.workers.said = folder / "said"
        inputs = ["load", self.place / "corpus.jsonl", "wiki", "--queries", self.place / "queries.jsonl"]
        options = ["--path", folder / "store", "--encoder", self.place / "model", "--threads", 1, "--json"]
        env = {"XQG_VDB_CACHE": str(folder / "cache"), **(env or {})}
        return self.workers.start(*inputs, *options, "--passage-calibration", 1, *more, env=env)

    def run(self, name, *more, env=None):
        self.start(name, *more, env=env)
        return self.workers.wait()

    def said(self, name):
        return (self.place / name / "said").read_text()

    def cut(self, name, point, *more):
        """Kill one load at a point."""
        assert self.run(name, *more, env=killing.at(point)) == -signal.SIGKILL, (point, self.said(name))

    def end(self, name, *more):
        """Let the last load end, and look at what it left."""
        assert self.run(name, *more) == 0, self.said(name)
        assert "Traceback" not in self.said(name)
        found = contents(self.place / name / "store")
        assert_nothing_left_over(self.place / name)
        return found


@pytest.fixture(scope="module")
def unbroken(loads):
    """Points and card of an unbroken run, and what it passed on its way."""
    trace = loads.place / "trace"
    assert loads.run("unbroken", env=killing.traced(trace)) == 0, loads.said("unbroken")
    points = killing.points(trace, loads.place / "unbroken")
    assert set(points) >= PASSED and points[0].startswith("os.rename */cache/builds/"), points
    return contents(loads.place / "unbroken" / "store"), points


def contents(path):
    """{id: (payload, bytes of each vector)} and what the card says, its version and time apart."""
    with EmbeddedStore(path) as store:
        points = {p.id: (p.payload, bytes_of(p)) for p in store.scroll("wiki", with_vectors=True)}
        card = store.card("wiki").to_json()
    return points, {key: value for key, value in card.items() if key not in ("version", "created")}


def bytes_of(point):
    found = {name: vector.tobytes() for name, vector in point.vectors.items()}
    if point.sparse is not None:
        found["text-sparse"] = point.sparse.indices.tobytes() + point.sparse.values.tobytes()
    return found


def assert_nothing_left_over(folder):
    assert list((folder / "cache" / "builds").iterdir()) == []
    inside = sorted(path.name for path in (folder / "store" / "wiki").iterdir())
    assert inside[0] == "CURRENT" and inside[1] == "load.lock" and len(inside) == 3, inside
    version = {path.name for path in (folder / "store" / "wiki" / inside[2]).iterdir()}
    assert version == {"LOCK", "card.json", "cursor.json", "shard"}
    assert not any((folder / "store").rglob("*.tmp*")) and not any((folder / "store").rglob("temp_segments/*"))


@pytest.mark.parametrize("part", range(3))
def test_a_load_killed_at_every_point_ends_as_an_unbroken_one(loads, unbroken, part):
    expected, points = unbroken
    for number, point in enumerate([*points, *MORE]):
        if number % 3 == part:
            loads.cut(f"point-{number}", point)
            assert loads.end(f"point-{number}") == expected, point


def test_a_load_killed_again_and_again_ends_as_an_unbroken_one(loads, unbroken):
    """Each run comes a little further than the one before it."""
    for point in (f"{ENCODED} 1", f"{ENCODED} 2", f"{COMMITTED} 1", f"{COMMITTED} 2", BUILDING, PUBLISHES):
        loads.cut("chain", point)
        if point == BUILDING:  # every passage is in, and nothing is published
            (cursor,) = (loads.place / "chain" / "store" / "wiki").glob("v*/cursor.json")
            assert json.loads(cursor.read_bytes())["rows"] == PASSAGES
            assert not (cursor.parents[1] / "CURRENT").exists()
    assert loads.end("chain") == unbroken[0]


def test_a_load_killed_at_random_moments_ends_as_an_unbroken_one(loads, unbroken):
    """Wherever that is: what is shown to be hit is above."""
    rng = random.Random(1)
    for _ in range(6):
        worker = loads.start("random")
        time.sleep(rng.uniform(0, 1))
        with suppress(ProcessLookupError):  # it was done before
            os.kill(worker, signal.SIGKILL)
        assert loads.workers.wait() in (0, -signal.SIGKILL), loads.said("random")
    assert loads.end("random") == unbroken[0]


def test_words_and_plain_vectors_survive_kills_as_well(loads):
    """With the sparse and the plain vectors, against a run of its own that was let alone."""
    assert loads.run("all-unbroken", *WITH_ALL) == 0, loads.said("all-unbroken")
    points, card = contents(loads.place / "all-unbroken" / "store")
    assert set(points["p0"][1]) == {"text-dense", "text-dense-plain", "text-sparse"} and card["bm25"]
    for point in (f"{ENCODED} 2", f"{COMMITTED} 1", BUILDING):
        loads.cut("all", point, *WITH_ALL)
    assert loads.end("all", *WITH_ALL) == (points, card)


def test_search_works_after_all_that(loads):
    for point in (f"{COMMITTED} 2", PUBLISHES):
        loads.cut("searched", point)
    points, _ = loads.end("searched")
    folder = loads.place
    with EmbeddedStore(folder / "searched" / "store") as store, Encoder(folder / "model", threads=1) as encoder:
        question = encoder.encode_queries(["w1 w2 w3"], calibrate=False)[0].astype(np.float64)
        hits = Retriever(encoder, Collection("wiki", store), calibration=0.0).search("w1 w2 w3", k=5, exact=True)
    scores = {
        key: float(np.frombuffer(vectors["text-dense"], np.float32) @ question) for key, (_, vectors) in points.items()
    }
    assert_best([hit.id for hit in hits], scores, k=5)


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        (f"{ENCODED} 2", "nothing was finished yet, so nothing is kept"),
        (f"{ENCODED} 3", "the first 512 are encoded and kept"),
        (f"{COMMITTED} 1", "what was committed is kept"),
        (BUILDING, "what was committed is kept"),
    ],
)
def test_ctrl_c_says_one_sentence_and_the_next_run_goes_on(loads, unbroken, point, kept):
    name = f"interrupted-{point.split('/')[-1]}-{kept[:5]}"
    assert loads.run(name, env=killing.at(point, signal.SIGINT)) == 130, loads.said(name)
    said = loads.said(name)
    assert said.strip() == f"Interrupted; {kept}: run the same command again to continue."
    assert loads.end(name) == unbroken[0]
