"""A server that others use as well, restarts, loses nodes and answers late: nothing of theirs goes, nothing is half."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from collection_cases import a_batch, a_card, finished, load, passages, vectors
from fake_qdrant import FakeQdrant, Fault
from qdrant_client import QdrantClient, models

from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError, ServerError
from xqg_vdb.index.augment import undo
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.store.layout import CollectionOptions, Moved, point_id
from xqg_vdb.store.server import checked_address, port_number
from xqg_vdb.store.server import client as client_errors
from xqg_vdb.store.server import writer as server_writer
from xqg_vdb.store.server.client import NoAccess, Pending, Server
from xqg_vdb.store.server.names import AUGMENT_KEY, LEAVING_KEY, LOADER_KEY
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Search

NO_QUORUM = b'{"status":{"error":"Service internal error: Waiting for consensus operation commit failed. Timeout"}}'
ONE = models.VectorParams(size=16, distance=models.Distance.COSINE)


@pytest.fixture
def fake():
    with FakeQdrant() as server:
        yield server


@pytest.fixture
def clock(monkeypatch):
    """Time passes when somebody sleeps, and only then."""
    now = [0.0]
    extra = {"sleep": lambda seconds: now.__setitem__(0, now[0] + seconds), "clock": lambda: now[0]}
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {**Server.__init__.__kwdefaults__, **extra})
    monkeypatch.setattr(client_errors.random, "uniform", lambda low, high: high)
    return now


@pytest.fixture
def store(fake, clock):
    """Keeps three versions."""
    with ServerStore.connect(fake.url, timeout=60, options=CollectionOptions(keep=3, bulk=False)) as opened:
        yield opened


def edition(store, number, *, n=20):
    load(store, "wiki", passages(n, tag=f"{number}-"), vectors(n, seed=number), card=a_card(alpha=number / 10))


def theirs(fake, name):
    """A collection that somebody else made, with one point."""
    client = QdrantClient(url=fake.url, check_compatibility=False)
    client.create_collection(name, vectors_config={"text-dense": ONE})
    client.upsert(name, [models.PointStruct(id=1, vector={"text-dense": [1.0] * 16}, payload={"mine": True})])
    client.close()


def point(fake, alias, collection):
    here = models.CreateAlias(collection_name=collection, alias_name=alias)
    fake.client.update_collection_aliases([models.CreateAliasOperation(create_alias=here)])


def unpoint(fake, alias):
    gone = models.DeleteAlias(alias_name=alias)
    fake.client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=gone)])


def collections(fake):
    return sorted(one.name for one in fake.client.get_collections().collections)


def behind(fake):
    return {one.alias_name: one.collection_name for one in fake.client.get_aliases().aliases}


# what others made


def test_a_collection_of_others_that_is_named_like_a_version_stays(fake, store):
    theirs(fake, "wiki__v0001")
    theirs(fake, "wiki__v0007")
    edition(store, 1)
    edition(store, 2)
    assert store.card("wiki").version == "v0009"
    store.admin.gc("wiki", keep=1, unfinished=True)
    assert collections(fake) == ["wiki__v0001", "wiki__v0007", "wiki__v0009"]
    assert fake.client.count("wiki__v0001").count == 1
    store.delete("wiki")
    assert collections(fake) == ["wiki__v0001", "wiki__v0007"]


@pytest.mark.parametrize("odd", [5, {"a": 1}, {"source": 5, "previous": None}, {"source": "docs"}])
def test_an_odd_record_of_a_copy_is_none(fake, store, odd):
    edition(store, 1)
    store._names.write_metadata("wiki__v0001", {"xqg_augment": odd})
    assert store.foreign("wiki").record == {}
    with pytest.raises(DataError, match="nothing to undo"):
        undo("wiki", store=store)


def test_an_alias_that_is_named_like_the_next_version_is_passed_over(fake, store):
    """The server would refuse a collection of that name, and answer for the one behind the alias."""
    edition(store, 1)
    point(fake, "wiki__v0002", "wiki__v0001")
    edition(store, 2)
    assert store.card("wiki").version == "v0003" and store._names.metadata("wiki__v0001")[LOADER_KEY] == {}
    assert collections(fake) == ["wiki__v0001", "wiki__v0003"]


def test_an_alias_of_others_is_not_moved(fake, store, tmp_path):
    theirs(fake, "production")
    point(fake, "wiki", "production")
    (tmp_path / "file").write_bytes(b"x")
    with ServerStore.connect(":memory:") as other:
        load(other, "docs", passages(5), vectors(5), card=a_card())
        for call in (
            lambda: store.writer("wiki", card=a_card()),
            lambda: store.admin.restore_snapshot("wiki", tmp_path / "file"),
            lambda: store.admin.create_snapshot("wiki"),
            lambda: store.admin.versions("wiki"),
            lambda: store.admin.gc("wiki", keep=1),
            lambda: store.delete("wiki"),
            lambda: migrate(other, "docs", store, to_name="wiki"),
        ):
            with pytest.raises(MismatchError, match=r"'wiki' .*is an alias of the collection 'production'"):
                call()
    assert behind(fake) == {"wiki": "production"}
    assert collections(fake) == ["production"]


def test_a_version_that_another_alias_points_to_stays(fake, store):
    for number in (1, 2, 3):
        edition(store, number)
    point(fake, "live", "wiki__v0001")
    assert store.admin.gc("wiki", keep=1) == ["v0002"]
    assert collections(fake) == ["wiki__v0001", "wiki__v0003"]
    with pytest.raises(MismatchError, match="is searched as live too"):
        store.delete("wiki")


# a lost alias


def test_without_an_alias_nothing_is_deleted_and_everything_says_what_to_do(fake, store):
    edition(store, 1)
    edition(store, 2)
    unpoint(fake, "wiki")
    said = r"has the finished versions v0001, v0002, and none is published: .*`xqg-vdb rollback wiki --to v0002`"
    search = Search(k=1)
    for call in (
        lambda: store.admin.gc("wiki", keep=1),
        lambda: store.admin.gc("wiki", keep=1, unfinished=True),
        lambda: store.admin.rollback("wiki"),
        lambda: store.search("wiki", vectors(1), search),
        lambda: store.card("wiki"),
        lambda: store.admin.state("wiki"),
    ):
        with pytest.raises(DataError, match=said):
            call()
    assert collections(fake) == ["wiki__v0001", "wiki__v0002"]
    assert store.admin.rollback("wiki", version="v0002") == "v0002"
    assert store.count("wiki") == 20


def test_the_alias_moves_in_one_step_that_the_server_saves_whole(fake, store):
    edition(store, 1)
    edition(store, 2)
    store.admin.rollback("wiki")
    assert [list(actions[0]) for actions in fake.actions] == [["create_alias"]] * 3
    assert all(len(actions) == 1 for actions in fake.actions)


# two at once


def test_what_was_published_during_a_wait_is_not_deleted(fake, store, clock):
    with store.writer("wiki", card=a_card()) as first:
        first.upsert(a_batch(passages(20), vectors(20)))
        first.commit(20)
        with ServerStore.connect(fake.url, timeout=60) as other:

            def publish(seconds):
                clock[0] += seconds
                if not behind(fake):
                    first.publish(finished(a_card(), passages(20)))

            other._server.sleep = publish
            with pytest.raises(LockedError, match="was loaded a moment ago from another corpus"):
                other.writer("wiki", card=a_card(alpha=0.9))
    assert behind(fake) == {"wiki": "wiki__v0001"}
    assert (store.count("wiki"), collections(fake)) == (20, ["wiki__v0001"])


def test_a_silent_loader_is_waited_for_once(fake, store, clock):
    writer = store.writer("wiki", card=a_card())
    writer.upsert(a_batch(passages(5), vectors(5)))
    writer.commit(5)
    store._names.write_metadata("wiki__v0001", {LOADER_KEY: {"id": "x", "host": "elsewhere", "pid": 1, "beat": 1}})
    with store.writer("wiki", card=a_card(alpha=0.9)) as other:
        assert other.committed == 0
    assert 30 <= clock[0] < 60
    assert collections(fake) == ["wiki__v0002"]


@pytest.mark.parametrize(
    "step", ["PUT .*/index", "PATCH .*/collections/wiki__v0002", "GET .*/collections/wiki__v0002$"]
)
def test_a_loader_that_fails_while_it_begins_leaves_no_lease(fake, store, clock, step):
    """In a process that lives on, such as a service that loads, the next load waits for nobody."""
    edition(store, 1)
    with ServerStore.connect(fake.url, timeout=60, options=CollectionOptions(keep=3)) as bulk:
        fake.faults = [Fault(403, only=step)]
        with pytest.raises(ServerError):
            bulk.writer("wiki", card=a_card(alpha=0.5))
    assert not fake.faults and store._names.metadata("wiki__v0002")[LOADER_KEY] == {}
    edition(store, 2)
    assert clock == [0.0] and collections(fake) == ["wiki__v0001", "wiki__v0003"]


def test_a_loader_that_was_taken_for_dead_leaves_the_next_ones_lease(fake, store):
    first = store.writer("wiki", card=a_card())
    first.upsert(a_batch(passages(5), vectors(5)))
    first.commit(5)
    with store.writer("wiki", card=a_card()) as second:
        first.close()
        assert store._names.metadata("wiki__v0001")[LOADER_KEY]["id"] == second._lease.id
    assert store._names.metadata("wiki__v0001")[LOADER_KEY] == {}


@pytest.mark.parametrize("lives", [True, False])
def test_a_collection_that_somebody_else_changes_is_waited_for_and_then_refused(fake, store, clock, lives):
    edition(store, 1)
    other = {"id": "x", "host": "elsewhere", "pid": 71, "beat": 1}
    store._names.write_metadata("wiki__v0001", {LOADER_KEY: other})

    def sleep(seconds):
        clock[0] += seconds
        if lives and clock[0] > 5:
            store._names.write_metadata("wiki__v0001", {LOADER_KEY: {**other, "beat": 2}})

    store._server.sleep = sleep
    if lives:
        said = r"is being changed by process 71 on elsewhere; wait until it ends"
        with pytest.raises(LockedError, match=said), store.update("wiki"):
            pass
        assert store._names.metadata("wiki__v0001")[LOADER_KEY] == {**other, "beat": 2}
        return
    with store.update("wiki") as update:
        assert store._names.metadata("wiki__v0001")[LOADER_KEY]["id"] == update._lease.id
    assert 30 <= clock[0] < 60


def test_a_copy_that_augment_made_takes_no_passages(fake, store):
    edition(store, 1)
    store._names.write_metadata("wiki__v0001", {AUGMENT_KEY: {"source": "docs", "previous": None}})
    said = r"add to the one that it was made from, and augment that again"
    with pytest.raises(MismatchError, match=said), store.update("wiki"):
        pass
    assert store._names.metadata("wiki__v0001")[LOADER_KEY] == {}


def test_a_change_is_not_recorded_over_that_of_somebody_who_took_over(fake, store, clock):
    edition(store, 1)
    before = store.card("wiki")
    with store.update("wiki") as update:
        store._names.write_metadata("wiki__v0001", {LOADER_KEY: {"id": "x", "host": "elsewhere", "pid": 71}})
        with pytest.raises(LockedError, match=r"is being changed by process 71 on elsewhere; make the same call again"):
            update.record(replace(before, count=21))
    assert store.card("wiki") == update.card == before
    assert store._names.metadata("wiki__v0001")[LOADER_KEY]["id"] == "x"


def test_a_node_that_shows_the_signature_late_is_asked_again(fake, store, clock):
    edition(store, 1)
    with store.update("wiki") as update:
        signed = store._names.metadata("wiki__v0001")[LOADER_KEY]
        store._names.write_metadata("wiki__v0001", {LOADER_KEY: {}})

        def sleep(seconds):
            clock[0] += seconds
            store._names.write_metadata("wiki__v0001", {LOADER_KEY: signed})

        store._server.sleep = sleep
        update.record(replace(update.card, count=21))
    assert store.card("wiki").count == 21
    assert clock == [server_writer.POLL]


def test_a_load_that_was_stopped_before_its_alias_is_published_by_the_next_and_not_filled_again(fake, store, clock):
    edition(store, 1)
    fake.faults = [Fault(403, only="POST /collections/aliases")]
    with pytest.raises(ServerError):
        edition(store, 2)
    assert behind(fake) == {"wiki": "wiki__v0001"}
    with store.writer("wiki", card=a_card(alpha=0.2)) as writer:
        assert (writer.version, writer.committed) == ("wiki__v0002", 20)
        assert store._names.metadata("wiki__v0002")[LOADER_KEY] == {}  # it is whole: nobody needs to wait for us
        written = fake.count("PUT", "/points")
        writer.publish(finished(a_card(alpha=0.2), passages(20, tag="2-")))
    assert behind(fake) == {"wiki": "wiki__v0002"} and fake.count("PUT", "/points") == written


@pytest.mark.parametrize("cleaner", ["gc", "load"])
def test_a_rollback_beside_a_clean_up_keeps_its_version(fake, store, cleaner):
    """It moves the alias when the clean-up has chosen that version, and not looked at the aliases yet."""
    edition(store, 1)
    edition(store, 2)

    def before(method, path):
        marked = fake.client.get_collection("wiki__v0001").config.metadata.get(LEAVING_KEY)
        if marked and method == "GET" and path == "/aliases":
            point(fake, "wiki", "wiki__v0001")

    fake.before = before
    if cleaner == "gc":
        assert store.admin.gc("wiki", keep=1) == []
    else:
        with ServerStore.connect(fake.url, options=CollectionOptions(bulk=False)) as other:
            edition(other, 3)
    fake.before = lambda method, path: None
    assert behind(fake) == {"wiki": "wiki__v0001"}
    assert store.count("wiki") == 20


def test_a_rollback_to_what_is_being_deleted_is_taken_back(fake, store):
    edition(store, 1)
    edition(store, 2)
    record = store._names.metadata("wiki__v0001")
    fake.before = lambda method, path: (
        fake.client.update_collection("wiki__v0001", metadata={**record, LEAVING_KEY: {"by": 1}})
        if (method, path) == ("POST", "/collections/aliases")
        else None
    )
    with pytest.raises(LockedError, match=r"wiki__v0001 .*is being deleted"):
        store.admin.rollback("wiki")
    assert behind(fake) == {"wiki": "wiki__v0002"}


@pytest.mark.parametrize(
    "moment", [("POST", "/collections/wiki__v0001/points/count"), ("POST", "/collections/aliases")]
)
def test_a_rollback_to_what_was_just_deleted_says_so(fake, store, moment):
    edition(store, 1)
    edition(store, 2)
    fake.before = lambda method, path: (
        fake.client.delete_collection("wiki__v0001") if (method, path) == moment else None
    )
    with pytest.raises(LockedError, match=r"wiki__v0001 .*is being deleted"):
        store.admin.rollback("wiki")
    assert behind(fake) == {"wiki": "wiki__v0002"}


# a restart, an outage


def test_an_index_that_sleeps_since_a_restart_is_woken(fake, clock, caplog):
    with ServerStore.connect(fake.url, timeout=60) as store, store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(5), vectors(5)))

        def restart(method, path):
            if (method, path) == ("PATCH", "/collections/wiki__v0001") and fake.thresholds["wiki__v0001"]:
                fake.before = lambda method, path: None
            elif fake.thresholds["wiki__v0001"]:
                fake.grey.add("wiki__v0001")

        fake.before = restart
        server_writer.build_index(store._names, "wiki__v0001")
        assert fake.grey == set()
        assert 10 <= clock[0] < server_writer.GREY_PATIENCE
        fake.before = lambda method, path: None
        writer.publish(finished(a_card(), passages(5)))
        fake.grey.add("wiki__v0001")
        assert "wakes it" in store.admin.state("wiki").details["grey"]
    assert "still grey" not in caplog.text


def test_a_change_that_a_cluster_only_noted_is_proposed_once(fake, store, clock):
    edition(store, 1)
    edition(store, 2)
    fake.faults = [Fault(500, body=NO_QUORUM, only="POST /collections/aliases") for _ in range(9)]
    with pytest.raises(Pending, match="may still be carried out: look at `xqg-vdb versions`"):
        store.admin.rollback("wiki")
    assert len(fake.faults) == 8
    fake.faults = [Fault(500, body=NO_QUORUM, only="POST /collections/aliases", applied=True)]
    assert store.admin.rollback("wiki") == "v0001"
    assert behind(fake) == {"wiki": "wiki__v0001"}


def test_versions_on_a_node_that_is_away_are_listed_and_marked(fake, store, clock):
    for corpus in range(1, 4):
        edition(store, corpus)
    fake.faults = [Fault(503, only="GET /collections/wiki__v000[12]$") for _ in range(99)]
    away = [(one.name, one.reachable) for one in store.admin.versions("wiki")]
    assert away == [("v0001", False), ("v0002", False), ("v0003", True)]
    assert clock[0] < 35  # thirty seconds for all of them, not for each
    fake.faults = [Fault(503, only="GET /collections/wiki__v0003$") for _ in range(99)]
    assert store.admin.gc("wiki", keep=1, unfinished=True) == ["v0001", "v0002"]  # what is published is away, not lost


@pytest.mark.parametrize("what", ["delete", "add", "augment", "migrate"])
def test_a_server_that_is_away_from_the_start_is_told_soon(fake, store, clock, what):
    fake.faults = [Fault(503) for _ in range(999)]
    with pytest.raises(ServerError, match="away or overloaded"):
        if what == "delete":
            store.delete("wiki")
        elif what == "add":
            with store.update("wiki"):
                pass
        elif what == "augment":
            store.foreign("wiki")
        else:
            with ServerStore.connect(":memory:") as other:
                load(other, "docs", passages(5), vectors(5), card=a_card())
                migrate(other, "docs", store)
    assert clock[0] < 35  # where a write may be repeated for ten minutes


# searches and the switch


def switch_at_first_search(fake, to, *, delete=None):
    def before(method, path):
        if path.endswith("/query/batch"):
            fake.before = lambda method, path: None
            point(fake, "wiki", to)
            if delete:
                fake.client.delete_collection(delete)

    fake.before = before


@pytest.mark.parametrize("delete", [None, "wiki__v0001"])
def test_a_run_sees_one_version(fake, store, delete):
    """150 questions are three requests; the alias moves before the first is answered."""
    edition(store, 1)
    edition(store, 2)
    store.admin.rollback("wiki")
    switch_at_first_search(fake, "wiki__v0002", delete=delete)
    hits = store.search("wiki", vectors(150), Search(k=3))
    assert {hit.text.partition("-")[0] for found in hits for hit in found} == {"text 2" if delete else "text 1"}
    assert len(hits) == 150


def test_a_search_can_name_its_version(fake, store):
    edition(store, 1)
    edition(store, 2)
    assert store.version("wiki") == "v0002"
    for version, text in (("v0001", "text 1"), ("v0002", "text 2")):
        assert store.search(f"wiki@{version}", vectors(1), Search(k=1))[0][0].text.startswith(text)
        assert store.card(f"wiki@{version}").version == version
    with pytest.raises(Moved, match="has no version v0009"):
        store.search("wiki@v0009", vectors(1), Search())
    with pytest.raises(DataError, match=r"write it like wiki@v0001"):
        store.count("wiki@9")


@pytest.mark.parametrize("quantization", [None, "scalar", "turbo", "product"])
async def test_coroutines_ask_for_what_threads_ask_for(fake, clock, quantization):
    with ServerStore.connect(fake.url, options=CollectionOptions(quantization=quantization)) as store:
        edition(store, 1)
        search = Search(k=3, ef=64, passage_langs=["en"])
        store.search("wiki", vectors(2), search)
        asynchronous = store.async_search()
        await asynchronous.searches("wiki", [(vectors(2), search)])
        await asynchronous.aclose()
    assert fake.searches[:2] == fake.searches[2:]
    sent = fake.searches[0]["params"]
    again = {"ignore": False, "rescore": True, "oversampling": 3.0} if quantization else None
    assert (sent["hnsw_ef"], sent.get("quantization")) == (64, again)


# snapshots


def shards(*states):
    return [{"shard_id": at % 3, "state": state, **({"peer_id": at} if at else {})} for at, state in enumerate(states)]


def test_a_snapshot_of_some_of_the_shards_is_refused(fake, store):
    edition(store, 1)
    fake.shards["wiki__v0001"] = shards("Active", "Active", "Active")
    with pytest.raises(MismatchError, match=r"holds 1 of 3 shards of wiki__v0001.*migrate wiki --to-path"):
        store.admin.create_snapshot("wiki")
    assert not fake.snapshots.get("wiki__v0001")


@pytest.fixture
def taken(store, tmp_path):
    """The downloaded snapshot of the first edition."""
    edition(store, 1)
    store.admin.download_snapshot("wiki", store.admin.create_snapshot("wiki").name, tmp_path / "copy")
    return tmp_path / "copy"


def test_copies_that_are_not_active_yet_are_waited_for(fake, store, clock, taken):
    looks = iter([shards("Active", "Initializing", "Partial"), shards("Active", "Active", "Recovery")])
    fake.shards["wiki__v0002"] = lambda: next(looks, shards("Active", "Active", "Active"))
    assert store.admin.restore_snapshot("wiki", taken) == "v0002"
    assert clock[0] >= 2
    fake.shards["wiki__v0003"] = shards("Active", "Dead")
    with pytest.raises(ServerError, match=r"1 of 2 copies of the shards of wiki__v0003 .*not active"):
        store.admin.restore_snapshot("wiki", taken)
    assert behind(fake) == {"wiki": "wiki__v0002"}
    assert "wiki__v0003" not in collections(fake)


def test_snapshots_of_all_versions_are_found_and_uploads_leave_nothing(fake, store, taken, caplog):
    edition(store, 2)
    assert [one.name for one in store.admin.snapshots("wiki")] == ["wiki__v0001-0.snapshot"]
    again = taken.with_name("again")
    store.admin.download_snapshot("wiki", "wiki__v0001-0.snapshot", again)
    store.admin.restore_snapshot("wiki", again)
    assert fake.snapshots["wiki__v0003"] == {}
    store.admin.gc("wiki", keep=1)
    assert "the snapshots of wiki__v0001 stay in its folder snapshots/wiki__v0001" in caplog.text


def test_a_snapshot_whose_request_timed_out_is_made_once(fake, store):
    edition(store, 1)
    fake.faults = [Fault(504, only="POST .*/snapshots", applied=True)]
    made = store.admin.create_snapshot("wiki")
    assert list(fake.snapshots["wiki__v0001"]) == [made.name]
    fake.faults = [Fault(504, only="POST .*/snapshots")]
    with pytest.raises(ServerError):
        store.admin.create_snapshot("wiki")
    assert fake.count("POST", "/snapshots") == 2


def test_a_snapshot_that_a_key_may_not_make_is_not_waited_for(fake, store):
    edition(store, 1)
    fake.faults = [Fault(403, only="POST .*/snapshots")]
    with pytest.raises(NoAccess):
        store.admin.create_snapshot("wiki")
    assert fake.count("GET", "/snapshots") == 1


@pytest.mark.parametrize("with_sum", [True, False])
def test_a_changed_snapshot_is_not_published(fake, store, taken, with_sum):
    whole = json.loads(taken.read_text())
    whole["points"][3]["payload"]["content"] = "changed"
    taken.write_text(json.dumps(whole))
    if not with_sum:
        taken.with_name("copy.sha256").unlink()
    said = "cannot read the snapshot .*hecksum mismatch" if with_sum else "holds other texts than its card promises"
    with pytest.raises(CorruptError, match=said):
        store.admin.restore_snapshot("wiki", taken)
    assert behind(fake) == {"wiki": "wiki__v0001"}
    assert collections(fake) == ["wiki__v0001"]


# addresses


@pytest.mark.parametrize(
    ("url", "port", "expected"),
    [
        ("http://localhost", None, ("http://localhost:6333", 6334)),
        ("http://localhost:7333", None, ("http://localhost:7333", 7334)),
        ("http://localhost:7333", 9000, ("http://localhost:7333", 9000)),
        ("grpc://localhost:7334", None, ("http://localhost:7333", 7334)),
        ("grpcs://qdrant.example.org", None, ("https://qdrant.example.org:6333", 6334)),
        ("http://[::1]:7333", None, ("http://[::1]:7333", 7334)),
        ("HTTP://localhost", None, ("http://localhost:6333", 6334)),
        ("http://my_host.b\u00fccher", None, ("http://my_host.b\u00fccher:6333", 6334)),
    ],
)
def test_grpc_is_spoken_beside_the_given_port(url, port, expected):
    address = checked_address(url, api_key=None, insecure=False, grpc=True, grpc_port=port)
    assert (address.url, address.grpc_port) == expected


@pytest.mark.parametrize("url", ["http://localhost:99999", "http://a:1,http://b:2", "http://a:1, http://b:2"])
def test_addresses_that_would_lead_elsewhere_are_refused(url):
    with pytest.raises(DataError):
        checked_address(url, api_key=None, insecure=False)
    with pytest.raises(DataError, match="XQG_VDB_GRPC_PORT must be a port"):
        port_number("abc", of="XQG_VDB_GRPC_PORT")


@pytest.mark.parametrize("host", ["%00", "h%41", "a<b>", "h^", "h|x", "h{}", '"h"', "h\\x", "h*", ""])
def test_a_host_that_cannot_be_is_the_address_and_not_the_proxy(host):
    with pytest.raises(DataError, match="The address of a Qdrant server looks like"):
        checked_address(f"http://{host}:6333", api_key=None, insecure=False)


# strict mode


def test_what_strict_mode_forbids_is_sent_smaller(fake, store):
    fake.strict = {"limit": 7, "search batch size": 2, "hnsw_ef": 100, "exact": False, "upsert limit": 6}
    edition(store, 1)
    assert store.count("wiki") == 20
    assert len(list(store.scroll("wiki"))) == 20
    assert len(store.search("wiki", vectors(5), Search(k=3, ef=256))) == 5
    state = store.admin.state("wiki")
    assert (state.points, sum(state.languages.values())) == (20, 20)
    with pytest.raises(ServerError, match=r"strict mode.* forbids this.*Exact search disabled"):
        store.search("wiki", vectors(1), Search(k=3, exact=True))


def test_more_than_the_user_asks_for_is_not_asked_of_a_server_that_forbids_it(fake, store):
    edition(store, 1)
    free = store.search("wiki", vectors(2), Search(k=5))
    fake.strict = {"limit": 5}
    assert store.search("wiki", vectors(2), Search(k=5)) == free  # not one more, which would show a tie
    assert len(store.search("wiki", vectors(2), Search(k=100, texts=False))[0]) == 5  # as a hybrid search asks
    with pytest.raises(ServerError, match=r'Limit exceeded 6 > 5 for "limit".*raise the limit there'):
        store.search("wiki", vectors(2), Search(k=4, offset=2))


def test_questions_are_asked_by_fewer_when_a_rate_takes_no_more(fake, store):
    edition(store, 1)
    free, said = store.search("wiki", vectors(20), Search(k=3)), "request larger than rate limiter capacity"
    body = b'{"status":{"error":"Rate limiting exceeded: %s, please try to split your request"}}' % said.encode()
    fake.faults = [Fault(429, body=body, only="query/batch") for _ in range(2)]
    assert store.search("wiki", vectors(20), Search(k=3)) == free
    assert fake.count("POST", "query/batch") == 1 + 2 + 4  # of 20 and 10, refused, then of 5


def test_a_limit_of_indexes_stops_no_load(fake, store):
    said = b'{"status":{"error":"Bad request: Collection already has the maximum number of payload indices (0)."}}'
    fake.faults = [Fault(400, body=said, only="PUT .*/index")]
    edition(store, 1)
    assert (store.count("wiki"), store.admin.state("wiki").languages) == (20, {})


def test_oversampling_is_sent_where_vectors_are_quantised_and_as_allowed(fake, clock):
    fake.strict = {"oversampling": 2}
    with ServerStore.connect(fake.url, options=CollectionOptions(quantization="scalar")) as store:
        edition(store, 1)
        assert len(store.search("wiki", vectors(1), Search(k=3))[0]) == 3
    assert fake.searches[-1]["params"]["quantization"]["oversampling"] == 2.0


def test_a_full_collection_does_not_blame_a_passage(fake, store):
    said = b'{"status":{"error":"Bad request: Max points count limit of 10 reached! Help: Reduce points."}}'
    fake.faults = [Fault(400, body=said, only="PUT .*/points$")]
    with store.writer("wiki", card=a_card()) as writer, pytest.raises(ServerError, match="strict mode"):
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)


def test_the_card_of_a_load_is_kept_when_meta_of_others_is_odd(fake, store):
    edition(store, 1)
    fake.client.update_collection("wiki__v0001", metadata={"xqg_cursor": "odd", "xqg_loader": [1], "xqg_bulk": 3})
    load(store, "wiki", passages(5), vectors(5), card=replace(a_card(), rows_digest="x"))
    assert store.count("wiki") == 5


STRANGERS = [
    {"page_content": "of LangChain", "metadata": {"source": "a"}},
    {"_node_content": '{"text": "of LlamaIndex"}', "_node_type": "TextNode"},
    {"id": "h", "content": "of Haystack", "meta": {"lang": "de"}, "blob": None},
    {"meta": "odd", "content": ["odd"]},
    {"id": 7, "meta": {"title": None}},
    {"_node_content": 3},
    {},
]


def test_points_of_stock_stores_are_named_and_found_and_no_damage(fake, store):
    edition(store, 1)
    points = [
        models.PointStruct(id=900 + n, vector={"text-dense": [1.0 + n] * 16}, payload=payload)
        for n, payload in enumerate(STRANGERS)
    ]
    fake.client.upsert("wiki__v0001", points)
    hits = store.search("wiki", np.ones((1, 16), np.float32), Search(k=30))[0]
    assert len(hits) == 27 and all(hit.id for hit in hits)
    assert {"of LangChain", "of LlamaIndex", "of Haystack"} <= {hit.text for hit in hits}
    found = verify(store, "wiki")
    assert found.problems == () and found.points == 27
    assert found.others == {"LangChain": 1, "LlamaIndex": 2, "Haystack": 2, "others": 2}
    details = store.admin.state("wiki").details
    assert details["written by LangChain"] == 1 and details["written by LlamaIndex"] == 2
    edition(store, 2)
    assert store.admin.rollback("wiki") == "v0001"  # whose points are more than its card promises
    fake.client.delete("wiki__v0001", [str(point_id("p00003"))])
    assert "19 points where the card promises 20" in verify(store, "wiki").problems[0]


def test_the_state_says_which_port_speaks_grpc():
    with ServerStore.connect(":memory:") as store:
        load(store, "wiki", passages(3), vectors(3), card=a_card())
        assert "as gRPC port" not in store.admin.state("wiki").details
        store._grpc_port = 7334  # as `connect` leaves it after a checked address
        assert store.admin.state("wiki").details["as gRPC port"] == 7334
