"""The build folder: whatever happens to it, rows come back as they were or a CorruptError does, never anything else."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError, MismatchError
from xqg_vdb.files import lock_folder
from xqg_vdb.index import build as building
from xqg_vdb.index.build import Build, Window, _Manifest, fill_build
from xqg_vdb.texts.queries import row_digest
from xqg_vdb.types import GeneratedQueries, Passage

DIM = 3


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Two rows; and no fsync: a killed process loses nothing that the system has."""
    monkeypatch.setattr(building, "WINDOW", 2)
    monkeypatch.setattr(os, "fsync", fsync)


def fsync(_):
    return None


def digests_of(numbers):
    return np.array(numbers, np.uint64) * np.uint64(7)


def window_of(numbers, digests=None):
    """The rows of these numbers: `yo` has queries in odd ones, `sw` from the third on."""
    rows = np.array(numbers)
    vectors = (rows[:, None] * 10 + np.arange(DIM)).astype(np.float32)
    sums = {}
    for lang, has in (("sw", rows > 1), ("yo", rows % 2 == 1)):
        sums[lang] = np.where(has[:, None], vectors + ord(lang[0]), 0).astype(np.float32), has.astype(np.int32) * 3
    return Window([f"id\n{i}" for i in numbers], digests_of(numbers) if digests is None else digests, vectors, sums)


def fill(folder, numbers, *, encode=window_of, dim=DIM, fingerprint="f"):
    """Build, or go on with, the rows of these numbers; which were encoded."""
    encoded = []

    def encoding(part, digests):
        encoded.extend(part)
        return encode(part, digests)

    fill_build(
        folder, numbers, dim=dim, fingerprint=fingerprint, digests=digests_of, encode=encoding, say=lambda done: None
    )
    return encoded


def assert_rows(folder, n, *, complete=True):
    build = Build.open(folder)
    assert (build.rows, build.complete, list(build.ids())) == (n, complete, [f"id\n{i}" for i in range(n)])
    np.testing.assert_array_equal(build.digests(), digests_of(range(n)))
    np.testing.assert_array_equal(build.passages(), window_of(range(n)).passages)
    for start, window in zip(range(0, n, 2), build.windows(), strict=True):
        assert_equal(window, window_of(range(start, min(start + 2, n))))


def assert_equal(window, expected):
    assert list(window.ids) == list(expected.ids)
    np.testing.assert_array_equal(window.passages, expected.passages)
    filled = {lang for lang, (_, counts) in expected.sums.items() if counts.any()}
    assert set(window.sums) == filled
    for lang in filled:
        np.testing.assert_array_equal(window.sums[lang][0], expected.sums[lang][0])
        np.testing.assert_array_equal(window.sums[lang][1], expected.sums[lang][1])


def test_a_build_is_ordinary_files(tmp_path):
    fill(tmp_path / "b", range(7))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "000000.npz", "000001.npz", "000002.npz", "000003.npz", "lock", "manifest.json",
    ]  # fmt: skip
    assert_rows(tmp_path / "b", 7)
    with np.load(tmp_path / "b" / "000001.npz", allow_pickle=False) as arrays:
        assert arrays["sum.sw"].dtype == np.float32 and arrays["count.sw"].tolist() == [3, 3]


def test_an_empty_build_can_be_opened(tmp_path):
    fill(tmp_path / "b", [])
    assert_rows(tmp_path / "b", 0)
    with pytest.raises(DataError, match="holds no vectors"):
        Build.open(tmp_path / "nothing")


@given(st.lists(st.integers(0, 6)))
@settings(max_examples=30)
def test_rows_are_taken_in_any_order(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "taken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "WINDOW", 2)
        fill(folder, range(7))
    assert_equal(Build.open(folder).take(np.array(rows, np.int64)), window_of(rows or np.zeros(0, np.int64)))


@pytest.mark.parametrize("n", [4, 5])
def test_a_stopped_build_goes_on_with_whole_windows(tmp_path, n):
    def stopping(part, digests):
        if 2 in part:
            raise KeyboardInterrupt
        return window_of(part, digests)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "stopped", range(n), encode=stopping)
    assert_rows(tmp_path / "stopped", 2, complete=False)
    assert fill(tmp_path / "stopped", range(n)) == list(range(2, n))
    assert fill(tmp_path / "stopped", range(n)) == []
    fill(tmp_path / "once", range(n))
    for path in (tmp_path / "once").glob("*[!k]"):
        assert (tmp_path / "stopped" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("numbers", "row"), [([0, 1, 2, 3], 5), (range(6), 6), ([0, 9, 2, 3, 4], 2), ([], 1), ([0], 2)]
)
def test_another_corpus_is_refused(tmp_path, numbers, row):
    fill(tmp_path, range(5))
    with pytest.raises(MismatchError, match=rf"changed since .* \(first at passage {row}\): .*--reuse {tmp_path} "):
        fill(tmp_path, numbers)
    assert_rows(tmp_path, 5)


def test_a_whole_last_window_does_not_grow(tmp_path):
    fill(tmp_path, range(4))
    with pytest.raises(MismatchError, match="first at passage 5"):
        fill(tmp_path, range(5))
    assert_rows(tmp_path, 4)


def test_another_encoder_is_refused(tmp_path):
    fill(tmp_path, range(2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for dim, fingerprint in ((DIM, "g"), (4, "f")):
        with pytest.raises(MismatchError) as caught:
            fill(tmp_path, [], dim=dim, fingerprint=fingerprint)
        assert str(caught.value) == (
            f"{tmp_path} was built by encoder f (3 dimensions), this one is {fingerprint} ({dim}); "
            "use the first encoder, or give another folder."
        )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "passages.npy").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds passages\.npy but no manifest\.json; give a new or empty folder"):
        fill(tmp_path, [])
    assert (tmp_path / "passages.npy").read_bytes() == b"mine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="File exists"):
        fill(tmp_path / "file", [])


def test_a_build_of_another_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_SCHEMA", 1)
    _Manifest("f", DIM, 512, 2).write(tmp_path)
    monkeypatch.undo()
    for opening in (Build.open, lambda path: fill(path, [])):
        with pytest.raises(MismatchError, match=r"another version .*\(schema 1\).* give another --build folder"):
            opening(tmp_path)


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
    def damaged(part, digests):
        window = window_of(part, digests)
        rows = {name: getattr(window, name) for name in ("ids", "digests", "passages", "sums")}
        return Window(**{**rows, **change})

    with pytest.raises(DataError, match=message):
        fill(tmp_path, range(2), encode=damaged)
    assert_rows(tmp_path, 0, complete=False)
    fill(tmp_path, range(2))
    assert_rows(tmp_path, 2)


# damage


def restore(folder, contents):
    for path in folder.iterdir():
        path.unlink()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def assert_found(folder, contents, name, data):
    """What was damaged is named, or nothing is wrong; without a damaged window, the build ends as it was."""
    restore(folder, {**contents, name: data})
    try:
        assert_rows(folder, 3)
    except CorruptError as error:
        assert name in str(error)
        if name.endswith(".npz"):
            assert "delete that file and run the same load again" in str(error)
            (folder / name).unlink()
            fill(folder, range(3))
            assert_rows(folder, 3)
        return True
    return False


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage_at_every_byte_is_found_when_the_window_is_read(tmp_path, damage):
    fill(tmp_path, range(3))
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    for name, data in contents.items():
        found, places = 0, range(0, len(data), 1 if name == "manifest.json" else 3)
        for at in places:
            bad = data[:at] if damage == "cut" else data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            found += assert_found(tmp_path, contents, name, bad)
        # what is left of a zip is what nobody reads: times, versions, attributes
        assert found == len(places) if name == "manifest.json" or damage == "cut" else found > len(places) / 2


def test_every_file_lost(tmp_path):
    fill(tmp_path, range(4))
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    for name in contents:
        restore(tmp_path, {n: d for n, d in contents.items() if n != name})
        if name == "manifest.json":
            with pytest.raises(DataError, match="holds no vectors"):
                Build.open(tmp_path)
            with pytest.raises(DataError, match="no manifest"):
                fill(tmp_path, range(4))
            continue
        with pytest.raises(CorruptError, match=f"has lost its file {name}; run the same load again"):
            Build.open(tmp_path)
        assert len(fill(tmp_path, range(4))) == 2
        assert_rows(tmp_path, 4)


# crashes

MUTATING = {"write", "truncate", "replace", "unlink", "mkdir", "open"}


def at_call(number, action):
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


def assert_begun(folder):
    """How many rows there are of six, all of them right."""
    rows = Build.open(folder).rows if (folder / "manifest.json").exists() else 0
    if rows:
        assert_rows(folder, rows, complete=Build.open(folder).complete)
    return rows


def test_killed_before_every_call_that_changes_files(tmp_path):
    seen = set()
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            at_call(number, lambda: os._exit(137))
            fill(folder, range(6))
            os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        seen.add(assert_begun(folder))
        fill(folder, range(6))
        assert_rows(folder, 6)
        assert not list(folder.glob(".*"))
        if finished:
            break
    assert seen == {0, 2, 4, 6} and number > 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_call(tmp_path, code):
    def fail():
        raise OSError(code, os.strerror(code))

    for number in range(1, 1000):
        folder = tmp_path / str(number)
        at_call(number, fail)
        try:
            fill(folder, range(6))
            finished = True
        except (DiskError, CorruptError, OSError) as error:
            finished = False
            # clean-up that fails is not ours to translate
            assert isinstance(error, DiskError if code == errno.ENOSPC else CorruptError) or error.errno == code
        finally:
            sys.setprofile(None)
        assert_begun(folder)
        fill(folder, range(6))
        assert_rows(folder, 6)
        if finished:
            break
    assert number > 20


def test_one_writer_at_a_time(tmp_path):
    with lock_folder(tmp_path):
        with pytest.raises(LockedError, match=f"is used by process {os.getpid()} on "):
            fill(tmp_path, [])
        code = f"import test_vectors, pathlib; test_vectors.fill(pathlib.Path({str(tmp_path)!r}), [])"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
        assert f"LockedError: {tmp_path} is used by process {os.getpid()} on " in run.stderr
    fill(tmp_path, range(2))
    assert_rows(tmp_path, 2)


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
