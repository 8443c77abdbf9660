"""Loads and generation on a local cluster of Ray, two cores: the collection is the one that `load` makes.

Workers and drivers get SIGKILL at random moments, `XQG_TEST_KILLS` times each (1; `make scale` 20 and 10), on the
stand-in and, where XQG_TEST_QDRANT_URL is set, on that server, which nobody else uses meanwhile: requests are counted.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import httpx
import killing
import pytest
from cli_cases import command, environment, run_cli
from fake_qdrant import FakeQdrant
from test_batches import passages, points_of, queries, query_files
from tiny_model import write_tiny_encoder

from xqg_vdb import Encoder
from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.index import batches
from xqg_vdb.index.load import load
from xqg_vdb.store import open_store

ray = pytest.importorskip("ray", reason="needs Ray Data: pip install 'xqg-vdb[ray]'")
N = 1300  # three windows
KILLS = int(os.environ.get("XQG_TEST_KILLS", "1"))
pytestmark = pytest.mark.timeout(300 + 240 * KILLS)


@pytest.fixture(scope="module")
def cluster():
    paths = os.environ.get("PYTHONPATH", "")
    tests = os.path.dirname(__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": f"{tests}{os.pathsep}{paths}"}},
        )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_encoder(folder, calibration=0.5)
    return folder


@pytest.fixture(params=["stand-in", "server"])
def server(request):
    """A server's address, and a function that says how many requests it has answered."""
    if request.param == "stand-in":
        with FakeQdrant() as fake:
            yield fake.url, lambda: len(fake.requests)
    elif url := os.environ.get("XQG_TEST_QDRANT_URL"):

        def answered():
            told = httpx.get(f"{url}/telemetry?details_level=3").json()["result"]["requests"]["rest"]["responses"]
            return sum(one["count"] for kinds in told.values() for one in kinds.values())

        yield url, answered
    else:
        pytest.skip("XQG_TEST_QDRANT_URL names no server")


@pytest.fixture
def url(server):
    return server[0]


def test_a_job_makes_what_a_load_makes(cluster, model, url):
    from xqg_vdb.integrations.ray import load_dataset

    asked = queries(N)
    rows = [{**row, "generated_queries": asked.get(row["id"])} for row in passages(N)]
    dataset = cluster.data.from_items(rows, override_num_blocks=7)
    store = open_store(url=url)
    try:
        card = load_dataset(dataset, "job", url=url, encoder=model)
        records = [{"id": docid, "generated_queries": found} for docid, found in asked.items()]
        load(passages(N), "whole", encoder=Encoder(model), queries=records, store=store)
        whole = store.card("whole")
        assert (card.count, card.digest, card.query_langs) == (N, whole.digest, ("ha", "sw"))
        assert card.query_means == whole.query_means
        assert points_of(store, "job") == points_of(store, "whole")
    finally:
        for name in ("job", "whole"):
            store.delete(name)
        store.close()


def test_a_bad_row_stops_the_job_and_nothing_is_published(cluster, model):
    from xqg_vdb.integrations.ray import load_dataset

    with FakeQdrant() as fake:
        rows = [*passages(600), {"id": "bad", "title": "", "text": " ", "lang": "en", "page": 0}]
        with pytest.raises(DataError, match=r"'bad'.* is no passage"):
            load_dataset(cluster.data.from_items(rows), "job", url=fake.url, encoder=model)
        fake.refused = {"p550"}
        with pytest.raises(DataError, match="Passage 'p550' cannot be stored"):
            load_dataset(cluster.data.from_items(passages(600)), "job", url=fake.url, encoder=model)
        store = open_store(url=fake.url)
        assert store.names() == []
        store.close()


def inputs(folder, n=N):
    """A corpus file with its query files; the paths."""
    folder.joinpath("corpus.jsonl").write_text("\n".join(map(json.dumps, passages(n))))
    return folder / "corpus.jsonl", query_files(folder, n)


@pytest.fixture
def whole(model, url, tmp_path):
    """What a load on one machine makes there: its points and its card's digests."""
    corpus, files = inputs(tmp_path)
    store, name = open_store(url=url), fresh_name()
    load(corpus, name, encoder=Encoder(model), queries=files, store=store)
    card, points = store.card(name), points_of(store, name)
    store.delete(name)
    store.close()
    return points, (card.count, card.digest, card.query_means)


def fresh_name():
    return f"ray-{uuid.uuid4().hex[:8]}"


def check(url, name, whole):
    """The collection is the one of one machine; then it goes."""
    store = open_store(url=url)
    card = store.card(name)
    assert (card.count, card.digest, card.query_means) == whole[1]
    assert points_of(store, name) == whole[0]
    store.delete(name)
    left = httpx.get(f"{url}/collections").json()["result"]["collections"]
    assert not [one for one in left if name in one["name"]]
    store.close()


def kill_at_table(log, number):
    """SIGKILL to the actor that has just begun the table of this number, of all steps together."""
    ends = time.monotonic() + 120
    while len(begun := log.read_text().splitlines()) < number and time.monotonic() < ends:
        time.sleep(0.002)
    with suppress(ProcessLookupError, IndexError):  # the job has ended, or takes too long
        os.kill(int(begun[number - 1].split()[1]), signal.SIGKILL)
        return True
    return False


WORK = {"Encode": "encode_rows", "Fuse": "points", "Upsert": "_connected"}
"""Of each step, what it calls when it begins a table that is not done yet."""


def counted(step, log):
    """A step that notes in a file when it begins its work on a table."""

    class Counted(step):
        def __call__(self, table):
            begin = getattr(batches, WORK[step.__name__])

            def noted(*arguments):
                with open(log, "a") as file:
                    file.write(f"{step.__name__} {os.getpid()}\n")
                return begin(*arguments)

            with patch.object(batches, WORK[step.__name__], noted):
                return super().__call__(table)

    return Counted


def count_steps(replace, log):
    """Have all jobs of this process note what their workers begin, and give no signs of life, which take requests."""
    from xqg_vdb.integrations import ray as ours
    from xqg_vdb.store.server import names

    replace(names, "RENEWED_EVERY", 1e9)
    for name in WORK:
        replace(ours, name, counted(getattr(batches, name), log))


def below(pid):
    """The processes that descend from one, by what they are called."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, fresh = set(), {pid}
    while fresh := {child for child, parent in parents.items() if parent in fresh} - found:
        found |= fresh
    for child in found:
        with suppress(OSError):
            yield child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def kill_one(pid, pattern, wait, chance):
    """SIGKILL to one actor of a job, `wait` seconds after the first one is there; whether there was one."""
    actors, ends = [], time.monotonic() + 60
    while not actors and time.monotonic() < ends:
        time.sleep(0.05)
        actors = [child for child, name in below(pid) if pattern in name and "IDLE" not in name]
    time.sleep(wait)
    actors = [child for child, name in below(pid) if pattern in name and "IDLE" not in name]
    with suppress(ProcessLookupError):
        if actors:
            os.kill(chance.choice(sorted(actors)), signal.SIGKILL)
            return True
    return False


class Tally:
    """What kills cost: tables begun again and requests, beside a job that was left alone."""

    def __init__(self, server, log):
        self.server, self.log = server, log
        self.least, self.rows = 0, []

    def __enter__(self):
        self.log.write_text("")
        self.before = self.server[1]()

    def __exit__(self, *failed):
        begun = Counter(self.log.read_text().split())
        self.again, self.requests = {step: begun[step] - 3 for step in WORK}, self.server[1]() - self.before
        self.least = self.least or self.requests
        self.rows.append((self.again, self.requests / self.least))

    def __str__(self):
        again, ratios = zip(*self.rows[1:], strict=True)
        tables = ", ".join(f"{step} {sum(one[step] for one in again)}" for step in WORK)
        most = max(sum(one.values()) for one in again)
        return (
            f"of {len(again)} jobs of 9 tables, begun again: {tables}, at most {most} in a job; requests beside the"
            f" {self.least} that it needs: {sum(ratios) / len(ratios):.2f} ×, at most {max(ratios):.2f} ×"
        )


def test_actors_that_are_killed_cost_no_more_than_what_they_were_at(
    cluster, model, whole, server, tmp_path, monkeypatch
):
    from xqg_vdb.integrations.ray import load_dataset

    _, files = inputs(tmp_path)
    dataset, chance, name = cluster.data.from_items(passages(N), override_num_blocks=7), random.Random(7), fresh_name()
    count_steps(monkeypatch.setattr, tmp_path / "begun")
    tally, hits = Tally(server, tmp_path / "begun"), 0
    with ThreadPoolExecutor() as beside:
        for number in range(KILLS + 1):  # the first one is left alone
            with tally:
                if number % 2:
                    hit = beside.submit(kill_at_table, tally.log, chance.randrange(1, 10))
                elif number:
                    hit = beside.submit(kill_one, os.getpid(), "MapWorker", chance.random() * 4, chance)
                options = {"encoder": model, "queries": files, "work": tmp_path / str(number)}
                load_dataset(dataset, name, url=server[0], **options)
            hits += number > 0 and hit.result()
            check(server[0], name, whole)
            assert sum(tally.again.values()) <= 1 and tally.requests <= 1.5 * tally.least, tally.again
    print(f"kills of actors, {hits} met: {tally}")


LAST_MOMENTS = [  # of a driver: what it is about to do when it is killed
    "_ServerWriter.commit 1",  # all is written, and nowhere noted
    "_ServerWriter._clean_up 1",  # all is published
    "Names.publish 1",
    "_prepare 1",  # the version is made
    "combined 1",  # all is encoded
]
DRIVER = """
import sys, killing, ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
from test_batches import passages
from test_ray import count_steps
from xqg_vdb.integrations.ray import load_dataset

killing.arm()
n, url, name, model, begun, work, *files = sys.argv[1:]
count_steps(setattr, begun)
dataset = ray.data.from_items(passages(int(n)), override_num_blocks=7)
load_dataset(dataset, name, url=url, encoder=model, queries=files, work=work)
"""


def test_a_driver_that_is_killed_goes_on_when_it_is_run_again(model, whole, server, tmp_path):
    _, files = inputs(tmp_path)
    chance, longest, (url, _), name = random.Random(11), 0.0, server, fresh_name()
    tally, paths = Tally(server, tmp_path / "begun"), [str(Path(__file__).parent), environment(tmp_path)["PYTHONPATH"]]
    run = {"env": environment(tmp_path, PYTHONPATH=os.pathsep.join(paths)), "stderr": subprocess.PIPE, "text": True}
    met = 0
    for number in range((KILLS + 1) // 2 + 1):  # the first one is left alone, to know how long a job takes
        work, started = tmp_path / str(number), time.monotonic()
        argv = [sys.executable, "-c", DRIVER, str(N), url, name, str(model), str(tally.log), str(work), *files]
        with tally:
            at = killing.at(f"call {LAST_MOMENTS[number // 2 % len(LAST_MOMENTS)]}") if number % 2 else {}
            driver = subprocess.Popen(argv, **{**run, "env": run["env"] | at})
            if number:
                with suppress(subprocess.TimeoutExpired):
                    driver.wait(None if at else chance.uniform(longest / 4, longest))
                met += driver.poll() in (None, -signal.SIGKILL)
                assert driver.poll() == -signal.SIGKILL or not at, driver.communicate()[1]
                driver.kill()
                driver.communicate()
                made = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
                driver = subprocess.Popen(argv, **run)
            said = driver.communicate()[1]
            assert driver.returncode == 0, said
            longest = longest or time.monotonic() - started
            if number:
                assert {path: path.stat().st_mtime_ns for path in made} == made, "encoded again"
        if not number:  # run again, it finds out that nothing is left to do
            assert subprocess.run(argv, **run).returncode == 0
            with open_store(url=url) as store:
                assert store.version(name) == "v0001"
        assert tally.requests <= 1.5 * tally.least, (at, tally.again, tally.requests)
        check(url, name, whole)
    print(f"kills of drivers, {met} met: {tally}")


def test_load_on_a_cluster_by_the_command_line(cluster, model, tmp_path):
    """All else as ever: options, stores, resuming. An actor that is killed is asked again."""
    inputs(tmp_path)
    address = cluster.get_runtime_context().gcs_address
    argv = ["load", "corpus.jsonl", "wiki", "--queries", "sw.jsonl", "--queries", "ha.jsonl", "--encoder", model,
            "--default-lang", "en", "--hybrid", "--json"]  # fmt: skip
    here = run_cli(tmp_path, *argv, "--path", "here")
    assert here.returncode == 0, here.stderr
    driver = subprocess.Popen(
        command(*argv, "--path", "there", "--ray", address),
        cwd=tmp_path, env=environment(tmp_path, XQG_VDB_CACHE=tmp_path / "other"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    kill_one(os.getpid(), "_Actor", 0.5, random.Random(1))
    said = driver.communicate()
    assert driver.returncode == 0, said[1]
    counts = [
        {key: json.loads(out)[key] for key in ("passages", "queries", "languages")} for out in (here.stdout, said[0])
    ]
    assert counts[0] == counts[1]
    stores = [open_store(tmp_path / name) for name in ("here", "there")]
    assert stores[0].card("wiki").digest == stores[1].card("wiki").digest
    assert points_of(stores[0], "wiki") == points_of(stores[1], "wiki")
    for store in stores:
        store.close()


def test_what_is_wrong_with_a_cluster_is_said(tmp_path, model):
    inputs(tmp_path, 3)
    argv = ["load", "corpus.jsonl", "wiki", "--encoder", model, "--path", "store", "--ray"]
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x", "nonsense"):  # "auto" finds any on this machine
        done = run_cli(tmp_path, *argv, address, more={"RAY_TMPDIR": tmp_path})
        assert (done.returncode, done.stderr.count("Traceback")) == (5, 0), done.stderr
        assert f"There is no Ray cluster at {address!r} (" in done.stderr.splitlines()[-1]
    asked = [
        "generate",
        "corpus.jsonl",
        "out.jsonl",
        "-l",
        "sw",
        "--endpoint",
        "http://127.0.0.1:1/v1",
        "--ray",
        "auto",
    ]
    assert "--ray runs a --generator" in run_cli(tmp_path, *asked).stderr


def test_a_start_that_takes_too_long_is_said(monkeypatch):
    from xqg_vdb.integrations import ray as ours

    def late(*arguments, **options):
        raise Exception("The current node timed out during startup.\nMore")

    monkeypatch.setattr(ours.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ours.ray, "init", late)
    said = r"no Ray cluster at 'local' \(The current node timed out during startup\): correct --ray, or start it"
    with pytest.raises(ServerError, match=said), ours.on_cluster("local", None, None):
        pass


def test_generation_on_a_cluster_is_that_of_one_machine(cluster, tmp_path):
    pytest.importorskip("torch", reason="a generator is exported")
    from generation_cases import tiny_checkpoint, write_corpus

    from xqg_vdb.export.encoder import export
    from xqg_vdb.integrations.ray import generate_dataset

    checkpoint = tiny_checkpoint("mt5", tmp_path / "mt5")
    model = export(str(checkpoint), tmp_path / "model", precision="fp32", generator=True, say=lambda _: None).path
    corpus = write_corpus(tmp_path / "corpus.jsonl", 100)
    asked = ["--generator", str(model), "-l", "de", "-l", "sw", "-n", "2", "--filter"]
    address = cluster.get_runtime_context().gcs_address
    for name, more in (("here", []), ("there", ["--ray", address])):
        done = run_cli(tmp_path, "generate", corpus, f"{name}.jsonl", *asked, *more)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    made = generate_dataset(cluster.data.from_items(rows), generator=model, query_langs=["de", "sw"], n=2)
    plain = run_cli(tmp_path, "generate", corpus, "plain.jsonl", *asked[:-1])
    assert plain.returncode == 0, plain.stderr
    lines = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    found = [(row["id"], json.loads(row["generated_queries"])) for row in made.iter_rows()]
    assert found == [(line["id"], line["generated_queries"]) for line in lines]
