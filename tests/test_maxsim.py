"""A row per generated query: what the multivector holds, MaxSim against a loop, and a kept pass that goes on."""

import asyncio
import json
import random

import numpy as np
import pytest
from bench_cases import encoder, sentence
from cli_cases import run_cli, write_inputs, write_starter
from fake_qdrant import FakeQdrant

import xqg_vdb.query_rows as query_rows
from xqg_vdb import AsyncRetriever, Hybrid, Passage, Query, Recipe, Retriever, load
from xqg_vdb.building import read_rows
from xqg_vdb.collection.embedded import EmbeddedStore
from xqg_vdb.collection.migrate import migrate
from xqg_vdb.collection.server import ServerStore
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.queries import QueryFile
from xqg_vdb.records import Rejects
from xqg_vdb.types import GeneratedQueries
from xqg_vdb.vectors import Build
from xqg_vdb.verifying import verify

MAXSIM = "text-dense-maxsim"
N = 30
RECIPE = Recipe(alpha=0.4, langs=("ha", "sw"))


def write(folder):
    """Passages with 0 to 3 queries in two languages that are folded in, and one in a third that is not."""
    rng = random.Random(3)
    rows = [{"id": f"p{i:02d}", "text": sentence(rng, 9), "lang": "en"} for i in range(N)]
    queries = {}
    for i, row in enumerate(rows):
        counts = {"ha": i % 3, "sw": (i + 1) % 2, "zu": 1}
        queries[row["id"]] = {lang: [sentence(rng, 4) for _ in range(n)] for lang, n in counts.items() if n}
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = ({"id": docid, "generated_queries": own} for docid, own in queries.items())
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return rows, queries


@pytest.fixture(scope="module", params=["embedded", "memory", "http"])
def loaded(request, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("maxsim"), encoder()
    rows, queries = write(folder)
    with FakeQdrant() as fake:
        if request.param == "embedded":
            store = EmbeddedStore(folder / "store", free_space_floor=0)
        else:
            store = ServerStore.connect(":memory:" if request.param == "memory" else fake.url)
        with store:
            options = {"encoder": made, "store": store, "queries": folder / "queries.jsonl", "recipe": RECIPE}
            yield made, load(folder / "corpus.jsonl", "c", more_vectors=["maxsim"], **options), rows, queries


def expected_rows(made, collection, rows, queries):
    """One matrix a passage, query by query."""
    means = Retriever(made, collection).query_encoder.language_means.means
    matrices = {}
    for row in rows:
        (own,) = made.encode_passages([row["text"]])
        mixed = [
            0.6 * own + 0.4 * (made.encode_queries([text])[0] - means[lang])
            for lang in ("ha", "sw")
            for text in queries[row["id"]].get(lang, [])
        ]
        matrices[row["id"]] = np.stack([vector / np.linalg.norm(vector) for vector in [own, *mixed]])
    return matrices


def test_a_row_for_the_passage_and_for_each_of_its_queries(loaded):
    made, collection, rows, queries = loaded
    assert collection.card.vectors == ("text-dense", MAXSIM)
    expected = expected_rows(made, collection, rows, queries)
    assert {len(matrix) for matrix in expected.values()} == {1, 2, 3, 4}
    for point in collection.scroll(with_vectors=True):
        # the card keeps the means in 16 bits
        np.testing.assert_allclose(point.vectors[MAXSIM], expected[point.id], atol=2e-3)
        assert point.vectors["text-dense"].shape == (made.facts.dim,)


def test_the_best_row_counts(loaded):
    made, collection, rows, _ = loaded
    stored = {point.id: point.vectors[MAXSIM] for point in collection.scroll(with_vectors=True)}
    retriever = Retriever(made, collection)
    asked = [Query(str(i), row["text"][:14], ("ha", "und", "de")[i % 3]) for i, row in enumerate(rows[:9])]
    vectors = retriever.encode(asked)
    assert vectors.using == MAXSIM
    for question, answer in zip(vectors.vectors, retriever.run(asked, k=N, exact=True), strict=True):
        scores = {docid: max(float(row @ question) for row in matrix) for docid, matrix in stored.items()}
        assert {hit.id: hit.score for hit in answer.hits} == pytest.approx(scores, abs=1e-5)
        found = [scores[hit.id] for hit in answer.hits]
        assert found == sorted(found, reverse=True) or np.diff(found).max() < 1e-5

    async def search():
        async with AsyncRetriever(retriever) as searcher:
            return await searcher.run(asked, k=5, exact=True)

    ids = [[hit.id for hit in answer.hits] for answer in asyncio.run(search())]
    assert ids == [[hit.id for hit in answer.hits] for answer in retriever.run(asked, k=5, exact=True)]


def test_copied_and_verified(loaded, tmp_path):
    collection = loaded[1]
    with EmbeddedStore(tmp_path / "copy", free_space_floor=0) as copy:
        migrate(collection.store, "c", copy)
        assert verify(copy, "c").problems == verify(collection.store, "c").problems == ()
        own = {point.id: point.vectors[MAXSIM] for point in collection.scroll(with_vectors=True)}
        for point in copy.scroll("c", with_vectors=True):
            np.testing.assert_allclose(point.vectors[MAXSIM], own[point.id], atol=1e-6)


def test_a_stopped_pass_goes_on(tmp_path, monkeypatch):
    """Killed after two windows of four: the others are encoded then, each query once, to the same rows."""
    monkeypatch.setattr(query_rows, "WINDOW", 8)
    write(tmp_path)
    made, seen = encoder(), []

    class Watched:
        facts, stop = made.facts, 2

        def encode_queries(self, texts, *, langs=None):
            if len(seen) == self.stop:
                raise KeyboardInterrupt
            seen.append(list(texts))
            return made.encode_queries(texts)

    def keep(watched, folder):
        with QueryFile([tmp_path / "queries.jsonl"]) as table:
            rows = read_rows(tmp_path / "corpus.jsonl", queries=table, detect=False)
            return query_rows.keep_query_rows(rows, encoder=watched, build=folder)

    watched = Watched()
    with pytest.raises(KeyboardInterrupt):
        keep(watched, tmp_path / "each")
    watched.stop = 100
    kept = keep(watched, tmp_path / "each")
    texts = [text for own in seen for text in own]
    assert len(seen) == 4 and len(texts) == kept.rows
    np.testing.assert_array_equal(kept.passages, made.encode_queries(texts))
    keep(watched, tmp_path / "each")
    assert len(seen) == 4
    lines = (tmp_path / "queries.jsonl").read_text().splitlines()
    (tmp_path / "queries.jsonl").write_text("\n".join([*lines[:-1], lines[-1].replace("w", "v")]))
    with pytest.raises(MismatchError, match=r"changed since the vectors in \S*/each were made \(first at passage 30\)"):
        keep(watched, tmp_path / "each")


def test_another_alpha_encodes_nothing(tmp_path):
    write(tmp_path)
    made = encoder()
    with EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
        options = {"store": store, "queries": tmp_path / "queries.jsonl", "build": tmp_path / "build"}
        load(tmp_path / "corpus.jsonl", "c", encoder=made, more_vectors=["maxsim"], **options)
        made.encode_queries = made.encode_passages = None  # would raise when called
        again = load(
            tmp_path / "corpus.jsonl", "c", encoder=made, more_vectors=["maxsim"], recipe=Recipe(alpha=0.1), **options
        )
        assert again.card.recipe.alpha == 0.1


def test_each_query_is_encoded_once(tmp_path):
    """For its row and its sum together; the sums are those of a load without rows."""
    rows, queries = write(tmp_path)
    total = sum(len(texts) for own in queries.values() for texts in own.values())
    sums = []
    for more in ([], ["maxsim"]):
        made, build = encoder(), tmp_path / f"build-{len(more)}"
        before = made.texts_seen
        with EmbeddedStore(tmp_path / f"store-{len(more)}", free_space_floor=0) as store:
            options = {"queries": tmp_path / "queries.jsonl", "build": build, "more_vectors": more}
            load(tmp_path / "corpus.jsonl", "c", encoder=made, store=store, **options)
        assert made.texts_seen - before == len(rows) + total
        sums.append(Build.open(build))
    for lang in ("ha", "sw", "zu"):
        np.testing.assert_array_equal(sums[0].sums[lang], sums[1].sums[lang])
        np.testing.assert_array_equal(sums[0].counts[lang], sums[1].counts[lang])


def test_what_was_not_kept_is_encoded(tmp_path):
    made = encoder()
    texts = ["w1 w2", "w3", "w1 w2"]
    rows = [(Passage("a", "w9"), GeneratedQueries("a", {"ha": tuple(texts)}))]
    kept = query_rows.keep_query_rows(rows, encoder=made, build=tmp_path / "build")
    known = query_rows.KeptQueryEncoder(made, kept)
    before = made.texts_seen
    np.testing.assert_array_equal(known.encode_queries(texts), kept.passages)
    assert made.texts_seen == before
    asked = ["w7", "w3", "", "w8 w1"]
    np.testing.assert_array_equal(known.encode_queries(asked), made.encode_queries(asked))
    assert made.texts_seen == before + 3 + 4
    empty = query_rows.keep_query_rows([], encoder=made, build=tmp_path / "empty")
    found = query_rows.KeptQueryEncoder(made, empty).encode_queries(asked)
    np.testing.assert_array_equal(found, made.encode_queries(asked))


def test_without_queries_there_are_no_rows(tmp_path):
    write(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"id": "unknown", "generated_queries": {"ha": ["w1"]}}')
    for number, more in enumerate([{}, {"queries": tmp_path / "other.jsonl"}]):
        with EmbeddedStore(tmp_path / f"store-{number}", free_space_floor=0) as store:
            options = {"encoder": encoder(), "store": store, "more_vectors": ["maxsim"], **more}
            assert load(tmp_path / "corpus.jsonl", "c", **options).card.vectors == ("text-dense",)


def test_damaged_rows_in_the_cache_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    write(tmp_path)

    def stop(stage, done, total):
        if stage == "writing":
            raise KeyboardInterrupt

    with EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
        options = {"store": store, "queries": tmp_path / "queries.jsonl", "more_vectors": ["maxsim"]}
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "corpus.jsonl", "c", encoder=encoder(), progress=stop, **options)
        (manifest,) = (tmp_path / "cache").rglob("each-query/manifest.json")
        manifest.write_bytes(b"{")
        assert load(tmp_path / "corpus.jsonl", "c", encoder=encoder(), **options).count() == N
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_bad_lines_are_borne_in_every_pass(tmp_path):
    """Words, rows and the writing read the corpus anew: each bears as many bad lines as the encoding."""
    write(tmp_path)
    lines = (tmp_path / "corpus.jsonl").read_text()
    (tmp_path / "corpus.jsonl").write_text('{"id": "bad"}\n' + lines)
    options = {"queries": tmp_path / "queries.jsonl", "more_vectors": ["maxsim"], "hybrid": Hybrid()}
    for bear, name in ((0, "refused"), (1, "borne")):
        rejects = Rejects(bear, tmp_path / f"{name}.jsonl")
        with EmbeddedStore(tmp_path / "store", free_space_floor=0) as store:
            options |= {"encoder": encoder(), "store": store, "rejects": rejects}
            if not bear:
                with pytest.raises(DataError, match="max-rejects"):
                    load(tmp_path / "corpus.jsonl", "c", **options)
            else:
                assert load(tmp_path / "corpus.jsonl", "c", **options).count() == N
                assert rejects.rejected == 1
        assert json.loads((tmp_path / f"{name}.jsonl").read_text())["line"] == 1


def test_the_command(tmp_path):
    write_starter(tmp_path / "cache")
    write_inputs(tmp_path, 12)
    load_it = ["load", "corpus.jsonl", "c", "--queries", "queries.jsonl", "--maxsim", "--no-calibration"]
    done = run_cli(tmp_path, *load_it, "--hybrid")
    assert done.returncode == 0, done.stderr
    assert f"text-dense, {MAXSIM}" in run_cli(tmp_path, "info", "c").stdout
    text = json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[4])["text"]
    for more in ([], ["--hybrid"], ["--exact"]):
        found = run_cli(tmp_path, "search", "c", text, "--json", *more)
        assert json.loads(found.stdout)[0]["hits"][0]["id"] == "p4", found.stderr
