"""LangChain: `XqgEmbeddings` for its vector stores, `XqgRetriever` for its chains (extra `langchain`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdrant_client import models

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import MissingExtra
from xqg_vdb.integrations import metadata_of, question_vector, search_options
from xqg_vdb.search.retriever import AsyncRetriever, Collection, QuestionEncoder, Retriever, passage_languages
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.types import Hit

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
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


def language_filter(passage_langs: Sequence[str]) -> models.Filter:
    """Only passages in these languages, as `langchain_qdrant.QdrantVectorStore` takes it (`filter=`).

    Raises DataError for an empty list and for what is no language code.
    """
    return models.Filter(
        must=[models.FieldCondition(key=LANG_KEY, match=models.MatchAny(any=passage_languages(passage_langs) or []))]
    )


def _document(hit: Hit) -> Document:
    return Document(page_content=hit.text, metadata={**metadata_of(hit), "_score": hit.score}, id=hit.id)
