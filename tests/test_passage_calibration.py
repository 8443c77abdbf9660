"""Passage-side calibration: the kernel against its definition, and a load of several languages end to end."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from xqg_vdb.calibration import (
    PRIOR,
    LanguageMeans,
    calibrate_passages,
    main_languages,
    passage_means,
    rows_of_card,
    unpack_means,
)
from xqg_vdb.cli.search import _card_rows
from xqg_vdb.errors import DataError
from xqg_vdb.index import build as building
from xqg_vdb.index import write as writing
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.search.retriever import Retriever
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import same_build
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.tune.tune import labelled
from xqg_vdb.types import Card, Recipe

DIM = 16
WORDS = {"en": "river", "de": "fluss", "sw": "mto", "und": "qqq"}
SIZES = {"en": 60, "de": 40, "sw": 3, "und": 2}
RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def fresh_numbers(monkeypatch):
    """Every test draws the same numbers, whichever ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(11))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["embedded", "server"])
def store(request, tmp_path):
    with a_store(request.param, tmp_path / "store") as store:
        yield store


def a_store(kind, path):
    return EmbeddedStore(path, free_space_floor=0) if kind == "embedded" else ServerStore.connect(":memory:")


def an_encoder():
    rng = np.random.default_rng(7)
    means = {lang: (0.2 * rng.standard_normal(DIM)).astype(np.float32) for lang in ("sw", "de")}
    return HashEncoder(dim=DIM, calibration=0.7, language_means=LanguageMeans(means, {"sw": 30, "de": 40}, "bank"))


def a_corpus(sizes):
    """Passages in a mixed order, each with a word that all of its language have."""
    records = [
        {"id": f"{lang}{i}", "text": f"{WORDS[lang]} {WORDS[lang]} thing{i} place{i % 7}", "lang": lang}
        for lang, n in sizes.items()
        for i in range(n)
    ]
    return [records[i] for i in np.random.default_rng(3).permutation(len(records))]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    queries = [{"id": f"en{i}", "generated_queries": {"sw": [f"swali {i}", f"mto {i}"]}} for i in range(30)]
    return write(tmp_path / "corpus.jsonl", a_corpus(SIZES)), write(tmp_path / "queries.jsonl", queries)


def slow(rows, langs, strength, *, normalize=True, rounded=False):
    """The definition, a passage at a time, in float64."""
    rows = rows.astype(np.float64)
    everywhere = rows.mean(axis=0)
    own = defaultdict(list)
    for row, lang in zip(rows, langs, strict=True):
        own[lang].append(row)
    moved = []
    for row, lang in zip(rows, langs, strict=True):
        mean = (np.sum(own[lang], axis=0) + PRIOR * everywhere) / (len(own[lang]) + PRIOR)
        mean = everywhere if lang == "und" else mean
        mean = mean.astype(np.float16).astype(np.float64) if rounded else mean
        moved.append(row - strength * mean)
    return np.array([v / np.linalg.norm(v) for v in moved] if normalize else moved)


def of(store, name="wiki", key="text-dense"):
    return {point.id: point.vectors[key] for point in store.scroll(name, with_vectors=True)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("step", [1, 7, 100])
def test_rows_are_those_of_the_definition(normalize, strength, step):
    rows = (RNG.standard_normal((100, 6)) + 1.0).astype(np.float32)
    langs = RNG.choice(["en", "de", "sw", "und"], size=100, p=[0.6, 0.3, 0.05, 0.05]).tolist()
    table = passage_means((rows[i : i + step], langs[i : i + step]) for i in range(0, 100, step))
    moved = calibrate_passages(rows, langs=langs, table=table, strength=strength, normalize=normalize)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, slow(rows, langs, strength, normalize=normalize), atol=1e-5)
    assert table.counts == {lang: langs.count(lang) for lang in set(langs)}


def test_a_language_of_one_passage_leans_on_all_and_never_becomes_zero():
    rows = RNG.standard_normal((50, 6)).astype(np.float32)
    langs = ["sw", *["en"] * 49]
    table = passage_means([(rows, langs)])
    moved = calibrate_passages(rows, langs=langs, table=table, strength=1.0, normalize=True)
    away = rows[0] - rows.mean(axis=0)
    np.testing.assert_allclose(moved[0], away / np.linalg.norm(away), atol=1e-5)


def test_unknown_and_unmeasured_languages_take_the_mean_over_all():
    rows = RNG.standard_normal((50, 6)).astype(np.float32)
    table = passage_means([(rows, ["en"] * 30 + ["und"] * 20)])
    new = RNG.standard_normal((2, 6)).astype(np.float32)
    moved = calibrate_passages(new, langs=["und", "yo"], table=table, strength=0.5, normalize=False)
    np.testing.assert_allclose(moved, new - 0.5 * rows.mean(axis=0), atol=1e-6)


def test_nothing_measured_and_strength_zero_change_nothing():
    rows = RNG.standard_normal((3, 6)).astype(np.float32)
    assert passage_means([]).means == {}
    for table, strength in ((passage_means([]), 1.0), (passage_means([(rows, ["en"] * 3)]), 0.0)):
        assert calibrate_passages(rows, langs=["en"] * 3, table=table, strength=strength, normalize=True) is rows


def test_languages_of_few_passages_are_not_what_a_corpus_is_in():
    assert main_languages({"en": 5000, "de": 30, "sw": 29, "und": 400}) == ["de", "en"]


def test_a_load_calibrates_the_passages_before_queries_are_folded_in(store, files):
    options = {"options": LoadOptions(passage_calibration=0.8, keep_plain=True), "recipe": Recipe(alpha=0.4)}
    report = load(files[0], "wiki", encoder=an_encoder(), store=store, queries=files[1], **options).report
    corpus = a_corpus(SIZES)
    plain = an_encoder().encode_passages([passage["text"] for passage in corpus])
    langs = [passage["lang"] for passage in corpus]
    passages = dict(zip((p["id"] for p in corpus), slow(plain, langs, 0.8, rounded=True), strict=True))
    asked = {
        f"en{i}": an_encoder().encode_queries([f"swali {i}", f"mto {i}"], calibrate=False).astype(np.float64)
        for i in range(30)
    }
    # the bank's 30 questions keep half the weight beside 60 generated ones
    mean = (an_encoder().language_means.means["sw"] + np.mean(list(asked.values()), axis=(0, 1))) / 2
    found = of(store)
    for docid, own in passages.items():
        content = (asked[docid] - mean).sum(axis=0) / 7 if docid in asked else 0
        fused = 0.6 * own + 0.4 * content
        np.testing.assert_allclose(found[docid], fused / np.linalg.norm(fused), atol=1e-4)  # means of 16 bits
    for docid, vector in of(store, key="text-dense-plain").items():  # the passages' own
        np.testing.assert_allclose(vector, plain[[p["id"] for p in corpus].index(docid)], atol=1e-6)
    assert report.languages == SIZES and report.notes == ()
    card = store.card("wiki")
    assert (card.passage_calibration, set(card.passage_means)) == (0.8, set(SIZES))
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_hubs_of_a_language_lose_their_head_start(tmp_path):
    """The question's one content word is in an English passage; German ones share its language's word."""
    corpus = write(tmp_path / "c.jsonl", a_corpus({"en": 60, "de": 40}))
    rank = {}
    with EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
        for strength in (0.0, 1.0):
            encoder = HashEncoder(dim=512)  # in which words that differ have little in common
            collection = load(
                corpus, "wiki", encoder=encoder, store=store, options=LoadOptions(passage_calibration=strength)
            ).collection
            hits = Retriever(encoder, collection).search("fluss thing50", k=100, question_lang="de")
            rank[strength] = [hit.id for hit in hits].index("en50")
    assert rank[1.0] == 0 < rank[0.0]


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage", ["encoding", "measuring", "writing", "indexing"])
def test_a_stopped_load_goes_on_to_the_same_bytes(store, files, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(building, "WINDOW", 16)
    monkeypatch.setattr(writing, "COMMIT_EVERY", 32)

    def stop(reached, done, total):
        if reached == stage and done >= 48:
            raise Stop

    def run(name, **options):
        options |= {"options": LoadOptions(passage_calibration=1.0)}
        load(files[0], name, encoder=an_encoder(), store=store, queries=files[1], **options)

    run("unbroken")
    with pytest.raises(Stop):
        run("wiki", progress=stop)
    run("wiki")
    assert store.card("wiki").passage_means == store.card("unbroken").passage_means
    found, expected = of(store), of(store, "unbroken")
    assert found.keys() == expected.keys()
    for key, vector in expected.items():
        if isinstance(store, EmbeddedStore):
            np.testing.assert_array_equal(found[key], vector)
        else:  # the client's stand-in for a server scales what it is given once more
            np.testing.assert_allclose(found[key], vector, atol=1e-7)


def test_a_changed_corpus_or_strength_is_never_continued_with_other_means(store, files, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "WINDOW", 16)
    monkeypatch.setattr(writing, "COMMIT_EVERY", 16)

    def stop(reached, done, total):
        if reached == "writing" and done >= 48:
            raise Stop

    with pytest.raises(Stop):
        load(
            files[0],
            "wiki",
            encoder=an_encoder(),
            store=store,
            progress=stop,
            options=LoadOptions(passage_calibration=1.0),
        )
    more = write(tmp_path / "more.jsonl", [*a_corpus(SIZES), {"id": "new", "text": "mto new", "lang": "sw"}])
    for corpus, strength in ((more, 1.0), (more, 0.5), (files[0], 0.0)):
        build = tmp_path / f"build{strength}"
        card = load(
            corpus,
            "wiki",
            encoder=an_encoder(),
            store=store,
            options=LoadOptions(passage_calibration=strength, build=build),
        ).collection.card
        checked = verify(store, "wiki", build=build)
        assert checked.problems == () and checked.compared == checked.points
        assert card.passage_calibration == strength


def test_resuming_looks_at_strength_and_means():
    card = Card(an_encoder().facts, "cosine", Recipe(), passage_calibration=1.0, passage_means={"und": "AAAA"})
    assert same_build(card, replace(card, calibration=0.1))
    assert not same_build(card, replace(card, passage_calibration=0.5))
    assert not same_build(card, replace(card, passage_means={"und": "AAAB"}))


def test_verify_sees_passages_that_are_not_as_the_card_says(files, tmp_path):
    with EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
        load(
            files[0],
            "wiki",
            encoder=an_encoder(),
            store=store,
            options=LoadOptions(passage_calibration=1.0, build=tmp_path / "build"),
        )
        assert verify(store, "wiki", build=tmp_path / "build").problems == ()
        right = store.card("wiki")
        other = replace(right, passage_calibration=0.5)
        store.card = lambda name: other
        assert "are not what" in verify(store, "wiki", build=tmp_path / "build").problems[0]


def test_a_copy_keeps_strength_means_and_vectors(files, tmp_path):
    with (
        EmbeddedStore(tmp_path / "one", free_space_floor=0) as one,
        EmbeddedStore(tmp_path / "two", free_space_floor=0) as two,
    ):
        card = load(
            files[0], "wiki", encoder=an_encoder(), store=one, options=LoadOptions(passage_calibration=1.0)
        ).collection.card
        copied = migrate(one, "wiki", two)
        assert (copied.passage_calibration, copied.passage_means) == (1.0, card.passage_means)
        before, after = of(one), of(two)
        for key, vector in before.items():
            np.testing.assert_array_equal(after[key], vector)


@pytest.mark.parametrize("sizes", [{"en": 60}, {"en": 60, "de": 29, "und": 40}])
def test_a_corpus_in_one_language_is_left_as_it_is_and_the_load_says_so(tmp_path, sizes):
    corpus = write(tmp_path / "c.jsonl", a_corpus(sizes))
    with ServerStore.connect(":memory:") as store:
        load(corpus, "plain", encoder=an_encoder(), store=store)
        report = load(
            corpus, "wiki", encoder=an_encoder(), store=store, options=LoadOptions(passage_calibration=1.0)
        ).report
        assert "left as they are" in report.notes[0] and "30 passages or more in each of two" in report.notes[0]
        card, found = store.card("wiki"), of(store)
        assert (card.passage_calibration, card.passage_means) == (0.0, {})
        for key, vector in of(store, "plain").items():
            np.testing.assert_array_equal(found[key], vector)


def test_a_corpus_in_several_languages_brings_a_hint_and_no_change(files):
    with ServerStore.connect(":memory:") as store:
        report = load(files[0], "wiki", encoder=an_encoder(), store=store).report
        assert len(report.notes) == 1 and "in 2 languages" in report.notes[0]
        assert "--passage-calibration" in report.notes[0] and store.card("wiki").passage_calibration == 0.0


def test_calibrated_passages_without_calibrated_questions_are_warned_of(files):
    encoder = an_encoder()
    encoder.calibration = 0.0
    with ServerStore.connect(":memory:") as store:
        report = load(
            files[0], "wiki", encoder=encoder, store=store, options=LoadOptions(passage_calibration=0.5)
        ).report
        assert "questions are not" in report.notes[0]


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_strengths_that_are_none_are_refused(files, strength):
    with ServerStore.connect(":memory:") as store, pytest.raises(DataError, match="must be a number from 0 up"):
        load(files[0], "wiki", encoder=an_encoder(), store=store, options=LoadOptions(passage_calibration=strength))


def test_rows_of_an_older_card_are_left_alone():
    rows = RNG.standard_normal((3, DIM)).astype(np.float32)
    record = Card(an_encoder().facts, "cosine", Recipe()).to_json()
    del record["passage_calibration"], record["passage_means"]
    card = Card.from_json(record)
    assert rows_of_card(rows, langs=["en"] * 3, card=card) is rows
    assert unpack_means(card.passage_means, dim=DIM).means == {}


def labels(folder, ids):
    """Two generated queries and one question for each passage: the query file, and what `labelled` needs beside it."""
    records = [{"id": docid, "generated_queries": {"sw": [f"a {docid}", f"b {docid}"]}} for docid in ids]
    questions = write(folder / "asked.jsonl", [{"id": docid, "text": f"c {docid}", "lang": "sw"} for docid in ids])
    (folder / "qrels.txt").write_text("".join(f"{docid} 0 {docid} 1\n" for docid in ids))
    files = {"questions": questions, "qrels": folder / "qrels.txt", "folder": folder / "kept"}
    return write(folder / "all.jsonl", records), files


def test_tuning_sees_the_passages_that_a_load_will_write(tmp_path, files):
    queries, asked = labels(tmp_path, [p["id"] for p in a_corpus(SIZES)])
    with ServerStore.connect(":memory:") as store:
        options = {"queries": queries, "options": LoadOptions(passage_calibration=0.5)}
        load(files[0], "wiki", encoder=an_encoder(), store=store, recipe=Recipe(alpha=0.0), **options)
        written = of(store)
    data = labelled(files[0], [queries], encoder=an_encoder(), passage_calibration=0.5, **asked)
    assert data.notes == () and len(data.ids) == len(written)
    for docid, row in zip(data.ids, data.passages, strict=True):
        np.testing.assert_allclose(row, written[docid], atol=2e-4)  # the card has float16 means


def test_tuning_on_one_language_says_that_passages_stay(tmp_path):
    corpus = write(tmp_path / "c.jsonl", a_corpus({"en": 60}))
    queries, asked = labels(tmp_path, [f"en{i}" for i in range(60)])
    plain = labelled(corpus, [queries], encoder=an_encoder(), **asked)
    data = labelled(corpus, [queries], encoder=an_encoder(), passage_calibration=1.0, **asked)
    assert np.array_equal(data.passages, plain.passages) and "in one language" in data.notes[-1]


def test_info_tells_what_was_taken_from_the_passages():
    card = Card(an_encoder().facts, "cosine", Recipe(), calibration=0.8)
    assert _card_rows(card)["calibration"] == "λ = 0.8"
    calibrated = replace(card, passage_calibration=0.5, passage_means={"de": "", "en": "", "und": ""})
    assert _card_rows(calibrated)["calibration"] == "λ = 0.8, passages λ = 0.5, means of 2 languages"
