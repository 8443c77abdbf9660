"""TREC files: what is written is read back, and broken lines are named."""

from __future__ import annotations

import gzip

import pytest

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.metrics import read_pairs, read_qrels, read_run, write_run

RUN = {"q2": [("b", 0.1 + 0.2), ("a", 1.0)], "q1": [("z", 0.5), ("ü", 0.5)]}


def test_run_is_written_best_first_and_read_back(tmp_path):
    write_run(tmp_path / "run.txt", RUN, tag="xqg")
    assert (tmp_path / "run.txt").read_text(encoding="utf-8") == (
        "q1 Q0 z 1 0.5 xqg\nq1 Q0 ü 2 0.5 xqg\nq2 Q0 a 1 1.0 xqg\nq2 Q0 b 2 0.30000000000000004 xqg\n"
    )
    assert {qid: dict(found) for qid, found in read_run(tmp_path / "run.txt").items()} == {
        qid: dict(found) for qid, found in RUN.items()
    }


def test_gzip_is_reproducible(tmp_path):
    write_run(tmp_path / "a.gz", RUN, tag="t")
    write_run(tmp_path / "b.gz", RUN, tag="t")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).startswith(b"q1 Q0 z 1")
    assert read_run(tmp_path / "a.gz")["q1"] == [("z", 0.5), ("ü", 0.5)]


def test_qrels_in_both_formats(tmp_path):
    qrels = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}
    (tmp_path / "q.txt").write_text("q1 0 a 2\nq1 0 b 0\nq2 0 c 1\n")
    assert read_qrels(tmp_path / "q.txt") == qrels
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\r\nq2\tc\t1.0\n")
    assert read_qrels(tmp_path / "test.tsv") == qrels


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "line 2: expected `qid Q0 docid rank score tag`, found 5 fields."),
        ("q Q0 d 1 best tag", "line 2: 'best' is not a number."),
        ("q Q0 d 1 nan tag", "line 2: 'nan' is not a number."),
    ],
)
def test_broken_run_lines(tmp_path, line, message):
    path = tmp_path / "run"
    path.write_text(f"q Q0 e 1 0.5 tag\n{line}\n")
    with pytest.raises(DataError) as error:
        read_run(path)
    assert str(error.value) == f"{path} {message}"


def test_broken_qrels_and_empty_files(tmp_path):
    path = tmp_path / "qrels"
    path.write_text("q 0 d\n")
    with pytest.raises(DataError, match="line 1: expected `qid 0 docid grade`, found 3 fields"):
        read_qrels(path)
    path.write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="holds no qrels lines"):
        read_qrels(path)
    with pytest.raises(DataError, match="holds no qrels lines"):
        read_qrels(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no run lines"):
        read_run(path)


@pytest.mark.parametrize("bad", ["two words", "", " x", "tab\t"])
def test_ids_with_white_space_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match="split at white space"):
        write_run(tmp_path / "r", {bad: [("a", 1.0)]}, tag="t")
    assert not list(tmp_path.iterdir())


def test_two_column_files(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_text("1#0\tWho?\tWhy?\r\n\n 2 \tWo?\n", encoding="utf-8")
    assert read_pairs(path) == [("1#0", "Who?\tWhy?"), ("2", "Wo?")]
    path.write_text("1\tgood\nno tab\n")
    with pytest.raises(DataError) as error:
        read_pairs(path)
    assert str(error.value) == f"{path} line 2: expected two columns with a tab between them."
