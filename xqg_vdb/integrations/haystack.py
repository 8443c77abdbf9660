"""Haystack: text and document embedders for its stores, and a retriever component (extra `haystack`).

Components are made before they are used, so the model and the store are opened by `warm_up`, or by the first `run`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from xqg_vdb.errors import MissingExtra
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import STARTER
from xqg_vdb.search.retriever import AsyncRetriever, Collection, QuestionEncoder, Retriever, passage_languages
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.types import Hit, Passage, Question

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
    from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[haystack]'") from error

T = TypeVar("T")

_KEY = Secret.from_env_var("XQG_VDB_API_KEY", strict=False)


class _OpenedOnce(Generic[T]):
    """What `warm_up` or the first `run` opens, in whichever thread, once.

    `@component` makes another class of the one that it decorates, so `super()` is of no use there.
    """

    def __init__(self) -> None:
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


@component
class XqgTextEmbedder(_OpenedOnce[QuestionEncoder]):
    """The calibrated vector of a question, for `QdrantEmbeddingRetriever` and its like.

    encoder: a model folder or name. collection: the one that will be searched, in the folder `path` or on the server at
    `url`; its card says how to calibrate. Without one, the encoder's own calibration is used.
    question_lang: of all questions; detected for each when not given. calibration: λ, 0 to switch it off.
    """

    def __init__(
        self,
        encoder: str = STARTER,
        *,
        collection: str | None = None,
        path: str | None = None,
        url: str | None = None,
        api_key: Secret = _KEY,
        question_lang: str | None = None,
        calibration: float | None = None,
    ) -> None:
        self.encoder = encoder
        self.collection = collection
        self.path = path
        self.url = url
        self.api_key = api_key
        self.question_lang = question_lang
        self.calibration = calibration
        _OpenedOnce.__init__(self)

    @component.output_types(embedding=list[float])
    def run(self, text: str, question_lang: str | None = None) -> dict[str, list[float]]:
        """`embedding`: the question's vector. Raises DataError when it is blank."""
        query = Question("0", text, question_lang or self.question_lang)
        return {"embedding": self._ready().encode([query])[0][0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, question_lang: str | None = None) -> dict[str, list[float]]:
        """The same on a worker thread."""
        return await asyncio.to_thread(self.run, text, question_lang)

    def _open(self) -> QuestionEncoder:
        encoder = Encoder(self.encoder)
        if self.collection is None:
            return QuestionEncoder(encoder, calibration=self.calibration)
        with _opened(self.collection, path=self.path, url=self.url, api_key=self.api_key) as collection:
            return QuestionEncoder(encoder, collection=collection, calibration=self.calibration)


@component
class XqgDocumentEmbedder(_OpenedOnce[Encoder]):
    """Vectors for documents, from their title (`meta["title"]`, when there is one) and content.

    encoder: a model folder or name; it must be the one that the questions are encoded with.
    """

    def __init__(self, encoder: str = STARTER) -> None:
        self.encoder = encoder
        _OpenedOnce.__init__(self)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`documents`: copies with `embedding` set, in their order. Raises DataError for one without text."""
        vectors = self._ready().encode_passages(map(_text, documents)).tolist()
        return {"documents": [replace(one, embedding=row) for one, row in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The same on a worker thread."""
        return await asyncio.to_thread(self.run, documents)

    def _open(self) -> Encoder:
        return Encoder(self.encoder)


@component
class XqgRetriever(_OpenedOnce[AsyncRetriever]):
    """Finds passages for questions in any language: encoding, calibration and search in one component.

    collection: as `xqg-vdb load` named it, in the folder `path` or on the server at `url` (see `open_store`).
    encoder: the model folder or name that made it. top_k: documents to return. passage_langs: only passages in these.
    question_lang: of all questions; detected for each when not given. calibration: λ, 0 to switch it off. filters: only
    passages whose fields say so, in Haystack's words, of `meta.source` and the like.

    A document's id is the passage's, its meta are the passage's with `lang` and `title`.
    """

    def __init__(
        self,
        collection: str,
        *,
        encoder: str = STARTER,
        path: str | None = None,
        url: str | None = None,
        api_key: Secret = _KEY,
        top_k: int = 10,
        passage_langs: list[str] | None = None,
        question_lang: str | None = None,
        calibration: float | None = None,
        filters: dict[str, Any] | None = None,
    ) -> None:
        self.collection = collection
        self.encoder = encoder
        self.path = path
        self.url = url
        self.api_key = api_key
        self.filters = filters
        self.top_k = top_k
        self.passage_langs = passage_languages(passage_langs)
        self.question_lang = question_lang
        self.calibration = calibration
        _OpenedOnce.__init__(self)

    def close(self) -> None:
        """Release the collection; the next `run` opens it again."""
        if self._found is not None:
            self._found.retriever.collection.close()
            self._found = None

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
        hits = self._ready().retriever.search(query, **self._wishes(top_k, passage_langs, question_lang, filters))
        return {"documents": [_document(hit) for hit in hits]}

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
        retriever = await asyncio.to_thread(self._ready)
        hits = await retriever.search(query, **self._wishes(top_k, passage_langs, question_lang, filters))
        return {"documents": [_document(hit) for hit in hits]}

    def _wishes(
        self, top_k: int | None, passage_langs: list[str] | None, question_lang: str | None, filters: Any
    ) -> dict[str, Any]:
        """The arguments of a search: what the call says, else what the component was made with."""
        return {
            "k": self.top_k if top_k is None else top_k,
            "passage_langs": self.passage_langs if passage_langs is None else passage_langs,
            "question_lang": question_lang or self.question_lang,
            "where": convert_filters_to_qdrant(filters or self.filters),
        }

    def _open(self) -> AsyncRetriever:
        collection = _opened(self.collection, path=self.path, url=self.url, api_key=self.api_key)
        try:
            return AsyncRetriever(Retriever(Encoder(self.encoder), collection, calibration=self.calibration))
        except BaseException:
            collection.close()
            raise


def language_filter(passage_langs: Sequence[str]) -> dict[str, Any]:
    """Only passages in these languages, as Haystack's document stores and retrievers take it (`filters=`).

    Raises DataError for an empty list and for what is no language code.
    """
    return {"field": LANG_KEY, "operator": "in", "value": passage_languages(passage_langs) or []}


def _opened(name: str, *, path: str | None, url: str | None, api_key: Secret) -> Collection:
    return Collection(name, open_store(path, url=url, api_key=api_key.resolve_value()))


def _text(document: Document) -> str:
    title = document.meta.get("title")
    return Passage(document.id, document.content or "", title=title if isinstance(title, str) else "").title_and_text


def _document(hit: Hit) -> Document:
    meta = {**hit.meta, "lang": hit.lang, "title": hit.title}
    return Document(id=hit.id, content=hit.text, meta=meta, score=hit.score)
