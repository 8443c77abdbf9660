"""LlamaIndex: an embedding for its stores, a retriever, a store that it writes into (extra `llama-index`)."""

# The base classes take any keyword; ours take the known ones, so that a misspelt one is an error.
# mypy: disable-error-code="override"

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdrant_client import models

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.integrations import Documents, metadata_of, on_a_thread, passage_of, question_vector
from xqg_vdb.search import QuestionEncoder, passage_languages
from xqg_vdb.search.retriever import AsyncRetriever, Collection, Retriever
from xqg_vdb.store.filters import between, equal, payload_path
from xqg_vdb.store.layout import LANG_KEY
from xqg_vdb.store.operations import finish
from xqg_vdb.types import Hit, Question, Search

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        ExactMatchFilter,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
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

    _aget_query_embedding = on_a_thread(_get_query_embedding)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    _aget_text_embedding = on_a_thread(_get_text_embedding)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = self._encoder.encode_passages(texts).tolist()
        return vectors

    _aget_text_embeddings = on_a_thread(_get_text_embeddings)


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


class XqgVectorStore(BasePydanticVectorStore):
    """A collection that LlamaIndex writes into and asks, its indexes and its ingestion pipelines alike.

    collection: `Collection(name, open_store(…), encoder=…)`; the first nodes make it when it is not there. It encodes
    nodes and questions itself: the embedding of a node is not looked at, and an index may be given `MockEmbedding(1)`.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    _documents: Documents = PrivateAttr()

    def __init__(self, collection: Collection) -> None:
        super().__init__(stores_text=True)
        self._documents = Documents(collection)

    @property
    def client(self) -> Collection:
        """The collection."""
        return self._documents.collection

    def add(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Add nodes, or replace those of their ids; returns the ids."""
        self._documents.add(
            passage_of(node.node_id, node.get_content(MetadataMode.NONE), node_to_metadata_dict(node, remove_text=True))
            for node in nodes
        )
        return [node.node_id for node in nodes]

    async_add = on_a_thread(add)

    def delete(self, ref_doc_id: str) -> None:
        """Delete the nodes of a document."""
        self._documents.delete_matching(models.Filter(must=[equal(payload_path("ref_doc_id"), ref_doc_id)]))

    adelete = on_a_thread(delete)

    def delete_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> None:
        """Delete nodes by their ids, by filters, or those of the ids that the filters let through."""
        if (where := self._where(node_ids, None, filters)) is not None:
            self._documents.delete_matching(where)

    async def adelete_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> None:
        """The same on a worker thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by ids and filters, up to 10,000."""
        return list(map(_stored, finish(self._documents.matching(self._where(node_ids, None, filters), most=10_000))))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes` for coroutines."""
        where = await asyncio.to_thread(self._where, node_ids, None, filters)
        return list(map(_stored, await self._documents.matching(where, most=10_000, aside=True)))

    def clear(self) -> None:
        """Delete all nodes."""
        self._documents.delete(self._documents.ids())

    aclear = on_a_thread(clear)

    def query(self, query: VectorStoreQuery) -> VectorStoreQueryResult:
        """The best nodes for a question in any language, or for a vector where there is no text."""
        return finish(self._asked(query, self._search(query)))

    async def aquery(self, query: VectorStoreQuery) -> VectorStoreQueryResult:
        """`query` for coroutines."""
        return await self._asked(query, await asyncio.to_thread(self._search, query), aside=True)

    async def _asked(self, query: VectorStoreQuery, search: Search, *, aside: bool = False) -> VectorStoreQueryResult:
        if query.query_str is None and query.query_embedding is not None:
            hits = await self._documents.nearest(query.query_embedding, search, aside=aside)
        else:
            hits = await self._documents.search(Question("0", query.query_str or ""), search, aside=aside)
        nodes, scores = list(map(_stored, hits)), [hit.score for hit in hits]
        return VectorStoreQueryResult(nodes=nodes, similarities=scores, ids=[hit.id for hit in hits])

    def _search(self, query: VectorStoreQuery) -> Search:
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise DataError(f"A collection is asked in the mode 'default', not {query.mode.value!r}.")
        return Search(query.similarity_top_k, where=self._where(query.node_ids, query.doc_ids, query.filters))

    def _where(
        self, node_ids: Sequence[str] | None, doc_ids: Sequence[str] | None, filters: MetadataFilters | None
    ) -> models.Filter | None:
        must: list[Any] = [self._documents.with_ids(node_ids)] if node_ids else []  # an index gives [] for all
        must += [] if not doc_ids else [equal(payload_path("ref_doc_id"), list(doc_ids))]
        must += [] if filters is None or not filters.filters else [qdrant_filter(filters)]
        return models.Filter(must=must) if must else None


def _stored(hit: Hit) -> BaseNode:
    """The node as it was written; passages that came otherwise are nodes, too."""
    written = metadata_dict_to_node(dict(hit.meta), hit.text) if "_node_content" in hit.meta else None
    return written or TextNode(id_=hit.id, text=hit.text, metadata=metadata_of(hit, known=True))


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
