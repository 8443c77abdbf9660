"""`augment` and `undo` on collections that the stock stores of LangChain and LlamaIndex wrote, over HTTP.

The server is `fake_qdrant` (answers of qdrant-client's in-memory mode); NOT run against a real server here.
"""

import json
import uuid

import numpy as np
import pytest
from augment_cases import (
    DIM,
    POINTS,
    OtherEncoder,
    an_encoder,
    client_of,
    everything,
    ids,
    plain_collection,
    server,
    stored,
    texts,
    write_langchain,
    write_llama_index,
    write_queries,
)
from fake_qdrant import FakeQdrant, Fault
from qdrant_client import models
from rankings import assert_best

from xqg_vdb.calibration import unpack_means
from xqg_vdb.errors import DataError, MismatchError, ServerError
from xqg_vdb.index.augment import Wishes, augment, undo
from xqg_vdb.index.verify import verify
from xqg_vdb.search.retriever import Collection
from xqg_vdb.types import Recipe

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.vector_stores.qdrant")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("XQG_VDB_CACHE", str(tmp_path / "cache"))
    with FakeQdrant() as running:
        yield running


@pytest.fixture
def client(fake):
    opened = client_of(fake.url)
    yield opened
    opened.close()


@pytest.fixture
def store(fake):
    with server(fake.url) as opened:
        yield opened


@pytest.fixture
def queries(tmp_path):
    return write_queries(tmp_path / "queries.jsonl", ids())


def slow_fused(plain, queries, keys, encoder, *, alpha=0.3, shrink=5.0):
    """The default recipe, one passage at a time, in float64: the equation of the documentation."""
    by_key = {row["id"]: row["generated_queries"] for row in map(json.loads, queries.read_text().splitlines())}
    langs = ("ar", "sw")
    used = {lang: [q for key in keys if key in by_key for q in by_key[key][lang]] for lang in langs}
    bank, means = encoder.language_means, {}
    for lang in langs:
        own = encoder.encode_queries(used[lang], calibrate=False).astype(np.float64).mean(axis=0)
        weight = min(len(used[lang]), 4)  # the bank, of 4 questions, keeps at least half
        means[lang] = (weight * own + 4 * bank.means[lang]) / (weight + 4)
    rows = []
    for key, row in zip(keys, plain.astype(np.float64), strict=True):
        pooled, n = np.zeros(DIM), 0
        for lang in langs if key in by_key else ():
            vectors = encoder.encode_queries(by_key[key][lang], calibrate=False).astype(np.float64)
            pooled += vectors.sum(axis=0) - len(vectors) * means[lang]
            n += len(vectors)
        mixed = (1 - alpha) * row + alpha * pooled / (n + shrink)
        rows.append(mixed / np.linalg.norm(mixed))
    return np.array(rows)


def test_a_langchain_collection_is_copied_behind_an_alias(fake, client, store, queries):
    encoder = an_encoder()
    write_langchain(fake.url, "docs", encoder)
    before = everything(client, "docs")
    encoder.texts_seen = 0
    report = augment("docs", store=store, encoder=encoder, queries=queries)
    assert (report.collection, report.layout, report.vector) == ("docs-xqg", "langchain", "")
    assert report.cosine == pytest.approx(1.0, abs=1e-5)
    assert (report.counts["points"], report.counts["without_queries"], report.counts["unused_queries"]) == (
        POINTS,
        7,
        1,
    )
    assert report.queries == {"ar": 63, "sw": 126}
    assert encoder.texts_seen == 32 + 63 + 126  # the sample, and the queries; no passage
    assert everything(client, "docs") == before
    expected = slow_fused(stored(client, "docs"), queries, ids(), an_encoder())
    np.testing.assert_allclose(stored(client, "docs-xqg"), expected, atol=2e-5)
    assert np.abs(stored(client, "docs-xqg") - stored(client, "docs")).max() > 0.05
    assert verify(store, "docs-xqg").problems == ()
    after = everything(client, "docs-xqg")
    assert after[0] == before[0]
    assert [one["payload"] for one in after[1]] == [one["payload"] for one in before[1]]


def test_the_copy_has_the_settings_of_its_source(fake, client, store, queries):
    write_langchain(fake.url, "docs", an_encoder())
    client.update_collection(
        "docs", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=777), metadata={"owner": "search team"}
    )
    augment("docs", store=store, encoder=an_encoder(), queries=queries)
    source, copy = (client.get_collection(name).config for name in ("docs", "docs-xqg"))
    assert fake.created["docs-xqg__v0001"]["optimizers_config"]["indexing_threshold"] == 777
    assert fake.created["docs-xqg__v0001"]["optimizers_config"]["deleted_threshold"] == 0.2
    assert copy.hnsw_config == source.hnsw_config
    assert copy.metadata["owner"] == source.metadata["owner"] == "search team"


def test_langchain_finds_in_the_copy_what_an_exact_search_finds(fake, store, queries):
    from langchain_qdrant import QdrantVectorStore

    from xqg_vdb.integrations.langchain import XqgEmbeddings

    encoder = an_encoder()
    write_langchain(fake.url, "docs", encoder)
    augment("docs", store=store, encoder=encoder, queries=queries)
    embeddings = XqgEmbeddings(encoder, collection=Collection("docs-xqg", store), question_lang="sw")
    opened = QdrantVectorStore.from_existing_collection(
        "docs-xqg", embeddings, url=fake.url, check_compatibility=False
    )  # fmt: skip
    rows = stored(client_of(fake.url), "docs-xqg")
    means = unpack_means(store.card("docs-xqg").query_means, dim=DIM).means
    for question in texts(5):
        asked = encoder.encode_queries([question], calibrate=False)[0] - np.float32(0.5) * means["sw"]
        scores = dict(zip(texts(), rows @ asked, strict=True))
        assert_best([one.page_content for one in opened.similarity_search(question, k=5)], scores, k=5)


def test_a_llama_index_collection_is_searched_by_its_own_library(fake, client, store, queries):
    from llama_index.core import VectorStoreIndex
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from xqg_vdb.integrations.llama_index import XqgEmbedding

    encoder = an_encoder()
    write_llama_index(fake.url, "nodes", encoder, client=client)
    report = augment("nodes", store=store, encoder=encoder, queries=queries)
    assert (report.layout, report.cosine) == ("llama-index", pytest.approx(1.0, abs=1e-5))  # metadata was encoded, too
    rows = stored(client, "nodes-xqg")
    np.testing.assert_allclose(rows, slow_fused(stored(client, "nodes"), queries, ids(), an_encoder()), atol=2e-5)
    embedding = XqgEmbedding(encoder, collection=Collection("nodes-xqg", store), calibration=0.0)
    index = VectorStoreIndex.from_vector_store(QdrantVectorStore("nodes-xqg", client=client), embed_model=embedding)
    for question in texts(5):
        scores = dict(zip(ids(), rows @ encoder.encode_queries([question], calibrate=False)[0], strict=True))
        found = index.as_retriever(similarity_top_k=5).retrieve(question)
        assert_best([one.node.node_id for one in found], scores, k=5)


def test_rows_of_a_dot_collection_are_as_long_as_those_of_a_load(fake, client, store, queries):
    encoder = an_encoder()
    write_langchain(fake.url, "docs", encoder, vector_name="dense", distance=models.Distance.DOT)
    assert augment("docs", store=store, encoder=encoder, queries=queries).vector == "dense"
    expected = slow_fused(stored(client, "docs", "dense"), queries, ids(), an_encoder())
    np.testing.assert_allclose(stored(client, "docs-xqg", "dense"), expected, atol=2e-5)  # without queries, too


def test_queries_are_found_by_a_key_of_the_payload(client, store, tmp_path):
    plain_collection(client, "own")
    queries = write_queries(tmp_path / "q.jsonl", [f"d{i}" for i in range(POINTS)])
    report = augment("own", store=store, encoder=an_encoder(), queries=queries, wishes=Wishes(id_key="at.doc"))
    assert (report.layout, report.vector, report.counts["without_queries"]) == ("text", "dense", 7)
    points = {name: client.scroll(name, limit=1000, with_vectors=True)[0] for name in ("own", "own-xqg")}
    keys = [one.payload["at"]["doc"] for one in points["own"]]
    plain, fused = (np.array([one.vector["dense"] for one in found], dtype=np.float32) for found in points.values())
    np.testing.assert_allclose(fused, slow_fused(plain, queries, keys, an_encoder()), atol=2e-5)


def test_an_alias_is_switched_and_switched_back(fake, client, store, queries):
    encoder = an_encoder()
    write_langchain(fake.url, "docs-2024", encoder)
    store.foreign("docs-2024").names.publish("docs", "docs-2024")
    plain = stored(client, "docs")
    for recipe in (Recipe(), Recipe(alpha=0.1)):  # the second time, the alias points to our copy
        augment("docs", store=store, encoder=encoder, queries=queries, recipe=recipe, wishes=Wishes(to="docs"))
        expected = slow_fused(plain, queries, ids(), an_encoder(), alpha=recipe.alpha)
        np.testing.assert_allclose(stored(client, "docs"), expected, atol=2e-5)
    assert {one.name for one in client.get_collections().collections} == {"docs-2024", "docs__v0002"}
    undo("docs", store=store)
    assert store.foreign("docs").physical == "docs-2024"
    assert [one.name for one in client.get_collections().collections] == ["docs-2024"]


def test_undo_of_a_copy_by_either_name(fake, client, store, queries):
    encoder = an_encoder()
    write_langchain(fake.url, "docs", encoder)
    for name in ("docs", "docs-xqg"):
        augment("docs", store=store, encoder=encoder, queries=queries)
        undo(name, store=store)
        assert [one.name for one in client.get_collections().collections] == ["docs"]
        assert client.get_aliases().aliases == []
    with pytest.raises(DataError, match="nothing to undo"):
        undo("docs", store=store)


def test_another_encoder_is_refused(fake, client, store, queries):
    write_langchain(fake.url, "docs", an_encoder())
    before = everything(client, "docs")
    other = OtherEncoder(swap="x", swap_queries="x")
    with pytest.raises(MismatchError, match=r"other \(fp32\) did not make .* cosine of -?0\.\d+ .* 0\.99 is wanted"):
        augment("docs", store=store, encoder=other, queries=queries)
    prefixed = OtherEncoder(swap="x", swap_queries="word")
    with pytest.raises(MismatchError, match=r"Encoded as queries it has 1\.000.*--passage-prefix"):
        augment("docs", store=store, encoder=prefixed, queries=queries)
    assert everything(client, "docs") == before
    assert [one.name for one in client.get_collections().collections] == ["docs"]


@pytest.mark.parametrize("distance", [models.Distance.EUCLID, models.Distance.MANHATTAN])
def test_distances_without_fusion_are_refused(client, store, queries, distance):
    plain_collection(client, "own", distance=distance)
    with pytest.raises(MismatchError, match=f"{distance.value} distance"):
        augment("own", store=store, encoder=an_encoder(), queries=queries)


def test_queries_of_other_ids_are_refused_with_both(client, store, queries):
    plain_collection(client, "own")
    with pytest.raises(DataError, match=r"such as 0, 1, 2, the query file's such as 00000000-.*--id-key"):
        augment("own", store=store, encoder=an_encoder(), queries=queries)


def test_unknown_payloads_ask_for_the_key(client, store, tmp_path):
    plain_collection(client, "own", payload_key="body")
    queries = write_queries(tmp_path / "q.jsonl", [str(i) for i in range(POINTS)])
    with pytest.raises(DataError, match="--text-key; the payloads have at, body"):
        augment("own", store=store, encoder=an_encoder(), queries=queries)
    report = augment("own", store=store, encoder=an_encoder(), queries=queries, wishes=Wishes(text_key="body"))
    assert (report.layout, report.counts["without_queries"]) == ("given", 7)


def test_missing_texts_and_vectors_are_counted_and_copied(client, store, tmp_path):
    plain_collection(client, "own")
    client.upsert("own", [models.PointStruct(id=900, vector={}, payload={"text": "word1"})])
    client.upsert("own", [models.PointStruct(id=901, vector={"dense": [1.0] * DIM}, payload={"other": 1})])
    queries = write_queries(tmp_path / "q.jsonl", [str(i) for i in range(POINTS)])
    report = augment("own", store=store, encoder=an_encoder(), queries=queries)
    counts = report.counts
    assert (counts["points"], counts["without_text"], counts["without_vector"]) == (72, 1, 1)
    assert counts["without_queries"] == 9
    copied = {one.id: one.vector for one in client.scroll("own-xqg", limit=100, with_vectors=True)[0]}
    assert len(copied) == 72
    assert not copied[900]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_copy_that_was_stopped_goes_on(fake, client, store, queries, monkeypatch, at):
    """The server refuses for good at the at-th page: nobody sees the copy, and the next run finishes it."""
    monkeypatch.setattr("xqg_vdb.store.server.foreign.PAGE", 30)
    monkeypatch.setattr("xqg_vdb.index.augment._COMMIT_PAGES", 1)
    write_langchain(fake.url, "docs", an_encoder())
    broken = fake.client.upsert
    calls = []

    def upsert(*arguments, **options):
        calls.append(arguments[0])
        if len(calls) == at + 1:
            raise ValueError("Wrong input: stopped here")
        return broken(*arguments, **options)

    fake.client.upsert = upsert
    with pytest.raises(ServerError, match="stopped here"):
        augment("docs", store=store, encoder=an_encoder(), queries=queries)
    assert client.get_aliases().aliases == []
    encoder = an_encoder()
    augment("docs", store=store, encoder=encoder, queries=queries)
    assert encoder.texts_seen == 30  # the sample, of one page; the queries' vectors were kept
    assert calls == ["docs-xqg__v0001"] * len(calls)
    expected = slow_fused(stored(client, "docs"), queries, ids(), an_encoder())
    np.testing.assert_allclose(stored(client, "docs-xqg"), expected, atol=2e-5)


@pytest.mark.parametrize("change", ["another text", "a new point", "one point less"])
def test_a_copy_whose_source_changed_is_begun_anew(fake, client, store, queries, change):
    """Stopped when all was encoded: no point of the next copy is made with the language means of the first."""
    write_langchain(fake.url, "docs", an_encoder())
    fake.faults.append(Fault(400, body=b"{}", only="PUT /collections/docs-xqg__v0001/points"))
    with pytest.raises(ServerError):
        augment("docs", store=store, encoder=an_encoder(), queries=queries)
    if change == "one point less":
        fake.client.delete("docs", [ids()[1]])
    else:
        own = ids()[1] if change == "another text" else str(uuid.UUID(int=2))
        vector = an_encoder().encode_passages(["word5 word6"])[0].tolist()
        client.upsert("docs", [models.PointStruct(id=own, vector=vector, payload={"page_content": "word5 word6"})])
    report = augment("docs", store=store, encoder=an_encoder(), queries=queries)
    assert report.counts["points"] == client.count("docs-xqg").count == client.count("docs").count
    keys = [one for one in ids() if change != "one point less" or one != ids()[1]]
    expected = slow_fused(stored(client, "docs"), queries, keys, an_encoder())
    np.testing.assert_allclose(stored(client, "docs-xqg"), expected, atol=2e-5)
    assert {one.name for one in client.get_collections().collections} == {"docs", "docs-xqg__v0002"}


def test_an_unfinished_copy_is_undone(fake, client, store, queries):
    write_langchain(fake.url, "docs", an_encoder())
    fake.faults.append(Fault(400, body=b"{}", only="PUT /collections/docs-xqg__v0001/points"))
    with pytest.raises(ServerError):
        augment("docs", store=store, encoder=an_encoder(), queries=queries)
    assert len(client.get_collections().collections) == 2
    undo("docs", store=store)
    assert [one.name for one in client.get_collections().collections] == ["docs"]
