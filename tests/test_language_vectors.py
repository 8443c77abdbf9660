"""A vector per query language, and the plain one: what they hold, and which one a question is searched by."""

import json

import numpy as np
import pytest
from bench_cases import encoder, sentence
from cli_cases import run_cli, write_inputs, write_starter

from xqg_vdb import Query, Recipe, Retriever, load, open_store
from xqg_vdb.fusion import fuse

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
    collection = load(folder / "corpus.jsonl", "c", more_vectors=("plain", "languages"), **options)
    yield made, collection, passages, queries
    store.close()


def test_each_vector_is_the_fusion_of_its_language(loaded):
    made, collection, passages, queries = loaded
    stored = {point.id: point for point in collection.scroll(with_vectors=True)}
    rows = made.encode_passages([p["text"] for p in passages])
    sums = {
        lang: (
            np.stack([made.encode_queries(q["generated_queries"][lang]).sum(axis=0) for q in queries]),
            np.full(len(passages), 2, dtype=np.int32),
        )
        for lang in ("ha", "zu")
    }
    means = Retriever(made, collection).query_encoder.language_means.means
    assert collection.card.vectors == (GENERAL, PLAIN, "text-dense-ha", "text-dense-zu")
    expected = {
        PLAIN: rows,
        GENERAL: fuse(rows, sums, recipe=Recipe(), means=means, normalize=True),
        "text-dense-ha": fuse(rows, sums, recipe=Recipe(langs=("ha",)), means=means, normalize=True),
        "text-dense-zu": fuse(rows, sums, recipe=Recipe(langs=("zu",)), means=means, normalize=True),
    }
    for name, matrix in expected.items():
        found = np.stack([stored[p["id"]].vectors[name] for p in passages])
        # the card keeps the means in 16 bits
        np.testing.assert_allclose(found, matrix, atol=2e-3, err_msg=name)
    assert np.abs(expected["text-dense-ha"] - expected["text-dense-zu"]).max() > 0.05


def test_the_question_chooses_its_vector(loaded):
    """Given, unknown, without a vector, and several in one call."""
    made, collection, passages, _ = loaded
    retriever = Retriever(made, collection)
    text = passages[3]["text"][:12]
    asked = [Query(str(i), text, lang) for i, lang in enumerate(["ha", "zu", "und", "de", "ha"])]
    answers = retriever.run(asked, k=40, exact=True)
    vectors = retriever.encode(asked)
    assert vectors.using == ("text-dense-ha", "text-dense-zu", GENERAL, GENERAL, "text-dense-ha")
    for row, (answer, using) in enumerate(zip(answers, vectors.using, strict=True)):
        own = collection.search(vectors.vectors[row : row + 1], k=40, using=using, exact=True)[0]
        assert [(hit.id, hit.score) for hit in answer.hits] == [(hit.id, hit.score) for hit in own]
        assert answer.query.id == str(row)
    assert [h.id for h in answers[0].hits] == [h.id for h in answers[4].hits]
    assert [h.score for h in answers[0].hits] != [h.score for h in answers[1].hits]


def test_without_calibration_the_language_still_chooses(loaded):
    made, collection, _, _ = loaded
    retriever = Retriever(made, collection, calibration=0.0)
    assert retriever.encode([Query("0", "w1 w2", "zu")]).using == ("text-dense-zu",)
    german = "Welche Farbe hat der Himmel, und warum ist das eigentlich so?"
    asked = retriever.encode([Query("0", german, None)])
    assert (asked.langs, asked.using) == (("de",), (GENERAL,))


def test_undo_by_the_plain_vector(loaded):
    """Searching the plain vector gives what a collection without queries gives."""
    made, collection, passages, _ = loaded
    rows = made.encode_queries(["w1 w2 w3"])
    found = collection.search(rows, k=5, using=PLAIN, exact=True)[0]
    scores = made.encode_passages([p["text"] for p in passages]) @ rows[0]
    assert [hit.id for hit in found] == [passages[i]["id"] for i in np.argsort(-scores, kind="stable")[:5]]


def test_the_command(tmp_path):
    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    arguments = ["load", "corpus.jsonl", "c", "--queries", "queries.jsonl", "--per-language", "--keep-plain"]
    done = run_cli(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = run_cli(tmp_path, "search", "c", "w1 w2 w3", "--lang", "sw", "--json")
    assert found.returncode == 0, found.stderr
    with open_store(tmp_path / "xqg-data") as store:
        assert store.card("c").vectors == (GENERAL, PLAIN, "text-dense-ar", "text-dense-sw")
    plain = run_cli(tmp_path, *arguments[:5])
    assert plain.returncode == 0, plain.stderr
    with open_store(tmp_path / "xqg-data") as store:
        assert store.card("c").vectors == (GENERAL,)
