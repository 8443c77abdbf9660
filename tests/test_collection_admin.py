"""Versions, rollback, clean-up, states, snapshots, copies and verification: one body for all stores.

Set XQG_TEST_QDRANT_URL to run it on a real server.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tarfile
import uuid
from dataclasses import replace

import numpy as np
import pytest
from collection_cases import a_batch, a_card, finished, load, passages, vectors
from fake_qdrant import FakeQdrant
from rankings import assert_best

from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError, XqgError
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Card, Search

SERVER = os.environ.get("XQG_TEST_QDRANT_URL")
KINDS = ["embedded", "memory", "http", "server"]


@contextlib.contextmanager
def opened(kind, tmp_path, *, options=None):
    if kind == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    with contextlib.ExitStack() as stack:
        if kind == "embedded":
            store = EmbeddedStore(tmp_path / "store", options=options)
        elif kind == "http":
            store = ServerStore.connect(stack.enter_context(FakeQdrant()).url, options=options)
        elif kind == "memory":
            store = ServerStore.connect(":memory:", options=options)
        else:
            store = ServerStore.connect(SERVER, api_key=os.environ.get("XQG_TEST_QDRANT_API_KEY"), options=options)
        yield stack.enter_context(store)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def store(kind, tmp_path):
    """Keeps three versions."""
    with opened(kind, tmp_path, options=CollectionOptions(keep=3)) as found:
        yield found


@pytest.fixture
def name(store):
    chosen = f"test-{uuid.uuid4().hex[:12]}"
    yield chosen
    with contextlib.suppress(XqgError):
        store.delete(chosen)


def load_edition(store, name, number, *, n=20, card=None):
    load(store, name, passages(n, tag=f"{number}-"), vectors(n, seed=number), card=card or a_card(alpha=number / 10))


def edition(store, name):
    """The number of the edition that searches see."""
    found = store.search(name, vectors(1), Search(1, exact=True))
    return int(found[0][0].text.removeprefix("text ").partition("-")[0])


def texts(store, name):
    return {point.id: point.payload["content"] for point in store.scroll(name)}


def listed(store, name):
    return [(one.name, one.published, one.finished) for one in store.admin.versions(name)]


# versions


def test_the_latest_versions_are_kept_and_can_be_published_again(store, name):
    for number in (1, 2, 3, 4):
        load_edition(store, name, number)
        assert edition(store, name) == number
    assert listed(store, name) == [("v0002", False, True), ("v0003", False, True), ("v0004", True, True)]
    assert store.admin.rollback(name) == "v0003"
    assert edition(store, name) == 3
    assert store.card(name).recipe.alpha == 0.3
    assert store.admin.rollback(name) == "v0002"
    with pytest.raises(DataError, match=r"has no older version than v0002; newer ones: v0003, v0004"):
        store.admin.rollback(name)
    assert store.admin.rollback(name, version="v0004") == "v0004"
    assert edition(store, name) == 4
    with pytest.raises(DataError, match=r"has no version 'v0001' to go back to; it has v0002, v0003"):
        store.admin.rollback(name, version="v0001")


def test_a_load_after_a_rollback_keeps_the_version_that_was_published(store, name):
    for number in (1, 2, 3):
        load_edition(store, name, number)
    store.admin.rollback(name, version="v0001")
    load_edition(store, name, 4)
    assert edition(store, name) == 4
    states = listed(store, name)
    assert states[-1] == ("v0004", True, True)
    assert ("v0001", False, True) in states
    assert len(states) == 3
    for _ in range(2):  # as after a kill at its end
        assert store.admin.rollback(name, version="v0001") == "v0001"
        assert edition(store, name) == 1


def test_loading_the_build_again_that_was_rolled_back_from_writes_it_anew(store, name):
    load_edition(store, name, 1)
    load_edition(store, name, 2)
    store.admin.rollback(name)
    with store.writer(name, card=a_card(alpha=0.2)) as writer:
        assert writer.committed == 0
    assert edition(store, name) == 1
    assert ("v0002", False, True) in listed(store, name)


def test_gc_deletes_what_is_not_to_be_kept(store, name):
    for number in (1, 2, 3):
        load_edition(store, name, number)
    with store.writer(name, card=a_card(alpha=0.9)) as writer:
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)
    assert listed(store, name)[-1] == ("v0004", False, False)
    assert store.admin.gc(name, keep=2) == ["v0001"]
    assert store.admin.gc(name, keep=2) == []
    assert [one[0] for one in listed(store, name)] == ["v0002", "v0003", "v0004"]
    assert store.admin.gc(name, keep=1, unfinished=True) == ["v0002", "v0004"]
    assert listed(store, name) == [("v0003", True, True)]
    assert edition(store, name) == 3
    with pytest.raises(DataError, match="has no other finished version to go back to: `xqg-vdb load --keep 2`"):
        store.admin.rollback(name)


@pytest.mark.parametrize(("options", "kept"), [({}, ["v0002", "v0003"]), ({"keep": 1}, ["v0003"])])
def test_the_version_before_is_kept_unless_told_otherwise(kind, tmp_path, options, kept):
    with opened(kind, tmp_path, options=CollectionOptions(**options)) as store:
        chosen = f"test-{uuid.uuid4().hex[:12]}"
        for edition in (1, 2, 3):
            load_edition(store, chosen, edition)
        assert listed(store, chosen) == [(version, version == "v0003", True) for version in kept]
        store.delete(chosen)


def test_unknown_names_are_told(store):
    admin = store.admin
    for call in (admin.versions, admin.rollback, admin.state, admin.create_snapshot, admin.snapshots):
        with pytest.raises(DataError, match="There is no collection 'qqq'"):
            call("qqq")
        with pytest.raises(DataError, match="cannot name a collection"):
            call("../x")
    with pytest.raises(DataError, match="There is no collection 'qqq'"):
        admin.gc("qqq", keep=1)


def test_the_state_says_what_is_there(store, kind, name):
    load_edition(store, name, 1, n=31)
    state = store.admin.state(name)
    assert state.points == 31
    assert dict(state.languages) == {"en": 11, "sw": 10, "yo": 10}
    assert (state.status, state.card.count) == ("green", 31)
    assert (state.disk_bytes or 0) > 31 * 64 or kind != "embedded"


# snapshots


@pytest.mark.parametrize("kind", ["embedded", "http", "server"], indirect=True)
def test_a_snapshot_brings_everything_back(store, name, tmp_path):
    load_edition(store, name, 1)
    expected = texts(store, name)
    made = store.admin.create_snapshot(name)
    assert [one.name for one in store.admin.snapshots(name)] == [made.name]
    assert made.size > 1000
    file = tmp_path / "copy"
    store.admin.download_snapshot(name, made.name, file)
    assert file.stat().st_size == made.size
    with pytest.raises(DataError, match="copy is there already: remove it, or give another FILE"):
        store.admin.download_snapshot(name, made.name, file)
    load_edition(store, name, 2)
    assert store.admin.restore_snapshot(name, file) == "v0003"
    assert (edition(store, name), store.count(name), store.card(name).version) == (1, 20, "v0003")
    assert texts(store, name) == expected
    assert verify(store, name).problems == ()
    assert store.admin.rollback(name) == "v0002"
    other = f"{name}-other"
    assert store.admin.restore_snapshot(other, file) == "v0001"
    assert texts(store, other) == expected
    store.delete(other)
    with pytest.raises(DataError, match="has no snapshot 'nope'"):
        store.admin.download_snapshot(name, "nope", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".sha256") == ["copy"]


def test_the_memory_mode_says_that_it_has_no_snapshots(tmp_path):
    with opened("memory", tmp_path) as store:
        load_edition(store, "wiki", 1)
        with pytest.raises(DataError, match="makes no snapshots"):
            store.admin.restore_snapshot("wiki", tmp_path / "x")


@pytest.fixture
def taken(tmp_path):
    """(embedded store, a snapshot's file)."""
    with EmbeddedStore(tmp_path / "store") as store:
        load_edition(store, "wiki", 1)
        made = store.admin.create_snapshot("wiki")
        yield store, tmp_path / "store" / "wiki" / "snapshots" / made.name


def repack(file, out, change):
    """The snapshot with `change(name, content)` applied to every member; None leaves it out."""
    with tarfile.open(file) as tar, tarfile.open(out, "w:gz", compresslevel=1) as new:
        for member in tar:
            content = change(member.name, tar.extractfile(member).read())
            if content is not None:
                info = tarfile.TarInfo(member.name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))


def flip(name, content):
    return bytes([content[0] ^ 1]) + content[1:] if name.endswith("segment.json") else content


def add(name, **settings):
    def change(file, out):
        with tarfile.open(file) as tar, tarfile.open(out, "w:gz", compresslevel=1) as new:
            info = tarfile.TarInfo(name)
            for key, value in settings.items():
                setattr(info, key, value)
            new.addfile(info, io.BytesIO(b"") if info.isreg() else None)
            for member in tar:
                new.addfile(member, tar.extractfile(member))

    return change


def bomb(kind):
    """A header that promises four gigabytes, and some of them."""

    def write(_, out):
        member = tarfile.TarInfo("x")
        member.type, member.size = kind, 1 << 32
        out.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))

    return write


DAMAGES = {
    "a flipped bit": (lambda f, o: repack(f, o, flip), CorruptError, "segment.json differs"),
    "no card": (lambda f, o: repack(f, o, lambda n, c: None if n == "card.json" else c), CorruptError, "card.json"),
    "no list": (lambda f, o: repack(f, o, lambda n, c: None if n == "snapshot.json" else c), CorruptError, "cut short"),
    "a list of later days": (
        lambda f, o: repack(f, o, lambda n, c: b'{"schema": 99}' if n == "snapshot.json" else c),
        DataError,
        "of a later version",
    ),
    "cut": (lambda f, o: o.write_bytes(f.read_bytes()[:-2000]), CorruptError, "damaged or no snapshot|cut short"),
    "text": (lambda f, o: o.write_text("hello"), CorruptError, "damaged or no snapshot"),
    "gzip of text": (lambda f, o: o.write_bytes(gzip.compress(b"x" * 3000)), CorruptError, "damaged or no snapshot"),
    "empty": (lambda f, o: o.write_bytes(b""), CorruptError, "damaged or no snapshot|cut short"),
    "a way out": (add("../marker"), DataError, "it has a member '../marker'"),
    "an absolute name": (add("/tmp/marker"), DataError, "it has a member"),
    "a hidden way": (add("shard/../../marker"), DataError, "it has a member"),
    "a link": (add("shard/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), DataError, "is not a plain file"),
    "a hard link": (add("shard/x", type=tarfile.LNKTYPE, linkname="card.json"), DataError, "is not a plain file"),
    "a long GNU name": (bomb(tarfile.GNUTYPE_LONGNAME), CorruptError, "a header of 4,294,967,296 bytes"),
    "a long pax header": (bomb(tarfile.XHDTYPE), CorruptError, "a header of 4,294,967,296 bytes"),
    "a device": (add("shard/x", type=tarfile.CHRTYPE), DataError, "is not a plain file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_snapshot_changes_nothing(taken, damage, tmp_path):
    store, file = taken
    change, error, said = DAMAGES[damage]
    change(file, tmp_path / "bad")
    with pytest.raises(error, match=said):
        store.admin.restore_snapshot("wiki", tmp_path / "bad")
    assert listed(store, "wiki") == [("v0001", True, True)]
    assert edition(store, "wiki") == 1
    assert not list(tmp_path.rglob("marker")) and not list((tmp_path / "store").rglob(".trash*"))


def test_a_restored_snapshot_takes_little_disk(taken, tmp_path):
    """The engine's files are mostly holes; a copy that fills them takes 100 MB and more."""
    store, file = taken
    before = store.admin.state("wiki").disk_bytes
    store.admin.restore_snapshot("again", file)
    assert store.admin.state("again").disk_bytes < before + (2 << 20)


def test_a_snapshot_of_a_collection_that_is_read_is_whole(taken):
    store, _ = taken
    with store.reading("wiki"):
        made = store.admin.create_snapshot("wiki")
    assert len(store.admin.snapshots("wiki")) == 2
    with store.writer("wiki", card=a_card()), pytest.raises(LockedError, match="is being loaded by"):
        store.admin.create_snapshot("wiki")
    assert made.name.startswith("wiki-v0001-")


def test_what_a_killed_engine_left_half_written_is_not_in_a_snapshot(taken, tmp_path):
    store, _ = taken
    shard = store.path / "wiki" / "v0001" / "shard"
    for folder in (shard, next((shard / "segments").iterdir())):
        (folder / ".atomicwriteHYoFPA").mkdir()
        (folder / ".atomicwriteHYoFPA" / "tmpfile.tmp").write_text("{")
    made = store.admin.create_snapshot("wiki")
    store.admin.download_snapshot("wiki", made.name, tmp_path / "copy")
    assert store.admin.restore_snapshot("wiki", tmp_path / "copy") == "v0002"
    assert verify(store, "wiki").problems == ()
    assert not list((store.path / "wiki" / "v0002").rglob(".atomicwrite*"))


# copies


@pytest.mark.parametrize("to", ["embedded", "memory", "http", "server"])
def test_a_collection_is_copied_with_its_card(store, name, to, tmp_path):
    load_edition(store, name, 3, n=700)
    with opened(to, tmp_path / "other") as target:
        card = migrate(store, name, target, to_name=f"{name}-copy")
        source = store.card(name)
        assert replace(card, version="", rows_digest="") == replace(source, version="", rows_digest="")
        questions = vectors(20, seed=9)
        found = [
            place.search(own, questions, Search(5, ["sw"], exact=True))
            for place, own in ((store, name), (target, f"{name}-copy"))
        ]
        assert [[hit.id for hit in hits] for hits in found[0]] == [[hit.id for hit in hits] for hits in found[1]]
        points = [{p.id: p for p in place.scroll(own, with_vectors=True)} for place, own in
                  ((store, name), (target, f"{name}-copy"))]  # fmt: skip
        assert points[0].keys() == points[1].keys()
        for docid, point in points[0].items():
            assert point.payload == points[1][docid].payload
            assert np.allclose(point.vectors["text-dense"], points[1][docid].vectors["text-dense"], atol=1e-6)
        target.delete(f"{name}-copy")


def test_a_stopped_copy_goes_on_and_not_from_where_a_load_stopped(store, name, tmp_path, monkeypatch):
    load_edition(store, name, 1, n=1200)
    monkeypatch.setattr("xqg_vdb.index.migrate.COMMIT_EVERY", 512)

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done > 600:
            raise Stop

    with EmbeddedStore(tmp_path / "other") as target:
        with target.writer("wiki", card=store.card(name)) as writer:  # a load of the same build, in another order
            writer.upsert(a_batch(passages(1000, tag="1-"), vectors(1000, seed=1)))
            writer.commit(1000)
        with pytest.raises(Stop):
            migrate(store, name, target, to_name="wiki", progress=stop)
        seen = []
        migrate(store, name, target, to_name="wiki", progress=lambda stage, done, total: seen.append((stage, done)))
        assert texts(target, "wiki") == texts(store, name)
        assert verify(target, "wiki").problems == ()
        assert seen[-1] == ("indexing", 1200)


def test_a_copy_in_place_gets_other_options(store, kind, tmp_path, name):
    load_edition(store, name, 1)
    with opened(kind, tmp_path, options=CollectionOptions(hnsw_m=8, keep=2)) as other:
        if kind in ("memory", "http"):
            return  # another server, every time
        migrate(store, name, other)
        assert other.card(name).storage == {"hnsw_m": 8}
        assert edition(other, name) == 1
        assert other.admin.rollback(name) == "v0001"


def test_foreign_payloads_and_missing_points_are_not_copied(tmp_path):
    with EmbeddedStore(tmp_path / "a") as source, EmbeddedStore(tmp_path / "b") as target:
        load_edition(source, "wiki", 1)
        version = source.folder("wiki").current()
        card = version.card()
        version.write_card(replace(card, digest="0" * 32))
        with pytest.raises(CorruptError, match="is not what its card says"):
            migrate(source, "wiki", target)
        version.write_card(card)
        source.close()
        shard = engine.load(version.shard)
        shard.update(engine.edge.UpdateOperation.set_payload([shard_ids(shard)[0]], {"mine": 1}))
        shard.close()
        with pytest.raises(MismatchError, match="has a payload that xqg-vdb did not write"):
            migrate(source, "wiki", target)
        assert target.names() == []


def shard_ids(shard):
    return [record.id for record in shard.scroll(engine.edge.ScrollRequest(limit=100))[0]]


# verification


def test_a_sound_collection_verifies(store, name):
    load_edition(store, name, 1, n=40)
    found = verify(store, name)
    assert (found.points, found.problems, found.version) == (40, (), "v0001")
    assert dict(found.languages) == {"en": 14, "sw": 13, "yo": 13}


def test_what_is_wrong_is_found(tmp_path):
    with EmbeddedStore(tmp_path) as store:
        load_edition(store, "wiki", 1)
        version = store.folder("wiki").current()
        card = version.card()
        version.write_card(replace(card, digest="0" * 32))
        assert verify(store, "wiki").problems == ("the texts are not those that were loaded (another digest)",)
        version.write_card(card)
        store.close()
        shard = engine.load(version.shard)
        upsert = engine.edge.UpdateOperation.upsert_points
        bad = np.full(16, np.nan, np.float32)
        payload = {"id": "p00003", "content": "text 1-3", "meta": {"lang": "en", "title": "title 3", "query_langs": []}}
        from xqg_vdb.store.layout import point_id

        shard.update(upsert([engine.edge.Point(point_id("p00003"), {"text-dense": memoryview(bad)}, payload)]))
        shard.close()
        assert verify(store, "wiki").problems == (
            "1 points have a vector that is missing, not finite or not of unit length",
        )


# options


@pytest.mark.parametrize("quantization", [None, "scalar", "product", "turbo", "binary"])
def test_embedded_collections_can_be_quantised_and_stay_exact_when_asked(tmp_path, quantization):
    options = CollectionOptions(quantization=quantization, hnsw_m=12, on_disk_vectors=True, on_disk_payload=True)
    rows, matrix, questions = passages(400), vectors(400, dim=64), vectors(20, dim=64, seed=3)
    with EmbeddedStore(tmp_path, options=options) as store:
        load(store, "wiki", rows, matrix, card=a_card(dim=64))
        assert store.card("wiki").storage == options.layout()
        config = json.loads(next(tmp_path.rglob("edge_config.json")).read_text())["vectors"]["text-dense"]
        assert (quantization or "none") in config.get("quantization_config", {"none": 0})
        assert config["hnsw_config"]["m"] == 12
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        scores = questions @ unit.T
        wanted = np.argsort(-scores, axis=1)[:, :5]
        for exact in (True, False):
            found = store.search("wiki", questions, Search(5, exact=exact))
            hits = [[int(hit.id[1:]) for hit in row] for row in found]
            if exact:
                for row, own in zip(hits, scores, strict=True):
                    assert_best(row, dict(enumerate(own / np.linalg.norm(own))), k=5)
                continue
            common = np.mean([len(set(one) & set(row)) / 5 for one, row in zip(hits, wanted.tolist(), strict=True)])
            least = 0.3 if quantization == "binary" else 0.6  # one bit a number says little of 64 random ones
            assert common > least


def test_another_layout_starts_a_new_version(tmp_path):
    with EmbeddedStore(tmp_path) as store, store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(5), vectors(5)))
        writer.commit(5)
    options = CollectionOptions(quantization="scalar")
    with EmbeddedStore(tmp_path, options=options) as store, store.writer("wiki", card=a_card()) as writer:
        assert writer.committed == 0


@pytest.mark.parametrize("given", [{"shards": 2}, {"replication_factor": 2}, {"write_consistency": 1}])
def test_what_only_a_server_has_is_refused_by_name(tmp_path, given):
    flag = "--" + next(iter(given)).replace("_", "-")
    with EmbeddedStore(tmp_path, options=CollectionOptions(**given)) as store:
        with pytest.raises(DataError, match=f"^{flag}: an embedded collection is one shard in one folder"):
            store.writer("wiki", card=a_card())
        assert not (tmp_path / "wiki").exists()


@pytest.mark.parametrize(
    "given",
    [{"keep": 0}, {"parallel": 0}, {"parallel": 65}, {"quantization": "half"}, {"hnsw_ef_construct": 3}, {"shards": 0}],
)
def test_impossible_options_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        CollectionOptions(**given)


def test_options_travel_through_the_card():
    options = CollectionOptions(quantization="turbo", shards=3, on_disk_payload=False, keep=4, parallel=8, bulk=False)
    card = replace(a_card(), storage=options.layout())
    back = CollectionOptions(**Card.from_json(json.loads(json.dumps(card.to_json()))).storage)
    assert back == replace(options, keep=2, parallel=1, bulk=True)
    assert finished(card, passages(3)).storage == options.layout()
