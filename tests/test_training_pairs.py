"""Pairs: every format read alike, dirt counted and named, leaks found, translations and selections."""

import json
from dataclasses import replace

import orjson
import pytest
from benchmark_data import FOLDER, needs
from training_cases import twenty_pairs, write_pairs

from xqg_vdb.errors import DataError
from xqg_vdb.texts.records import Rejects
from xqg_vdb.train.pairs import (
    Sources,
    TrainingPair,
    content_key,
    describe_pairs,
    hybrid,
    leakage,
    read_pairs,
    translated,
    without_leaks,
)
from xqg_vdb.types import Passage

PASSAGE = {"docid": "7", "title": "Nile", "text": "The Nile is long."}


def lines(path, *records):
    path.write_bytes(b"".join(r if isinstance(r, bytes) else orjson.dumps(r) + b"\n" for r in records))
    return str(path)


def read(path, **options):
    return read_pairs(path, split="train", **options)


def test_plain_lines_and_tevatrons_give_the_same_pairs(tmp_path):
    other = {"docid": 8, "title": "", "text": "Salt is white."}
    plain = lines(tmp_path / "a.jsonl", {"query": "Nini?", "lang": "swa", "positive": PASSAGE, "negatives": [other]})
    tevatron = lines(
        tmp_path / "b.jsonl",
        {"query_id": "a.jsonl:1", "query": "Nini?", "lang": "sw", "answers": ["x"],
         "positive_passages": [PASSAGE, other], "negative_passages": [other, PASSAGE]},
    )  # fmt: skip
    (one,), (other_pair,) = read(plain), read(tevatron)
    assert one == other_pair and one.lang == "sw" and one.positive == Passage("7", "The Nile is long.", "Nile")
    assert [p.id for p in one.negatives] == ["8"], "the positive is no negative"
    (short,) = read(lines(tmp_path / "c.jsonl", {"query": "Nini?", "lang": "sw", "positive": "The Nile is long."}))
    assert short.positive.id == content_key(short.positive) and short.positive.title == ""


def test_squad_and_xor_tydis_gold_paragraphs(tmp_path):
    def qa(i, question, **more):
        return {"id": i, "question": question, "answers": [{"text": "long", "answer_start": 12}], **more}

    document = {"data": [
        {"title": "title:River_Nile_parentSection: Length", "paragraphs": [
            {"context": "The Nile is long.", "qas": [
                qa("1", "Mto Nile una urefu gani?", lang="sw"), qa(2, "Wie lang ist der Nil?"),
            ]},
            {"context": "  ", "qas": [qa("3", "x", lang="de")]},
            {"context": "No questions", "qas": None},
        ]},
    ]}  # fmt: skip
    path = tmp_path / "gp.json"
    path.write_bytes(orjson.dumps(document))
    rejects = Rejects(2)
    pairs = read(str(path), rejects=rejects)
    assert [(p.id, p.lang, p.positive.title) for p in pairs] == [("1", "sw", "River Nile"), ("2", "de", "River Nile")]
    assert rejects.rejected == 2 and rejects.accepted == 2 and rejects.read == 4
    for bad in (b"[1]", b"{", b'{"data": [{"paragraphs": 3}]}', b'{"data": 5}'):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"is not SQuAD JSON"):
            read(str(path))


def test_squad_without_languages_takes_the_one_that_is_given(tmp_path):
    questions = [{"id": "1", "question": "12?"}, {"id": "2", "question": "34?", "lang": "de"}]
    document = {"data": [{"title": "Nile", "paragraphs": [{"context": "It is long.", "qas": questions}]}]}
    path = tmp_path / "squad.json"
    path.write_bytes(orjson.dumps(document))
    with pytest.raises(DataError, match=r"cannot be told; give lang, or --pairs-lang for all"):
        read(str(path))
    assert [pair.lang for pair in read(str(path), lang="swa")] == ["sw", "de"]


def test_translations_come_from_tables_and_from_benchmarks(tmp_path):
    table = tmp_path / "pairs.tsv"
    table.write_text("Nini hii?\tWhat is this?\tswa\n\nWas ist das?\tWhat is this?\n", "utf-8")
    first, second = read(str(table))
    assert (first.query, first.translation, first.lang) == ("Nini hii?", "What is this?", "sw")
    assert second.lang == "de" and second.positive == first.positive and first.positive.text == first.translation
    for line, reason in (("one column\n", "1 columns; expected text,"), ("a\t \tsw\n", "translation is blank"),
                         ("a\tb\tklingonese\n", "not a language code"), ("a\tb\tsw\td\n", "4 columns")):  # fmt: skip
        table.write_text("Nini?\tWhat?\tsw\n" + line, "utf-8")
        with pytest.raises(DataError, match=f"pairs.tsv line 2: .*{reason}"):
            read(str(table))
    (tmp_path / "tatoeba").mkdir()
    for side, text in (("deu", "Hallo.\nTee\n"), ("eng", "Hello.\nTea\n")):
        (tmp_path / "tatoeba" / f"tatoeba.deu-eng.{side}").write_text(text, "utf-8")
    pairs = read("tatoeba-all", data_dir=tmp_path)
    assert [(p.query, p.lang, p.translation, p.positive.text) for p in pairs] == [
        ("Hallo.", "de", "Hello.", "Hello."), ("Tee", "de", "Tea", "Tea"),
    ]  # fmt: skip


@needs("xquad-r")
def test_a_benchmark_without_translations_is_no_source():
    with pytest.raises(DataError, match="xquad is no benchmark of translations: give afriqa, tatoeba-all"):
        read("xquad", data_dir=FOLDER)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"lang": "sw", "positive": "x"}, "no query"),
        ({"query": " ​", "lang": "sw", "positive": "x"}, "query is blank"),
        ({"query": "q", "lang": "sw"}, "no positive"),
        ({"query": "q", "lang": "sw", "positive": " "}, "text is blank"),
        ({"query": "q", "lang": "sw", "positive": ["x"]}, "positive must be a text or"),
        ({"query": "q", "lang": "sw", "positive": {"title": 3, "text": "x"}}, "title must be text"),
        ({"query": "q", "lang": "sw", "positive": "x", "negatives": "y"}, "negatives must be a list"),
        ({"query": "q", "lang": "klingonese", "positive": "x"}, "is not a language code"),
        ({"query": "q", "lang": "sw", "positive_passages": []}, "positive_passages is empty"),
        ({"query": "12345", "positive": "x"}, "language cannot be told"),
        (b"{'query': 1}\n", "not JSON"),
        (b'{"query": "\xff"}\n', "not UTF-8"),
        (b'{"query": "a", "query": "b", "positive": "x"}\n', "appears twice"),
    ],
)
def test_dirt_is_named_and_can_be_borne(tmp_path, record, reason):
    good = {"query": "Nini hii?", "lang": "sw", "positive": PASSAGE}
    path = lines(tmp_path / "a.jsonl", good, record, b"\n", good)
    with pytest.raises(DataError, match=f"a.jsonl line 2: .*{reason}"):
        read(path)
    rejects = Rejects(1)
    assert len(read(path, rejects=rejects)) == 1
    counts = rejects.counts()
    assert counts == {"read": 4, "accepted": 1, "duplicates": 1, "blank": 1, "rejected": 1}


def test_missing_and_unknown_sources_say_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"give afriqa, translations by name \(tatoeba-all\), or a file that ends in"):
        read("afrika")
    with pytest.raises(DataError, match="no file"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="holds no pair"):
        read(lines(tmp_path / "empty.jsonl", b"\n"))


def test_leaks_are_counted_by_content_and_left_out():
    pairs = twenty_pairs()
    dev = [
        TrainingPair("d1", "Neu?", "de", Passage("elsewhere", "Nile  is number 0 of ten.", "Nile")),
        TrainingPair("d2", "Was ist tea?", "de", Passage("new", "Something else")),
    ]
    shared = "{} of 2 dev passages are positives of {} training pairs, {} dev questions are training questions"
    assert leakage(pairs, dev) == shared.format(1, 2, 1)
    kept = without_leaks(pairs, dev)
    assert [p.id for p in pairs if p not in kept] == ["0-sw", "0-de", "2-de"]
    assert leakage(kept, dev) == shared.format(0, 0, 0)


def test_translations_and_selection(tmp_path):
    pairs = twenty_pairs()
    both = translated(pairs, also=True)
    assert len(both) == 40 and [p.lang for p in both[:2]] == ["sw", "en"]
    assert {p.lang for p in translated(pairs)} == {"en"}
    train, dev = write_pairs(tmp_path / "train.jsonl"), write_pairs(tmp_path / "dev.jsonl", pairs[:2])
    told = []
    sources = Sources(pairs=(str(train),), dev=(str(dev),), question_langs=("swa",), english="also", drop_leaks=True)
    chosen, held_out = sources.read(told.append)
    assert describe_pairs(chosen)["languages"] == {"en": 9, "sw": 9} and len(held_out) == 1
    assert told[0].startswith("1 of 1 dev passages are positives of 1 training pairs")
    with pytest.raises(DataError, match="No training pair is left"):
        Sources(pairs=(str(train),), question_langs=("fi",)).read(told.append)
    assert describe_pairs(pairs) == describe_pairs(twenty_pairs()) != describe_pairs(pairs[::-1])


def test_hybrid_pairs_of_files_that_share_ids(tmp_path):
    """LAReQA's way: a question with the passage in its language (XX) and with one of another (XY), in turn."""
    names = []
    for lang in ("de", "en", "sw"):
        paragraph = {"context": f"{lang} text", "lang": lang}
        paragraph["qas"] = [{"id": str(i), "question": f"{lang} {i}?"} for i in range(2)]
        if lang == "de":
            paragraph["qas"].append({"id": "alone", "question": "Nur hier?"})
        (tmp_path / f"{lang}.json").write_text(json.dumps({"data": [{"title": "", "paragraphs": [paragraph]}]}))
        names.append(str(tmp_path / f"{lang}.json"))
    told = []
    train, _ = Sources(pairs=tuple(names), hybrid=True).read(told.append)
    assert [(p.query, p.positive.text) for p in train] == [
        ("de 0?", "de text"), ("de 0?", "en text"), ("en 0?", "en text"), ("en 0?", "sw text"),
        ("sw 0?", "sw text"), ("sw 0?", "de text"),
        ("de 1?", "de text"), ("de 1?", "sw text"), ("en 1?", "en text"), ("en 1?", "de text"),
        ("sw 1?", "sw text"), ("sw 1?", "en text"),
        ("Nur hier?", "de text"),
    ]  # fmt: skip
    assert told == ["6 questions also with their passage in another language"]
    assert len({p.id for p in train if p.query.startswith("de")}) == 4
    assert train[0].copies == {content_key(p.positive) for p in train}
    plain, _ = Sources(pairs=tuple(names)).read(told.append)
    assert hybrid(plain[6:]) == [replace(pair, copies=frozenset({content_key(pair.positive)})) for pair in plain[6:]]


@needs("afriqa")
def test_afriqas_splits_and_what_they_share():
    train, dev = (read_pairs("afriqa", split=split, data_dir=FOLDER) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (1810, 1579)
    assert train[0].translation and train[0].positive.lang == "en"
    assert leakage(train, dev) == (
        "124 of 1504 dev passages are positives of 140 training pairs, 16 dev questions are training questions"
    )
