"""What the stock stores of three frameworks wrote into a collection of ours: told, and taken in by `augment --new`."""

import json
import os
import uuid

import killing
import pytest
from cli_cases import run_here, write_lines
from collection_cases import opened
from integration_cases import loaded_on
from qdrant_client import QdrantClient, models

from xqg_vdb import Collection
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index import update
from xqg_vdb.index.load import load
from xqg_vdb.index.update import delete
from xqg_vdb.index.verify import verify
from xqg_vdb.store.server import checked_address
from xqg_vdb.store.server.foreign import ForeignCollection
from xqg_vdb.testing import HashEncoder

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.vector_stores.qdrant")
pytest.importorskip("haystack_integrations.document_stores.qdrant")

LANGCHAIN, LLAMA = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
TEXTS = {
    LANGCHAIN: "the bridge over the river was built of stone", LLAMA: "Die Bienen sammeln Honig auf der Wiese",
    "p3": "a text that Haystack wrote over one of ours", "own": "Haystack wrote this one new",
}  # fmt: skip


@pytest.fixture(params=["http", "server"])
def loaded(request, tmp_path):
    with loaded_on(request.param, tmp_path, passages=20) as found:
        yield found


def write_as_they_do(loaded):
    """One document by LangChain, a node by LlamaIndex, two documents by Haystack, one of which has an id of ours."""
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    from langchain_qdrant import QdrantVectorStore
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore as Nodes

    from xqg_vdb.integrations.langchain import XqgEmbeddings

    address = checked_address(loaded.url, api_key=loaded.key, insecure=True)
    over = {"prefer_grpc": True, "grpc_port": address.grpc_port} if address.grpc_port else {}
    where = {"url": address.url, "api_key": loaded.key, **over}
    client = QdrantClient(**where, check_compatibility=False)
    embeddings = XqgEmbeddings(loaded.encoder, collection=loaded.collection)
    QdrantVectorStore(
        client=client, collection_name=loaded.name, embedding=embeddings, vector_name="text-dense"
    ).add_texts([TEXTS[LANGCHAIN]], [{"source": "a.txt", "lang": "en", "page": {"n": 3}}], ids=[LANGCHAIN])
    node = TextNode(id_=LLAMA, text=TEXTS[LLAMA], metadata={"page": 4}, embedding=[0.1] * loaded.encoder.facts.dim)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="file-7")
    Nodes(loaded.name, client=client).add([node])
    port = {"port": address.grpc_port} if address.grpc_port else {}
    haystack = QdrantDocumentStore(
        url=address.url, api_key=Secret.from_token(loaded.key) if loaded.key else None, index=loaded.name,
        embedding_dim=loaded.encoder.facts.dim, use_sparse_embeddings=True, **{**over, **port},
    )  # fmt: skip
    haystack.write_documents([
        Document(id=docid, content=TEXTS[docid], meta={"author": "x"}, embedding=[0.2] * loaded.encoder.facts.dim)
        for docid in ("p3", "own")
    ])  # fmt: skip
    return client


def told(collection):
    return dict(verify(collection.store, collection.name).others)


def take_in(collection):
    return update.take_in(collection.name, encoder=collection.encoder, store=collection.store)


def test_what_they_wrote_is_told_and_taken_in(loaded, tmp_path):
    client = write_as_they_do(loaded)
    assert told(loaded.collection) == {"LangChain": 1, "LlamaIndex": 1, "Haystack": 2}
    queries = write_lines(tmp_path / "more.jsonl", [{"id": "own", "generated_queries": {"sw": ["maji ya mto"]}}])
    options = ["--url", loaded.url, "--encoder", loaded.model, "--queries", queries]
    more = {"XQG_VDB_API_KEY": loaded.key} if loaded.key else None
    done = run_here(tmp_path, "augment", loaded.name, "--new", *options, "--json", more=more)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["added"], said["replaced"], said["left"], said["passages"]) == (3, 1, [], 23)
    found = verify(loaded.collection.store, loaded.name)
    assert (found.others, found.problems, found.points) == ({}, (), 23)
    there = {point.id: point for point in loaded.collection.scroll(with_vectors=True)}
    assert {docid: there[docid].payload["content"] for docid in TEXTS} == TEXTS
    assert there[LANGCHAIN].payload["meta"] == {
        "lang": "en", "title": "", "query_langs": [], "source": "a.txt", "page": {"n": 3}
    }  # fmt: skip
    assert there["own"].payload["meta"]["query_langs"] == ["sw"] and there["own"].payload["meta"]["author"] == "x"
    assert there[LLAMA].payload["meta"]["lang"] == "de"
    row = loaded.encoder.encode_passages([TEXTS[LLAMA]])[0]
    assert there[LLAMA].vectors["text-dense"] @ row == pytest.approx(1, abs=1e-3)
    collection = Collection(loaded.name, loaded.collection.store, encoder=loaded.encoder)
    report, left = take_in(collection)
    assert (report.added, report.replaced, report.unchanged, left) == (0, 0, 0, [])
    from xqg_vdb.integrations.llama_index import XqgVectorStore

    nodes = XqgVectorStore(collection)
    (node,) = nodes.get_nodes([LLAMA])
    assert (node.text, node.metadata["page"], node.ref_doc_id) == (TEXTS[LLAMA], 4, "file-7")
    nodes.delete("file-7")
    assert loaded.collection.count() == 22 and nodes.get_nodes([LLAMA]) == []
    client.close()


@pytest.fixture(params=["http", "server"])
def here(request, tmp_path):
    """Twenty passages, by an encoder that needs no time."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with opened(request.param, tmp_path) as store:
        corpus = [{"id": f"p{n}", "text": f"text {n}", "lang": "en"} for n in range(20)]
        yield load(corpus, name, encoder=HashEncoder(dim=12), store=store).collection
        store.delete(name)


def a_stranger(number, text, **more):
    payload = {"page_content": text, "metadata": more}
    return models.PointStruct(id=number, vector={"text-dense": [0.5] * 12}, payload=payload)


def test_stopped_it_goes_on_and_what_changes_meanwhile_stays(here, monkeypatch):
    client, physical = here.store._client, here.store.physical(here.name)
    client.upsert(physical, [a_stranger(number, f"maji {number} ya mto") for number in range(5)], wait=True)

    def changed(*arguments, **options):
        client.upsert(physical, [a_stranger(3, "another text")], wait=True)
        return real(*arguments, **options)

    def stopped(*arguments):
        raise KeyboardInterrupt

    real = update.add
    with monkeypatch.context() as patch:
        patch.setattr(ForeignCollection, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            take_in(here)
    assert told(here) == {"LangChain": 5} and here.count() == 30
    with monkeypatch.context() as patch:
        patch.setattr(update, "add", changed)
        assert take_in(here)[0].unchanged == 5
    assert told(here) == {"LangChain": 1}
    report, left = take_in(here)
    assert (report.replaced, told(here), left) == (1, {}, [])
    found = verify(here.store, here.name)
    assert (found.problems, found.points) == ((), 25)


KILLED = """
import os
import xqg_vdb.index.update as updating
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder

updating.WINDOW = 2

def work(url, name):
    with ServerStore.connect(url, api_key=os.environ.get("XQG_TEST_QDRANT_API_KEY")) as store:
        updating.take_in(name, encoder=HashEncoder(dim=12), store=store)
"""


def test_killed_between_adding_and_removing_the_same_call_again_ends_exactly(here, request, tmp_path):
    """Five passages in windows of two: amid adding, after it, amid removing."""
    client, physical = here.store._client, here.store.physical(here.name)
    real = request.node.callspec.params["here"] == "server"
    url = os.environ["XQG_TEST_QDRANT_URL"] if real else f"http://{here.store._server.where}"
    texts = {f"00000000-0000-0000-0000-00000000000{n}": f"maji {n} ya mto" for n in range(5)}
    client.upsert(physical, [a_stranger(docid, text, lang="sw") for docid, text in texts.items()], wait=True)
    wanted = {**{f"p{n}": f"text {n}" for n in range(20)}, **texts}
    points = [("_ServerUpdate.record", 4), ("ForeignCollection.remove", 1), ("ForeignCollection.remove", 2)]
    with killing.Workers(KILLED, tmp_path / "said") as workers:
        for name, number in points:
            client.upsert(physical, [a_stranger(docid, text, lang="sw") for docid, text in texts.items()], wait=True)
            assert workers.run(url, here.name, env=killing.at(f"call {name} {number}")) == -9, (name, number)
            payloads = [point.payload for point in here.scroll()]
            assert {found.get("content", found.get("page_content")) for found in payloads} == set(wanted.values())
            assert workers.run(url, here.name) == 0, (tmp_path / "said").read_text()
            assert {point.id: point.payload["content"] for point in here.scroll()} == wanted
            found = verify(here.store, here.name)
            assert (found.problems, found.others, found.points) == ((), {}, 25)
            delete(texts, here.name, store=here.store)


def test_what_is_no_passage_stays_and_is_named(here, tmp_path):
    client, physical = here.store._client, here.store.physical(here.name)
    odd = [models.PointStruct(id=9, vector={"text-dense": [0.5] * 12}, payload={"page": 1})]
    client.upsert(physical, [*odd, a_stranger(7, " "), a_stranger(8, "good", lang="und")], wait=True)
    report, left = take_in(here)
    assert report.added == 1 and told(here) == {"LangChain": 1, "others": 1}
    assert left[0].startswith("7: ") and "blank" in left[0] and "known layout" in left[1]
    assert {point.id for point in client.retrieve(physical, [7, 8, 9])} == {7, 9}
    for more, said in [(["--undo"], "--new, or --undo"), (["--alpha", "0.2"], "the collection's card has them")]:
        done = run_here(tmp_path, "augment", here.name, "--new", "--url", "http://127.0.0.1:9", *more)
        assert (done.returncode, said in done.stderr) == (2, True)


def test_only_collections_of_a_load_take_in(here):
    client, name = here.store._client, f"{here.name}-plain"
    client.create_collection(name, vectors_config={"text-dense": models.VectorParams(size=12, distance="Cosine")})
    try:
        client.upsert(name, [a_stranger(1, "maji")], wait=True)
        with pytest.raises((DataError, MismatchError), match=r"card|was made"):
            update.take_in(name, encoder=here.encoder, store=here.store)
        assert client.count(name).count == 1
    finally:
        client.delete_collection(name)
