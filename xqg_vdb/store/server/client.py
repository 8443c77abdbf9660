"""One call to a Qdrant server, repeated while that can help, and its last error in words of ours.

In: a function that calls the client. Out: its value, or one of our errors. qdrant-client's own bulk methods repeat
without a pause, repeat refusals too, and obey `Retry-After: 0` for ever; this file is why nothing here uses them. It
refuses to know what is called, and no key ever reaches a message.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_vdb.errors import DataError, MismatchError, ServerError, XqgError

# What an exception of qdrant-client means: whether and when to try again, its HTTP status, and its words on one line.

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


T = TypeVar("T")

_LOG_EVERY = 10.0
_FITS_NOT = re.compile(
    r"dimension error|not existing vector name|not aligned|is not found in the collection", re.IGNORECASE
)
_NO_COLLECTION = re.compile(r"^Collection \S+ not found", re.IGNORECASE)

_log = logging.getLogger(__name__)


class NotFound(ServerError):
    """The server has no such collection; the store says which ones there are."""


class TooLarge(ServerError):
    """The server refuses a request of this size; the writer halves it."""


class Refused(ServerError):
    """The server refuses what a request holds; the writer finds out which point it means."""


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

    def call(self, request: Callable[[], T], *, deadline: float | None = None) -> T:
        """What `request()` returns, after as many attempts as the deadline allows. It must be safe to repeat.

        Raises ServerError (NotFound, TooLarge), MismatchError or DataError.
        """
        end = self._end(deadline)
        attempt = 0
        while True:
            try:
                return request()
            except XqgError:
                raise
            except Exception as error:
                wait = self._pause(error, attempt, end=end)
            self._sleep(wait)
            attempt += 1

    async def call_async(self, request: Callable[[], Awaitable[T]], *, deadline: float | None = None) -> T:
        """The same for a request that is awaited; other coroutines run while it waits."""
        end = self._end(deadline)
        attempt = 0
        while True:
            try:
                return await request()
            except XqgError:
                raise
            except Exception as error:
                wait = self._pause(error, attempt, end=end)
            await asyncio.sleep(wait)
            attempt += 1

    def _end(self, deadline: float | None) -> float:
        return self._clock() + (self.deadline if deadline is None else deadline)

    def _pause(self, error: Exception, attempt: int, *, end: float) -> float:
        """Seconds to wait before trying again; raises when that cannot help, or not in time."""
        wait = wait_after(error, attempt)
        if wait is None:
            raise self._translated(error) from error
        if self._clock() + wait >= end:
            raise self._given_up(error) from error
        self._note(error, wait)
        return wait

    def pause(self, seconds: float) -> None:
        """Wait between two looks at the server."""
        self._sleep(seconds)

    def _note(self, error: Exception, wait: float) -> None:
        if self._clock() - self._logged >= _LOG_EVERY:
            self._logged = self._clock()
            _log.warning("%s: %s; trying again in %.1f s", self.where, self._said(error), wait)

    def _given_up(self, error: Exception) -> ServerError:
        return ServerError(
            f"{self.where} is away or overloaded ({self._said(error)}); check that it runs, then run the same command"
            " again."
        )

    def _translated(self, error: Exception) -> XqgError:
        said = self._said(error)
        status = status_of(error)
        if status in (401, 403):
            return ServerError(f"{self.where} refuses the API key, or wants one ({said}); set XQG_VDB_API_KEY.")
        if status == 413:
            return TooLarge(f"{self.where} refuses a request of this size ({said}); use smaller batches.")
        if _FITS_NOT.search(said):
            return MismatchError(f"The vectors do not fit the collection on {self.where}: {said}.")
        if status == 404 or _NO_COLLECTION.match(said):
            return NotFound(f"{self.where} has no such collection ({said}).")
        if status in (400, 422):
            return Refused(f"{self.where} refused the request for good ({said}).")
        if isinstance(error, json.JSONDecodeError):
            return ServerError(f"{self.where} does not answer in JSON ({said}); is it a Qdrant server?")
        if isinstance(error, (ValueError, TypeError)):  # the local mode's way to refuse
            return DataError(f"{self.where} refuses the data: {said}.")
        return ServerError(f"{self.where} refused the request for good ({said}).")

    def _said(self, error: Exception) -> str:
        text = words_of(error)
        return text.replace(self._secret, "***") if self._secret else text


# The address of a Qdrant server, checked before anything is sent there, an API key least of all.


def checked_address(url: str, *, api_key: str | None, insecure: bool) -> str:
    """Host and port for messages.

    Raises DataError for a URL without host or with a password in it, ServerError for a key that would be readable on
    the way.
    """
    parts = urlsplit(url if re.match(r"https?://", url) else f"//{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError("The address of a Qdrant server looks like http://localhost:6333 or https://host:6333.")
    if parts.username or parts.password:
        raise DataError(f"The address of {parts.hostname} holds a password; take it out and set XQG_VDB_API_KEY.")
    where = f"{parts.hostname}:{parts.port or 6333}"
    if api_key and parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise ServerError(
            f"The API key would travel unencrypted to {where}; use https, or XQG_VDB_INSECURE=1 (insecure=True) if you"
            " must."
        )
    return where


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
