"""The record log and the runner: kills, cuts, flips, resumes, shards."""

import os
import random
import signal
import time
import zlib
from contextlib import suppress
from pathlib import Path

import killing
import orjson
import pytest
from generation_cases import FakeGenerator, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_vdb.errors import CorruptError, DataError, LockedError, MismatchError
from xqg_vdb.generate.filters import QueryFilter
from xqg_vdb.generate.output import log_path, merge_shards, provenance_path
from xqg_vdb.generate.run import Job, generate_file
from xqg_vdb.journal import RecordLog, decode_line, encode_line, rows, scan

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


def filled(path, batches=3):
    with RecordLog(path, {"a": 1}) as log:
        for b in range(batches):
            log.commit([{"id": f"{b}-{i}", "q": "é\n"} for i in range(2)], rows=2 * b + 2, info={"batch": b})
    return path.read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
def test_lines_come_back(record):
    line = encode_line(record)
    assert decode_line(line) == record
    assert line.count(b"\n") == 1


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON), st.data())
def test_a_changed_byte_never_goes_unseen(record, data):
    line = bytearray(encode_line(record))
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    assert decode_line(bytes(line)) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.data())
def test_any_cut_keeps_exactly_the_committed_batches(tmp_path_factory, sizes, data):
    path = tmp_path_factory.mktemp("log") / "log"
    ends, total = [], 0
    with RecordLog(path, {"a": 1}) as log:
        for size in sizes:
            total += size
            log.commit([{"n": total - size + i} for i in range(size)], rows=total, info={})
            ends.append((path.stat().st_size, total))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    wanted = max((rows for end, rows in ends if end <= cut), default=0)
    with RecordLog(path, {"a": 1}) as log:
        assert log.committed.rows == wanted
        assert [row["n"] for row in rows(path, log.committed)] == list(range(wanted))


def test_every_flipped_byte_is_either_an_error_or_costs_the_last_batch(tmp_path):
    path = tmp_path / "log"
    whole = filled(path)
    good = [row["id"] for row in rows(path, scan(path))]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        try:
            found = scan(path)
        except CorruptError as error:
            assert "is damaged at byte" in str(error)
            continue
        assert found.rows == 4 and found.cut > 0
        assert [row["id"] for row in rows(path, found)] == good[:4]


def test_what_is_no_log_yet_and_what_is_none(tmp_path):
    path = tmp_path / "log"
    header, row = encode_line({"header": {"a": 1}}), encode_line({"row": {"id": "1"}})
    commit = encode_line({"commit": {"rows": 1}})
    for begun in (b"", b"x", header[:-1]):  # the process ended while it wrote the first line
        path.write_bytes(begun)
        assert scan(path) is None
    odd = [b"%08x %s\n" % (zlib.crc32(body), body) for body in (b"", b"1", b"[1]", b"no JSON", b"{} ")]
    assert [decode_line(line) for line in odd] == [None] * 4 + [{}]
    for damaged in (b"\n", b"x\n", b"x\ny", row, row[:-1] + b"x" + row, header[1:], header[1:] + commit, odd[1] + row):
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match="log is damaged at byte 0, before its last commit: restore it"):
            scan(path)
    path.write_bytes(header + row + commit + row + commit)
    found = scan(path)
    assert (found.header, found.rows, len(found.commits), found.end, found.cut) == ({"a": 1}, 1, 2, None, 0)
    hurt, second = row[:12] + b"x" + row[13:], len(header + row + commit)
    for damaged, place in (
        (header + hurt + commit + hurt + commit, len(header)),  # the first line that is damaged is named
        (header + row + commit + hurt + commit, second),
        (header + row + commit + hurt + row + encode_line({"end": {}}), second),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=f"damaged at byte {place}, before its last commit"):
            scan(path)
    path.write_bytes(header + row + commit)
    found = scan(path)
    path.write_bytes(header + row[:-3] + b"xx\n" + commit)  # between the look and the reading
    with pytest.raises(CorruptError, match=f"damaged at byte {len(header)},"):
        list(rows(path, found))


def test_what_was_not_committed_leaves_the_disk(tmp_path):
    path = tmp_path / "log"
    whole = filled(path)
    path.write_bytes(whole + encode_line({"row": {"id": "lost"}}) + b"half")
    found = scan(path)
    assert (found.size, found.cut) == (len(whole), path.stat().st_size - len(whole))
    with RecordLog(path, {"a": 1}) as log:
        assert path.read_bytes() == whole and log.committed.rows == 6 and len(log.committed.commits) == 3
        log.finish({"seconds": 1})
    ended = scan(path)
    assert ended.end == {"seconds": 1} and ended.cut == 0 and len(list(rows(path, ended))) == 6
    with pytest.raises(MismatchError, match="a was 1, is 2"):
        RecordLog(path, {"a": 2})
    empty = tmp_path / "empty"  # a corpus without a passage: finished, so it is not begun anew under another header
    with RecordLog(empty, {"a": 1}) as log:
        log.finish({})
    with RecordLog(empty, {"a": 1}) as log:
        log.finish({"rows": 0})
    with pytest.raises(MismatchError, match=r"begun with other settings \(a.b was None, is 2\)"):
        RecordLog(empty, {"a": 1, "a.b": 2})


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path, monkeypatch):
    path, synced = tmp_path / "log", []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append((os.fstat(handle).st_ino, path.stat().st_size)))
    with RecordLog(path, {}) as log:
        inode = path.stat().st_ino
        assert synced[-2:] == [(inode, path.stat().st_size), (tmp_path.stat().st_ino, path.stat().st_size)]
        for done in (lambda: log.commit([{"n": 1}], rows=1, info={}), lambda: log.finish({})):
            done()
            assert synced[-1] == (inode, path.stat().st_size)


def test_one_writer_at_a_time(tmp_path):
    with (
        RecordLog(tmp_path / "log", {}),
        pytest.raises(LockedError, match=rf"is being written by (process {os.getpid()}|another process); wait"),
    ):
        RecordLog(tmp_path / "log", {})


def test_other_settings_are_refused_with_both_values(tmp_path):
    for seed in (0, 1):  # a log that holds nothing yet is begun anew
        with RecordLog(tmp_path / "log", {"n": 3, "generator": {"seed": seed}}) as log:
            pass
    with RecordLog(tmp_path / "log", log.committed.header) as log:
        log.commit([{"n": 1}], rows=1, info={})
    with pytest.raises(MismatchError, match=r"\(generator.seed was 1, is 2\): use the same ones, or another OUT"):
        RecordLog(tmp_path / "log", {"n": 3, "generator": {"seed": 2}})


def test_a_whole_run_writes_the_published_schema_and_its_birth_certificate(tmp_path):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 7), tmp_path / "q.jsonl"
    seen = []
    job = Job(("de", "swa"), 2)
    summary = generate_file(corpus, out, generator=FakeGenerator(), job=job, progress=lambda *said: seen.append(said))
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["id"] for line in lines] == [f"p{i}" for i in range(7)]
    assert lines[0].keys() == {"id", "generated_queries", "passage_digest"}
    assert list(lines[0]["generated_queries"]) == ["de", "sw"]
    assert summary.queries == 28 and seen == [("passages", done, 7) for done in (0, 3, 6, 7)]
    record = orjson.loads(provenance_path(out).read_bytes())
    assert record["generator"] == {"kind": "fake", "seed": 1} and record["passages"] == 7 and record["queries"] == 28
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "q.jsonl", "q.jsonl.provenance.json"]
    assert generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de", "sw"), 2)).resumed == 7
    with pytest.raises(MismatchError, match="is there already and was made otherwise"):
        generate_file(corpus, out, generator=FakeGenerator(seed=2), job=Job(("de", "sw"), 2))


def test_shards_merge_to_the_same_bytes_and_missing_ones_are_named(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 11)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "q.jsonl"
    generate_file(corpus, whole, generator=FakeGenerator(), job=Job(("de",), 2))
    for i in (1, 3):
        generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, f"{i}/3"))
    said = r"q.jsonl cannot be merged yet, run .* with --shard i/3 for each: q.jsonl.shard-2-of-3 is missing\."
    with pytest.raises(DataError, match=said):
        merge_shards(out)
    generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, "2/3"))
    assert merge_shards(out)["shards"] == 3
    assert out.read_bytes() == whole.read_bytes()


def test_shards_that_do_not_belong_together_are_not_merged(tmp_path):
    """Of another corpus, other settings, another split, or one twice under two names: none would be seen in OUT."""
    corpus, out = write_corpus(tmp_path / "c.jsonl", 11), tmp_path / "q.jsonl"
    other = write_corpus(tmp_path / "d.jsonl", 11)
    other.write_bytes(other.read_bytes().replace(b"Passage 4", b"Passage Z"))

    def part(shard, corpus=corpus, n=2):
        generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), n, shard))

    def refused(said):
        with pytest.raises(MismatchError, match=said):
            merge_shards(out)
        for log in tmp_path.glob("q.jsonl.shard-2*"):
            log.unlink()

    part("1/2"), part("2/2", corpus=other)
    refused(r"shard-2-of-2 does not fit its name or the shards before it \(corpus was .*--shard 2/2")
    part("2/2", n=3)
    refused(r"\(n was 2, is 3\)")
    log_path(out, 2, 2).write_bytes(log_path(out, 1, 2).read_bytes())
    refused(r"shard-2-of-2 does not fit .* \(shard was \[2, 2\], is \[1, 2\]\)")
    part("2/3")
    refused(r"of different splits, q.jsonl.shard-\*-of-2 and q.jsonl.shard-\*-of-3")
    part("2/2")
    assert merge_shards(out)["passages"] == 11
    for nothing in (corpus, tmp_path, Path(".")):
        with pytest.raises(DataError, match="There is no shard of"):
            merge_shards(nothing)
    for folder in (tmp_path, Path(".")):
        with pytest.raises(DataError, match="is a folder: name the file in it"):
            generate_file(corpus, folder, generator=FakeGenerator(), job=Job(("de",), 2, "1/2"))


@pytest.mark.parametrize(
    "name", ["1-of-0", "0-of-3", "5-of-4", "01-of-2", "1-of-99999999999", "\u0661-of-\u0662", "1-of-2x"]
)
@pytest.mark.parametrize("there", [False, True])
def test_what_is_named_as_no_run_names_a_shard_is_none(tmp_path, name, there):
    out = tmp_path / "q.jsonl"
    (tmp_path / f"q.jsonl.shard-{name}").touch()
    with pytest.raises(DataError, match=r"There is no shard of .*q\.jsonl \(files named q\.jsonl\.shard-1-of-4"):
        merge_shards(out)
    if there:
        out.write_bytes(b'{"id": "1", "generated_queries": {"de": ["a?"]}}\n')
        with pytest.raises(DataError, match=r"There is no shard of .*q\.jsonl"):
            merge_shards(out)
    assert (tmp_path / f"q.jsonl.shard-{name}").exists()


def test_shards_of_two_splits_are_named(tmp_path):
    for name in ("1-of-2", "1-of-10"):
        (tmp_path / f"q.jsonl.shard-{name}").touch()
    said = r"has shards of different splits, q.jsonl.shard-\*-of-2 and q.jsonl.shard-\*-of-10: remove the wrong ones"
    with pytest.raises(MismatchError, match=said):
        merge_shards(tmp_path / "q.jsonl")


def test_a_merge_does_not_take_away_shards_of_something_else(tmp_path):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 5), tmp_path / "q.jsonl"
    generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, "1/1"))
    corpus.write_bytes(corpus.read_bytes().replace(b"Passage 2", b"Passage Z"))
    other = tmp_path / "other.jsonl"
    generate_file(corpus, other, generator=FakeGenerator(), job=Job(("de",), 2, "1/2"))
    log = log_path(other, 1, 2).rename(log_path(out, 1, 2))
    with pytest.raises(DataError, match="is there already"):
        merge_shards(out)
    assert log.exists()


def test_a_changed_corpus_is_noticed_on_resume(tmp_path):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 9), tmp_path / "q.jsonl"
    generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, "1/2"))
    corpus.write_bytes(corpus.read_bytes().replace(b"Passage 2", b"Passage Z"))
    with pytest.raises(MismatchError, match="was begun with another corpus: where it has passage 'p2'"):
        generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, "1/2"))


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "1/2/3", "-1/2", ""])
def test_bad_shards(text):
    with pytest.raises(DataError, match="--shard takes i/n"):
        Job(("de",), 1, text)


def test_bad_jobs():
    with pytest.raises(DataError, match="No language was given"):
        Job((), 1)
    with pytest.raises(DataError, match="A language is named twice in sw, swa"):
        Job(("sw", "swa"), 1)
    with pytest.raises(DataError, match="is not a language code"):
        Job(("swahilli",), 1)


def test_the_filter_retries_once_counts_and_leaves_out(tmp_path):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 3), tmp_path / "q.jsonl"
    bad = {("p0", "de", 0): "", ("p0", "de", 1): "How long is the Nile?", ("p2", "de", 1): "No question at all."}
    generator = FakeGenerator(bad)
    rules = QueryFilter(skip=("wrong language",), examples=generator.examples)
    summary = generate_file(corpus, out, generator=generator, job=Job(("de", "sw"), 2, query_filter=rules))
    assert generator.calls[1] == (["p0", "p2"], ("de",), 1)
    assert summary.rejected == {"empty": 1, "copied example": 1, "no question": 1, "replaced by a second try": 3}
    assert summary.queries == 12
    assert b"Nile" not in out.read_bytes() and b"No question" not in out.read_bytes()


def test_what_stays_bad_is_left_out(tmp_path):
    class Mute(FakeGenerator):
        def _query(self, id, lang, i, attempt):
            return "" if id == "p1" else super()._query(id, lang, i, attempt)

    corpus, out = write_corpus(tmp_path / "c.jsonl", 3), tmp_path / "q.jsonl"
    job = Job(("de",), 2, query_filter=QueryFilter(skip=("wrong language",)))
    summary = generate_file(corpus, out, generator=Mute(), job=job)
    assert summary.rejected == {"empty": 2, "replaced by a second try": 0} and summary.queries == 4
    assert orjson.loads(out.read_bytes().splitlines()[1])["generated_queries"] == {"de": []}


WORK = """
from pathlib import Path
import numpy, onnxruntime, tokenizers
from xqg_vdb.generate.output import merge_shards
from xqg_vdb.generate.local import open_generator
from xqg_vdb.generate.run import Job, generate_file
from xqg_vdb.models.decoder import Decoding

def work(out, *inputs):
    if not inputs:
        merge_shards(Path(out))
        return
    model, corpus = inputs
    langs, decoding = ["de", "sw"], Decoding(max_tokens=6)
    generator = open_generator(Path(model), query_langs=langs, prompt="few-shot", decoding=decoding, threads=1)
    generate_file(Path(corpus), Path(out), generator=generator, job=Job(tuple(langs), 2))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_generator):
    """A real (small) model and a corpus of 64 passages."""
    return tiny_generator("llama")[1], write_corpus(tmp_path_factory.mktemp("inputs") / "c.jsonl", 64)


@pytest.fixture
def workers(tmp_path):
    with killing.Workers(WORK, tmp_path / "said") as workers:
        yield workers


def cut(workers, point, *arguments):
    assert workers.run(*arguments, env=killing.at(point)) == -signal.SIGKILL, (point, workers.said.read_text())


def test_a_run_killed_at_every_point_ends_with_the_same_bytes(tmp_path, inputs, workers):
    whole, trace = tmp_path / "whole" / "q.jsonl", tmp_path / "trace"
    whole.parent.mkdir()
    assert workers.run(whole, *inputs, env=killing.traced(trace)) == 0, workers.said.read_text()
    points = killing.points(trace, whole.parent)
    assert points == [
        "os.rename */q.jsonl.provenance.json 1",
        "os.rename */q.jsonl 1",
        "os.remove */q.jsonl.shard-*-of-* 1",
    ]
    # fsync is how a header and each commit end; the calls that are not the log's come after the last of them
    for number, point in enumerate([*(f"call fsync {n}" for n in (1, 2, 3)), *points]):
        out = tmp_path / str(number) / "q.jsonl"
        out.parent.mkdir()
        cut(workers, point, out, *inputs)
        assert workers.run(out, *inputs) == 0, workers.said.read_text()
        assert_same(out, whole)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, inputs, workers):
    """Each run commits once and is cut at its second commit, until one has no second commit to make."""
    whole, out, seen = tmp_path / "whole.jsonl", tmp_path / "out" / "q.jsonl", []
    out.parent.mkdir()
    assert workers.run(whole, *inputs) == 0, workers.said.read_text()
    second = killing.at(f"call {RecordLog.commit.__qualname__} 2")
    while (code := workers.run(out, *inputs, env=second)) == -signal.SIGKILL:
        seen.append(scan(log_path(out)).rows)
    assert code == 0 and seen == sorted(set(seen)) and len(seen) >= 3, (seen, workers.said.read_text())
    assert_same(out, whole)


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, inputs, workers):
    rng, whole, out = random.Random(1), tmp_path / "whole.jsonl", tmp_path / "out" / "q.jsonl"
    out.parent.mkdir()
    assert workers.run(whole, *inputs) == 0, workers.said.read_text()
    for _ in range(20):
        worker = workers.start(out, *inputs)
        time.sleep(rng.uniform(0.0, 0.4))
        with suppress(ProcessLookupError):  # it was done before
            os.kill(worker, signal.SIGKILL)
        assert workers.wait() in (0, -signal.SIGKILL), workers.said.read_text()
    assert workers.run(out, *inputs) == 0, workers.said.read_text()
    assert_same(out, whole)


def assert_same(out, whole):
    assert out.read_bytes() == whole.read_bytes()
    # what a kill left half written has a name of its own, begins with a dot, and stays
    shown = {path.name for path in out.parent.iterdir() if not path.name.startswith(".")}
    assert shown == {out.name, provenance_path(out).name}


def test_a_merge_killed_at_every_point_loses_nothing(tmp_path, workers):
    corpus, whole, trace = write_corpus(tmp_path / "c.jsonl", 11), tmp_path / "whole.jsonl", tmp_path / "trace"
    generate_file(corpus, whole, generator=FakeGenerator(), job=Job(("de",), 2))

    def shards(name):
        out = tmp_path / name / "q.jsonl"
        out.parent.mkdir()
        for i in (1, 2, 3):
            generate_file(corpus, out, generator=FakeGenerator(), job=Job(("de",), 2, f"{i}/3"))
        return out

    out = shards("unbroken")
    assert workers.run(out, env=killing.traced(trace)) == 0, workers.said.read_text()
    assert_same(out, whole)
    points = killing.points(trace, out.parent)
    assert len(points) == 4 and points[-1] == "os.remove */q.jsonl.shard-*-of-* 3", points
    for number, point in enumerate(points):
        out = shards(str(number))
        cut(workers, point, out)
        assert workers.run(out) == 0, workers.said.read_text()  # also where all but a log's removal is done
        assert_same(out, whole)
