"""One call to a Qdrant server: what its answer means, whether to repeat it, and its last error in words of ours.

qdrant-client's own bulk methods repeat without a pause, repeat refusals too, and obey `Retry-After: 0` for ever; this
file is why nothing here uses them. No key ever reaches a message.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import grpc
import httpx
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import CorruptError, DataError, MismatchError, ServerError, XqgError

# What a server says, and what it means: over REST and gRPC, for the client and its twin for coroutines.


class Outcome(Enum):
    """What an answer that is no success means."""

    AGAIN = auto()
    PENDING = auto()
    """The cluster has no quorum: it may carry the change out later, so nothing proposes it twice."""
    TOO_LARGE = auto()
    LIMITED = auto()
    EXISTS = auto()
    MISSING = auto()
    MISFIT = auto()
    DISK_FULL = auto()
    QUOTA = auto()
    BROKEN_FILE = auto()
    NO_KEY = auto()
    READ_ONLY = auto()
    NO_ACCESS = auto()
    NOT_QDRANT = auto()
    UNTRUSTED = auto()
    REFUSED = auto()
    """What the request holds is wrong; in a batch, perhaps one point of it."""
    IMPOSSIBLE = auto()


_ANY = frozenset(range(400, 600))
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
OUTCOMES: tuple[tuple[frozenset[int], str, Outcome], ...] = (
    (_ANY, r"no space left on device", Outcome.DISK_FULL),
    (_ANY, r"is larger than allowed|larger than max|length too large", Outcome.TOO_LARGE),
    (_ANY, r"larger than rate limiter capacity", Outcome.TOO_LARGE),
    (_ANY, r"limit exceeded \S+ > \S+ for \"upsert limit\"", Outcome.TOO_LARGE),
    (_ANY, r"limit exceeded|limit reached|limit of \S+ reached|exact search disabled", Outcome.LIMITED),
    (_ANY, r"waiting for consensus operation|no leader|consensus is not", Outcome.PENDING),
    (_ANY, r"malformed tar|checksum mismatch|failed to unpack", Outcome.BROKEN_FILE),
    (_ANY, r"dimension error|not existing vector name|not aligned|is not found in the collection", Outcome.MISFIT),
    (_ANY, r"http1\.x server|illegal (status|request) line|wrong_version_number|unknown protocol", Outcome.NOT_QDRANT),
    (_ANY, r"certificate.verify.failed|ssl handshake failed|ssl_error_ssl", Outcome.UNTRUSTED),
    (frozenset({400, 409}), r"already exists", Outcome.EXISTS),
    (frozenset({401}), "", Outcome.NO_KEY),
    (frozenset({403}), r"(manage|write|global) access", Outcome.READ_ONLY),
    (frozenset({403}), "", Outcome.NO_ACCESS),
    (frozenset({404}), "", Outcome.MISSING),
    (frozenset({409}), "", Outcome.EXISTS),
    (frozenset({413}), "", Outcome.TOO_LARGE),
    (frozenset({507}), "", Outcome.QUOTA),
    (_TRANSIENT, "", Outcome.AGAIN),
    (frozenset({400, 422}), "", Outcome.REFUSED),
    (_ANY, "", Outcome.IMPOSSIBLE),
)
"""HTTP statuses, words in the answer, and their meaning; the first row that fits counts. The words are those of a real
server 1.19.0; a gRPC code stands for the status that REST gives in its place."""
_STATUS_OF_CODE = {
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "OUT_OF_RANGE": 413,
    "ALREADY_EXISTS": 409, "UNIMPLEMENTED": 405, "DATA_LOSS": 400, "DEADLINE_EXCEEDED": 408, "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500, "FAILED_PRECONDITION": 500, "UNKNOWN": 500, "CANCELLED": 500, "ABORTED": 503, "UNAVAILABLE": 503,
}  # fmt: skip

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
SHORTEST_ASKED, LONGEST_ASKED = 0.1, 120.0
"""Bounds on what `Retry-After` may ask for, in seconds."""
_BAD_RETRY_AFTER = re.compile(r"Retry-After header value is not a valid integer: (.*)")
_NO_COLLECTION = re.compile(r"^Collection \S+ not found", re.IGNORECASE)


class NotDone(Exception):
    """The server answered, but has not finished what was asked for (`wait_timeout`): ask again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an error of qdrant-client says. retry_after: the wait that the server asks for, as it writes it."""

    outcome: Outcome
    said: str
    retry_after: str | None = None


def answer_of(error: Exception) -> Answer:
    """What an exception of qdrant-client, of either protocol, or of its local mode means."""
    said = _words(error)
    if isinstance(error, NotDone):
        return Answer(Outcome.AGAIN, said)
    if isinstance(error, ResourceExhaustedResponse):
        return Answer(_meaning(429, said), said, str(error.retry_after_s))
    if isinstance(error, QdrantException):  # how the client fails on a Retry-After that is a date
        found = _BAD_RETRY_AFTER.search(str(error))
        return Answer(Outcome.AGAIN if found else Outcome.IMPOSSIBLE, said, found[1] if found else None)
    if isinstance(error, UnexpectedResponse):
        return Answer(_meaning(error.status_code or 500, said), said, error.headers.get("Retry-After"))
    if isinstance(error, grpc.RpcError):
        return Answer(_meaning(_STATUS_OF_CODE.get(_code(error), 500), said), said)
    if isinstance(error, ResponseHandlingException):
        return Answer(_of_conversation(error.source), said)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, ValidationError)):
        return Answer(Outcome.NOT_QDRANT, said)
    if isinstance(error, (ValueError, TypeError)):  # the local mode's way to refuse
        return Answer(Outcome.MISSING if _NO_COLLECTION.match(said) else _meaning(400, said), said)
    return Answer(Outcome.IMPOSSIBLE, said)


def _meaning(status: int, said: str) -> Outcome:
    rows = (row for row in OUTCOMES if status in row[0] and re.search(row[1], said, re.IGNORECASE))
    return next(outcome for _, _, outcome in rows)


def _of_conversation(source: Exception) -> Outcome:
    """Whether a broken conversation may go better next time; another protocol or certificate will not."""
    said = f"{source} {source.__cause__ or ''}"
    if (known := _meaning(503, said)) in (Outcome.NOT_QDRANT, Outcome.UNTRUSTED):
        return known
    if isinstance(source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeDecodeError, ValidationError)):
        return Outcome.NOT_QDRANT
    return Outcome.AGAIN if isinstance(source, httpx.TransportError) else Outcome.IMPOSSIBLE


def _code(error: grpc.RpcError) -> str:
    """Such as UNAVAILABLE; what gRPC raises, for coroutines as well, knows its code."""
    code = getattr(error, "code", None)
    return str(code().name) if callable(code) else "UNKNOWN"


def _words(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, UnexpectedResponse):
        return f"{error.status_code} {error.reason_phrase} {_server_words(error)}".strip()
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}".partition("\n")[0][:200]
    if isinstance(error, grpc.RpcError) and (details := getattr(error, "details", None)):
        return f"{_code(error)}: {details()}".partition("\n")[0][:300]
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _server_words(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return error.content[:100].decode("utf-8", "replace").partition("\n")[0]


def wait_before(answer: Answer, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the answer asks for (seconds or a date), else the usual."""
    header = (answer.retry_after or "").strip()
    try:
        return _asked(float(header))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return _backoff(attempt)
    return _asked((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _backoff(attempt: int) -> float:
    """Exponential, with full jitter, so that many clients do not come back at once."""
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 16))
    return max(SHORTEST_ASKED, random.uniform(0, ceiling))  # noqa: S311 - not a secret


def _asked(seconds: float) -> float:
    return min(max(seconds, SHORTEST_ASKED), LONGEST_ASKED)


class NotFound(ServerError):
    """The server has no such collection; the store says which ones there are."""


class Exists(ServerError):
    """There is a collection of that name already: another loader was quicker."""


class NoAccess(ServerError):
    """The key is known, but may not do this."""


class TooLarge(ServerError):
    """The server refuses a request of this size; the writer halves it."""


class Limited(ServerError):
    """The server's strict mode refuses a parameter. what: which; most: what it allows, where it says so."""

    def __init__(self, message: str, *, what: str, most: int | None) -> None:
        super().__init__(message)
        self.what, self.most = what, most


class Refused(ServerError):
    """The server refuses what a request holds; the writer finds out which point it means."""


class Pending(ServerError):
    """A cluster without a quorum has noted a change: it may carry it out later."""


_MESSAGES: dict[Outcome, tuple[type[XqgError], str]] = {
    Outcome.PENDING: (
        Pending,
        "The cluster of {where} has no quorum ({said}). The change may still be carried out: look at `xqg-vdb versions`"
        " when the cluster is whole, before you repeat it.",
    ),
    Outcome.TOO_LARGE: (TooLarge, "{where} refuses a request of this size ({said}); use smaller batches."),
    Outcome.EXISTS: (Exists, "{where} has that already ({said})."),
    Outcome.MISSING: (NotFound, "{where} has no such collection ({said})."),
    Outcome.MISFIT: (MismatchError, "The vectors do not fit the collection on {where}: {said}."),
    Outcome.DISK_FULL: (ServerError, "The disk of {where} is full ({said}); make room there, then run it again."),
    Outcome.QUOTA: (ServerError, "{where} has reached its quota ({said}); raise it, or delete what is not needed."),
    Outcome.BROKEN_FILE: (CorruptError, "{where} cannot read the snapshot ({said}); take another copy of it."),
    Outcome.NO_KEY: (ServerError, "{where} refuses the API key, or wants one ({said}); set XQG_VDB_API_KEY."),
    Outcome.READ_ONLY: (
        NoAccess,
        "The API key may not write on {where} ({said}); set XQG_VDB_API_KEY to one with manage access.",
    ),
    Outcome.NO_ACCESS: (
        NoAccess,
        "The API key may not see this on {where} ({said}); set XQG_VDB_API_KEY to one that may read it.",
    ),
    Outcome.NOT_QDRANT: (
        ServerError,
        "{where} does not answer as a Qdrant server does ({said}); check the port and http:// or https:// in the"
        " address (REST is port 6333, gRPC 6334).",
    ),
    Outcome.UNTRUSTED: (
        ServerError,
        "The certificate of {where} is not trusted ({said}); name its authority's file in SSL_CERT_FILE (for gRPC in"
        " GRPC_DEFAULT_SSL_ROOTS_FILE_PATH).",
    ),
    Outcome.REFUSED: (Refused, "{where} refused the request for good ({said})."),
    Outcome.IMPOSSIBLE: (
        ServerError,
        "{where} cannot do this ({said}); is it a Qdrant server of version 1.16 or later?",
    ),
}


T = TypeVar("T")

_LOG_EVERY = 10.0
_KNOCKS = 2
_PROPOSAL_PATIENCE, _PROPOSAL_LOOK = 30.0, 1.0

_log = logging.getLogger(__name__)


class Server:
    """Calls a client with patience. `where` names the server in messages; `secret` is taken out of them.

    deadline: seconds after which a call is given up, counted from its first attempt.
    """

    def __init__(
        self,
        where: str,
        *,
        deadline: float,
        secret: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self.deadline = deadline
        self._secret = secret
        self._sleep = sleep
        self._clock = clock
        self._logged = -_LOG_EVERY
        self._answered = False
        self.before_first: Callable[[float | None], None] | None = None
        """What is to be found out before the first call, and within its deadline."""

    def call(self, request: Callable[[], T], *, deadline: float | None = None) -> T:
        """What `request()` returns, after as many attempts as the deadline allows. It must be safe to repeat.

        Raises one of the errors in `_MESSAGES`.
        """
        if (check := self.before_first) is not None:
            self.before_first = None
            try:
                check(deadline)
            except BaseException:
                self.before_first = check
                raise
        end, attempt = self._end(deadline), 0
        while True:
            try:
                answer = request()
                self._answered = True
                return answer
            except XqgError:
                raise
            except Exception as error:
                wait = self._pause(error, attempt, end=end)
            self._sleep(wait)
            attempt += 1

    async def call_async(self, request: Callable[[], Awaitable[T]], *, deadline: float | None = None) -> T:
        """The same for a request that is awaited; other coroutines run while it waits."""
        end, attempt = self._end(deadline), 0
        while True:
            try:
                answer = await request()
                self._answered = True
                return answer
            except XqgError:
                raise
            except Exception as error:
                wait = self._pause(error, attempt, end=end)
            await asyncio.sleep(wait)
            attempt += 1

    def read(self, request: Callable[[], T]) -> T:
        """`call` for somebody who waits: given up after 30 s at the latest."""
        return self.call(request, deadline=self.read_deadline)

    @property
    def read_deadline(self) -> float:
        """Seconds after which reading is given up."""
        return min(READ_DEADLINE, self.deadline)

    def propose(
        self, request: Callable[[], object], *, done: Callable[[], bool], deadline: float | None = None
    ) -> None:
        """Send a change that a cluster agrees on. One that it only noted is not sent again: its effect is waited for.

        Raises Pending when that does not come.
        """
        try:
            self.call(request, deadline=deadline)
        except Pending:
            end = self._end(_PROPOSAL_PATIENCE)
            while self._clock() < end:
                self._sleep(_PROPOSAL_LOOK)
                if self.read(done):
                    return
            raise

    def pause(self, seconds: float) -> None:
        """Wait between two looks at the server."""
        self._sleep(seconds)

    def now(self) -> float:
        """The clock by which it waits."""
        return self._clock()

    def _end(self, deadline: float | None) -> float:
        return self._clock() + (self.deadline if deadline is None else deadline)

    def _pause(self, error: Exception, attempt: int, *, end: float) -> float:
        """Seconds to wait before trying again; raises when that cannot help, or not in time."""
        answer = answer_of(error)
        said = redacted(answer.said, self._secret or "")
        if answer.outcome is not Outcome.AGAIN:
            raise self._translated(answer.outcome, said) from error
        wait = wait_before(answer, attempt)
        # one that answered before may be starting again; where nobody listens from the start, nobody will
        nobody = not self._answered and attempt >= _KNOCKS and "refused" in said.lower()
        if nobody or self._clock() + wait >= end:
            raise ServerError(
                f"{self.where} is away or overloaded ({said}); check that it runs, then run the same command again."
            ) from error
        if self._clock() - self._logged >= _LOG_EVERY:
            self._logged = self._clock()
            _log.warning("%s: %s; trying again in %.1f s", self.where, said, wait)
        return wait

    def _translated(self, outcome: Outcome, said: str) -> XqgError:
        if outcome is Outcome.LIMITED:
            found = re.search(r'> (\d+)\S* for "([^"]+)"', said)
            what, most = (found[2], int(found[1])) if found else ("", None)
            return Limited(f"A limit of {self.where} (its strict mode) forbids this: {said}.", what=what, most=most)
        if self.where == ":memory:" and outcome is Outcome.REFUSED:
            return DataError(f"{self.where} refuses the data: {said}.")
        kind, message = _MESSAGES[outcome]
        return kind(message.format(where=self.where, said=said))


OLDEST_SERVER = (1, 16)
READ_DEADLINE = 30.0
"""Seconds after which reading is given up: somebody waits for it."""


# The address of a Qdrant server, checked before anything is sent there, an API key least of all.


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. url: of the REST interface. where: host and port for messages. grpc_port: None for REST."""

    url: str
    where: str
    grpc_port: int | None


def checked_address(
    url: str, *, api_key: str | None, insecure: bool, grpc: bool = False, grpc_port: int | None = None
) -> Address:
    """Where to speak to: gRPC has the port after REST's, unless `grpc_port` or a grpc:// address names another.

    Raises DataError for a URL without a valid host and port, or with a password, several hosts, a query or a fragment
    in it, ServerError for a key that would be readable on the way.
    """
    url = url.strip()
    if re.search(r"[\s,\x00-\x1f]", url):
        raise DataError(
            "One address is wanted, several were given, or one with a space in it: name one node, or a load balancer"
            " before all of them."
        )
    try:
        parts = urlsplit(url if re.match(r"(https?|grpcs?)://", url) else f"//{url}")
        (parts.hostname or "").encode("idna")  # as it will be looked up
    except ValueError:
        raise DataError(_LIKE_ONE) from None
    port = _port(parts)
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
        raise DataError(_LIKE_ONE)
    if parts.username or parts.password:
        raise DataError(f"The address of {parts.hostname} holds a password; take it out and set XQG_VDB_API_KEY.")
    scheme, is_grpc = _SCHEMES[parts.scheme]
    if is_grpc:
        grpc_port = grpc_port or port or 6334
        rest = grpc_port - 1
    else:
        rest = port or 6333
        grpc_port = grpc_port or (rest + 1 if grpc else None)
    if not 0 < rest < 65536 or not 0 < (grpc_port or 1) < 65536:  # of the pair, one lies beyond the end
        raise DataError(f"The address of {parts.hostname} leaves no port for the other of REST and gRPC, beside it.")
    where = f"{parts.hostname}:{rest if not is_grpc else grpc_port}"
    if api_key and scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise ServerError(
            f"The API key would travel unencrypted to {where}; use https, or XQG_VDB_INSECURE=1 (insecure=True) if you"
            " must."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = "" if is_grpc else parts.path.rstrip("/")
    return Address(f"{scheme}://{host}:{rest}{path}", where, grpc_port)


_SCHEMES = {
    "http": ("http", False), "https": ("https", False), "grpc": ("http", True), "grpcs": ("https", True),
}  # fmt: skip


_LIKE_ONE = "The address of a Qdrant server looks like http://localhost:6333 or https://host:6333."


def _port(parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise DataError(f"The address of {parts.hostname} has no valid port: 1 to 65535, usually 6333.")
    return port


def checked_key(key: str | None) -> str | None:
    """A key as it travels in a header, the white space around it taken off. Raises DataError for what cannot."""
    key = (key or "").strip()
    if found := re.search(r"[^\x21-\x7e]", key):
        raise DataError(
            f"The API key cannot be sent: its character {found.start() + 1} is no plain letter, digit or sign; copy the"
            " key again into XQG_VDB_API_KEY."
        )
    return key or None


def redacted(text: str, key: str) -> str:
    """`text` without any piece of the key that has eight characters or more, or without all of a shorter key."""
    size = min(len(key), 8)
    pieces = {key[at : at + size] for at in range(len(key) - size + 1)} - {""}
    hidden = {at + i for at in range(len(text)) if text[at : at + size] in pieces for i in range(size)}
    return re.sub("\0+", "***", "".join("\0" if at in hidden else text[at] for at in range(len(text))))


def port_number(text: str, *, of: str) -> int:
    """A port as it stands in the environment variable `of`. Raises DataError for anything else."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DataError(f"{of} must be a port from 1 to 65535, usually 6334; found {text!r}.")
    return int(text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
