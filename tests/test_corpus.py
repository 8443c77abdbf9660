"""Passages, generated queries and questions from files, honest or hostile."""

import functools
import gzip
import json
import os
import random
import threading
import tracemalloc
from contextlib import nullcontext

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import mutant

from xqg_vdb.errors import DataError
from xqg_vdb.texts import corpus, queries, records
from xqg_vdb.texts.corpus import read_corpus, read_questions, sample_corpus
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.texts.records import (
    BadRecord,
    Rejects,
    check_record,
    check_value,
    expect,
    key_of,
    open_lines,
    parse_object,
    read_whole,
)
from xqg_vdb.texts.tables import write_records
from xqg_vdb.types import GeneratedQueries, Passage, Question

MANY = 1 << 40


NO_TEXT = "no text (expected one of the keys text, content, contents, page_content)"


def _write(path, *lines):
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def _balanced(rejects):
    return rejects.accepted + rejects.duplicates + rejects.blank + rejects.rejected == rejects.read


def _read(path, rejects=None):
    return list(read_corpus(path, rejects=rejects, detect=False))


# formats


def test_json_lines(tmp_path):
    path = _write(
        tmp_path / "c.jsonl",
        {"id": "a", "text": "one", "title": "T", "lang": "swa", "url": "u", "generated_queries": {"sw": ["?"]}},
        {"_id": "b", "text": "two", "title": None, "lang": None, "meta": {"year": 1}, "tags": [1, None]},
        {"docid": 7, "text": "three"},
    )
    assert _read(path) == [
        Passage("a", "one", "T", "sw", {"url": "u"}),
        Passage("b", "two", "", "und", {"year": 1, "tags": [1, None]}),
        Passage("7", "three"),
    ]


def test_bom_crlf_blank_lines_and_line_separators(tmp_path):
    text = "a\u2028b\u0085c"
    line = json.dumps({"id": "x", "text": text}, ensure_ascii=False).encode()
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + b"bad\r\n")
    rejects = Rejects(1)
    assert _read(path, rejects) == [Passage("x", text)]
    assert rejects.counts() == {"read": 4, "accepted": 1, "duplicates": 0, "blank": 2, "rejected": 1}


@pytest.mark.parametrize("pack", [False, True])
def test_tsv_as_dpr_writes_it(tmp_path, pack):
    import csv
    import io

    rows = [
        ("1", 'He said "hi"', "A"),
        ("2", '"start', "B"),
        ("3", "tab\there", 'C "x"'),
        ("4", "plain", ""),
        ("5", '""', '"'),
    ]
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("id", "text", "title"), *rows])
    path = tmp_path / ("psgs.tsv.gz" if pack else "psgs.tsv")
    path.write_bytes(gzip.compress(text.getvalue().encode()) if pack else text.getvalue().encode())
    rejects = Rejects()
    assert [(p.id, p.text, p.title) for p in _read(path, rejects)] == rows
    assert rejects.read == rejects.accepted == 5


@settings(max_examples=120, deadline=None)
@given(st.lists(st.text(st.sampled_from('ab"\t '), max_size=8), min_size=1, max_size=4))
def test_tsv_fields_undo_csv(fields):
    import csv
    import io

    from xqg_vdb.texts.tables import _table_cells

    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="").writerow(fields)
    if fields == [""]:
        return  # csv spells it '""' so that the line is not empty
    assert _table_cells(text.getvalue(), "\t", most=len(fields)) == fields


def test_tsv_quotes_that_are_only_characters(tmp_path):
    path = _write(
        tmp_path / "c.tsv", b"id\ttext", b'1\t"Hello" he said', b'2\t5" of rain', b'3\t"no end', b"4\ta\tb", b"5\t\xff"
    )
    rejects = Rejects(MANY, tmp_path / "r.jsonl")
    assert [p.text for p in _read(path, rejects)] == ['"Hello" he said', '5" of rain']
    reasons = [json.loads(line)["reason"] for line in open_text(tmp_path / "r.jsonl")]
    assert reasons == [
        "a quoted column does not end on its line (write passages with line breaks as JSON lines)",
        "3 columns, the header has 2",
        "not UTF-8: invalid start byte at byte 2 of the line; convert the file from its encoding:"
        " iconv -f ENCODING -t UTF-8 FILE > NEW",
    ]


def open_text(path):
    return path.read_text("utf-8").splitlines()


def test_tsv_needs_its_header(tmp_path):
    path = _write(tmp_path / "c.tsv", b"1\tsome words\ttitle")
    with pytest.raises(DataError) as caught:
        _read(path)
    assert str(caught.value) == (
        f"{path} line 1: expected a header such as id<TAB>text<TAB>title, found ['1', 'some words', 'title']."
    )


def test_a_hostile_tsv_line_is_read_in_linear_time(tmp_path):
    path = _write(tmp_path / "c.tsv", b"id\ttext", b'1\t"' + b'""' * 500_000 + b'x"y"', b"2\tt")
    # in quadratic time it would take hours, and run into the limit of a test
    assert [p.id for p in _read(path, Rejects(1))][-1] == "2"


def test_parquet(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "docid": [1, 2, 3, 4],
        "text": ["one", None, " ", "four"],
        "title": ["T", "U", None, None],
        "day": [datetime.date(2026, 11, 23), None, None, None],
        "x": [1.5, None, None, float("nan")],
        "generated_queries": [["q"], [], [], []],
    }
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(rows), path)
    rejects = Rejects(MANY, tmp_path / "r.jsonl")
    one = Passage("1", "one", "T", "und", {"day": "2026-11-23", "x": 1.5})
    assert _read(path, rejects) == [one, Passage("4", "four", "", "und", {})]
    assert rejects.left_out == {"x": "nan"}
    assert [(r["line"], r["offset"], r["reason"]) for r in map(json.loads, open_text(tmp_path / "r.jsonl"))] == [
        (2, None, f"{NO_TEXT}; found 'docid', 'title'"),
        (3, None, "text is blank"),
    ]
    data = path.read_bytes()
    for size in (0, 3, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"c\.parquet is not a readable Parquet file"):
            _read(path)
    rng = random.Random(0)
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        rejects = Rejects(MANY)
        try:
            _read(path, rejects)
        except DataError:
            continue
        assert _balanced(rejects)


def test_folders(tmp_path):
    with pytest.raises(DataError, match=r"holds neither corpus\.jsonl nor shard_\*\.jsonl"):
        _read(tmp_path)
    for number in (10, 9):
        _write(tmp_path / f"shard_{number}.jsonl", {"docid": number, "text": "t"})
    assert [p.id for p in _read(tmp_path)] == ["9", "10"]
    _write(tmp_path / "queries.jsonl", {"_id": "q", "text": "no passage"})
    _write(tmp_path / "corpus.jsonl", {"_id": "d", "title": "", "text": "t", "metadata": {}})
    assert _read(tmp_path) == [Passage("d", "t", "", "und", {})]


def test_wrong_paths_are_told_at_once(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"There is no file .*corpsu\.jsonl; that folder has corpus\.jsonl"):
        read_corpus(tmp_path / "corpsu.jsonl")
    (tmp_path / "a.xml").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.xml is not a corpus by its name; expected \.jsonl, \.json, \.tsv"):
        read_corpus(tmp_path / "a.xml")
    with pytest.raises(DataError, match="'xyzzy' is not a language code"):
        read_corpus(tmp_path / "corpus.jsonl", default_lang="xyzzy")
    with pytest.raises(DataError, match=r"corpus\.jsonl holds no passage that can be used"):
        _read(tmp_path / "corpus.jsonl")


# languages


def test_missing_languages_are_detected_in_batches_and_in_order(tmp_path, monkeypatch):
    texts = {
        "en": "The river is long and it runs through many countries.",
        "sw": "Mto huu ni mrefu na unapita katika nchi nyingi sana.",
    }
    lines = [
        {"id": i, "text": texts["en" if i % 3 else "sw"], **({"lang": "yo"} if i % 5 == 0 else {})} for i in range(600)
    ]
    path = _write(tmp_path / "c.jsonl", *lines)
    calls = []
    detect = corpus.languages.detect
    monkeypatch.setattr(corpus.languages, "detect", lambda batch: calls.append(len(batch)) or detect(batch))
    found = list(read_corpus(path))
    assert [p.id for p in found] == [str(i) for i in range(600)]
    assert [p.lang for p in found] == ["yo" if i % 5 == 0 else "en" if i % 3 else "sw" for i in range(600)]
    assert len(calls) == 3 and sum(calls) == 480
    assert {p.lang for p in read_corpus(path, default_lang="swa")} == {"yo", "sw"}
    assert {p.lang for p in read_corpus(path, detect=False)} == {"yo", "und"}


# untrusted lines

NASTY = [
    (b'{"id": "a", "text": NaN}', "not JSON"),
    (b'{"id": "a", "text": "t", "x": NaN}', "not JSON"),
    (b'{"id": "a", "text": "t", "x": 1e999}', "not JSON"),
    (b'{"id": "a", "text": "t", "x": -Infinity}', "not JSON"),
    (b'{"id": "a", "text": "\\ud800"}', "not JSON"),
    (b'{"id": "a", "text": "\xff"}', "not UTF-8"),
    (b'{"id": "a", "text": "\xed\xa0\x80"}', "not UTF-8"),
    (b'{"id": "a", "text": "a\x00b"}', "not JSON"),
    (b'{"id": "a", "text": "a\\u0000b"}', "a NUL character"),
    (b'{"id": "a\\u0000", "text": "b"}', "a NUL character"),
    (b'{"id": "a", "text": "b", "k\\u0000": 1}', "a NUL character"),
    (b'{"id": "a", "text": "t", "text": "u"}', "key 'text' appears twice"),
    (b'{"id": "a", "text": "t", "meta": {"x": {"y": 1, "y": 1}}}', "key 'y' appears twice"),
    (b'{"id": "a", "text": "t", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    (b'{"id": "a", "text": "t", "x": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32 levels"),
    (b'{"id": "a", "text": "t", "x": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"id": "a", "text": "t", "x": 18446744073709551615}', "an integer of more than 64 bits"),
    (b'{"id": 1e3, "text": "t"}', "id must be text or a whole number, not a fraction"),
    (b'{"id": true, "text": "t"}', "id must be text or a whole number, not true or false"),
    (b'{"id": null, "text": "t"}', "no id (expected one of the keys id, _id, docid, id_); found 'id', 'text'"),
    (b'{"id": "a", "text": "t", "x": 99999999999999999999}', "an integer of more than 64 bits"),
    (b'{"id": "", "text": "t"}', "id is blank"),
    (b'{"id": ["a"], "text": "t"}', "id must be text or a whole number, not a list"),
    (b'{"text": "t"}', "no id (expected one of the keys id, _id, docid, id_)"),
    (b'{"id": "a"}', "no text"),
    (b'{"id": "a", "text": null}', "no text"),
    (b'{"id": "a", "text": 5}', "text must be text, not a number"),
    (b'{"id": "a", "text": {"a": 1}}', "text must be text, not an object"),
    (b'{"id": "a", "text": ""}', "text is blank"),
    (b'{"id": "a", "text": " \\t\\n\\u00a0\\u200b\\u2028"}', "text is blank"),
    (b'{"id": "a", "text": "t", "title": 5}', "title must be text"),
    (b'{"id": "a", "text": "t", "lang": "xx"}', "'xx' is not a language code"),
    (b'{"id": "a", "text": "t", "lang": 5}', "a language code must be text, not a number"),
    (b'{"id": "a", "text": "t", "meta": "m"}', "meta must be an object"),
    (b'{"id": "a", "text": "t", "meta": {"x": 1}, "x": 2}', "'x' stands in meta and beside it with different values"),
    (b"[1]", "a JSON object was expected, not a list"),
    (b"null", "a JSON object was expected, not null"),
    (b'{"id": "a", "text": "t"} {}', "not JSON"),
    (b'{"id": "a", "text": "t"', "not JSON"),
    (b"id\ttext", "not JSON"),
    (b"\x1e", "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), NASTY)
def test_nasty_lines_are_rejected_with_their_place(tmp_path, line, reason):
    good = b'{"id": "good", "text": "t"}'
    path = _write(tmp_path / "c.jsonl", good, line, good.replace(b"good", b"last"))
    kept = tmp_path / "rejects.jsonl"
    rejects = Rejects(1, kept)
    assert [p.id for p in _read(path, rejects)] == ["good", "last"]
    assert _balanced(rejects) and rejects.rejected == 1
    record = json.loads(kept.read_bytes())
    assert (record["file"], record["line"], record["offset"]) == (str(path), 2, len(good) + 1)
    assert record["reason"].startswith(reason)
    assert record["head"] == line.decode("utf-8", "replace")[:200]


def test_text_that_looks_like_repeated_keys_is_fine():
    assert parse_object(b'{"id": "a", "text": "\\"id\\": 1, \\"id\\": 2", "b":[{"c":1},{"c":1}]}')["id"] == "a"


def test_the_first_reject_stops_by_default(tmp_path):
    path = _write(tmp_path / "c.jsonl", {"id": "a", "text": "t"}, {"id": "b"}, {"id": "c", "text": "t"})
    with pytest.raises(DataError) as caught:
        _read(path)
    assert str(caught.value) == f"{path} line 2: {NO_TEXT}; found 'id'; correct the data."


def test_over_the_limit_the_first_few_are_told(tmp_path):
    path = _write(tmp_path / "c.jsonl", *[{"id": i} for i in range(9)])
    kept = tmp_path / "r.jsonl"
    kept.write_bytes(b"of an older run\n")
    with pytest.raises(DataError) as caught:
        _read(path, Rejects(6, kept))
    assert str(caught.value) == (
        "; ".join(f"{path} line {n}: {NO_TEXT}; found 'id'" for n in (1, 2, 3, 4, 5))
        + f"; and 2 more (all in {kept}); correct the data, or use --max-rejects to continue without such records."
    )
    assert len(open_text(kept)) == 7


def test_long_lines_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("xqg_vdb.texts.records.open_lines", lambda path: corpus_lines(path, max_bytes=100))
    path = _write(tmp_path / "c.jsonl", {"id": "a", "text": "t" * 500}, {"id": "b", "text": "t"})
    rejects = Rejects(1)
    assert [p.id for p in _read(path, rejects)] == ["b"]
    assert rejects.first == [f"{path} line 1: the line has 524 bytes, more than may be read at once"]


def corpus_lines(path, max_bytes):
    return open_lines(path, max_bytes=max_bytes)


# duplicates


def test_duplicates(tmp_path):
    path = _write(
        tmp_path / "c.jsonl",
        {"id": "1", "text": "t", "a": 1, "b": 2},
        {"b": 2, "_id": 1, "a": 1, "text": "t"},
        {"id": "1", "text": "other", "a": 1, "b": 2},
        {"id": "1", "text": "t", "title": "T", "a": 1, "b": 2},
        {"id": "2", "text": "t"},
    )
    rejects = Rejects(2)
    assert [p.id for p in _read(path, rejects)] == ["1", "2"]
    assert rejects.counts() == {"read": 5, "accepted": 2, "duplicates": 1, "blank": 0, "rejected": 2}
    with pytest.raises(DataError, match="line 3: id '1' appeared before with other content"):
        _read(path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("ab"))))
def test_duplicates_against_a_dict(tmp_path_factory, pairs):
    path = _write(
        tmp_path_factory.mktemp("dup") / "c.jsonl",
        {"id": "first", "text": "t"},
        *[{"id": i, "text": t} for i, t in pairs],
    )
    first, same, other = {}, 0, 0
    for i, text in pairs:
        if i not in first:
            first[i] = text
        elif first[i] == text:
            same += 1
        else:
            other += 1
    rejects = Rejects(MANY)
    assert {p.id: p.text for p in _read(path, rejects)} == {"first": "t", **{str(i): t for i, t in first.items()}}
    assert (rejects.duplicates, rejects.rejected) == (same, other)


def test_the_table_of_seen_ids_grows():
    seen = corpus._Seen()
    assert all(seen.add(str(i), b"t") == "new" for i in range(10_000))
    assert all(seen.add(str(i), b"t") == "same" for i in range(10_000))
    assert all(seen.add(str(i), b"u") == "different" for i in range(10_000))


@given(st.lists(st.tuples(st.integers(0, 9) | st.integers(56, 66) | st.integers(0, 1 << 64), st.booleans())))
def test_ids_that_fall_on_each_others_places_stay_apart(pairs):
    with pytest.MonkeyPatch.context() as patch:  # what is hashed is the place in the table, often at one of its ends
        patch.setattr(corpus, "hash64", lambda raw: int(raw) % (1 << 64))
        seen, twin = corpus._Seen(), {}
        for place, content in pairs:
            first = twin.setdefault(place % (1 << 64) or 1, content)
            known = "new" if len(twin) > seen.count else "same" if first == content else "different"
            assert seen.add(str(place), b"1" if content else b"2") == known


def test_memory_does_not_grow_with_texts(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "0", "text": "t"}\n')
    assert [passage.id for passage in read_corpus(path, default_lang="en")] == ["0"]  # imports what it needs
    with open(path, "wb") as file:
        for i in range(5_000):
            file.write(b'{"id": "%d", "text": "%s"}\n' % (i, b"word " * 100))
    tracemalloc.start()
    count = sum(1 for _ in read_corpus(path, default_lang="en"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_000
    assert peak < 5_000 * 100 + (1 << 20)  # the texts have 2.5 MB


# fuzz


LINES = [line for line, _ in NASTY[:12]] + [b"", b"{}", b'{"id":1,"text":"t"}']


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(LINES)).map(b"\n".join))
@pytest.mark.parametrize("name", ["c.jsonl", "c.tsv", "c.jsonl.gz"])
def test_random_bytes_are_counted(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("fuzz") / name
    header = b"id\ttext\n" if name == "c.tsv" else b""
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else header + data)
    rejects = Rejects(MANY)
    try:
        found = _read(path, rejects)
    except DataError:
        found = []
    assert _balanced(rejects)
    assert len(found) == rejects.accepted
    assert all(p.id and p.text.strip() and orjson.dumps([p.id, p.text, p.title, p.meta]) for p in found)


def test_twenty_thousand_mutants(tmp_path):
    good = {"id": "a", "text": "The Nile is long.", "title": "Nile", "lang": "en", "meta": {"a": [1, {"b": None}]}}
    queries = {"docid": "a", "text": "Mto Nile", "generated_queries": {"sw": ["Nini?"], "yo": ["Kí?"]}}
    seeds = [line[:300] for line, _ in NASTY] + [orjson.dumps(good), orjson.dumps(queries)] * 20
    path = tmp_path / "c.jsonl"
    rng = random.Random(1)
    path.write_bytes(b"\n".join(mutant(rng, rng.choice(seeds), number) for number in range(20_000)))
    rejects, query_rejects = Rejects(MANY), Rejects(MANY)
    passages = _read(path, rejects)
    with QueryFile([path], rejects=query_rejects) as found:
        for passage in passages:
            found.get(passage.id)
    assert _balanced(rejects) and _balanced(query_rejects)
    assert rejects.read >= 20_000 and len(passages) > 500


def test_what_is_named_gz_may_be_plain_text_and_nothing_else(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(b'\t{"id": "1", "text": "plain"}\n')
    assert [source.raw for source in open_lines(path)] == [b'\t{"id": "1", "text": "plain"}']
    for byte in (0, 8, 14, 31):
        path.write_bytes(bytes([byte]) + b'{"id": "1", "text": "plain"}\n')
        with pytest.raises(DataError, match="neither gzip nor text"):
            list(open_lines(path))


def test_limits_hold_to_the_last_byte_and_level(tmp_path, monkeypatch):
    path = tmp_path / "whole.json"
    path.write_bytes(b"[1]\n")
    assert read_whole(path, most=4) == "[1]"
    with pytest.raises(DataError, match="over 3 bytes"):
        read_whole(path, most=3)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"12345\n123456\n")
    assert [source.cut for source in open_lines(lines, max_bytes=5)] == [0, 7]
    nested = functools.reduce(lambda inner, _: [inner], range(records.MAX_DEPTH - 1), 0)
    assert check_value(nested) == 0
    with pytest.raises(BadRecord, match="nested deeper"):
        check_value([nested])
    line = b'{"id":"1","text":"t","x":[%s]}' % b",".join([b"1"] * 100)
    for most, passes in ((len(b'{"x":}') + 201, True), (len(b'{"x":}') + 200, False)):
        monkeypatch.setattr(records, "MAX_FIELD_BYTES", most)
        with nullcontext() if passes else pytest.raises(BadRecord, match="its fields take 207 bytes"):
            parse_object(line)


def test_what_64_bits_hold_is_kept_and_keys_are_counted_at_all_levels():
    assert [check_value(value) for value in (2**63 - 1, -(2**63), True, None, 1.5)] == [0] * 5
    for value in (2**63, -(2**63) - 1, 2**64, -(3**63)):
        with pytest.raises(BadRecord, match="more than 64 bits"):
            check_value(value)
    nested = {"a": {"b": 1, "c": [{"d": 2}]}, "e": 0}
    assert check_record(nested) == check_value(nested) == 5
    expect("dim", 3, int, "a number")
    expect("force", True, bool, "true or false")
    with pytest.raises(DataError, match="dim must be a number, found True"):
        expect("dim", True, int, "a number")


def test_lines_and_integers_at_their_limits(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"x" * (16 << 20) + b"\n" + b"y" * ((16 << 20) + 1) + b"\n")
    assert [(source.cut, len(source.raw)) for source in open_lines(path)] == [(0, 16 << 20), ((16 << 20) + 2, 1024)]
    for digits in ("-9223372036854775808", "18446744073709551615"[:19]):
        assert parse_object(b'{"x": %s}' % digits.encode()) == {"x": int(digits)}
    for digits in ("9" * 20, "9" * 21, "9" * 300, "-" + "9" * 20, "-9223372036854775809"):
        said = rf"an integer of more than 64 bits \(write it as text\): {digits[:30]}$"
        with pytest.raises(BadRecord, match=said):
            parse_object(b'{"x": {"y": [%s]}}' % digits.encode())
    for digits in ("9223372036854775808", "18446744073709551615"):
        with pytest.raises(BadRecord, match=r"an integer of more than 64 bits \(write it as text\), under 'x'$"):
            parse_object(b'{"x": {"y": [%s]}}' % digits.encode())
    with pytest.raises(BadRecord, match=r"^no text; found 'a', 'b'$"):
        key_of({"a": None, "b": 1}, ("text",))
    with pytest.raises(BadRecord, match=r"^no id \(expected one of the keys id, _id\); found nothing$"):
        key_of({}, ("id", "_id"))


def test_what_is_no_text_number_or_list_is_refused_in_words(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="max_rejects must be 0 or more, got -1"):
        Rejects(-1)
    for value, kind in (({1}, "set"), (b"x", "bytes"), ([object()], "object"), ({"a": (1,)}, "tuple")):
        with pytest.raises(BadRecord, match=f"a value of type {kind} cannot be stored as JSON"):
            check_value(value)
    with pytest.raises(DataError, match=r"Give a list of texts, not one: \['a question'\]"):
        records.listed("a question")
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"id": 1,\n"text": "\xff"}]')
    with pytest.raises(DataError, match=r"a\.json is not UTF-8 \(invalid start byte at byte 20\); convert the file"):
        read_whole(path)
    monkeypatch.setattr(records, "_RATIO_FREE_BYTES", 10)
    packed, rng = tmp_path / "b.gz", random.Random(1)
    lines = [b"%d" % rng.getrandbits(64) for _ in range(50)]
    packed.write_bytes(gzip.compress(b"\n".join(lines)))
    assert [source.raw for source in open_lines(packed)] == lines  # above the free bytes, and no bomb


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=80, deadline=None)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_passes_the_check_survives_json(value):
    try:
        check_value(value)
    except BadRecord:
        return
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        assert "\\ud" in json.dumps(value)  # lone surrogates cannot come out of a file
        return
    assert orjson.loads(data) == value


# generated queries

CODES = {"sw": "sw", "swa": "sw", "yo": "yo", "zh": "zh", "cmn": "zh"}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "1", "ü\u2028", "x" * 300]),
                st.dictionaries(
                    st.sampled_from(list(CODES)),
                    st.lists(st.sampled_from(["why?", " ", "", "how\nso?", "⁇"]), max_size=3),
                ),
            ),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_get_is_the_dict_twin(tmp_path_factory, contents, pack):
    folder = tmp_path_factory.mktemp("queries")
    paths, twin, blank = [], {}, 0
    for number, rows in enumerate(contents):
        data = b"\n\n".join(
            json.dumps({"id": id, "generated_queries": qs}, ensure_ascii=False).encode() for id, qs in rows
        )
        paths.append(folder / (f"{number}.jsonl.gz" if pack else f"{number}.jsonl"))
        paths[-1].write_bytes(gzip.compress(data) if pack else b"\xef\xbb\xbf" + data)
        for id, by_lang in rows:
            merged = twin.setdefault(id, {})
            for lang, questions in by_lang.items():
                kept = [q for q in questions if q.strip()]
                blank += len(questions) - len(kept)
                if kept:
                    merged[CODES[lang]] = merged.get(CODES[lang], ()) + tuple(kept)
    rejects = Rejects()
    with QueryFile(paths, rejects=rejects) as found:
        assert _balanced(rejects) and rejects.accepted == len(found) == sum(map(len, contents))
        assert found.blank == blank
        assert found.languages == tuple(sorted({lang for merged in twin.values() for lang in merged}))
        assert set(found.unused(1000)) == set(twin) and found.unused_count == len(found)
        assert found.get("absent") is None
        for id in [*twin, *reversed(twin)]:
            assert found.get(id) == GeneratedQueries(id, twin[id])
        assert found.unused(5) == [] and found.unused_count == 0


def test_the_papers_files_and_ours(tmp_path):
    paper = _write(
        tmp_path / "p.jsonl", {"docid": 5, "title": "T", "text": "t", "generated_queries": {"fi": ["mitä?"]}}
    )
    assert write_records(tmp_path / "q.jsonl.gz", [GeneratedQueries("5", {"sw": ("nini?", "nani?")})]) == 1
    first = (tmp_path / "q.jsonl.gz").read_bytes()
    write_records(tmp_path / "q.jsonl.gz", [GeneratedQueries("5", {"sw": ("nini?", "nani?")})])
    assert (tmp_path / "q.jsonl.gz").read_bytes() == first
    assert json.loads(gzip.decompress(first)) == {"id": "5", "generated_queries": {"sw": ["nini?", "nani?"]}}
    with QueryFile([paper, tmp_path / "q.jsonl.gz"]) as found:
        assert found.get("5") == GeneratedQueries("5", {"fi": ("mitä?",), "sw": ("nini?", "nani?")})


def test_writing_is_all_or_nothing(tmp_path):
    def broken():
        yield GeneratedQueries("a", {})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(tmp_path / "q.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


def test_bad_query_lines(tmp_path):
    path = _write(
        tmp_path / "q.jsonl",
        {"id": "a", "generated_queries": {"sw": ["x"]}},
        {"id": "b"},
        {"id": "c", "generated_queries": {"sw": "x"}},
        {"id": "d", "generated_queries": {"sw": [1]}},
        {"id": "e", "generated_queries": {"xx": ["y"]}},
        {"generated_queries": {"sw": ["x"]}},
        b"{",
    )
    with pytest.raises(DataError, match="line 2: no generated_queries"):
        QueryFile([path])
    rejects = Rejects(6)
    with QueryFile([path], rejects=rejects) as found:
        assert len(found) == 1 and found.get("c") is None and found.get("a").queries == {"sw": ("x",)}
    assert rejects.rejected == 6 and _balanced(rejects)


def test_query_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        QueryFile([tmp_path / "q.jsonl"])
    path = _write(tmp_path / "q.jsonl", b"")
    with pytest.raises(DataError, match=r"q\.jsonl holds no generated queries\."):
        QueryFile([path])
    with pytest.raises(DataError, match="A query file is given twice"):
        QueryFile([path, str(path)])


def test_a_file_that_changes_is_noticed(tmp_path):
    path = _write(tmp_path / "q.jsonl", {"id": "a", "generated_queries": {}}, {"id": "b", "generated_queries": {}})
    with QueryFile([path]) as found:
        _write(path, {"id": "c", "generated_queries": {}}, {"id": "b" * 40, "generated_queries": {}})
        for id in "ab":
            with pytest.raises(DataError, match=r"q\.jsonl changed while it was in use"):
                found.get(id)


def test_ids_that_share_a_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "hash64", lambda id: 7)
    path = _write(tmp_path / "q.jsonl", *[{"id": id, "generated_queries": {"sw": [id]}} for id in "abca"])
    with QueryFile([path]) as found:
        assert found.get("a").queries == {"sw": ("a", "a")}
        assert found.get("c").queries == {"sw": ("c",)}
        assert found.get("d") is None
        assert found.unused(9) == ["b"]


# questions


def test_questions(tmp_path):
    path = _write(
        tmp_path / "q.jsonl",
        {"id": 1, "question": "Nini?", "lang": "swa", "answers": ["x"], "split": "dev"},
        {"_id": "2", "text": "What?", "metadata": {}},
        {"_id": "2", "text": "What?"},
    )
    assert read_questions(path) == [Question("1", "Nini?", "sw"), Question("2", "What?")]
    plain = tmp_path / "q.txt"
    plain.write_text("\ufeffWhat is it?\r\n\n  Kí ni?  \n", "utf-8")
    assert read_questions(plain) == [Question("1", "What is it?"), Question("3", "Kí ni?")]
    bad = _write(tmp_path / "bad.jsonl", {"id": 1, "text": "a"}, {"id": 1, "text": "b"}, {"id": 2}, b"x")
    rejects = Rejects(3)
    assert read_questions(bad, rejects=rejects) == [Question("1", "a")]
    assert rejects.rejected == 3 and _balanced(rejects)
    with pytest.raises(DataError, match="line 2: id '1' appeared before with other content"):
        read_questions(bad)
    with pytest.raises(DataError, match=r"holds no question; expected one a line"):
        read_questions(_write(tmp_path / "empty.txt", b""))


def test_questions_from_a_pipe(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"What?\nWho?\n"))
    writer.start()
    assert read_questions(fifo) == [Question("1", "What?"), Question("2", "Who?")]
    writer.join()


def test_the_shipped_questions():
    bank = question_bank()
    assert len(bank) >= 40 and {"en", "sw", "yo", "zh", "no"} <= set(bank)
    assert all(len(questions) >= 30 and all(q == q.strip() and q for q in questions) for questions in bank.values())


def test_the_shipped_sample_is_where_it_should_be():
    sample = sample_corpus()
    assert [path.name for path in (sample.corpus, sample.queries, sample.questions)] == [
        "corpus.jsonl", "queries.jsonl", "questions.jsonl",
    ]  # fmt: skip
    assert {path.parent.name for path in (sample.corpus, sample.queries, sample.questions)} == {"sample"}
