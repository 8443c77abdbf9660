"""A loopback HTTP server that speaks enough of Qdrant's REST interface, and misbehaves as it is told.

Its answers come from qdrant-client's in-memory mode, so their shapes are right; `faults` are used up one per request.
"""

from __future__ import annotations

import contextlib
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


class FakeQdrant:
    """Context manager; `url`, `requests` [(method, path)], `keys` (the api-key headers seen), `faults`."""

    def __init__(self):
        self.client = QdrantClient(":memory:")
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        self.largest = 1 << 40
        self._one_at_a_time = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
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
        record = json.loads(body) if body else {}
        for pattern, call in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        return self._reply(200, call(self.client, record, *map(unquote, found.groups())))
                except ValueError as error:
                    missing = re.match(r"Collection \S+ not found", str(error))
                    text = "Wrong input: Vector dimension error" if "aligned" in str(error) else str(error)
                    return self._reply(404 if missing else 400, error=text)
        return self._reply(404, error=f"no route for {method} {path}")

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
                reply = fake.answer(self.command, urlsplit(self.path).path, body)
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


def _create(client, record, name):
    config = models.CreateCollection(**record)
    return client.create_collection(
        name,
        vectors_config=config.vectors,
        sparse_vectors_config=config.sparse_vectors,
        metadata=config.metadata,
    )


def _upsert(client, record, name):
    return _json(client.upsert(name, models.Batch(**record["batch"])))


def _query(client, record, name):
    requests = [models.QueryRequest(**{**one, "params": None}) for one in record["searches"]]
    return [_json(answer) for answer in client.query_batch_points(name, requests)]


def _scroll(client, record, name):
    points, offset = client.scroll(
        name, limit=record["limit"], offset=record.get("offset"), with_payload=True, with_vectors=record["with_vector"]
    )
    return {"points": [_json(point) for point in points], "next_page_offset": offset}


def _count(client, record, name):
    wanted = models.Filter(**record["filter"]) if record.get("filter") else None
    return _json(client.count(name, count_filter=wanted))


def _aliases(client, record):
    return client.update_collection_aliases(models.ChangeAliasesOperation(**record).actions)


def _exists(client, record, name):
    return {"exists": client.collection_exists(name)}


ROUTES: list[tuple[str, Callable]] = [
    ("GET /collections", lambda c, r: _json(c.get_collections())),
    ("GET /aliases", lambda c, r: _json(c.get_aliases())),
    ("POST /collections/aliases", _aliases),
    ("GET /collections/([^/]+)/exists", _exists),
    ("GET /collections/([^/]+)", lambda c, r, n: _json(c.get_collection(n))),
    ("PUT /collections/([^/]+)", _create),
    ("PATCH /collections/([^/]+)", lambda c, r, n: c.update_collection(n, metadata=r["metadata"])),
    ("DELETE /collections/([^/]+)", lambda c, r, n: c.delete_collection(n)),
    ("PUT /collections/([^/]+)/index", lambda c, r, n: {"operation_id": 0, "status": "completed"}),
    ("PUT /collections/([^/]+)/points", _upsert),
    ("POST /collections/([^/]+)/points/query/batch", _query),
    ("POST /collections/([^/]+)/points/scroll", _scroll),
    ("POST /collections/([^/]+)/points/count", _count),
]
