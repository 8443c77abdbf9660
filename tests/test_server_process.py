"""What only a server process shows: restarts amid an index, nodes that go, strict mode, certificates, a full disk.

Run where XQG_TEST_QDRANT_COMMAND says how to start a Qdrant server; 1.19.0 where this was written.
"""

import base64
import contextlib
import hmac
import json
import random
import subprocess
import time

import httpx
import pytest
from cli_cases import run_cli, write_inputs
from qdrant_client import models
from qdrant_processes import COMMAND, NO_COMMAND, running
from tiny_model import write_tiny_encoder

from xqg_vdb import Collection, load
from xqg_vdb.errors import MismatchError, ServerError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.client import Pending
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.store.server.writer import build_index
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Hybrid, Question, Search

pytestmark = pytest.mark.skipif(not COMMAND, reason=NO_COMMAND)
ENCODER = HashEncoder(dim=32)


def rows(n=60):
    return [{"id": f"p{i}", "text": f"w{i} w{i % 7}", "lang": "en"} for i in range(n)]


def loaded(url, **options):
    """A store with the collection `wiki` on that server."""
    store = ServerStore.connect(url, options=CollectionOptions(**options))
    load(rows(), "wiki", encoder=ENCODER, store=store)
    return store


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def threshold_on_disk(node, physical, kilobytes):
    """As a server has it that was killed after it had noted the change, before it indexed anything."""
    file = node.folder / "storage" / "collections" / physical / "config.json"
    config = json.loads(file.read_text())
    config["optimizer_config"]["indexing_threshold"] = kilobytes
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("cure", ["build_index", "add"])
def test_an_index_that_a_restart_has_stopped_is_built(tmp_path, cure):
    small = {"STORAGE__OPTIMIZERS__INDEXING_THRESHOLD_KB": 50, "STORAGE__OPTIMIZERS__DEFAULT_SEGMENT_NUMBER": 1}
    with running(tmp_path, settings=small) as (node,), ServerStore.connect(node.url) as store:
        made = load(rows(400), "wiki", encoder=HashEncoder(dim=128), store=store).collection
        physical = store.physical("wiki")
        assert store.admin.state("wiki").status == "green" and store.admin.state("wiki").indexed == 400
        store._client.update_collection(physical, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))
        made.add([{"id": f"more{i}", "text": f"w{i} more", "lang": "en"} for i in range(400)])
        node.kill()
        threshold_on_disk(node, physical, 50)
        node.start()
        state = store.admin.state("wiki")
        assert (state.status, state.points, state.indexed) == ("grey", 800, 400) and "wakes it" in state.details["grey"]
        if cure == "add":
            made.add([{"id": "one", "text": "one more", "lang": "en"}])
        build_index(store.looks, physical)
        state = store.admin.state("wiki")
        assert state.status == "green" and state.indexed >= 800 and "grey" not in state.details


def test_a_small_collection_is_said_to_have_no_graph(tmp_path):
    """Also where the server counts the words of its points as indexed."""
    with running(tmp_path) as (node,), ServerStore.connect(node.url) as store:
        options = LoadOptions(hybrid=Hybrid())
        load(rows(), "wiki", encoder=ENCODER, store=store, options=options)
        assert store._client.get_collection(store.physical("wiki")).config.params.sparse_vectors
        state = store.admin.state("wiki")
        assert (state.indexed, state.details["graph"].startswith("no graph below 10,000 kB")) == (0, True)


LIMITS = {
    "ENABLED": "true", "MAX_QUERY_LIMIT": 50, "SEARCH_MAX_HNSW_EF": 64, "SEARCH_MAX_BATCHSIZE": 10,
    "SEARCH_MAX_OVERSAMPLING": 2.0, "SEARCH_ALLOW_EXACT": "false",
}  # fmt: skip


def test_everything_works_under_a_strict_mode(tmp_path):
    strict = {f"STORAGE__COLLECTION__STRICT_MODE__{name}": value for name, value in LIMITS.items()}
    with running(tmp_path, settings=strict) as (node,):
        for quantization in (None, "scalar"):
            with loaded(node.url, quantization=quantization, keep=1) as store:
                config = store._client.get_collection(store.physical("wiki")).config
                assert config.strict_mode_config.enabled and config.strict_mode_config.max_query_limit == 50
                made = Collection("wiki", store, encoder=ENCODER)
                answers = made.run([Question(str(i), f"w{i}") for i in range(30)], Search(5))
                assert [len(answer.hits) for answer in answers] == [5] * 30
                assert store.admin.state("wiki").points == 60 == made.count(passage_langs=["en"])
                assert verify(store, "wiki").problems == ()
                migrate(store, "wiki", store, to_name="copy")
                assert store.count("copy") == 60
                assert made.add([{"id": "more", "text": "one more", "lang": "en"}]).added == 1
                store.delete("copy")


def certificates(folder):
    """An authority of its own, and a certificate by it for this machine."""
    folder.mkdir()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]
    run = {"cwd": folder, "check": True, "capture_output": True}
    ends = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    subprocess.run([*made, "/CN=own authority", "-keyout", "ca.key", "-out", "ca.pem"], **run)
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", ends, "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([*made, "/CN=localhost", *signed, "-keyout", "key.pem", "-out", "cert.pem"], **run)
    return {f"TLS__{name}": folder / file for name, file in (("CERT", "cert.pem"), ("KEY", "key.pem"))}


def test_an_authority_of_ones_own_is_named_by_two_variables(tmp_path):
    """In processes of their own: gRPC reads its variable once."""
    files = {**certificates(tmp_path / "tls"), "SERVICE__ENABLE_TLS": "true"}
    write_inputs(tmp_path, 20)
    model = write_tiny_encoder(tmp_path / "tiny")
    authority = tmp_path / "tls" / "ca.pem"
    with running(tmp_path, settings=files, scheme="https") as (node,):
        grpc_url = f"grpcs://127.0.0.1:{node.grpc_port}"
        both = {"SSL_CERT_FILE": authority, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": authority}
        made = run_cli(tmp_path, "load", "corpus.jsonl", "wiki", "--encoder", model, "--url", node.url, more=both)
        assert made.returncode == 0, made.stderr
        for url in (node.url, grpc_url):
            known = run_cli(tmp_path, "info", "wiki", "--url", url, more=both)
            assert known.returncode == 0, known.stderr
            stranger = run_cli(tmp_path, "info", "wiki", "--url", url)
            assert stranger.returncode == 5 and "is not trusted" in stranger.stderr, stranger.stderr
            assert "SSL_CERT_FILE" in stranger.stderr and "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in stranger.stderr


def test_a_key_that_may_only_read(tmp_path):
    keys = {"SERVICE__API_KEY": "all-of-it-0123456789", "SERVICE__READ_ONLY_API_KEY": "read-only-0123456789"}
    with running(tmp_path, settings=keys) as (node,):
        with ServerStore.connect(node.url, api_key=keys["SERVICE__API_KEY"]) as store:
            load(rows(), "wiki", encoder=ENCODER, store=store)
        for url in (node.url, f"grpc://127.0.0.1:{node.grpc_port}"):
            with ServerStore.connect(url, api_key=keys["SERVICE__READ_ONLY_API_KEY"]) as store:
                assert len(Collection("wiki", store, encoder=ENCODER).search("w3", k=5)) == 5
                assert store.admin.state("wiki").points == 60 and verify(store, "wiki").problems == ()
                with pytest.raises(ServerError, match="may not write"):
                    load(rows(70), "other", encoder=ENCODER, store=store)
            with (
                ServerStore.connect(url, api_key="wrong-wrong-0123456") as store,
                pytest.raises(ServerError, match="refuses the API key"),
            ):
                store.names()


def token(key, access):
    """A JSON Web Token of a Qdrant server: what may be done, signed with its key (HS256)."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"access": access})
    head = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signed = base64.urlsafe_b64encode(hmac.digest(key.encode(), head, "sha256")).rstrip(b"=")
    return (head + b"." + signed).decode()


def rights(*collections, access="r"):
    return [{"collection": name, "access": access} for name in collections]


def check_rights(url, key, file):
    @contextlib.contextmanager
    def with_token(access):
        with ServerStore.connect(url, api_key=token(key, access)) as store:
            yield store, Collection("wiki", store, encoder=ENCODER)

    with with_token(rights("wiki")) as (store, wiki):
        assert len(wiki.search("w3", k=5)) == 5
        with pytest.raises(ServerError, match="cannot see its versions"):
            store.admin.versions("wiki")
    with with_token(rights("wiki__v0001")) as (store, _):
        assert len(Collection("wiki@v0001", store, encoder=ENCODER).search("w3", k=5)) == 5
    for access in (rights("wiki", "wiki__v0001", "wiki__v0002"), "r"):
        with with_token(access) as (store, wiki):
            assert store.admin.state("wiki").points == 60 and len(store.admin.versions("wiki")) == 2
            assert verify(store, "wiki").problems == () and store.admin.snapshots("wiki") == []
            for change in (
                lambda: store.admin.rollback("wiki"),
                lambda: store.admin.gc("wiki", keep=1),
                lambda: wiki.delete(["p1"]),
                lambda: load(rows(70), "wiki", encoder=ENCODER, store=store),
                lambda: store.delete("wiki"),
            ):
                with pytest.raises(ServerError, match="may not write"):
                    change()
    with with_token([*rights("wiki", "wiki__v0001"), *rights("wiki__v0002", access="rw")]) as (store, _):
        made = store.admin.create_snapshot("wiki")
        store.admin.download_snapshot("wiki", made.name, file)
    with with_token("m") as (store, wiki):
        store._client.delete_snapshot("wiki__v0002", made.name)
        assert store.admin.restore_snapshot("back", file) == "v0001"
        store.delete("back")
        assert store.admin.rollback("wiki") == "v0001" and wiki.count() == 50
        assert store.admin.rollback("wiki", version="v0002") == "v0002" and wiki.count() == 60


def test_what_a_token_allows(tmp_path):
    """The table of rights in docs/operations.md, row by row, and what is said where one is missing."""
    key = "all-of-it-0123456789-all-of-it-0123456789"
    settings = {"SERVICE__API_KEY": key, "SERVICE__JWT_RBAC": "true"}
    with running(tmp_path, settings=settings) as (node,):
        with ServerStore.connect(node.url, api_key=key) as store:
            load(rows(50), "wiki", encoder=ENCODER, store=store)
            load(rows(), "wiki", encoder=ENCODER, store=store)
        for url in (node.url, f"grpc://127.0.0.1:{node.grpc_port}"):
            check_rights(url, key, tmp_path / url[:4])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_limits_on_rates_and_on_the_number_of_points(tmp_path, scheme):
    """What a rate lets through is waited for; a limit on points, which it looks at now and then, is said at once."""
    strict = {"ENABLED": "true", "READ_RATE_LIMIT": 600, "MAX_POINTS_COUNT": 100}
    settings = {f"STORAGE__COLLECTION__STRICT_MODE__{name}": value for name, value in strict.items()}
    with running(tmp_path, settings=settings) as (node,):
        url = node.url if scheme == "http" else f"grpc://127.0.0.1:{node.grpc_port}"
        with ServerStore.connect(url) as store:
            made, waits, sleep = (
                load(rows(100), "wiki", encoder=ENCODER, store=store).collection,
                [],
                store._server.sleep,
            )
            store._server.sleep = lambda seconds: (waits.append(seconds), sleep(seconds))
            asked = ENCODER.encode_queries([f"w{i}" for i in range(30)])
            found = [30]  # a slow machine gets ten more a second
            while found[-1] == 30 and not waits and len(found) < 1000:
                found.append(len(made.nearest(asked, Search(3))))
            assert waits and len(found) > 20 and found[-1] == 30, "600 searches are free"
            other = load(rows(100), "other", encoder=ENCODER, store=store).collection
            with pytest.raises(ServerError, match="limit of 100 reached") as caught:
                for i in range(70):
                    other.add([{"id": f"more{i}", "text": "one more", "lang": "en"}])
            assert "Passage" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_quota_is_said_at_once_and_blames_no_passage(tmp_path, scheme):
    with running(tmp_path) as (node,):
        url = node.url if scheme == "http" else f"grpc://127.0.0.1:{node.grpc_port}"
        with ServerStore.connect(url) as store:
            made = load(rows(), "wiki", encoder=ENCODER, store=store).collection
            httpx.put(f"{node.url}/quotas", json={"enabled": True, "max_disk_usage_percent": 1}).raise_for_status()
            began = time.monotonic()
            with pytest.raises(ServerError, match="has reached its quota") as caught:
                made.add([{"id": "more", "text": "one more", "lang": "en"}])
            assert "Passage" not in str(caught.value) and time.monotonic() - began < 120, (
                "ten minutes is for what passes"
            )


def test_a_full_disk_of_the_server_is_said_and_not_waited_for(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", disk], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with running(disk, settings={"STORAGE__WAL__WAL_CAPACITY_MB": 1, "LOG_LEVEL": "OFF"}) as (node,):
            rng = random.Random(0)  # what packs well fits, where a slow machine leaves the server time to clear its log
            texts = (f"w{i} {base64.b64encode(rng.randbytes(3000)).decode()}" for i in range(15_000))
            corpus = [{"id": f"p{i}", "text": text, "lang": "en"} for i, text in enumerate(texts)]
            for url in (node.url, f"grpc://127.0.0.1:{node.grpc_port}"):
                began = time.monotonic()
                with (
                    ServerStore.connect(url) as store,
                    pytest.raises(ServerError, match=r"The disk of .* is full"),
                ):
                    load(corpus, "wiki", encoder=ENCODER, store=store, options=LoadOptions())
                assert time.monotonic() - began < 300, "far below the ten minutes of what may pass"
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


@pytest.fixture
def cluster(tmp_path):
    with running(tmp_path / "cluster", 3) as nodes:
        yield nodes


def test_a_snapshot_of_some_shards_is_refused_and_a_whole_one_comes_back_on_all_nodes(cluster, tmp_path):
    with loaded(cluster[0].url, shards=3, replication_factor=1) as store:
        with pytest.raises(MismatchError, match=r"holds \d of 3 shards .*migrate wiki --to-path"):
            store.admin.create_snapshot("wiki")
        store.delete("wiki")
    with loaded(cluster[0].url, shards=2, replication_factor=3) as store:
        made = store.admin.create_snapshot("wiki")
        store.admin.download_snapshot("wiki", made.name, tmp_path / "file")
        for _ in range(2):
            store.admin.restore_snapshot("back", tmp_path / "file")
            assert store.count("back") == 60 and verify(store, "back").problems == ()
        for node in cluster:
            with ServerStore.connect(node.url) as other:
                assert other.count("back") == 60
        store.delete("wiki")
        store.delete("back")


def test_without_one_node_searches_and_loads_go_on_and_without_two_a_change_is_pending(cluster):
    with loaded(cluster[0].url, shards=3, replication_factor=2) as store:
        made = Collection("wiki", store, encoder=ENCODER)
        before = made.search("w3 w5", k=5)
        cluster[2].kill()
        assert [hit.id for hit in made.search("w3 w5", k=5)] == [hit.id for hit in before]
        load(rows(80), "wiki", encoder=ENCODER, store=store)
        assert made.count() == 80 and len(store.admin.versions("wiki")) == 2
        cluster[1].kill()
        began = time.monotonic()
        with pytest.raises(ServerError) as caught:
            store.admin.rollback("wiki")
        assert isinstance(caught.value, Pending) or "is away" in str(caught.value)
        assert time.monotonic() - began < 200
        for node in cluster[1:]:
            node.start()
        physical = store.physical("wiki")

        def active():
            with contextlib.suppress(httpx.HTTPError):
                told = httpx.get(f"{cluster[0].url}/collections/{physical}/cluster", timeout=20).json()["result"]
                return {shard["state"] for shard in told["local_shards"] + told["remote_shards"]} == {"Active"}

        until(active, 120)
        assert verify(store, "wiki").problems == ()
        store.delete("wiki")


def test_versions_of_a_node_that_is_away_are_listed(cluster):
    with loaded(cluster[0].url, shards=3, replication_factor=1) as store:
        cluster[2].kill()
        try:
            states = store.admin.versions("wiki")
            assert [state.name for state in states] == ["v0001"]
        finally:
            cluster[2].start()
        until(lambda: store.count("wiki") == 60)
        store.delete("wiki")
