"""LangChain: embeddings for its stores, a retriever for its chains, a store that it writes into (extra `langchain`)."""

# The base classes take any keyword; ours take the known ones, so that a misspelt one is an error.
# mypy: disable-error-code="override"

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from qdrant_client import models

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.integrations import Documents, metadata_of, passage_of, question_vector, search_options
from xqg_vdb.search import QuestionEncoder, passage_languages
from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
from xqg_vdb.store import open_store
from xqg_vdb.store.filters import equal
from xqg_vdb.store.layout import LANG_KEY, check_hybrid
from xqg_vdb.store.operations import finish
from xqg_vdb.types import Hit, Passage, Question, Search

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from pydantic import Field, PrivateAttr
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[langchain]'") from error


class XqgEmbeddings(Embeddings):
    """Vectors for LangChain's stores; questions are calibrated for their language. Threads may share it.

    collection: the collection that will be searched, whose card says how to calibrate; without one, the encoder's own
    calibration is used. question_lang: of all questions; detected for each when not given.
    calibration: λ in place of the recommended one, 0 to switch it off. `model` names what passages' vectors depend on;
    give it to a `CacheBackedEmbeddings` as its `namespace`.
    Raises MismatchError when the collection was made by another encoder.
    """

    def __init__(
        self,
        encoder: TextEncoder | str | Path,
        *,
        collection: Collection | None = None,
        question_lang: str | None = None,
        calibration: float | None = None,
    ) -> None:
        self._queries = QuestionEncoder(encoder, collection=collection, calibration=calibration)
        self.encoder = encoder = self._queries.encoder
        facts = encoder.facts
        self.model = f"{facts.source}-{facts.fingerprint}-{getattr(encoder, 'max_length', facts.max_length)}"
        self.question_lang = question_lang

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector of `encoder.facts.dim` floats per passage. Raises DataError for a blank text."""
        vectors: list[list[float]] = self.encoder.encode_passages(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The calibrated vector of one question. Raises DataError when it is blank."""
        return question_vector(self._queries, text, self.question_lang)


class XqgRetriever(BaseRetriever):
    """Finds passages for questions in any language; `ainvoke` blocks no event loop.

    retriever: a ready `Retriever`. k: documents to return. passage_langs: only passages in these languages.
    question_lang: of all questions; detected for each when not given. filter: Qdrant's `models.Filter`, or a dict as
    `Retriever.search` takes for `where`. All but the first may be given to `invoke`, too.

    A document's id is the passage's, its metadata are the passage's with `lang`, `title` and `_score`.
    """

    retriever: Retriever
    k: int = Field(default=10, ge=1)
    passage_langs: list[str] | None = None
    question_lang: str | None = None
    filter: models.Filter | dict[str, Any] | None = None
    _async: AsyncRetriever = PrivateAttr()

    def model_post_init(self, context: object, /) -> None:
        """Make the asynchronous twin; it opens nothing before it is used."""
        super().model_post_init(context)
        self._async = AsyncRetriever(self.retriever)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        filter: models.Filter | dict[str, Any] | None = None,
    ) -> list[Document]:
        wanted = search_options(k, passage_langs, question_lang, filter, default=self._default())
        return [_document(hit) for hit in self.retriever.search(query, **wanted)]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        filter: models.Filter | dict[str, Any] | None = None,
    ) -> list[Document]:
        wanted = search_options(k, passage_langs, question_lang, filter, default=self._default())
        return [_document(hit) for hit in await self._async.search(query, **wanted)]

    def _default(self) -> tuple[Any, ...]:
        return self.k, self.passage_langs, self.question_lang, self.filter


def _searching(made: Callable[[Hit], Any]) -> Any:
    """A search of the store and its twin for coroutines; made: what stands for a hit."""

    def asked(query: str, k: int, where: Any, langs: Sequence[str] | None, lang: str | None) -> tuple[Question, Search]:
        return Question("0", query, lang), Search(k, langs, where=where or None)

    def search(
        self: XqgVectorStore,
        query: str,
        k: int = 4,
        filter: models.Filter | dict[str, Any] | None = None,
        *,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
    ) -> list[Any]:
        """The k best documents, with their scores where the name says so, for a question in any language."""
        question = asked(query, k, filter, passage_langs, question_lang)
        return list(map(made, finish(self.documents.search(*question))))

    async def asearch(
        self: XqgVectorStore,
        query: str,
        k: int = 4,
        filter: models.Filter | dict[str, Any] | None = None,
        *,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
    ) -> list[Any]:
        """The same for coroutines."""
        question = asked(query, k, filter, passage_langs, question_lang)
        return list(map(made, await self.documents.search(*question, aside=True)))

    return search, asearch


class XqgVectorStore(VectorStore):
    """A collection that LangChain writes into and asks; its indexing API (`index(docs, record_manager, …)`) may, too.

    collection: `Collection(name, open_store(…), encoder=…)`; the first documents make it when it is not there. `title`
    and `lang` of a document's metadata are the passage's own; a language that is not given is detected and, where that
    is sure, comes back in the metadata. Searches take `filter` (Qdrant's `models.Filter`, or a dict as
    `Retriever.search` takes for `where`), `passage_langs` and `question_lang`. Coroutines ask a server without threads;
    what writes runs on one, as encoding computes.
    """

    def __init__(self, collection: Collection) -> None:
        self.documents = Documents(collection)

    @property
    def embeddings(self) -> XqgEmbeddings:
        """The collection's encoder, calibrated as in itself."""
        made = self.documents.collection if self.documents.asked() is not None else None
        return XqgEmbeddings(self.documents.collection.encoder, collection=made)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        collection: str = "langchain",
        path: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> XqgVectorStore:
        """A collection in the folder `path` or on the server at `url` with these texts; embedding: `XqgEmbeddings`."""
        if not isinstance(embedding, XqgEmbeddings):
            raise DataError(f"Give XqgEmbeddings(encoder), which tells questions from passages, not {embedding!r:.80}.")
        store = open_store(path, url=url, api_key=api_key)
        made = cls(Collection(collection, store, encoder=embedding.encoder))
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Add texts, or replace those of their ids; returns the ids, new ones where none was given.

        batch_size: what the indexing API says; not looked at.
        """
        texts = list(texts)
        made = [docid or str(uuid4()) for docid in ([None] * len(texts) if ids is None else ids)]
        each = zip(made, texts, metadatas or [{} for _ in texts], strict=True)
        self.documents.add(passage_of(docid, text, metadata) for docid, text, metadata in each)
        return made

    def delete(self, ids: list[str] | None = None) -> bool:
        """Delete documents; without ids, all."""
        self.documents.delete(self.documents.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those of the documents that are there; of a collection in chunks, whole."""
        return list(map(_stored, finish(self.documents.get(ids))))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """`get_by_ids` for coroutines."""
        return list(map(_stored, await self.documents.get(ids, aside=True)))

    similarity_search, asimilarity_search = _searching(lambda hit: _stored(hit))
    similarity_search_with_score, asimilarity_search_with_score = _searching(lambda hit: (_stored(hit), hit.score))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: models.Filter | dict[str, Any] | None = None
    ) -> list[Document]:
        """The k best documents for one vector, such as one of `embeddings.embed_query`."""
        return list(map(_stored, finish(self.documents.nearest(embedding, Search(k, where=filter or None)))))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: models.Filter | dict[str, Any] | None = None
    ) -> list[Document]:
        """`similarity_search_by_vector` for coroutines."""
        return list(map(_stored, await self.documents.nearest(embedding, Search(k, where=filter or None), aside=True)))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: (1.0 + score) / 2.0  # a cosine


def sparse_embeddings(collection: Collection) -> Any:
    """The words of a hybrid collection, for `langchain_qdrant.QdrantVectorStore` (`sparse_embedding=`) in hybrid mode.

    Its `sparse_vector_name` is "text-sparse". Raises MismatchError when the collection was not loaded with --hybrid.
    """
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector

    from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

    words = WordWriter(check_hybrid(collection.card, name=collection.name))

    class Words(SparseEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[SparseVector]:
            return [_sparse(words.document(Passage("", text))) for text in texts]

        def embed_query(self, text: str) -> SparseVector:
            return _sparse(words.question(text))

    def _sparse(tokens: Any) -> SparseVector:
        return SparseVector(indices=tokens.indices.tolist(), values=tokens.values.tolist())

    return Words()


def language_filter(passage_langs: Sequence[str]) -> models.Filter:
    """Only passages in these languages, as `langchain_qdrant.QdrantVectorStore` takes it (`filter=`).

    Raises DataError for an empty list and for what is no language code.
    """
    return models.Filter(must=[equal(LANG_KEY, passage_languages(passage_langs) or [])])


def _document(hit: Hit) -> Document:
    return Document(page_content=hit.text, metadata={**metadata_of(hit), "_score": hit.score}, id=hit.id)


def _stored(hit: Hit) -> Document:
    return Document(page_content=hit.text, metadata=metadata_of(hit, known=True), id=hit.id)
