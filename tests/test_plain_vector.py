"""The vectors beside the fused one: what they hold, and which one a question is searched by."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench_cases import encoder, sentence
from cli_cases import run_cli, write_inputs, write_starter
from rankings import assert_best

from xqg_vdb import Recipe, Retriever, load
from xqg_vdb.fusion import fuse
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.index.migrate import migrate
from xqg_vdb.index.verify import verify
from xqg_vdb.search.retriever import Collection
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import digest
from xqg_vdb.types import Card, Passage, PointBatch, Question, Search

PLAIN, GENERAL = "text-dense-plain", "text-dense"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A collection of 40 passages with queries in two languages, and what it was made from."""
    import random

    rng, folder, made = random.Random(3), tmp_path_factory.mktemp("vectors"), encoder()
    passages = [{"id": f"p{i}", "text": sentence(rng, 9), "lang": "en"} for i in range(40)]
    queries = [
        {"id": p["id"], "generated_queries": {lang: [sentence(rng, 4) for _ in range(2)] for lang in ("ha", "zu")}}
        for p in passages
    ]
    for name, records in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    store = open_store(folder / "store")
    options = {"encoder": made, "store": store, "queries": folder / "queries.jsonl"}
    collection = load(folder / "corpus.jsonl", "c", **options, options=LoadOptions(keep_plain=True)).collection
    yield made, collection, passages, queries
    store.close()


def test_the_plain_vector_is_the_passage_alone_and_the_general_one_the_fusion(loaded):
    made, collection, passages, queries = loaded
    stored = {point.id: point for point in collection.scroll(with_vectors=True)}
    rows = made.encode_passages([p["text"] for p in passages])
    sums = {
        lang: (
            np.stack([made.encode_queries(q["generated_queries"][lang], calibrate=False).sum(axis=0) for q in queries]),
            np.full(len(passages), 2, dtype=np.int32),
        )
        for lang in ("ha", "zu")
    }
    means = Retriever(made, collection).question_encoder.language_means.means
    assert collection.card.vectors == (GENERAL, PLAIN)
    expected = {PLAIN: rows, GENERAL: fuse(rows, sums, recipe=Recipe(), means=means, normalize=True)}
    for name, matrix in expected.items():
        found = np.stack([stored[p["id"]].vectors[name] for p in passages])
        # the card keeps the means in 16 bits
        np.testing.assert_allclose(found, matrix, atol=2e-3, err_msg=name)
    assert np.abs(expected[PLAIN] - expected[GENERAL]).max() > 0.05


def test_questions_are_searched_by_the_general_vector(loaded):
    """Given, unknown, and without queries, several in one call."""
    made, collection, passages, _ = loaded
    retriever = Retriever(made, collection)
    asked = [Question(str(i), passages[3]["text"][:12], lang) for i, lang in enumerate(["ha", "und", "de", "ha"])]
    answers = retriever.run(asked, Search(40, exact=True))
    own = collection.nearest(retriever.encode(asked)[0], Search(40, using=GENERAL, exact=True))
    assert [list(answer.hits) for answer in answers] == own
    assert [h.score for h in own[0]] != [h.score for h in own[1]]


def test_vectors_that_are_no_longer_made_are_passed_over(tmp_path):
    """Earlier versions could make a vector per query language: such a collection is searched, copied, verified."""
    made, rows = encoder(), encoder().encode_passages(["w1 w2", "w3 w4", "w5 w6"])
    found = [Passage(str(i), f"w{i}") for i in range(3)]
    old = Card(made.facts, "cosine", Recipe(), vectors=(GENERAL, "text-dense-ha"), query_langs=("ha",))
    with open_store(tmp_path / "store") as store:
        with store.writer("c", card=old) as writer:
            writer.upsert(PointBatch(found, {GENERAL: rows, "text-dense-ha": rows[::-1].copy()}, [["ha"]] * 3))
            writer.commit(3)
            writer.publish(replace(old, count=3, digest=digest((p.id, p.text) for p in found)))
        migrate(store, "c", store, to_name="d")
        for name in ("c", "d"):
            retriever = Retriever(made, Collection(name, store), calibration=0.0)
            assert retriever.search("w3 w4", k=1, question_lang="ha")[0].id == "1"
            assert retriever.search("w1 w2", k=1, question_lang="ha")[0].id == "0"
            assert verify(store, name).problems == ()


def test_a_card_that_names_a_multivector_is_read_without_it():
    """Earlier versions could make one; a name that is not ours (`augment --add`) stays."""
    card = Card(encoder().facts, "cosine", Recipe(), vectors=(GENERAL, "mine"))
    record = {**card.to_json(), "vectors": [GENERAL, "text-dense-maxsim", "mine"]}
    assert Card.from_json(record) == card


def test_undo_by_the_plain_vector(loaded):
    """Searching the plain vector gives what a collection without queries gives."""
    made, collection, passages, _ = loaded
    rows = made.encode_queries(["w1 w2 w3"], calibrate=False)
    found = collection.nearest(rows, Search(5, using=PLAIN, exact=True))[0]
    scores = made.encode_passages([p["text"] for p in passages]) @ rows[0]
    by_id = {passage["id"]: score for passage, score in zip(passages, scores, strict=True)}
    assert_best([hit.id for hit in found], by_id, k=5)


def test_the_command(tmp_path):
    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    arguments = ["load", "corpus.jsonl", "c", "--queries", "queries.jsonl", "--keep-plain"]
    done = run_cli(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = run_cli(tmp_path, "search", "c", "w1 w2 w3", "--passage-langs", "sw", "--json")
    assert found.returncode == 0, found.stderr
    with open_store(tmp_path / "xqg-data") as store:
        assert store.card("c").vectors == (GENERAL, PLAIN)
    plain = run_cli(tmp_path, *arguments[:5])
    assert plain.returncode == 0, plain.stderr
    with open_store(tmp_path / "xqg-data") as store:
        assert store.card("c").vectors == (GENERAL,)
