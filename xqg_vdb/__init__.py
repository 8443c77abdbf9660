"""Make a Qdrant collection answer questions asked in languages its passages are not written in.

    from xqg_vdb import load

    collection = load("corpus.jsonl", "wiki", encoder="starter", queries="queries.jsonl").collection
    hits = collection.search("Mto Nile una urefu gani?", k=5, passage_langs=["en"])

Importing this package loads neither onnxruntime nor qdrant_client; the names below load what they need when first used.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xqg_vdb.export.encoder import export
    from xqg_vdb.generate.local import generate
    from xqg_vdb.index.load import load
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
    from xqg_vdb.tune.tune import tune
    from xqg_vdb.types import Hit, Recipe

__version__: str

_HOMES = {
    "AsyncRetriever": "xqg_vdb.search.retriever",
    "Collection": "xqg_vdb.search.retriever",
    "Encoder": "xqg_vdb.models.encoder",
    "Hit": "xqg_vdb.types",
    "Recipe": "xqg_vdb.types",
    "Retriever": "xqg_vdb.search.retriever",
    "load": "xqg_vdb.index.load",
}
_FOLDERS = {"export": "xqg_vdb.export.encoder", "generate": "xqg_vdb.generate.local", "tune": "xqg_vdb.tune.tune"}

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


class _Folder(ModuleType):
    """A folder that is a function, too: `xqg_vdb.generate(...)` generates, `xqg_vdb.generate.run` is in the folder."""

    @property
    def __call__(self) -> Callable[..., Any]:  # a property, so that no signature is repeated here
        name = self.__name__.rpartition(".")[2]
        function: Callable[..., Any] = getattr(import_module(_FOLDERS[name]), name)
        return function


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:  # by which an import gives a package its folders
        if name in _FOLDERS:
            value.__class__ = _Folder
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the one logger: a library says nothing unless asked


def __getattr__(name: str) -> Any:  # PEP 562
    if name in _FOLDERS:
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
