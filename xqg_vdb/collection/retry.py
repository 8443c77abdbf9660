"""One call to a Qdrant server, repeated while that can help, and its last error in words of ours.

In: a function that calls the client. Out: its value, or one of our errors. qdrant-client's own bulk methods repeat
without a pause, repeat refusals too, and obey `Retry-After: 0` for ever; this file is why nothing here uses them. It
refuses to know what is called, and no key ever reaches a message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import DataError, MismatchError, ServerError, XqgError
from .client_errors import status_of, wait_after, words_of

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
