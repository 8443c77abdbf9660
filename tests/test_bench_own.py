"""A benchmark of people's own data, as a process, and the questions won and lost between two runs."""

import csv
import json

import pytest
from cli_cases import run_cli, write_starter

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.own import read_own
from xqg_vdb.evaluate.questions import diff_runs, write_questions

CORPUS = [
    ("p1", "The river Nile is long.", "en"), ("p2", "Bees store honey in wax.", "en"),
    ("p3", "Der Rhein ist lang.", "de"), ("p4", "Income tax is paid.", "en"),
]  # fmt: skip
ASKED = [
    ("1", "How long is the Nile?", "en"),
    ("2", "Wo ist der Honig der Bienen?", "de"),
    ("3", "Nobody knows?", "en"),
]


@pytest.fixture
def desk(tmp_path):
    write_starter(tmp_path / "cache")
    lines(tmp_path / "corpus.jsonl", [{"id": i, "text": t, "lang": lang} for i, t, lang in CORPUS])
    lines(tmp_path / "questions.jsonl", [{"id": i, "text": t, "lang": lang} for i, t, lang in ASKED])
    (tmp_path / "qrels.txt").write_text("1 0 p1 1\n1 0 p4 0\n2 0 p2 2\n2 0 p3 1\n")
    return tmp_path


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def bench(desk, out, *more):
    done = run_cli(desk, "bench", "corpus.jsonl", "--questions", "questions.jsonl", *more, "--out", out)
    assert done.returncode == 0, done.stderr
    return done


def test_own_data_from_files_to_questions_won_and_lost(desk):
    done = bench(desk, "one", "--qrels", "qrels.txt")
    assert "questions left out: nothing is relevant for them: 1" in done.stdout and "R@10 cross" in done.stdout
    rows = read_csv(desk / "one/questions.csv")
    assert [(r["question"], r["group"], r["relevant"]) for r in rows] == [("1", "en", "p1"), ("2", "de", "p2 p3")]
    assert rows[0]["relevant text"] == "The river Nile is long." and rows[0]["plain | R@10"] == "1.0"
    assert rows[1]["plain | R@10 same"] == "1.0" and rows[0]["plain | R@10 cross"] == ""
    places = {p[0]: p[1] for p in CORPUS}
    assert all(row["plain | found text"] == places[row["plain | found"]] for row in rows)

    rows[0]["calibrated | MRR@10"], rows[1]["calibrated | MRR@10"] = "0.25", "1.0"
    rows[0]["plain | MRR@10"], rows[1]["plain | MRR@10"] = "0.5", "0.5"
    (desk / "two").mkdir()
    with (desk / "two/questions.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = run_cli(desk, "bench", "diff", "two:plain", "two:calibrated", "--metric", "MRR@10", "--csv", "changed.csv")
    assert done.returncode == 0, done.stderr
    assert "plain 0.500 → calibrated 0.625   +0.125" in done.stdout
    assert "1 questions won" in done.stdout and "2 [de] 0.5 → 1  Wo ist der Honig der Bienen?" in done.stdout
    found = read_csv(desk / "changed.csv")
    assert [(row["change"], row["question"], row["after"]) for row in found] == [
        ("won", "2", "1.0"),
        ("lost", "1", "0.25"),
    ]
    done = run_cli(desk, "bench", "diff", "two:plain", "two:calibrated", "--metric", "MRR@10", "--json")
    assert json.loads(done.stdout)[0]["compared"]["difference"] == 0.125


def test_the_questions_may_say_what_is_relevant(desk):
    records = [{"id": i, "text": t, "relevant": of} for (i, t, _), of in zip(ASKED, (["p1"], "p2", []), strict=True)]
    lines(desk / "labelled.jsonl", records)
    task = read_own(desk / "corpus.jsonl", desk / "labelled.jsonl")
    assert task.qrels == {"1": {"p1": 1}, "2": {"p2": 1}}
    assert [q.lang for q in task.queries] == ["en", "de"], "languages are detected"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["corpus.jsonl"], 2, "add --questions FILE"),
        (["corpus.jsonl", "--questions", "questions.jsonl"], 3, "give --qrels FILE"),
        (["corpus.jsonl", "--questions", "absent.jsonl"], 3, "absent.jsonl"),
        (["afriqa", "--questions", "questions.jsonl"], 2, "brings its own questions"),
        (["corpus.jsonl", "--qrels", "qrels.txt"], 2, "add --questions FILE"),
        (["corpus.jsonl", "--questions", "0"], 2, "one number of 1 or more"),
        (["diff", "one", "two"], 3, "questions.csv"),
    ],
)
def test_mistakes_are_told_in_one_sentence(desk, arguments, code, says):
    done = run_cli(desk, "bench", *arguments, *(() if arguments[0] == "diff" else ("--out", "out")))
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr


def test_files_that_do_not_belong_together_are_told(desk):
    (desk / "other.txt").write_text("1 0 x9 1\n")
    with pytest.raises(DataError, match=r"no passage of .*corpus.jsonl \(such as 'p1'\) is in .*other.txt"):
        read_own(desk / "corpus.jsonl", desk / "questions.jsonl", desk / "other.txt")
    (desk / "other.txt").write_text("q9 0 p1 1\n")
    with pytest.raises(DataError, match=r"no question of .*questions.jsonl \(such as '1'\)"):
        read_own(desk / "corpus.jsonl", desk / "questions.jsonl", desk / "other.txt")
    (desk / "corpus.jsonl").write_text('{"id": "p1", "text": " "}\n{"id": "p2", "text": "Bees"}\n')
    with pytest.raises(DataError, match=r"line 1: text is blank; so 'p1', which the qrels call relevant"):
        read_own(desk / "corpus.jsonl", desk / "questions.jsonl", desk / "qrels.txt")
    (desk / "empty").mkdir()
    (desk / "empty/questions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="make it again with xqg-vdb bench"):
        diff_runs(str(desk / "empty"), str(desk / "empty"))


@pytest.mark.parametrize("name", ["asked.json", "asked.jsonl"])
def test_questions_by_qid_say_themselves_what_is_relevant(tmp_path, name):
    lines(tmp_path / "corpus.jsonl", [{"id": i, "text": t, "lang": lang} for i, t, lang in CORPUS])
    asked = [{"qid": "q7", "question": "Where?", "lang": "en", "relevant": ["p1"]}]
    (tmp_path / name).write_text(json.dumps(asked if name == "asked.json" else asked[0]))
    assert read_own(tmp_path / "corpus.jsonl", tmp_path / name).qrels == {"q7": {"p1": 1}}


def test_no_cell_is_computed(tmp_path):
    given = {"question": "=1+1", "text": "-1+cmd|'x'!A", "a | R@1": "-0.5", "a | found": "@x"}
    row = read_csv(write_questions(tmp_path, [given]))[0]
    assert {key: row[key] for key in given} == {
        key: cell if key == "a | R@1" else f"'{cell}" for key, cell in given.items()
    }
