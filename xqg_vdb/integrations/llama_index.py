"""LlamaIndex: `XqgEmbedding` for its vector stores, `XqgRetriever` for its query engines (extra `llama-index`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdrant_client import models

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.integrations import metadata_of, question_vector
from xqg_vdb.search.retriever import AsyncRetriever, Collection, QuestionEncoder, Retriever, passage_languages
from xqg_vdb.store.filters import between, equal, payload_path
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.types import Hit

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import ExactMatchFilter
except ImportError as error:
    raise MissingExtra(f"{error}: pip install 'xqg-vdb[llama-index]'") from error


class XqgEmbedding(BaseEmbedding):
    """Vectors for LlamaIndex's stores; questions are calibrated for their language. Threads may share it.

    collection: the collection that will be searched, whose card says how to calibrate; without one, the encoder's own
    calibration is used. question_lang: of all questions; detected for each when not given.
    calibration: λ in place of the recommended one, 0 to switch it off. embed_batch_size: texts handed over at a time.
    Raises MismatchError when the collection was made by another encoder.

    It can be pickled, for the workers of an ingestion pipeline, whose cache is keyed by all that its vectors depend on.
    """

    question_lang: str | None = None
    fingerprint: str = ""
    max_length: int = 0
    _encoder: TextEncoder = PrivateAttr()
    _queries: QuestionEncoder = PrivateAttr()

    def __init__(
        self,
        encoder: TextEncoder | str | Path,
        *,
        collection: Collection | None = None,
        question_lang: str | None = None,
        calibration: float | None = None,
        embed_batch_size: int = 512,
    ) -> None:
        queries = QuestionEncoder(encoder, collection=collection, calibration=calibration)
        encoder = queries.encoder
        super().__init__(model_name=encoder.facts.source, embed_batch_size=embed_batch_size)
        self.question_lang = question_lang
        facts = encoder.facts
        self.fingerprint, self.max_length = facts.fingerprint, getattr(encoder, "max_length", facts.max_length)
        self._encoder = encoder
        self._queries = queries

    @classmethod
    def class_name(cls) -> str:
        """The name by which LlamaIndex reports it."""
        return "XqgEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return question_vector(self._queries, query, self.question_lang)

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
    question_lang: of all questions; detected for each when not given. filters: only passages whose fields say so.

    A node's id is the passage's, its metadata are the passage's with `lang` and `title`.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        similarity_top_k: int = 10,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._wanted: dict[str, Any] = {
            "k": similarity_top_k,
            "passage_langs": passage_languages(passage_langs),
            "question_lang": question_lang,
            "where": None if filters is None else qdrant_filter(filters),
        }
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


_PARTS = {FilterCondition.AND: "must", FilterCondition.OR: "should", FilterCondition.NOT: "must_not"}


def qdrant_filter(filters: MetadataFilters) -> models.Filter:
    """LlamaIndex's filters as Qdrant's, over passages' fields. Raises DataError for an operator that Qdrant lacks."""
    conditions = [
        qdrant_filter(part) if isinstance(part, MetadataFilters) else _condition(part) for part in filters.filters
    ]
    parts: dict[str, Any] = {_PARTS[filters.condition or FilterCondition.AND]: conditions}
    return models.Filter(**parts)


def _condition(part: MetadataFilter | ExactMatchFilter) -> models.Condition:
    path, wanted, operator = payload_path(part.key), part.value, part.operator
    if operator in (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE):
        return between(path, {operator.name.lower(): wanted})
    if operator in (FilterOperator.EQ, FilterOperator.IN, FilterOperator.ANY, FilterOperator.CONTAINS):
        return equal(path, wanted)
    if operator in (FilterOperator.NE, FilterOperator.NIN):
        return models.Filter(must_not=[equal(path, wanted)])
    if operator == FilterOperator.ALL and isinstance(wanted, list):
        return models.Filter(must=[equal(path, value) for value in wanted])
    if operator == FilterOperator.IS_EMPTY:
        return equal(path, None)
    if operator == FilterOperator.TEXT_MATCH:
        return models.FieldCondition(key=path, match=models.MatchText(text=str(wanted)))
    raise DataError(f"A collection cannot be filtered by the operator {operator.value!r} (field {part.key!r}).")


def _node(hit: Hit) -> NodeWithScore:
    return NodeWithScore(node=TextNode(id_=hit.id, text=hit.text, metadata=metadata_of(hit)), score=hit.score)
