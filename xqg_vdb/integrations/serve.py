"""`xqg-vdb serve`: one page and a JSON API over the collections of a store, read-only. Needs the extra `serve`.

A question is answered twice, plain and calibrated, so that anybody can see which hits calibration moves. The page asks
for nothing from elsewhere; its script and style are the only ones that its content security policy lets run.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, LockedError, MissingExtra, ServerError, XqgError
from xqg_vdb.generate.output import versions
from xqg_vdb.search.retriever import Collection, Retriever
from xqg_vdb.store.operations import Store
from xqg_vdb.types import Question, Search

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_HITS = 100
MOST_CHARACTERS = 2000
LOOPBACK = ("127.0.0.1", "localhost")
OPEN = ("/", "/health")  # what needs no key: neither shows anything of a collection
_PARAMETERS = {
    "q": ("string", f"The question, in any language; {MOST_CHARACTERS:,} characters at most."),
    "collection": ("string", "Its name; may be left out where there is one."),
    "k": ("integer", f"How many passages, {MOST_HITS} at most; 10 if left out."),
    "lang": ("string", "Language code of the question; detected if left out."),
    "passage_lang": ("string", "Only passages in this language; may be given several times."),
    "compare": ("boolean", "true: also the hits without calibration, and each hit's rank among them."),
}


class Service:
    """Answers of the API, as JSON values. Collections are opened when they are first asked; threads may share it.

    open_encoder: the encoder for a collection; one is kept for each fingerprint.
    """

    def __init__(self, store: Store, open_encoder: Callable[[Collection], TextEncoder]) -> None:
        self._store, self._open_encoder = store, open_encoder
        self._encoders: dict[str, TextEncoder] = {}
        self._lock = threading.Lock()

    def health(self) -> dict[str, Any]:
        """Whether the store answers."""
        return {"status": "ok", "collections": len(self._store.names())}

    def collections(self) -> list[dict[str, Any]]:
        """What there is to ask."""
        cards = ((name, self._store.card(name)) for name in self._store.names())
        return [
            {"name": name, "passages": card.count, "encoder": card.encoder.source, "calibration": card.calibration}
            for name, card in cards
        ]

    def search(self, parameters: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The passages for a question. Raises DataError for parameters that it does not know or cannot use."""
        given = dict(parameters)
        if unknown := sorted(given.keys() - _PARAMETERS.keys()):
            raise DataError(f"There is no parameter {unknown[0]!r}: give {', '.join(_PARAMETERS)}.")
        text, k = given.get("q", "").strip(), given.get("k", "10")
        if not text or len(text) > MOST_CHARACTERS:
            raise DataError(f"q must be a question of 1 to {MOST_CHARACTERS:,} characters.")
        if not re.fullmatch("[0-9]{1,3}", k) or not 1 <= int(k) <= MOST_HITS:
            raise DataError(f"k must be a number from 1 to {MOST_HITS}.")
        name = self._named(given.get("collection", ""))
        langs = [value for key, value in parameters if key == "passage_lang"]
        question, wanted = Question("0", text, given.get("lang") or None), Search(int(k), langs or None)
        began = time.perf_counter()
        collection = Collection(name, self._store)
        encoder = self._encoder(collection)
        calibrated = Retriever(encoder, collection)
        (answer,) = calibrated.run([question], wanted)
        found: dict[str, Any] = {
            "collection": name, "question": text, "lang": answer.lang, "detected": question.lang is None,
            "calibration": calibrated.question_encoder.strength, "hits": list(map(asdict, answer.hits)),
        }  # fmt: skip
        if given.get("compare") == "true":
            (before,) = Retriever(encoder, collection, calibration=0.0).run([question], wanted)
            rank = {hit.id: number for number, hit in enumerate(before.hits, 1)}
            found["hits"] = [{**hit, "plain_rank": rank.get(hit["id"])} for hit in found["hits"]]
            found["plain"] = list(map(asdict, before.hits))
        return {**found, "seconds": round(time.perf_counter() - began, 4)}

    def _named(self, name: str) -> str:
        names = self._store.names()
        if name in names:
            return name
        if name or len(names) != 1:
            what = f"There is no collection {name!r}" if name else "Say which collection"
            raise DataError(f"{what}: there are {', '.join(names) or 'none yet'}.")
        return names[0]

    def _encoder(self, collection: Collection) -> TextEncoder:
        """The encoder of the published version, which another load may have changed."""
        fingerprint = collection.card.encoder.fingerprint
        with self._lock:
            if fingerprint not in self._encoders:
                self._encoders[fingerprint] = self._open_encoder(collection)
            return self._encoders[fingerprint]


def openapi() -> dict[str, Any]:
    """The description of the API, OpenAPI 3.1."""
    parameters = [
        {"name": name, "in": "query", "required": name == "q", "description": told, "schema": {"type": kind}}
        for name, (kind, told) in _PARAMETERS.items()
    ]
    summaries = {
        "/search": "The passages for a question, calibrated for its language",
        "/collections": "The collections that can be asked",
        "/health": "Whether the store answers",
        "/metrics": "Counters in Prometheus' text format",
    }
    answers = {"200": "done", "400": "a parameter that cannot be used", "401": "no key", "503": "the store is away"}
    responses = {code: {"description": told} for code, told in answers.items()}
    paths: dict[str, dict[str, dict[str, Any]]] = {
        path: {"get": {"summary": told, "responses": responses}} for path, told in summaries.items()
    }
    paths["/search"]["get"]["parameters"] = parameters
    return {
        "openapi": "3.1.0",
        "info": {"title": "xqg-vdb", "version": versions(("xqg-vdb",))["xqg-vdb"]},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def make_app(service: Service, *, key: str = "", hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The ASGI application. key: asked for as `Authorization: Bearer KEY`, "" for none.

    hosts: names under which it may be asked, so that no page of another site reads it by a name of its own (DNS
    rebinding); () for any. Raises MissingExtra.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra(f'The service needs {error.name}: pip install "xqg-vdb[serve]".') from error
    page = files("xqg_vdb.integrations").joinpath("serve.html").read_text("utf-8")
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    headers["Content-Security-Policy"] = _policy(page)

    requests: Counter[tuple[str, int]] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)

    # plain functions run in threads
    endpoints: dict[str, Callable[[Request], Response]] = {
        "/": lambda request: HTMLResponse(page),
        "/health": lambda request: JSONResponse(service.health()),
        "/collections": lambda request: JSONResponse(service.collections()),
        "/search": lambda request: JSONResponse(service.search(request.query_params.multi_items())),
        "/metrics": lambda request: PlainTextResponse(_metrics(requests, seconds)),
        "/openapi.json": lambda request: JSONResponse(openapi()),
    }

    def refused(request: Request) -> Response | None:
        if hosts and request.url.hostname not in hosts:
            return JSONResponse({"error": f"This service is not asked as {request.url.hostname!r}."}, 421)
        said = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key and request.url.path not in OPEN and not secrets.compare_digest(said, key.encode()):
            return JSONResponse({"error": "Give the key of this service."}, 401, {"WWW-Authenticate": "Bearer"})
        return None

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began, path = time.perf_counter(), request.url.path if request.url.path in endpoints else "other"
        response = refused(request) or await answer(request)
        requests[path, response.status_code] += 1
        seconds[path] += time.perf_counter() - began
        response.headers.update(headers)
        return response

    def explained(request: Request, error: Exception) -> Response:
        kinds = {DataError: 400, ServerError: 503, LockedError: 503}
        return JSONResponse(
            {"error": str(error)}, next((n for kind, n in kinds.items() if isinstance(error, kind)), 500)
        )

    return Starlette(
        routes=[Route(path, endpoint) for path, endpoint in endpoints.items()],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={XqgError: explained},
    )


def _metrics(requests: Mapping[tuple[str, int], int], seconds: Mapping[str, float]) -> str:
    """Prometheus' text format."""
    lines = ["# TYPE xqg_vdb_requests_total counter"]
    lines += [f'xqg_vdb_requests_total{{path="{path}",status="{code}"}} {n}' for (path, code), n in requests.items()]
    lines += ["# TYPE xqg_vdb_request_seconds_total counter"]
    lines += [f'xqg_vdb_request_seconds_total{{path="{path}"}} {spent:.6f}' for path, spent in seconds.items()]
    return "\n".join([*lines, ""])


def _policy(page: str) -> str:
    """Only the page's own script and style run, and it speaks to this service alone."""
    hashes = {
        tag: b64encode(sha256(re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()).digest()).decode()  # type: ignore[index]
        for tag in ("script", "style")
    }
    own = "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items())
    return f"default-src 'none'; {own}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
