"""The embedded store among crashes, second processes, full disks and damaged files."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
from collection_cases import a_batch, a_card, finished, load, passages, vectors

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError, XqgError
from xqg_vdb.files import MIB, FileLock, bytes_on_disk
from xqg_vdb.store.embedded import engine
from xqg_vdb.store.embedded import engine as index_build
from xqg_vdb.store.embedded import writer as writing
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.embedded.versions import Folder, Version, version_states
from xqg_vdb.store.gate import checked
from xqg_vdb.store.layout import CollectionOptions, digest
from xqg_vdb.types import Search

HERE = Path(__file__).parent
N, BATCH, PER_COMMIT = 600, 25, 150

LOADER = f"""
import sys
from collection_cases import *
from xqg_vdb.store.embedded.store import EmbeddedStore
rows, matrix = passages({N}), vectors({N})
with EmbeddedStore(sys.argv[1]).writer("wiki", card=a_card()) as writer:
    print("open", writer.committed, flush=True)
    for at in range(writer.committed, {N}, {BATCH}):
        writer.upsert(a_batch(rows[at : at + {BATCH}], matrix[at : at + {BATCH}]))
        print("upserted", at + {BATCH}, flush=True)
        if (at + {BATCH}) % {PER_COMMIT} == 0:
            writer.commit(at + {BATCH})
    print("publishing", flush=True)
    writer.publish(finished(a_card(), rows))
print("done", flush=True)
"""

HOLDER = """
import sys
from collection_cases import *
from xqg_vdb.store.embedded.store import EmbeddedStore
store = EmbeddedStore(sys.argv[1])
held = store.writer("wiki", card=a_card()) if sys.argv[2] == "write" else store.count("wiki")
print("held", flush=True)
sys.stdin.read()
"""


def run(script, *arguments):
    return processes.start(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
    )


@pytest.fixture
def store(tmp_path):
    with EmbeddedStore(tmp_path / "store", options=CollectionOptions(keep=1)) as opened:
        yield opened


def nearest(store, matrix, row):
    return store.search("wiki", matrix[row : row + 1], Search(1, exact=True))[0][0].id


# kills


@pytest.fixture(scope="module")
def wanted():
    rows, matrix = passages(N), vectors(N)
    return finished(a_card(), rows).digest, matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_twenty_killed_loads_leave_exactly_the_input(tmp_path, wanted, seed):
    rng = random.Random(seed)
    kills = 0
    while True:
        process = run(LOADER, tmp_path)
        doomed = kills < 5
        stop_after = rng.choice(["open", "upserted", "upserted", "upserted", "publishing"]) if doomed else "done"
        committed = 0
        for line in process.stdout:
            word, _, number = line.strip().partition(" ")
            committed = int(number) if word == "open" else committed
            if word == stop_after and (word != "upserted" or rng.random() < 0.2):
                break
        if doomed:
            time.sleep(rng.uniform(0, 0.2))
            kills += 1
        processes.end(process) if doomed else process.communicate()
        assert committed % PER_COMMIT == 0
        if word == "done":
            break
    with EmbeddedStore(tmp_path) as store:
        points = list(store.scroll("wiki", with_vectors=True))
        assert len(points) == N
        assert digest((p.id, p.payload["content"]) for p in points) == wanted[0] == store.card("wiki").digest
        assert np.allclose([p.vectors["text-dense"] for p in sorted(points, key=lambda p: p.id)], wanted[1], atol=1e-6)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob(".trash*"))
    assert not list((tmp_path / "wiki").glob("v*/shard/temp_segments/*"))


# locks


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_second_process_is_refused_at_once_by_pid_and_let_in_after_a_kill(store, how, monkeypatch):
    load(store, "wiki", passages(5), vectors(5), card=a_card())
    store.close()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the lock was waited for"))
    holder = run(HOLDER, store.path, how)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} on ") as caught:
            store.count("wiki") if how == "read" else store.writer("wiki", card=a_card())
        assert ("is being loaded by" if how == "write" else "is in use by") in str(caught.value)
        if how == "write":
            assert store.count("wiki") == 5  # a load does not disturb readers
        with pytest.raises(LockedError, match=f"cannot be deleted: it is in use by process {holder.pid}"):
            store.delete("wiki")
    finally:
        processes.end(holder)
    assert store.count("wiki") == 5
    store.writer("wiki", card=a_card()).close()


def test_a_second_store_in_this_process_is_told_to_share(store):
    load(store, "wiki", passages(5), vectors(5), card=a_card())
    store.count("wiki")
    other = EmbeddedStore(store.path)
    with pytest.raises(LockedError, match="this very process: share one store object"):
        other.count("wiki")
    assert other.card("wiki").count == 5  # the card needs no lock
    store.close()
    assert other.count("wiki") == 5
    other.close()


def test_after_a_fork_the_store_refuses(store):
    load(store, "wiki", passages(5), vectors(5), card=a_card())
    store.count("wiki")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.count("wiki")
        except LockedError as error:
            code = 42 if "does not survive a fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert store.count("wiki") == 5


def test_a_lock_file_that_is_replaced_meanwhile_does_not_count(tmp_path):
    path = tmp_path / "LOCK"
    first = FileLock.take(path, busy="")
    path.unlink()
    second = FileLock.take(path, busy="")
    with pytest.raises(LockedError, match="Busy: process"):
        FileLock.take(path, busy="Busy:")
    first.release()
    first.release()
    second.release()
    FileLock.take(path, busy="").release()


# readers while a load publishes


def test_a_reader_notices_a_new_version_and_removes_the_old(store):
    load(store, "wiki", passages(30), vectors(30), card=a_card())
    old = store.path / "wiki" / "v0001"
    assert nearest(store, vectors(30), 3) == "p00003"
    loader = EmbeddedStore(store.path, options=CollectionOptions(keep=1))
    load(loader, "wiki", passages(40, tag="new "), vectors(40, seed=1), card=a_card(alpha=0.5))
    assert old.is_dir()  # it is being read
    assert store.count("wiki") == 40
    assert nearest(store, vectors(40, seed=1), 33) == "p00033"
    assert not old.is_dir()


def test_a_reader_keeps_serving_while_the_loader_holds_the_new_version(store):
    load(store, "wiki", passages(30), vectors(30), card=a_card())
    assert store.count("wiki") == 30
    loader = EmbeddedStore(store.path)
    load(loader, "wiki", passages(40), vectors(40), card=a_card())
    assert loader.count("wiki") == 40
    assert store.count("wiki") == 30
    loader.close()
    assert store.count("wiki") == 40


def test_a_scroll_stays_in_its_version(store):
    load(store, "wiki", passages(600), vectors(600), card=a_card(), batch=300)
    points = store.scroll("wiki")
    first = next(points)
    load(store, "wiki", passages(10), vectors(10), card=a_card())
    assert store.count("wiki") == 10
    assert len({first.id, *(point.id for point in points)}) == 600
    assert store.count("wiki") == 10
    store.close()
    assert EmbeddedStore(store.path).count("wiki") == 10  # nothing is left locked


def test_searches_run_through_a_publish(store):
    load(store, "wiki", passages(50), vectors(50), card=a_card())
    rounds = threading.Barrier(4)

    def ask():
        try:
            for _ in range(3):
                rounds.wait()
                for _ in range(20):
                    assert nearest(store, vectors(50), 7) == "p00007"
                rounds.wait()
        except BaseException:
            rounds.abort()
            raise

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        with suppress(threading.BrokenBarrierError):
            for _ in range(3):  # the searches begin together with a load, and the next one when all have ended
                rounds.wait()
                load(store, "wiki", passages(50), vectors(50), card=a_card())
                rounds.wait()
        assert [one.exception() for one in asking] == [None] * 3
    assert store.count("wiki") == 50 and store.card("wiki").version == "v0004"


# damage


def published(store):
    load(store, "wiki", passages(300), vectors(300), card=a_card())
    store.close()
    return store.path / "wiki" / "v0001"


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGE = {
    "version.info removed": lambda v: [path.unlink() for path in v.rglob("version.info")],
    "id mappings removed": lambda v: (
        [path.unlink() for path in v.rglob("*id_tracker*") if path.is_file()]
        + [path.unlink() for path in v.rglob("mutable_id*") if path.is_file()]
    ),
    "segment.json cut": lambda v: [path.write_bytes(path.read_bytes()[:10]) for path in v.rglob("segment.json")],
    "segments removed": lambda v: shutil.rmtree(v / "shard" / "segments"),
    "shard removed": lambda v: shutil.rmtree(v / "shard"),
    "shard emptied": lambda v: [shutil.rmtree(v / "shard"), (v / "shard").mkdir()],
    "edge_config.json empty": lambda v: (v / "shard" / "edge_config.json").write_bytes(b""),
    "WAL header": lambda v: overwrite(next((v / "shard" / "wal").glob("open-*")), 0, b"\xff" * 64),
    "version removed": lambda v: shutil.rmtree(v),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_when_the_collection_is_opened(store, damage):
    DAMAGE[damage](published(store))
    with pytest.raises(CorruptError):
        store.count("wiki")
    with pytest.raises(CorruptError):  # and again: no half-open handle, no lock is left
        store.count("wiki")


def test_damage_to_the_small_files_is_found_and_named(store):
    version = published(store)
    for path in (version / "card.json", version.parent / "CURRENT"):
        good = path.read_bytes()
        for bad in (b"", b"\xff\x00", b"[1]", b"{}", b'{"version": "../../etc"}', good[:-1], good[: len(good) // 2]):
            path.write_bytes(bad)
            for call in (store.count, store.card):
                with pytest.raises(CorruptError, match=f"{path.name} .*load the collection again"):
                    call("wiki")
        path.write_bytes(good)
        assert store.count("wiki") == 300
        store.close()
    (version / "card.json").unlink()
    with pytest.raises(CorruptError, match=r"card.json is not a card .*load the collection again"):
        store.count("wiki")


def test_a_flipped_write_ahead_log_costs_only_what_was_not_committed(tmp_path):
    script = """
import os, sys
from collection_cases import *
from xqg_vdb.store.embedded.store import EmbeddedStore
rows, matrix = passages(600), vectors(600)
writer = EmbeddedStore(sys.argv[1]).writer("wiki", card=a_card())
for at in range(0, 600, 100):
    writer.upsert(a_batch(rows[at : at + 100], matrix[at : at + 100]))
    if at == 200:
        writer.commit(300)
os._exit(9)
"""
    run(script, tmp_path).communicate()
    log = max((tmp_path / "wiki" / "v0001" / "shard" / "wal").glob("open-*"), key=lambda path: path.stat().st_blocks)
    data = log.read_bytes()
    used = len(data.rstrip(b"\0"))
    overwrite(log, used // 2, bytes(255 - byte for byte in data[used // 2 : used // 2 + 64]))
    with EmbeddedStore(tmp_path) as store:
        with store.writer("wiki", card=a_card()) as writer:
            assert writer.committed in (0, 300)
        load(store, "wiki", passages(600), vectors(600), card=a_card())
        assert digest((p.id, p.payload["content"]) for p in store.scroll("wiki")) == store.card("wiki").digest


@pytest.mark.parametrize("damage", ["version.info removed", "id mappings removed", "segment.json cut", "shard removed"])
def test_a_damaged_unfinished_version_is_thrown_away_with_a_warning(store, damage, caplog):
    with store.writer("wiki", card=a_card()) as writer:
        for at in range(0, 300, 100):  # the log may still hold the last one, and repair the damage with it
            writer.upsert(a_batch(passages(100, start=at), vectors(100)))
            writer.commit(at + 100)
    DAMAGE[damage](store.path / "wiki" / "v0001")
    with store.writer("wiki", card=a_card()) as writer:
        assert writer.committed == 0
    assert "is thrown away and loaded again" in caplog.text


def test_a_failed_engine_call_breaks_the_writer_and_the_next_one_replays(store):
    class Failing:
        def __init__(self, shard):
            self.shard = shard

        def update(self, operation):
            raise Exception("Service runtime error: something odd")

        def close(self):
            self.shard.close()

    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer.commit(10)
        writer._shard = Failing(writer._shard)
        with pytest.raises(CorruptError, match="something odd"):
            writer.upsert(a_batch(passages(10, start=10), vectors(10)))
        for call in (lambda: writer.commit(20), lambda: writer.publish(a_card()), lambda: writer.upsert(None)):
            with pytest.raises(
                CorruptError, match="failed half way; run the same command again: it continues after row 10"
            ):
                call()
    load(store, "wiki", passages(20), vectors(20), card=a_card())
    assert store.count("wiki") == 20


# the disk


def test_files_that_come_and_go_do_not_disturb_the_counting(tmp_path, monkeypatch):
    """As the engine writes: into a folder of its own, and the file is then moved out of it."""
    (tmp_path / "kept").write_bytes(b"x" * 10_000)
    (tmp_path / ".atomicwrite").mkdir()
    (tmp_path / ".atomicwrite" / "tmpfile.tmp").write_bytes(b"x")
    (tmp_path / "passing").write_bytes(b"x")
    measure, seen = os.lstat, []

    def lstat(path):
        if not seen:  # between the listing and the first look
            (tmp_path / ".atomicwrite" / "tmpfile.tmp").rename(tmp_path / "moved")
            (tmp_path / ".atomicwrite").rmdir()
            (tmp_path / "passing").unlink()
        seen.append(path)
        return measure(path)

    monkeypatch.setattr(os, "lstat", lstat)
    assert bytes_on_disk(tmp_path) >= 10_000
    assert {Path(path).name for path in seen} >= {"kept", "passing"}


def test_a_full_disk_is_noticed_before_the_engine_dies_of_it(tmp_path):
    greedy = EmbeddedStore(tmp_path, free_space_floor=1 << 60)
    with pytest.raises(
        DiskError, match=r"needs 1,099,511,627,776 MiB of free disk, has [\d,]+ MiB; free some space and run"
    ):
        greedy.writer("wiki", card=a_card())
    with EmbeddedStore(tmp_path).writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer.commit(10)
        writer._floor = 1 << 60
        for call in (
            lambda: writer.upsert(a_batch(passages(10, start=10), vectors(10))),
            lambda: writer.commit(20),
            lambda: writer.publish(replace(a_card(), count=10)),
        ):
            with pytest.raises(DiskError, match="continues where it stopped"):
                call()
    with EmbeddedStore(tmp_path).writer("wiki", card=a_card()) as writer:
        assert writer.committed == 10


def test_a_folder_that_may_not_be_written_is_named(store):
    version = published(store)
    version.joinpath("LOCK").unlink(missing_ok=True)
    version.chmod(0o500)
    if os.access(version, os.W_OK):
        pytest.skip("root may write everywhere")
    try:
        assert store.count("wiki") == 20  # in a copy
    finally:
        version.chmod(0o700)
    store.path.chmod(0o500)
    try:
        with pytest.raises(DiskError, match="may not be used"):
            store.writer("other", card=a_card())
    finally:
        store.path.chmod(0o700)


def test_a_path_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = EmbeddedStore(tmp_path / "file")
    for call in (store.names, lambda: store.writer("wiki", card=a_card())):
        with pytest.raises((DataError, DiskError), match=r"file (is not inside a folder|cannot be used)"):
            call()


def test_what_crashes_left_behind_is_swept(store):
    load(store, "wiki", passages(5), vectors(5), card=a_card())
    folder = store.path / "wiki"
    rubbish = [folder / ".trash-v0009-1", folder / "v0000"]
    for path in rubbish:
        path.mkdir()
        (path / "x").write_text("x")
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(6), vectors(6)))
        writer.commit(6)
    shard = folder / "v0002" / "shard"
    leftovers = [shard / "temp_segments" / "half", next((shard / "segments").iterdir()) / ".atomicwriteX"]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    load(store, "wiki", passages(6), vectors(6), card=a_card())
    assert store.count("wiki") == 6
    assert sorted(path.name for path in folder.iterdir()) == ["CURRENT", "load.lock", "v0002"]
    assert not any(leftover.exists() for leftover in leftovers)


# the index builder


def test_the_index_builder_says_how_its_child_ended(tmp_path):
    with pytest.raises(CorruptError, match=r"Building the index of .* failed .*does not exist.*nothing was lost"):
        index_build.build_index(tmp_path / "missing")
    assert isinstance(index_build._failure(-7, "", tmp_path), DiskError)
    assert type(index_build._failure(-9, "", tmp_path)) is XqgError
    assert isinstance(index_build._failure(1, "Kind(WouldBlock)", tmp_path), LockedError)


def test_the_index_builder_does_not_outlive_its_parent(tmp_path):
    command = [sys.executable, "-c", index_build._CHILD, tmp_path, "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the loading process has ended" in done.stderr


def test_the_engines_complaints_become_ours(tmp_path):
    for text, kind in {
        "Service runtime error: failed to open WAL x: Can't init WAL: Kind(WouldBlock)": LockedError,
        "Service internal error: No space left on device (os error 28)": DiskError,
        "Disk quota exceeded (os error 122)": DiskError,
        "File too large (os error 27)": DiskError,
        "Permission denied (os error 13)": DiskError,
        "Too many open files (os error 24)": XqgError,
        'OpenFile, source: Os { code: 24, kind: TooManyOpenFiles, message: "Too many open files" }': XqgError,
        "Read-only file system (os error 30)": DiskError,
        "something new": CorruptError,
    }.items():
        with pytest.raises(kind) as caught, engine.errors(tmp_path):
            raise Exception(text)
        assert str(tmp_path) in str(caught.value) and type(caught.value) is kind


def test_without_a_pointer_nothing_is_deleted_and_everything_says_what_to_do(tmp_path):
    with EmbeddedStore(tmp_path, options=CollectionOptions(keep=2)) as store:
        for number in (1, 2):
            load(store, "wiki", passages(5), vectors(5, seed=number), card=a_card(alpha=number / 10))
        (tmp_path / "wiki" / "CURRENT").unlink()
        said = r"has the finished versions v0001, v0002, and none is published: .*`xqg-vdb rollback wiki --to v0002`"
        calls = (
            lambda: store.admin.gc("wiki", keep=1, unfinished=True),
            lambda: store.admin.rollback("wiki"),
            lambda: store.card("wiki"),
        )
        for call in calls:
            with pytest.raises(DataError, match=said):
                call()
        assert store.admin.rollback("wiki", version="v0001") == "v0001"
        assert store.count("wiki") == 5


def test_a_panic_of_the_engine_is_damage_with_a_way_out(tmp_path):
    class PanicException(BaseException):  # as the engine's binding makes it
        pass

    shard = tmp_path / "wiki" / "v0001" / "shard"
    with pytest.raises(CorruptError, match="xqg-vdb rollback wiki"), engine.errors(shard):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), engine.errors(shard):
        raise KeyboardInterrupt
    for short in (
        Exception("Cannot allocate memory (os error 12)"),
        Exception("failed to build edge edge-search thread pool: Resource temporarily unavailable (os error 11)"),
        PanicException("memory allocation of 8 bytes failed"),
    ):
        with pytest.raises(XqgError, match="not enough memory") as caught, engine.errors(shard):
            raise short
        assert not isinstance(caught.value, CorruptError | LockedError)
        assert type(engine._failure(1, f"Traceback\nException: {short}", shard)) is XqgError


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"f00d"', '"f00e"'),
        lambda text: text.replace('"alpha": 0.3', '"alpha": 0.4'),
        lambda text: text.replace('"count": 20', '"count": "20"'),
        lambda text: text.replace('"query_means": {}', '"query_means": {"en": 3}'),
        lambda text: text.replace('"storage": {}', '"storage": [1]'),
        lambda text: "[" * 100_000,
        lambda text: text[: len(text) // 2],
        lambda text: "\x00" * 20,
    ],
)
def test_a_changed_card_is_damage(tmp_path, change):
    with EmbeddedStore(tmp_path) as store:
        load(store, "wiki", passages(20), vectors(20), card=a_card())
    card = tmp_path / "wiki" / "v0001" / "card.json"
    before = card.read_text()
    card.write_text(change(before))
    assert card.read_text() != before
    with EmbeddedStore(tmp_path) as store:
        for call in (store.card, store.count, store.admin.state):
            with pytest.raises(CorruptError, match="load the collection again"):
                call("wiki")


def test_a_card_of_an_earlier_version_without_checksum_is_read(tmp_path):
    with EmbeddedStore(tmp_path) as store:
        load(store, "wiki", passages(20), vectors(20), card=a_card())
        path = tmp_path / "wiki" / "v0001" / "card.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"}))
        assert store.card("wiki").count == 20


def test_a_collection_in_a_folder_that_may_not_be_written_is_searched_in_a_copy(tmp_path, monkeypatch, caplog):
    with EmbeddedStore(tmp_path / "store") as store:
        load(store, "wiki", passages(20), vectors(20), card=a_card())
        expected = store.search("wiki", vectors(3, seed=1), Search(5))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in (tmp_path / "store").rglob("*"))
    with EmbeddedStore(tmp_path / "store") as store:
        assert store.search("wiki", vectors(3, seed=1), Search(5)) == expected
        assert store.admin.state("wiki").points == 20
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert sorted((str(path), path.stat().st_mtime_ns) for path in (tmp_path / "store").rglob("*")) == before
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "a copy in" in caplog.text


# the folder of versions, without an engine


def a_folder(path, *numbers, published=None, kept=()):
    """Version folders with cards; finished ones where they are published or kept."""
    folder = Folder(path / "wiki")
    for number in numbers:
        version = Version(folder.path / f"v{number:04d}")
        version.path.mkdir(parents=True)
        done = number == published or number in kept
        version.write_card(replace(a_card(), version=version.name, created="then" if done else ""))
    if published:
        names = [f"v{number:04d}" for number in (published, *kept)]
        folder.pointer.write_text(json.dumps({"version": names[0], "kept": names[1:]}))
    return folder


def there(folder):
    return [version.number for version in folder.versions()]


def test_versions_are_counted_beyond_four_digits(tmp_path):
    assert Folder(tmp_path / "none").versions() == [] and Folder(tmp_path / "none").next_version().name == "v0001"
    folder = a_folder(tmp_path, 2, 9999, 10000, 10)
    for odd in ("v1", "v00", "v0003x", "xv0003", "indexing"):
        (folder.path / odd).mkdir()
    (folder.path / "v20000").touch()  # a file is no version
    (folder.path / "v20001").symlink_to("nowhere")
    assert there(folder) == [2, 10, 9999, 10000] and folder.next_version().name == "v10001"
    assert (folder.name, folder.pointer, folder.stamp()) == ("wiki", folder.path / "CURRENT", None)
    version = folder.versions()[0]
    assert (version.shard, version.lock) == (version.path / "shard", version.path / "LOCK")


def test_a_published_version_keeps_the_latest_before_it(tmp_path):
    folder = a_folder(tmp_path, 1, 2, 3, 4, 5)
    versions = folder.versions()
    for version, keep, kept in (
        (versions[0], 3, []), (versions[1], 3, [1]), (versions[2], 3, [2, 1]), (versions[3], 3, [3, 2]),
        (versions[4], 1, []), (versions[3], 2, [5]), (versions[3], 2, [5]), (versions[4], 2, [4]),
    ):  # fmt: skip
        before = folder.stamp()
        folder.point_to(version, keep=keep)
        assert folder.stamp() != before
        assert folder.current() == version and [old.number for old in folder.kept()] == kept
    folder.replace_by(versions[0])
    assert folder.current() == versions[0] and [old.number for old in folder.kept()] == [4]
    shutil.rmtree(versions[3].path)
    assert folder.kept() == []  # what is named and gone cannot be gone back to


def test_only_what_nobody_needs_is_swept(tmp_path):
    folder = a_folder(tmp_path, 1, 2, 3, 4, 5, 6, published=5, kept=(3,))
    with FileLock.take(folder.versions()[1].lock, busy=""):
        folder.sweep()
        assert there(folder) == [2, 3, 5, 6] and not folder.remove_unread(folder.versions()[0])
    assert not folder.remove_unread(Version(folder.path / "v0001"))  # it is gone
    folder.sweep()
    assert there(folder) == [3, 5, 6]
    folder.pointer.unlink()
    folder.sweep()
    assert there(folder) == [3, 5, 6]  # without a pointer nobody knows
    assert folder.remove_unread(folder.versions()[0]) and there(folder) == [5, 6]


def test_what_is_said_of_versions(tmp_path):
    folder = a_folder(tmp_path, 1, 2, 3, 4, published=2, kept=(1,))
    (folder.path / "v0004" / "card.json").write_text("no card")
    states = version_states(folder)
    assert [(state.name, state.published, state.finished) for state in states] == [
        ("v0001", False, True), ("v0002", True, True), ("v0003", False, False), ("v0004", False, False),
    ]  # fmt: skip
    assert [state.card is None for state in states] == [False, False, False, True]
    folder.pointer.unlink()  # lost: those that were finished say so themselves
    states = version_states(folder)
    assert [(state.published, state.finished) for state in states] == [(False, True)] * 2 + [(False, False)] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"), ("[]", "is damaged"), ("{}", "is damaged"), ("\xff", "is damaged"),
        ('{"version": "v0001", "kept": 1}', "is damaged"), ("[" * 100_000, "is damaged"),
        ('{"version": 1}', "names no version: 1"), ('{"version": "../x"}', r"names no version: '\.\./x'"),
        ('{"version": "v1"}', "names no version: 'v1'"),
        ('{"version": "v0001", "kept": ["v0002", null]}', "names no version: None"),
    ],
)  # fmt: skip
def test_a_pointer_that_is_none_is_damage(tmp_path, text, said):
    folder = a_folder(tmp_path, 1)
    folder.pointer.write_bytes(text.encode("latin-1"))
    for ask in (folder.current, folder.kept):
        with pytest.raises(CorruptError, match=f"CURRENT {said}.*; load the collection again"):
            ask()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1}', '{"rows": null, "points": 1}', "[" * 100_000])
def test_a_cursor_that_is_none_is_damage(tmp_path, text):
    version = a_folder(tmp_path, 1).versions()[0]
    assert version.cursor() == (0, 0)
    version.write_cursor(rows=7, points=5)
    assert version.cursor() == (7, 5)
    (version.path / "cursor.json").write_text(text)
    with pytest.raises(CorruptError, match=r"cursor\.json is damaged"):
        version.cursor()


def test_space_is_asked_for_before_it_is_taken(store, monkeypatch):
    asked = []
    monkeypatch.setattr(writing, "require_space", lambda path, needed: asked.append((path.name, needed)))
    margin, floor = 100 * MIB, 0
    size = sum(checked(a_batch(passages(10), vectors(10)), card=a_card()).sizes)
    with EmbeddedStore(store.path / "a", free_space_floor=floor).writer("wiki", card=a_card()) as writer:
        for at in (0, 10):
            writer.upsert(a_batch(passages(10, start=at), vectors(10)))
        writer.upsert(a_batch([], vectors(0)))
        writer.commit(20)
        writer.commit(20)
        writer.upsert(a_batch(passages(10, start=20), vectors(10)))
        before = list(asked)
        writer.commit(30)
        writer.publish(finished(a_card(), passages(30)))
    more = 30 - 20  # ids of two digits, whose payloads are as long
    assert before == [
        ("wiki", margin), ("v0001", 2 * size + margin), ("v0001", before[2][1]), ("v0001", before[2][1]),
        ("v0001", margin), ("v0001", before[5][1]),
    ]  # fmt: skip
    assert abs(before[2][1] - (4 * size + margin)) <= 8 * more and abs(before[5][1] - (2 * size + margin)) <= 8 * more
    assert [name for name, _ in asked[6:]] == ["v0001", "v0001"] and asked[-1][1] > margin
    asked.clear()
    with EmbeddedStore(store.path / "b").writer("wiki", card=a_card()):
        assert asked == [("wiki", 256 * MIB)]


@pytest.mark.parametrize("lost", [0, 1])
def test_an_unfinished_version_with_fewer_points_than_it_committed_is_thrown_away(store, lost, caplog):
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer.commit(10)
    Version(store.path / "wiki" / "v0001").write_cursor(rows=7, points=10 + lost)
    with store.writer("wiki", card=a_card()) as writer:
        assert writer.committed == (0 if lost else 7)
    assert ("is thrown away and loaded again: 10 points of 11" in caplog.text) == bool(lost)


def test_what_nobody_committed_is_in_no_version(store):
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer._shard.flush()
    load(store, "wiki", passages(5), vectors(5), card=a_card())
    assert store.count("wiki") == 5


def test_a_version_without_a_commit_or_of_another_build_is_begun_anew(store):
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
    with store.writer("wiki", card=a_card()) as writer:
        assert writer.committed == 0
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer.commit(1)
    with store.writer("wiki", card=a_card(alpha=0.4)) as writer:
        assert writer.committed == 0
    assert there(Folder(store.path / "wiki")) == [1]
    with pytest.raises(XqgError, match="This writer is closed; ask the store for another one"):
        writer.commit(1)
    writer.close()  # once more does nothing


def test_a_version_that_was_rolled_back_from_is_no_rubbish(tmp_path):
    with EmbeddedStore(tmp_path, options=CollectionOptions(keep=3)) as store:
        for seed in (1, 2):
            load(store, "wiki", passages(5), vectors(5, seed=seed), card=a_card(alpha=seed / 10))
        assert store.admin.rollback("wiki") == "v0001"
        with store.writer("wiki", card=a_card(alpha=0.5)):
            assert there(Folder(tmp_path / "wiki")) == [1, 2, 3]
        assert store.admin.rollback("wiki", version="v0002") == "v0002" and store.count("wiki") == 5


def test_a_version_that_cannot_be_begun_leaves_nothing(store, monkeypatch):
    def none(*_):
        raise DiskError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "create", none)
        with pytest.raises(DiskError, match="The disk is full"):
            store.writer("wiki", card=a_card())
    assert there(Folder(store.path / "wiki")) == [] and store.names() == []
    load(store, "wiki", passages(5), vectors(5), card=a_card())  # nobody holds its lock
    assert store.count("wiki") == 5


def test_a_copy_takes_the_place_of_its_version_in_one_step(tmp_path, monkeypatch):
    with EmbeddedStore(tmp_path, options=CollectionOptions(keep=2)) as store:
        for seed in (1, 2):
            load(store, "wiki", passages(5), vectors(5, seed=seed), card=a_card(alpha=seed / 10))
        store.count("wiki")
    folder, asked = Folder(tmp_path / "wiki"), []
    version = folder.current()
    (folder.path / "indexing").mkdir()
    (folder.path / "indexing" / "half").touch()  # of a process that was killed
    monkeypatch.setattr(writing, "require_space", lambda path, needed: asked.append((path, needed)))
    for floor in (0, 1 << 40):
        copy = writing.copy_to_index(folder, version, free_space_floor=floor)
    assert asked == [(folder.path, 2 * bytes_on_disk(version.path) + 100 * MIB), (folder.path, 1 << 40)]
    assert copy.path == folder.path / "indexing" and there(folder) == [1, 2]
    left = {path.name for path in copy.path.iterdir()}
    assert left == {path.name for path in version.path.iterdir()} - {"LOCK", "card.json"}
    writing.publish_copy(folder, copy, version.card())
    assert folder.current().name == "v0003" and [kept.name for kept in folder.kept()] == ["v0001"]
    assert folder.current().card() == replace(version.card(), version="v0003") and not copy.path.exists()
    with EmbeddedStore(tmp_path) as store:
        assert store.count("wiki") == 5


def test_a_count_that_is_not_the_cards_is_not_published(store):
    with store.writer("wiki", card=a_card()) as writer:
        writer.upsert(a_batch(passages(10), vectors(10)))
        writer.commit(10)
        with pytest.raises(CorruptError, match="holds 10 points, 11 were expected: the input changed"):
            writer.publish(finished(a_card(), passages(11)))
    assert store.names() == [] and not (store.path / "wiki" / "v0001" / "card.json").exists()
    load(store, "wiki", passages(10), vectors(10), card=a_card())
    assert store.count("wiki") == 10
