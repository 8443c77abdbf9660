"""BM25 beside the dense vector: words against the formula, fusion and search against slow twins, on each store."""

import asyncio
import json
import math
import random
import subprocess
import unicodedata
import uuid
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from bench_cases import encoder, sentence
from cli_cases import run_cli, write_inputs, write_starter
from collection_cases import a_batch, a_card, passages, vectors
from fake_qdrant import FakeQdrant
from integration_cases import KEY, SERVER
from rankings import assert_best

from xqg_vdb import AsyncRetriever, Hit, Retriever, load
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.store import open_store
from xqg_vdb.store.bm25 import WordWriter, settings_of
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.gate import checked
from xqg_vdb.store.layout import contenders, fuse_points, fuse_ranks, point_id, sparse_vector
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Bm25Settings, Card, Hybrid, Passage, Question, Search

N = 60
NAME = f"test-{uuid.uuid4().hex[:12]}"


def corpus(folder, *, lang="en"):
    rng = random.Random(5)
    rows = [{"id": f"p{i:02d}", "title": f"t{i}", "text": sentence(rng, 5 + i % 9), "lang": lang} for i in range(N)]
    queries = [
        {"id": row["id"], "generated_queries": {"ha": [sentence(rng, 3), "haword"], "zu": [sentence(rng, 2)]}}
        for row in rows
    ]
    for name, records in (("corpus", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return rows


@pytest.fixture(scope="module", params=["embedded", "memory", "http", "server"])
def loaded(request, tmp_path_factory):
    """(encoder, collection, passages): hybrid, on each store."""
    if request.param == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    folder, made = tmp_path_factory.mktemp("hybrid"), encoder()
    rows = corpus(folder)
    with FakeQdrant() as fake:
        if request.param == "embedded":
            store = EmbeddedStore(folder / "store", free_space_floor=0)
        else:
            url = {"memory": ":memory:", "http": fake.url, "server": SERVER}[request.param]
            store = ServerStore.connect(url, api_key=KEY if request.param == "server" else None)
        with store:
            collection = load(
                folder / "corpus.jsonl", NAME, encoder=made, store=store, queries=folder / "queries.jsonl",
                options=LoadOptions(hybrid=Hybrid()),
            ).collection  # fmt: skip
            yield made, collection, rows
            store.delete(NAME)


def bm25(rows, question, *, k=1.2, b=0.75, avg_len):
    """The textbook formula over lists of words, the engine's idf: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    counts = {docid: Counter(words) for docid, words in rows.items()}
    scores = {}
    for docid, own in counts.items():
        score = 0.0
        for word in set(question):
            n = sum(word in other for other in counts.values())
            idf = math.log(1 + (len(rows) - n + 0.5) / (n + 0.5))
            tf = own[word]
            score += idf * tf * (k + 1) / (tf + k * (1 - b + b * len(rows[docid]) / avg_len))
        if score:
            scores[docid] = score
    return scores


def words_of(rows):
    """Every passage's words, and none of its generated queries'; these inputs have no stop words and no endings."""
    return {row["id"]: f"{row['title']} {row['text']}".split() for row in rows}


def test_words_are_ranked_by_the_formula(loaded):
    _, collection, rows = loaded
    documents, settings = words_of(rows), collection.card.bm25
    average = sum(map(len, documents.values())) / N
    assert settings == Bm25Settings(lang="en", avg_len=round(average, 1), words=4)
    question = "w1 w2 w2 haword nothing"
    expected = bm25(documents, question.split(), avg_len=settings.avg_len)
    asked = WordWriter(settings).question(question)
    found = collection.nearest([asked], Search(N, using="text-sparse"))[0]
    assert {hit.id: hit.score for hit in found} == pytest.approx(expected, rel=1e-5)
    assert_best([hit.id for hit in found], expected, k=N)


def slow_rrf(rankings, k):
    every = sorted(set(chain(*rankings)))
    scores = {d: sum(1 / (60 + list(ranking).index(d) + 1) for ranking in rankings if d in ranking) for d in every}
    return sorted(scores.items(), key=lambda one: -one[1])[:k]


def test_ranks_are_fused_by_the_formula():
    """Written out: a is first and third, b second in both; ties by id; what is in one ranking counts once."""
    first, second = (
        [Hit(docid, 9.0 - i, docid) for i, docid in enumerate(order)] for order in (("a", "b", "d"), ("c", "b", "a"))
    )
    fused = fuse_ranks([first, second], k=4)
    assert [(hit.id, hit.score) for hit in fused] == [
        ("a", 1 / 61 + 1 / 63), ("b", 1 / 62 + 1 / 62), ("c", 1 / 61), ("d", 1 / 63)
    ]  # fmt: skip
    assert fuse_ranks([first, []], k=1) == [replace(first[0], score=1 / 61)]
    rng = random.Random(1)
    for _ in range(50):
        orders = [rng.sample([f"{i:02d}" for i in range(20)], rng.randint(0, 20)) for _ in range(2)]
        hits = [[Hit(docid, -i, "") for i, docid in enumerate(order)] for order in orders]
        assert [(hit.id, hit.score) for hit in fuse_ranks(hits, k=7)] == slow_rrf(orders, 7)


def test_fused_by_points_as_if_every_passage_were_known():
    """Rankings by point id, few different scores: the passages of the contenders alone give what all of them give."""
    rng, fetched = random.Random(3), 0
    for case in range(300):
        points, depth, k = rng.sample(range(1000), 260), 100, rng.choice((1, 3, 10, 120))
        ids = {f"point{point:03d}": f"p{i:03d}" for i, point in enumerate(points)}
        rankings = []
        for levels in rng.choices((5, 40, 100_000), k=rng.randint(1, 2)):
            scored = {point: rng.randrange(levels) / levels for point in rng.sample(list(ids), rng.randint(0, 240))}
            order = sorted(scored, key=lambda point: -scored[point])
            cut = max(k, depth)
            least = scored[order[cut - 1]] if len(order) > cut else -1.0
            rankings.append([Hit(point, scored[point], "") for point in order if scored[point] >= least])
        named = [sorted((Hit(ids[h.id], h.score, "") for h in r), key=lambda h: (-h.score, h.id)) for r in rankings]
        wanted = contenders(rankings, {}, k=k)
        known = {point: Hit(ids[point], 0.0, "") for point in wanted}
        expected = fuse_ranks([r[: max(k, depth)] for r in named], k=k)
        assert fuse_points(rankings, known, k=k) == expected, case
        fetched += len(wanted) / max(1, len(expected))
    assert fetched / 300 < 12, "far from all of them"


def test_ids_first_then_the_passages_of_the_winners(tmp_path):
    """One request with both rankings and no payload, one for what is shown; what is deleted between the two is gone."""
    corpus(tmp_path)
    made = encoder()
    with FakeQdrant() as fake, ServerStore.connect(fake.url) as store:
        options = LoadOptions(hybrid=Hybrid())
        retriever = Retriever(made, load(tmp_path / "corpus.jsonl", "c", encoder=made, store=store, options=options)
                              .collection, hybrid=True)  # fmt: skip
        text = "w1 w2 w3"
        first = retriever.search(text, k=4)
        fake.requests.clear()
        assert retriever.search(text, k=4) == first and first[0].text
        sent = [path for method, path in fake.requests if "/points" in path]
        assert sent == ["/collections/c__v0001/points/query/batch", "/collections/c__v0001/points"]

        def gone(method, path):
            if path.endswith("/points"):
                fake.before = lambda method, path: None
                fake.client.delete("c__v0001", [str(point_id(first[0].id))])

        fake.before = gone
        seen = retriever.search(text, k=4)
        assert len(seen) == 4 and all(hit.text for hit in seen) and first[0].id not in [hit.id for hit in seen]


def test_hybrid_search_is_the_fusion_of_both(loaded):
    made, collection, rows = loaded
    retriever, plain = Retriever(made, collection, hybrid=True), Retriever(made, collection)
    documents, writer = words_of(rows), WordWriter(collection.card.bm25)
    asked = [Question(str(i), f"{row['text']} w{i}", ("ha", "zu", "und")[i % 3]) for i, row in enumerate(rows[:8])]
    answers = retriever.run([*asked, Question("x", "unheard", "ha")], Search(10, exact=True))
    for query, answer in zip(asked, answers, strict=False):
        dense = [hit.id for hit in plain.search(query.text, question_lang=query.lang, k=N, exact=True)]
        words = [hit.id for hit in collection.nearest([writer.question(query.text)], Search(N, using="text-sparse"))[0]]
        assert_best(words, bm25(documents, query.text.split(), avg_len=collection.card.bm25.avg_len), k=N)
        assert [(hit.id, hit.score) for hit in answer.hits] == slow_rrf([dense, words], 10)
    unheard = plain.search("unheard", question_lang="ha", k=10, exact=True)
    assert [hit.id for hit in answers[-1].hits] == [hit.id for hit in unheard]
    assert retriever.search(asked[0].text, k=3, passage_langs=["de"]) == []


def test_coroutines_find_the_same(loaded):
    made, collection, rows = loaded
    retriever = Retriever(made, collection, hybrid=True)

    async def search():
        async with AsyncRetriever(retriever) as searcher:
            return await asyncio.gather(*(searcher.search(row["text"], k=5, exact=True) for row in rows[:6]))

    expected = [retriever.search(row["text"], k=5, exact=True) for row in rows[:6]]
    assert asyncio.run(search()) == expected


def test_copied_verified_and_searched_again(loaded, tmp_path):
    """To the other engine and back: the token weights survive, and verify has nothing to say."""
    collection = loaded[1]
    with EmbeddedStore(tmp_path / "copy", free_space_floor=0) as copy, ServerStore.connect(":memory:") as there:
        migrate(collection.store, NAME, there)
        migrate(there, NAME, copy, to_name="d")
        assert copy.card("d").bm25 == collection.card.bm25
        assert verify(copy, "d").problems == verify(collection.store, NAME).problems == ()
        own, other = ({p.id: p.sparse for p in s.scroll(n, with_vectors=True)} for s, n in ((copy, "d"), (there, NAME)))
        assert own.keys() == other.keys() and len(own) == N
        for docid, one in own.items():
            np.testing.assert_array_equal(one.indices, other[docid].indices)
            np.testing.assert_array_equal(one.values, other[docid].values)


def test_a_collection_without_words(tmp_path):
    corpus(tmp_path)
    with open_store(tmp_path / "store") as store:
        collection = load(tmp_path / "corpus.jsonl", "c", encoder=encoder(), store=store).collection
        assert collection.card.bm25 is None
        with pytest.raises(MismatchError, match="--hybrid"):
            Retriever(encoder(), collection, hybrid=True)
        with pytest.raises(MismatchError, match="--hybrid"):
            collection.nearest([sparse_vector([1], [1.0])], Search(using="text-sparse"))
        with pytest.raises(DataError, match="'xx'; use 'none'"):
            load(
                tmp_path / "corpus.jsonl",
                "c",
                encoder=encoder(),
                store=store,
                options=LoadOptions(hybrid=Hybrid(lang="xx")),
            )


ENGLISH = Passage("1", "The dogs were running in the parks", lang="en")


@pytest.mark.parametrize(
    ("langs", "lang"),
    [(["en"] * 9 + ["sw"], "en"), (["en"] * 8 + ["sw"] * 2, "none"), (["sw"] * 9, "none"), (["und"] * 3, "none")],
)
def test_the_language_is_the_one_that_passages_share(langs, lang):
    sample = [replace(ENGLISH, lang=one) for one in langs]
    assert settings_of(sample, Hybrid()).lang == lang
    assert settings_of(sample, Hybrid(lang="none")) == Bm25Settings("none", avg_len=7.0, words=4)
    assert settings_of([], Hybrid()).avg_len == 1.0


@pytest.mark.parametrize("words", [1, 2])
def test_what_a_word_is(words):
    """Stems and stop words of the language alone; scripts without spaces are cut into words; blanks have none."""
    english, none = (WordWriter(Bm25Settings(lang, words=words)) for lang in ("en", "none"))
    assert len(english.document(ENGLISH).indices) == 3  # dog, run, park
    assert len(none.document(ENGLISH).indices) == 6  # the twice
    assert set(english.question("Dogs' park").indices) < set(english.document(ENGLISH).indices)
    assert not set(none.question("dog park").indices) & set(none.document(ENGLISH).indices)
    assert len(none.question("東京は日本の首都です").indices) > 3
    for text in ("", "?!", " "):
        assert len(none.question(text).indices) == 0
    assert len(english.question("the").indices) == 0


def test_composed_and_decomposed_letters_are_the_same_word():
    """In passages, questions and the average length."""
    text, other = "Hà Nội là thủ đô của Việt Nam", "Đâu là thủ đô?"
    composed, decomposed = ([unicodedata.normalize(form, one) for one in (text, other)] for form in ("NFC", "NFD"))
    assert composed != decomposed
    words = WordWriter(Bm25Settings("none", words=4))
    made, settings = [], []
    for own, asked in (composed, decomposed):
        passage = Passage("1", own, lang="vi")
        made.append([words.document(passage), words.question(asked)])
        settings.append(settings_of([passage], Hybrid()))
    for one, two in zip(*made, strict=True):
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_array_equal(one.values, two.values)
    assert settings[0] == settings[1] and len(made[0][1].indices) == 4


def test_a_passage_of_stop_words_is_found_by_its_vector(tmp_path):
    rows = [{"id": str(i), "text": text, "lang": "en"} for i, text in enumerate(["the", "w1 the", "w2"])]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with open_store(tmp_path / "store") as store:
        collection = load(
            tmp_path / "corpus.jsonl", "c", encoder=encoder(), store=store, options=LoadOptions(hybrid=Hybrid())
        ).collection
        assert sorted(len(p.sparse.indices) for p in collection.scroll(with_vectors=True)) == [0, 1, 1]
        assert len(Retriever(encoder(), collection, hybrid=True).search("the", question_lang="en")) == 3
        assert verify(store, "c").problems == ()


@pytest.mark.parametrize(
    "one",
    [
        sparse_vector([1, 1], [1.0, 1.0]),
        replace(sparse_vector([1, 2], [1.0, 1.0]), indices=np.array([1], dtype=np.uint32)),
        replace(sparse_vector([1, 2], [1.0, 1.0]), indices=np.array([2, 1], dtype=np.uint32)),
        replace(sparse_vector([1], [1.0]), indices=np.array([1])),
        sparse_vector([1], [math.nan]),
        sparse_vector([1], [math.inf]),
    ],
    ids=["twice", "uneven", "falling", "int64", "nan", "inf"],
)
def test_the_gate_refuses_what_the_engine_panics_at(one):
    card = replace(a_card(), bm25=Bm25Settings())
    batch = a_batch(passages(2), vectors(2))
    checked(replace(batch, sparse=[sparse_vector([], []), sparse_vector([3], [0.5])]), card=card)
    with pytest.raises(DataError, match="'p00001' cannot be stored: its sparse vector"):
        checked(replace(batch, sparse=[sparse_vector([1], [1.0]), one]), card=card)


def test_words_where_the_card_promises_them_and_nowhere_else():
    batch = a_batch(passages(2), vectors(2))
    for bad, card in ((None, replace(a_card(), bm25=Bm25Settings())), ([sparse_vector([], [])] * 2, a_card())):
        with pytest.raises(MismatchError, match="one sparse vector a passage"):
            checked(replace(batch, sparse=bad), card=card)


def test_the_card_as_text():
    """An old card that says whose queries' words were indexed, too, is read: the questions are cut the same."""
    card = replace(a_card(), bm25=Bm25Settings("de", 12.5))
    record = json.loads(json.dumps(card.to_json()))
    assert Card.from_json(record) == card
    assert Card.from_json({**record, "bm25": {**record["bm25"], "query_langs": ["ha"]}}) == card
    old = {key: value for key, value in a_card().to_json().items() if key != "bm25"}
    assert Card.from_json(old) == a_card()


def test_a_changed_setting_is_another_build(tmp_path):
    """Loaded again without stop words, and without words: nothing of the earlier version is taken for it."""
    corpus(tmp_path)
    options = {"encoder": encoder(), "queries": tmp_path / "queries.jsonl"}
    with open_store(tmp_path / "store") as store:
        for hybrid in (Hybrid(), Hybrid(lang="none"), None):
            how = LoadOptions(hybrid=hybrid, build=tmp_path / "build")
            collection = load(tmp_path / "corpus.jsonl", "c", store=store, **options, options=how).collection
            lengths = [len(p.sparse.indices) if p.sparse else 0 for p in collection.scroll(with_vectors=True)]
            assert (sum(lengths) > 0) == (hybrid is not None)
            assert collection.card.bm25 is None or collection.card.bm25.lang == (hybrid.lang or "en")


def test_the_commands(tmp_path):
    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    load_it = ["load", "corpus.jsonl", "c", "--queries", "queries.jsonl", "--no-calibration"]
    refused = run_cli(tmp_path, *load_it, "--hybrid-lang", "none")
    assert refused.returncode == 2 and "--hybrid" in refused.stderr
    done = run_cli(tmp_path, *load_it, "--hybrid", "--hybrid-lang", "none")
    assert done.returncode == 0, done.stderr
    told = run_cli(tmp_path, "info", "c").stdout
    assert "BM25 over the words, language none" in told
    text = json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[4])["text"]
    found = json.loads(run_cli(tmp_path, "search", "c", text, "--hybrid", "--json").stdout)
    assert found[0]["hits"][0]["id"] == "p4"
    assert found[0]["hits"][0]["score"] == pytest.approx(2 / 61)
    assert run_cli(tmp_path, "verify", "c").returncode == 0
    plain: subprocess.CompletedProcess = run_cli(tmp_path, *load_it)
    assert plain.returncode == 0, plain.stderr
    without = run_cli(tmp_path, "search", "c", text, "--hybrid")
    assert without.returncode != 0 and "load it with --hybrid" in without.stderr
