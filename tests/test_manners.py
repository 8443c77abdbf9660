"""What a Python user gets wrong is answered at once, in a sentence, and what is printed is worth reading."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

from xqg_vdb import AsyncRetriever, Collection, Encoder, Recipe, Retriever, export, generate, load, tune
from xqg_vdb.errors import DataError, LockedError, XqgError
from xqg_vdb.search import QuestionEncoder
from xqg_vdb.store import open_store
from xqg_vdb.types import Question, Search

CORPUS = [{"id": f"p{i}", "text": f"w{i} w3", "lang": "en"} for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manners")
    model = write_tiny_encoder(folder / "tiny", calibration=0.5)
    with open_store(folder / "store") as store:
        load(CORPUS, "wiki", encoder=str(model), store=store)
    return folder


@pytest.fixture
def wiki(place):
    with Collection.open("wiki", path=place / "store", encoder=place / "tiny") as collection:
        yield collection


def test_one_text_where_texts_belong(wiki):
    for encode in (wiki.encoder.encode_queries, wiki.encoder.encode_passages):
        with pytest.raises(DataError, match=r"Give a list of texts, not one: \['what\?'\]"):
            encode("what?")
    for one in ("what?", Question("0", "what?")):
        with pytest.raises(DataError, match=r"Give a list of questions, not one: \["):
            wiki.run(one)


def test_texts_where_one_belongs_and_numbers_where_texts_do(wiki):
    for wrong in (["w1", "w2"], 5, None, b"w1"):
        with pytest.raises(DataError, match=r"A question is a text, found .*; `run` takes a list of several"):
            wiki.search(wrong)
    with pytest.raises(DataError, match="Question '0' is blank"):
        wiki.search(" ")


@pytest.mark.parametrize("k", ["5", 0, -1, 2.0, None, True])
def test_a_number_that_is_none(wiki, k):
    with pytest.raises(DataError, match="k must be 1 or more, found"):
        wiki.search("w3", k=k)
    with pytest.raises(DataError, match="k must be 1 or more, found"):
        wiki.nearest(np.zeros((1, 12), np.float32), Search(k))
    with pytest.raises(DataError, match="offset must be 0 or more, found '1'"):
        wiki.search("w3", offset="1")
    assert len(wiki.search("w3", k=np.int64(2))) == 2


def test_names_are_accepted_where_encoders_are(wiki, place):
    expected = [hit.id for hit in wiki.search("w3 w5", k=5)]
    for name in (place / "tiny", str(place / "tiny")):
        assert [hit.id for hit in Retriever(name, wiki).search("w3 w5", k=5)] == expected
        assert QuestionEncoder(name, collection=wiki).encode(["w3"])[0].shape == (1, 12)


def test_plain_texts_are_questions(wiki):
    answers = wiki.run(["w3", "w5 w6"], Search(2))
    assert [(answer.question.id, answer.question.text) for answer in answers] == [("0", "w3"), ("1", "w5 w6")]
    assert answers[1].hits == wiki.run([Question("q", "w5 w6")], Search(2))[0].hits
    assert wiki.run([]) == []


def test_arguments_in_a_wrong_order(wiki):
    with pytest.raises(
        DataError, match=r"Retriever\(encoder, collection\) needs Collection.open\(…\), found Encoder\("
    ):
        Retriever(wiki, wiki.encoder)
    with pytest.raises(DataError, match=r"needs Collection.open.*found 'wiki'"):
        Retriever(wiki.encoder, "wiki")
    with pytest.raises(DataError, match=r"An encoder is needed \(such as Encoder\('starter'\) or its name\), found 5"):
        Retriever(5, wiki)
    with pytest.raises(DataError, match=r"write Collection.open\('wiki', path=…\)"):
        Collection("wiki", "xqg-data")
    with pytest.raises(DataError, match=r"AsyncRetriever needs a Retriever\(encoder, collection\), found Collection\("):
        AsyncRetriever(wiki)


@pytest.mark.parametrize(("call", "said"), [
    (lambda wiki: Encoder(5), "model of an encoder must be 'starter', a hub id or a model folder, found 5"),
    (lambda wiki: Encoder(wiki.encoder.folder.path, threads="2"), "threads must be 1 or more, got '2'"),
    (lambda wiki: Encoder(wiki.encoder.folder.path, calibration="0.5"), "calibration must be a number, found '0.5'"),
    (lambda wiki: wiki.encoder.encode_queries([1]), "Text 0 must be a text, found 1"),
    (lambda wiki: wiki.encoder.encode_passages(None), "texts must be a list, found None"),
    (lambda wiki: load("wiki", CORPUS, encoder=wiki.encoder), "name of a collection must be text, found [{'id'"),
    (lambda wiki: load(None, "wiki", encoder=wiki.encoder), "Give a file, a list of dicts or of Passages, or a data f"),
    (lambda wiki: load(["w1", "w2"], "x", encoder=wiki.encoder), 'A record must be a dict such as {"id": "1", '),
    (lambda wiki: load(CORPUS, "x", encoder=5), "An encoder is needed (such as Encoder('starter') or its name), found"),
    (lambda wiki: load(CORPUS, "x", encoder=wiki.encoder, recipe=0.3), "such as Recipe(alpha=0.3), found 0.3"),
    (lambda wiki: load(CORPUS, "x", encoder=wiki.encoder, options={"keep": 1}), "options must be LoadOptions(…), foun"),
    (lambda wiki: load(CORPUS, "x", encoder=wiki.encoder, store="here"), "what open_store(…) returns, found 'here'"),
    (lambda wiki: wiki.run(["w3"], 5), "search must be a Search, such as Search(k=5), found 5"),
    (lambda wiki: wiki.run(None), "questions must be a list, found None"),
    (lambda wiki: wiki.delete("p1"), "Give a list of ids, not one: ['p1']"),
    (lambda wiki: Collection.open(5), "The name of a collection must be text, found 5"),
    (lambda wiki: Collection.open("wiki", path=5), "path must be text, found 5"),
    (lambda wiki: Retriever(wiki.encoder, wiki, calibration="1"), "calibration must be a number, found '1'"),
    (lambda wiki: export(5), "An encoder that runs elsewhere needs the folder OUT and --model NAME"),
    (lambda wiki: export(Path("nowhere"), "out"), "There is no checkpoint 'nowhere'"),
    (lambda wiki: export("starter:encoder", "out", precision="int4"), "precision must be int8 or fp32, found 'int4'"),
    (lambda wiki: generate(CORPUS, query_langs="de"), "query_langs must be a list, such as ['de', 'sw'], found 'de'"),
    (lambda wiki: generate(CORPUS, query_langs=["de"], n="3"), "n must be a whole number, found '3'"),
    (lambda wiki: tune(CORPUS, queries=[], questions=[], qrels=None), "qrels must be a file, or grades by question"),
])  # fmt: skip
def test_what_is_of_another_kind_is_named_with_the_cure(wiki, call, said):
    with pytest.raises(XqgError) as caught:
        call(wiki)
    assert said in str(caught.value)


@pytest.mark.parametrize(("settings", "said"), [
    ({"alpha": "0.3"}, "alpha must be a number between 0 and 1, got '0.3'"),
    ({"shrink": "5"}, "shrink must be a number of 0 or more, got '5'"),
    ({"query_langs": "sw"}, r"query_langs must be a list, such as \['sw'\]"),
])  # fmt: skip
def test_recipes_of_another_kind(settings, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**settings)


def test_a_collection_that_is_missing_is_named_at_once(place):
    with pytest.raises(DataError, match=r"no collection 'wikl' in .*Did you mean wiki\?"):
        Collection.open("wikl", path=place / "store")


def opened_elsewhere(folder, answers):
    try:
        Collection.open("wiki", path=folder / "store").close()
        answers.put("opened")
    except LockedError as error:
        answers.put(str(error))


def test_a_second_process_is_refused_at_its_start(wiki, place):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    worker = spawn.Process(target=opened_elsewhere, args=(place, answers))
    worker.start()
    said = answers.get(timeout=60)
    worker.join()
    assert "'wiki'" in said and "is in use by" in said and "use a Qdrant server (--url) for several" in said


def test_what_is_printed(wiki, place):
    (hit,) = wiki.search("w3", k=1)
    assert repr(wiki) == f"Collection('wiki', EmbeddedStore({str(place / 'store')!r}))"
    assert repr(Retriever(wiki.encoder, wiki)).endswith(f"{wiki!r}, λ=0.5)")
    assert "query_means" not in repr(wiki.card) and len(repr(wiki.card)) < 700
    assert len(repr(wiki.encoder.language_means)) < 700
    with Encoder(place / "tiny") as encoder:
        assert repr(encoder) == "Encoder('tiny', fp32, 12 dimensions, λ=0.5)"
    assert repr(hit).startswith(f"Hit(id={hit.id!r}, score=")
