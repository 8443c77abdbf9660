"""Every reader on miniature files in its publisher's format, and the real files' known counts."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from benchmark_data import FOLDER, needs

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.cells import check_metrics
from xqg_vdb.evaluate.datasets import DATASETS, data_folder, load_task
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.evaluate.datasets.beir import read_beir
from xqg_vdb.evaluate.datasets.parallel import read_tatoeba
from xqg_vdb.evaluate.datasets.task import RetrievalTask, sampled_questions
from xqg_vdb.evaluate.datasets.xor_tydi import read_xor_questions
from xqg_vdb.evaluate.datasets.xquad import read_lareqa, read_squad, read_xquad
from xqg_vdb.types import Question


def write(path, *records) -> None:
    """JSON lines, or plain text; compressed by name."""
    text = "".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def consistent(task) -> None:
    """What every task promises."""
    passages, again = list(task.passages), list(task.passages)
    assert passages == again
    ids = {passage.id for passage in passages}
    assert len(ids) == len(passages)
    assert len({query.id for query in task.queries}) == len(task.queries) > 0
    assert task.groups.keys() == {query.id for query in task.queries}
    check_metrics(task.metrics, replace(task, qrels=task.qrels or {"": {}}))
    if task.pooled:
        assert {passage.meta["pool"] for passage in passages} == set(task.groups.values())


def squad_file(path, lang: str, *, breaks=((0, 4), (5, 9), (10, 14)), context="Aaa. Bbb. Aaa.") -> None:
    """One paragraph of three sentences, of which two are equal, and two questions."""
    questions = [
        {"id": "one", "question": f"{lang}: one?", "answers": [{"text": "Aaa", "answer_start": 0}]},
        {"id": "two", "question": f"{lang}: two?", "answers": [{"text": "Bbb", "answer_start": 5}]},
        {"id": "gap", "question": f"{lang}: gap?", "answers": [{"text": " ", "answer_start": 4}]},
    ]
    paragraph = {"context": context, "sentence_breaks": breaks, "sentences": [], "qas": questions}
    empty = {"context": "No one asks.", "sentence_breaks": [[0, 12]], "sentences": [], "qas": []}
    write(path, {"version": "1.1", "data": [{"title": "A_b", "paragraphs": [paragraph, empty]}]})


# ---------------------------------------------------------------- LAReQA, XQuAD


def test_lareqa_relevance_by_string_equality_in_all_languages(tmp_path):
    squad_file(tmp_path / "mlqa-r/en.json", "en")
    squad_file(tmp_path / "mlqa-dev-r/de.json", "de", breaks=((0, 4), (5, 9), (10, 15)), context="Aaa. Bbb. Ccc.\n")
    task = load_task("mlqa-r", tmp_path)
    consistent(task)
    assert [p.id for p in task.passages] == ["de_1_0", "de_1_1", "de_1_2", "en_1_0", "en_1_1", "en_1_2"]
    assert [p.text for p in task.passages][:3] == ["Aaa.Aaa. Bbb. Ccc.", "Bbb.Aaa. Bbb. Ccc.", "Ccc.Aaa. Bbb. Ccc."]
    assert task.qrels["one_en"] == task.qrels["one_de"] == {"de_1_0": 1, "en_1_0": 1, "en_1_2": 1}
    assert task.qrels["two_de"] == {"de_1_1": 1, "en_1_1": 1}
    assert task.notes == {"questions skipped: answer in no sentence": 2}
    assert task.average == "queries" and task.metrics[:2] == ("mAP@20", "mAP")
    bare = read_lareqa(tmp_path, "mlqa-r", context=False)
    assert [p.text for p in bare.passages] == ["Aaa.", "Bbb.", "Ccc.", "Aaa.", "Bbb.", "Aaa."]


@needs("xquad-r")
def test_xquad_r_counts():
    task = load_task("xquad-r", FOLDER)
    consistent(task)
    assert (len(list(task.passages)), len(task.queries)) == (13_014, 13_090)
    assert Counter(p.lang for p in task.passages) == {
        "ar": 1222, "de": 1276, "el": 1234, "en": 1180, "es": 1215, "hi": 1244,
        "ru": 1219, "th": 852, "tr": 1167, "vi": 1209, "zh": 1196,
    }  # fmt: skip
    assert set(Counter(task.groups.values()).values()) == {1190}
    assert {len(found) for found in task.qrels.values()} == {11}
    first = next(p for p in task.passages if p.id == "en_1_0")
    assert (
        first.text.startswith("The Panthers defense gave up")
        and "boasting four Pro Bowl selections.The Panthers" in first.text
    )
    assert not any("\n" in p.text for p in task.passages)


@needs("xquad-r")
def test_turkish_sentences_are_cut_from_the_context():
    """The file's own `sentences` differ once from its breaks; the official loader goes by the breaks."""
    raw = json.loads((FOLDER / "xquad-r/tr.json").read_bytes())
    own = [p["sentences"] for article in raw["data"] for p in article["paragraphs"]]
    assert sum(a != list(b.sentences) for a, b in zip(own, read_squad(FOLDER / "xquad-r/tr.json"), strict=True)) == 1


def test_xquad_paragraphs_cross_lingual(tmp_path):
    squad_file(tmp_path / "xquad-r/en.json", "en")
    squad_file(tmp_path / "xquad-r/ar.json", "ar")
    task = read_xquad(tmp_path)
    consistent(task)
    assert [(p.id, p.title, p.lang) for p in task.passages] == [("xquad-1", "A b", "en"), ("xquad-2", "A b", "en")]
    assert [q.text for q in task.queries][:2] == ["ar: one?", "ar: two?"]
    assert task.qrels["one_ar"] == {"xquad-1": 1}
    assert task.answers["two_ar"] == ("Bbb",)


def test_xquad_in_each_language_by_itself(tmp_path):
    for lang in ("ar", "en", "ro"):
        squad_file(tmp_path / f"xquad/xquad.{lang}.json", lang)
    task = load_task("xquad-monolingual", tmp_path)
    consistent(task)
    assert task.pooled and set(task.groups.values()) == {"ar", "en", "ro"}
    assert task.qrels["one_ro"] == {"ro-1": 1} and task.topics["one_ro"] == task.topics["one_ar"]
    squad_file(tmp_path / "xquad/xquad.hi-Latn.json", "hi-Latn")
    both = load_task("xquad-pool:ro-hi-Latn-ro-", tmp_path)
    consistent(both)
    assert not both.pooled and both.qrels["one_ro"] == {"hi-Latn-1": 1, "ro-1": 1}


@needs("xquad-r")
@needs("afriqa")
def test_xquad_counts():
    task = load_task("xquad+afriqa", FOLDER)
    consistent(task)
    assert len(list(task.passages)) == 240 + 3120
    assert len(task.queries) == 11 * 1190
    assert len(list(load_task("xquad", FOLDER).passages)) == 240
    texts = {p.id: p.text for p in task.passages}
    hits = sum(any(a in texts[next(iter(task.qrels[q.id]))] for a in task.answers[q.id]) for q in task.queries)
    assert hits == len(task.queries)  # English answers stand in the English paragraphs


# ---------------------------------------------------------------- AfriQA


def afriqa_row(number, context="Text.", title="T", answers=("a",)) -> dict:
    return {
        "id": number, "question_lang": f"q{number}", "question_translated": f"en{number}", "title": title,
        "context": context, "answer_pivot": {"text": list(answers), "answer_start": [0]}, "answer_lang": "x",
    }  # fmt: skip


def test_afriqa_skips_and_counts_rows_with_holes(tmp_path):
    name = "afriqa/gold_span_passages.afriqa.{}.en.{}.json"
    holes = [afriqa_row("2", context=None), afriqa_row("3", title=None), afriqa_row("4", answers=[""])]
    write(tmp_path / name.format("hau", "dev"), afriqa_row("0"), afriqa_row("1", context="Other."), *holes)
    write(tmp_path / name.format("hau", "train"), afriqa_row("0"))  # the same passage, another question
    not_json = afriqa_row("0") | {"question_lang": "q", "question_translated": "e"}
    not_json["answer_pivot"]["answer_start"] = [math.nan]
    write(tmp_path / name.format("twi", "dev"), not_json)  # json.dumps writes NaN, as the publisher does
    task = load_task("afriqa", tmp_path)
    consistent(task)
    assert [q.id for q in task.queries] == ["hau-dev-0", "hau-dev-1", "twi-dev-0"]
    assert [q.lang for q in task.queries] == ["ha", "ha", "tw"]
    assert [p.text for p in task.passages] == ["Text.", "Other."]
    assert task.qrels["twi-dev-0"] == task.qrels["hau-dev-0"]
    assert task.notes == {"questions skipped: no context, title or answer": 3, "rows of the pool skipped": 3}
    english = load_task("afriqa-english", tmp_path)
    assert [(q.text, q.lang) for q in english.queries] == [("en0", "en"), ("en1", "en"), ("e", "en")]
    assert english.groups == task.groups and english.name == "afriqa-dev-english"
    assert [q.id for q in load_task("afriqa-train", tmp_path).queries] == ["hau-train-0"]
    with pytest.raises(DataError, match=r"afriqa/gold_span_passages.afriqa.{lang}.\*.test.json .*masakhane-io"):
        read_afriqa(tmp_path, split="test", pool_splits=())
    write(tmp_path / name.format("zul", "dev"), "{broken\n")
    with pytest.raises(DataError, match=r"zul.en.dev.json line 1: not an AfriQA row"):
        load_task("afriqa", tmp_path)


@needs("afriqa")
def test_afriqa_counts():
    task = load_task("afriqa", FOLDER)
    consistent(task)
    assert (len(list(task.passages)), len(task.queries)) == (3120, 1579)
    assert Counter(task.groups.values()) == {"bem": 230, "ha": 222, "ig": 307, "rw": 230, "tw": 348, "zu": 242}
    assert len(load_task("afriqa-train", FOLDER).queries) == 1810
    assert {q.lang for q in load_task("afriqa-english", FOLDER).queries} == {"en"}


# ---------------------------------------------------------------- XOR-TyDi, MKQA


def test_xor_tydi_with_a_corpus(tmp_path):
    write(tmp_path / "xor-tydi/xor_dev_retrieve_eng_span_v1_1.jsonl",
          {"id": "1", "question": "?", "answers": ["Portland", "Portland"], "lang": "te", "split": "dev"},
          {"id": "2", "question": "??", "answers": ["yes"], "lang": " ar", "split": "dev"})  # fmt: skip
    with pytest.raises(DataError, match=r"xor-tydi/enwiki_20190201_w100.tsv \(or xor-tydi/psgs_w100.tsv"):
        load_task("xor-tydi", tmp_path)
    corpus = tmp_path / "xor-tydi/psgs_w100.tsv.gz"
    write(
        corpus,
        "id\ttext\ttitle\n1\tPortland is a city.\tOregon\n2\tNo.\t\n3\t \t \n4\t\tTitle\n",
    )
    task = load_task("xor-tydi", tmp_path)
    consistent(task)
    assert [(p.id, p.text, p.title, p.lang) for p in task.passages] == [
        ("1", "Portland is a city.", "Oregon", "en"),
        ("2", "No.", "", "en"),
        ("4", "Title", "", "en"),
    ]
    assert [(q.id, q.lang) for q in task.queries] == [("1", "te"), ("2", "ar")]
    assert task.answers == {"1": ("Portland", "Portland"), "2": ("yes",)}
    assert (task.qrels, task.notes) == (
        {},
        {
            "questions not evaluated: yes/no answers only": 1,
            f"records of the corpus skipped (first: {corpus} line 4: text is blank)": 1,
        },
    )


@needs("xor-tydi")
def test_xor_tydi_real_questions():
    queries, answers = read_xor_questions(FOLDER)
    assert Counter(q.lang for q in queries) == {
        "ar": 350,
        "bn": 312,
        "fi": 360,
        "ja": 296,
        "ko": 299,
        "ru": 255,
        "te": 238,
    }
    assert sum(all(a in ("yes", "no") for a in golds) for golds in answers.values()) == 182


# ---------------------------------------------------------------- Tatoeba, NTREX


def test_tatoeba_both_directions(tmp_path):
    write(tmp_path / "tatoeba/tatoeba.swh-eng.swh", "Habari.\nNdiyo.\n")
    write(tmp_path / "tatoeba/tatoeba.swh-eng.eng", "News.\nYes.\n")
    write(tmp_path / "tatoeba/tatoeba.cmn-eng.cmn", "你好。\n")
    write(tmp_path / "tatoeba/tatoeba.cmn-eng.eng", "Hello.\n")
    task = read_tatoeba(tmp_path, langs=["sw", "zh"])
    consistent(task)
    assert [(q.id, q.text, q.lang) for q in task.queries][1:] == [("sw-1", "Ndiyo.", "sw"), ("zh-0", "你好。", "zh")]
    assert task.qrels["sw-1"] == {"sw-0001": 1}
    pools = [(p.meta["pool"], p.text) for p in task.passages]
    assert pools == [("sw", "News."), ("sw", "Yes."), ("zh", "Hello.")]
    back = read_tatoeba(tmp_path, langs=["sw"], direction="en-xx")
    assert [(q.text, q.lang) for q in back.queries] == [("News.", "en"), ("Yes.", "en")]
    assert set(back.groups.values()) == {"sw"} and [p.lang for p in back.passages] == ["sw", "sw"]
    write(tmp_path / "tatoeba/tatoeba.cmn-eng.eng", "Hello.\nMore.\n")
    with pytest.raises(DataError, match=r"tatoeba\.cmn-eng is not aligned: 1 foreign, 2 English lines"):
        read_tatoeba(tmp_path, langs=["zh"])
    with pytest.raises(DataError, match=r"tatoeba/tatoeba\.xx-eng\.xx is not in"):
        read_tatoeba(tmp_path, langs=["xx"])


@needs("tatoeba")
def test_tatoeba_counts():
    task = load_task("tatoeba", FOLDER)
    counts = Counter(task.groups.values())
    assert (len(task.queries), len(counts)) == (31_692, 36)
    assert sum(n == 1000 for n in counts.values()) == 28
    few = {lang: n for lang, n in counts.items() if n < 1000}
    assert few == {"jv": 205, "te": 234, "ta": 307, "sw": 390, "th": 548, "kk": 575, "ml": 687, "ka": 746}
    assert len(load_task("tatoeba-41", FOLDER).queries) == 31_692 + 5 * 1000
    assert {q.lang for q in load_task("tatoeba-en-xx", FOLDER).queries} == {"en"}


def test_ntrex_languages_varieties_and_both_directions(tmp_path):
    folder = tmp_path / "ntrex/NTREX-128"
    write(folder / "newstest2019-src.eng.txt", "Hello.\nNews.\n")
    sides = {"hau": "Sannu.\nLabarai.\n", "zho-CN": "你好。\n新闻。\n", "eng-GB": "Hallo.\nNews.\n"}
    for code, text in sides.items():
        write(folder / f"newstest2019-ref.{code}.txt", text)
    write(folder / "newstest2019-ref-2.hau.txt", "A second translation.\n")
    task = load_task("ntrex", tmp_path)
    consistent(task)
    assert [(q.id, q.text, q.lang) for q in task.queries] == [
        ("hau-0", "Sannu.", "ha"), ("hau-1", "Labarai.", "ha"),
        ("zho-CN-0", "你好。", "zh"), ("zho-CN-1", "新闻。", "zh"),
    ]  # fmt: skip
    assert task.metrics == ("F1@1", "Accuracy")
    assert task.groups["zho-CN-1"] == "zho-CN" and task.qrels["zho-CN-1"] == {"zho-CN-0001": 1}
    assert task.clusters()["hau-1"] == task.clusters()["zho-CN-1"] != task.clusters()["hau-0"]
    back = load_task("ntrex-en-xx", tmp_path)
    consistent(back)
    assert {q.lang for q in back.queries} == {"en"} and back.groups == task.groups
    write(folder / "newstest2019-ref.hau.txt", "Sannu.\n")
    with pytest.raises(DataError, match=r"newstest2019-ref\.hau is not aligned: 1 foreign, 2 English lines"):
        load_task("ntrex", tmp_path)
    (folder / "newstest2019-ref.hau.txt").unlink()
    (folder / "newstest2019-ref.zho-CN.txt").unlink()
    (folder / "newstest2019-ref.eng-GB.txt").unlink()
    with pytest.raises(DataError, match=r"ntrex/NTREX-128/newstest2019-ref\.{lang}\.txt .*MicrosoftTranslator"):
        load_task("ntrex", tmp_path)


@needs("ntrex")
def test_ntrex_counts():
    task = load_task("ntrex", FOLDER)
    assert set(Counter(task.groups.values()).values()) == {1997}
    assert (len(set(task.groups.values())), len({q.lang for q in task.queries})) == (124, 117)


# ---------------------------------------------------------------- MIRACL, Mr. TyDi, BEIR


def test_miracl_pools_by_language(tmp_path):
    for lang in ("sw", "yo"):
        base = tmp_path / f"miracl/miracl-v1.0-{lang}"
        write(base / f"topics/topics.miracl-v1.0-{lang}-dev.tsv", f"1#0\tswali {lang}?\n2#0\tunjudged\n")
        write(base / f"qrels/qrels.miracl-v1.0-{lang}-dev.tsv", "1#0\tQ0\t7#0\t1\n1#0\tQ0\t7#1\t0\n")
        corpus = tmp_path / f"miracl/miracl-corpus-v1.0-{lang}"
        write(corpus / "docs-10.jsonl.gz", {"docid": "9#0", "title": "", "text": "last"})
        write(corpus / "docs-2.jsonl.gz", {"docid": "7#0", "title": "T", "text": f"text {lang}"})
    task = load_task("miracl", tmp_path)
    consistent(task)
    assert [p.id for p in task.passages] == ["sw:7#0", "sw:9#0", "yo:7#0", "yo:9#0"]
    assert task.qrels["yo:1#0"] == {"yo:7#0": 1, "yo:7#1": 0}
    assert {q.id: q.lang for q in task.queries} == {"sw:1#0": "sw", "yo:1#0": "yo"}
    with pytest.raises(DataError, match=r"miracl/miracl-v1\.0-{lang}/topics"):
        load_task("miracl:test", tmp_path)


def test_mr_tydi_rows(tmp_path):
    base = tmp_path / "mr-tydi/mrtydi-v1.1-swahili"
    passage = {"docid": "7#0", "title": "T", "text": "x"}
    write(
        base / "test.jsonl.gz",
        {"query_id": "0", "query": "swali?", "positive_passages": [passage], "negative_passages": []},
    )
    write(base / "corpus.jsonl.gz", passage, {"docid": "7#1", "title": "T", "text": "y"})
    task = load_task("mr-tydi", tmp_path)
    consistent(task)
    assert task.qrels == {"sw:0": {"sw:7#0": 1}}
    assert [(p.id, p.lang) for p in task.passages] == [("sw:7#0", "sw"), ("sw:7#1", "sw")]
    assert task.metrics == ("MRR@100", "R@100")
    with pytest.raises(DataError, match=r"mr-tydi/mrtydi-v1\.1-{lang}/dev\.jsonl is not in"):
        load_task("mr-tydi:dev", tmp_path)


def test_beir_folder(tmp_path):
    folder = tmp_path / "beir/scifact"
    write(folder / "corpus.jsonl", {"_id": "d1", "title": "T", "text": "x", "metadata": {}}, {"_id": "d2", "text": "y"})
    write(folder / "queries.jsonl", {"_id": "1", "text": "q"}, {"_id": "2", "text": "train only"})
    write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\td1\t2\n3\td2\t1\n")
    task = load_task("beir/scifact", tmp_path)
    consistent(task)
    assert (task.name, [q.id for q in task.queries], task.qrels) == ("scifact-test", ["1"], {"1": {"d1": 2}})
    assert task.notes == {"judged questions without a text (such as '3')": 1}
    assert load_task("beir", folder).qrels == task.qrels
    write(folder / "queries.jsonl", {"_id": "9", "text": "q"})
    with pytest.raises(DataError, match=r"no question of qrels/test\.tsv is in"):
        read_beir(folder)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_data_says_where_to_get_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        load_task(name, tmp_path)
    assert f"is not in {tmp_path}; get it from " in str(error.value)
    assert str(error.value).endswith("or point --data-dir (XQG_DATA_DIR) to it.")


def test_unknown_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("XQG_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="there is no dataset 'squad'; expected one of afriqa, "):
        load_task("squad", tmp_path)
    with pytest.raises(DataError, match="give --data-dir, or set XQG_DATA_DIR"):
        load_task("xquad")
    with pytest.raises(DataError, match="there is no data folder"):
        data_folder(tmp_path / "nowhere")
    monkeypatch.setenv("XQG_DATA_DIR", str(tmp_path))
    assert data_folder() == tmp_path


def test_damaged_squad(tmp_path):
    write(tmp_path / "xquad-r/en.json", '{"data": [{"paragraphs": [{"context": "x"}]}]}')
    with pytest.raises(DataError, match=r"en.json is not SQuAD v1.1 JSON \(KeyError: 'qas'\)"):
        load_task("xquad", tmp_path)


def test_translations_and_questions_of_one_paragraph_belong_together(tmp_path):
    for lang in ("en", "de"):
        squad_file(tmp_path / f"mlqa-r/{lang}.json", lang)
    task = load_task("mlqa-r", tmp_path)
    clusters = task.clusters()
    assert clusters.keys() == task.groups.keys() and len(set(clusters.values())) == 1 < len(clusters)


def made_task(*, langs=("ar", "de", "zh"), passages=40, each=5):
    """Questions about passages in file order, all languages of one question next to no other."""
    queries = [
        Question(f"{p}-{i}-{lang}", "text", lang) for lang in langs for p in range(passages) for i in range(each)
    ]
    return RetrievalTask(
        "made", [], tuple(queries), {q.id: {f"p{q.id.split('-')[0]}": 1} for q in queries}, ("R@1",),
        {q.id: str(q.lang) for q in queries},
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 13, 20, 55, 500])
def test_a_sample_of_questions_is_spread_over_passages_and_languages(n):
    """The slow twin counts: as many in every language, and no passage is asked about twice while another waits."""
    task = made_task()
    few = sampled_questions(task, n)
    assert Counter(few.groups.values()) == dict.fromkeys(("ar", "de", "zh"), min(n, 200))
    times = Counter(few.clusters().values())
    asked = [times[f"passage p{number}"] for number in range(40)]
    assert max(asked) - min(asked) <= 1 or n == 500
    assert [q.id for q in few.queries] == [q.id for q in task.queries if q.id in few.groups], "in the task's order"
    assert few.queries == sampled_questions(task, n).queries
    if n < 200:
        first = [q.id for lang in ("ar", "de", "zh") for q in task.queries if q.lang == lang][:n]
        assert [q.id for q in few.queries][:n] != first
    elif n > 200:
        assert few.queries == task.queries


def test_a_sample_takes_languages_whose_questions_are_about_few_passages():
    task = made_task(langs=("ar",), passages=2, each=9)
    asked = Counter(sampled_questions(task, 8).clusters().values())
    assert asked == {"passage p0": 4, "passage p1": 4}
