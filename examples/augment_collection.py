"""A collection that LangChain filled gets generated queries, and LangChain goes on searching it.

pip install 'xqg-vdb[langchain]'. Here the collection is in memory and holds the sample corpus; yours is on a server:
`ServerStore.connect("http://localhost:6333")` and `QdrantVectorStore.from_existing_collection`.
"""

import json
import sys
from uuid import NAMESPACE_URL, uuid5

from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from xqg_vdb import Collection, Encoder
from xqg_vdb.index.augment import Wishes, augment, undo
from xqg_vdb.integrations.langchain import XqgEmbeddings
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.texts.corpus import sample_corpus


def as_it_was(client: QdrantClient, encoder: Encoder) -> None:
    """What is there already: passages and their vectors, written by the stock vector store."""
    size = encoder.facts.dim
    client.create_collection("docs", models.VectorParams(size=size, distance=models.Distance.COSINE))
    passages = [json.loads(line) for line in sample_corpus().corpus.read_text(encoding="utf-8").splitlines()]
    documents = [Document(p["text"], metadata={"doc": p["id"], "title": p["title"]}) for p in passages]
    store = QdrantVectorStore(client, "docs", XqgEmbeddings(encoder, calibration=0))
    store.add_documents(documents, ids=[str(uuid5(NAMESPACE_URL, p["id"])) for p in passages])


def titles(client: QdrantClient, name: str, embeddings: XqgEmbeddings, question: str) -> str:
    found = QdrantVectorStore(client, name, embeddings).similarity_search(question, k=3)
    return ", ".join(document.metadata["title"] for document in found)


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "ما لون الدلافين التي تعيش في مياه هذا النهر؟"
    client, encoder = QdrantClient(":memory:"), Encoder("starter")
    as_it_was(client, encoder)
    print("before:", titles(client, "docs", XqgEmbeddings(encoder, calibration=0), question))

    store = ServerStore(client)
    queries, by_id = sample_corpus().queries, Wishes(id_key="metadata.doc")
    report = augment("docs", store=store, encoder=encoder, queries=queries, wishes=by_id)
    print(f"{report.collection}: {sum(report.queries.values())} queries in {len(report.queries)} languages folded in")

    calibrated = XqgEmbeddings(encoder, collection=Collection(report.collection, store))
    print("after: ", titles(client, report.collection, calibrated, question))
    undo("docs", store=store)


if __name__ == "__main__":
    main()
