"""What a new collection on a server is made of: vectors, graph, quantisation, shards, replicas, and the language index.

In: a card and options. Out: an empty collection. This file refuses to know how points get in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_vdb.batching import windows
from xqg_vdb.store import layout
from xqg_vdb.store.layout import LANG_KEY, OVERSAMPLING, TEXT_SPARSE, CollectionOptions, Quantization
from xqg_vdb.types import Card, QuestionRows, Search, SparseVector

BULK_KEY = "xqg_bulk"
"""Metadata of a version whose index waits: the threshold that the server would have used."""

_USUAL_THRESHOLD = 10_000  # kB, in case that a server names none
_DISTANCES = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT}
_ServerQuantization = (
    models.ScalarQuantization | models.ProductQuantization | models.BinaryQuantization | models.TurboQuantization
)
_QUANTIZATIONS: dict[Quantization, Callable[[], _ServerQuantization]] = {
    "scalar": lambda: models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
    ),
    "product": lambda: models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=True)
    ),
    "binary": lambda: models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    "turbo": lambda: models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4, always_ram=True)
    ),
}


def create(
    client: QdrantClient,
    version: str,
    *,
    card: Card,
    options: CollectionOptions,
    metadata: Mapping[str, Any],
    is_local: bool,
) -> None:
    """The empty collection, its language index, and no vector index yet in bulk mode; repeating it is harmless."""
    if not client.collection_exists(version):
        weighed = models.Modifier.IDF if card.bm25 is not None else None
        client.create_collection(
            version,
            vectors_config={name: _vector_params(card, options) for name in card.vectors},
            sparse_vectors_config={TEXT_SPARSE: models.SparseVectorParams(modifier=weighed)},
            shard_number=options.shards,
            replication_factor=options.replication_factor,
            write_consistency_factor=options.write_consistency,
            on_disk_payload=options.on_disk_payload,
            hnsw_config=_graph(options),
            quantization_config=None if options.quantization is None else _QUANTIZATIONS[options.quantization](),
            metadata=dict(metadata),
        )
    if is_local:  # it has no indexes, and says so each time
        return
    keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
    client.create_payload_index(version, LANG_KEY, field_schema=keyword, wait=True)
    if options.bulk:
        _defer_index(client, version)


def search_params(*, exact: bool, ef: int | None) -> models.SearchParams:
    """How to search; what is said of quantised vectors changes nothing where there are none."""
    again = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
    return models.SearchParams(hnsw_ef=ef, exact=exact, quantization=again)


def _vector_params(card: Card, options: CollectionOptions) -> models.VectorParams:
    return models.VectorParams(
        size=card.encoder.dim,
        distance=_DISTANCES[card.distance],
        on_disk=options.on_disk_vectors,
    )


def _defer_index(client: QdrantClient, version: str) -> None:
    """Index nothing until the bulk mode ends; the threshold that the server would use is noted first."""
    config = client.get_collection(version).config
    if not (config.metadata or {}).get(BULK_KEY):
        threshold = config.optimizer_config.indexing_threshold or _USUAL_THRESHOLD
        client.update_collection(version, metadata={BULK_KEY: {"indexing_threshold": threshold}})
    client.update_collection(version, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))


def _graph(options: CollectionOptions) -> models.HnswConfigDiff | None:
    if options.hnsw_m is None and options.hnsw_ef_construct is None:
        return None
    return models.HnswConfigDiff(m=options.hnsw_m, ef_construct=options.hnsw_ef_construct)


# What a Qdrant server is asked, and what it answers, in the client's words: for both of its clients.

_QUERY_BATCH = 64


def search_requests(
    questions: QuestionRows, *, limit: int, search: Search, params: models.SearchParams | None
) -> list[models.QueryRequest]:
    """One request per question for its `limit` nearest, with payloads."""
    wanted = language_filter(search.passage_langs)
    ask = partial(models.QueryRequest, using=search.using, filter=wanted, params=params, limit=limit, with_payload=True)
    return [ask(query=_asked(one)) for one in questions]


def _asked(one: Any) -> list[float] | models.SparseVector:
    if isinstance(one, SparseVector):
        return models.SparseVector(indices=one.indices.tolist(), values=one.values.tolist())
    row: list[float] = one.tolist()
    return row


def batched_requests(requests: Sequence[models.QueryRequest]) -> list[list[models.QueryRequest]]:
    """The requests, as many at a time as one call carries."""
    return list(windows(requests, _QUERY_BATCH))


def found_in(answer: models.QueryResponse) -> list[layout.Found]:
    """The scores and payloads of one answer."""
    return [(point.score, point.payload or {}) for point in answer.points]


def language_filter(langs: Sequence[str] | None) -> models.Filter | None:
    """Only passages in these languages; None for all."""
    if langs is None:
        return None
    return models.Filter(must=[models.FieldCondition(key=layout.LANG_KEY, match=models.MatchAny(any=list(langs)))])
