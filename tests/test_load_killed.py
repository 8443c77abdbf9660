"""`xqg-vdb load` killed again and again ends with the collection of an unbroken run, bit for bit.

Real processes, a real (minute) ONNX encoder, the embedded store, SIGKILL. Each kill waits until the run shows on disk
that it reached a stage, and then a random moment. One thing differs from the command as users run it: the store is
flushed every 1,024 passages, not every 8,192, so that 3,000 passages meet several flushes.
"""

import json
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import processes
import pytest
from cli_cases import command, environment, write_inputs
from tiny_model import write_tiny_encoder

from xqg_vdb.collection import Collection
from xqg_vdb.collection.embedded import EmbeddedStore
from xqg_vdb.encoding import Encoder
from xqg_vdb.retrieval import Retriever

PASSAGES = 3000
FLUSH_OFTEN = "import xqg_vdb.writing as writing; writing.COMMIT_EVERY = 1024"
NOT_STARTED, ENCODING, WRITING, INDEXING, PUBLISHED = "start-up", "encoding", "writing", "indexing", "published"
LONGEST = {NOT_STARTED: 0.6, ENCODING: 0.7, WRITING: 0.6, INDEXING: 0.5, PUBLISHED: 0.05}
"""Seconds to wait at most, once a stage is reached."""
WITH_ALL = ("--hybrid", "--keep-plain")
MORE_ROUND = [ENCODING, ENCODING, WRITING, INDEXING]
ROUNDS = [
    [NOT_STARTED, ENCODING, ENCODING, WRITING, INDEXING],
    [ENCODING, NOT_STARTED, WRITING, WRITING, INDEXING],
    [ENCODING, WRITING, INDEXING, INDEXING, PUBLISHED],
    [NOT_STARTED, WRITING, WRITING, INDEXING, PUBLISHED],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("killed")
    write_tiny_encoder(place / "model", calibration=0.5)
    write_inputs(place, PASSAGES)
    return place


@pytest.fixture(scope="module")
def expected(place):
    """Points and card of an unbroken run."""
    assert finish(start(place, "unbroken")) == 0
    return contents(place / "unbroken" / "store")


def start(place, name, *more):
    folder = place / name
    folder.mkdir(exist_ok=True)
    arguments = [
        "load",
        place / "corpus.jsonl",
        "wiki",
        "--queries",
        place / "queries.jsonl",
        "--path",
        folder / "store",
    ]
    arguments += ["--encoder", place / "model", "--threads", 1, "--passage-calibration", 1, "--json", *more]
    with (folder / "said").open("ab") as said:
        return processes.start(
            command(*arguments, before=FLUSH_OFTEN),
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=said,
            # a test run started in the background ignores Ctrl-C, and its children would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(process):
    return process.wait(timeout=60)


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


def reached(folder, stage):
    """Whether a run shows that it got so far."""
    if stage == NOT_STARTED:
        return True
    if stage == ENCODING:
        return any((folder / "cache").glob("builds/*/vectors/manifest.json"))
    if stage == WRITING:
        return any((folder / "store").glob("wiki/v*/card.json"))
    if stage == INDEXING:
        return any(
            json.loads(path.read_bytes())["rows"] == PASSAGES for path in (folder / "store").glob("wiki/v*/cursor.json")
        )
    return (folder / "store" / "wiki" / "CURRENT").exists()


def kill(process, folder, stage, moment):
    """Whether the process was killed; False when it ended before."""
    until = time.monotonic() + 60
    while not reached(folder, stage) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(moment)
    process.kill()
    return finish(process) == -signal.SIGKILL


def killed_and_rerun(place, name, stages, *more):
    """Kill one load in every stage of a round, let the last run end; (kills, exit code)."""
    rng, kills = random.Random(name), 0
    for stage in stages:
        process = start(place, name, *more)
        kills += kill(process, place / name, stage, rng.uniform(0, LONGEST[stage]))
        assert process.returncode in (0, -signal.SIGKILL), (place / name / "said").read_text()
    return kills, finish(start(place, name, *more))


def test_a_load_killed_at_twenty_random_moments_ends_as_an_unbroken_one(place, expected):
    with ThreadPoolExecutor(2) as pool:
        ends = list(
            pool.map(lambda number: killed_and_rerun(place, f"round-{number}", ROUNDS[number]), range(len(ROUNDS)))
        )
    said = [(place / f"round-{number}" / "said").read_text() for number in range(len(ROUNDS))]
    assert [code for _, code in ends] == [0] * len(ROUNDS), said
    assert sum(kills for kills, _ in ends) >= 16, f"a busy machine may miss some of the 20, not most: {ends}"
    for number in range(len(ROUNDS)):
        folder = place / f"round-{number}"
        assert contents(folder / "store") == expected
        assert "Traceback" not in said[number]
        assert_nothing_left_over(folder)


def test_words_and_plain_vectors_survive_kills_as_well(place):
    """One round with the sparse vectors and the plain ones, against a run of its own that was let alone."""
    with ThreadPoolExecutor(2) as pool:
        unbroken = pool.submit(lambda: finish(start(place, "all-unbroken", *WITH_ALL)))
        kills, code = killed_and_rerun(place, "all", MORE_ROUND, *WITH_ALL)
        assert unbroken.result() == code == 0, (place / "all" / "said").read_text()
    assert kills >= 2, "a busy machine may miss some of the 4"
    points, card = contents(place / "all-unbroken" / "store")
    assert set(points["p0"][1]) == {"text-dense", "text-dense-plain", "text-sparse"} and card["bm25"]
    assert contents(place / "all" / "store") == (points, card)
    assert_nothing_left_over(place / "all")


def assert_nothing_left_over(folder):
    assert list((folder / "cache" / "builds").iterdir()) == []
    inside = sorted(path.name for path in (folder / "store" / "wiki").iterdir())
    assert inside[0] == "CURRENT" and inside[1] == "load.lock" and len(inside) == 3, inside
    version = {path.name for path in (folder / "store" / "wiki" / inside[2]).iterdir()}
    assert version == {"LOCK", "card.json", "cursor.json", "shard"}
    assert not any((folder / "store").rglob("*.tmp*")) and not any((folder / "store").rglob("temp_segments/*"))


def test_search_works_after_all_that(place, expected):
    points, _ = expected
    with EmbeddedStore(place / "round-0" / "store") as store, Encoder(place / "model", threads=1) as encoder:
        question = encoder.encode_queries(["w1 w2 w3"])[0].astype(np.float64)
        scores = {
            key: float(np.frombuffer(vectors["text-dense"], np.float32) @ question)
            for key, (_, vectors) in points.items()
        }
        best = sorted(scores, key=lambda key: (-scores[key], key))[:5]
        hits = Retriever(encoder, Collection("wiki", store), calibration=0.0).search("w1 w2 w3", k=5, exact=True)
        assert [hit.id for hit in hits] == best


@pytest.mark.parametrize("stage", [ENCODING, WRITING, INDEXING])
def test_ctrl_c_says_one_sentence_and_the_next_run_goes_on(place, expected, stage):
    name = f"interrupted-{stage}"
    process = start(place, name)
    while not reached(place / name, stage):
        assert process.poll() is None, (place / name / "said").read_text()
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process) == 130
    assert time.monotonic() - began < 30
    said = (place / name / "said").read_text()
    assert said.strip() == "Interrupted; what was committed is kept: run the same command again to go on."
    assert finish(start(place, name)) == 0
    assert contents(place / name / "store") == expected
    assert_nothing_left_over(place / name)
