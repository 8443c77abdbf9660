"""Make a Qdrant collection answer questions asked in languages its passages are not written in.

    from xqg_vdb import Encoder, Recipe, Retriever, load

    encoder = Encoder("starter")
    collection = load("corpus.jsonl", "wiki", encoder=encoder, queries="queries.jsonl")
    hits = Retriever(encoder, collection).search("Mto Nile una urefu gani?", k=5, passage_langs=["en"])

Importing this package loads neither onnxruntime nor qdrant_client; the names below load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from xqg_vdb.types import Hit, Hybrid, Passage, Question, Recipe

if TYPE_CHECKING:
    from xqg_vdb.export.encoder import export_encoder
    from xqg_vdb.index.load import load
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker
    from xqg_vdb.search.retriever import AsyncRetriever, Retriever
    from xqg_vdb.store import Collection, open_store


try:
    __version__ = version("xqg-vdb")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

_HOMES = {
    "AsyncRetriever": "xqg_vdb.search.retriever",
    "Collection": "xqg_vdb.store",
    "Encoder": "xqg_vdb.models.encoder",
    "Expander": "xqg_vdb.search.expand",
    "Reranker": "xqg_vdb.search.rerank",
    "Retriever": "xqg_vdb.search.retriever",
    "export_encoder": "xqg_vdb.export.encoder",
    "load": "xqg_vdb.index.load",
    "open_store": "xqg_vdb.store",
}

__all__ = [
    "AsyncRetriever", "Collection", "Encoder", "Expander", "Hit", "Hybrid", "Passage", "Question", "Recipe", "Reranker",
    "Retriever",    "__version__", "export_encoder", "load", "open_store",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _HOMES:
        raise AttributeError(f"module 'xqg_vdb' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
