"""A cache keyed without the encoder served another one's vectors; worker processes could not take an encoder."""

import pickle

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

from xqg_vdb import Encoder

TEXTS = ["w1 w2 w3 " * 20, "w4 w5 w6 w7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("cached") / "tiny", calibration=0.5)


def test_an_encoder_that_was_pickled_gives_the_same_rows(folder):
    encoder = Encoder(folder, threads=1, calibration=0.3, max_length=9)
    with encoder, pickle.loads(pickle.dumps(encoder)) as again:
        assert (again.calibration, again.max_length, again.threads) == (0.3, 9, 1)
        np.testing.assert_array_equal(again.encode_passages(TEXTS), encoder.encode_passages(TEXTS))
        np.testing.assert_array_equal(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS))


def test_llama_index_keeps_the_vectors_of_two_encoders_apart(folder, tmp_path):
    pytest.importorskip("llama_index.core")
    from llama_index.core.ingestion import IngestionCache, IngestionPipeline
    from llama_index.core.schema import MetadataMode, TextNode

    from xqg_vdb.integrations.llama_index import XqgEmbedding

    cache = IngestionCache()
    other = write_tiny_encoder(tmp_path / "other", seed=1, calibration=0.5)
    for model, longest in ((folder, 9), (folder, None), (other, None)):
        with Encoder(model, threads=1, max_length=longest) as encoder:
            nodes = [TextNode(id_=str(i), text=text) for i, text in enumerate(TEXTS)]
            made = IngestionPipeline(transformations=[XqgEmbedding(encoder)], cache=cache).run(nodes=nodes)
            expected = encoder.encode_passages([node.get_content(MetadataMode.EMBED) for node in nodes])
            np.testing.assert_allclose([node.embedding for node in made], expected, atol=1e-6)


def test_llama_index_embeds_in_worker_processes(folder):
    pytest.importorskip("llama_index.core")
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.schema import TextNode

    from xqg_vdb.integrations.llama_index import XqgEmbedding

    with Encoder(folder, threads=1) as encoder:
        embedding = XqgEmbedding(encoder, question_lang="sw")
        again = pickle.loads(pickle.dumps(embedding))
        assert again.get_query_embedding(TEXTS[1]) == embedding.get_query_embedding(TEXTS[1])
        assert again.question_lang == "sw" and again.callback_manager is not None
        nodes = [TextNode(id_=str(i), text=f"w{i} w2") for i in range(4)]
        made = IngestionPipeline(transformations=[embedding], disable_cache=True).run(nodes=nodes, num_workers=2)
        expected = encoder.encode_passages([f"w{i} w2" for i in range(4)])
        np.testing.assert_allclose([node.embedding for node in made], expected, atol=1e-6)


def test_langchains_cache_has_a_name_for_each_encoder(folder, tmp_path):
    pytest.importorskip("langchain_core")
    from xqg_vdb.integrations.langchain import XqgEmbeddings

    other = write_tiny_encoder(tmp_path / "other", seed=1, calibration=0.5)
    encoders = [Encoder(folder), Encoder(folder, max_length=9), Encoder(other)]
    assert len({XqgEmbeddings(encoder).model for encoder in encoders}) == 3
    for encoder in encoders:
        encoder.close()
