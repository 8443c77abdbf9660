"""Long documents: what is cut off is said; `load --chunk` makes chunks that searches find by document.

Set XQG_TEST_QDRANT_URL to run it on a real server.
"""

import asyncio
import contextlib
import json
import uuid

import numpy as np
import pytest
from cli_cases import run_here, write_lines, write_starter
from collection_cases import STORES, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_tiny_encoder

from xqg_vdb.errors import DataError, XqgError
from xqg_vdb.index.chunks import splitter
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.update import add
from xqg_vdb.index.verify import verify
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import digest
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Hybrid, Passage, Question, Recipe, Search

PLAIN = Recipe(pool="mean", alpha=0.4)
CHUNK = LoadOptions(chunk="16:4")


@pytest.fixture(params=STORES)
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    with opened(request.param, tmp_path) as store:
        yield store


@pytest.fixture
def name(store):
    chosen = f"test-{uuid.uuid4().hex[:12]}"
    yield chosen
    for each in (chosen, f"{chosen}-whole"):
        with contextlib.suppress(XqgError):
            store.delete(each)


def documents(start, stop, *, sentences=12, tag=""):
    """Document i has about so many sentences; each of them has a word of its own."""
    return [
        {
            "id": f"d{i}",
            "title": f"title {i}",
            "lang": "en",
            "text": " ".join(f"Word{tag}{i}x{j} is about maji {j % 3}." for j in range(sentences + i % 4)),
        }
        for i in range(start, stop)
    ]


def queries(start, stop):
    return [{"id": f"d{i}", "generated_queries": {"sw": [f"swali {i}", f"word{i}x2"]}} for i in range(start, stop)]


def points(store, name):
    return {point.id: point for point in store.scroll(name, with_vectors=True)}


def check_card(store, name):
    card, there = store.card(name), points(store, name)
    assert (card.count, card.pending, card.chunk) == (len(there), {}, "16:4")
    assert card.digest == digest((point.id, point.payload["content"]) for point in there.values())
    assert verify(store, name).problems == ()


# Cutting.


def chunks_of(text, setting="16:4", *, encoder=None, title=""):
    return list(splitter(encoder or HashEncoder(), setting)(Passage("d", text, title=title)))


@pytest.mark.parametrize(
    "text",
    [
        "The Nile flows north. It is 6,650 km long! Who measured it? Nobody knows. " * 20,
        "尼罗河是一条流经非洲东部与北部的河流。它自南向北注入地中海，与刚果河以及尼日尔河并列。" * 20,
        "ประเทศไทยมีชื่ออย่างเป็นทางการว่าราชอาณาจักรไทยเป็นรัฐชาติอันตั้งอยู่ในเอเชีย" * 20,
        "a\n\n\nb " * 100,
        "word" * 500,
        "👩‍👩‍👧‍👦é" * 200,
    ],
)
def test_chunks_are_the_text_whole_and_within_the_limit(text):
    made = chunks_of(text)
    assert len(made) > 3
    assert [chunk.id for chunk in made] == [f"d#{number}" for number in range(len(made))]
    covered = np.zeros(len(text), bool)
    for chunk in made:
        start, end = chunk.span
        assert text[start:end] == chunk.text == chunk.text.strip()
        assert len(chunks_of(chunk.text, "18")) == 1
        covered[start:end] = True
    assert all(covered[i] or text[i].isspace() for i in range(len(text)))
    assert [chunk.span[0] for chunk in made] == sorted({chunk.span[0] for chunk in made})


def test_borders_are_sentences_then_words_then_characters():
    sentences = chunks_of("One two three four five. " * 20, "16")
    assert all(chunk.text.endswith("five.") and chunk.text.startswith("One") for chunk in sentences)
    words = chunks_of("alpha beta gamma delta " * 20, "16")
    assert all(set(chunk.text.split()) <= {"alpha", "beta", "gamma", "delta"} for chunk in words)
    assert all(chunk.text.endswith("。") for chunk in chunks_of("他们说的话很长也很好。" * 20, "24"))
    marks = chunks_of("e\u0301" * 100, "16")  # an accent stays with its letter
    assert len(marks) > 2 and all(chunk.text[0] == "e" and chunk.text[-1] == "\u0301" for chunk in marks)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab. \n。น้\u200d👩é"), min_size=1, max_size=300), st.integers(0, 8))
def test_any_text_is_covered(text, overlap):
    made = chunks_of(text, f"16:{overlap}")
    covered = {at for chunk in made for at in range(*chunk.span)}
    left = "".join(text[at] for at in range(len(text)) if at not in covered)
    assert not any(character.isalnum() for character in left)
    assert all(text[slice(*chunk.span)] == chunk.text for chunk in made)


def test_the_encoders_own_tokens_are_counted(tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "m", max_length=32), threads=1) as encoder:
        text = " ".join(f"w{i % 40}" for i in range(100))
        made = chunks_of(text, "20", encoder=encoder)
        assert [len(chunk.text.split()) for chunk in made] == [20] * 5
        titled = chunks_of(text, "20", encoder=encoder, title=" ".join(["w1"] * 10))
        assert max(len(chunk.text.split()) for chunk in titled) == 32 - 2 - 2 - 10 - 1  # special, prefix, title
        with pytest.raises(DataError, match="give at most 27"):
            chunks_of(text, "40", encoder=encoder)


@pytest.mark.parametrize("wrong", [" ", "x", "8", "100:60", "100:-1", "1:2:3", "9999999"])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(DataError, match="--chunk is TOKENS or TOKENS:OVERLAP"):
        LoadOptions(chunk=wrong)


# What is cut off.


def test_reports_say_which_passages_were_cut(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    encoder = Encoder(write_tiny_encoder(tmp_path / "m", max_length=16), threads=1)
    rows = [
        {"id": "fits", "text": " ".join(["w1"] * 12), "lang": "en"},  # 16 with <s>, passage, : and </s>
        {"id": "one-too-many", "text": " ".join(["w2"] * 13), "lang": "en"},
        {"id": "twice", "text": " ".join(["w3"] * 26), "lang": "en"},
    ]
    with encoder, EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
        report = load(rows, "wiki", encoder=encoder, store=store).report
        assert report.cut == {"passages": 2, "tokens": 15 + 28, "lost": 1 + 14, "first": ["one-too-many", "twice"]}
        (note,) = report.notes
        assert (
            "2 passages are longer" in note
            and "35% of their tokens" in note
            and "(one-too-many, twice); load with --chunk 10:2" in note
        )
        more = [*rows, {"id": "more", "text": " ".join(["w4"] * 30), "lang": "en"}]
        assert add(more, "wiki", encoder=encoder, store=store).cut["first"] == ["more"]
        assert load(rows[:1], "short", encoder=encoder, store=store).report.cut == {}


# Collections.


def test_a_search_finds_documents_by_their_best_chunk(store, name):
    encoder, rows = HashEncoder(), documents(0, 12)
    collection = load(rows, name, encoder=encoder, store=store, options=CHUNK).collection
    check_card(store, name)
    there, texts = points(store, name), {row["id"]: row["text"] for row in rows}
    assert len(there) > 4 * len(rows)
    asked = ["word3x11 maji", "maji 1", "word0x2 word5x7", "title 4"]
    vectors = encoder.encode_queries(asked, calibrate=False)
    ids, matrix = list(there), np.stack([point.vectors["text-dense"] for point in there.values()])
    for k, offset in [(1, 0), (3, 0), (5, 4), (12, 0), (40, 0)]:
        answers = collection.run(asked, Search(k, exact=True, offset=offset))
        for answer, scores in zip(answers, vectors @ matrix.T, strict=True):
            best = {}
            for docid, score in zip(ids, scores.tolist(), strict=True):
                document = docid.rpartition("#")[0]
                best[document] = max(best.get(document, -9.0), score)
            wanted = sorted(best, key=lambda document: (-round(best[document], 5), document))[offset : offset + k]
            assert [hit.id for hit in answer.hits] == wanted
            for hit in answer.hits:
                assert abs(hit.score - best[hit.id]) < 1e-5
                assert hit.text == texts[hit.id][slice(*hit.span)]
    assert [hit.id for hit in collection.search("maji", where={"id": "d3"}, question_lang="und")] == ["d3"]


def test_hybrid_and_asynchronous_searches_find_documents_too(store, name):
    encoder = HashEncoder()
    options = LoadOptions(chunk="16:4", hybrid=Hybrid("none"))
    collection = load(documents(0, 12), name, encoder=encoder, store=store, options=options).collection
    plain, hybrid = Retriever(encoder, collection), Retriever(encoder, collection, hybrid=True)
    questions = [Question("a", "Word7x9 maji", "und"), Question("b", "maji", "und")]

    async def ask(retriever):
        async with AsyncRetriever(retriever) as asked:
            return await asked.run(questions, Search(7, exact=True))

    for retriever in (plain, hybrid):
        answers = retriever.run(questions, Search(7, exact=True))
        assert [len({hit.id for hit in answer.hits}) for answer in answers] == [7, 7]
        assert asyncio.run(ask(retriever)) == answers
    assert hybrid.search("Word7x9", k=1, question_lang="und")[0].text.count("Word7x9 ")


def test_one_document_does_not_hide_the_others(store, name):
    """More chunks of it than are asked for at first are the best ones."""
    long = {"id": "long", "text": "maji ya mto. " * 900, "lang": "sw"}
    collection = load([long, *documents(0, 4)], name, encoder=HashEncoder(), store=store, options=CHUNK).collection
    assert store.count(name) > 200
    hits = collection.search("maji ya mto", k=3, question_lang="und", exact=True)
    assert hits[0].id == "long" and len({hit.id for hit in hits}) == 3


def test_a_load_and_an_add_are_a_load_of_both(store, name):
    both, asked, encoder = documents(0, 30), queries(0, 30), HashEncoder()
    whole = {"recipe": PLAIN, "store": store, "options": CHUNK, "queries": asked}
    report = load(both, f"{name}-whole", encoder=encoder, **whole).report
    assert (report.documents, report.passages) == (30, store.count(f"{name}-whole"))
    assert load(both, f"{name}-whole", encoder=encoder, **whole).report.unchanged
    load([*documents(0, 10), *documents(10, 12, tag="old", sentences=40)], name, encoder=encoder, **whole)
    before = len(points(store, name))
    report = add(both, name, encoder=encoder, queries=asked, store=store)
    assert report.unchanged and report.replaced and report.deleted and report.passages < before + report.added
    wanted, there = points(store, f"{name}-whole"), points(store, name)
    assert wanted.keys() == there.keys()
    for docid, point in wanted.items():
        assert point.payload == there[docid].payload
        np.testing.assert_allclose(point.vectors["text-dense"], there[docid].vectors["text-dense"], atol=1e-6)
    check_card(store, name)
    seen = encoder.texts_seen
    report = add(both, name, encoder=encoder, queries=asked, store=store)
    assert (report.added, report.replaced, report.deleted, encoder.texts_seen) == (0, 0, 0, seen)


def test_a_document_goes_with_all_its_chunks(store, name):
    collection = load(documents(0, 6), name, encoder=HashEncoder(), store=store, options=CHUNK).collection
    chunks = [docid for docid in points(store, name) if docid.startswith("d3#")]
    report = collection.delete(["d3", "d3#0", "nobody"])
    assert (report.deleted, report.missing) == (len(chunks), ("d3#0", "nobody"))
    assert not [docid for docid in points(store, name) if docid.startswith("d3#")]
    check_card(store, name)


def test_ids_that_look_like_chunks_are_their_own_documents(store, name):
    rows = [{"id": docid, "text": f"Maji ya {docid}. " * 20, "lang": "sw"} for docid in ("a", "a#1", "a#1#0", "#")]
    collection = load(rows, name, encoder=HashEncoder(), store=store, options=CHUNK).collection
    assert {hit.id for hit in collection.search("maji", question_lang="und")} == {"a", "a#1", "a#1#0", "#"}
    collection.delete(["a#1"])
    assert {hit.id for hit in collection.search("maji", question_lang="und")} == {"a", "a#1#0", "#"}
    check_card(store, name)


def test_queries_of_a_document_are_encoded_once_and_go_into_every_chunk(store, name):
    encoder = HashEncoder()
    load(documents(0, 5), name, encoder=encoder, queries=queries(0, 5), store=store, options=CHUNK)
    there = points(store, name)
    assert encoder.texts_seen == len(there) + 10
    assert all(point.payload["meta"]["query_langs"] == ["sw"] for point in there.values())


def test_copies_and_the_command_line(tmp_path):
    write_starter(tmp_path / "cache")
    text = " ".join(f"w{i % 40}" for i in range(150))
    write_lines(tmp_path / "c.jsonl", [{"id": f"d{i}", "text": f"w{i} {text}", "lang": "en"} for i in range(4)])
    write_lines(tmp_path / "more.jsonl", [{"id": "d9", "text": text, "lang": "en"}])

    def run(*arguments, code=0):
        done = run_here(tmp_path, *arguments, "--path", "s")
        assert done.returncode == code, done
        return done.stdout + done.stderr

    assert "note: 4 passages are longer than what the encoder reads" in run("load", "c.jsonl", "cut")
    assert "32 passages, chunks of 4 documents" in run("load", "c.jsonl", "wiki", "--chunk", "20")
    hits = json.loads(run("search", "wiki", "w3 w1", "--json"))[0]["hits"]
    assert sorted(hit["id"] for hit in hits) == ["d0", "d1", "d2", "d3"] and len(hits[0]["span"]) == 2
    assert "characters " in run("search", "wiki", "w3 w1")
    assert "chunks of documents, 20 (tokens:overlap)" in run("info", "wiki")
    assert "wiki: 8 added; 40 passages" in run("add", "more.jsonl", "wiki")
    assert "16 deleted; 24 passages" in run("delete", "wiki", "d9", "d0")
    assert "give at most 59" in run("load", "c.jsonl", "other", "--chunk", "60", code=3)
    with EmbeddedStore(tmp_path / "s") as store, EmbeddedStore(tmp_path / "t", free_space_floor=0) as other:
        migrate(store, "wiki", other)
        assert points(other, "wiki").keys() == points(store, "wiki").keys()
        assert other.card("wiki").chunk == "20" and verify(other, "wiki").problems == ()
        with Encoder(tmp_path / "cache" / "starter-int8", threads=1) as encoder:
            assert Collection("wiki", other, encoder=encoder).search("w3", k=2, question_lang="und")[1].span
