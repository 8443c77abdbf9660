"""What an exception of qdrant-client means: whether and when to try again, its HTTP status, and its words on one line.

In: an exception, of either of the client's protocols. This file calls nothing.
"""

from __future__ import annotations

import email.utils
import random
import re
import ssl
from datetime import UTC, datetime

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
PASSING_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN"})
_STATUS_OF_CODE = {
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "OUT_OF_RANGE": 413,
}  # fmt: skip
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
SHORTEST_ASKED, LONGEST_ASKED = 0.1, 120.0
"""Bounds on what `Retry-After` may ask for, in seconds."""

_BAD_RETRY_AFTER = re.compile(r"Retry-After header value is not a valid integer: (.*)")


class NotDone(Exception):
    """The server answered, but has not finished what was asked for (`wait_timeout`): ask again."""


def wait_after(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None when repeating cannot help."""
    if isinstance(error, ResourceExhaustedResponse):
        return _asked(float(error.retry_after_s))
    if isinstance(error, QdrantException):  # how the client fails on a Retry-After that is a date
        found = _BAD_RETRY_AFTER.search(str(error))
        return _retry_after(found[1], attempt) if found else None
    if isinstance(error, UnexpectedResponse):
        header = error.headers.get("Retry-After")
        return _retry_after(header, attempt) if error.status_code in TRANSIENT else None
    if isinstance(error, ResponseHandlingException):
        return _backoff(attempt) if _is_passing(error.source) else None
    if isinstance(error, grpc.RpcError):
        return _backoff(attempt) if _code(error) in PASSING_CODES and status_of(error) is None else None
    return _backoff(attempt) if isinstance(error, NotDone) else None


def _code(error: grpc.RpcError) -> str:
    """Such as UNAVAILABLE; what gRPC raises is a call, too, which knows it."""
    return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"


def status_of(error: Exception) -> int | None:
    """The HTTP status of a refusal, or the one that a gRPC code stands for; None for everything else."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code
    if not isinstance(error, grpc.RpcError):
        return None
    if "message larger than max" in words_of(error):  # by the server's limit or ours
        return 413
    return _STATUS_OF_CODE.get(_code(error))


def _is_passing(source: Exception) -> bool:
    """Whether a broken conversation may go better next time; a certificate that is not trusted will not."""
    if isinstance(source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        return False
    untrusted = isinstance(source.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(source)
    return isinstance(source, httpx.TransportError) and not untrusted


def _backoff(attempt: int) -> float:
    """Exponential, with full jitter, so that many clients do not come back at once."""
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 16))
    return max(SHORTEST_ASKED, random.uniform(0, ceiling))  # noqa: S311 - not a secret


def _retry_after(header: str | None, attempt: int) -> float:
    """The wait that a header asks for (seconds or a date), else the usual one."""
    if not header:
        return _backoff(attempt)
    try:
        return _asked(float(header))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(header.strip())
    except ValueError:
        return _backoff(attempt)
    return _asked((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _asked(seconds: float) -> float:
    return min(max(seconds, SHORTEST_ASKED), LONGEST_ASKED)


def words_of(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, UnexpectedResponse):
        return f"{error.status_code} {error.reason_phrase} {_server_words(error)}".strip()
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}".partition("\n")[0][:200]
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{_code(error)}: {error.details()}".partition("\n")[0][:200]
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _server_words(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return error.content[:100].decode("utf-8", "replace").partition("\n")[0]
