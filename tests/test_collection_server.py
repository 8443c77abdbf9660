"""The server store over real HTTP, against a server that limits, fails, resets and forgets to answer as it is told."""

from __future__ import annotations

import email.utils
import logging
import socket
import time
import traceback
from dataclasses import replace

import pytest
from collection_cases import a_batch, a_card, finished, load, passages, vectors
from fake_qdrant import FakeQdrant, Fault
from qdrant_client import QdrantClient, models

from xqg_vdb.errors import DataError, MismatchError, ServerError
from xqg_vdb.store.layout import CollectionOptions, digest
from xqg_vdb.store.server import client as client_errors
from xqg_vdb.store.server.client import Server
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Search

KEY = "SECRET-CANARY"
POINTS = "PUT .*/points$"


@pytest.fixture
def fake():
    with FakeQdrant() as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Waits are noted instead of slept through; back-off without jitter is 0.5 s, 1 s, 2 s, …"""
    noted = []
    monkeypatch.setattr(client_errors.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {**Server.__init__.__kwdefaults__, "sleep": noted.append})
    return noted


@pytest.fixture
def store(fake, waits):
    with ServerStore.connect(
        fake.url, api_key=KEY, timeout=60, options=CollectionOptions(keep=1, bulk=False)
    ) as opened:
        yield opened


def load_some(store, n=60):
    load(store, "wiki", passages(n), vectors(n), card=a_card(), batch=20)


DATES = {
    "in a minute": lambda: email.utils.formatdate(time.time() + 60, usegmt=True),
    "a minute ago": lambda: email.utils.formatdate(time.time() - 60, usegmt=True),
}


@pytest.mark.parametrize(
    ("faults", "pauses"),
    [
        ([Fault(429, headers={"Retry-After": "2"})], [2]),
        ([Fault(429, headers={"Retry-After": "0"})] * 3, [0.1] * 3),
        ([Fault(429, headers={"Retry-After": "100000"})], [120]),
        ([Fault(429, headers={"Retry-After": "in a minute"})], "a minute"),
        ([Fault(429, headers={"Retry-After": "a minute ago"})], [0.1]),
        ([Fault(429, headers={"Retry-After": "soon"})], [0.5]),
        ([Fault(429)] * 3, [0.5, 1, 2]),
        ([Fault(503, headers={"Retry-After": "7"}), Fault(503)], [7, 1]),
        ([Fault(status) for status in (408, 425, 500, 502, 504)], [0.5, 1, 2, 4, 8]),
        ([Fault()] * 2, [0.5, 1]),
        ([Fault(applied=True)], [0.5]),
        ([Fault(500, applied=True)], [0.5]),
        ([Fault(result={"operation_id": 1, "status": "wait_timeout"})] * 2, [0.5, 1]),
        ([Fault(result={"operation_id": 1, "status": "acknowledged"})], [0.5]),
        ([Fault(200, body=b'{"result":')], None),
    ],
)
def test_what_may_pass_is_repeated_and_the_result_is_exact(fake, store, waits, faults, pauses):
    fake.faults = [replace_only(fault, POINTS) for fault in faults]
    if pauses is None:
        with pytest.raises(ServerError, match=r"does not answer as a Qdrant server does .*check the port"):
            load_some(store)
        return
    load_some(store)
    if pauses == "a minute":
        assert 50 < waits[0] <= 60
    else:
        assert waits == pauses
    assert not fake.faults
    assert fake.count("PUT", "/points") == 3 + len(faults)
    assert store.count("wiki") == 60
    rows = passages(60)
    assert digest((p.id, p.payload["content"]) for p in store.scroll("wiki")) == finished(a_card(), rows).digest


def replace_only(fault, only):
    headers = {key: DATES.get(value, lambda value=value: value)() for key, value in fault.headers.items()}
    return Fault(fault.status, headers=headers, body=fault.body, only=only, applied=fault.applied, result=fault.result)


@pytest.mark.parametrize(
    "only",
    [
        "GET /collections$",
        "GET /aliases",
        "PUT /collections/[^/]+$",
        "PUT .*/index",
        "PATCH ",
        "POST .*/count",
        "GET /collections/[^/]+$",
        "POST .*/aliases",
        "DELETE ",
    ],
)
@pytest.mark.parametrize("applied", [False, True])
def test_every_step_of_a_load_survives_a_lost_answer(fake, store, only, applied):
    load_some(store)
    fake.faults = [Fault(only=only, applied=applied)]
    load(store, "wiki", passages(30, tag="new"), vectors(30), card=a_card(), batch=20)
    assert not fake.faults
    assert store.count("wiki") == 30
    assert store.card("wiki").version == "v0002"
    assert [one.name for one in fake.client.get_collections().collections] == ["wiki__v0002"]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 409])
def test_refusals_are_not_repeated(fake, store, waits, status):
    load_some(store)
    before = len(fake.requests)
    fake.faults = [Fault(status, body=b'{"status":{"error":"no: %s"}}' % KEY.encode(), only=POINTS)]
    with store.writer("wiki", card=a_card()) as writer, pytest.raises(ServerError) as caught:
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)
    assert str(status) in str(caught.value)
    assert sum(path.endswith("/points") for _, path in fake.requests[before:]) == 1
    assert waits == []
    if status in (401, 403):
        assert "set XQG_VDB_API_KEY" in str(caught.value)


def test_a_request_that_is_too_large_is_halved(fake, store):
    fake.largest = 4000
    load_some(store)
    assert fake.count("PUT", "/points") > 6
    assert store.count("wiki") == 60
    with (
        store.writer("other", card=a_card()) as writer,
        pytest.raises(ServerError, match=r"400.*is larger than allowed.*use smaller batches"),
    ):
        fake.largest = 300
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)


def test_large_batches_go_out_in_requests_of_bounded_size(fake, store):
    rows = [replace(p, text="x" * 100_000) for p in passages(40)]
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(rows, vectors(40)))
        writer.publish(replace(a_card(), count=40))
    assert fake.count("PUT", "/points") == 3
    assert store.count("wiki") == 40


def test_patience_ends_at_the_deadline(fake):
    clock, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        clock[0] += seconds

    server = Server("somewhere:6333", deadline=100, sleep=sleep, clock=lambda: clock[0])
    client = QdrantClient(url=fake.url, check_compatibility=False)
    fake.faults = [Fault(429, headers={"Retry-After": "30"}) for _ in range(10)]
    with pytest.raises(ServerError, match=r"somewhere:6333 is away or overloaded \(.*\); check that it runs"):
        server.call(client.get_collections)
    assert waits == [30, 30, 30]
    with pytest.raises(ServerError):
        server.call(client.get_collections, deadline=10)
    assert len(waits) == 3
    client.close()


def test_backoff_is_random_and_bounded():
    waits = [client_errors.wait_before("", attempt) for attempt in range(40) for _ in range(20)]
    assert len(set(waits)) > 300
    assert 0.1 <= min(waits) < max(waits) <= 30


def test_a_server_that_is_away_is_named_with_its_port(waits):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound and not listened at: nobody else can take it, and all are refused
        store = ServerStore.connect(f"http://127.0.0.1:{port}", deadline=3, timeout=1)
        with store, pytest.raises(ServerError, match=f"127.0.0.1:{port} is away or overloaded") as caught:
            store.names()
    assert caught.value.exit_code == 5
    assert waits == [] or max(waits) < 3


def test_a_key_never_reaches_a_message_or_a_log(fake, store, caplog, waits):
    caplog.set_level(logging.DEBUG)
    said = []
    echo = b'{"status":{"error":"bad key %s"}}' % KEY.encode()
    for status in (401, 403, 400, 500):
        fake.faults = [Fault(status, body=echo) for _ in range(12)]
        store._server.deadline = 1.0
        for call in (store.names, lambda: store.count("wiki"), lambda: store.writer("wiki", card=a_card())):
            with pytest.raises(ServerError) as caught:
                call()
            said.append(str(caught.value))
    fake.faults = []
    assert fake.keys == {KEY}
    assert not any(KEY in text for text in [*said, repr(store), caplog.text])
    assert any("***" in text for text in said)
    assert KEY not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("cut", [KEY[:-3], KEY[4:], KEY[2:12], f"{KEY[:8]} and {KEY[-8:]}"])
def test_no_piece_of_a_key_is_shown(fake, store, cut):
    fake.faults = [Fault(400, body=b'{"status":{"error":"bad key %s."}}' % cut.encode())]
    with pytest.raises(ServerError, match=r"bad key \*\*\*") as caught:
        store.names()
    said = str(caught.value)
    assert not any(KEY[at : at + 8] in said for at in range(len(KEY) - 7))


def test_a_key_is_checked_at_the_door(fake):
    with ServerStore.connect(fake.url, api_key=f" {KEY}\r\n") as store:
        store.names()
    assert fake.keys == {KEY}
    for key in ("schlüssel-1234", "two\nlines-1234", "nul\x00-12345678", "ключ"):
        with pytest.raises(DataError, match="its character") as caught:
            ServerStore.connect(fake.url, api_key=key)
        assert key not in str(caught.value)


def test_a_server_that_is_too_old_is_named_before_anything_is_asked(fake, waits):
    with ServerStore.connect(fake.url) as store:
        fake.faults = [Fault(200, body=b'{"title":"qdrant","version":"1.9.2","commit":""}', only="GET /")]
        with pytest.raises(MismatchError, match=r"is Qdrant 1\.9\.2; xqg-vdb needs 1\.16 or later"):
            store.names()
        assert len(fake.requests) == 1
        assert store.names() == []  # a server that was updated meanwhile


def test_what_a_key_may_not_see_is_not_called_missing(fake, store):
    load_some(store)
    nothing = {"aliases": [], "collections": []}  # what a server lists for a key that may read the alias alone
    hidden = [Fault(result=nothing, only=f"GET /{what}") for what in ("aliases", "collections")]
    fake.faults = [*hidden]
    with pytest.raises(ServerError, match=r"may search 'wiki' on .* but cannot see its versions"):
        store.admin.versions("wiki")
    forbidden = b'{"status":{"error":"Forbidden: Access to collection wiki is required"}}'
    fake.faults = [*hidden, Fault(403, body=forbidden, only="GET /collections/wiki")]
    with pytest.raises(ServerError, match="may not see this"):
        store.admin.versions("wiki")


def test_a_key_travels_encrypted_or_not_at_all():
    for url in ("http://qdrant.example.org:6333", "http://10.0.0.1", "qdrant.example.org"):
        with pytest.raises((ServerError, DataError)) as caught:
            ServerStore.connect(url, api_key=KEY)
        assert KEY not in str(caught.value)
    for url in ("https://qdrant.example.org", "http://localhost:6333", "http://127.0.0.1", "http://[::1]:6333"):
        ServerStore.connect(url, api_key=KEY).close()
    ServerStore.connect("http://qdrant.example.org", api_key=KEY, insecure=True).close()
    ServerStore.connect("http://qdrant.example.org").close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6333",
        "ftp://x",
        "http://",
        "http://user:pw@host:6333",
        "http://user:pw@[",
        "http://[",
        "http://..:1",
        "http://h:abc",
        "http://h:-1",
        "http://h:99999",
        "http://h:0",
        "http://lo\ncal:6333",
        "http://a b:1",
        "http://h:1?pw",
        "http://h:1#pw",
        "grpc://h:1",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(DataError) as caught:
        ServerStore.connect(url)
    assert "pw" not in str(caught.value)


def test_a_plain_collection_of_that_name_is_left_alone(fake, store):
    theirs = QdrantClient(url=fake.url, check_compatibility=False)
    size = models.VectorParams(size=16, distance=models.Distance.COSINE)
    theirs.create_collection("wiki", vectors_config={"text-dense": size})
    with pytest.raises(MismatchError, match="has a collection 'wiki' that xqg-vdb did not make"):
        store.writer("wiki", card=a_card())
    with pytest.raises(MismatchError, match="choose another name, or delete that collection first"):
        store.delete("wiki")
    with pytest.raises(DataError, match="has no card of xqg-vdb"):
        store.card("wiki")
    assert store.names() == []
    assert store.count("wiki") == 0  # but it can be read


def test_the_index_is_asked_for_before_the_first_point(fake, store):
    load_some(store)
    order = [path for method, path in fake.requests if method == "PUT"]
    assert order.index("/collections/wiki__v0001/index") < order.index("/collections/wiki__v0001/points")


def test_a_given_client_stays_open(fake):
    client = QdrantClient(url=fake.url, check_compatibility=False)
    ServerStore(client).close()
    assert client.get_collections().collections == []
    client.close()


def test_in_memory_mode_is_silent(recwarn):
    with ServerStore.connect(":memory:") as store:
        load_some(store)
        store.search("wiki", vectors(2), Search(3, ["en"], ef=64))
    assert [str(warning.message) for warning in recwarn] == []
