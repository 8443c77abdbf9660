"""Search against a twin that scores every passage in float64 and sorts by (-score, id)."""

import json

import numpy as np
import pytest
from cli_cases import write_starter
from hypothesis import given, settings
from hypothesis import strategies as st
from rankings import assert_same, scored

from xqg_vdb.calibration import LanguageMeans, unpack_means
from xqg_vdb.errors import DataError, MismatchError, ModelError
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.search import collection_means
from xqg_vdb.search.retriever import Collection, Retriever
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Question, Search

DIM = 12
LANGS = ["en", "sw", "de"]
WORDS = ["maji", "mto", "nile", "jua", "water", "moon", "river", "salt", "alps", "sky"]
SWAHILI = "Ni nani aliyekuwa rais wa kwanza wa nchi ya Tanzania?"
GERMAN = "Wie heißt der höchste Berg der Alpen in Deutschland?"
UNSURE = "12345 67890"


def bank():
    rng = np.random.default_rng(3)
    return LanguageMeans({lang: rng.standard_normal(DIM).astype(np.float32) for lang in ("sw", "de", "yo")},
                         {"sw": 30, "de": 30, "yo": 30}, "bank")  # fmt: skip


def an_encoder(*, calibration=0.8, name="hash"):
    return HashEncoder(dim=DIM, name=name, calibration=calibration, language_means=bank())


def passages():
    """40 passages; ids are not in the order of the rows, and every fourth text comes twice."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(30)]
    texts += texts[:10]
    return [
        {"id": f"p{(7 * i) % 40:02d}", "text": text, "title": f"T{i}", "lang": LANGS[i % 3], "n": i}
        for i, text in enumerate(texts)
    ]


QUERIES = [{"id": f"p{i:02d}", "generated_queries": {"sw": [f"swali {i}", "maji"]}} for i in range(0, 40, 2)]


@pytest.fixture(scope="module", params=["server", "embedded"])
def collection(request, tmp_path_factory):
    """Made with queries in Swahili, so that its own mean of that language stands beside the bank's."""
    folder = tmp_path_factory.mktemp("retrieval")
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    corpus.write_text("".join(json.dumps(p) + "\n" for p in passages()))
    queries.write_text("".join(json.dumps(q) + "\n" for q in QUERIES))
    embedded = request.param == "embedded"
    store = EmbeddedStore(folder / "store", free_space_floor=0) if embedded else ServerStore.connect(":memory:")
    with load(
        corpus, "wiki", encoder=an_encoder(), queries=queries, store=store, options=LoadOptions(build=folder / "build")
    ).collection as collection:
        yield collection


def twin(collection, question, *, mean, strength, k=10, langs=None):
    """[(id, score)] over the stored vectors; `mean`: what is subtracted."""
    vector = an_encoder().encode_queries([question], calibrate=False)[0].astype(np.float64)
    if mean is not None:
        vector = vector - strength * mean.astype(np.float64)
    vector /= np.linalg.norm(vector)
    found = []
    for point in collection.scroll(with_vectors=True):
        if langs is None or point.payload["meta"]["lang"] in langs:
            stored = point.vectors["text-dense"].astype(np.float64)
            found.append((point.id, float(stored @ vector / np.linalg.norm(stored))))
    return sorted(found, key=lambda one: (-one[1], one[0]))[:k]


def agree(hits, expected):
    assert_same(scored(hits), expected)


def means_of(collection):
    """The table that should be used: the bank's, except for Swahili, which the collection measured."""
    own = unpack_means(collection.card.query_means, dim=DIM).means
    assert set(own) == {"sw"} and not np.allclose(own["sw"], bank().means["sw"], atol=1e-3)
    return {**bank().means, **own}


CASES = {
    "given": (SWAHILI, "sw", lambda m: m["sw"], "sw"),
    "given in another spelling": (SWAHILI, "swa", lambda m: m["sw"], "sw"),
    "given, wins over what would be detected": (SWAHILI, "de", lambda m: m["de"], "de"),
    "detected": (GERMAN, None, lambda m: m["de"], "de"),
    "detected, the collection's own mean": (SWAHILI, None, lambda m: m["sw"], "sw"),
    "unsure": (UNSURE, None, lambda m: np.mean([m["sw"], m["de"], m["yo"]], axis=0), "und"),
    "said to be unknown": (GERMAN, "und", lambda m: np.mean([m["sw"], m["de"], m["yo"]], axis=0), "und"),
    "not in the table": (GERMAN, "fr", lambda m: np.mean([m["sw"], m["de"], m["yo"]], axis=0), "fr"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_question_is_calibrated_for_its_language(collection, case):
    text, lang, mean, used = CASES[case]
    retriever = Retriever(an_encoder(), collection)
    expected = twin(collection, text, mean=mean(means_of(collection)), strength=0.8)
    agree(retriever.search(text, question_lang=lang), expected)
    (answer,) = retriever.run([Question("q", text, lang)])
    assert (answer.question, answer.lang) == (Question("q", text, lang), used)
    agree(answer.hits, expected)


@pytest.mark.parametrize(("given_strength", "used"), [(None, 0.8), (0.0, 0.0), (0.3, 0.3)])
def test_the_strength_is_the_cards_unless_given(collection, given_strength, used):
    encoder = an_encoder(calibration=0.1)  # of no account: the card says what suits this collection
    retriever = Retriever(encoder, collection, calibration=given_strength)
    agree(
        retriever.search(SWAHILI, question_lang="sw"),
        twin(collection, SWAHILI, mean=means_of(collection)["sw"], strength=used),
    )


def test_without_calibration_nothing_is_detected(collection, monkeypatch):
    seen = []
    monkeypatch.setattr("xqg_vdb.search.resolve_languages", lambda *given: seen.append(given))
    searches = collection.store.searches
    monkeypatch.setattr(
        collection.store,
        "searches",
        lambda name, asked: seen.extend(search.ef for _, search in asked) or searches(name, asked),
    )
    (answer,) = Retriever(an_encoder(), collection, calibration=0.0).run([Question("q", SWAHILI)])
    assert seen == [512] and answer.lang == ""


def test_every_question_walks_as_wide_as_was_asked(collection, monkeypatch):
    seen = []
    searches = collection.store.searches
    monkeypatch.setattr(
        collection.store,
        "searches",
        lambda name, asked: seen.extend(search.ef for _, search in asked) or searches(name, asked),
    )
    retriever = Retriever(an_encoder(), collection)
    retriever.search(SWAHILI)
    retriever.run([Question("q", SWAHILI)], Search(ef=64))
    assert seen == [512, 64]


def test_an_encoder_without_means_is_not_calibrated_but_works(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(p) + "\n" for p in passages()))
    encoder = HashEncoder(dim=DIM, calibration=0.8)
    with load(
        corpus,
        "wiki",
        encoder=encoder,
        store=ServerStore.connect(":memory:"),
        options=LoadOptions(build=tmp_path / "b"),
    ).collection as plain:
        agree(Retriever(encoder, plain).search(GERMAN), twin(plain, GERMAN, mean=None, strength=0))


def test_the_collections_means_win_over_the_banks(collection):
    table = collection_means(an_encoder(), collection.card)
    for lang, mean in means_of(collection).items():
        np.testing.assert_array_equal(table.means[lang], mean)
    assert set(table.counts) == {"sw", "de", "yo"}


@pytest.mark.parametrize(("given_langs", "stored"), [(["swa"], ["sw"]), (["de-AT", "swh"], ["de", "sw"]), (["yo"], [])])
def test_language_filters_are_normalised(collection, given_langs, stored):
    hits = Retriever(an_encoder(), collection).search(SWAHILI, question_lang="sw", passage_langs=given_langs, k=40)
    expected = twin(collection, SWAHILI, mean=means_of(collection)["sw"], strength=0.8, k=40, langs=stored)
    agree(hits, expected)
    assert {hit.lang for hit in hits} == set(stored)


def test_hits_carry_what_the_corpus_had(collection):
    by_id = {p["id"]: p for p in passages()}
    for hit in Retriever(an_encoder(), collection).search("maji mto", k=40):
        p = by_id[hit.id]
        assert (hit.text, hit.title, hit.lang, hit.meta) == (p["text"], p["title"], p["lang"], {"n": p["n"]})


def test_ties_are_ordered_by_id(tmp_path):
    rows = [{"id": f"p{(7 * i) % 20:02d}", "text": "maji" if i % 2 else "mto", "lang": "sw"} for i in range(20)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = sorted(row["id"] for row in rows if row["text"] == "maji")
    with load(
        corpus,
        "ties",
        encoder=an_encoder(),
        store=ServerStore.connect(":memory:"),
        options=LoadOptions(build=tmp_path / "b"),
    ).collection as ties:
        retriever = Retriever(an_encoder(), ties, calibration=0.0)
        for k in (1, 3, 10):
            assert [hit.id for hit in retriever.search("maji", k=k)] == same[:k]


QUESTIONS = st.lists(
    st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), st.sampled_from(["sw", "und"])),
    min_size=1, max_size=8,
)  # fmt: skip


@given(questions=QUESTIONS, k=st.integers(1, 12), langs=st.sampled_from([None, ["en"], ["sw", "de"]]))
@settings(max_examples=25, deadline=None)
def test_a_batch_equals_one_by_one(collection, questions, k, langs):
    retriever = Retriever(an_encoder(), collection)
    asked = [Question(str(i), text, lang) for i, (text, lang) in enumerate(questions)]
    answers = retriever.run(asked, Search(k, langs))
    assert [answer.question for answer in answers] == asked
    for query, answer in zip(asked, answers, strict=True):
        alone = retriever.search(query.text, question_lang=query.lang, k=k, passage_langs=langs)
        assert_same(scored(answer.hits), scored(alone), atol=1e-6)


def test_no_questions_no_answers(collection):
    assert Retriever(an_encoder(), collection).run([]) == []


def test_another_encoder_is_refused_with_both_fingerprints(collection):
    mine, theirs = an_encoder(name="other"), an_encoder()
    with pytest.raises(MismatchError) as caught:
        Retriever(mine, collection)
    assert str(caught.value) == (
        f"Collection 'wiki' was made by hash (fp32, fingerprint {theirs.facts.fingerprint}), not by other (fp32,"
        f" fingerprint {mine.facts.fingerprint}): use that encoder, or load again."
    )


def test_an_unknown_collection_is_named_with_its_neighbours(collection):
    with pytest.raises(DataError, match=r"There is no collection 'wikki' in .*\. Did you mean wiki\? It has: wiki\."):
        Retriever(an_encoder(), Collection("wikki", collection.store))


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_a_blank_question_is_refused_by_its_id(collection, text):
    retriever = Retriever(an_encoder(), collection)
    with pytest.raises(DataError, match=r"^Question 'b' is blank: there is nothing to search for.$"):
        retriever.run([Question("a", "maji"), Question("b", text)])
    with pytest.raises(DataError, match=r"^Question '0' is blank"):
        retriever.search(text)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"question_lang": "klingonish"}, "'klingonish' is not a language code"),
        ({"passage_langs": ["en", "xx-nope"]}, "'xx-nope' is not a language code"),
        ({"passage_langs": []}, "langs must be a list with at least one language code"),
        ({"passage_langs": "en"}, "langs must be a list with at least one language code"),
        ({"k": 0}, "k must be 1 or more"),
    ],
)
def test_wrong_arguments_are_named(collection, more, said):
    with pytest.raises(DataError, match=said):
        Retriever(an_encoder(), collection).search("maji", **more)


def test_a_collection_searches_with_the_encoder_at_hand(collection):
    """The one that loaded it, one that is given, or the one that the card names."""
    expected = Retriever(an_encoder(), collection).search(SWAHILI, k=3, passage_langs=["sw"])
    assert collection.search(SWAHILI, k=3, passage_langs=["sw"]) == expected
    again = Collection("wiki", collection.store, encoder=an_encoder())
    assert again.search(SWAHILI, k=3, passage_langs=["sw"], question_lang="sw") == expected
    with pytest.raises(MismatchError, match="was made by hash"):
        Collection("wiki", collection.store, encoder=an_encoder(name="other")).search(SWAHILI)
    with pytest.raises(ModelError, match=r"was made by an encoder from 'hash' .* give its model folder"):
        Collection("wiki", collection.store).search(SWAHILI)


def test_a_collection_is_opened_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    write_starter(tmp_path / "cache")
    rows = [{"id": f"p{i}", "text": f"w{i} w{i + 1}", "lang": "en"} for i in range(1, 9)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with load(
        tmp_path / "corpus.jsonl", "wiki", encoder="starter", store=EmbeddedStore(tmp_path / "store")
    ).collection as made:
        expected = made.search("w3 w4", k=2)
        assert [repr(made), repr(Retriever(made.encoder, made))] == [
            f"Collection('wiki', {made.store!r})",
            f"Retriever({made.encoder!r}, {made!r}, λ=0.5)",
        ]
    with Collection.open("wiki", path=tmp_path / "store") as opened:
        assert opened.search("w3 w4", k=2) == expected
    with pytest.raises(DataError, match="There is no collection 'wikki'"):
        Collection.open("wikki", path=tmp_path / "store")
    with pytest.raises(ValueError, match="give path or url, not both"):
        Collection.open("wiki", path=tmp_path / "store", url="http://localhost:6333")
