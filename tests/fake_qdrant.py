"""A loopback HTTP server that speaks enough of Qdrant's REST interface, and misbehaves as it is told.

Its answers come from qdrant-client's in-memory mode, so their shapes are right; `faults` are used up one per request.
What that mode has not (optimizers, snapshots) is made up here as the server's documentation describes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from qdrant_client import QdrantClient, models


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
    """

    def __init__(self):
        self.client = QdrantClient(":memory:")
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
                return self._reply(413, error="Payload too large")
            return self._carry_out(method, path, body)

    def _carry_out(self, method, path, body):
        raw = path.endswith("/snapshots/upload")
        record = body if raw else json.loads(body) if body else {}
        if method == "GET" and "/snapshots/" in path:
            return self._snapshot_file(path)
        for pattern, call in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        return self._reply(200, call(self, record, *map(unquote, found.groups())))
                except ValueError as error:
                    missing = re.match(r"Collection \S+ not found", str(error))
                    text = "Wrong input: Vector dimension error" if "aligned" in str(error) else str(error)
                    return self._reply(404 if missing else 400, error=text)
        return self._reply(404, error=f"no route for {method} {path}")

    def _snapshot_file(self, path):
        _, _, collection, _, name = path.split("/")
        content = self.snapshots.get(unquote(collection), {}).get(unquote(name))
        return self._reply(404, error="no such snapshot") if content is None else (200, {}, content)

    @staticmethod
    def _reply(status, result=None, *, error=None):
        said = "ok" if error is None else {"error": error}
        return status, {}, json.dumps({"result": result, "status": said, "time": 0.0}).encode()

    def _handler(fake):  # the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def _any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.keys.add(self.headers.get("api-key"))
                path = urlsplit(self.path).path
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


def _json(value):
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _create(fake, record, name):
    config = models.CreateCollection(**record)
    fake.created[name], fake.thresholds[name] = record, DEFAULT_THRESHOLD
    return fake.client.create_collection(
        name,
        vectors_config=config.vectors,
        sparse_vectors_config=config.sparse_vectors,
        metadata=config.metadata,
    )


def _look(fake, record, name):
    info, threshold = _json(fake.client.get_collection(name)), fake.thresholds.get(name, DEFAULT_THRESHOLD)
    info["config"]["optimizer_config"]["indexing_threshold"] = threshold
    if threshold and fake.building and info["points_count"]:
        info["status"], info["indexed_vectors_count"] = fake.building.pop(0)
    return info


def _update(fake, record, name):
    if threshold := record.get("optimizers_config"):
        fake.thresholds[name] = threshold["indexing_threshold"]
    return fake.client.update_collection(name, metadata=record["metadata"]) if record.get("metadata") else True


def _delete(fake, record, name):
    fake.snapshots.pop(name, None)
    return fake.client.delete_collection(name)


def _upsert(fake, record, name):
    if "points" in record:  # as other programs write them
        return _json(fake.client.upsert(name, [models.PointStruct(**point) for point in record["points"]]))
    bad = {payload["id"] for payload in record["batch"]["payloads"]} & fake.refused
    if bad:
        raise ValueError("Wrong input: one of the points is not as it should be")
    return _json(fake.client.upsert(name, models.Batch(**record["batch"])))


def _retrieve(fake, record, name):
    chosen = {"with_payload": record.get("with_payload", True), "with_vectors": record.get("with_vector") or False}
    return [_json(point) for point in fake.client.retrieve(name, record["ids"], **chosen)]


def _query(fake, record, name):
    requests = [models.QueryRequest(**{**one, "params": None}) for one in record["searches"]]
    return [_json(answer) for answer in fake.client.query_batch_points(name, requests)]


def _query_one(fake, record, name):
    return _query(fake, {"searches": [record]}, name)[0]


def _scroll(fake, record, name):
    points, offset = fake.client.scroll(
        name,
        limit=record["limit"],
        offset=record.get("offset"),
        with_vectors=record["with_vector"],
        with_payload=record.get("with_payload", True),
    )
    return {"points": [_json(point) for point in points], "next_page_offset": offset}


def _count(fake, record, name):
    wanted = models.Filter(**record["filter"]) if record.get("filter") else None
    return _json(fake.client.count(name, count_filter=wanted))


def _aliases(fake, record):
    return fake.client.update_collection_aliases(models.ChangeAliasesOperation(**record).actions)


def _exists(fake, record, name):
    return {"exists": fake.client.collection_exists(name)}


def _facet(fake, record, name):
    return _json(fake.client.facet(name, key=record["key"], limit=record["limit"], exact=record["exact"]))


def _shots(fake, name):
    return fake.snapshots.setdefault(name, {})


def _described(name, content):
    checksum = hashlib.sha256(content).hexdigest()
    return {"name": name, "size": len(content), "creation_time": "2026-01-01T00:00:00", "checksum": checksum}


def _snapshot(fake, record, name):
    """All that a collection is, as one file."""
    info = _json(fake.client.get_collection(name))["config"]
    params = {"vectors": info["params"]["vectors"], "sparse_vectors": info["params"]["sparse_vectors"]}
    points = fake.client.scroll(name, limit=100_000, with_vectors=True)[0]
    whole = {**params, "metadata": info["metadata"], "points": [_json(point) for point in points]}
    taken = f"{name}-{len(_shots(fake, name))}.snapshot"
    _shots(fake, name)[taken] = json.dumps(whole).encode()
    return _described(taken, _shots(fake, name)[taken])


def _upload(fake, body, name):
    whole = json.loads(body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")])
    points = whole.pop("points")
    _create(fake, whole, name)
    fake.client.upsert(name, [models.PointStruct(**{k: p[k] for k in ("id", "payload", "vector")}) for p in points])
    return True


DEFAULT_THRESHOLD = 12_345  # what this server indexes from, when it is not told otherwise
ROUTES: list[tuple[str, Callable]] = [
    ("GET /collections", lambda f, r: _json(f.client.get_collections())),
    ("GET /aliases", lambda f, r: _json(f.client.get_aliases())),
    ("POST /collections/aliases", _aliases),
    ("GET /collections/([^/]+)/exists", _exists),
    ("GET /collections/([^/]+)", _look),
    ("PUT /collections/([^/]+)", _create),
    ("PATCH /collections/([^/]+)", _update),
    ("DELETE /collections/([^/]+)", _delete),
    ("PUT /collections/([^/]+)/index", lambda f, r, n: {"operation_id": 0, "status": "completed"}),
    ("PUT /collections/([^/]+)/points", _upsert),
    ("POST /collections/([^/]+)/points", _retrieve),
    ("POST /collections/([^/]+)/points/query", _query_one),
    ("POST /collections/([^/]+)/points/query/batch", _query),
    ("POST /collections/([^/]+)/points/scroll", _scroll),
    ("POST /collections/([^/]+)/points/count", _count),
    ("POST /collections/([^/]+)/facet", _facet),
    ("GET /collections/([^/]+)/snapshots", lambda f, r, n: [_described(*one) for one in _shots(f, n).items()]),
    ("POST /collections/([^/]+)/snapshots", _snapshot),
    ("POST /collections/([^/]+)/snapshots/upload", _upload),
]
