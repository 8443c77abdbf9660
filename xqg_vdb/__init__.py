"""Make a Qdrant collection answer questions asked in languages its passages are not written in.

    from xqg_vdb import load

    collection = load("corpus.jsonl", "wiki", encoder="starter", queries="queries.jsonl").collection
    hits = collection.search("Mto Nile una urefu gani?", k=5, passage_langs=["en"])

Importing this package loads neither onnxruntime nor qdrant_client; the names below load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xqg_vdb.export.run import export
    from xqg_vdb.generate.local import generate
    from xqg_vdb.index.load import load
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.collection import Collection
    from xqg_vdb.search.retriever import AsyncRetriever, Retriever
    from xqg_vdb.tune.tune import tune
    from xqg_vdb.types import Hit, Recipe

__version__: str

_HOMES = {
    "AsyncRetriever": "xqg_vdb.search.retriever",
    "Collection": "xqg_vdb.search.collection",
    "Encoder": "xqg_vdb.models.encoder",
    "Hit": "xqg_vdb.types",
    "Recipe": "xqg_vdb.types",
    "Retriever": "xqg_vdb.search.retriever",
    "load": "xqg_vdb.index.load",
}

__all__ = [
    "AsyncRetriever",
    "Collection",
    "Encoder",
    "Hit",
    "Recipe",
    "Retriever",
    "__version__",
    "export",
    "generate",
    "load",
    "tune",
]


def __getattr__(name: str) -> Any:  # PEP 562
    if name in ("export", "generate", "tune"):  # folders that can be called
        return import_module(f"xqg_vdb.{name}")
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'xqg_vdb' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xqg-vdb")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"
