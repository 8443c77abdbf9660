"""What a load asks of a server beside its points: layout, bulk mode, connections, two loaders, the one bad point."""

from __future__ import annotations

import socket
import subprocess
from concurrent import futures
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from collection_cases import a_batch, a_card, finished, load, passages, vectors
from fake_qdrant import DEFAULT_THRESHOLD, FakeQdrant, Fault
from hypothesis import example, given
from hypothesis import strategies as st
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import payload_to_grpc

from xqg_vdb import load as load_corpus
from xqg_vdb.errors import DataError, LockedError, ServerError
from xqg_vdb.index.migrate import migrate
from xqg_vdb.store.gate import Rows
from xqg_vdb.store.layout import CollectionOptions, point_id
from xqg_vdb.store.server import client as client_errors
from xqg_vdb.store.server import names as server_lease
from xqg_vdb.store.server import writer as server_index
from xqg_vdb.store.server.client import Server
from xqg_vdb.store.server.points import upserting
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import PointBatch, SparseVector

POINTS = "PUT .*/points$"


@pytest.fixture
def fake():
    with FakeQdrant(threshold=DEFAULT_THRESHOLD) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    noted = []
    monkeypatch.setattr(client_errors.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {**Server.__init__.__kwdefaults__, "sleep": noted.append})
    return noted


def connect(fake, **options):
    return ServerStore.connect(fake.url, timeout=60, options=CollectionOptions(**options))


# layout


def test_the_options_reach_the_server(fake):
    given = {
        "shards": 3, "replication_factor": 2, "write_consistency": 2, "on_disk_vectors": True, "on_disk_payload": True,
        "hnsw_m": 24, "hnsw_ef_construct": 200,
    }  # fmt: skip
    with connect(fake, **given) as store:
        load(store, "wiki", passages(5), vectors(5), card=a_card())
        assert store.card("wiki").storage == given
    body = fake.created["wiki__v0001"]
    assert (body["shard_number"], body["replication_factor"], body["write_consistency_factor"]) == (3, 2, 2)
    assert body["on_disk_payload"] is True
    assert body["vectors"]["text-dense"]["on_disk"] is True
    assert (body["hnsw_config"]["m"], body["hnsw_config"]["ef_construct"]) == (24, 200)


@pytest.mark.parametrize("kind", ["scalar", "product", "binary", "turbo"])
def test_the_quantisation_reaches_the_server(fake, kind):
    with connect(fake, quantization=kind) as store, store.writer("wiki", card=a_card()):
        pass
    config = fake.created["wiki__v0001"]["quantization_config"]
    assert list(config) == [kind]
    assert config[kind]["always_ram"] is True


def test_without_options_the_server_decides(fake):
    with connect(fake) as store, store.writer("wiki", card=a_card()):
        pass
    assert set(fake.created["wiki__v0001"]) <= {"vectors", "sparse_vectors", "metadata"}


# bulk mode


def test_the_index_waits_for_the_last_point_and_is_told_until_it_is_green(fake, waits):
    fake.building = [("grey", 0), ("yellow", 0), ("yellow", 25), ("green", 40), ("green", 40)]
    seen = []
    with connect(fake) as store, store.writer("wiki", card=a_card()) as writer:
        assert fake.thresholds["wiki__v0001"] == 0
        writer.upsert(a_batch(passages(40), vectors(40)))
        assert fake.thresholds["wiki__v0001"] == 0
        writer.publish(finished(a_card(), passages(40)), indexed=seen.append)
    assert fake.thresholds["wiki__v0001"] == DEFAULT_THRESHOLD
    assert seen == [0, 0, 25, 40, 40]  # green is believed when it is seen twice
    assert waits == [server_index.POLL] * 4


def test_no_bulk_leaves_the_servers_threshold_alone(fake):
    with connect(fake, bulk=False) as store:
        load(store, "wiki", passages(5), vectors(5), card=a_card())
    assert fake.thresholds["wiki__v0001"] == DEFAULT_THRESHOLD
    assert not any(method == "PATCH" and "optimizers" in path for method, path in fake.requests)


@pytest.mark.parametrize(("expected", "held"), [(0, True), (40, False), (DEFAULT_THRESHOLD * 16, True)])
def test_so_few_points_that_no_index_comes_of_them_are_not_held_back(fake, waits, expected, held):
    """It spares a small load two changes of the collection, and a wait; 0: nobody knows how many come."""
    with connect(fake) as store, store.writer("wiki", card=replace(a_card(), count=expected)) as writer:
        writer.upsert(a_batch(passages(40), vectors(40)))
        assert fake.thresholds["wiki__v0001"] == (0 if held else DEFAULT_THRESHOLD)
        writer.publish(finished(a_card(), passages(40)))
        assert fake.thresholds["wiki__v0001"] == DEFAULT_THRESHOLD and bool(waits) == held
        assert store.card("wiki").count == 40


def test_a_server_whose_operator_wants_no_index_keeps_it_so(fake):
    fake.threshold = 0
    with connect(fake) as store:
        load(store, "wiki", passages(5), vectors(5), card=a_card())
        assert "while its indexing_threshold is 0" in store.admin.state("wiki").details["graph"]
    assert fake.thresholds["wiki__v0001"] == 0


def test_a_load_says_how_many_points_will_come(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(server_index, "_set_threshold", None)
    rows = [{"id": f"p{i}", "text": f"w{i}", "lang": "en"} for i in range(20)]
    with connect(fake) as store:
        load_corpus(rows, "wiki", encoder=HashEncoder(dim=16), store=store)
        migrate(store, "wiki", store, to_name="copy")
        assert store.names() == ["copy", "wiki"]


def test_a_resumed_load_still_ends_the_bulk_mode(fake):
    with connect(fake) as store:
        with store.writer("wiki", card=a_card()) as writer:
            writer.upsert(a_batch(passages(5), vectors(5)))
            writer.commit(5)
        load(store, "wiki", passages(9), vectors(9), card=a_card())
    assert fake.thresholds["wiki__v0001"] == DEFAULT_THRESHOLD


@pytest.mark.parametrize(("status", "seconds"), [("yellow", 40), ("grey", 30)])
def test_an_index_that_does_not_move_is_waited_for_within_bounds(fake, status, seconds, caplog):
    clock = [0.0]
    with connect(fake) as store:
        load(store, "wiki", passages(5), vectors(5), card=a_card())
        store._server.deadline = 40.0
        store._server.sleep = lambda pause: clock.__setitem__(0, clock[0] + pause)
        store._server.clock = lambda: clock[0]
        fake.building = [(status, 1)] * 5000
        server_index.build_index(store._names, "wiki__v0001")
    assert seconds <= clock[0] <= seconds + 2
    assert f"the index of wiki__v0001 is still {status}; continuing" in caplog.text


def test_an_index_that_failed_is_not_published(fake, waits):
    fake.building = [("red", 0)]
    with connect(fake) as store, pytest.raises(ServerError, match="cannot build the index of wiki__v0001; see its log"):
        load(store, "wiki", passages(5), vectors(5), card=a_card())
    with connect(fake) as store:
        assert store.names() == []


# connections


def test_several_connections_write_at_once_and_the_result_is_exact(fake):
    fake.together = 2
    rows, matrix = passages(400), vectors(400)
    with connect(fake, parallel=4) as store, store.writer("wiki", card=a_card()) as writer:
        for at in range(0, 400, 20):
            writer.upsert(a_batch(rows[at : at + 20], matrix[at : at + 20]))
        writer.commit(400)
        writer.publish(finished(a_card(), rows))
        assert store.count("wiki") == 400
    assert 2 <= fake.at_once <= 4


def test_one_connection_is_one_connection(fake):
    with connect(fake) as store:
        load(store, "wiki", passages(60), vectors(60), card=a_card(), batch=20)
    assert fake.at_once == 1


def test_the_next_batch_is_made_while_one_is_under_way(fake):
    asked, goes_on, order = Event(), Event(), []

    def before(method, path):
        if method == "PUT" and path.endswith("/points"):
            asked.set()
            assert goes_on.wait(60)
            order.append("written")
        elif method == "PATCH" and order == ["written"]:
            order.append("noted")

    with connect(fake) as store, store.writer("wiki", card=a_card()) as writer:
        fake.before = before
        writer.upsert(a_batch(passages(5), vectors(5)))  # returns, though nobody has answered
        assert asked.wait(60)
        assert writer.committed == 0
        goes_on.set()
        writer.commit(5)
        assert (order, writer.committed) == (["written", "noted"], 5)


def test_who_only_helps_hears_of_what_failed_when_it_leaves(fake):
    fake.refused = {"p00003"}
    said = "Passage 'p00003' cannot be stored"
    with connect(fake) as store, store.writer("wiki", card=a_card()) as writer:
        helper = store.helper(writer.version, card=a_card())
        with pytest.raises(DataError, match=said), helper:
            helper.upsert(a_batch(passages(5), vectors(5)))


def test_what_is_under_way_is_not_tried_again_after_an_error(fake, waits):
    tried = Event()

    def before(method, path):
        if method == "PUT" and path.endswith("/points"):
            fake.faults = [Fault(503, only=POINTS)]
            tried.set()

    with connect(fake) as store:
        with pytest.raises(KeyboardInterrupt), store.writer("wiki", card=a_card()) as writer:
            fake.before = before
            writer.upsert(a_batch(passages(5), vectors(5)))
            assert tried.wait(60)
            raise KeyboardInterrupt
        with pytest.raises(Exception, match="writer is closed"):
            writer._sending[0].result(60)


def test_nothing_is_committed_after_a_request_that_failed_on_another_connection(fake):
    fake.refused = {"p00007"}
    with connect(fake, parallel=3) as store, store.writer("wiki", card=a_card()) as writer:
        with pytest.raises(DataError, match="Passage 'p00007' cannot be stored"):
            for at in range(0, 100, 10):
                writer.upsert(a_batch(passages(10, start=at), vectors(10)))
            writer.commit(100)
        with pytest.raises(Exception, match="writer is closed"):
            writer.commit(100)
    with connect(fake) as store, store.writer("wiki", card=a_card()) as writer:
        assert writer.committed == 0


def test_a_server_that_stays_away_is_not_waited_for_once_more_to_sign_off(fake, waits):
    with ServerStore.connect(fake.url, deadline=3.0) as store:
        with pytest.raises(ServerError), store.writer("wiki", card=a_card()) as writer:
            fake.faults = [Fault(503) for _ in range(500)]
            writer.upsert(a_batch(passages(5), vectors(5)))
            writer.commit(5)
        written = max(at for at, request in enumerate(fake.requests) if request[1].endswith("/points"))
        assert fake.requests[written + 1 :] == [("GET", "/collections/wiki__v0001")]


# the bad point


@pytest.mark.parametrize("row", [0, 1, 250, 498, 499])
def test_one_bad_point_among_500_is_named(fake, row, waits):
    fake.refused = {f"p{row:05d}"}
    said = rf"Passage 'p{row:05d}' cannot be stored: .*400.*not as it should be"
    with connect(fake) as store, store.writer("wiki", card=a_card()) as writer, pytest.raises(DataError, match=said):
        writer.upsert(a_batch(passages(500), vectors(500)))
        writer.commit(500)
    assert fake.count("PUT", "/points") <= 2 * 9 + 2  # bisected, not tried one by one
    assert waits == []


def test_a_refusal_that_halving_overcomes_is_none(fake, waits):
    fake.faults = [Fault(422, only=POINTS)]
    with connect(fake) as store:
        load(store, "wiki", passages(60), vectors(60), card=a_card(), batch=60)
        assert store.count("wiki") == 60


# two loaders


@pytest.fixture
def hurry(monkeypatch):
    """Signs of life every 20 ms, a dead loader after 0.6 s."""
    monkeypatch.setattr(server_lease, "RENEWED_EVERY", 0.02)
    monkeypatch.setattr(server_lease, "PATIENCE", 30 * 0.02)
    monkeypatch.setattr(server_lease, "_LOOK_EVERY", 0.02)


def test_a_second_loader_of_another_build_is_refused_while_the_first_lives(fake, monkeypatch):
    """Between two looks of the second one the first one commits, and every commit is a sign of life."""
    monkeypatch.setattr(server_lease, "RENEWED_EVERY", 0.0)
    with connect(fake) as one, connect(fake) as two, one.writer("wiki", card=a_card()) as first:

        def work(seconds):
            at = first.committed
            first.upsert(a_batch(passages(5, start=at), vectors(5)))
            first.commit(at + 5)

        work(0)
        two._server.sleep = work
        with pytest.raises(LockedError, match=r"is being loaded by process \d+ on .*other options; wait until"):
            two.writer("wiki", card=a_card(alpha=0.9))
        with two.writer("wiki", card=a_card()) as same:  # the same build: it helps
            assert same.committed > 0
        at = first.committed
        first.publish(replace(finished(a_card(), passages(at)), count=at))
        assert two.names() == ["wiki"]
        two._server.sleep = lambda seconds: None
        load(two, "wiki", passages(3), vectors(3), card=a_card(alpha=0.9))
        assert two.card("wiki").version == "v0002"


def abandoned(fake, **record):
    """An unfinished version whose loader ended without a word."""
    with connect(fake) as store:
        writer = store.writer("wiki", card=a_card())
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)
        if record:
            store._names.write_metadata("wiki__v0001", {server_lease.LOADER_KEY: {"id": "x", "beat": 1, **record}})


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_loader_without_a_sign_of_life_gives_way(fake, waits, host):
    ended = subprocess.Popen(["true"])
    ended.wait()
    abandoned(fake, host=host or socket.gethostname(), pid=ended.pid if host is None else 1)
    with connect(fake) as store, store.writer("wiki", card=a_card(alpha=0.9)) as writer:
        assert writer.committed == 0
    # a process of this machine is known to be dead; others are watched
    assert sum(waits) == (server_lease.PATIENCE if host else 0)


def test_a_closed_loader_leaves_no_lease(fake):
    with connect(fake) as store:
        with store.writer("wiki", card=a_card()) as writer:
            writer.upsert(a_batch(passages(5), vectors(5)))
            writer.commit(5)
        assert store._names.metadata("wiki__v0001")[server_lease.LOADER_KEY] == {}


def test_of_two_loaders_that_begin_at_once_one_is_refused(fake, hurry, monkeypatch):
    """The second one sees no version, and creates the one that the first has created meanwhile."""
    with connect(fake) as one, connect(fake) as two:
        real = two._names.new_version
        first = []

        def slow(name, *, past):
            found = real(name, past=past)
            if not first:
                first.append(one.writer("wiki", card=a_card()))
            return found

        monkeypatch.setattr(two._names, "new_version", slow)
        with pytest.raises(LockedError, match="is being loaded by process"):
            two.writer("wiki", card=a_card(alpha=0.9))
        first[0].close()


# gRPC


class Collections(wire.CollectionsServicer):
    """Answers `get_aliases` after the failures that it is given."""

    def __init__(self, failures):
        self.failures = failures
        self.calls = 0

    def ListAliases(self, request, context):
        self.calls += 1
        if self.failures:
            code, details, trailing = self.failures.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, details)
        return wire.ListAliasesResponse(
            aliases=[wire.AliasDescription(alias_name="wiki", collection_name="wiki__v0001")]
        )


class Named(wire.qdrant_pb2_grpc.QdrantServicer):
    def HealthCheck(self, request, context):
        return wire.HealthCheckReply(title="qdrant - vector search engine", version="1.19.0")


@pytest.fixture
def grpc_server():
    """`serve(failures)` gives (servicer, port)."""
    servers = []

    def serve(failures):
        server = grpc.server(futures.ThreadPoolExecutor(2))
        servicer = Collections(failures)
        wire.collections_service_pb2_grpc.add_CollectionsServicer_to_server(servicer, server)
        wire.qdrant_pb2_grpc.add_QdrantServicer_to_server(Named(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return servicer, port

    yield serve
    for server in servers:
        server.stop(None)


CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("failures", "pauses"),
    [
        ([], []),
        ([(CODES.UNAVAILABLE, "busy", ())] * 3, [0.5, 1, 2]),
        ([(CODES.DEADLINE_EXCEEDED, "slow", ()), (CODES.ABORTED, "", ())], [0.5, 1]),
        ([(CODES.RESOURCE_EXHAUSTED, "limit", (("retry-after", "3"),))], [3]),
        ([(CODES.RESOURCE_EXHAUSTED, "limit", ())], [0.5]),
    ],
)
def test_grpc_calls_are_repeated_while_it_can_help(grpc_server, waits, failures, pauses):
    servicer, port = grpc_server(list(failures))
    with ServerStore.connect("http://127.0.0.1:1", grpc_port=port, timeout=60) as store:
        assert store.names() == ["wiki"]
    assert waits == pauses
    assert servicer.calls == len(failures) + 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CODES.UNAUTHENTICATED, "refuses the API key, or wants one .*set XQG_VDB_API_KEY"),
        (CODES.PERMISSION_DENIED, "set XQG_VDB_API_KEY"),
        (CODES.INVALID_ARGUMENT, "refused the request for good"),
    ],
)
def test_grpc_refusals_are_not_repeated(grpc_server, waits, code, said):
    servicer, port = grpc_server([(code, "no", ())] * 2)
    store = ServerStore.connect("http://127.0.0.1:1", grpc_port=port, timeout=60, api_key="SECRET-CANARY")
    with store, pytest.raises(ServerError, match=said) as caught:
        store.names()
    assert (servicer.calls, waits) == (1, [])
    assert "SECRET-CANARY" not in str(caught.value)


class Points(wire.PointsServicer):
    """Takes points and says how many it has."""

    def __init__(self):
        self.points = []

    def Upsert(self, request, context):
        self.points += request.points
        return wire.PointsOperationResponse(result=wire.UpdateResult(status=wire.UpdateStatus.Completed))

    def Count(self, request, context):
        return wire.CountResponse(result=wire.CountResult(count=len(self.points)))

    def CreateFieldIndex(self, request, context):
        return wire.PointsOperationResponse(result=wire.UpdateResult(status=wire.UpdateStatus.Completed))


class Encoded(Collections):
    """Collections with metadata, as far as a load asks for them."""

    def __init__(self):
        super().__init__([])
        self.kept, self.thresholds, self.switches = {}, [], 0

    def List(self, request, context):
        return wire.ListCollectionsResponse(collections=[wire.CollectionDescription(name=name) for name in self.kept])

    def ListAliases(self, request, context):
        return wire.ListAliasesResponse()

    def CollectionExists(self, request, context):
        found = wire.CollectionExists(exists=request.collection_name in self.kept)
        return wire.CollectionExistsResponse(result=found)

    def Create(self, request, context):
        self.kept[request.collection_name] = request
        return wire.CollectionOperationResponse(result=True)

    def Update(self, request, context):
        for key, value in request.metadata.items():
            self.kept[request.collection_name].metadata[key].CopyFrom(value)
        if request.HasField("optimizers_config"):
            self.thresholds.append(request.optimizers_config.indexing_threshold)
        return wire.CollectionOperationResponse(result=True)

    def UpdateAliases(self, request, context):
        self.switches += 1
        return wire.CollectionOperationResponse(result=True)

    def Get(self, request, context):
        made = self.kept[request.collection_name]
        config = wire.CollectionConfig(
            params=wire.CollectionParams(vectors_config=made.vectors_config, shard_number=1, replication_factor=1),
            hnsw_config=wire.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10),
            optimizer_config=wire.OptimizersConfigDiff(
                deleted_threshold=0.2, vacuum_min_vector_number=10, default_segment_number=0, flush_interval_sec=5,
                indexing_threshold=777,
            ),
            wal_config=wire.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
        )  # fmt: skip
        for key, value in made.metadata.items():
            config.metadata[key].CopyFrom(value)
        info = wire.CollectionInfo(
            status=wire.CollectionStatus.Green, optimizer_status=wire.OptimizerStatus(ok=True), segments_count=1,
            config=config,
        )  # fmt: skip
        return wire.GetCollectionInfoResponse(result=info)


def test_a_whole_load_over_grpc():
    server, points, kept = grpc.server(futures.ThreadPoolExecutor(4)), Points(), Encoded()
    wire.points_service_pb2_grpc.add_PointsServicer_to_server(points, server)
    wire.collections_service_pb2_grpc.add_CollectionsServicer_to_server(kept, server)
    wire.qdrant_pb2_grpc.add_QdrantServicer_to_server(Named(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    options = CollectionOptions(quantization="turbo", hnsw_m=8, shards=2, parallel=2)
    rows, matrix = passages(25), vectors(25)
    with ServerStore.connect("http://127.0.0.1:1", grpc_port=port, timeout=60, options=options, deadline=60) as store:
        load(store, "wiki", rows, matrix, card=a_card(), batch=10)
        card = server_lease.card_in(store._names.metadata("wiki__v0001"))
        cursor = server_lease.cursor_in(store._names.metadata("wiki__v0001"))
    server.stop(None)
    assert (card.count, card.digest, card.storage) == (25, finished(a_card(), rows).digest, options.layout())
    assert cursor == 25
    made = kept.kept["wiki__v0001"]
    assert (made.shard_number, made.hnsw_config.m) == (2, 8)
    assert "turbo" in str(made.quantization_config)
    assert kept.thresholds == [0, 777]  # bulk mode on, and off
    assert kept.switches == 1
    sent = {point.payload["id"].string_value: point for point in points.points}
    assert sent.keys() == {p.id for p in rows}
    found = sent["p00007"].vectors.vectors.vectors["text-dense"]
    assert list(found.dense.data or found.data) == matrix[7].tolist()


# what goes over the wire

_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=12,
)


@given(meta=st.dictionaries(_WORDS, _JSON_VALUES, max_size=4), text=_WORDS)
@example(
    meta={"big": (1 << 63) - 1, "low": -(1 << 63), "a": {"": [[], {}, None, 0, -0.0, False, "\0"]}}, text="語" * 9000
)
def test_a_point_is_the_message_that_the_clients_own_objects_make(meta, text):
    payload = {"id": "p", "content": text, "meta": meta}
    matrix, words = vectors(1), SparseVector(np.array([1, 300, 1 << 31], np.uint32), np.array([0.5, -1, 3], np.float32))
    sent = []
    stub = SimpleNamespace(Upsert=lambda message, timeout: sent.append(message) or wire.PointsOperationResponse())
    client = SimpleNamespace(init_options={"prefer_grpc": True, "timeout": 5}, grpc_points=stub)
    rows = Rows([point_id("p")], [payload], [0])
    batch = PointBatch(passages(1), {"text-dense": matrix, "": matrix[:, :2]}, [()], sparse=[words])
    upserting(SimpleNamespace(client=client), "wiki__v0001", rows, batch, slice(0, 1))()
    named = {
        "text-dense": wire.Vector(dense=wire.DenseVector(data=matrix[0].tolist())),
        "": wire.Vector(dense=wire.DenseVector(data=matrix[0, :2].tolist())),
        "text-sparse": wire.Vector(sparse=wire.SparseVector(indices=[1, 300, 1 << 31], values=[0.5, -1, 3])),
    }
    point = wire.PointStruct(
        id=wire.PointId(uuid=str(point_id("p"))), payload=payload_to_grpc(payload),
        vectors=wire.Vectors(vectors=wire.NamedVectors(vectors=named)),
    )  # fmt: skip
    assert sent == [wire.UpsertPoints(collection_name="wiki__v0001", wait=True, points=[point])]
