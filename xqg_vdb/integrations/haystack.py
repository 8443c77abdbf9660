"""Haystack: embedders for its stores, a retriever, and a store that it writes into (extra `haystack`).

Components are made before they are used, so the model and the store are opened by `warm_up`, or by the first `run`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

from qdrant_client import models

from xqg_vdb.errors import MissingExtra
from xqg_vdb.integrations import Documents, metadata_of, on_a_thread, passage_of, question_vector, search_options
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import STARTER
from xqg_vdb.search import QuestionEncoder, passage_languages
from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
from xqg_vdb.store import open_store
from xqg_vdb.store.filters import equal
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.store.operations import finish
from xqg_vdb.types import Hit

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
    from haystack.utils import Secret
    from haystack.utils.filters import COMPARISON_OPERATORS
    from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[haystack]'") from error

T = TypeVar("T")


class _OpenedOnce(Generic[T]):
    """What `warm_up` or the first `run` opens, in whichever thread, once.

    `@component` makes another class of the one that it decorates, so `super()` is of no use there.
    """

    def __post_init__(self) -> None:
        self._once = threading.Lock()
        self._found: T | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes an equal component from; a key that was given as text is refused by Haystack."""
        _, *names = inspect.signature(type(self).__init__).parameters
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` wrote."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Open the encoder and, where one is named, the collection, once.

        Raises ModelError, and for a collection DataError, MismatchError, ServerError.
        """
        self._ready()

    def _ready(self) -> T:
        with self._once:
            if self._found is None:
                self._found = self._open()
            return self._found

    def _open(self) -> T:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class _Placed(_OpenedOnce[T]):
    """Where a collection is, and how questions to it are encoded."""

    path: str | None = None
    url: str | None = None
    api_key: Secret = field(default=Secret.from_env_var("XQG_VDB_API_KEY", strict=False))
    question_lang: str | None = None
    calibration: float | None = None
    _held: Collection | None = field(default=None, init=False)

    def close(self) -> None:
        """Release the collection; the next use opens it again."""
        if self._held is not None:
            self._held.close()
        self._held = self._found = None

    def _opened(self, name: str, encoder: Encoder | None = None) -> Collection:
        store = open_store(self.path, url=self.url, api_key=self.api_key.resolve_value())
        self._held = Collection(name, store, encoder=encoder)
        return self._held


@component
@dataclass(eq=False)
class XqgTextEmbedder(_Placed[QuestionEncoder]):
    """The calibrated vector of a question, for `QdrantEmbeddingRetriever` and its like.

    encoder: a model folder or name. collection: the one that will be searched, in the folder `path` or on the server at
    `url`; its card says how to calibrate. Without one, the encoder's own calibration is used.
    question_lang: of all questions; detected for each when not given. calibration: λ, 0 to switch it off.
    """

    encoder: str = STARTER
    collection: str | None = field(default=None, kw_only=True)

    @component.output_types(embedding=list[float])
    def run(self, text: str, question_lang: str | None = None) -> dict[str, list[float]]:
        """`embedding`: the question's vector. Raises DataError when it is blank."""
        return {"embedding": question_vector(self._ready(), text, question_lang or self.question_lang)}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, question_lang: str | None = None) -> dict[str, list[float]]:
        """The same on a worker thread."""
        return await asyncio.to_thread(self.run, text, question_lang)

    def _open(self) -> QuestionEncoder:
        encoder = Encoder(self.encoder)
        if self.collection is None:
            return QuestionEncoder(encoder, calibration=self.calibration)
        try:
            return QuestionEncoder(encoder, collection=self._opened(self.collection), calibration=self.calibration)
        finally:
            self.close()


@component
@dataclass(eq=False)
class XqgDocumentEmbedder(_OpenedOnce[Encoder]):
    """Vectors for documents, from their title (`meta["title"]`, when there is one) and content.

    encoder: a model folder or name; it must be the one that the questions are encoded with.
    """

    encoder: str = STARTER

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`documents`: copies with `embedding` set, in their order. Raises DataError for one without text."""
        passages = (passage_of(document.id, document.content or "", document.meta) for document in documents)
        rows = self._ready().encode_passages(passage.title_and_text for passage in passages).tolist()
        return {"documents": [replace(text, embedding=row) for text, row in zip(documents, rows, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The same on a worker thread."""
        return await asyncio.to_thread(self.run, documents)

    def _open(self) -> Encoder:
        return Encoder(self.encoder)


@component
@dataclass(eq=False)
class XqgRetriever(_Placed[AsyncRetriever]):
    """Finds passages for questions in any language: encoding, calibration and search in one component.

    collection: as `xqg-vdb load` named it, in the folder `path` or on the server at `url` (see `open_store`), or an
    `XqgDocumentStore`, with its encoder: one process opens a folder once. encoder: the model folder or name that made
    it. top_k: documents to return. passage_langs: only passages in these. question_lang: of all questions; detected for
    each when not given. calibration: λ, 0 to switch it off. filters: only passages whose fields say so, in Haystack's
    words, of `meta.source` and the like.

    A document's id is the passage's, its meta are the passage's with `lang` and `title`.
    """

    collection: str | XqgDocumentStore
    encoder: str = field(default=STARTER, kw_only=True)
    top_k: int = field(default=10, kw_only=True)
    passage_langs: list[str] | None = field(default=None, kw_only=True)
    filters: dict[str, Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.passage_langs = passage_languages(self.passage_langs)
        _OpenedOnce.__post_init__(self)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        top_k: int | None = None,
        passage_langs: list[str] | None = None,
        question_lang: str | None = None,
        filters: dict[str, Any] | None = None,
    ) -> dict[str, list[Document]]:
        """`documents`: the best passages for the question, best first. Raises DataError when it is blank."""
        wanted = search_options(top_k, passage_langs, question_lang, _where(filters), default=self._default())
        return {"documents": [_document(hit) for hit in self._ready().retriever.search(query, **wanted)]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        top_k: int | None = None,
        passage_langs: list[str] | None = None,
        question_lang: str | None = None,
        filters: dict[str, Any] | None = None,
    ) -> dict[str, list[Document]]:
        """The same without blocking the event loop."""
        wanted = search_options(top_k, passage_langs, question_lang, _where(filters), default=self._default())
        retriever = await asyncio.to_thread(self._ready)
        return {"documents": [_document(hit) for hit in await retriever.search(query, **wanted)]}

    def _default(self) -> tuple[Any, ...]:
        return self.top_k, self.passage_langs, self.question_lang, _where(self.filters)

    def _open(self) -> AsyncRetriever:
        if isinstance(self.collection, XqgDocumentStore):
            collection = self.collection._ready().collection
            return AsyncRetriever(Retriever(collection.encoder, collection, calibration=self.calibration))
        collection = self._opened(self.collection)
        try:
            return AsyncRetriever(Retriever(Encoder(self.encoder), collection, calibration=self.calibration))
        except BaseException:
            self.close()
            raise


@dataclass(eq=False)
class XqgDocumentStore(_Placed[Documents]):
    """A collection that Haystack writes into, by `DocumentWriter` or by itself; `XqgRetriever` asks it.

    collection: its name, in the folder `path` or on the server at `url`; the first documents make it. It encodes them
    itself, by the model folder or name `encoder`: an `embedding` is neither looked at nor given back. `title` and
    `lang` of a document's meta are the passage's own; a language that is not given is detected.
    """

    collection: str = "haystack"
    encoder: str = field(default=STARTER, kw_only=True)

    def count_documents(self) -> int:
        """How many there are."""
        return self._ready().count()

    count_documents_async = on_a_thread(count_documents)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that the filters let through, up to 10,000."""
        return list(map(_stored, finish(self._ready().matching(_where(filters), most=10_000))))

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """`filter_documents` for coroutines."""
        documents = await asyncio.to_thread(self._ready)
        return list(map(_stored, await documents.matching(_where(filters), most=10_000, aside=True)))

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents; those that are there already are overwritten unless `policy` says otherwise."""
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise ValueError(f"write_documents takes a list of Documents, found {documents!r:.80}.")
        if policy in (DuplicatePolicy.FAIL, DuplicatePolicy.SKIP):
            there = {hit.id for hit in finish(self._ready().get([document.id for document in documents]))}
            if there and policy == DuplicatePolicy.FAIL:
                raise DuplicateDocumentError(f"There are documents already with the ids {', '.join(sorted(there))}.")
            documents = [document for document in documents if document.id not in there]
        self._ready().add(passage_of(document.id, document.content or "", document.meta) for document in documents)
        return len(documents)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents; those that are not there are no error."""
        self._ready().delete(document_ids)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """`write_documents` on a worker thread, as encoding computes."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """`delete_documents` on a worker thread."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    def _open(self) -> Documents:
        return Documents(self._opened(self.collection, Encoder(self.encoder)))


def language_filter(passage_langs: Sequence[str]) -> dict[str, Any]:
    """Only passages in these languages, as Haystack's document stores and retrievers take it (`filters=`).

    Raises DataError for an empty list and for what is no language code.
    """
    return {"field": LANG_KEY, "operator": "in", "value": passage_languages(passage_langs) or []}


def _where(filters: dict[str, Any] | None) -> models.Filter | None:
    """Haystack's filters as Qdrant's; its own converter knows no None, and NOT as "none of these"."""
    if not filters:
        return None
    operator, parts = filters.get("operator"), filters.get("conditions")
    if operator in ("AND", "OR", "NOT") and parts:
        inside: list[Any] = [_where(part) for part in parts]
        return (
            models.Filter(must_not=[models.Filter(must=inside)])
            if operator == "NOT"
            else models.Filter(must=inside if operator == "AND" else None, should=inside if operator == "OR" else None)
        )
    if operator in COMPARISON_OPERATORS and "field" in filters and filters.get("value", "") is None:
        missing = equal(filters["field"], None)
        return models.Filter(
            must=[missing] if operator == "==" else None if operator == "!=" else [models.HasIdCondition(has_id=[])],
            must_not=[missing] if operator == "!=" else None,
        )
    return convert_filters_to_qdrant(filters)


def _document(hit: Hit) -> Document:
    return Document(id=hit.id, content=hit.text, meta=metadata_of(hit), score=hit.score)


def _stored(hit: Hit) -> Document:
    return replace(_document(hit), meta=metadata_of(hit, known=True), score=None)
