"""The Haystack components, alone, in pipelines, and written to YAML and back; its own suite for the document store."""

import asyncio
import uuid
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest

from xqg_vdb.types import Search

pytest.importorskip("haystack")

from cli_cases import write_inputs
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing.document_store import DocumentStoreBaseTests
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    WriteDocumentsAsyncTest,
)
from haystack.utils import Secret
from integration_cases import KEY, SERVER, questions
from rankings import assert_best
from tiny_model import write_tiny_encoder

from xqg_vdb import Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError, LockedError, MismatchError, ModelError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.integrations.haystack import (
    XqgDocumentEmbedder,
    XqgDocumentStore,
    XqgRetriever,
    XqgTextEmbedder,
    language_filter,
)
from xqg_vdb.store.embedded.store import EmbeddedStore

TRUSTED = ["xqg_vdb.integrations.haystack"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a tiny encoder in `tiny` and a collection `wiki` of 90 passages in `store`."""
    path = tmp_path_factory.mktemp("haystack")
    write_inputs(path, 90)
    write_tiny_encoder(path / "tiny", calibration=0.5)
    with Encoder(path / "tiny") as encoder, EmbeddedStore(path / "store", free_space_floor=0) as store:
        load(
            path / "corpus.jsonl",
            "wiki",
            encoder=encoder,
            queries=path / "queries.jsonl",
            store=store,
            options=LoadOptions(build=path / "build"),
        )
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    with Encoder(folder / "tiny") as opened:
        yield opened


@pytest.fixture
def arguments(folder):
    return {"encoder": str(folder / "tiny"), "path": str(folder / "store")}


@pytest.fixture
def search(folder, encoder):
    """Our own answers, as a function; the store is closed again after each."""

    def run(text, **options):
        with EmbeddedStore(folder / "store") as store:
            return Retriever(encoder, Collection("wiki", store)).search(text, **options)

    return run


@pytest.mark.parametrize("language", [None, "sw", "swa"])
async def test_a_question_is_embedded_as_a_search_embeds_it(folder, encoder, arguments, language):
    embedder = XqgTextEmbedder(collection="wiki", question_lang=language, **arguments)
    with EmbeddedStore(folder / "store") as store:
        retriever = Retriever(encoder, Collection("wiki", store))
        for text in questions(4):
            vector = embedder.run(text=text)["embedding"]
            assert vector == (await embedder.run_async(text=text))["embedding"] and type(vector[0]) is float
            (found,) = store.search("wiki", np.array([vector], np.float32), Search(exact=True))
            assert found == retriever.search(text, question_lang=language, exact=True)


def test_without_a_collection_the_encoders_calibration_counts(folder, encoder):
    (text,) = questions(1)
    found = XqgTextEmbedder(str(folder / "tiny")).run(text=text, question_lang="ar")["embedding"]
    np.testing.assert_array_equal(found, encoder.encode_queries([text], question_langs=["ar"])[0])


async def test_documents_are_embedded_with_their_titles(folder, encoder):
    documents = [Document(content=text, meta={"title": "w7", "n": i}) for i, text in enumerate(questions(3))]
    documents.append(Document(content="w1 w2", meta={"title": 7}))  # as the store writes it
    embedder = XqgDocumentEmbedder(str(folder / "tiny"))
    found = embedder.run(documents=documents)["documents"]
    assert found == (await embedder.run_async(documents=documents))["documents"]
    expected = encoder.encode_passages([*(f"w7 {text}" for text in questions(3)), "7 w1 w2"])
    np.testing.assert_array_equal([one.embedding for one in found], expected)
    assert [one.embedding for one in documents] == [None] * 4  # the caller's own stay as they are
    assert [(one.id, one.content, one.meta) for one in found] == [(one.id, one.content, one.meta) for one in documents]
    assert embedder.run(documents=[]) == {"documents": []}


@pytest.mark.parametrize("languages", [None, ["de"], ["deu", "fr"]])
async def test_languages_are_an_argument(arguments, search, languages):
    (text,) = questions(1)
    expected = search(text, k=7, passage_langs=languages)
    made = XqgRetriever("wiki", top_k=7, passage_langs=languages, **arguments)
    found = [made.run(query=text), await made.run_async(query=text)]
    made.close()
    called = XqgRetriever("wiki", **arguments)
    found += [called.run(query=text, top_k=7, passage_langs=languages),
              await called.run_async(query=text, top_k=7, passage_langs=languages)]  # fmt: skip
    called.close()
    for one in found:
        assert [document.score for document in one["documents"]] == pytest.approx([hit.score for hit in expected])
        assert [(document.id, document.content) for document in one["documents"]] == [
            (hit.id, hit.text) for hit in expected
        ]
        assert [document.meta for document in one["documents"]] == [
            {"lang": hit.lang, "title": hit.title, "n": hit.meta["n"]} for hit in expected
        ]


async def test_many_at_once_open_one_session(arguments, search):
    expected = [[hit.id for hit in search(text)] for text in questions(20)]
    retriever = XqgRetriever("wiki", **arguments)
    found = await asyncio.gather(*(retriever.run_async(query=text) for text in questions(20)))
    retriever.close()
    assert [[document.id for document in one["documents"]] for one in found] == expected


def test_nothing_is_opened_before_it_is_used(folder):
    XqgRetriever("wiki", encoder="/nowhere", path=str(folder / "nothing"))
    XqgTextEmbedder("/nowhere")
    with pytest.raises(ModelError):
        XqgDocumentEmbedder("/nowhere").warm_up()
    assert not (folder / "nothing").exists()


def test_a_failed_opening_leaves_nothing_locked(folder, arguments, search):
    write_tiny_encoder(folder / "other", seed=1)
    with pytest.raises(MismatchError):
        XqgRetriever("wiki", **{**arguments, "encoder": str(folder / "other")}).warm_up()
    first, second = XqgRetriever("wiki", **arguments), XqgRetriever("wiki", **arguments)
    first.run(query="w1")
    with pytest.raises(LockedError):
        second.run(query="w1")
    first.close()
    assert second.run(query="w1")["documents"]
    second.close()


def components(arguments):
    return [
        XqgTextEmbedder(collection="wiki", question_lang="sw", calibration=0.3, **arguments),
        XqgTextEmbedder(),
        XqgDocumentEmbedder(arguments["encoder"]),
        XqgRetriever("wiki", top_k=3, passage_langs=["deu"], question_lang="sw", calibration=0.0, **arguments),
        XqgRetriever("wiki", url="https://example.org:6333", api_key=Secret.from_env_var("MY_KEY")),
    ]


@pytest.mark.parametrize("number", range(5))
def test_to_dict_and_back(arguments, number):
    one = components(arguments)[number]
    record = one.to_dict()
    again = type(one).from_dict(record)
    assert again.to_dict() == record
    settings = {key: value for key, value in vars(one).items() if not key.startswith(("_", "__"))}
    assert settings == {key: value for key, value in vars(again).items() if not key.startswith(("_", "__"))}
    pipeline = Pipeline()
    pipeline.add_component("one", one)
    assert Pipeline.loads(pipeline.dumps(), allowed_modules=TRUSTED).to_dict() == pipeline.to_dict()


def test_a_key_is_never_written_down():
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        XqgRetriever("wiki", api_key=Secret.from_token("SECRET-CANARY")).to_dict()
    assert "SECRET" not in repr(vars(XqgRetriever("wiki", api_key=Secret.from_token("SECRET-CANARY"))))


def test_a_pipeline_read_from_yaml_finds_the_same(arguments, search):
    pipeline = Pipeline()
    pipeline.add_component("retriever", XqgRetriever("wiki", passage_langs=["de"], **arguments))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=TRUSTED)
    again.warm_up()
    (text,) = questions(1)
    found = again.run({"retriever": {"query": text}})["retriever"]["documents"]
    again.get_component("retriever").close()
    assert [document.id for document in found] == [hit.id for hit in search(text, passage_langs=["de"])]


async def test_an_asynchronous_pipeline(arguments, search):
    pipeline = Pipeline()
    retriever = XqgRetriever("wiki", **arguments)
    pipeline.add_component("retriever", retriever)
    (text,) = questions(1)
    found = await pipeline.run_async({"retriever": {"query": text, "top_k": 4}})
    retriever.close()
    assert [document.id for document in found["retriever"]["documents"]] == [hit.id for hit in search(text, k=4)]


def test_documents_and_questions_meet_in_a_store_of_haystack(folder, encoder):
    store = InMemoryDocumentStore()
    texts = questions(20)
    documents = [Document(id=f"d{i}", content=text) for i, text in enumerate(texts)]
    store.write_documents(XqgDocumentEmbedder(str(folder / "tiny")).run(documents=documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", XqgTextEmbedder(str(folder / "tiny"), question_lang="sw"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=5))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    text = questions(1, seed=9)[0]
    scores = encoder.encode_passages(texts) @ encoder.encode_queries([text], question_langs=["sw"])[0]
    found = pipeline.run({"embedder": {"text": text}})["retriever"]["documents"]
    assert_best([document.id for document in found], {f"d{i}": score for i, score in enumerate(scores)}, k=5)


def test_wrong_arguments_are_named(arguments):
    with pytest.raises(DataError, match="langs must be a list with at least one language code"):
        XqgRetriever("wiki", passage_langs="de")
    retriever = XqgRetriever("wiki", **arguments)
    for options, said in [({"top_k": 0}, "k must be 1 or more"), ({"passage_langs": []}, "langs must be a list"),
                          ({"question_lang": "klingonish"}, "not a language code")]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            retriever.run(query="w1", **options)
    with pytest.raises(DataError, match="Question '0' is blank"):
        retriever.run(query=" ")
    retriever.close()
    assert language_filter(["deu"]) == {"field": "meta.lang", "operator": "in", "value": ["de"]}


class TestDocumentStore(
    DocumentStoreBaseTests,
    CountDocumentsAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    WriteDocumentsAsyncTest,
):
    """Haystack's own suite; a collection keeps no embeddings, and says what language it found."""

    @pytest.fixture(params=["embedded", "server", "grpc"])
    def document_store(self, request, tmp_path, arguments, monkeypatch):
        where = {"path": str(tmp_path / "documents")}
        if request.param != "embedded":
            if not SERVER:
                pytest.skip("XQG_TEST_QDRANT_URL is not set")
            monkeypatch.setenv("XQG_VDB_API_KEY", KEY or "")
            url = urlsplit(SERVER)
            where = {"url": f"grpc://{url.hostname}:{url.port + 1}" if request.param == "grpc" else SERVER}
        made = XqgDocumentStore(f"test-{uuid.uuid4().hex[:12]}", encoder=arguments["encoder"], **where)
        yield made
        store = made._ready().collection.store
        if made.collection in store.names():
            store.delete(made.collection)
        made.close()

    @staticmethod
    def assert_documents_are_equal(received, expected):
        def plain(documents):
            without = [replace(one, embedding=None, meta={**one.meta, "lang": ""}) for one in documents]
            return sorted(without, key=lambda one: one.id)

        assert plain(received) == plain(expected)

    def test_write_documents(self, document_store):
        """By default a document with a known id is replaced."""
        assert document_store.write_documents([Document(id="a", content="w1")]) == 1
        assert document_store.write_documents([Document(id="a", content="w2")]) == 1
        assert [one.content for one in document_store.filter_documents()] == ["w2"]

    async def test_write_documents_async(self, document_store):
        assert await document_store.write_documents_async([Document(id="a", content="w1")]) == 1
        assert await document_store.write_documents_async([Document(id="a", content="w2")]) == 1
        assert [found.content for found in await document_store.filter_documents_async()] == ["w2"]


async def test_a_pipeline_writes_what_another_finds(tmp_path, arguments):
    store = XqgDocumentStore("notes", encoder=arguments["encoder"], path=str(tmp_path / "documents"))
    indexing, asking = Pipeline(), Pipeline()
    indexing.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    asking.add_component("retriever", XqgRetriever(store, top_k=2, question_lang="sw"))
    documents = [Document(id=f"d{i}", content=text, meta={"n": i}) for i, text in enumerate(questions(9))]
    assert indexing.run({"writer": {"documents": documents}}) == {"writer": {"documents_written": 9}}
    found = asking.run({"retriever": {"query": documents[4].content}})["retriever"]["documents"]
    assert len(found) == 2 and found[0].id == "d4" and found[0].meta["n"] == 4
    assert await asking.run_async({"retriever": {"query": documents[4].content}}) == {"retriever": {"documents": found}}
    again = Pipeline.loads(asking.dumps(), allowed_modules=TRUSTED)
    assert again.to_dict() == asking.to_dict()
    store.delete_documents(["d4", "nothing"])
    assert store.count_documents() == 8 and not store.filter_documents({"field": "id", "operator": "==", "value": "d4"})
    store.close()
