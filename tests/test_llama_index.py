"""The LlamaIndex wrappers. LlamaIndex has no suite for integrations; its own classes are the judges here."""

import asyncio

import numpy as np
import pytest

from xqg_vdb.types import Search

pytest.importorskip("llama_index.core")

from cli_cases import write_inputs
from integration_cases import questions
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import MetadataMode, TextNode
from rankings import assert_best
from tiny_model import write_tiny_encoder

from xqg_vdb import Collection, Encoder, Retriever, load
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.integrations.llama_index import XqgEmbedding, XqgRetriever, language_filter
from xqg_vdb.store.embedded.store import EmbeddedStore


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A `Retriever` on 90 passages in the embedded store."""
    folder = tmp_path_factory.mktemp("llama-index")
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


@pytest.mark.parametrize("language", [None, "sw", "und", "swa"])
async def test_a_question_is_embedded_as_a_search_embeds_it(ours, language):
    embedding = XqgEmbedding(ours.encoder, collection=ours.collection, question_lang=language)
    for text in questions(5):
        vector = embedding.get_query_embedding(text)
        assert vector == await embedding.aget_query_embedding(text) and type(vector[0]) is float
        (found,) = ours.collection.nearest(np.array([vector], dtype=np.float32), Search(exact=True))
        assert found == ours.search(text, question_lang=language, exact=True)


async def test_texts_are_embedded_as_passages_in_batches(ours):
    embedding, texts = XqgEmbedding(ours.encoder, embed_batch_size=4), questions(10)
    expected = ours.encoder.encode_passages(texts)
    for found in (embedding.get_text_embedding_batch(texts), await embedding.aget_text_embedding_batch(texts)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding(texts[0]), expected[0], atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_text_embedding(texts[0]), expected[0], atol=1e-6)


def test_it_reports_itself_as_llama_indexs_own_do(ours):
    embedding = XqgEmbedding(ours.encoder)
    assert isinstance(embedding, BaseEmbedding)
    assert set(embedding.to_payload()) == set(MockEmbedding(embed_dim=2).to_payload())
    assert (embedding.class_name(), embedding.model_name) == ("XqgEmbedding", ours.encoder.facts.source)


def test_another_encoder_is_refused(ours, tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "other", seed=1)) as other, pytest.raises(MismatchError):
        XqgEmbedding(other, collection=ours.collection)


def test_an_index_of_llama_index_takes_it(ours):
    nodes = [TextNode(text=text, id_=f"n{i}") for i, text in enumerate(questions(20))]
    index = VectorStoreIndex(nodes, embed_model=XqgEmbedding(ours.encoder, calibration=0.0))
    rows = ours.encoder.encode_passages([node.get_content(MetadataMode.EMBED) for node in nodes])
    text = questions(1, seed=9)[0]
    scores = rows @ ours.encoder.encode_queries([text], calibrate=False)[0]
    found = index.as_retriever(similarity_top_k=5).retrieve(text)
    assert_best([one.node.node_id for one in found], {f"n{i}": score for i, score in enumerate(scores)}, k=5)


@pytest.mark.parametrize("languages", [None, ["de"], ["deu", "fr"]])
@pytest.mark.parametrize("language", [None, "ar"])
async def test_languages_are_arguments(ours, languages, language):
    retriever = XqgRetriever(ours, similarity_top_k=7, passage_langs=languages, question_lang=language)
    found = await asyncio.gather(*map(retriever.aretrieve, questions(20)))
    for text, nodes in zip(questions(20), found, strict=True):
        hits = ours.search(text, k=7, passage_langs=languages, question_lang=language)
        assert [(one.node.node_id, one.score, one.node.text) for one in nodes] == [
            (hit.id, hit.score, hit.text) for hit in hits
        ]
        assert [one.node.metadata for one in nodes] == [
            {"lang": hit.lang, "title": hit.title, "n": hit.meta["n"]} for hit in hits
        ]
        assert retriever.retrieve(text) == nodes


def test_wrong_arguments_are_named(ours):
    with pytest.raises(DataError, match="langs must be a list with at least one language code"):
        XqgRetriever(ours, passage_langs="de")
    with pytest.raises(DataError, match="k must be 1 or more, found 0"):
        XqgRetriever(ours, similarity_top_k=0).retrieve("w1")
    with pytest.raises(DataError, match="'klingonish' is not a language code"):
        language_filter(["klingonish"])
