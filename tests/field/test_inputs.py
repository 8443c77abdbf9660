"""Files as strangers have them: read as they are meant, or refused in a sentence that names file, line and column."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
import re
import shutil
import subprocess
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.beir import read_beir
from xqg_vdb.evaluate.suite import read_suite
from xqg_vdb.index.load import load
from xqg_vdb.index.update import add
from xqg_vdb.store import open_store
from xqg_vdb.store.bm25 import WordWriter, settings_of
from xqg_vdb.store.gate import checked
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.corpus import read_corpus, read_questions
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.queries import QueryFile, read_queries
from xqg_vdb.texts.records import Rejects
from xqg_vdb.train.pairs import read_pairs
from xqg_vdb.types import Bm25Settings, Card, Hybrid, Passage, PointBatch, Recipe

INPUTS = Path(__file__).parent / "inputs"
NILE = "The Nile is a river in north-eastern Africa."
BEES = "Honey bees store honey in combs of wax."


def read(path: Path, rejects: Rejects | None = None, **options: object) -> list[Passage]:
    return list(read_corpus(path, rejects=rejects, detect=False, **options))


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", ["UPPER.JSONL", "array.json", "pretty.json"])
def test_json_in_its_shapes(name):
    assert [(p.id, p.text) for p in read(INPUTS / "formats" / name)] == [("1", NILE), ("2", BEES)]


def test_json_that_is_spread_names_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"id": "1", "text": "a"},\n{"text": "b"},\n{"id": "3" "text": "c"}]')
    rejects = Rejects(9)
    with pytest.raises(DataError, match=r"a\.json line 4: not JSON"):
        read(path, rejects)
    assert rejects.read == 2 and rejects.rejected == 1
    path.write_text('{\n "id": "1",\n "text": "a"\n}\n')
    assert [p.id for p in read(path)] == ["1"]


def test_names_that_other_tools_give_to_text_language_and_fields():
    assert read(INPUTS / "formats/contents.jsonl")[0].text == NILE
    assert read(INPUTS / "formats/haystack.jsonl")[0] == Passage("1", NILE, meta={"name": "a.txt"})
    assert [p.lang for p in read(INPUTS / "formats/language_key.jsonl")] == ["fr", "und"]
    assert read(INPUTS / "meta_title.jsonl")[1] == Passage(
        "2", "Bees make honey in hives.", "Bees", meta={"source": "a.pdf"}
    )
    assert read(INPUTS / "meta_lang.jsonl")[1] == Passage(
        "2", "Bees make honey in hives.", lang="en", meta={"source": "a.pdf"}
    )


def test_an_export_of_langchain(tmp_path):
    document = {"id": "1", "page_content": NILE, "metadata": {"title": "Nile", "lang": "en", "page": 3}}
    assert read(write(tmp_path / "c.jsonl", document)) == [Passage("1", NILE, "Nile", "en", {"page": 3})]
    with pytest.raises(DataError, match=r"c\.jsonl line 1: meta\.title differs from title"):
        read(write(tmp_path / "c.jsonl", {**document, "title": "Bees", "meta": document["metadata"]}))


@pytest.mark.parametrize("name", ["utf16.jsonl", "excel16.tsv"])
def test_utf16_is_named(name):
    with pytest.raises(DataError, match=r"is UTF-16, not UTF-8; convert it: iconv"):
        read(INPUTS / "formats" / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bigint.jsonl", "line 1: an integer of more than 64 bits .* under 'simhash'"),
        ("nan.jsonl", "line 1: not JSON: .* write null for NaN"),
        ("multiline.tsv", "line 2: a quoted column does not end on its line"),
        ("squad.json", "line 1: no id .* found 'version', 'data'"),
    ],
)
def test_what_cannot_be_read_names_line_column_and_cure(name, reason):
    for rejects in (Rejects(), Rejects(5)):
        with pytest.raises(DataError, match=reason):
            read(INPUTS / "formats" / name, rejects)


def test_tables(tmp_path):
    assert [(p.id, p.text) for p in read(INPUTS / "formats/noheader.tsv")] == [
        ("0", "The Nile is a river."),
        ("1", "Bees store honey."),
    ]
    path = tmp_path / "c.csv"
    path.write_bytes(b'id,text,title\r\n1,"one, and\r\n\r\ntwo",T\r\n2,three,""\r\n')
    rejects = Rejects()
    assert [(p.text, p.title) for p in read(path, rejects)] == [("one, and\n\ntwo", "T"), ("three", "")]
    assert rejects.read == rejects.accepted + rejects.blank
    path.write_text("doc,body\nx,y\n")
    with pytest.raises(
        DataError, match=r"c\.csv line 1: expected a header such as id,text,title, found \['doc', 'body'\]"
    ):
        read(path)


def test_folders_of_one_kind(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in (10, 2):
        with gzip.open(tmp_path / f"docs-{number}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"id": number, "text": "t"}) + "\n")
    (tmp_path / "README.md").write_text("about")
    assert [p.id for p in read(tmp_path)] == ["2", "10"]
    pq.write_table(pa.table({"id": ["p"], "text": ["t"]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"passages of one kind only, but .*\.jsonl.* and .*\.parquet"):
        read(tmp_path)
    for file in tmp_path.glob("docs-*"):
        file.unlink()
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [p.id for p in read(tmp_path)] == ["p"]
    shutil.copy(tmp_path / "train-0.parquet", tmp_path / "queries.parquet")
    with pytest.raises(DataError, match=r"queries\.parquet beside them"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "meta", "left_out"),
    [
        ("ns", {"at": "2024-05-01T00:00:00.123456"}, {}),
        ("decimal", {"price": "1.50"}, {}),
        ("duration", {"len": 5.0}, {}),
        ("mapcol", {"attrs": {"a": "b"}}, {}),
        ("u64", {"h": "9223372036854775813"}, {}),
        ("uuid_meta", {"doc": "00000000-0000-0000-0000-000000000007"}, {}),
        ("bytes_text", {}, {}),
        ("binary_meta", {}, {"img": "bytes that are no text"}),
        ("nan", {}, {"score": "nan"}),
        ("emb_nan", {}, {"emb": "nan"}),
    ],
)
def test_parquet_is_converted_or_left_out_by_name(name, meta, left_out):
    rejects = Rejects()
    [passage] = read(INPUTS / "parquet" / f"{name}.parquet", rejects)
    assert passage == Passage("1", NILE, meta=meta) and rejects.left_out == left_out


def test_parquet_of_other_edges(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert read(INPUTS / "parquet/uuid_id.parquet")[0].id == "d8ac99ac-e665-424c-b3fb-d1ebef7465d2"
    table = pa.table(
        {
            "id": ["1"],
            "text": ["t"],
            "far": pa.array([10**15], pa.timestamp("s")),
            "days": pa.array([10**8], pa.date32()),
            "times": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
            "clock": pa.array([1001], pa.time64("ns")),
            "inner": pa.array([{"at": 1_001, "n": 2**63}], pa.struct([("at", pa.duration("ns")), ("n", pa.uint64())])),
            "keyed": pa.array([[(1, 2.5)]], pa.map_(pa.int32(), pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    rejects = Rejects()
    [passage] = read(tmp_path / "c.parquet", rejects)
    assert rejects.left_out == {"far": "out of range", "days": "out of range"}
    assert passage.meta == {
        "times": ["1970-01-01T00:00:00"],
        "clock": "00:00:00.000001",
        "inner": {"at": 1e-06, "n": str(2**63)},
        "keyed": {"1": 2.5},
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"text": "Knowledge is power. " * 60_000},
        {"text": "\x01" * 180_000 + "t"},
        {"text": "t", "note": "n" * (1 << 20)},
        {"text": "t", "query_langs": ["sw"]},
        {"text": "t", "meta": {"query_langs": ["sw"]}},
        json.loads((INPUTS / "deep31.jsonl").read_text()),
    ],
)
def test_what_the_store_refuses_is_rejected_before_anything_is_encoded(tmp_path, bad):
    path = write(tmp_path / "c.jsonl", {"id": "a", "text": NILE}, {**bad, "id": "b"}, {"id": "c", "text": BEES})
    rejects = Rejects(1)
    passages = read(path, rejects)
    assert [p.id for p in passages] == ["a", "c"] and rejects.rejected == 1


@pytest.mark.parametrize("levels", [29, 30, 31])
def test_the_reader_and_the_store_bear_the_same_depth(tmp_path, levels):
    value: object = "x"
    for _ in range(levels):
        value = {"a": value}
    path = write(tmp_path / "c.jsonl", {"id": "1", "text": "t"}, {"id": "2", "text": "t", "tree": value})
    encoder = HashEncoder(dim=8)
    card = Card(encoder.facts, "cosine", Recipe())
    passages = read(path, Rejects(1))
    assert len(passages) == (2 if levels <= 30 else 1)
    vectors = {name: np.ones((len(passages), 8), np.float32) for name in card.vectors}
    assert len(checked(PointBatch(passages, vectors, [[] for _ in passages]), card=card).ids) == len(passages)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("topics.tsv", [("1", "Where is the river Nile?"), ("2", "What do bees store in combs?")]),
        ("q.csv", [("7", "Where is the river Nile?")]),
        ("q_hdr.tsv", [("7", "Where is the river Nile?")]),
        ("q_arr.json", [("7", "Where is the river Nile?")]),
    ],
)
def test_questions_go_by_suffix_and_header(name, asked):
    assert [(q.id, q.text) for q in read_questions(INPUTS / name)] == asked


def test_questions_without_a_suffix(tmp_path):
    path = tmp_path / "topics"
    path.write_text("q1\tWhere is it?\nq2\tWho was it?\n")
    assert [(q.id, q.text) for q in read_questions(path)] == [("q1", "Where is it?"), ("q2", "Who was it?")]
    path.write_text("Where is it?\nWho was it?\n")
    assert [(q.id, q.text) for q in read_questions(path)] == [("1", "Where is it?"), ("2", "Who was it?")]
    path.write_text('[{"id": "7"}]')
    with pytest.raises(DataError, match=r"name it by its kind: \.json"):
        read_questions(path)
    for lines in ("1. Where?\n2. Who?", "7 Where?\n8 Who?\n9 Why?", "- Where?\n* Who?", "q1: Where?\nq2: Who?"):
        path.write_text(lines)
        with pytest.raises(DataError, match="is a list with numbers or marks; write a number, a tab"):
            read_questions(path)
    path.write_text("7 wonders\n8 planets\n100 meter record\n")
    assert [q.text for q in read_questions(path)] == ["7 wonders", "8 planets", "100 meter record"]
    path = tmp_path / "q.csv"
    path.write_text("id;question\n1;Where?\n")
    with pytest.raises(DataError, match="separate columns by commas, not semicolons"):
        read_questions(path)
    path = tmp_path / "q.tsv"
    path.write_text("qid\tquery\n3\tWhere?\n")
    assert [(q.id, q.text) for q in read_questions(path)] == [("3", "Where?")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"id": "1", "text": "w"}'.encode("utf-32"), "is UTF-32, not UTF-8; convert it: iconv -f UTF-32"),
        ('{"id": "1", "text": "w"}'.encode("utf-16-le"), "UTF-16LE without a mark, .* iconv -f UTF-16LE"),
        ('{"id": "1", "text": "w"}'.encode("utf-16-be"), "UTF-16BE without a mark, .* iconv -f UTF-16BE"),
        (
            '{"id": "1", "text": "Größe"}'.encode("latin-1"),
            "line 1: not UTF-8: .* at byte 23 of the line; convert",
        ),
        ('{"id": "1", "text": "日本"}'.encode("shift-jis"), "line 1: not UTF-8: .*iconv -f ENCODING"),
        (bz2.compress(b"{}"), "is packed by bzip2; unpack it: bunzip2"),
        (lzma.compress(b"{}"), "is packed by xz; unpack it: unxz"),
        (b"\x28\xb5\x2f\xfd\x04", "is packed by zstd; unpack it: unzstd"),
        (b"\x04\x22\x4d\x18..", "is packed by lz4; unpack it: unlz4"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is packed by gzip; unpack it: gunzip"),
        ('{"id": "1", "text": "w"}'.encode("utf-32-le"), "UTF-32LE without a mark, .* iconv -f UTF-32LE"),
        ('{"id": "1", "text": "w"}'.encode("utf-32-be"), "UTF-32BE without a mark, .* iconv -f UTF-32BE"),
        (b"ARROW1..", "is Arrow or Feather; write it as Parquet"),
        (b"<HTML><body>", "is a web page; fetch the data itself"),
        (b"<?xml version", "is XML; make JSON lines"),
        (b"PK\x03\x04..", "is a ZIP archive"),
        (b"PAR1..", r"is Parquet, which is read for a corpus or questions that are named \.parquet"),
        (b"<!DOCTYPE html>", "is a web page; fetch the data itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS; .* git lfs pull"),
        (b'{"id": "1", "text": "w"}\r{"id": "2", "text": "w"}\r', r"not JSON: .*; end lines by line feeds: tr"),
        (b'{\n"id": "1",\n"text": "w"}', r"not JSON: .*; name a file whose objects are spread over lines \.json"),
        (
            b'{"docs": [{"id": "1", "text": "w"}]}',
            r"found 'docs'; make lines of what it lists: jq -c '\.docs\[\]'",
        ),
        (b'{"_index": "i", "_id": "1", "_source": {"text": "w"}}', r"lies in _source: jq -c '\._source \+ \{id: "),
        (b'{"id": 1, "payload": {"text": "w"}, "vector": [1]}', r"lies in payload: jq -c '\.payload \+ \{id: "),
        (b'{"_id": {"$oid": "5f"}, "text": "w"}', r"""MongoDB's; write jq -c '\._id \|= \."\$oid"'"""),
        (b'{"id": "1", "text": "w", "k": 99999999999999999999}', "an integer of more than 64 bits"),
        (b'{"id": 99999999999999999999, "text": "w"}', "an integer of more than 64 bits"),
        (b'{"id": null, "text": "w"}', "no id .*; found 'id', 'text'"),
    ],
)
def test_files_of_other_kinds_are_told_by_their_bytes(tmp_path, data, told):
    (tmp_path / "c.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=rf"c\.jsonl.*{told}"):
        read(tmp_path / "c.jsonl")


def test_a_name_that_is_none_is_told_by_the_bytes_and_a_folder_by_what_is_there(tmp_path):
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(b"{}"))
    with pytest.raises(DataError, match=r"c\.jsonl\.bz2 is packed by bzip2; unpack it: bunzip2"):
        read(tmp_path / "c.jsonl.bz2")
    (tmp_path / "hive/lang=en").mkdir(parents=True)
    with pytest.raises(DataError, match="but only folders such as lang=en"):
        read(tmp_path / "hive")
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"There is no file .*link\.jsonl; check the path"):
        read(tmp_path / "link.jsonl")


@pytest.mark.parametrize("text", ['[{"id": "1", "text": "w"},', '[{"id": "1", "text": "w", "tags": ["a"]}'])
def test_an_array_that_was_cut_short_is_no_corpus(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=r"c\.json ends within its array, as a file does that was cut short"):
        read(tmp_path / "c.json")


def test_a_name_with_gz_does_not_make_gzip(tmp_path):
    (tmp_path / "c.jsonl.gz").write_text('{"id": "1", "text": "w"}\n')
    (tmp_path / "d.jsonl").write_bytes(gzip.compress(b'{"id": "1", "text": "w"}\n'))
    assert read(tmp_path / "c.jsonl.gz") == read(tmp_path / "d.jsonl") == [Passage("1", "w")]


@pytest.mark.parametrize(
    ("record", "passage"),
    [
        ({"id": None, "_id": "1", "text": None, "content": "w"}, Passage("1", "w")),
        (
            {"id_": "1", "text": "w", "metadata": {"title": "T", "lang": "de", "n": 1}},
            Passage("1", "w", "T", "de", {"n": 1}),
        ),
        ({"id": "1", "text": "w", "lang": "en", "meta": {"lang": "eng"}}, Passage("1", "w", "", "en")),
        ({"id": "1", "text": "w", "lang": "unknown", "meta": {"lang": "de"}}, Passage("1", "w", "", "de")),
        ({"id": "1", "text": "w", "title": "", "meta": {"title": "Bees"}}, Passage("1", "w", "Bees")),
        ({"id": "1", "text": "w", "title": "Bees", "meta": {"title": "Bees "}}, Passage("1", "w", "Bees")),
        ({"id": "1", "text": "w", "lang": "-"}, Passage("1", "w")),
        ({"id": "1", "text": "w", "a.b": {"": [None]}}, Passage("1", "w", meta={"a.b": {"": [None]}})),
        (
            {"id": "1", "text": "w", "k": "12345678901234567890123"},
            Passage("1", "w", meta={"k": "12345678901234567890123"}),
        ),
        ({"id": "1", "text": "w", "k": 0.12345678901234567890123}, Passage("1", "w", meta={"k": 0.12345678901234568})),
    ],
)
def test_fields_as_exports_spell_them(tmp_path, record, passage):
    assert read(write(tmp_path / "c.jsonl", record)) == [passage]


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("q.txt", "id\ttext\n7\tWhere?\n", [("7", "Where?")]),
        ("q.txt", "qid\tquery\n7\tWhere?\n", [("7", "Where?")]),
        ("q.txt", "\ufeffWhere?\r\n\r\nWho?\r\n", [("1", "Where?"), ("3", "Who?")]),
        ("q.query", "PLAIN-1\tWhere?\n", [("PLAIN-1", "Where?")]),
        ("q.csv", 'id,text\r\n7,"Where\r\nis it?"\r\n', [("7", "Where\nis it?")]),
        ("q.tsv", "question_id\tquestion\tlang\n7\tWhere?\ten\n", [("7", "Where?")]),
        ("q.txt", "Where?\tThere\n", "expected a header such as id<TAB>text"),
        ("q.txt", "q-a\tWhere?\n", "expected a header such as id<TAB>text"),
        *(
            ("q.txt", text, "is a list with numbers or marks")
            for text in (
                "1,Where?\n2,Who?\n",
                "1;Where?\n2;Who?",
                '"1","Where?"\n"2","Who?"',
                "301:Where\n302:Who",
                "a) Where?\nb) Who?",
                "１．何？\n２．誰？",
                "(1) Where?\n(2) Who?",
                "• Where?\n• Who?",
            )
        ),
        ("q.txt", "id,question\n1,Where?\n", r"begins with names of columns: name it \.csv"),
        ("q.txt", "Question\nWhere?\n", r"begins with names of columns: .*take that line out"),
        ("q.txt", "1. Where?\n", "is a list with numbers or marks"),
        ("q.txt", "Q1: Where?", "is a list with numbers or marks"),
        ("q.txt", "# mine\nWhere?\n", "line 1: a comment, no question; take the line out"),
        (
            "q.txt",
            '"Where is it?"\n“Who?”\n«Quand ?»\n"A" or "B"?\n',
            [("1", "Where is it?"), ("2", "Who?"), ("3", "Quand ?"), ("4", '"A" or "B"?')],
        ),
        (
            "q.txt",
            "#1 song 1999?\n1. FC Köln wurde wann gegründet?\n",
            [("1", "#1 song 1999?"), ("2", "1. FC Köln wurde wann gegründet?")],
        ),
        ("q.txt", "Where?\rWho?\r", "a carriage return within the line; end lines by line feeds"),
        ("q.jsonl", '{"question": "Where?"}\n', "no id .*qid.*; found 'question'"),
        ("q.json", '{"questions": [{"id": 1}]}', r"no .*jq -c '\.questions\[\]'"),
    ],
)
def test_questions_in_files_of_strangers(tmp_path, name, text, asked):
    (tmp_path / name).write_bytes(text.encode())
    if isinstance(asked, str):
        with pytest.raises(DataError, match=asked):
            read_questions(tmp_path / name)
    else:
        assert [(q.id, q.text) for q in read_questions(tmp_path / name)] == asked


def test_parquet_of_values_that_wrap_or_repeat(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "long": pa.array([2**62], pa.duration("s")),
        "late": pa.array([2**62], pa.timestamp("us")),
        "twice": pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
        "fields": pa.StructArray.from_arrays([pa.array([1]), pa.array([3])], names=["a", "a"]),
        "__index_level_0__": pa.array([0]),
        "t32": pa.array([3661], pa.time32("s")),
        "nul": pa.array([b"\0" * 16], pa.binary(16)),
        "keys": pa.array([[(b"\xff", 1)]], pa.map_(pa.binary(), pa.int64())),
    }
    pq.write_table(pa.table({"id": ["1"], "text": ["w"], **columns}), tmp_path / "c.parquet")
    rejects = Rejects()
    assert read(tmp_path / "c.parquet", rejects) == [Passage("1", "w", meta={"t32": "01:01:01"})]
    assert rejects.left_out.keys() == {"long", "late", "twice", "fields", "nul", "keys"}
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 2, 2)))
    pq.write_table(pa.table({"id": ["1"], "text": ["w"], "k": tensor}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet")[0].meta == {"k": [1.0] * 4}
    raw = pa.table({"id": pa.array([b"\xff"], pa.binary()), "text": ["w"]})
    pq.write_table(raw, tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"no id .*column id was left out: bytes that are no text"):
        read(tmp_path / "c.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * 3, names=["id", "text", "text"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="has two columns 'text'"):
        read(tmp_path / "c.parquet")
    (tmp_path / "c.parquet").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match="is a pointer of Git LFS"):
        read(tmp_path / "c.parquet")


NO_INK = ["\u2800", "\u3164", "\u115f\u1160", "\uffa0", "\ufe0f", "\U000e0100", "\u034f", "\u17b4", "\u180b",
          "\u2063", "\u202e", "\u00a0", "\u1680", "\u3000", "\U0001d159", "\U0001bca0", "\ufff9", "\x85"]  # fmt: skip


@pytest.mark.parametrize("sign", NO_INK, ids=ascii)
def test_what_has_no_ink_is_no_text_and_decides_nothing(tmp_path, sign):
    path = write(tmp_path / "c.jsonl", {"id": "1", "text": sign * 5})
    with pytest.raises(DataError, match="text is blank"):
        read(path)
    rows = [{"id": str(i), "text": sign * 9000 + text} for i, text in enumerate((NILE, BEES))]
    assert [p.lang for p in read_corpus(write(path, *rows))] == ["en", "en"]


def test_rejects_never_go_over_an_input(tmp_path):
    path = write(tmp_path / "c.jsonl", {"id": "1", "text": "t"}, {"id": "2"})
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"c\.jsonl is an input of this command"):
        read(path, Rejects(5, path))
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(DataError, match=r"c\.jsonl is an input of this command"),
    ):
        load(tmp_path, "c", encoder=HashEncoder(dim=8), rejects=Rejects(5, path), store=store)
    assert path.read_bytes() == before


def test_languages_of_wikipedia_and_of_nobody():
    codes = [
        "simple",
        "zh-classical",
        "zh-yue",
        "zh-min-nan",
        "no",
        "fiu-vro",
        "be-x-old",
        "map-bms",
        "zh_classicalwiki",
    ]
    assert [normalize(code) for code in codes] == ["en", "zh", "yue", "nan", "no", "vro", "be", "jv", "zh"]
    assert {normalize(code) for code in ("unknown", "UNK", "n/a", "none")} == {"und"}


@pytest.mark.parametrize("blank", ["\n", " ", "\t\u00ad", "\u200b", "\u3000", "\u2800", "\u3164", "\u115f", "\ufeff"])
def test_blanks_in_front_decide_nothing(tmp_path, blank):
    rows = [{"id": str(i), "text": blank * 9000 + text} for i, text in enumerate((NILE, BEES))]
    path = write(tmp_path / "c.jsonl", *rows)
    assert [p.lang for p in read_corpus(path)] == ["en", "en"]


def found(passages: list[str], question: str, lang: str | None = None) -> list[float]:
    """What each passage scores, without the inverse document frequency."""
    made = [Passage(str(i), text) for i, text in enumerate(passages)]
    words = WordWriter(settings_of(made, Hybrid(lang)))
    asked = set(words.question(question).indices.tolist())
    return [len(asked & set(words.document(passage).indices.tolist())) for passage in made]


@pytest.mark.parametrize("lang", [None, "en", "de"])
@pytest.mark.parametrize(
    ("right", "wrong", "question"),
    [
        ("Apollo 13 was a flight", "Apollo 11 was a flight", "Apollo 13"),
        ("the year ١٩٦٩", "the year 1968", "year 1969"),
        ("日本の首都は東京です", "大阪は大きな都市です", "日本首都"),
        ("a co\u00adoperative of bees", "a hive of bees", "cooperative bees"),
        ("می\u200cخواهم کتاب", "خانه", "ميخواهم كتاب"),
        ("die lange STRASSE", "die lange Allee", "lange Straße"),
    ],
)
def test_words(lang, right, wrong, question):
    good, bad = found([right, wrong], question, lang)
    assert good > bad


def test_collections_of_older_versions_keep_their_words():
    old = Bm25Settings.from_json({"lang": "none", "avg_len": 5.0, "k": 1.2, "b": 0.75})
    assert old.words == 1 and len(WordWriter(old).question("13").indices) == 0


def test_hostile_files_are_bounded(tmp_path):
    """What took seconds a megabyte: each is a sentence or a count now, by work that grows with the file alone."""
    path = tmp_path / "c.jsonl"
    path.write_text("{" + '"k": 1, ' * 32_000 + '"id": "1", "text": "t"}\n')
    with pytest.raises(DataError, match="key 'k' appears twice"):
        read(path)
    path.write_bytes(b'{"id": "1", "text": "t"}\n' + b"\n" * 5_000_000 + b'{"id": "2", "text": "t"}\n\n')
    rejects = Rejects()
    assert len(read(path, rejects)) == 2
    assert rejects.counts() == {"read": 5_000_003, "accepted": 2, "duplicates": 0, "blank": 5_000_001, "rejected": 0}
    path.write_text('{"id": "1", "text": "t", "m": [' + "1," * 5_000_000 + "1]}\n")
    with pytest.raises(DataError, match=r"its fields take 10,000,\d+ bytes, more than 4,194,304 beside its texts"):
        read(path)
    for record, cure in [({"id": "x" * 2_000_000, "text": "t"}, "shorten its other fields"),
                         ({"id": "1", "text": "word " * 400_000}, "load with --chunk")]:  # fmt: skip
        write(path, record)
        with pytest.raises(DataError, match=rf"it takes 2,000,\d+ bytes, more than 1,044,480 can be stored; {cure}"):
            read(path)
    path = tmp_path / "c.tsv"
    path.write_bytes(b"id\ttext\n1\t" + b"\t" * 15_000_000 + b'"x"\n')
    with pytest.raises(DataError, match=r"c\.tsv line 2: more columns than 2"):
        read(path)


def test_a_language_that_is_a_number(tmp_path):
    folder = tmp_path / "beir"
    shutil.copytree(INPUTS / "beir/titles", folder)
    write(folder / "queries.jsonl", {"_id": "q1", "text": "Where?", "lang": 5})
    with pytest.raises(DataError, match=r"queries\.jsonl line 1: a language code must be text, not a number"):
        read_beir(folder)
    with pytest.raises(DataError, match="must be text, not 5"):
        normalize(5)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "a.jsonl",
            b'{"uuid": "1", "properties": {"text": "x"}}',
            r"\.properties \+ \{id: \(\._id // \.id // \.uuid\)\}",
        ),
        ("b.jsonl", b'{"__data__": {"id_": "1", "text": "x"}}', "what lies in __data__"),
        ("c.jsonl", b'{"id": "1", "values": [1], "metadata": {"text": "x"}}', "what lies in metadata"),
    ],
)
def test_records_inside_those_of_other_stores_are_named_with_what_to_type(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=told):
        list(read_corpus(tmp_path / name))


@pytest.mark.parametrize(
    ("data", "told"),
    [("Who?\n".encode("utf-16-le"), "UTF-16LE without a mark"), (b"- id: 1\n  text: Who?\n", "no lines of text"),
     (b"---\n", "no lines of text"), (b"questions:\n  - Who?\n", "write one question a line"),
     (b'q1 = "Who?"\n', "no lines of text"),
     (b"<top>\n<num> Number: 301\n<title> Crime\n</top>\n", "TREC's topics; write the number, a tab and"),
     (b"\xff\xff\xff\xff\x78\0\0\0", "a stream of Arrow; write it as Parquet")],
)  # fmt: skip
def test_what_is_no_list_of_questions(tmp_path, data, told):
    (tmp_path / "q.txt").write_bytes(data)
    with pytest.raises(DataError, match=told):
        read_questions(tmp_path / "q.txt")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("q.csv", "id\tquestion\n1\tWho?\n", "separate columns by commas, not tabs"),
        ("q.tsv", "id,question\n1,Who?\n", "separate columns by tabs, not commas"),
        ("q.csv", "id|question\n1|Who?\n", "separate columns by commas, not bars"),
    ],
)
def test_tables_with_other_marks_are_named(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        read_questions(tmp_path / name)


def test_rows_of_a_spreadsheet_that_hold_nothing_are_blank(tmp_path):
    (tmp_path / "q.csv").write_text('id,question\r\n1,Who?\r\n,\r\n2,Where?\r\n"",\r\n')
    asked = read_questions(tmp_path / "q.csv", rejects=(rejects := Rejects()))
    assert [question.text for question in asked] == ["Who?", "Where?"]
    assert rejects.counts() == {"read": 4, "accepted": 2, "duplicates": 0, "blank": 2, "rejected": 0}


BOM = b"\xef\xbb\xbf"
QUERIES = {"id": "1", "generated_queries": {"sw": ["Mto Nile una urefu gani?"]}}
PAIR = {"query": "Wo ist der Nil?", "lang": "de", "positive": NILE}
SQUAD = {"data": [{"paragraphs": [{"context": NILE, "qas": [{"id": "q", "question": "Wo?", "lang": "de"}]}]}]}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize(
    ("name", "record", "read_it", "found"),
    [
        ("p.JSONL", PAIR, lambda path: read_pairs(str(path), split="train")[0].positive.text, NILE),
        ("p.Json", SQUAD, lambda path: read_pairs(str(path), split="train")[0].positive.text, NILE),
        ("q.JSON", [QUERIES], lambda path: next(read_queries(path)).queries["sw"], ("Mto Nile una urefu gani?",)),
        ("s.toml", None, lambda path: read_suite(path).name, "mine"),
    ],
)
def test_every_reader_takes_any_case_packing_and_mark(tmp_path, name, record, read_it, found, pack, mark):
    text = json.dumps(record, indent=1 if isinstance(record, list) else None)
    suite = 'name = "mine"\ndatasets = ["beir/x"]\n[[systems]]\nname = "a"\n'
    (tmp_path / name).write_bytes(pack(mark + (text if record else suite).encode()))
    assert read_it(tmp_path / name) == found


def test_queries_are_found_in_an_array(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{**QUERIES, "id": "0"}, QUERIES], indent=1))
    with QueryFile([tmp_path / "q.json"]) as table:
        assert table.get("1").queries == {"sw": ("Mto Nile una urefu gani?",)} and table.unused(2) == ["0"]


def test_files_that_were_joined_have_a_mark_each(tmp_path):
    path, line = tmp_path / "c.jsonl", json.dumps({"id": "1", "text": NILE}).encode() + b"\n"
    path.write_bytes(BOM + line + BOM + line.replace(b'"1"', b'"2"'))
    assert [passage.id for passage in read(path)] == ["1", "2"]
    table = tmp_path / "c.tsv"
    table.write_bytes(BOM + b"id\ttext\n1\tw\n" + BOM + b"2\tw\n")
    assert [passage.id for passage in read(table)] == ["1", "2"]


LANGCHAIN = {"lc": 1, "type": "constructor", "id": ["langchain"], "kwargs": {"page_content": "w"}}


@pytest.mark.parametrize(
    ("name", "record", "ids"),
    [
        ("a.jsonl", LANGCHAIN, ["1"]),
        ("a.json", [LANGCHAIN], ["1"]),
        ("a.json", [{"text": "w"}, {"text": "v"}], ["1", "2"]),
        ("a.json", [{"_id": "7", "_source": {"text": "w"}}], ["7"]),
        ("a.json", {"took": 1, "hits": {"total": 1, "hits": [{"_id": "7", "_source": {"text": "w"}}]}}, ["7"]),
        ("a.json", {"response": {"docs": [{"id": "7", "text": "w"}]}}, ["7"]),
        ("a.json", {"docstore/data": {"7": {"__data__": {"id_": "7", "text": "w"}}}, "docstore/metadata": {}}, ["7"]),
        ("a.json", {"7": {"id": "7", "text": "w", "vector": [1.0]}}, ["7"]),
        ("a.json", {"my docs": [{"id": "7", "text": "w"}]}, ["7"]),
        ("a.json", {"data": [{"paragraphs": [{"context": "w", "qas": [{"id": "7"}]}]}]}, ["7"]),
        ("a.jsonl", {"_id": {"$oid": "7"}, "text": "w"}, ["7"]),
        ("a.json", [{"_id": {"$oid": "7"}, "text": "w"}], ["7"]),
        ("a.json", ["w", "v"], ["1", "2"]),
        ("a.jsonl", "w", ["1"]),
        ("a.json", {"d1": "w", "d2": "v"}, ["d1", "d2"]),
    ],
)
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_what_is_said_to_type_makes_a_corpus(tmp_path, name, record, ids):
    path = tmp_path / name
    path.write_text(json.dumps(record) + "\n")
    for step in range(4):
        try:
            assert [passage.id for passage in read(path)] == ids
            break
        except DataError as error:
            command = re.search(r"(jq -c [^;]* > )NEW\.jsonl", str(error))
            assert command, error
            new = tmp_path / f"{step}.jsonl"
            subprocess.run(["sh", "-c", command[1].replace("FILE", str(path)) + str(new)], check=True)
            path = new
    else:
        pytest.fail("four commands did not make a corpus")


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("Mars/Olympus", "10:40:00+00:00"),
        ("utc", "10:40:00+00:00"),
        ("Z", "10:40:00+00:00"),
        ("+02:00", "12:40:00+02:00"),
    ],
)
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_an_instant_is_known_in_any_zone(tmp_path, zone, told, unit):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    at = pa.array([1714560000 * {"s": 1, "ns": 10**9}[unit]], pa.timestamp(unit, zone))
    pq.write_table(pa.table({"id": ["1"], "text": ["w"], "at": at}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet")[0].meta["at"] == f"2024-05-01T{told}"
    pq.write_table(pa.table({"id": [None], "text": ["w"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="found 'text'; correct the data"):  # jq does not read Parquet
        read(tmp_path / "c.parquet")


def test_what_in_memory_is_no_number_is_left_out_by_name(tmp_path, caplog):
    """Of dicts as of frames, by `load` and by `add`; other values of Python's become what a frame's do."""
    record = {"id": "1", "text": "w1 w2", "lang": "en"}
    odd = {"nan": math.nan, "list": [1.0, {"a": math.inf}], "array": np.array([1, math.nan], np.float32), "null": None}
    known = {"price": Decimal("1.5"), "took": timedelta(days=1), "raw": b"ab", "wide": np.float32(1.5)}
    pa, encoder = pytest.importorskip("pyarrow"), HashEncoder()
    frame = pa.table({"id": ["3"], "text": ["w3"], "lang": ["en"], "nan": [math.nan], "day": [date(2020, 1, 1)]})
    with open_store(tmp_path / "data") as store:
        report = load([{**record, **odd, **known}], "wiki", encoder=encoder, store=store).report
        told = ["left out of column nan: nan", "left out of column list: inf", "left out of column array: nan"]
        assert list(report.notes[:3]) == told
        add(frame, "wiki", encoder=encoder, store=store)
        assert "left out of column nan: nan" in caplog.text
        metas = {point.id: point.payload["meta"] for point in store.scroll("wiki")}
    kept = {key: metas["1"][key] for key in metas["1"] if key not in ("lang", "title", "query_langs")}
    assert kept == {"null": None, "price": "1.5", "took": 86400.0, "raw": "ab", "wide": 1.5}
    assert metas["3"]["day"] == "2020-01-01" and "nan" not in metas["3"]
