"""How points travel to a server and back: as gRPC messages or JSON made of the arrays, not of the client's models.

The gate has validated what is written; to do it again, point by point, would take twice the CPU of all else. What is
found, two rankings of a hundred in a hybrid search, would take the client longer to copy than the server to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc, grpc_to_payload, payload_to_grpc
from qdrant_client.http.api.search_api import jsonable_encoder

from xqg_vdb.store.gate import Rows
from xqg_vdb.store.layout import TEXT_SPARSE, Found
from xqg_vdb.store.server.names import Names
from xqg_vdb.types import PointBatch, SparseVector, Vectors

_JSON = {"Content-Type": "application/json"}


def upserting(names: Names, version: str, rows: Rows, points: PointBatch, part: slice) -> Callable[[], str]:
    """What writes these rows into a version and returns the status. `wait` is said: what was answered is durable."""
    ids, payloads = [str(id) for id in rows.ids[part]], rows.payloads[part]
    vectors: dict[str, Any] = {name: matrix[part] for name, matrix in points.vectors.items()}
    if points.sparse is not None:
        vectors[TEXT_SPARSE] = points.sparse[part]
    client = names.client
    if client.init_options.get("prefer_grpc"):
        each = zip(*map(_wired, vectors.values()), strict=True)
        named = (grpc.NamedVectors(vectors=dict(zip(vectors, row, strict=True))) for row in each)
        structs = [
            grpc.PointStruct(
                id=grpc.PointId(uuid=id), payload=payload_to_grpc(payload), vectors=grpc.Vectors(vectors=row)
            )
            for id, payload, row in zip(ids, payloads, named, strict=True)
        ]
        upsert = grpc.UpsertPoints(collection_name=version, wait=True, points=structs)
        timeout = client.init_options["timeout"]
        return lambda: grpc.UpdateStatus.Name(client.grpc_points.Upsert(upsert, timeout).result.status).lower()
    if names.is_local:
        vectors = {name: matrix.tolist() for name, matrix in vectors.items() if name != TEXT_SPARSE}
        if points.sparse is not None:
            listed = ((row.indices.tolist(), row.values.tolist()) for row in points.sparse[part])
            vectors[TEXT_SPARSE] = [models.SparseVector(indices=at, values=values) for at, values in listed]
        local = models.Batch.model_construct(ids=ids, vectors=vectors, payloads=payloads)
        return lambda: client.upsert(version, local, wait=True).status.value
    batch = {"batch": {"ids": ids, "vectors": vectors, "payloads": payloads}}
    put: Mapping[str, Any] = {
        "url": "/collections/{name}/points", "path_params": {"name": version}, "params": {"wait": "true"},
        "headers": _JSON, "content": orjson.dumps(batch, option=orjson.OPT_SERIALIZE_NUMPY),
    }  # fmt: skip
    return lambda: str(client.http.client.request(type_=dict[str, Any], method="PUT", **put)["result"]["status"])


def _wired(rows: Vectors | list[SparseVector]) -> Iterator[grpc.Vector]:
    """Each vector for gRPC: as it lies in memory, behind its length, which takes a fifth of the time of a list."""
    if isinstance(rows, list):
        for row in rows:
            yield grpc.Vector(sparse=grpc.SparseVector(indices=row.indices.tolist(), values=row.values.tolist()))
        return
    head = grpc.DenseVector(data=rows[0].tolist()).SerializeToString()[: -4 * rows.shape[1]]
    for row in rows.astype("<f4", copy=False):
        yield grpc.Vector(dense=grpc.DenseVector.FromString(head + row.tobytes()))


class _Point(BaseModel):
    id: int | str
    score: float
    payload: dict[str, Any] | None = None


class _Ranking(BaseModel):
    points: list[_Point]


class _Rankings(BaseModel):
    result: list[_Ranking]


def querying(client: Any, version: str, asked: list[models.QueryRequest]) -> Any:
    """The answer to all of them, for `ranked`; one of a client for coroutines is awaited before."""
    if client.init_options.get("prefer_grpc"):
        queries = [RestToGrpc.convert_query_request(query, version) for query in asked]
        batch = grpc.QueryBatchPoints(collection_name=version, query_points=queries)
        return client.grpc_points.QueryBatch(batch, timeout=client.init_options["timeout"])
    if client.init_options.get("location") == ":memory:":
        return client.query_batch_points(version, asked)
    post: Mapping[str, Any] = {
        "url": "/collections/{name}/points/query/batch", "path_params": {"name": version}, "headers": _JSON,
        "content": jsonable_encoder(models.QueryRequestBatch(searches=asked)),
    }  # fmt: skip
    return client.http.client.request(type_=_Rankings, method="POST", **post)


def ranked(answer: Any) -> list[list[Found]]:
    """What was found for each query."""
    if isinstance(answer, grpc.QueryBatchResponse):
        return [
            [(p.score, {"id": p.id.uuid or str(p.id.num), **grpc_to_payload(p.payload)}) for p in found.result]
            for found in answer.result
        ]
    found = answer.result if isinstance(answer, _Rankings) else answer
    return [[(point.score, payload_in(point)) for point in ranking.points] for ranking in found]


def payload_in(point: Any) -> dict[str, Any]:
    """Its payload; where there is none of an `id` of its own, with the point's."""
    return {"id": str(point.id), **(point.payload or {})}
