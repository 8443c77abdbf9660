"""How points travel to a server and back: as gRPC messages or JSON made of the arrays, not of the client's models.

The gate has validated what is written; to do it again, point by point, would take twice the CPU of all else. What is
found, two rankings of a hundred in a hybrid search, would take the client longer to copy than the server to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson
from pydantic import BaseModel
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc, grpc_to_payload, json_to_value
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
        named = zip(*(_wired(name, matrix) for name, matrix in vectors.items()), strict=True)
        structs = (
            _field(1, _field(2, id.encode())) + _entries(3, payload) + _field(4, _field(2, b"".join(row)))
            for id, payload, row in zip(ids, payloads, named, strict=True)
        )
        upsert = grpc.UpsertPoints(collection_name=version, wait=True)
        upsert.MergeFromString(b"".join(_field(3, struct) for struct in structs))
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


def _wired(name: str, rows: Vectors | list[SparseVector]) -> Iterator[bytes]:
    """Each row as an entry of `NamedVectors`: a dense one as it lies in memory."""
    key = _field(1, name.encode())
    if isinstance(rows, list):
        sparse = (grpc.SparseVector(indices=row.indices.tolist(), values=row.values.tolist()) for row in rows)
        fields = (_field(102, row.SerializeToString()) for row in sparse)
    else:
        fields = (_field(101, _field(1, row.tobytes())) for row in rows.astype("<f4", copy=False))
    return (_field(1, key + _field(2, vector)) for vector in fields)


def _entries(number: int, record: Mapping[str, Any]) -> bytes:
    """A record as a message's field of the type map<string, Value>."""
    each = (_field(1, key.encode()) + _field(2, _value(value)) for key, value in record.items())
    return b"".join(_field(number, entry) for entry in each)


def _value(value: Any) -> bytes:
    """The gRPC message `Value`, made without its objects: they take twice the time."""
    if type(value) is str:
        return _field(4, value.encode())
    if type(value) is dict:
        return _field(6, _entries(1, value))
    if type(value) is list:
        return _field(7, b"".join(_field(1, _value(one)) for one in value))
    return bytes(json_to_value(value).SerializeToString())


def _field(number: int, body: bytes) -> bytes:
    return _head(number, len(body)) + body


@lru_cache(maxsize=1 << 14)
def _head(number: int, size: int) -> bytes:
    """What stands before a field: its number with its kind, 2, and how many bytes it has, each a varint."""
    return b"".join(grpc.PointId(num=one).SerializeToString()[1:] for one in (number << 3 | 2, size))


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
