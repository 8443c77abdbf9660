"""`xqg-vdb serve`: one page and a JSON API over the collections of a store, read-only. Needs the extra `serve`.

A question is answered twice, plain and calibrated, so that anybody can see which hits calibration moves. The page asks
for nothing from elsewhere; its script and style are the only ones that its content security policy lets run.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError, LockedError, MismatchError, MissingExtra, ServerError, XqgError, printable
from xqg_vdb.generate.output import versions
from xqg_vdb.index.update import since_load
from xqg_vdb.search import collection_means
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
_AWAY = {
    ServerError: "The store does not answer: try again later.",
    LockedError: "Another process uses the store: try again later.",
}
_FOLDER = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":]+[/\\])+")
_log = logging.getLogger("xqg_vdb.serve")


class Service:
    """Answers for those who ask from outside, as JSON values. Threads may share it.

    Collections are opened when they are first asked. open_encoder: the encoder for one; kept for each fingerprint.
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

    def audit(self, name: str = "") -> dict[str, Any]:
        """What a collection knows of languages: its passages', its queries', and those with a mean to calibrate by."""
        collection = self.collection(name)
        card = collection.card
        return {
            "collection": collection.name,
            "passages": dict(self._store.admin.state(collection.name).languages),
            "queries_folded_in": list(card.query_langs),
            "calibration": card.calibration,
            "calibrated_questions": sorted(collection_means(collection.encoder, card).means),
            "since_load": since_load(card),
        }

    def search(
        self,
        question: str,
        *,
        collection: str = "",
        k: int = 10,
        question_lang: str | None = None,
        passage_langs: Sequence[str] | None = None,
        compare: bool = False,
    ) -> dict[str, Any]:
        """The passages for a question. Raises DataError for what it cannot use."""
        text = question.strip()
        if not text or len(text) > MOST_CHARACTERS:
            raise DataError(f"A question of 1 to {MOST_CHARACTERS:,} characters is needed.")
        asked, wanted = Question("0", text, question_lang), Search(k, passage_langs)
        began = time.perf_counter()
        chosen = self.collection(collection)
        calibrated = Retriever(chosen.encoder, chosen)
        (answer,) = calibrated.run([asked], wanted)
        means = calibrated.question_encoder.language_means.means
        found: dict[str, Any] = {
            "collection": chosen.name, "question": text, "lang": answer.lang, "detected": question_lang is None,
            "calibration": calibrated.question_encoder.strength, "mean": answer.lang if answer.lang in means else None,
            "hits": list(map(asdict, answer.hits)),
        }  # fmt: skip
        if compare:
            (before,) = Retriever(chosen.encoder, chosen, calibration=0.0).run([asked], wanted)
            rank = {hit.id: number for number, hit in enumerate(before.hits, 1)}
            found["hits"] = [{**hit, "plain_rank": rank.get(hit["id"])} for hit in found["hits"]]
            found["plain"] = list(map(asdict, before.hits))
        return {**found, "seconds": round(time.perf_counter() - began, 4)}

    def collection(self, name: str) -> Collection:
        """One of them with its encoder: the published version's, which another load may have changed.

        name: "" where there is one only.
        """
        names = self._store.names()
        if name not in names:
            if name or len(names) != 1:
                what = f"There is no collection {name!r}" if name else "Say which collection"
                raise DataError(f"{what}: there are {', '.join(names) or 'none yet'}.")
            name = names[0]
        collection = Collection(name, self._store)
        fingerprint = collection.card.encoder.fingerprint
        with self._lock:
            if fingerprint not in self._encoders:
                self._encoders[fingerprint] = self._open_encoder(collection)
        return Collection(name, self._store, encoder=self._encoders[fingerprint])


def explained(error: Exception) -> tuple[int, str]:
    """An HTTP status and one sentence for those who ask. Names of this machine stay here, in the log."""
    if isinstance(error, DataError | MismatchError):
        return 400 if isinstance(error, DataError) else 500, printable(_FOLDER.sub("", str(error)))
    _log.error("%s", error, exc_info=not isinstance(error, XqgError))
    away = next((told for kind, told in _AWAY.items() if isinstance(error, kind)), "")
    return 503 if away else 500, away or "This service cannot answer that; its log says why."


def guarded(app: Any, *, key: str = "", hosts: Sequence[str] = LOOPBACK, free: Iterable[str] = ()) -> Any:
    """The ASGI application behind the key, which is asked for as `Authorization: Bearer KEY`; "" for none.

    hosts: names under which it may be asked, so that no page of another site reads it by a name of its own (DNS
    rebinding); () for any. free: paths that need no key.
    """
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    def refusal(request: Request) -> Response | None:
        if hosts and request.url.hostname not in hosts:
            return JSONResponse({"error": f"This service is not asked as {request.url.hostname!r}."}, 421)
        said = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key and request.url.path not in free and not secrets.compare_digest(said, key.encode()):
            return JSONResponse({"error": "Give the key of this service."}, 401, {"WWW-Authenticate": "Bearer"})
        return None

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        refused = refusal(Request(scope)) if scope["type"] == "http" else None
        await (refused or app)(scope, receive, send)

    return guard


def openapi() -> dict[str, Any]:
    """The description of the API, OpenAPI 3.1."""
    described: dict[str, Any] = orjson.loads(_resource("serve.openapi.json"))
    described["info"]["version"] = versions(("xqg-vdb",))["xqg-vdb"]
    return described


def _resource(name: str) -> str:
    return files("xqg_vdb.integrations").joinpath(name).read_text("utf-8")


def make_app(service: Service, *, key: str = "", hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The ASGI application; key and hosts: see `guarded`. Raises MissingExtra."""
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra(f'The service needs {error.name}: pip install "xqg-vdb[serve]".') from error
    page, description = _resource("serve.html"), openapi()
    known = [parameter["name"] for parameter in description["paths"]["/search"]["get"]["parameters"]]
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    headers["Content-Security-Policy"] = _policy(page)

    requests: Counter[tuple[str, int]] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)

    # plain functions run in threads
    endpoints: dict[str, Callable[[Request], Response]] = {
        "/": lambda request: HTMLResponse(page),
        "/health": lambda request: JSONResponse(service.health()),
        "/collections": lambda request: JSONResponse(service.collections()),
        "/search": lambda request: JSONResponse(_search(service, request.query_params.multi_items(), known)),
        "/metrics": lambda request: PlainTextResponse(_metrics(requests, seconds)),
        "/openapi.json": lambda request: JSONResponse(description),
    }

    async def counted(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began, path = time.perf_counter(), request.url.path if request.url.path in endpoints else "other"
        try:
            response = await answer(request)
        except Exception as error:  # a fault of ours: the log says it, and who asks gets JSON as always
            response = failed(request, error)
        requests[path, response.status_code] += 1
        seconds[path] += time.perf_counter() - began
        response.headers.update(headers)
        return response

    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            told = f"{error.detail}: GET {', '.join(endpoints)} are answered."
            return JSONResponse({"error": told}, error.status_code, error.headers)
        code, told = explained(error)
        return JSONResponse({"error": told}, code)

    return Starlette(
        routes=[Route(path, endpoint) for path, endpoint in endpoints.items()],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=counted), Middleware(guarded, key=key, hosts=hosts, free=OPEN),
        ],
        exception_handlers={XqgError: failed, HTTPException: failed},
    )  # fmt: skip


def _search(service: Service, parameters: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, Any]:
    """The answer to the words of an address. Raises DataError for those that it does not know or cannot use."""
    given = dict(parameters)
    if unknown := sorted(given.keys() - set(known)):
        raise DataError(f"There is no parameter {unknown[0]!r}: give {', '.join(known)}.")
    k, compare = given.get("k", "10"), given.get("compare", "false")
    if not re.fullmatch("[0-9]{1,3}", k) or not 1 <= int(k) <= MOST_HITS:
        raise DataError(f"k must be a number from 1 to {MOST_HITS}.")
    if compare not in ("true", "false"):
        raise DataError("compare must be true or false.")
    return service.search(
        given.get("q", ""),
        collection=given.get("collection", ""),
        k=int(k),
        question_lang=given.get("lang") or None,
        passage_langs=[value for key, value in parameters if key == "passage_lang"] or None,
        compare=compare == "true",
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
    rest = "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {own}; {rest}"
