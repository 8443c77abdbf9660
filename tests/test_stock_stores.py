"""One collection, written by `xqg-vdb load`, read through its alias by the three frameworks' own Qdrant stores.

Run over HTTP against `fake_qdrant` (answers of qdrant-client's in-memory mode) and, when XQG_TEST_QDRANT_URL is set,
against a real server (1.19.0 where this was written), over gRPC where that is what it names: Haystack's store takes its
port then, too.
"""

import asyncio
from itertools import islice

import pytest
from integration_cases import loaded_on, questions
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from xqg_vdb import Retriever
from xqg_vdb.store.layout import point_id
from xqg_vdb.store.server import checked_address

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.vector_stores.qdrant")
pytest.importorskip("haystack_integrations.document_stores.qdrant")

K = 10
EXACT = models.SearchParams(exact=True)
LANGUAGES = pytest.mark.parametrize("languages", [None, ["de"], ["deu", "fr"], ["en", "de"]])


@pytest.fixture(scope="module", params=["http", "server"])
def loaded(request, tmp_path_factory):
    with loaded_on(request.param, tmp_path_factory.mktemp("stock")) as found:
        yield found


def where(loaded):
    """How the frameworks' clients are told of the server."""
    address = checked_address(loaded.url, api_key=loaded.key, insecure=True)
    over = {"prefer_grpc": True, "grpc_port": address.grpc_port} if address.grpc_port else {}
    return {"url": address.url, "api_key": loaded.key, **over}


@pytest.fixture(scope="module")
def client(loaded):
    opened = QdrantClient(**where(loaded), check_compatibility=False)
    yield opened
    opened.close()


def ours(loaded, question, languages):
    """Ids of the points that our own search finds."""
    hits = loaded.retriever.search(question, k=K, passage_langs=languages, exact=True)
    assert len(hits) == K
    return [str(point_id(hit.id)) for hit in hits]


def asked(loaded):
    """Five passages' own texts: what both rankings place first."""
    with_vectors = Retriever(loaded.encoder, loaded.collection)
    texts = ((point.id, point.payload["content"]) for point in loaded.collection.scroll())
    return list(islice((text for docid, text in texts if with_vectors.search(text, k=1)[0].id == docid), 5))


def langchain_store(loaded, client, embeddings):
    from langchain_qdrant import QdrantVectorStore

    return QdrantVectorStore(
        client=client, collection_name=loaded.name, embedding=embeddings, vector_name="text-dense",
        content_payload_key="content", metadata_payload_key="meta",
    )  # fmt: skip


@LANGUAGES
def test_langchain_finds_what_we_find(loaded, client, languages):
    from xqg_vdb.integrations.langchain import XqgEmbeddings, language_filter

    store = langchain_store(loaded, client, XqgEmbeddings(loaded.encoder, collection=loaded.collection))
    wanted = None if languages is None else language_filter(languages)
    for question in questions(8):
        found = store.similarity_search(question, k=K, filter=wanted, search_params=EXACT)
        assert [document.metadata["_id"] for document in found] == ours(loaded, question, languages)
        assert {document.metadata["lang"] for document in found} <= {"en", "de"}
        assert all(document.page_content and document.metadata["title"] for document in found)


@pytest.mark.parametrize("kind", ["http", "server"])
def test_langchains_hybrid_mode_finds_our_best_with_our_words(kind, tmp_path):
    """Its fusion is the server's, of the first K of each: the best is the same, the order after it may differ."""
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    from xqg_vdb.integrations.langchain import XqgEmbeddings, sparse_embeddings

    with loaded_on(kind, tmp_path, more=["--hybrid"]) as loaded:
        opened = QdrantClient(**where(loaded), check_compatibility=False)
        store = QdrantVectorStore(
            client=opened, collection_name=loaded.name, vector_name="text-dense", sparse_vector_name="text-sparse",
            embedding=XqgEmbeddings(loaded.encoder, collection=loaded.collection),
            sparse_embedding=sparse_embeddings(loaded.collection), retrieval_mode=RetrievalMode.HYBRID,
            content_payload_key="content", metadata_payload_key="meta",
        )  # fmt: skip
        hybrid = Retriever(loaded.encoder, loaded.collection, hybrid=True)
        ours = [[hit.id for hit in hybrid.search(text, k=K)] for text in asked(loaded)]
        theirs = [store.similarity_search(text, k=K) for text in asked(loaded)]
        assert len(ours) == 5
        opened.close()
    assert [points[0].metadata["_id"] for points in theirs] == [str(point_id(hits[0])) for hits in ours]


def test_the_calibration_is_what_makes_them_equal(loaded, client):
    """An encoder's plain vectors, or its own calibration in place of the collection's, find other passages."""
    from xqg_vdb.integrations.langchain import XqgEmbeddings

    for embeddings in (XqgEmbeddings(loaded.encoder, calibration=0.0), XqgEmbeddings(loaded.encoder)):
        store = langchain_store(loaded, client, embeddings)
        found = [[one.metadata["_id"] for one in store.similarity_search(text, k=K)] for text in questions(8)]
        assert found != [ours(loaded, text, None) for text in questions(8)]


def llama_index_store(loaded, client, aclient=None):
    from llama_index.core import VectorStoreIndex
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from xqg_vdb.integrations.llama_index import XqgEmbedding

    store = QdrantVectorStore(loaded.name, client=client, aclient=aclient, text_key="content")
    embedding = XqgEmbedding(loaded.encoder, collection=loaded.collection)
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


def llama_index_retriever(index, languages):
    from xqg_vdb.integrations.llama_index import language_filter

    filters = None if languages is None else language_filter(languages)
    return index.as_retriever(similarity_top_k=K, filters=filters, vector_store_kwargs={"search_params": EXACT})


@LANGUAGES
def test_llama_index_finds_what_we_find(loaded, client, languages):
    retriever = llama_index_retriever(llama_index_store(loaded, client), languages)
    for question in questions(8):
        found = retriever.retrieve(question)
        assert [one.node.node_id for one in found] == ours(loaded, question, languages)
        assert all(one.node.text for one in found)


async def test_llama_index_finds_it_in_coroutines(loaded, client):
    aclient = AsyncQdrantClient(**where(loaded), check_compatibility=False)
    try:
        retriever = llama_index_retriever(llama_index_store(loaded, client, aclient), ["de"])
        found = await asyncio.gather(*map(retriever.aretrieve, questions(8)))
    finally:
        await aclient.close()
    for question, nodes in zip(questions(8), found, strict=True):
        assert [one.node.node_id for one in nodes] == ours(loaded, question, ["de"])


def haystack_parts(loaded):
    from haystack.utils import Secret
    from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    from xqg_vdb.integrations.haystack import XqgTextEmbedder

    store = QdrantDocumentStore(
        **{**where(loaded), "api_key": loaded.key and Secret.from_token(loaded.key)}, index=loaded.name,
        embedding_dim=loaded.encoder.facts.dim, similarity="cosine", use_sparse_embeddings=True,
    )  # fmt: skip
    key = {"api_key": Secret.from_token(loaded.key)} if loaded.key else {}
    return (
        XqgTextEmbedder(loaded.model, collection=loaded.name, url=loaded.url, **key),
        QdrantEmbeddingRetriever(store, top_k=K),
    )


@LANGUAGES
def test_haystack_finds_what_we_find(loaded, languages):
    from haystack import Pipeline

    from xqg_vdb.integrations.haystack import language_filter

    embedder, retriever = haystack_parts(loaded)
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("retriever", retriever)
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    filters = None if languages is None else language_filter(languages)
    for question in questions(8):
        inputs = {"embedder": {"text": question}, "retriever": {"filters": filters}}
        found = pipeline.run(inputs)["retriever"]["documents"]
        assert [str(point_id(document.id)) for document in found] == ours(loaded, question, languages)
        assert all(document.content and document.meta["title"] for document in found)
    retriever.close()


async def test_haystack_finds_it_in_coroutines(loaded):
    from xqg_vdb.integrations.haystack import language_filter

    embedder, retriever = haystack_parts(loaded)
    for question in questions(4):
        embedding = (await embedder.run_async(question))["embedding"]
        found = (await retriever.run_async(embedding, filters=language_filter(["de"])))["documents"]
        assert [str(point_id(document.id)) for document in found] == ours(loaded, question, ["de"])
    await retriever.close_async()
