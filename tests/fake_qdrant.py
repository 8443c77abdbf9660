"""A loopback HTTP server that speaks enough of Qdrant's REST interface, and misbehaves as it is told.

Points are kept by qdrant-client's in-memory mode; statuses, keys and words of the answers are those of a real server
1.19.0 (`test_stand_in_contract.py` replays what that answered). `faults` are used up one per request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import uuid
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.local.local_collection import LocalCollection


def _as_if_new(update):
    """That engine divides a vector by its length in float64 where a point was there before: a server, always alike."""

    def updated(self, point):
        if isinstance(point.vector, dict):
            point.vector = {
                key: np.array(row, np.float32) if isinstance(row, list) and not isinstance(row[0], list) else row
                for key, row in point.vector.items()
            }
        return update(self, point)

    return updated


LocalCollection._update_point = _as_if_new(LocalCollection._update_point)


class Fault:
    """What happens to one request instead of, or after, being carried out. `only`: the method and path it is for."""

    def __init__(self, status=None, *, headers=None, body=b"", only="", applied=False, result=None):
        self.status = status  # None: the connection is reset
        self.headers = headers or {}
        self.body = body
        self.only = only
        self.applied = applied
        self.result = result  # a success with this result instead of the true one


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that are opened at the same moment


class FakeQdrant:
    """Context manager; `url`, `requests` [(method, path)], `keys` (the api-key headers seen), `faults`.

    created: the body of every PUT that made a collection. thresholds: the indexing threshold of each.
    building: what the next looks at a collection whose threshold is not 0 say, as (status, indexed vectors).
    refused: ids of passages whose points it refuses. at_once: the most upserts that were under way together.
    together: the first upsert waits until so many are under way.
    grey: collections whose optimizers sleep since a restart, until a change of their parameters. shards: what
    /cluster says of a collection, when it is not one active shard. strict: limits by the name that a refusal has.
    before: called with method and path before a request is carried out.
    """

    def __init__(self, threshold=10_000):
        self.client = QdrantClient(":memory:")
        self.threshold = threshold
        self.indexes: dict[str, set[str]] = {}
        self.grey: set[str] = set()
        self.shards: dict[str, list[dict]] = {}
        self.strict: dict[str, float] = {}
        self.searches: list[dict] = []
        self.query = ""
        self.actions: list[list[dict]] = []
        self.before = lambda method, path: None
        self.created: dict[str, dict] = {}
        self.thresholds: dict[str, int] = {}
        self.building: list[tuple[str, int]] = []
        self.refused: set[str] = set()
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.together = 1
        self.under_way = self.at_once = 0
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        self.largest = 1 << 40
        self._one_at_a_time = threading.Lock()
        self._counting = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()
        self.client.close()

    def count(self, method, ending):
        return sum(one == method and path.endswith(ending) for one, path in self.requests)

    @contextlib.contextmanager
    def one_more(self, method, path):
        """Counts the upserts that are under way."""
        if method != "PUT" or not path.endswith("/points"):
            yield
            return
        with self._counting:
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
            self._counting.notify_all()
            self._counting.wait_for(lambda: self.at_once >= self.together)
        yield
        with self._counting:
            self.under_way -= 1

    def answer(self, method, path, body):
        """(status, headers, body), or None for a reset connection."""
        with self._one_at_a_time:
            self.before(method, path)
            self.requests.append((method, path))
            fault = next((one for one in self.faults if re.search(one.only, f"{method} {path}")), None)
            if fault:
                self.faults.remove(fault)
                if fault.applied or fault.result is not None:
                    self._carry_out(method, path, body)
                if fault.result is None:
                    return fault.status and (fault.status, fault.headers, fault.body)
                return self._reply(200, fault.result)
            if len(body) > self.largest:
                said = f"JSON payload ({len(body)} bytes) is larger than allowed (limit: {self.largest} bytes)"
                return self._reply(400, error=f"Payload error: {said}.")
            return self._carry_out(method, path, body)

    def _carry_out(self, method, path, body):
        try:
            record = body if path.endswith("/snapshots/upload") else json.loads(body) if body else {}
        except ValueError:
            said = f"EOF while parsing a list at line 1 column {len(body)}"
            return self._reply(400, error=f"Format error in JSON body: {said}")
        if path == "/":
            return 200, {}, b'{"title":"qdrant - vector search engine","version":"1.19.0","commit":""}'
        if method == "GET" and "/snapshots/" in path:
            return self._snapshot_file(path)
        for pattern, call in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        return self._reply(200, call(self, record, *map(unquote, found.groups())))
                except Refusal as refusal:
                    return self._reply(refusal.status, error=str(refusal))
                except ValueError as error:
                    return self._reply(400, error=f"Wrong input: {error}")
        return 404, {}, b""

    def _snapshot_file(self, path):
        _, _, collection, _, name = map(unquote, path.split("/"))
        content = self.snapshots.get(collection, {}).get(name)
        return (404, {}, f"Not found: Snapshot {name} not found".encode()) if content is None else (200, {}, content)

    @staticmethod
    def _reply(status, result=None, *, error=None):
        record = {"result": result, "status": "ok"} if error is None else {"status": {"error": error}}
        return status, {}, json.dumps({**record, "time": 0.0}).encode()

    def _handler(fake):  # the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body that waits for the header's acknowledgement costs 40 ms

            def log_message(self, *arguments):
                pass

            def _any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.keys.add(self.headers.get("api-key"))
                fake.query, path = urlsplit(self.path).query, urlsplit(self.path).path
                with fake.one_more(self.command, path):
                    reply = fake.answer(self.command, path, body)
                if reply is None:
                    self.close_connection = True
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                status, headers, content = reply
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def finish(self):
                with contextlib.suppress(OSError):
                    super().finish()

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _any

        return Handler


class Refusal(Exception):
    """A status and the server's words."""

    def __init__(self, status, said):
        super().__init__(said)
        self.status = status


def _json(value):
    """As the server writes it: what is not there is left out, not null."""
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


def _physical(fake, name):
    """The collection that `name` is or stands for."""
    real = _behind(fake).get(name, name)
    if real not in {one.name for one in fake.client.get_collections().collections}:
        raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
    return real


def _behind(fake):
    return {one.alias_name: one.collection_name for one in fake.client.get_aliases().aliases}


def _create(fake, record, name):
    if "/" in name:
        said = 'collection_name: collection name cannot contain "/" char'
        raise Refusal(422, f"Validation error in path parameters: [{said}]")
    for key in ("shard_number", "replication_factor", "write_consistency_factor"):
        if record.get(key) == 0:
            raise Refusal(422, f"Validation error in JSON body: [{key}: value 0 invalid, must be 1 or larger]")
    try:
        config = models.CreateCollection(**{key: record[key] for key in record if key != "nonsense"})
        sizes = [params.size for params in (config.vectors or {}).values()] if isinstance(config.vectors, dict) else []
        if 0 in sizes:
            raise ValueError
    except ValueError:
        said = "data did not match any variant of untagged enum VectorsConfig at line 1 column 53"
        raise Refusal(400, f"Format error in JSON body: {said}") from None
    if name in {one.name for one in fake.client.get_collections().collections}:
        raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
    if name in _behind(fake):
        said = f"Can't create collection with name {name}. Alias with the same name already exists"
        raise Refusal(400, f"Wrong input: {said}")
    fake.created[name], fake.thresholds[name], fake.indexes[name] = record, fake.threshold, set()
    return fake.client.create_collection(
        name,
        vectors_config=config.vectors,
        sparse_vectors_config=config.sparse_vectors,
        metadata=config.metadata,
    )


def _look(fake, record, name):
    name = _physical(fake, name)
    made, info, points = fake.created[name], _json(fake.client.get_collection(name)), fake.client.count(name).count
    params = {
        "vectors": made["vectors"],
        "shard_number": made.get("shard_number") or 1,
        "replication_factor": made.get("replication_factor") or 1,
        "write_consistency_factor": made.get("write_consistency_factor") or 1,
        "on_disk_payload": made.get("on_disk_payload") is not False,
    }
    if made.get("sparse_vectors"):
        params["sparse_vectors"] = made["sparse_vectors"]
    graph = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0, "on_disk": False}
    config = {
        "params": params,
        "hnsw_config": {**graph, **(made.get("hnsw_config") or {})},
        "optimizer_config": {
            "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
            "max_segment_size": None, "memmap_threshold": None, "indexing_threshold": fake.thresholds[name],
            "flush_interval_sec": 5, "max_optimization_threads": None, "prevent_unoptimized": None,
        },
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
        "quantization_config": made.get("quantization_config"),
    }  # fmt: skip
    if info["config"].get("metadata") is not None:
        # a key that was set to null is gone; the client's own engine keeps it before 1.19
        config["metadata"] = {key: value for key, value in info["config"]["metadata"].items() if value is not None}
    status, indexed = ("grey", 0) if name in fake.grey else ("green", 0)
    if fake.thresholds[name] and fake.building and points:
        status, indexed = fake.building.pop(0)
    keyword = {"data_type": "keyword", "params": {"type": "keyword"}, "points": points}
    return {
        "status": status, "optimizer_status": "ok", "indexed_vectors_count": indexed, "points_count": points,
        "segments_count": 2, "config": config, "payload_schema": dict.fromkeys(fake.indexes[name], keyword),
        "update_queue": {"length": 0},
    }  # fmt: skip


def _update(fake, record, name):
    name = _physical(fake, name)
    if threshold := record.get("optimizers_config"):
        fake.thresholds[name] = threshold["indexing_threshold"]
        fake.grey.discard(name)
    return fake.client.update_collection(name, metadata=record["metadata"]) if record.get("metadata") else True


def _delete(fake, record, name):
    """An alias is not followed; snapshots stay on the disk, and are seen again with a collection of that name."""
    if name in {one.name for one in fake.client.get_collections().collections}:
        fake.client.delete_collection(name)
        return True
    return False


def _index(fake, record, name):
    fake.indexes[_physical(fake, name)].add(record["field_name"])
    return DONE


def _dimensions(fake, name):
    return {key: params["size"] for key, params in fake.created[name]["vectors"].items() if isinstance(params, dict)}


def _check_rows(fake, name, vector, rows):
    sizes = _dimensions(fake, name)
    if "size" in fake.created[name]["vectors"]:
        return  # one unnamed vector
    if vector not in {**sizes, **(fake.created[name].get("sparse_vectors") or {})}:
        raise Refusal(400, f"Wrong input: Not existing vector name error: {vector}")
    for row in rows:
        if isinstance(row, list) and vector in sizes and len(row) != sizes[vector]:
            said = f"expected dim: {sizes[vector]}, got {len(row)} for vector '{vector}'"
            raise Refusal(400, f"Wrong input: Vector dimension error: {said}")
        if isinstance(row, dict) and len(set(row.get("indices", []))) < len(row.get("indices", [])):
            said = "points[0].vector.?.indices: Validation error: must be unique [{}]"
            raise Refusal(422, f"Validation error in JSON body: [{said}]")


def _upsert(fake, record, name):
    name = _physical(fake, name)
    if "points" in record:  # as other programs write them
        for point in record["points"]:
            vector = point["vector"]
            for key, row in vector.items() if isinstance(vector, dict) else [("", vector)]:
                _check_rows(fake, name, key, [row])
        return _json(fake.client.upsert(name, [models.PointStruct(**point) for point in record["points"]]))
    batch = record["batch"]
    if not batch["ids"]:
        raise Refusal(400, "Bad request: Empty update request")
    limit(fake, "upsert limit", len(batch["ids"]))
    for docid in batch["ids"]:
        _check_id(docid)
    for key, rows in batch["vectors"].items():
        if len(rows) != len(batch["ids"]):
            said = f"number of ids and vectors must be equal ({len(batch['ids'])} != {len(rows)})"
            raise Refusal(422, f"Validation error in JSON body: [batch.batch: {said}]")
        _check_rows(fake, name, key, rows)
        if isinstance(rows[0], list):  # a server keeps the nearest float32, the client's engine what it is given
            batch["vectors"][key] = np.array(rows, np.float32).tolist()
    if {payload["id"] for payload in batch["payloads"]} & fake.refused:
        raise Refusal(400, "Wrong input: one of the points is not as it should be")
    fake.client.upsert(name, models.Batch(**batch))
    return DONE


def _check_id(docid):
    if isinstance(docid, str):
        try:
            uuid.UUID(docid)
        except ValueError:
            said = "is not a valid point ID, valid values are either an unsigned integer or a UUID"
            raise Refusal(400, f"Format error in JSON body: value {docid} {said}") from None


def limit(fake, what, value):
    """Refuse what the strict mode forbids."""
    most = fake.strict.get(what)
    if most is not None and value > most:
        said = f'Limit exceeded {value} > {most} for "{what}". Help: Reduce the "{what}" parameter to or below {most}.'
        raise Refusal(400, f"Bad request: {said}")


def exactly(fake, record):
    if fake.strict.get("exact") is False and record.get("exact"):
        raise Refusal(400, "Bad request: Exact search disabled!. Help: Set exact=false.")


def _retrieve(fake, record, name):
    chosen = {"with_payload": record.get("with_payload", True), "with_vectors": record.get("with_vector") or False}
    found = fake.client.retrieve(_physical(fake, name), list(dict.fromkeys(record["ids"])), **chosen)
    return [_json(point) for point in found]


def _delete_points(fake, record, name):
    return _json(fake.client.delete(_physical(fake, name), record["points"]))


def _query(fake, record, name):
    name = _physical(fake, name)
    searches = record["searches"]
    limit(fake, "search batch size", len(searches))
    for search in [part for asked in searches for part in asked.get("prefetch") or [asked]]:
        fake.searches.append(search)
        params = search.get("params") or {}
        limit(fake, "limit", search.get("limit", 10))
        limit(fake, "hnsw_ef", params.get("hnsw_ef") or 0)
        limit(fake, "oversampling", (params.get("quantization") or {}).get("oversampling") or 0)
        exactly(fake, params)
        if search.get("limit") == 0:
            said = "searches[0].internal.limit: value 0 invalid, must be 1 or larger"
            raise Refusal(422, f"Validation error in JSON body: [{said}]")
        _check_filter(search, 216)
        query, using = search["query"], search.get("using") or ""
        row = query.get("nearest", query) if isinstance(query, dict) else query
        if isinstance(row, list) and row and isinstance(row[0], list):
            raise Refusal(400, "Wrong input: Conversion between multi and regular vectors failed")
        sizes = _dimensions(fake, name)
        if isinstance(row, list) and using in sizes and len(row) != sizes[using]:
            raise Refusal(400, f"Wrong input: Vector dimension error: expected dim: {sizes[using]}, got {len(row)}")
        _check_rows(fake, name, using, [])
    requests = [models.QueryRequest(**{**search, "params": None}) for search in searches]
    return [_json(answer) for answer in fake.client.query_batch_points(name, requests)] if requests else []


def _check_filter(record, column):
    try:
        return models.Filter(**record["filter"]) if record.get("filter") else None
    except ValueError:
        said = f"data did not match any variant of untagged enum MatchInterface at line 1 column {column}"
        raise Refusal(400, f"Format error in JSON body: {said}") from None


def _query_one(fake, record, name):
    return _query(fake, {"searches": [record]}, name)[0]


def _scroll(fake, record, name):
    name = _physical(fake, name)
    limit(fake, "limit", record["limit"])
    if record["limit"] == 0:
        said = "scroll_request.limit: value 0 invalid, must be 1 or larger"
        raise Refusal(422, f"Validation error in JSON body: [{said}]")
    for vector in record["with_vector"] if isinstance(record["with_vector"], list) else []:
        _check_rows(fake, name, vector, [])
    points, offset = fake.client.scroll(
        name,
        limit=record["limit"],
        offset=record.get("offset"),
        scroll_filter=_check_filter(record, 86),
        with_vectors=record["with_vector"],
        with_payload=record.get("with_payload", True),
    )
    return {"points": [_json(point) for point in points], "next_page_offset": offset}


def _count(fake, record, name):
    exactly(fake, record)
    return _json(fake.client.count(_physical(fake, name), count_filter=_check_filter(record, 86)))


def _aliases(fake, record):
    """Each action is saved by itself: what comes before one that fails stays done."""
    fake.actions.append(record["actions"])
    for action in record["actions"]:
        if made := action.get("create_alias"):
            existing = {one.name for one in fake.client.get_collections().collections}
            if made["collection_name"] not in existing:
                raise Refusal(404, f"Not found: Collection `{made['collection_name']}` doesn't exist!")
            if made["alias_name"] in existing:
                raise Refusal(409, f"Wrong input: Collection `{made['alias_name']}` already exists!")
        fake.client.update_collection_aliases(models.ChangeAliasesOperation(actions=[action]).actions)
    return True


def _exists(fake, record, name):
    return {"exists": _behind(fake).get(name, name) in {one.name for one in fake.client.get_collections().collections}}


def _facet(fake, record, name):
    name = _physical(fake, name)
    limit(fake, "limit", record["limit"])
    if record["key"] not in fake.indexes[name]:
        said = f"No appropriate index for faceting: `{record['key']}`. Please create one to facet on this field."
        see = "https://qdrant.tech/documentation/concepts/indexing/#payload-index"
        said = f"{said} Check {see} to see which payload schemas support Match conditions"
        raise Refusal(400, f"Wrong input: {said}")
    return _json(fake.client.facet(name, key=record["key"], limit=record["limit"], exact=record["exact"]))


def _cluster(fake, record, name):
    name = _physical(fake, name)
    shards = fake.shards.get(name) or fake.shards.get("") or [{"shard_id": 0, "state": "Active"}]
    if callable(shards):
        shards = shards()
    local = [{"points_count": 0, **shard} for shard in shards if "peer_id" not in shard]
    remote = [shard for shard in shards if "peer_id" in shard]
    return {
        "peer_id": 1, "shard_count": len({shard["shard_id"] for shard in shards}), "local_shards": local,
        "remote_shards": remote, "shard_transfers": [],
    }  # fmt: skip


def _shots(fake, name):
    return fake.snapshots.setdefault(name, {})


def _list_shots(fake, record, name):
    return [_described(*one) for one in _shots(fake, _physical(fake, name)).items()]


def _drop_shot(fake, record, name, shot):
    if _shots(fake, _physical(fake, name)).pop(shot, None) is None:
        raise Refusal(404, f"Not found: Snapshot {shot} not found")
    return True


def _described(name, content):
    checksum = hashlib.sha256(content).hexdigest()
    return {"name": name, "size": len(content), "creation_time": "2026-01-01T00:00:00", "checksum": checksum}


def _snapshot(fake, record, name):
    """All that a collection is, as one file."""
    name = _physical(fake, name)
    points = fake.client.scroll(name, limit=100_000, with_vectors=True)[0]
    metadata = fake.client.get_collection(name).config.metadata
    made = {key: fake.created[name].get(key) for key in ("vectors", "sparse_vectors", "quantization_config")}
    whole = {**made, "metadata": metadata, "indexes": sorted(fake.indexes[name]), "points": list(map(_json, points))}
    taken = f"{name}-{len(_shots(fake, name))}.snapshot"
    _shots(fake, name)[taken] = json.dumps(whole).encode()
    return _described(taken, _shots(fake, name)[taken])


def _upload(fake, body, name):
    """The file stays among the snapshots of what was made of it, also of what could not be."""
    content = body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]
    filename = re.search(rb'filename="([^"]+)"', body)[1].decode()
    query = dict(parse_qsl(fake.query))
    if query.get("checksum", hashlib.sha256(content).hexdigest()) != hashlib.sha256(content).hexdigest():
        actual = hashlib.sha256(content).hexdigest()
        raise Refusal(400, f"Checksum mismatch: expected {query['checksum']}, actual {actual}")
    _shots(fake, name)[filename] = content
    try:
        whole = json.loads(content)
    except ValueError:
        said = "File IO error: Malformed tar archive, reached unknown entry"
        raise Refusal(500, f"Service internal error: {said}") from None
    points, indexes = whole.pop("points"), whole.pop("indexes")
    _create(fake, whole, name)
    fake.indexes[name] |= set(indexes)
    fake.client.upsert(name, [models.PointStruct(**{k: p[k] for k in ("id", "payload", "vector")}) for p in points])
    return True


DONE = {"operation_id": 0, "status": "completed"}
DEFAULT_THRESHOLD = 12_345  # of a server that was told to index from there
ROUTES: list[tuple[str, Callable]] = [
    ("GET /collections", lambda f, r: _json(f.client.get_collections())),
    ("GET /aliases", lambda f, r: _json(f.client.get_aliases())),
    ("POST /collections/aliases", _aliases),
    ("GET /collections/([^/]+)/exists", _exists),
    ("GET /collections/([^/]+)/cluster", _cluster),
    ("GET /collections/([^/]+)", _look),
    ("PUT /collections/([^/]+)", _create),
    ("PATCH /collections/([^/]+)", _update),
    ("DELETE /collections/([^/]+)", _delete),
    ("PUT /collections/([^/]+)/index", _index),
    ("PUT /collections/([^/]+)/points", _upsert),
    ("POST /collections/([^/]+)/points", _retrieve),
    ("POST /collections/([^/]+)/points/delete", _delete_points),
    ("POST /collections/([^/]+)/points/query", _query_one),
    ("POST /collections/([^/]+)/points/query/batch", _query),
    ("POST /collections/([^/]+)/points/scroll", _scroll),
    ("POST /collections/([^/]+)/points/count", _count),
    ("POST /collections/([^/]+)/facet", _facet),
    ("GET /collections/([^/]+)/snapshots", _list_shots),
    ("POST /collections/([^/]+)/snapshots", _snapshot),
    ("DELETE /collections/([^/]+)/snapshots/([^/]+)", _drop_shot),
    ("POST /collections/([^/]+)/snapshots/upload", _upload),
]
