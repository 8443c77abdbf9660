"""The operators' commands as they are typed: what they print, and how they end. A minute encoder, real stores."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
from cli_cases import run_cli, run_here, write_inputs
from fake_qdrant import FakeQdrant
from tiny_model import write_tiny_encoder

from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.server.store import ServerStore


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny", calibration=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """A folder with a corpus of 30, a build folder, and two versions of `wiki` in `store`."""
    folder = tmp_path_factory.mktemp("made")
    write_inputs(folder, 30)
    for alpha in ("0.3", "0.5"):
        said(folder, "load", "corpus.jsonl", "wiki", "--queries", "queries.jsonl", "--encoder", model,
             "--build", "vectors", "--alpha", alpha, "--keep", "2", "--quantization", "scalar")  # fmt: skip
    return folder


@pytest.fixture
def desk(tmp_path, made):
    """The same, for one test to work in."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def xqg(folder, *arguments, more=None):
    variables = {"XQG_VDB_PATH": folder / "store"} if "--url" not in arguments else {}
    return run_here(folder, *arguments, more={**variables, **(more or {})})


def said(folder, *arguments, code=0, more=None):
    done = xqg(folder, *arguments, more=more)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_versions_rollback_and_gc(desk):
    listed = re.compile(r"  v0001  30 passages, 20\S+\n\* v0002  30 passages, 20\S+\n")
    assert listed.fullmatch(said(desk, "versions", "wiki"))
    assert said(desk, "rollback", "wiki") == "wiki: searches see v0001\n"
    assert "alpha 0.3" in said(desk, "info", "wiki")
    assert said(desk, "rollback", "wiki", code=3).startswith("Error: Collection 'wiki' has no older version than v0001")
    assert said(desk, "rollback", "wiki", "--to", "v0002") == "wiki: searches see v0002\n"
    assert said(desk, "gc", "wiki") == "deleted v0001\n"
    assert said(desk, "gc", "wiki") == ""
    (only,) = json.loads(said(desk, "versions", "wiki", "--json"))
    assert (only["version"], only["published"], only["finished"], only["passages"]) == ("v0002", True, True, 30)
    assert said(desk, "versions", "wikki", code=3).startswith("Error: There is no collection 'wikki'")


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (b"\xef\xbb\xbfp2\r\n\r\np\xc2\x853\n", "wiki: 1 deleted, 1 not there; 29 passages\n"),
        (b"p2\n\xff\n", "Error: ids.txt line 2: not UTF-8"),
        (b"\xff\xfep\0", "Error: ids.txt is UTF-16"),
    ],
)
def test_passages_are_deleted_by_a_file_of_ids(desk, ids, told):
    (desk / "ids.txt").write_bytes(ids)
    assert said(desk, "delete", "wiki", "--ids", "ids.txt", code=3 * told.startswith("Error")).startswith(told)


def test_info_shows_the_state(desk):
    state = json.loads(said(desk, "info", "wiki", "--json"))["state"]
    assert (state["points"], state["languages"], state["status"]) == (30, {"de": 10, "en": 20}, "green")
    assert "options      quantization scalar" in said(desk, "info", "wiki")


def test_verify_compares_with_the_build(desk, model):
    out = said(desk, "verify", "wiki", "--build", "vectors")
    assert re.fullmatch(
        r"wiki v0002: 30 points \(10 de, 20 en\)\n30 vectors compared with the build, lowest cosine (1\.0|0\.9999)\d+\n"
        r"all is well\n", out,
    )  # fmt: skip
    (desk / "other.jsonl").write_text('{"id": "other", "text": "t", "lang": "en"}\n')
    said(desk, "load", "other.jsonl", "other", "--encoder", model, "--build", "theirs")
    assert "theirs has none of 30 sampled passages" in said(desk, "verify", "wiki", "--build", "theirs", code=4)
    said(desk, "rollback", "wiki")
    found = json.loads(said(desk, "verify", "wiki", "--build", "vectors", "--json"))
    assert found["lowest_cosine"] > 0.9999
    card_file = desk / "store" / "wiki" / "v0001" / "card.json"
    card = json.loads(card_file.read_text())
    card["recipe"]["alpha"] = 0.9  # a card that lies about its vectors, from before cards had checksums
    del card["sha256"]
    card_file.write_text(json.dumps(card))
    wrong = said(desk, "verify", "wiki", "--build", "vectors", code=8)
    assert re.search(
        r"Error: wiki is damaged: \d+ of 30 sampled vectors are not what vectors makes. Load it again.", wrong
    )


def test_snapshots(desk):
    name = said(desk, "snapshot", "create", "wiki").strip()
    assert re.fullmatch(r"wiki-v0002-\w+\.tar\.gz", name)
    assert said(desk, "snapshot", "list", "wiki").startswith(name + "\t")
    assert said(desk, "snapshot", "download", "wiki", name, "backup.tar.gz") == "backup.tar.gz\n"
    assert said(desk, "snapshot", "restore", "copy", "backup.tar.gz") == "copy: searches see v0001\n"
    assert "all is well" in said(desk, "verify", "copy")
    (desk / "backup.tar.gz").write_bytes(b"garbage")
    assert "damaged or no snapshot" in said(desk, "snapshot", "restore", "copy", "backup.tar.gz", code=8)


def test_from_a_folder_to_a_server_and_back(desk):
    with FakeQdrant() as fake:
        out = said(desk, "migrate", "wiki", "--to-url", fake.url, "--shards", "3", "--replication-factor", "2",
                   more={"XQG_VDB_TO_API_KEY": "SECRET-CANARY"})  # fmt: skip
        assert out == "wiki: 30 passages, searches see v0001\n"
        assert fake.created["wiki__v0001"]["replication_factor"] == 2
        assert fake.keys == {"SECRET-CANARY"}
        assert "10 de, 20 en" in said(desk, "info", "wiki", "--url", fake.url)
        assert "all is well" in said(desk, "verify", "wiki", "--url", fake.url, "--build", "vectors")
        said(desk, "migrate", "wiki", "--url", fake.url, "--to-path", "back")
        with EmbeddedStore(desk / "back") as back, ServerStore.connect(fake.url) as server:
            points = [{p.id: p for p in place.scroll("wiki", with_vectors=True)} for place in (back, server)]
        assert points[0].keys() == points[1].keys()
        for docid, point in points[0].items():
            assert point.payload == points[1][docid].payload
            assert np.allclose(point.vectors["text-dense"], points[1][docid].vectors["text-dense"], atol=1e-6)


def test_a_collection_gets_other_options_without_encoding(desk):
    assert said(desk, "migrate", "wiki", "--quantization", "turbo", "--keep", "2") == (
        "wiki: 30 passages, searches see v0003\n"
    )
    assert "options      quantization turbo" in said(desk, "info", "wiki")
    assert "all is well" in said(desk, "verify", "wiki", "--build", "vectors")
    assert said(desk, "migrate", "wiki", "--hnsw-m", "8", "--keep", "3").endswith("v0004\n")
    assert "options      quantization turbo, hnsw_m 8" in said(desk, "info", "wiki")  # what is not given stays
    assert said(desk, "rollback", "wiki", "--to", "v0002") == "wiki: searches see v0002\n"


def test_odd_options_of_a_card_on_a_server_are_named(desk):
    with FakeQdrant() as fake:
        said(desk, "migrate", "wiki", "--to-url", fake.url)
        card = fake.client.get_collection("wiki__v0001").config.metadata["xqg_card"]
        fake.client.update_collection("wiki__v0001", metadata={"xqg_card": {**card, "storage": {"hnsw_m": "many"}}})
        assert "odd options" in said(desk, "migrate", "wiki", "--url", fake.url, code=8)


def test_usage_errors(desk):
    assert "not both" in said(desk, "migrate", "wiki", "--to-path", "a", "--to-url", "http://localhost", code=2)
    assert "one shard in one folder" in said(desk, "migrate", "wiki", "--to-path", "a", "--shards", "2", code=3)


def test_a_timeout_is_kept(tmp_path):
    """A server that never answers is given up after the time that was asked for, again and again until the deadline."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        port = silent.getsockname()[1]
        seen = []

        def take():
            while True:
                try:
                    seen.append(silent.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        # a clock that moves by a second whenever it is looked at: the number of attempts is not the machine's
        before = """
import itertools, xqg_vdb.store.server.client as retry, xqg_vdb.store.server.names as names
names.READ_DEADLINE = 6.0
retry.Server.__init__.__kwdefaults__ |= {"clock": itertools.count(0.0).__next__, "sleep": lambda seconds: None}
"""
        done = run_cli(tmp_path, "list", "--url", f"http://127.0.0.1:{port}", "--timeout", "1", before=before)
        assert done.returncode == 5
        assert f"127.0.0.1:{port} is away or overloaded (ReadTimeout" in done.stderr
        assert len(seen) >= 2


def test_list_names_every_collection_with_its_version_and_recipe(desk):
    told = r"wiki  v0002  30  alpha 0\.5, shrunk, queries in \S+(, \S+)*  20\S+\n"
    assert re.fullmatch(told, said(desk, "list"))
    (record,) = json.loads(said(desk, "list", "--json"))
    assert (record["collection"], record["version"], record["passages"]) == ("wiki", "v0002", 30)
    shutil.copytree(desk / "store" / "wiki", desk / "store" / "broken")
    for card in (desk / "store" / "broken").rglob("card.json"):
        card.write_text("{")
    broken, good = said(desk, "list").splitlines()
    assert broken.startswith("broken  ") and "v0002  30  alpha" in good
    assert said(desk, "list", "--path", "nothing") == ""
