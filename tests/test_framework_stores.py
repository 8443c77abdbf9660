"""What frameworks write into collections: their own suites, and that what they wrote is an ordinary collection."""

import asyncio
import contextlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_qdrant import FakeQdrant
from integration_cases import KEY, SERVER

from xqg_vdb import Collection, Retriever
from xqg_vdb.errors import DataError
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.operations import finish
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from qdrant_client import models

from xqg_vdb.integrations.langchain import XqgEmbeddings, XqgVectorStore


@pytest.fixture(params=["embedded", "http", "server", "grpc"])
def store(request, tmp_path):
    if request.param in ("server", "grpc") and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            opened = EmbeddedStore(tmp_path / "store", free_space_floor=0)
        elif request.param == "http":
            opened = ServerStore.connect(stack.enter_context(FakeQdrant()).url)
        else:
            opened = ServerStore.connect(SERVER, api_key=KEY, grpc=request.param == "grpc")
        yield stack.enter_context(opened)


@pytest.fixture
def empty(store):
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield Collection(name, store, encoder=HashEncoder())
    if name in store.names():
        store.delete(name)


class TestLangChain(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, empty):
        return XqgVectorStore(empty)


FILES = {
    "tea.txt": "Tea comes from the mountains of southern China.",
    "nile.txt": "The Nile flows north through eleven countries of Africa.",
    "fluss.txt": "Der Rhein ist ein langer Fluss in Europa und fließt in die Nordsee.",
}


def read_files(files):
    return [Document(page_content=text, metadata={"source": name, "size": len(text)}) for name, text in files.items()]


def written(collection):
    return {point.payload["meta"]["source"]: point.payload["content"] for point in collection.scroll()}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_indexing_api_updates_a_changed_file_and_deletes_a_vanished_one(empty, asynchronous):
    vectors, records = XqgVectorStore(empty), InMemoryRecordManager(namespace="notes")
    records.create_schema()

    async def indexed(files):
        options = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
        if asynchronous:
            return await aindex(read_files(files), records, vectors, **options)
        return index(read_files(files), records, vectors, **options)

    assert (await indexed(FILES))["num_added"] == 3 and written(empty) == FILES
    assert await indexed(FILES) == {"num_added": 0, "num_updated": 0, "num_skipped": 3, "num_deleted": 0}
    changed = {**FILES, "tea.txt": "Tea is a drink."}
    del changed["nile.txt"]
    done = await indexed(changed)
    assert (done["num_added"], done["num_deleted"], done["num_skipped"]) == (1, 2, 1)
    assert written(empty) == changed and empty.count() == empty.card.count == 2
    assert vectors.similarity_search("drink of tea", k=1)[0].page_content == "Tea is a drink."


async def test_langchain_finds_what_a_retriever_finds(empty):
    vectors = XqgVectorStore(empty)
    ids = vectors.add_documents(read_files(FILES))
    retriever = Retriever(empty.encoder, empty)
    question = "which river flows in Africa"
    for options, ours in [
        ({}, {}),
        ({"filter": {"size": {"lt": 50}}}, {"where": {"size": {"lt": 50}}}),
        ({"passage_langs": ["de"], "question_lang": "en"}, {"passage_langs": ["de"], "question_lang": "en"}),
    ]:
        expected = [(hit.id, hit.score) for hit in retriever.search(question, k=3, **ours)]
        assert expected
        for found in (
            vectors.similarity_search_with_score(question, k=3, **options),
            await vectors.asimilarity_search_with_score(question, k=3, **options),
        ):
            assert [(document.id, score) for document, score in found] == expected
    best = vectors.similarity_search(question, k=1)
    assert vectors.similarity_search_by_vector(vectors.embeddings.embed_query(question), k=1) == best
    assert await vectors.as_retriever(search_kwargs={"k": 1}).ainvoke(question) == best
    ((_, relevance),) = vectors.similarity_search_with_relevance_scores(question, k=1)
    assert 0.5 < relevance <= 1
    assert best[0].metadata == {"source": "nile.txt", "size": len(FILES["nile.txt"]), "lang": "en"}
    assert vectors.delete() and vectors.get_by_ids(ids) == [] == vectors.similarity_search(question)


def test_from_texts_needs_an_encoder_that_tells_questions_from_passages(tmp_path):
    made = XqgVectorStore.from_texts(
        ["one", "two"], XqgEmbeddings(HashEncoder()), [{"n": 1}, {"n": 2}], ids=["a", "b"], path=str(tmp_path / "s")
    )
    assert made.get_by_ids(["b", "x", "a"]) == [
        Document(page_content="two", metadata={"n": 2}, id="b"),
        Document(page_content="one", metadata={"n": 1}, id="a"),
    ]
    made.documents.collection.close()
    with pytest.raises(DataError, match="Give XqgEmbeddings"):
        XqgVectorStore.from_texts(["one"], None, path=str(tmp_path / "s"))
    with pytest.raises(DataError, match=r"Collection\(name, open_store\(…\), encoder=…\) is needed"):
        XqgVectorStore("wiki")


def test_blank_documents_are_left_out_and_go(empty, caplog):
    vectors = XqgVectorStore(empty)
    assert vectors.add_texts(["", "one", " \n", "two"], ids=["a", "b", "c", "d"]) == ["a", "b", "c", "d"]
    assert [document.id for document in vectors.get_by_ids(["a", "b", "c", "d"])] == ["b", "d"]
    assert "2 blank documents are left out, the first 'a'" in caplog.text
    vectors.add_texts(["", "three"], ids=["b", 5])
    assert [document.page_content for document in vectors.get_by_ids(["b", 5])] == ["three"] and empty.count() == 2


LONG = [
    {"id": f"d{i}", "lang": "en", "text": " ".join(f"Word{i}x{j} is  about maji {j % 3}." for j in range(5 + 60 * i))}
    for i in range(3)
]


async def test_documents_in_chunks_come_back_whole(empty):
    load(LONG, empty.name, encoder=empty.encoder, store=empty.store, options=LoadOptions(chunk="16:4"))
    vectors, wanted = XqgVectorStore(empty), [" ".join(row["text"].split()) for row in LONG]
    assert empty.count() > 60  # more than are asked for at a time

    def texts(documents):
        return [" ".join(document.page_content.split()) for document in documents]

    assert texts(vectors.get_by_ids(["d2", "x", "d0", "d1"])) == [wanted[2], wanted[0], wanted[1]]
    assert texts(await vectors.aget_by_ids(["d1", "d2", "d1"])) == wanted[1:]
    found = vectors.similarity_search("Word2x100 is about", k=3)
    assert len({document.id for document in found}) == 3 and all(document.metadata["span"] for document in found)
    documents = vectors.documents
    assert (documents.count(), sorted(documents.ids())) == (3, ["d0", "d1", "d2"])
    only = models.Filter(must=[documents.with_ids(["d1", "d2"])])
    assert {" ".join(hit.text.split()) for hit in finish(documents.matching(only, most=10))} == set(wanted[1:])
    assert {hit.id for hit in await documents.matching(only, most=10, aside=True)} == {"d1", "d2"}
    vectors.delete(["d1"])
    assert vectors.get_by_ids(["d0", "d1"])[0].id == "d0" and documents.count() == 2
    assert vectors.delete() and empty.count() == 0


async def test_coroutines_ask_a_server_without_its_client_for_threads(empty, monkeypatch):
    vectors = XqgVectorStore(empty)
    vectors.add_documents(read_files(FILES), ids=["1", "2", "3"])
    question, vector = "which river flows in Africa", [1.0] * empty.encoder.facts.dim
    searches = [
        (lambda: vectors.similarity_search(question, 2), lambda: vectors.asimilarity_search(question, 2)),
        (
            lambda: vectors.similarity_search_by_vector(vector, 2),
            lambda: vectors.asimilarity_search_by_vector(vector, 2),
        ),
        (lambda: vectors.get_by_ids(["3", "1"]), lambda: vectors.aget_by_ids(["3", "1"])),
    ]
    expected = [plain() for plain, _ in searches]
    if isinstance(empty.store, ServerStore):
        for name in ("search", "searches", "fetch"):
            monkeypatch.setattr(ServerStore, name, None)
    assert [await twin() for _, twin in searches] == expected


def test_several_threads_make_one_collection(empty):
    vectors = XqgVectorStore(empty)

    async def added():
        await asyncio.gather(*(vectors.aadd_texts([f"text number {n}"], ids=[str(n)]) for n in range(12)))

    asyncio.run(added())
    assert empty.count() == 12 == empty.card.count


def test_several_processes_make_one_collection(empty):
    """Who comes second is told that the collection is being made, waits, and adds."""
    shelves = [XqgVectorStore(Collection(empty.name, empty.store, encoder=empty.encoder)) for _ in range(3)]
    together = threading.Barrier(3)

    def write(number):
        together.wait()
        return shelves[number].add_texts([f"shelf {number} text {n}" for n in range(4)])

    with ThreadPoolExecutor(3) as pool:
        ids = [docid for made in pool.map(write, range(3)) for docid in made]
    assert empty.count() == 12 == empty.card.count and len(shelves[0].get_by_ids(ids)) == 12


def sources(files):
    from llama_index.core import Document

    return [Document(id_=name, text=text, metadata={"source": name, "title": name}) for name, text in files.items()]


@pytest.fixture
def shelf(empty):
    pytest.importorskip("llama_index.core")
    from xqg_vdb.integrations.llama_index import XqgVectorStore

    return XqgVectorStore(empty)


def test_an_ingestion_pipeline_updates_a_changed_file_and_deletes_a_vanished_one(empty, shelf):
    from llama_index.core import MockEmbedding
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.storage.docstore import SimpleDocumentStore

    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), MockEmbedding(1)],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        vector_store=shelf,
    )
    pipeline.run(documents=sources(FILES))
    assert written(empty) == FILES
    before = {point.id for point in empty.scroll()}
    pipeline.run(documents=sources(FILES))
    assert {point.id for point in empty.scroll()} == before
    changed = {**FILES, "tea.txt": "Tea is a drink."}
    del changed["nile.txt"]
    pipeline.run(documents=sources(changed))
    assert written(empty) == changed


async def test_an_index_of_llama_index_asks_the_collection(empty, shelf):
    from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    context = StorageContext.from_defaults(vector_store=shelf)
    made = VectorStoreIndex.from_documents(sources(FILES), storage_context=context, embed_model=MockEmbedding(1))
    question = "which river flows in Africa"
    expected = [(hit.text, hit.score) for hit in Retriever(empty.encoder, empty).search(question, k=2)]
    retriever = made.as_retriever(similarity_top_k=2)
    for found in (retriever.retrieve(question), await retriever.aretrieve(question)):
        assert [(node.text, node.score) for node in found] == expected
        assert found[0].metadata == {"source": "nile.txt", "title": "nile.txt"}
        assert found[0].node.ref_doc_id == "nile.txt"
    german = MetadataFilters(filters=[MetadataFilter(key="source", value="fluss.txt")])
    (node,) = made.as_retriever(filters=german).retrieve(question)
    assert node.metadata["source"] == "fluss.txt"
    assert [node.node_id for node in shelf.get_nodes([node.node_id])] == [node.node_id]
    assert await shelf.aget_nodes([node.node_id]) == shelf.get_nodes([node.node_id])
    assert shelf.get_nodes([node.node_id], MetadataFilters(filters=[MetadataFilter(key="source", value="x")])) == []
    vector = empty.encoder.encode_queries([question], calibrate=False)[0].tolist()
    asked = VectorStoreQuery(query_embedding=vector, similarity_top_k=1)
    for found in (shelf.query(asked), await shelf.aquery(asked)):
        assert found.nodes[0].ref_doc_id == "nile.txt"
    with pytest.raises(DataError, match="asked in the mode 'default', not 'mmr'"):
        shelf.query(VectorStoreQuery(query_str="x", mode=VectorStoreQueryMode.MMR))
    made.delete_ref_doc("nile.txt")
    assert empty.count() == 2
    await shelf.adelete_nodes(filters=german)
    assert list(written(empty)) == ["tea.txt"]
    await shelf.aclear()
    assert empty.count() == 0 and made.as_retriever().retrieve(question) == []
