"""Benchmarks as strangers have them: what is left out, what is not found, and which languages are there."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import load_task
from xqg_vdb.evaluate.metrics import read_qrels, read_run
from xqg_vdb.evaluate.run import run_suite
from xqg_vdb.evaluate.suite import Suite, SweepPlan, System
from xqg_vdb.evaluate.workbench import Workbench
from xqg_vdb.testing import HashEncoder

INPUTS = Path(__file__).parent / "inputs"


def report(data: Path, dataset: str, out: Path, *, search="memory", sweeps=(), metrics=("nDCG@10",)):
    suite = Suite(
        "field", (dataset,), (System("plain", calibration=0.0),), search=search, sweeps=sweeps, metrics=metrics
    )
    made = HashEncoder(dim=256)
    return run_suite(Workbench(suite, lambda name: made, out, out / "vectors", data), resamples=50)


@pytest.mark.parametrize("search", ["memory", "exact"])
def test_a_question_does_not_find_itself_in_beir(tmp_path, search):
    sweep = SweepPlan("plain", "lambda", (0.0,))
    found = report(INPUTS, "beir/argu", tmp_path, search=search, sweeps=(sweep,))
    runs = [read_run(path) for path in (tmp_path / "runs").iterdir()]
    places = [[docid for docid, _ in runs[0][qid]] for qid in ("tax-con02a", "veg-pro01a")]
    assert all(len(ids) == 3 and own not in ids for own, ids in zip(("tax-con02a", "veg-pro01a"), places, strict=True))
    ranks = [ids.index(other) for other, ids in zip(("tax-con02b", "veg-pro01b"), places, strict=True)]
    expected = sum(1 / math.log2(2 + rank) for rank in ranks) / 2
    assert found.results[0].headline.value == pytest.approx(expected) == found.sweeps[0].points[0].value
    assert "beir/argu: questions with the id of a passage, which they do not find (BEIR's rule): 2" in found.notes


def test_a_title_alone_is_a_text_and_what_is_skipped_is_said(tmp_path):
    found = report(INPUTS, "beir/titles", tmp_path)
    assert found.results[0].headline.value == 1.0
    (note,) = (note for note in found.notes if "skipped" in note)
    assert "corpus.jsonl line 3: text is blank): 1" in note
    texts = {passage.id: passage.title_and_text for passage in load_task("beir/titles", INPUTS).passages}
    assert texts["d1"] == "The length of the river Nile in Africa" and texts["d4"].startswith("Taxes Income")


@pytest.mark.parametrize("bad", ['{"_id": "d1", "title": "", "text": " "}', '{"_id": "d1", "text":', '{"_id": "d1"}'])
def test_a_relevant_document_that_cannot_be_used_is_an_error(tmp_path, bad):
    folder = tmp_path / "beir/titles"
    shutil.copytree(INPUTS / "beir/titles", folder)
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "corpus.jsonl").write_text("\n".join([bad, *lines[1:]]))
    with pytest.raises(
        DataError, match=r"corpus\.jsonl line 1: .*'d1', which the qrels call relevant, would be left out"
    ):
        load_task("beir/titles", tmp_path)


def test_what_the_judgements_name_and_nobody_has_is_named(tmp_path):
    folder = shutil.copytree(INPUTS / "beir" / "titles", tmp_path / "beir" / "titles")
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tgone\t1\nq9\td1\t1\n")
    task = load_task("beir/titles", tmp_path)
    assert "judged questions without a text (such as 'q9')" in task.notes
    assert task.notes["relevant passages that are not in the corpus (such as 'gone')"] == 1


def test_other_splits_are_asked_for_by_name(tmp_path):
    folder = tmp_path / "beir/marco"
    shutil.copytree(INPUTS / "beir/titles", folder)
    (folder / "qrels/test.tsv").rename(folder / "qrels/dev.tsv")
    with pytest.raises(DataError, match=r"There is dev: ask for beir/marco:dev\."):
        load_task("beir/marco", tmp_path)
    assert load_task("beir/marco:dev", tmp_path).name == "marco-dev"
    with pytest.raises(DataError, match="xquad has no splits"):
        load_task("xquad:dev", tmp_path)


def lines(path: Path, *records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))


def afriqa(path: Path, question: str) -> None:
    lines(path, {"id": 0, "question_lang": question, "question_translated": "t", "title": "T", "context": question,
                 "answer_pivot": {"text": ["a"]}})  # fmt: skip


def test_afriqa_has_the_languages_and_pivots_of_its_folder(tmp_path):
    afriqa(tmp_path / "afriqa/gold_span_passages.afriqa.swa.en.dev.json", "swali")
    afriqa(tmp_path / "afriqa/gold_span_passages.afriqa.fon.fr.dev.json", "fon")
    afriqa(tmp_path / "data/gold_passages/wol/gold_span_passages.afriqa.wol.fr.dev.json", "wolof")
    lines(tmp_path / "afriqa/gold_span_passages.afriqa.notes.en.dev.json", "not a language\n")
    task = load_task("afriqa", tmp_path)
    assert [q.lang for q in task.queries] == ["fon", "sw", "wo"]
    assert {p.text: p.lang for p in task.passages} == {"fon": "fr", "swali": "en", "wolof": "fr"}
    assert [q.lang for q in load_task("afriqa-english", tmp_path).queries] == ["fr", "en", "fr"]
    afriqa(tmp_path / "afriqa/gold_span_passages.afriqa.swa.en.test.json", "jaribio")
    assert [q.id for q in load_task("afriqa:test", tmp_path).queries] == ["swa-test-0"]


def test_every_reader_has_the_languages_of_its_folder(tmp_path):
    paragraph = {"context": "Aa.", "sentence_breaks": [[0, 3]]}
    paragraph["qas"] = [{"id": "1", "question": "?", "answers": [{"text": "A", "answer_start": 0}]}]
    squad = json.dumps({"data": [{"title": "T", "paragraphs": [paragraph]}]})
    for lang in ("en", "ro", "sw"):
        lines(tmp_path / f"xquad-r/{lang}.json", squad)
        lines(tmp_path / f"mlqa-r/{lang}.json", squad)
    lines(tmp_path / "xquad-r/README_all.json", "no language")
    for side in ("yor", "eng"):
        lines(tmp_path / f"tatoeba/tatoeba.yor-eng.{side}", "x\n")
    for lang in ("ig",):
        base = tmp_path / f"miracl/miracl-v1.0-{lang}"
        lines(base / f"topics/topics.miracl-v1.0-{lang}-dev.tsv", "1\tq\n")
        lines(base / f"qrels/qrels.miracl-v1.0-{lang}-dev.tsv", "1\tQ0\td\t1\n")
        lines(tmp_path / f"miracl/miracl-corpus-v1.0-{lang}/docs-0.jsonl", {"docid": "d", "text": "", "title": "T"})
    base = tmp_path / "mr-tydi/mrtydi-v1.1-hausa"
    lines(base / "test.jsonl", {"query_id": "1", "query": "q", "positive_passages": [{"docid": "d"}]})
    lines(base / "corpus.jsonl", {"docid": "d", "text": "x"})
    wanted = {
        "xquad": ["en", "ro", "sw"], "xquad-r": ["en", "ro", "sw"], "mlqa-r": ["en", "ro", "sw"],
        "tatoeba-all": ["yor"], "miracl": ["ig"], "mr-tydi": ["ha"],
    }  # fmt: skip
    assert {name: sorted(set(load_task(name, tmp_path).groups.values())) for name in wanted} == wanted


def titles(tmp_path: Path, **changed: str) -> Path:
    folder = shutil.copytree(INPUTS / "beir/titles", tmp_path / "beir/titles", dirs_exist_ok=True)
    for name, text in changed.items():
        (folder / {"qrels": "qrels/test.tsv", "queries": "queries.jsonl"}[name]).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\t0.5\n"}, r"line 2: a grade is a small whole number, not 0\.5"),
     ({"qrels": "q1 0 d1 99999999999999999999\n"}, "line 1: a grade is a small whole number, not 9999"),
     ({"qrels": "qid\tpid\trel\nq1\td1\t1\n"}, r"3 fields \('qid pid rel'\); BEIR's columns are `query-id corpus-id"),
     ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, r"line 2: 'd1' was given another grade for 'q1' before"),
     ({"queries": '{"_id": "q1", "text": "a?"}\n{"_id": "q1", "text": "b?"}\n'}, "line 2: id 'q1' appeared")],
)  # fmt: skip
def test_what_would_be_counted_twice_or_half_is_an_error(tmp_path, changed, told):
    with pytest.raises(DataError, match=told):
        load_task("beir/titles", titles(tmp_path, **changed))


def test_a_question_twice_counts_once(tmp_path):
    (text,) = ['{"_id": "q1", "text": "a?"}\n']
    assert len(load_task("beir/titles", titles(tmp_path, queries=2 * text)).queries) == 1


@pytest.mark.parametrize("text", [5, None, " ", "\u200b"])
def test_a_question_without_text_is_named_by_every_reader(tmp_path, text):
    row = {"id": 1, "question": text, "answers": ["a"], "lang": "ja"}
    lines(tmp_path / "xor-tydi/xor_dev_retrieve_eng_span_v1_1.jsonl", row)
    lines(tmp_path / "xor-tydi/psgs_w100.tsv", "id\ttext\ttitle\n1\tx\tT\n")
    with pytest.raises(DataError, match="xor-tydi-dev: question '1' has no text"):
        load_task("xor-tydi", tmp_path)


def test_sentences_that_translate_each_other(tmp_path):
    sides = {side: tmp_path / f"tatoeba/tatoeba.yor-eng.{side}" for side in ("yor", "eng")}
    for path in sides.values():
        lines(path, "a\n", "\n" * 600, "b\n")
    assert len(load_task("tatoeba-all", tmp_path).queries) == 2
    lines(sides["eng"], "a\n", "x\n" * 600, "b\n")
    with pytest.raises(DataError, match="2 foreign, 602 English lines; line 2 is in one alone"):
        load_task("tatoeba-all", tmp_path)
    sides["yor"].write_bytes(b"\xe9\n")
    with pytest.raises(DataError, match=r"tatoeba\.yor-eng\.yor line 1: not UTF-8"):
        load_task("tatoeba-all", tmp_path)
    for path in sides.values():
        lines(path, "\n")
    with pytest.raises(DataError, match="has no question with judgements"):
        load_task("tatoeba-all", tmp_path)


def test_squad_files_that_are_packed_or_know_other_questions(tmp_path):
    def squad(name: str) -> str:
        qas = [{"id": name, "question": "?w", "answers": [{"text": "A", "answer_start": 0}]}]
        return json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "Aa.", "qas": qas}]}]})

    (tmp_path / "xquad-r").mkdir()
    (tmp_path / "xquad-r/en.json.gz").write_bytes(gzip.compress(squad("1").encode()))
    lines(tmp_path / "xquad-r/sw.json", "\ufeff" + squad("2"))
    task = load_task("xquad", tmp_path)
    assert [q.id for q in task.queries] == ["1_en"]
    assert task.notes == {"questions skipped: not in the English file": 1}
    lines(tmp_path / "xquad-r/sw.json", squad("1").replace('{"text": "A", "answer_start": 0}', ""))
    with pytest.raises(DataError, match=r"sw\.json has questions without an answer, .* leave them out: jq"):
        load_task("xquad", tmp_path)


def test_blank_lines_of_afriqa_and_packed_twins_of_miracl(tmp_path):
    afriqa(tmp_path / "afriqa/gold_span_passages.afriqa.swa.en.dev.json", "swali")
    with (tmp_path / "afriqa/gold_span_passages.afriqa.swa.en.dev.json").open("a") as file:
        file.write("\n")
    assert len(load_task("afriqa", tmp_path).queries) == 1
    lines(tmp_path / "miracl/miracl-v1.0-ig/topics/topics.miracl-v1.0-ig-dev.tsv", "1\tq\n")
    lines(tmp_path / "miracl/miracl-v1.0-ig/qrels/qrels.miracl-v1.0-ig-dev.tsv", "1\tQ0\td\t1\n")
    docs = tmp_path / "miracl/miracl-corpus-v1.0-ig/docs-0.jsonl"
    lines(docs, {"docid": "d", "text": "x"})
    docs.with_name("docs-0.jsonl.gz").write_bytes(gzip.compress(docs.read_bytes()))
    assert len(list(load_task("miracl", tmp_path).passages)) == 1


def test_qrels_of_three_columns_need_no_header(tmp_path):
    (tmp_path / "q.tsv").write_text("q1\td1\t1\nq2\td2\t2\n")
    assert read_qrels(tmp_path / "q.tsv") == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    (tmp_path / "q.tsv").write_text("q1\td1\t1\nq2\t0\td2\t2\n")
    with pytest.raises(DataError, match="line 2: expected `query-id corpus-id score`, found 4 fields"):
        read_qrels(tmp_path / "q.tsv")


def test_a_document_that_stands_in_two_files_counts_once(tmp_path):
    base, corpus = tmp_path / "miracl/miracl-v1.0-ig", tmp_path / "miracl/miracl-corpus-v1.0-ig"
    lines(base / "topics/topics.miracl-v1.0-ig-dev.tsv", "1\tq\n")
    lines(base / "qrels/qrels.miracl-v1.0-ig-dev.tsv", "1\tQ0\td\t1\n")
    lines(corpus / "docs-0.jsonl", {"docid": "d", "text": "x"}, {"docid": "e", "text": "y"})
    lines(corpus / "docs-1.jsonl", {"docid": "d", "text": "x"}, {"docid": "e", "text": "z"})
    task = load_task("miracl", tmp_path)
    assert [(p.id, p.text) for p in task.passages] == [("ig:d", "x"), ("ig:e", "y")]
    assert any("docs-1.jsonl line 2: id 'e' appeared before with other content" in note for note in task.notes)
    lines(corpus / "docs-1.jsonl", {"docid": "d", "text": "z"})
    with pytest.raises(DataError, match=r"docs-1\.jsonl line 1: .*'ig:d', which the qrels call relevant"):
        load_task("miracl", tmp_path)
