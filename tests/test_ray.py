"""Loads and generation on a local cluster of Ray, two cores: the collection is the one that `load` makes.

Workers and drivers get SIGKILL at random moments, `XQG_TEST_KILLS` times each (1; `make scale` 10).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cli_cases import command, environment, run_cli
from fake_qdrant import FakeQdrant
from test_batches import passages, points_of, queries, query_files
from tiny_model import write_tiny_encoder

from xqg_vdb import Encoder
from xqg_vdb.errors import DataError
from xqg_vdb.index.load import load
from xqg_vdb.store import open_store

ray = pytest.importorskip("ray", reason="needs Ray Data: pip install 'xqg-vdb[ray]'")
N = 1300  # three windows
KILLS = int(os.environ.get("XQG_TEST_KILLS", "1"))
pytestmark = pytest.mark.timeout(300 + 120 * KILLS)


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
def url(request):
    if request.param == "stand-in":
        with FakeQdrant() as fake:
            yield fake.url
    elif "XQG_TEST_QDRANT_URL" in os.environ:
        yield os.environ["XQG_TEST_QDRANT_URL"]
    else:
        pytest.skip("XQG_TEST_QDRANT_URL names no server")


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


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What a load on one machine makes: its points and its card's digests."""
    folder = tmp_path_factory.mktemp("whole")
    corpus, files = inputs(folder)
    with FakeQdrant() as fake:
        store = open_store(url=fake.url)
        load(corpus, "wiki", encoder=Encoder(model), queries=files, store=store)
        card, points = store.card("wiki"), points_of(store, "wiki")
        store.close()
    return points, (card.count, card.digest, card.query_means)


def check(url, whole):
    store = open_store(url=url)
    card = store.card("wiki")
    assert (card.count, card.digest, card.query_means) == whole[1]
    assert points_of(store, "wiki") == whole[0]
    assert store.names() == ["wiki"]
    store.close()


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


def test_actors_that_are_killed_cost_no_more_than_what_they_were_at(cluster, model, whole, tmp_path):
    from xqg_vdb.integrations.ray import load_dataset

    _, files = inputs(tmp_path)
    dataset, chance = cluster.data.from_items(passages(N), override_num_blocks=7), random.Random(7)
    with ThreadPoolExecutor() as beside:
        for number in range(KILLS):
            with FakeQdrant() as fake:
                hit = beside.submit(kill_one, os.getpid(), "MapWorker", chance.random() * 4, chance)
                load_dataset(dataset, "wiki", url=fake.url, encoder=model, queries=files, work=tmp_path / str(number))
                print("an actor was hit" if hit.result() else "the job had ended")
                check(fake.url, whole)


DRIVER = """
import sys, ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
from test_batches import passages
from xqg_vdb.integrations.ray import load_dataset

n, url, model, work, *files = sys.argv[1:]
dataset = ray.data.from_items(passages(int(n)), override_num_blocks=7)
load_dataset(dataset, "wiki", url=url, encoder=model, queries=files, work=work)
"""


def test_a_driver_that_is_killed_goes_on_when_it_is_run_again(model, whole, tmp_path):
    _, files = inputs(tmp_path)
    chance, longest = random.Random(11), 0.0
    for number in range(KILLS + 1):  # the first one is left alone, to know how long a job takes
        work, started = tmp_path / str(number), time.monotonic()
        paths = os.pathsep.join([str(Path(__file__).parent), environment(tmp_path)["PYTHONPATH"]])
        with FakeQdrant() as fake:
            argv = [sys.executable, "-c", DRIVER, str(N), fake.url, str(model), str(work), *files]
            run = {"env": environment(tmp_path, PYTHONPATH=paths), "stderr": subprocess.PIPE, "text": True}
            driver = subprocess.Popen(argv, **run)
            if number:
                with suppress(subprocess.TimeoutExpired):
                    driver.wait(chance.uniform(longest / 4, longest))
                driver.kill()
                driver.communicate()
                made = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
                driver = subprocess.Popen(argv, **run)
            said = driver.communicate()[1]
            assert driver.returncode == 0, said
            longest = longest or time.monotonic() - started
            check(fake.url, whole)
            if number:
                assert {path: path.stat().st_mtime_ns for path in made} == made, "encoded again"


def test_load_on_a_cluster_by_the_command_line(cluster, model, whole, tmp_path):
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


def test_generation_on_a_cluster_is_that_of_one_machine(cluster, tmp_path):
    pytest.importorskip("torch", reason="a generator is exported")
    from generation_cases import tiny_checkpoint, write_corpus

    from xqg_vdb.export.generator import export_generator
    from xqg_vdb.integrations.ray import generate_dataset

    checkpoint = tiny_checkpoint("mt5", tmp_path / "mt5")
    model = export_generator(str(checkpoint), tmp_path / "model", precision="fp32", say=lambda _: None).path
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
