"""The build folder: whatever happens to it, committed rows come back or a CorruptError does, never anything else."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError, MismatchError
from xqg_vdb.index.build import Build
from xqg_vdb.texts.queries import row_digest
from xqg_vdb.types import GeneratedQueries, Passage

DIM = 3


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """A killed process loses nothing that the system has; the disk would make these tests slow."""

    def fsync(_):
        return None

    monkeypatch.setattr(os, "fsync", fsync)


def _rows(start, stop, langs=("sw", "yo")):
    """What `append` takes for rows start..stop, a pure function of the row numbers."""
    numbers = np.arange(start, stop)
    vectors = (numbers[:, None] * 10 + np.arange(DIM)).astype(np.float32)
    sums = {lang: (vectors + ord(lang[0]), (numbers % 6).astype(np.int32)) for lang in langs}
    return [f"id\n{i}" for i in numbers], numbers.astype(np.uint64) * 7, vectors, sums


def _fill(folder, *chunks, complete=False, langs=("sw", "yo")):
    with Build.create_or_resume(folder, dim=DIM, fingerprint="f") as writer:
        for start, stop in chunks:
            writer.append(*_rows(start, stop, langs))
            writer.commit(complete=complete)


def _assert_rows(folder, rows, langs=("sw", "yo")):
    build = Build.open(folder)
    ids, digests, passages, sums = _rows(0, rows, langs)
    assert build.rows == rows and list(build.ids) == ids
    np.testing.assert_array_equal(build.digests, digests)
    np.testing.assert_array_equal(build.passages, passages)
    assert set(build.sums) == set(build.counts) == (set(langs) if rows else set(build.sums))
    for lang, (vectors, counts) in sums.items():
        if rows:
            np.testing.assert_array_equal(build.sums[lang], vectors)
            np.testing.assert_array_equal(build.counts[lang], counts)
    build.verify()


def test_a_build_is_ordinary_files(tmp_path):
    _fill(tmp_path / "b", (0, 4), (4, 7), complete=True)
    build = Build.open(tmp_path / "b")
    assert (build.rows, build.dim, build.fingerprint, build.complete) == (7, DIM, "f", True)
    assert build.ids[2] == "id\n2" and build.ids[-1] == "id\n6" and build.ids[1:3] == ["id\n1", "id\n2"]
    with pytest.raises(IndexError):
        build.ids[7]
    _assert_rows(tmp_path / "b", 7)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "counts.sw.npy", "counts.yo.npy", "digests.npy", "ids", "lock", "manifest.json", "passages.npy",
        "queries.sw.npy", "queries.yo.npy",
    ]  # fmt: skip
    loaded = np.load(tmp_path / "b" / "queries.sw.npy", allow_pickle=False)
    assert loaded.dtype == np.float32 and loaded.shape == (7, DIM)
    np.testing.assert_array_equal(loaded, build.sums["sw"])
    assert np.load(tmp_path / "b" / "counts.sw.npy", mmap_mode="r").dtype == np.int32
    assert [json.loads(line) for line in (tmp_path / "b" / "ids").read_bytes().split(b"\n")[:-1]] == list(build.ids)
    with pytest.raises(ValueError, match="read-only"):
        build.passages[0, 0] = 1


def test_an_empty_build_can_be_opened(tmp_path):
    with Build.create_or_resume(tmp_path / "b", dim=DIM, fingerprint="f") as writer:
        assert writer.rows == 0 and not writer.complete and len(writer.digest_prefix()) == 0
    _assert_rows(tmp_path / "b", 0)
    assert np.load(tmp_path / "b" / "passages.npy").shape == (0, DIM)
    with pytest.raises(DataError, match="holds no kept vectors"):
        Build.open(tmp_path / "nothing")


def test_np_load_works_at_any_time(tmp_path):
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        for stop in range(1, 6):
            writer.append(*_rows(stop - 1, stop))
            assert np.load(tmp_path / "passages.npy").shape == (stop - 1, DIM)
            assert np.load(tmp_path / "passages.npy", mmap_mode="r").shape == (stop - 1, DIM)
            writer.commit()
            assert np.load(tmp_path / "passages.npy").shape == (stop, DIM)
            assert Build.open(tmp_path).rows == stop


def test_late_and_missing_languages_are_zero_rows(tmp_path):
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        writer.append(*_rows(0, 2, ()))
        writer.append(*_rows(2, 3, ("ha",)))
        writer.append(*_rows(3, 5, ("sw",)))
        writer.commit()
        writer.append(*_rows(5, 6)[:3])
        writer.commit()
    build = Build.open(tmp_path)
    vectors = _rows(0, 6)[2]
    expected = np.zeros((6, DIM), np.float32)
    expected[2] = vectors[2] + ord("h")
    np.testing.assert_array_equal(build.sums["ha"], expected)
    assert build.counts["ha"].tolist() == [0, 0, 2, 0, 0, 0]
    assert build.counts["sw"].tolist() == [0, 0, 0, 3, 4, 0]
    build.verify()


def test_uncommitted_rows_and_languages_are_cut_off(tmp_path):
    _fill(tmp_path, (0, 3))
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        writer.append(*_rows(90, 99, ("sw", "zu")))
    _assert_rows(tmp_path, 3)  # a reader does not see them
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        assert writer.rows == 3 and list(writer.ids_prefix()) == ["id\n0", "id\n1", "id\n2"]
        assert writer.digest_prefix().tolist() == [0, 7, 14]
        assert not (tmp_path / "queries.zu.npy").exists()
        writer.append(*_rows(3, 5))
        writer.commit()
    _assert_rows(tmp_path, 5)


def test_complete_is_what_the_last_commit_said(tmp_path):
    _fill(tmp_path, (0, 2), complete=True)
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        assert writer.complete
        writer.append(*_rows(2, 3))
        assert Build.open(tmp_path).complete
        writer.commit()
    assert not Build.open(tmp_path).complete


def test_another_encoder_is_refused(tmp_path):
    _fill(tmp_path, (0, 2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for dim, fingerprint in ((DIM, "g"), (4, "f")):
        with pytest.raises(MismatchError) as caught:
            Build.create_or_resume(tmp_path, dim=dim, fingerprint=fingerprint)
        assert str(caught.value) == (
            f"{tmp_path} was built by encoder f (3 dimensions), this one is {fingerprint} ({dim}); "
            "use the first encoder, or give another folder."
        )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "passages.npy").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds passages\.npy but no manifest\.json; give a new or empty folder"):
        Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f")
    assert (tmp_path / "passages.npy").read_bytes() == b"mine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="File exists"):
        Build.create_or_resume(tmp_path / "file", dim=DIM, fingerprint="f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": np.zeros((2, DIM))}, r"passages: expected float32 \(2, 3\), got float64 \(2, 3\)\."),
        ({"passages": np.zeros((3, DIM), np.float32)}, r"passages: expected float32 \(2, 3\), got float32 \(3, 3\)\."),
        ({"passages": np.full((2, DIM), np.nan, np.float32)}, r"passages: row 0 is not finite"),
        ({"digests": np.zeros(2, np.int64)}, r"digests: expected uint64 \(2,\), got int64 \(2,\)\."),
        ({"sums": {"sw": (np.zeros((2, 4), np.float32), np.zeros(2, np.int32))}}, "query sums of sw: expected"),
        ({"sums": {"sw": (np.zeros((2, 3), np.float32), np.zeros(2))}}, "query counts of sw: expected int32"),
        (
            {"sums": {"../x": (np.zeros((2, 3), np.float32), np.zeros(2, np.int32))}},
            "'../x' is not a normalised language",
        ),
        ({"ids": ["a", "\ud800"]}, "An id cannot be written as UTF-8"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(tmp_path, change, message):
    ids, digests, passages, sums = _rows(0, 2)
    rows = {"ids": ids, "digests": digests, "passages": passages, "sums": sums, **change}
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        with pytest.raises(DataError, match=message):
            writer.append(rows["ids"], rows["digests"], rows["passages"], rows["sums"])
        writer.append(ids, digests, passages, sums)
        writer.commit()
    _assert_rows(tmp_path, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "commit", "reopen", "crash"])), max_size=8),
    st.lists(st.sampled_from(["sw", "yo", "ha"]), max_size=3),
)
def test_any_chunking_is_the_one_shot(tmp_path_factory, steps, langs):
    folder = tmp_path_factory.mktemp("chunks")
    done = committed = 0
    writer = Build.create_or_resume(folder, dim=DIM, fingerprint="f")
    for size, then in steps:
        writer.append(*_rows(done, done + size, langs))
        done += size
        if then in ("commit", "reopen"):
            writer.commit()
            committed = done
        if then in ("reopen", "crash"):
            writer.close()
            writer = Build.create_or_resume(folder, dim=DIM, fingerprint="f")
            assert writer.rows == committed
            done = committed
    writer.commit(complete=True)
    writer.close()
    _assert_rows(folder, done, langs)
    one_shot = tmp_path_factory.mktemp("once")
    with Build.create_or_resume(one_shot, dim=DIM, fingerprint="f") as writer:
        if done:
            writer.append(*_rows(0, done, langs))
        writer.commit(complete=True)
    if done:
        for name in {p.name for p in one_shot.iterdir()} - {"lock"}:
            assert (folder / name).read_bytes() == (one_shot / name).read_bytes(), name


# damage


def _restore(folder, contents):
    for path in folder.iterdir():
        path.unlink()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("tail", [False, True])
def test_every_file_cut_at_every_byte(tmp_path, tail):
    _fill(tmp_path, (0, 1), (1, 2), langs=("sw",))
    if tail:
        with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
            writer.append(*_rows(2, 3, ("sw",)))  # bytes that are not committed may be lost
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    intact = {"read": 0, "resumed": 0}
    for name, data in contents.items():
        for size in range(len(data)):
            _restore(tmp_path, {**contents, name: data[:size]})
            try:
                _assert_rows(tmp_path, 2, ("sw",))
                intact["read"] += 1
            except CorruptError as error:
                assert name in str(error)
            try:
                _fill(tmp_path, (2, 3), langs=("sw",))
            except CorruptError as error:
                assert name in str(error)
            else:
                intact["resumed"] += 1
                _assert_rows(tmp_path, 3, ("sw",))
    assert (min(intact.values()) > 20) is tail


def test_every_file_lost(tmp_path):
    _fill(tmp_path, (0, 2))
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for name in set(contents) - {"lock"}:
        _restore(tmp_path, {n: d for n, d in contents.items() if n != name})
        kind, words = (
            (DataError, "manifest") if name == "manifest.json" else (CorruptError, f"has lost its file {name}")
        )
        with pytest.raises(kind, match="no kept vectors" if name == "manifest.json" else words):
            Build.open(tmp_path)
        with pytest.raises(kind, match=words):
            Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f")


def test_every_byte_flipped_is_found_by_verify(tmp_path):
    _fill(tmp_path, (0, 2), langs=("sw",))
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    for name, data in contents.items():
        for at in range(len(data)):
            _restore(tmp_path, {**contents, name: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]})
            try:
                Build.open(tmp_path).verify()
            except CorruptError as error:
                assert name in str(error)
            else:
                # the row count in a header is not used: the manifest has it
                assert name.endswith(".npy") and at < 128
                _assert_rows(tmp_path, 2, ("sw",))


def test_a_manifest_from_elsewhere_cannot_leave_the_folder(tmp_path):
    from xqg_vdb.index.build import Manifest

    _fill(tmp_path, (0, 2))
    Manifest("f", DIM, 2, 10, ("../../etc",)).write(tmp_path)
    with pytest.raises(CorruptError, match="is not a language code"):
        Build.open(tmp_path)
    Manifest("f", DIM, -1).write(tmp_path)
    with pytest.raises(CorruptError, match="a count is no whole number"):
        Build.open(tmp_path)
    Manifest("f", DIM, 2, 14, ("sw", "yo")).write(tmp_path)
    with pytest.raises(CorruptError, match="does not hold the 2 ids"):
        list(Build.open(tmp_path).ids)


# crashes

MUTATING = {"write", "truncate", "replace", "unlink", "mkdir", "open"}


def _work(folder):
    """A run that starts or goes on, in chunks of 2 rows, until there are 6; its language comes with the third row."""
    with Build.create_or_resume(folder, dim=DIM, fingerprint="f") as writer:
        while writer.rows < 6:
            for row in (writer.rows, writer.rows + 1):
                ids, digests, vectors, sums = _rows(row, row + 1, ("sw",))
                writer.append(ids, digests, vectors, sums if row > 1 else {})
            writer.commit(complete=writer.rows == 4)


def _assert_work(folder, rows):
    build = Build.open(folder)
    ids, digests, passages, sums = _rows(0, rows)
    assert build.rows == rows and list(build.ids) == ids and build.digests.tolist() == digests.tolist()
    np.testing.assert_array_equal(build.passages, passages)
    assert set(build.sums) == ({"sw"} if rows > 2 else set())
    for vectors in build.sums.values():
        np.testing.assert_array_equal(vectors, np.where(np.arange(rows)[:, None] > 1, sums["sw"][0], 0))
    build.verify()


def _at_call(number, action):
    """Do `action` just before the call with that number that changes files."""
    left = [number]

    def watch(frame, event, argument):
        writes = event == "c_call" and argument.__name__ in MUTATING and "xqg_vdb" in frame.f_code.co_filename
        if writes or (event == "call" and frame.f_code.co_name == "fsync"):
            left[0] -= 1
            if left[0] == 0:
                sys.setprofile(None)
                action()

    sys.setprofile(watch)


def _committed(folder):
    return Build.open(folder).rows if (folder / "manifest.json").exists() else 0


def test_killed_before_every_call_that_changes_files(tmp_path):
    seen = set()
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            _at_call(number, lambda: os._exit(137))
            _work(folder)
            os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        rows = _committed(folder)
        seen.add(rows)
        if rows:
            _assert_work(folder, rows)
        _work(folder)
        _assert_work(folder, 6)
        assert Build.open(folder).complete and not list(folder.glob(".*"))
        if finished:
            break
    assert seen == {0, 2, 4, 6} and number > 60


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_call(tmp_path, code):
    def fail():
        raise OSError(code, os.strerror(code))

    for number in range(1, 1000):
        folder = tmp_path / str(number)
        _at_call(number, fail)
        try:
            _work(folder)
            finished = True
        except (DiskError, CorruptError, OSError) as error:
            finished = False
            # clean-up that fails is not ours to translate
            assert isinstance(error, DiskError if code == errno.ENOSPC else CorruptError) or error.errno == code
        finally:
            sys.setprofile(None)
        rows = _committed(folder)
        if rows:
            _assert_work(folder, rows)
        _work(folder)
        _assert_work(folder, 6)
        if finished:
            break
    assert number > 60


def test_a_writer_that_failed_is_closed(tmp_path, monkeypatch):
    from xqg_vdb.index.build import ArrayFile

    _fill(tmp_path, (0, 2))
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(ArrayFile, "append", lambda *_: (_ for _ in ()).throw(DiskError("full")))
            with pytest.raises(DiskError):
                writer.append(*_rows(2, 3))
        with pytest.raises(ValueError, match="closed"):
            writer.append(*_rows(2, 3))
    _fill(tmp_path, (2, 3))
    _assert_rows(tmp_path, 3)


def test_one_writer_at_a_time(tmp_path):
    with Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f") as writer:
        writer.append(*_rows(0, 2))
        with pytest.raises(LockedError, match=f"is used by process {os.getpid()} on "):
            Build.create_or_resume(tmp_path, dim=DIM, fingerprint="f")
        code = (
            f"from xqg_vdb.index.build import Build; Build.create_or_resume({str(tmp_path)!r}, dim=3, fingerprint='f')"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"LockedError: {tmp_path} is used by process {os.getpid()} on " in run.stderr
        writer.commit()
    _assert_rows(tmp_path, 2)


def test_digests_tell_changed_input():
    passage, queries = Passage("a", "text", "title"), GeneratedQueries("a", {"sw": ("x", "y"), "ha": ("z",)})
    same = row_digest(
        Passage("a", "text", "title", "en", {"m": 1}), GeneratedQueries("a", {"ha": ("z",), "sw": ("x", "y")})
    )
    assert row_digest(passage, queries) == same and 0 <= same < 2**64
    others = [
        row_digest(passage, None),
        row_digest(Passage("a", "text "), queries),
        row_digest(Passage("a", "title text"), queries),
        row_digest(Passage("b", "text", "title"), queries),
        row_digest(passage, GeneratedQueries("a", {"sw": ("y", "x"), "ha": ("z",)})),
    ]
    assert len({same, *others}) == 6
