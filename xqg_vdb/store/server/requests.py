"""What a new collection on a server is made of: vectors, graph, quantisation, shards, replicas, language index.

Also what a server is asked, and what it answers, in the client's words: for both of its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_vdb.progress import windows
from xqg_vdb.store import layout
from xqg_vdb.store.filters import as_filter
from xqg_vdb.store.layout import LANG_KEY, OVERSAMPLING, TEXT_SPARSE, CollectionOptions, Quantization
from xqg_vdb.store.server.client import Exists, Limited
from xqg_vdb.store.server.names import BULK_KEY, Names
from xqg_vdb.types import Card, QuestionRows, Search, SparseVector

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


def create(names: Names, version: str, *, card: Card, options: CollectionOptions, metadata: Mapping[str, Any]) -> None:
    """The empty collection; of two that make it at once, the second finds the first one's."""
    weighed = models.Modifier.IDF if card.bm25 is not None else None
    with suppress(Exists):
        names.create(
            version,
            lambda: names.client.create_collection(
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
            ),
        )


def prepare(names: Names, version: str, *, bulk: bool) -> None:
    """The language index, and no vector index yet in bulk mode; repeating it is harmless."""
    client, call = names.client, names.server.call
    keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
    call(lambda: client.create_payload_index(version, LANG_KEY, field_schema=keyword, wait=True))
    if not bulk:
        return
    config = call(lambda: client.get_collection(version)).config
    if not (config.metadata or {}).get(BULK_KEY):  # the threshold that the server would use is noted first
        threshold = config.optimizer_config.indexing_threshold or _USUAL_THRESHOLD
        names.write_metadata(version, {BULK_KEY: {"indexing_threshold": threshold}})
    off = models.OptimizersConfigDiff(indexing_threshold=0)
    call(lambda: client.update_collection(version, optimizers_config=off))


def search_params(search: Search, *, quantized: bool) -> models.SearchParams:
    """How to search; candidates among quantised vectors are compared again with the full ones."""
    again = models.QuantizationSearchParams(ignore=search.exact, rescore=True, oversampling=OVERSAMPLING)
    return models.SearchParams(hnsw_ef=search.ef, exact=search.exact, quantization=again if quantized else None)


def _vector_params(card: Card, options: CollectionOptions) -> models.VectorParams:
    return models.VectorParams(
        size=card.encoder.dim,
        distance=_DISTANCES[card.distance],
        on_disk=options.on_disk_vectors,
    )


def _graph(options: CollectionOptions) -> models.HnswConfigDiff | None:
    if options.hnsw_m is None and options.hnsw_ef_construct is None:
        return None
    return models.HnswConfigDiff(m=options.hnsw_m, ef_construct=options.hnsw_ef_construct)


# What a Qdrant server is asked, and what it answers.

_QUERY_BATCH = 64
_PAGE = 512


class Limits:
    """What the strict mode of a server allows, learned from its refusals; one for each store."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def most(self, what: str, wanted: int) -> int:
        """`wanted`, or less where the server said so."""
        return min(wanted, self._most.get(what, wanted))

    def learn(self, error: Limited) -> None:
        """Note what was refused, so that it is not sent again. Raises `error` when nothing can be made smaller."""
        if error.most is None or error.most < 1 or self._most.get(error.what, error.most + 1) <= error.most:
            raise error
        self._most[error.what] = error.most


def search_requests(
    questions: QuestionRows, *, limit: int, search: Search, params: models.SearchParams | None
) -> list[models.QueryRequest]:
    """One request per question for its `limit` nearest, with payloads."""
    wanted = language_filter(search.passage_langs)
    if search.where is not None:
        asked = as_filter(search.where)
        wanted = asked if wanted is None else models.Filter(must=[wanted, asked])
    ask = partial(models.QueryRequest, using=search.using, filter=wanted, params=params, limit=limit, with_payload=True)
    return [ask(query=_asked(one)) for one in questions]


def _asked(question: Any) -> list[float] | models.SparseVector:
    if isinstance(question, SparseVector):
        return models.SparseVector(indices=question.indices.tolist(), values=question.values.tolist())
    row: list[float] = question.tolist()
    return row


def batched_requests(requests: Sequence[models.QueryRequest], limits: Limits) -> list[list[models.QueryRequest]]:
    """The requests, as many at a time as one call carries, and as broad as the server allows."""
    params = requests[0].params if requests else None
    if params is not None:
        again, ef = params.quantization, params.hnsw_ef
        if again is not None and again.oversampling is not None:
            most = float(limits.most("oversampling", round(again.oversampling)))
            again = again.model_copy(update={"oversampling": most})
        ef = None if ef is None else limits.most("hnsw_ef", ef)
        params = params.model_copy(update={"hnsw_ef": ef, "quantization": again})
        requests = [request.model_copy(update={"params": params}) for request in requests]
    return list(windows(requests, limits.most("search batch size", _QUERY_BATCH)))


def found_in(answer: models.QueryResponse) -> list[layout.Found]:
    """The scores and payloads of one answer."""
    return [(point.score, {"id": str(point.id), **(point.payload or {})}) for point in answer.points]


def language_filter(langs: Sequence[str] | None) -> models.Filter | None:
    """Only passages in these languages; None for all."""
    if langs is None:
        return None
    return models.Filter(must=[models.FieldCondition(key=layout.LANG_KEY, match=models.MatchAny(any=list(langs)))])


def pages(
    client: QdrantClient,
    read: Callable[[Callable[[], Any]], Any],
    version: str,
    *,
    limits: Limits,
    page: int = _PAGE,
    after: Any = None,
    vectors: bool | list[str] = False,
    payload: bool | list[str] = True,
    wanted: models.Filter | None = None,
) -> Iterator[list[models.Record]]:
    """All points from the one with the id `after` on, a page at a time; `read` sends a request with patience."""
    offset = after
    while True:
        scroll = partial(
            client.scroll, version, scroll_filter=wanted, limit=limits.most("limit", page), offset=offset,
            with_payload=payload, with_vectors=vectors,
        )  # fmt: skip
        try:
            records, following = read(scroll)
        except Limited as error:
            limits.learn(error)
            continue
        yield records
        offset = following
        if offset is None:
            return


def exact_count(
    client: QdrantClient,
    read: Callable[[Callable[[], Any]], Any],
    version: str,
    *,
    limits: Limits,
    wanted: models.Filter | None = None,
) -> int:
    """How many points there are; where a server's strict mode forbids an exact count, they are paged through."""
    try:
        return int(read(lambda: client.count(version, count_filter=wanted, exact=True)).count)
    except Limited:
        found = pages(client, read, version, limits=limits, page=10_000, payload=False, wanted=wanted)
        return sum(map(len, found))
