"""Collections as the stock stores of LangChain and LlamaIndex write them, and generated queries for their points.

They are written over HTTP to `fake_qdrant`, by the libraries themselves, with an encoder that hashes words.
"""

import random
import uuid

import numpy as np
from cli_cases import write_lines
from qdrant_client import QdrantClient, models

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.testing import HashEncoder

DIM = 16
WORDS = [f"word{i}" for i in range(60)]
POINTS = 70


def an_encoder(name="maker", *, calibration=0.5):
    rng = np.random.default_rng(3)
    means = {lang: rng.standard_normal(DIM).astype(np.float32) / 4 for lang in ("sw", "ar")}
    table = LanguageMeans(means, dict.fromkeys(means, 4), "bank")
    return HashEncoder(dim=DIM, name=name, calibration=calibration, language_means=table)


class OtherEncoder(HashEncoder):
    """Knows other words: `swap` for passages, `swap_queries` for queries, as another model or prefix would."""

    def __init__(self, *, swap, swap_queries):
        super().__init__(dim=DIM, name="other")
        self.swap, self.swap_queries = swap, swap_queries

    def encode_passages(self, several):
        return super().encode_passages([text.replace("word", self.swap) for text in several])

    def encode_queries(self, several, *, question_langs=None, calibrate=True):
        return super().encode_queries(
            [text.replace("word", self.swap_queries) for text in several],
            question_langs=question_langs,
            calibrate=calibrate,
        )


def texts(n=POINTS):
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=8)) for _ in range(n)]


def ids(n=POINTS):
    return [str(uuid.UUID(int=1 + 7919 * i)) for i in range(n)]


def write_queries(path, keys):
    """Two queries in sw and one in ar for each key but every tenth, and one record that belongs to nobody."""
    rng = random.Random(2)
    rows = [
        {"id": key, "generated_queries": {
            "sw": [" ".join(rng.choices(WORDS, k=4)) for _ in range(2)], "ar": [" ".join(rng.choices(WORDS, k=3))]
        }}
        for i, key in enumerate(keys) if i % 10
    ]  # fmt: skip
    return write_lines(path, [*rows, {"id": "nobody", "generated_queries": {"sw": ["word1 word2"]}}])


def langchain_embeddings(encoder):
    from langchain_core.embeddings import Embeddings

    class Plain(Embeddings):
        """What the owner of the collection used: no calibration, nothing of ours but the model."""

        def embed_documents(self, several):
            return encoder.encode_passages(several).tolist()

        def embed_query(self, text):
            return encoder.encode_queries([text], calibrate=False)[0].tolist()

    return Plain()


def write_langchain(url, name, encoder, **options):
    """The stock store writes; `options`: vector_name, distance."""
    from langchain_qdrant import QdrantVectorStore

    return QdrantVectorStore.from_texts(
        texts(), langchain_embeddings(encoder), ids=ids(), metadatas=[{"doc": f"d{i}"} for i in range(POINTS)],
        url=url, collection_name=name, check_compatibility=False, **options,
    )  # fmt: skip


def write_llama_index(url, name, encoder, *, client):
    """The stock store writes nodes with metadata, which it encodes before the text."""
    from llama_index.core.schema import MetadataMode, TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    nodes = [
        TextNode(id_=one, text=text, metadata={"page": i, "hidden": "x"}, excluded_embed_metadata_keys=["hidden"])
        for i, (one, text) in enumerate(zip(ids(), texts(), strict=True))
    ]
    rows = encoder.encode_passages([node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes])
    for node, row in zip(nodes, rows.tolist(), strict=True):
        node.embedding = row
    store = QdrantVectorStore(name, client=client)
    store.add(nodes)
    return store


def server(url):
    return ServerStore.connect(url, deadline=2.0)


def client_of(url):
    return QdrantClient(url=url, check_compatibility=False)


def stored(client, name, vector=""):
    """Vectors (n, dim) float32 in the order of `ids`."""
    records = client.scroll(name, limit=1000, with_vectors=True, with_payload=False)[0]
    rows = {one.id: one.vector if isinstance(one.vector, list) else one.vector[vector] for one in records}
    return np.array([rows[one] for one in ids() if one in rows], dtype=np.float32)


def everything(client, name):
    """All that a reader of the collection can see, for comparing before and after."""
    params = client.get_collection(name).config.params.model_dump()
    points = client.scroll(name, limit=1000, with_vectors=True, with_payload=True)[0]
    return params, [point.model_dump() for point in points]


def plain_collection(client, name, *, distance=models.Distance.COSINE, payload_key="text", encoder=None):
    """One that no framework wrote: integer ids, a named vector, payloads of its own."""
    client.create_collection(name, vectors_config={"dense": models.VectorParams(size=DIM, distance=distance)})
    rows = (encoder or an_encoder()).encode_passages(texts())
    client.upsert(name, [
        models.PointStruct(id=i, vector={"dense": row}, payload={payload_key: text, "at": {"doc": f"d{i}"}})
        for i, (row, text) in enumerate(zip(rows.tolist(), texts(), strict=True))
    ])  # fmt: skip
