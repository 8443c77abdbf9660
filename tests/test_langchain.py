"""The LangChain wrappers: langchain-tests' own suites, and what those do not look at."""

import asyncio

import numpy as np
import pytest

from xqg_vdb.types import Search

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from cli_cases import write_inputs
from integration_cases import questions
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError
from tiny_model import write_tiny_encoder

from xqg_vdb import Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.integrations.langchain import XqgEmbeddings, XqgRetriever, language_filter
from xqg_vdb.store.embedded.store import EmbeddedStore


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A `Retriever` on 90 passages in the embedded store."""
    folder = tmp_path_factory.mktemp("langchain")
    write_inputs(folder, 90)
    model = write_tiny_encoder(folder / "tiny", calibration=0.5)
    with Encoder(model, threads=2) as encoder, EmbeddedStore(folder / "store", free_space_floor=0) as store:
        load(
            folder / "corpus.jsonl",
            "wiki",
            encoder=encoder,
            queries=folder / "queries.jsonl",
            store=store,
            options=LoadOptions(build=folder / "build"),
        )
        yield Retriever(encoder, Collection("wiki", store))


class _Given:
    @pytest.fixture(autouse=True)
    def _remember(self, ours):
        self._ours = ours


class TestEmbeddingsUnit(_Given, EmbeddingsUnitTests):
    embeddings_class = XqgEmbeddings

    @property
    def embedding_model_params(self):
        return {"encoder": self._ours.encoder}


class TestEmbeddingsIntegration(_Given, EmbeddingsIntegrationTests):
    embeddings_class = XqgEmbeddings

    @property
    def embedding_model_params(self):
        return {"encoder": self._ours.encoder, "collection": self._ours.collection}


class TestRetriever(_Given, RetrieversIntegrationTests):
    retriever_constructor = XqgRetriever
    retriever_query_example = "w1 w2 w3"

    @property
    def retriever_constructor_params(self):
        return {"retriever": self._ours}


@pytest.mark.parametrize("language", [None, "sw", "ar", "und", "swa"])
def test_a_question_is_embedded_as_a_search_embeds_it(ours, language):
    embeddings = XqgEmbeddings(ours.encoder, collection=ours.collection, question_lang=language)
    for text in questions(5):
        vector = np.array(embeddings.embed_query(text), dtype=np.float32)
        (found,) = ours.collection.nearest(vector[None], Search(exact=True))
        assert found == ours.search(text, question_lang=language, exact=True)


def test_without_a_collection_the_encoders_calibration_counts(ours):
    (text,) = questions(1)
    embeddings = XqgEmbeddings(ours.encoder, question_lang="sw")
    np.testing.assert_array_equal(
        embeddings.embed_query(text), ours.encoder.encode_queries([text], question_langs=["sw"])[0]
    )
    plain = XqgEmbeddings(ours.encoder, calibration=0.0)
    np.testing.assert_array_equal(plain.embed_query(text), ours.encoder.encode_queries([text], calibrate=False)[0])


def test_documents_are_embedded_as_passages(ours):
    texts = questions(3)
    found = XqgEmbeddings(ours.encoder).embed_documents(texts)
    np.testing.assert_array_equal(found, ours.encoder.encode_passages(texts))
    assert XqgEmbeddings(ours.encoder).embed_documents([]) == []


def test_another_encoder_is_refused(ours, tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "other", seed=1)) as other, pytest.raises(MismatchError):
        XqgEmbeddings(other, collection=ours.collection)


def test_it_fits_a_vector_store_of_langchain(ours):
    store = InMemoryVectorStore(XqgEmbeddings(ours.encoder))
    store.add_documents([Document(page_content=text, metadata={"n": i}) for i, text in enumerate(questions(4))])
    assert len(store.similarity_search("w1 w2", k=2)) == 2


def test_documents_carry_what_the_corpus_had(ours):
    text, *_ = questions(1)
    for hit, document in zip(ours.search(text), XqgRetriever(retriever=ours).invoke(text), strict=True):
        metadata = {"lang": hit.lang, "title": hit.title, "n": hit.meta["n"], "_score": hit.score}
        assert document == Document(page_content=hit.text, id=hit.id, metadata=metadata)


@pytest.mark.parametrize("languages", [None, ["de"], ["deu", "fr"]])
async def test_languages_are_an_argument(ours, languages):
    """Of the constructor, or of a call; in both worlds."""
    text, *_ = questions(1)
    expected = [hit.id for hit in ours.search(text, passage_langs=languages, k=7)]
    made, called = XqgRetriever(retriever=ours, k=7, passage_langs=languages), XqgRetriever(retriever=ours)
    for found in (
        made.invoke(text),
        await made.ainvoke(text),
        called.invoke(text, k=7, passage_langs=languages),
        await called.ainvoke(text, k=7, passage_langs=languages),
    ):
        assert [document.id for document in found] == expected


async def test_the_questions_language_is_an_argument(ours):
    text, *_ = questions(1)
    expected = [hit.id for hit in ours.search(text, question_lang="ar")]
    retriever = XqgRetriever(retriever=ours, question_lang="ar")
    found = [retriever.invoke(text), await retriever.ainvoke(text)]
    found.append(XqgRetriever(retriever=ours).invoke(text, question_lang="ar"))
    assert [[document.id for document in one] for one in found] == [expected] * 3


async def test_a_batch_of_fifty(ours):
    retriever = XqgRetriever(retriever=ours)
    expected = [retriever.invoke(text) for text in questions(50)]
    assert await retriever.abatch(questions(50)) == expected
    assert await asyncio.gather(*map(retriever.ainvoke, questions(50))) == expected


def test_wrong_arguments_are_named(ours):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        XqgRetriever(retriever=ours, k=0)
    with pytest.raises(DataError, match="langs must be a list with at least one language code"):
        XqgRetriever(retriever=ours).invoke("w1", passage_langs=[])
    with pytest.raises(DataError, match="'klingonish' is not a language code"):
        language_filter(["klingonish"])
    with pytest.raises(TypeError, match="language"):
        XqgRetriever(retriever=ours).invoke("w1", language=["de"])


def test_the_filter_in_langchains_words():
    assert language_filter(["deu", "en"]).model_dump(exclude_none=True) == {
        "must": [{"key": "meta.lang", "match": {"any": ["de", "en"]}}]
    }
