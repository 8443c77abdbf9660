"""LlamaIndex: `XqgEmbedding` for its vector stores, `XqgRetriever` for its query engines (extra `llama-index`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.errors import MissingExtra
from xqg_vdb.search.collection import Collection
from xqg_vdb.search.retriever import AsyncRetriever, QuestionEncoder, Retriever, passage_languages
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.types import Hit, Question

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[llama-index]'") from error


class XqgEmbedding(BaseEmbedding):
    """Vectors for LlamaIndex's stores; questions are calibrated for their language. Threads may share it.

    collection: the collection that will be searched, whose card says how to calibrate; without one, the encoder's own
    calibration is used. question_lang: of all questions; detected for each when not given.
    calibration: λ in place of the recommended one, 0 to switch it off. embed_batch_size: texts handed over at a time.
    Raises MismatchError when the collection was made by another encoder.
    """

    question_lang: str | None = None
    _encoder: CalibratedEncoder = PrivateAttr()
    _queries: QuestionEncoder = PrivateAttr()

    def __init__(
        self,
        encoder: CalibratedEncoder,
        *,
        collection: Collection | None = None,
        question_lang: str | None = None,
        calibration: float | None = None,
        embed_batch_size: int = 512,
    ) -> None:
        super().__init__(model_name=encoder.facts.source, embed_batch_size=embed_batch_size)
        self.question_lang = question_lang
        self._encoder = encoder
        self._queries = QuestionEncoder(encoder, collection=collection, calibration=calibration)

    @classmethod
    def class_name(cls) -> str:
        """The name by which LlamaIndex reports it."""
        return "XqgEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = self._queries.encode([Question("0", query, self.question_lang)]).vectors[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = self._encoder.encode_passages(texts).tolist()
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class XqgRetriever(BaseRetriever):
    """Finds passages for questions in any language; `aretrieve` blocks no event loop.

    retriever: a ready `Retriever`. similarity_top_k: nodes to return. passage_langs: only passages in these languages.
    question_lang: of all questions; detected for each when not given.

    A node's id is the passage's, its metadata are the passage's with `lang` and `title`.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        similarity_top_k: int = 10,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        wanted = {
            "k": similarity_top_k,
            "passage_langs": passage_languages(passage_langs),
            "question_lang": question_lang,
        }
        self._wanted: dict[str, Any] = wanted
        self._retriever = retriever
        self._async = AsyncRetriever(retriever)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(map(_node, self._retriever.search(query_bundle.query_str, **self._wanted)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(map(_node, await self._async.search(query_bundle.query_str, **self._wanted)))


def language_filter(passage_langs: Sequence[str]) -> MetadataFilters:
    """Only passages in these languages, as LlamaIndex's `as_retriever(filters=...)` and its stores take it.

    Raises DataError for an empty list and for what is no language code.
    """
    wanted = passage_languages(passage_langs) or []
    return MetadataFilters(filters=[MetadataFilter(key=LANG_KEY, operator=FilterOperator.IN, value=wanted)])


def _node(hit: Hit) -> NodeWithScore:
    metadata = {**hit.meta, "lang": hit.lang, "title": hit.title}
    return NodeWithScore(node=TextNode(id_=hit.id, text=hit.text, metadata=metadata), score=hit.score)
