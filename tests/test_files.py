"""Lines with positions, atomic writes, and errors in words."""

import contextlib
import errno
import gzip
import hashlib
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import CorruptError, DataError, DiskError, LockedError
from xqg_vdb.files import (
    FileLock,
    atomic_file,
    bytes_on_disk,
    damage,
    damaged_weights,
    disk_errors,
    empty_bin,
    lock_folder,
    make_folder,
    new_folder,
    refuse_foreign,
    refuse_pipe,
    remove_folder,
    require_space,
    sha256_of,
    sync_tree,
    trash_path,
    try_flock,
    write_atomic,
)
from xqg_vdb.texts.records import open_lines


def _twin(data):
    """The slow obvious reader."""
    lines, offset = [], 0
    pieces = data.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    for number, piece in enumerate(pieces, 1):
        body, start = piece, offset
        body = body[:-1] if body.endswith(b"\r") else body
        if offset == 0 and body.startswith(b"\xef\xbb\xbf"):
            body, start = body[3:], 3
        lines.append((number, start, body))
        offset += len(piece) + 1
    return lines


def _placed(path):
    return [(source.line, source.offset, source.raw) for source in open_lines(path)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x00", b"\x85", b"\xff", b""])
    )
)
def test_lines_are_the_twins_plain_and_packed(tmp_path_factory, pieces):
    data = b"".join(pieces)
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a.txt").write_bytes(data)
    (folder / "a.gz").write_bytes(gzip.compress(data))
    try:
        plain = _placed(folder / "a.txt")
    except DataError as error:  # it begins as another format or encoding does; which are tried differs by version
        assert "UTF-" in str(error) or "Arrow" in str(error)
        return
    assert plain == _twin(data)
    assert _placed(folder / "a.gz") == _twin(data)


def test_gzip_is_known_by_its_first_bytes_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"one\ntwo"))
    assert _placed(tmp_path / "a.jsonl") == [(1, 0, b"one"), (2, 4, b"two")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([b"\n", b"\r\n"]))), st.booleans())
def test_long_lines_are_marked_and_nothing_drifts(tmp_path_factory, sizes, ended):
    data = b"".join(b"x" * size + end for size, end in sizes)
    data = data if ended else data[:-1]
    path = tmp_path_factory.mktemp("long") / "a"
    path.write_bytes(data)
    for (number, offset, body), found in zip(_twin(data), open_lines(path, max_bytes=10), strict=True):
        assert (found.line, found.offset) == (number, offset)
        if len(body) <= 10:
            assert (found.raw, found.cut) == (body, 0)
        else:
            assert len(body) <= found.cut <= len(body) + 2
            assert body.startswith(found.raw.rstrip(b"\r\n")[:10])


def test_a_long_line_takes_no_memory(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before\n" + b"x" * (20 << 20) + b"\nafter\n")
    tracemalloc.start()
    lines = list(open_lines(path, max_bytes=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.line, line.offset) for line in lines] == [(1, 0), (2, 7), (3, 7 + (20 << 20) + 1)]
    assert lines[1].cut == (20 << 20) + 1
    assert peak < 1 << 20


def test_gzip_cut_at_every_byte_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    data = gzip.compress(b"".join(b'{"id": %d, "text": "t"}\n' % i for i in range(20)))
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"corpus\.jsonl\.gz is cut short or damaged after line \d+"):
            list(open_lines(path))


def test_flipped_gzip_bytes_never_crash(tmp_path):
    path = tmp_path / "a.gz"
    lines = [b"line %d" % (i * i) for i in range(50)]
    data = gzip.compress(b"\n".join(lines), mtime=0)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            assert [line.raw for line in open_lines(path)] == lines  # the name or time in the header
        except DataError:
            continue


@pytest.mark.parametrize("line", [b"", b"x" * 5000 + b"\n"])
def test_gzip_bombs_are_refused_in_bounded_memory(tmp_path, line, monkeypatch):
    monkeypatch.setattr("xqg_vdb.texts.records._RATIO_FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(line * ((40 << 20) // len(line)) if line else bytes(40 << 20), 9))
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        for _ in open_lines(path, max_bytes=1 << 16):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value) == (
        f"{path} unpacks to over 100 times its size, unlike text; unpack it yourself if you trust it."
    )
    assert peak < 1 << 20


def test_small_files_may_shrink_as_they_like(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"the same line\n" * 10_000, 9))
    assert sum(1 for _ in open_lines(path)) == 10_000


def test_wrong_paths_are_told_at_once_with_near_matches(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_lines(tmp_path / "corpus.json")
    assert str(caught.value) == f"There is no file {tmp_path}/corpus.json; that folder has corpus.jsonl."
    with pytest.raises(DataError) as caught:
        open_lines(tmp_path / "nowhere" / "x")
    assert str(caught.value) == f"There is no folder {tmp_path}/nowhere for x; create it or correct the path."
    with pytest.raises(DataError, match="is a folder; a file was expected"):
        open_lines(tmp_path)
    with pytest.raises(DataError, match="too long for a file name"):
        open_lines(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_forbidden_files_are_disk_errors(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0)
    with pytest.raises(DiskError, match="may not be used"):
        open_lines(tmp_path / "a")


def test_os_errors_become_ours(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"The disk is full while writing .*a"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_write_atomic_replaces_and_leaves_nothing(tmp_path):
    path = tmp_path / "name with ü.json"
    write_atomic(path, b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == [path.name]
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"three")
        raise RuntimeError
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == [path.name]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(DataError, match="There is no file"):
        sha256_of(tmp_path / "b")


def test_a_pipe_is_read_once(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with processes.start([sys.executable, "-c", f"open({str(fifo)!r}, 'wb').write(b'a\\nb\\n')"]):
        assert [line.raw for line in open_lines(fifo)] == [b"a", b"b"]


def test_lock_names_its_holder_and_dies_with_it(tmp_path):
    code = (
        "import sys, pathlib; from xqg_vdb.files import lock_folder;"
        f"f = lock_folder(pathlib.Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    child = processes.start([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(LockedError, match=f"is used by process {child.pid} on "):
            lock_folder(tmp_path)
        child.kill()
    with lock_folder(tmp_path), pytest.raises(LockedError, match=f"is used by process {os.getpid()} on "):
        lock_folder(tmp_path)
    lock_folder(tmp_path).release()


def _pid_of_nobody():
    with processes.start([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def test_what_killed_processes_left_half_written_goes_and_the_rest_stays(tmp_path):
    path, gone = tmp_path / "a-b.json", _pid_of_nobody()
    stays = [f".a-b.json.tmp-{os.getpid()}-7", ".a-b.json.tmp-x-7", f".b.json.tmp-{gone}-7", f"a-b.json.tmp-{gone}-7"]
    for name in [*stays, f".a-b.json.tmp-{gone}-7", f".a-b.json.tmp-{gone}-8"]:
        (tmp_path / name).write_bytes(b"half")
    write_atomic(path, b"one")
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *stays])


def test_a_write_is_synced_before_its_name_is_and_its_folder_after(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle), path.exists())))
    write_atomic(path, b"four")
    (file, before), (folder, after) = synced
    assert (file.st_size, before, after) == (4, False, True)
    assert (file.st_ino, folder.st_ino) == (path.stat().st_ino, tmp_path.stat().st_ino)
    (tmp_path / "in").mkdir()
    sync_tree(tmp_path)
    assert {one.st_ino for one, _ in synced[2:]} == {each.stat().st_ino for each in (path, tmp_path / "in", tmp_path)}


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.ENOSPC, DiskError, "The disk is full while writing /x/y (No space left"),
        (errno.EDQUOT, DiskError, "The disk is full while writing /x/y (Disk quota"),
        (errno.EFBIG, DiskError, "The disk is full while writing /x/y (File too large"),
        (errno.EACCES, DiskError, "/x/y may not be used (Permission denied"),
        (errno.EPERM, DiskError, "/x/y may not be used (Operation not permitted"),
        (errno.EROFS, DiskError, "/x/y may not be used (Read-only file system"),
        (errno.ENAMETOOLONG, DataError, "/x/y… is too long for a file name"),
        (errno.EIO, CorruptError, "/x/y cannot be read or written (Input/output error); check the disk."),
        (errno.EMFILE, DiskError, "/x/y cannot be used (Too many open files)."),
        (errno.ENOTDIR, DataError, "/x/y is not inside a folder"),
        (None, DiskError, "/x/y cannot be used (what no system says)."),
    ],
)
def test_what_a_system_says_becomes_a_sentence(code, kind, said):
    with pytest.raises(kind, match=re.escape(said)), disk_errors("/x/y"):
        raise OSError(code, os.strerror(code)) if code else OSError("what no system says")
    with pytest.raises(kind, match=re.escape(said)), disk_errors("/another" if code else "/x/y"):
        raise OSError(code, os.strerror(code), "/x/y") if code else OSError("what no system says")


def test_near_names_are_told_but_not_the_name_itself(tmp_path):
    for name in ("corpus1.jsonl", "corpus2.jsonl", "corpus3.jsonl", "corpus4.jsonl", "else.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "corpus.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError) as caught:
        open_lines(tmp_path / "corpus.jsonl")
    assert str(caught.value).count("corpus") == 4 and "else.md" not in str(caught.value)
    with pytest.raises(DataError, match=r"There is no file .*/zzzz; check the path\.$"):
        open_lines(tmp_path / "zzzz")


def test_pipes_and_devices_are_refused_where_a_file_is_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match="is a pipe or a device"):
            refuse_pipe(path)
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        refuse_pipe(path)


def test_folders_go_whole_and_what_a_crash_left_goes_later(tmp_path):
    assert make_folder(tmp_path / "a" / "b" / "c") is make_folder(tmp_path / "a" / "b" / "c") is None
    (tmp_path / "a" / "b" / "file").write_bytes(b"1")
    remove_folder(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    for name in (trash_path(tmp_path / "a").name, "kept"):
        make_folder(tmp_path / name / "in")
    empty_bin(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
    empty_bin(tmp_path / "none")


def test_space_is_asked_for_to_the_last_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    require_space(tmp_path, needed=3 << 20)
    with pytest.raises(DiskError, match=r"needs 3 MiB of free disk, has 3 MiB; free some space"):
        require_space(tmp_path, needed=(3 << 20) + 1)
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "a", tmp_path / "in" / "b"):
        path.write_bytes(b"x" * 10_000)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 30)
    wanted = sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*") if path.is_file())
    assert bytes_on_disk(tmp_path) == wanted and 20_000 <= wanted < 1 << 20


def test_a_lock_whose_file_goes_away_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, real, inodes = tmp_path / "lock", try_flock, []

    def slow(handle):
        inodes.append(os.fstat(handle).st_ino)
        held = real(handle)
        if len(inodes) < 3:  # its holder before took it away
            path.rename(tmp_path / f"old {len(inodes)}")
        return held

    monkeypatch.setattr("xqg_vdb.files.try_flock", slow)
    with FileLock.take(path, busy="busy by"):
        assert len(set(inodes)) == 3 and inodes[-1] == path.stat().st_ino
        assert oct(path.stat().st_mode & 0o777) == oct(0o644 & ~_umask())
        with pytest.raises(LockedError) as caught:
            FileLock.take(path, busy="busy by", then="; wait")
        assert str(caught.value).startswith(f"busy by process {os.getpid()} on ")
        assert str(caught.value).endswith(" (this very process: share one store object); wait")
        for odd in (b"", b"{", b"{}", b"[]"):
            path.write_bytes(odd)  # not signed yet
            with pytest.raises(LockedError, match=r"^busy by another process$"):
                FileLock.take(path, busy="busy by")


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_a_fork_does_not_free_the_lock_of_its_parent(tmp_path):
    lock = FileLock.take(tmp_path / "lock", busy="busy by")
    if (child := os.fork()) == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(LockedError):
        FileLock.take(tmp_path / "lock", busy="busy by")
    lock.release()
    lock.release()
    FileLock.take(tmp_path / "lock", busy="busy by").release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, code):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", none)
    handles = os.listdir("/proc/self/fd")
    with pytest.raises(OSError if code == errno.EIO else DiskError, match=r"without locks|Input/output"):
        FileLock.take(tmp_path / "lock", busy="busy by")
    assert len(os.listdir("/proc/self/fd")) == len(handles)


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    out = tmp_path / "new" / "out"
    (tmp_path / "new" / ".out.new").mkdir(parents=True)  # of a process that was killed
    (tmp_path / "new" / ".out.new" / "old").touch()
    with new_folder(out) as folder:
        (folder / "file").touch()
        with pytest.raises(LockedError, match="out is being made by process"), new_folder(out):
            pass
    assert os.listdir(out.parent) == ["out"] and os.listdir(out) == ["file"]
    with pytest.raises(DiskError), disk_errors(out), new_folder(out) as folder:
        pass  # what is there stays
    assert os.listdir(out.parent) == ["out"] and os.listdir(out) == ["file"]
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other") as folder:
        (folder / "file").touch()
        raise RuntimeError
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", result="in") as folder:
        (folder / "in").mkdir()
        (folder / "in" / "file").touch()
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"] and os.listdir(tmp_path / "empty") == ["file"]


def test_files_that_a_download_left_unfinished_are_told(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").touch()
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "whole").write_bytes(b"version 1")
    for name, what in (
        ("none", "is not there, or a link to nothing"), ("link", "is not there, or a link to nothing"),
        ("empty", "is empty"), ("pointer", "is a pointer of Git LFS, not the file itself"),
    ):  # fmt: skip
        assert damage(tmp_path / name).startswith(f"{tmp_path / name} {what}: download it again (`hf download`")
    assert damage(tmp_path / "whole") == ""


def test_of_weights_the_file_that_is_damaged_is_named_by_its_source(tmp_path):
    from safetensors.numpy import save

    folder, index = tmp_path / "snapshot", tmp_path / "snapshot" / "model.safetensors.index.json"
    folder.mkdir()
    assert damaged_weights(folder, "a/b").startswith("a/b/model.safetensors is not there")
    one, two = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    index.write_text(f'{{"weight_map": {{"a": "{one}", "b": "{two}", "c": "{one}"}}}}')
    tensors = save({"a": np.zeros(3, np.float32)})
    for first, second, said in (
        (None, tensors, f"{one} is not there"), (tensors, b"", f"{two} is empty"),
        (tensors, tensors[:-1], f"{two} is cut or damaged ("), (b"\xff" * 30, b"", f"{one} is cut or damaged ("),
    ):  # fmt: skip
        for name, data in ((one, first), (two, second)):
            if data is not None:
                (folder / name).write_bytes(data)
        found = damaged_weights(folder, "a/b")
        assert found.startswith(f"a/b/{said}") and "download it again" in found
    for name in (one, two):
        (folder / name).write_bytes(tensors)
    assert damaged_weights(folder, "a/b") == ""
    (folder / "model.safetensors").write_bytes(b"no tensors at all, whatever the index says")
    assert damaged_weights(folder, "a/b").startswith("a/b/model.safetensors is cut or damaged (")


@pytest.mark.parametrize(
    ("text", "wide"),
    [("abcd", True), ("abc", False), ("abcd\u0431\u0432", False), ("abcde\u0431", True), ("ab\0cdefgh", False)],
)
@pytest.mark.parametrize("order", ["LE", "BE"])
def test_two_bytes_a_character_are_known_by_most_of_them(tmp_path, text, wide, order):
    data = text.encode(f"utf-16-{order}")
    with pytest.raises(DataError, match=f"is UTF-16{order} without a mark") if wide else contextlib.nullcontext():
        refuse_foreign(tmp_path / "a", data)


def test_four_bytes_a_character_and_marks(tmp_path):
    for data, said in (
        ("ab".encode("utf-32-le"), "UTF-32LE without a mark"), ("ab".encode("utf-32-be"), "UTF-32BE without a mark"),
        (b"\xff\xfe\0\0", "UTF-32,"), (b"\0\0\xfe\xffa", "UTF-32,"), (b"\xff\xfea", "UTF-16,"),
        (b"\xfe\xffa", "UTF-16,"), (b"PK\x03\x04", ""), (b" \n<html><body>", ""), (b" <HTML>", ""),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"a (is )?{said}"):
            refuse_foreign(tmp_path / "a", data)
    for data in (b"", b"a", b" PK\x03\x04", b"\0\0\0\0", b"a\0b\0c\0d", "<p> \u00e4".encode()):
        refuse_foreign(tmp_path / "a", data)
