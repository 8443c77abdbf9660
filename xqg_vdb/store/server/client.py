"""One call to a Qdrant server: what its answer means, whether to repeat it, and its last error in words of ours.

qdrant-client's own bulk methods repeat without a pause, repeat refusals too, and obey `Retry-After: 0` for ever; this
file is why nothing here uses them. No key ever reaches a message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
import httpx
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import CorruptError, DataError, MismatchError, ServerError, XqgError, redacted
from xqg_vdb.models.remote import seconds_asked
from xqg_vdb.store.operations import finish


class NotFound(ServerError):
    """The server has no such collection; the store says which ones there are."""


class Exists(ServerError):
    """There is a collection of that name already: another loader was quicker."""


class NoAccess(ServerError):
    """The key is known, but may not do this."""


class TooLarge(ServerError):
    """The server refuses a request of this size; the writer halves it."""


class Limited(ServerError):
    """The server's strict mode refuses a parameter, and says no limit or one that was kept."""


class Refused(ServerError):
    """The server refuses what a request holds; the writer finds out which point it means."""


class Pending(ServerError):
    """A cluster without a quorum has noted a change: it may carry it out later, so nothing proposes it twice."""


class NotDone(Exception):
    """The server answered, but has not finished what was asked for (`wait_timeout`): ask again."""


_Meaning = tuple[type[XqgError] | None, str]  # the error that it ends in, None to try again, and its message

_TOO_LARGE: _Meaning = (TooLarge, "{where} refuses a request of this size ({said}); use smaller batches.")
_EXISTS: _Meaning = (Exists, "{where} has that already ({said}).")
_MISSING: _Meaning = (NotFound, "{where} has no such collection ({said}).")
_NOT_QDRANT: _Meaning = (
    ServerError,
    "{where} does not answer as a Qdrant server does ({said}); check the port and http:// or https:// in the"
    " address (REST is port 6333, gRPC 6334).",
)
_UNTRUSTED: _Meaning = (
    ServerError,
    "The certificate of {where} is not trusted ({said}); name its authority's file in SSL_CERT_FILE (for gRPC in"
    " GRPC_DEFAULT_SSL_ROOTS_FILE_PATH).",
)
_AGAIN: _Meaning = (
    None,
    "{where} is away or overloaded ({said}); check that it runs, then run the same command again.",
)
_IMPOSSIBLE: _Meaning = (
    ServerError,
    "{where} cannot do this ({said}); is it a Qdrant server of version 1.16 or later?",
)
_KEY: _Meaning = (ServerError, "{where} refuses the API key, or wants one ({said}); set XQG_VDB_API_KEY.")
_ANY = frozenset(range(400, 600))
ANSWERS: tuple[tuple[frozenset[int], str, _Meaning], ...] = (
    (_ANY, r"no space left on device",
     (ServerError, "The disk of {where} is full ({said}); make room there, then run it again.")),
    (_ANY, r"^507\b|the configured limit",  # of memory or disk: no passage is to blame
     (ServerError, "{where} has reached its quota ({said}); raise it, or delete what is not needed.")),
    (_ANY, r"is larger than allowed|larger than max|length too large|larger than rate limiter capacity", _TOO_LARGE),
    (_ANY, r"limit exceeded \S+ > \S+ for \"upsert limit\"", _TOO_LARGE),
    (_ANY, r"rate limit",
     (None, "{where} limits how much may be read or written ({said}); run the same command again later, or raise that"
      " limit there.")),
    (_ANY, r"limit exceeded|limit reached|limit of \S+ reached|search disabled|index required|maximum number of",
     (Limited, "A limit of {where} (its strict mode) forbids this ({said}); ask for less, or raise the limit there.")),
    (_ANY, r"waiting for consensus operation|no leader|consensus is not",
     (Pending, "The cluster of {where} has no quorum ({said}). The change may still be carried out: look at `xqg-vdb"
      " versions` when the cluster is whole, before you repeat it.")),
    (_ANY, r"service is currently unavailable|failed to connect to http|\b0 of 0 read|no active replica",
     (None, "A node of the cluster of {where} is away ({said}); start it, then run the same command again. A load with"
      " --replication-factor 2 does without it.")),
    (_ANY, r"malformed tar|checksum mismatch|failed to unpack",
     (CorruptError, "{where} cannot read the snapshot ({said}); take another copy of it.")),
    (_ANY, r"dimension error|not existing vector name|not aligned|is not found in the collection",
     (MismatchError, "The vectors do not fit the collection on {where}: {said}.")),
    (_ANY, r"http1\.x server|illegal \w+ line|wrong_version_number|unknown protocol|expected settings", _NOT_QDRANT),
    (_ANY, r"certificate.verify.failed|ssl handshake failed|ssl_error_ssl", _UNTRUSTED),
    (frozenset({400, 409}), r"already exists", _EXISTS),
    (frozenset({401}), "", _KEY),
    (frozenset({403}), r"(expired|invalid)signature", _KEY),
    (frozenset({403}), r"(manage|write|global) access",
     (NoAccess, "The API key may not write on {where} ({said}); set XQG_VDB_API_KEY to one with manage access.")),
    (frozenset({403}), "",
     (NoAccess, "The API key may not see this on {where} ({said}); set XQG_VDB_API_KEY to one that may read it.")),
    (frozenset({404}), r"^404( Not Found)?$",
     (NotFound, "{where} has nothing under this address ({said}); check its port and its path.")),
    (frozenset({404}), "", _MISSING),
    (frozenset({409}), "", _EXISTS),
    (frozenset({413}), "", _TOO_LARGE),
    (frozenset({408, 425, 429, 500, 502, 503, 504}), "", _AGAIN),
    (frozenset({400, 422}), "", (Refused, "{where} refused the request for good ({said}).")),
    (_ANY, "", _IMPOSSIBLE),
)  # fmt: skip
"""HTTP statuses, words in the answer, and their meaning; the first row that fits counts. The words are those of a real
server 1.19.0; a gRPC code stands for the status that REST gives in its place."""
_STATUS_OF_CODE = {
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "OUT_OF_RANGE": 413,
    "ALREADY_EXISTS": 409, "UNIMPLEMENTED": 405, "DATA_LOSS": 400, "DEADLINE_EXCEEDED": 408, "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500, "FAILED_PRECONDITION": 500, "UNKNOWN": 500, "CANCELLED": 500, "ABORTED": 503, "UNAVAILABLE": 503,
}  # fmt: skip

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
SHORTEST_ASKED = 0.1  # seconds, whatever `Retry-After` says
_BAD_RETRY_AFTER = re.compile(r"Retry-After header value is not a valid integer: (.*)")
_NO_COLLECTION = re.compile(r"^Collection \S+ not found", re.IGNORECASE)


def answer_of(error: Exception) -> tuple[_Meaning, str, str]:
    """The meaning of an exception of qdrant-client, over either protocol; what was said; the wait that is asked for."""
    said, asked = _words(error), ""
    if isinstance(error, NotDone):
        meaning = _AGAIN
    elif isinstance(error, ResourceExhaustedResponse):
        meaning, asked = _meaning(429, said), str(error.retry_after_s)
    elif isinstance(error, QdrantException):  # how the client fails on a Retry-After that is a date
        found = _BAD_RETRY_AFTER.search(str(error))
        meaning, asked = (_AGAIN, found[1]) if found else (_IMPOSSIBLE, "")
    elif isinstance(error, UnexpectedResponse):
        meaning, asked = _meaning(error.status_code or 500, said), error.headers.get("Retry-After") or ""
    elif isinstance(error, grpc.RpcError):
        meaning = _meaning(_STATUS_OF_CODE.get(_code(error), 500), said)
    elif isinstance(error, ResponseHandlingException):
        meaning = _of_conversation(error.source)
    elif isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, ValidationError)):
        meaning = _NOT_QDRANT
    elif isinstance(error, (ValueError, TypeError)):  # the local mode's way to refuse
        meaning = _MISSING if _NO_COLLECTION.match(said) else _meaning(400, said)
    else:
        meaning = _IMPOSSIBLE
    return meaning, said, asked


def _meaning(status: int, said: str) -> _Meaning:
    rows = (row for row in ANSWERS if status in row[0] and re.search(row[1], said, re.IGNORECASE))
    return next((meaning for _, _, meaning in rows), _NOT_QDRANT)  # such as a redirect


def _of_conversation(source: Exception) -> _Meaning:
    """Whether a broken conversation may go better next time; another protocol or certificate will not."""
    known = _meaning(503, f"{source} {source.__cause__ or ''}")
    if known in (_NOT_QDRANT, _UNTRUSTED):
        return known
    if isinstance(source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeDecodeError, ValidationError)):
        return _NOT_QDRANT
    return _AGAIN if isinstance(source, httpx.TransportError) else _IMPOSSIBLE


def _code(error: grpc.RpcError) -> str:
    """Such as UNAVAILABLE; what gRPC raises, for coroutines as well, knows its code."""
    code = getattr(error, "code", None)
    return str(code().name) if callable(code) else "UNKNOWN"


def _words(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, UnexpectedResponse):
        try:
            said = " ".join(str(error.structured()["status"]["error"]).split())[:300]
        except (ValueError, KeyError, TypeError):
            said = error.content[:100].decode("utf-8", "replace").partition("\n")[0]
        return f"{error.status_code} {error.reason_phrase} {said}".strip()
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}".partition("\n")[0][:200]
    if isinstance(error, grpc.RpcError) and (details := getattr(error, "details", None)):
        return " ".join(f"{_code(error)}: {details()}".split())[:300]
    return str(error).partition("\n")[0][:200] or type(error).__name__


def wait_before(asked: str, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the server asks for (seconds or a date), else with full jitter."""
    seconds = seconds_asked(asked)
    if seconds is None:
        seconds = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 16)))  # noqa: S311 - not a secret
    return max(SHORTEST_ASKED, seconds)


T = TypeVar("T")

_until: ContextVar[float] = ContextVar("until", default=math.inf)


def seconds_left() -> float:
    """How long the request that this thread sends may take, as its caller's deadline has it."""
    return max(_until.get() - time.monotonic(), SHORTEST_ASKED)


class _Timed(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # it has no types
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(timeout=min(details.timeout, seconds_left())), request)


def timed(channel: grpc.Channel) -> grpc.Channel:
    """The channel, no call over which takes longer than the seconds that are left."""
    return grpc.intercept_channel(channel, _Timed())


OLDEST_SERVER = (1, 16)
_LOG_EVERY, _SOON = 10.0, 5.0
_NOBODY = re.compile("refused|name or service not known|nodename nor|name not found", re.IGNORECASE)

_log = logging.getLogger(__name__)


class Server:
    """Calls a client with patience. `where` names the server in messages; `secret` is taken out of them.

    deadline: seconds after which a call is given up, counted from its first attempt.
    """

    def __init__(
        self, where: str, *, deadline: float, secret: str | None = None,
        sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.where, self.deadline, self._secret = where, deadline, secret
        self.sleep, self.clock = sleep, clock
        self._logged, self._gave_up, self._answered = -_LOG_EVERY, -math.inf, False
        self.limits: dict[str, int] = {}  # what the strict mode allows, by its words for each limit
        # the client's own engine in this process is not made for threads
        self._turn: AbstractContextManager[object] = threading.RLock() if where == ":memory:" else nullcontext()
        self._process = os.getpid()
        self.after_fork: Callable[[], object] = int
        """Opens the connections anew: a forked child would share those of its parent, and take its answers."""
        self.before_first: Callable[[float | None], None] | None = None
        """What is to be found out before the first call, and within its deadline."""

    def call(self, request: Callable[[], T], *, deadline: float | None = None) -> T:
        """What `request()` returns, after as many attempts as the deadline allows. It must be safe to repeat."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.after_fork()
        if (check := self.before_first) is not None:
            self.before_first = None
            try:
                check(deadline)
            except BaseException:
                self.before_first = check
                raise

        async def once(seconds: float) -> T:
            _until.set(time.monotonic() + seconds if deadline != 0 else math.inf)
            with self._turn:
                return request()

        async def wait(seconds: float) -> None:
            self.sleep(seconds)

        return finish(self._patiently(once, deadline=deadline, sleep=wait))

    async def call_async(self, request: Callable[[], Awaitable[T]], *, deadline: float | None = None) -> T:
        """The same for a request that is awaited; other coroutines run while it waits."""

        async def once(seconds: float) -> T:
            return await asyncio.wait_for(request(), seconds)

        return await self._patiently(once, deadline=deadline, sleep=asyncio.sleep)

    async def _patiently(
        self, once: Callable[[float], Awaitable[T]], *, deadline: float | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> T:  # fmt: skip
        """once: makes the request, in so many seconds."""
        patience, attempt = self.deadline if deadline is None else deadline, 0
        if patience < self.deadline and self.clock() - self._gave_up < _SOON:  # they have waited for the same node
            patience = min(patience, 1.0)
        end = self.clock() + patience
        while True:
            try:
                answer = await once(max(end - self.clock(), 1.0))
            except XqgError:
                raise
            except TimeoutError:
                raise self._translated(_AGAIN, "its answer takes too long") from None
            except Exception as error:
                wait = self._pause(error, attempt, end=end)
            else:
                self._answered = True
                return answer
            await sleep(wait)
            attempt += 1

    def most(self, what: str, wanted: int) -> int:
        """`wanted`, or less where the server's strict mode said so."""
        return min(wanted, self.limits.get(what, wanted))

    def _pause(self, error: Exception, attempt: int, *, end: float) -> float:
        """Seconds to wait before trying again; raises when that cannot help, or not in time."""
        meaning, said, asked = answer_of(error)
        said = redacted(said, self._secret or "")
        if meaning[0] is Limited and self._learnt(said):
            return 0.0
        wait = wait_before(asked, attempt)
        # one that answered before may be starting again; where nobody listens from the start, nobody will
        nobody = not self._answered and attempt > 0 and _NOBODY.search(said)
        if meaning[0] is not None or nobody or self.clock() + wait >= end:
            self._gave_up = self.clock() if meaning[0] is None else self._gave_up
            raise self._translated(meaning, said) from error
        if self.clock() - self._logged >= _LOG_EVERY:
            self._logged = self.clock()
            waited_for = meaning[1].partition(";")[0].format(where=self.where, said=said)
            _log.warning("%s; trying again in %.1f s, for %.0f s at most", waited_for, wait, end - self.clock())
        return wait

    def _learnt(self, said: str) -> bool:
        """Note what the strict mode allows, which a request looks up in `most`; False when it was known, or nothing."""
        limit = re.search(r'> (\d+)\S* for "([^"]+)"', said)
        if limit is None or not 0 < int(limit[1]) < self.limits.get(limit[2], math.inf):
            return False
        self.limits[limit[2]] = int(limit[1])
        return True

    def _translated(self, meaning: _Meaning, said: str) -> XqgError:
        (kind, message), said = meaning, said.rstrip(".")
        if self.where == ":memory:" and kind is Refused:
            return DataError(f"{self.where} refuses the data: {said}.")
        return (kind or ServerError)(message.format(where=self.where, said=said))
