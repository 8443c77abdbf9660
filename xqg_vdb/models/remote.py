"""Encoders that run elsewhere: behind an OpenAI-compatible `/v1/embeddings`, TEI's own `/embed`, or a user's callable.

Also the HTTP client that they share with generation: bounded patience, retries, and errors in our words. A key comes
from the environment, goes into one header, and never into a message, a log or a file.
"""

from __future__ import annotations

import base64
import email.utils
import ipaddress
import logging
import math
import os
import random
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np

from xqg_vdb.calibration import model_arrays
from xqg_vdb.errors import DataError, MismatchError, ModelError, ServerError, XqgError, one_line, redacted, told_in
from xqg_vdb.fusion import unit_rows
from xqg_vdb.models.folder import MANIFEST, ModelFolder
from xqg_vdb.progress import per_process, tick
from xqg_vdb.types import Vectors

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 525), 529})
UNREACHED, REFUSED = 5.0, 0.5  # seconds of patience with a host that has never answered, and where nobody listens
LONGEST_BODY = 4_000_000  # bytes of an answer in which a gateway's error is looked for

_log = logging.getLogger(__name__)


def check_url(url: str, *, key_variable: str) -> None:
    """Raises DataError for what is no URL of a server, and for one with a key in it."""
    try:
        parts = urlsplit(url)
        usable = httpx.URL(url).host and (parts.port or 1) and parts.scheme in ("http", "https") and url.isprintable()
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise DataError(f"An endpoint is a URL such as http://localhost:8000/v1, not {url.split('@')[-1]!r}.")
    if parts.username or parts.password:
        raise DataError(f"Put no key into the URL of {parts.hostname}; set {key_variable} instead.")


@contextmanager
def proxy_errors() -> Iterator[None]:
    """Raise DataError for what a client of HTTP says of the environment's proxy as soon as it is made."""
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise DataError(f"The proxy of the environment cannot be used ({error}): correct or unset it.") from None


def certificates() -> ssl.SSLContext:
    """What SSL_CERT_FILE names: httpx looks for it only where it looks for a proxy, too. Raises DataError."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise DataError(f"The certificates that SSL_CERT_FILE names cannot be read ({error}).") from None


class Server:
    """One server that is asked over HTTP, from several threads; `counts` has requests and retries."""

    def __init__(
        self, url: str, *, model: str, keys: Sequence[str], timeout: float, patience: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        check_url(url, key_variable=keys[0])
        self.url, self.model, self.host, self.patience = url.rstrip("/"), model, urlsplit(url).netloc, patience
        self.counts: Counter[str] = Counter()
        self.given_up = ""
        self._keys, self._sleep, self._lock = keys, sleep, threading.Lock()
        self._reached, self._warned = False, False
        self._key = next((key for name in keys if (key := os.environ.get(name, "").strip())), "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise DataError(f"The key in {' or '.join(keys)} has a character that no key has: set it again.")
        if self._key and urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname):
            raise DataError(f"A key would go unencrypted to {urlsplit(url).hostname}: use https.")
        local = is_loopback(urlsplit(url).hostname)
        head = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # a redirect would carry the key to another host; no proxy in the way of this machine
        make = partial(httpx.Client, headers=head, follow_redirects=False, trust_env=not local, verify=certificates())
        self._client = per_process(lambda: ending(make(timeout=timeout), lambda: timeout))
        with proxy_errors():
            self._client()

    def close(self) -> None:
        """Close the connections."""
        self._client().close()

    def post(
        self,
        path: str,
        body: Callable[[], dict[str, Any]],
        *,
        adapted: Callable[[Mapping[str, Any], httpx.Response], bool],
        slow: Callable[[Mapping[str, Any]], None] = lambda sent: None,
    ) -> httpx.Response:
        """The answer with status 200, however often it takes within the patience. Raises ServerError.

        adapted: whether a refused body will be another one, or be accepted, when it is made again. slow: told of a body
        that was not answered in time, before it is sent again; may raise instead.
        """
        start, pause = time.monotonic(), 0.5
        while True:
            if self.given_up:  # another request of the batch was refused for good
                raise ServerError(self.given_up)
            reason, wait, sent = "", 0.0, body()
            try:
                self.count({"requests": 1})
                response = self._client().post(self._address(path), json=sent)
                self._reached, status = True, _status(response)
                if status == 200:
                    return response
                reason = self.without_key(f"status {status} {told_in(response.content)}".strip())
                wait = seconds_asked(response.headers.get("Retry-After", "")) or 0.0
                if status in (400, 413, 422, 501) and adapted(sent, response):
                    continue
                if status not in RETRIED or b"insufficient_quota" in response.content:  # nobody pays: it stays so
                    self.give_up(self._refusal(response))
            except httpx.HTTPError as error:
                why = re.sub(r" \(_ssl\.c.*|^\[Errno.*?\] ", "", str(error))  # what is wrong with a certificate, a name
                reason = "Connection refused" if "refused" in why else f"{type(error).__name__}: {why}".rstrip(": ")
                if isinstance(error, httpx.ReadTimeout):
                    slow(sent)
            wait = max(wait, random.uniform(0.1, pause))  # noqa: S311 -- jitter, not a secret
            self._wait_or_give_up(reason, wait, spent=time.monotonic() - start)
            pause = min(2 * pause, 30.0)

    def _address(self, path: str) -> str:
        base, mark, query = self.url.partition("?")  # such as Azure's api-version
        return base.rstrip("/").removesuffix(path) + path + mark + query

    def give_up(self, sentence: str) -> NoReturn:
        """Refuse this request, and those of other threads that wait."""
        self.given_up = sentence
        raise ServerError(sentence)

    def without_key(self, text: str) -> str:
        """The text, in which the key does not show."""
        return redacted(text, self._key)

    def count(self, more: Mapping[str, int]) -> None:
        """Add to `counts`."""
        with self._lock:
            self.counts.update(more)

    def _wait_or_give_up(self, reason: str, wait: float, *, spent: float) -> None:
        patience = self.patience
        if not self._reached and spent + wait > min(REFUSED if "refused" in reason else UNREACHED, patience):
            away = "is not there" if reason.startswith("Connect") else "gives no answer that can be read"
            self.give_up(f"{self.host} {away} ({reason}{self._proxy()}): start it, or correct the URL.")
        if spent + wait > patience:
            kept = "what was made is kept: run the same command again when it is back."
            self.give_up(f"{self.host} did not answer for {patience:.0f} s ({reason}); {kept}")
        if self._reached and not self._warned:
            self._warned = True
            _log.warning("%s: %s; trying again for up to %.0f s", self.host, reason, patience)
        self.count({"retries": 1})
        self._sleep(wait)

    def _proxy(self) -> str:
        """What the environment puts between, for a sentence; without its password."""
        url = urlsplit(self.url)
        if is_loopback(url.hostname) or proxy_bypass(url.netloc):
            return ""
        proxy = getproxies().get(url.scheme) or getproxies().get("all")
        return f", through the proxy {proxy.split('@')[-1]} of {url.scheme.upper()}_PROXY or ALL_PROXY" if proxy else ""

    def _refusal(self, response: httpx.Response) -> str:
        hint = {
            401: f"set {self._keys[0]} to a valid key",
            403: f"set {self._keys[0]} to a key that may use this model",
            404: f"check the URL, which ends with /v1 as a rule, and the model name {self.model!r}",
        }.get(status := _status(response), "")
        if response.has_redirect_location:
            hint = f"it sends to {one_line(response.headers['Location'])}: give the URL of the API itself"
        reason = self.without_key(told_in(response.content))
        told = "; ".join(filter(None, (reason.rstrip("."), hint))) or "see its log for the reason"
        return f"{self.host} refused the request with status {status}: {told}."


class _Ending:
    """What opens connections (httpcore's backend), and one of them, whose answer ends `seconds` after the request."""

    def __init__(self, inner: Any, seconds: Callable[[], float]) -> None:
        self._inner, self._seconds, self._end = inner, seconds, math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def connect_tcp(self, host: str, port: int, timeout: float, local_address: str | None, socket_options: Any) -> Any:
        inner = self._inner.connect_tcp(host, port, self._seconds(), local_address, socket_options)
        return _Ending(inner, self._seconds)

    def start_tls(self, ssl_context: Any, server_hostname: str | None, timeout: float | None) -> _Ending:
        return _Ending(self._inner.start_tls(ssl_context, server_hostname, self._seconds()), self._seconds)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._end = time.monotonic() + self._seconds()
        self._inner.write(buffer, self._seconds())

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        if (left := self._end - time.monotonic()) <= 0:
            raise httpx.ReadTimeout("the answer comes too slowly")
        return self._inner.read(max_bytes, left)


def ending(client: httpx.Client, seconds: Callable[[], float]) -> httpx.Client:
    """The client, no answer to which takes longer: its own timeout begins anew with each byte that drips."""
    for transport in filter(None, (client._transport, *client._mounts.values())):
        pool = transport._pool  # type: ignore[attr-defined]  # it has no public name
        pool._network_backend = _Ending(pool._network_backend, seconds)
    return client


def _status(response: httpx.Response) -> int:
    """The status, also one that a gateway wrote into the `error` of a body under status 200."""
    with suppress(ValueError, KeyError, TypeError, IndexError, RecursionError):
        if response.is_success and len(response.content) <= LONGEST_BODY:
            return int(code) if (code := response.json()["error"]["code"]) in RETRIED else 200
    return 200 if response.is_success else response.status_code


def is_loopback(host: str | None) -> bool:
    """Whether a host, by name or address, is this machine."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def seconds_asked(value: str) -> float | None:
    """What a `Retry-After` asks for, from now on, at most 120; None for nothing sensible."""
    with suppress(ValueError, TypeError, OverflowError):
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
            return min(float(value), 120.0)
        moment = email.utils.parsedate_to_datetime(value)
        left = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        return min(max(left, 0.0), 120.0)
    return None


# Rows from elsewhere.

KEY_VARIABLES = ("XQG_VDB_ENCODER_KEY", "OPENAI_API_KEY")
CANARY = "canary.npz"
CANARY_TEXTS = (
    "How long is the Nile?", "Je, Mto Nile una urefu gani?", "ما هو طول نهر النيل؟",
    "The Nile is a major north-flowing river in northeastern Africa. It flows into the Mediterranean Sea.",
)  # fmt: skip
SAME_MODEL = 0.999  # cosine; servers with other hardware or batches differ in the fourth decimal
PROMPT = "prompt_name:"
"""In place of a prefix: the name of a prompt that the server puts before a text (TEI's `/embed`)."""
_TOO_LONG = re.compile(r"token(?!iz)|context|length|too (long|large)|maximum", re.IGNORECASE)
_SHORT = 200  # characters; what is refused at this length is refused for another reason
_TEXTS, _CHARACTERS = 64, 100_000  # of a request; a server that takes less says so, and gets halves
_MANY, _AGAIN = 8, 60.0  # after more texts than that, and after so many seconds, the model is checked


class Remote:
    """Texts to rows by a callable that is asked for a bounded number of texts at a time."""

    def __init__(
        self, embed: Callable[..., Any], *, name: str, concurrency: int = 1, close: Callable[[], object] = int
    ) -> None:
        self._embed, self._name, self._close = embed, name, close
        self._known, self._folder, self._checked_at = np.zeros((0, 0), np.float32), Path(), 0.0
        self._pool = per_process(partial(ThreadPoolExecutor, concurrency, thread_name_prefix="xqg-embed"))

    def close(self) -> None:
        """Stop the threads and close the connections."""
        self._pool().shutdown(cancel_futures=True)
        self._close()

    def expect(self, folder: Path) -> None:
        """From here on the rows of the canaries must be those in `folder`. Raises ModelError, MismatchError."""
        with model_arrays(folder / CANARY, "rows") as arrays:
            self._known, self._folder = arrays["rows"], folder
        self._check()

    def _check(self) -> None:
        rows, lowest = self._asked(CANARY_TEXTS, self._embed, set()), -1.0
        if rows.shape == self._known.shape:
            lowest = float(np.min(np.sum(unit_rows(rows) * unit_rows(self._known), axis=1)))
        if not lowest >= SAME_MODEL:
            raise MismatchError(
                f"{self._name} is not the model that {self._folder} was made of (cosine {lowest:.3f} to its rows of"
                " then): its vectors do not fit those of before. Export it to another folder, and load with that."
            )
        self._checked_at = time.monotonic()

    def rows(self, texts: Sequence[str], *, prefix: str = "") -> Vectors:
        """Rows (n, dim) float32. Raises ModelError for what is none, ServerError, UnicodeError.

        Many, and now and then a few, only if the model is the expected one after it: MismatchError.
        """
        for text in texts:
            text.encode()
        embed, prompt = self._embed, prefix.removeprefix(PROMPT)
        if prompt != prefix:
            texts, embed = [text[len(prefix) :] for text in texts], partial(embed, prompt=prompt)
        rows = self._asked(texts, embed, {self._known.shape[1]} - {0})
        if len(self._known) and (len(texts) > _MANY or time.monotonic() > self._checked_at + _AGAIN):
            self._check()
        return rows

    def _asked(self, texts: Sequence[str], embed: Callable[..., Any], widths: set[int]) -> Vectors:
        step = max(1, min(_TEXTS, _CHARACTERS // max(map(len, texts))))
        batches = [list(texts[start : start + step]) for start in range(0, len(texts), step)]

        def asked(batch: list[str]) -> Vectors:
            try:
                return np.asarray(embed(list(batch)), np.float32)
            except XqgError:
                raise
            except Exception as error:  # whatever a callable of the user's raises
                why = one_line(f"{type(error).__name__}: {error}")
                raise ModelError(f"{self._name} gives no rows of numbers that are equally long ({why}).") from error

        parts = []
        for part, batch in zip(self._pool().map(asked, batches), batches, strict=True):
            if part.ndim != 2 or len(part) != len(batch) or not part.shape[1]:
                raise ModelError(f"{self._name} gives rows {part.shape} for {len(batch)} texts: one row for each.")
            if not np.isfinite(part).all() or not part.any(axis=1).all():
                raise ModelError(f"{self._name} gives a vector that is not finite, or all zeros.")
            parts.append(part)
            tick(len(batch))
        if len(widths := widths | {part.shape[1] for part in parts}) > 1:
            raise ModelError(f"{self._name} gives rows of different dimensions: {sorted(widths)}.")
        return np.concatenate(parts)


class _Endpoint:
    """`/embeddings` of a server, or its `/embed`. A setting that it refuses by name is left out from then on."""

    def __init__(self, server: Server) -> None:
        self.server, self._embed, self._most, self._refused = server, takes_prompts(server.url), _TEXTS, 0
        # lengths are this side's business, and a text too long is cut there
        self._settings = dict[str, Any](normalize=False, truncate=True) if self._embed else {"encoding_format": "float"}

    def __call__(self, texts: list[str], prompt: str = "") -> list[Any]:
        self.server.given_up = ""
        if len(texts) > self._most:
            return self(texts[: self._most], prompt) + self(texts[self._most :], prompt)
        path = "" if self._embed else "/embeddings"
        try:
            response = self.server.post(path, lambda: self._body(texts, prompt), adapted=self._adapted, slow=self._slow)
        except _TooLargeError as error:
            self._refused += 1
            if len(texts) > 1:  # smaller requests pass, or one text alone is refused, by its reason
                refused, middle = self._refused, len(texts) // 2
                halves = self(texts[:middle], prompt) + self(texts[middle:], prompt)
                if self._refused == refused:  # it is about their number: so many at a time from now on
                    self._most = min(self._most, len(texts) - middle)
                return halves
            if not (_TOO_LONG.search(str(error)) and len(texts[0]) > _SHORT):
                self.server.give_up(f"{self.server.host} refused a text ({texts[0][:60]!r}): {error}.")
            return self([texts[0][: len(texts[0]) * 3 // 4]], prompt)  # cut, as an encoder of ours cuts
        rows = self._read(response, len(texts))
        if "encoding_format" in self._settings:  # shorter, once the canaries have told what is meant
            self._settings["encoding_format"] = "base64"
        return rows

    def _adapted(self, sent: Mapping[str, Any], response: httpx.Response) -> bool:
        reason = self.server.without_key(told_in(response.content))
        for setting in [name for name in self._settings if name in sent and name in reason]:
            self._settings.pop(setting)
            return True
        raise _TooLargeError(reason)

    def _slow(self, sent: Mapping[str, Any]) -> None:
        if len(sent["inputs" if self._embed else "input"]) > 1:
            raise _TooLargeError("it takes too long")

    def _body(self, texts: list[str], prompt: str) -> dict[str, Any]:
        if self._embed:
            return {"inputs": texts, **self._settings, **({"prompt_name": prompt} if prompt else {})}
        return {"model": self.server.model, "input": texts, **self._settings}

    def _read(self, response: httpx.Response, count: int) -> list[Any]:
        why = ""
        try:
            data = response.json()
            data = [{"embedding": row} for row in data] if self._embed else data["data"]
            order = [int(i if entry.get("index") is None else entry["index"]) for i, entry in enumerate(data)]
            if sorted(order) != list(range(count)):
                why = f"numbered {order}"[:60] if len(data) == count else f"{len(data)} vectors for {count} texts"
                raise ValueError(why)
            rows: list[Any] = [None] * count
            for place, entry in zip(order, data, strict=True):
                row = entry["embedding"]
                rows[place] = np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row
            if isinstance(row, str) and not 1e-3 < np.abs(rows[place]).max(initial=0.0) < 1e6:
                raise ValueError(why := "base64, but not of float32")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            said = self.server.without_key(told_in(response.content)) or "an empty body"
            why = why or "check the URL, which ends with /v1 as a rule"
            raise ServerError(f"{self.server.host} answers without vectors ({why}): {said}") from None
        return rows


class _TooLargeError(Exception):
    """Why a request was refused that may pass with fewer or shorter texts."""


def takes_prompts(url: str) -> bool:
    """Whether an address is of TEI's own protocol, whose prompts have names."""
    return url.rstrip("/").endswith("/embed")


def ask_endpoint(url: str, model: str, *, concurrency: int = 8) -> Remote:
    """Rows from a server. url: up to and with an OpenAI-compatible `/v1`, or `/embed`. Raises DataError for no URL."""
    server = Server(url, model=model, keys=KEY_VARIABLES, timeout=120.0, patience=600.0)
    return Remote(_Endpoint(server), name=f"{model} at {server.host}", concurrency=concurrency, close=server.close)


def open_remote(folder: ModelFolder, *, embed: Callable[[list[str]], Any] | None) -> Remote:
    """The rows of a folder that `export` wrote of a server or of a callable, if the model is still the one it was.

    A callable that is not given is the one that XQG_VDB_CALLABLE names, as module:function.
    Raises MismatchError when it is another, ModelError without the callable, ServerError.
    """
    try:
        url, model = (folder.manifest["remote"][key] for key in ("url", "model"))
    except (TypeError, KeyError) as error:
        raise ModelError(f"{folder.path / MANIFEST} does not say where its model runs; export it again.") from error
    if url is None and not (embed := embed or _named(os.environ.get("XQG_VDB_CALLABLE", ""))):
        raise ModelError(
            f"{folder.path} was made of a Python callable ({model}): open it by Encoder(folder, embed=…), or name it in"
            " XQG_VDB_CALLABLE as module:function."
        )
    remote = ask_endpoint(str(url), model) if embed is None else Remote(embed, name=model)
    try:
        remote.expect(folder.path)
    except BaseException:
        remote.close()
        raise
    return remote


def _named(word: str) -> Callable[[list[str]], Any] | None:
    if not word:
        return None
    try:
        found = resolve_name(word)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(f"XQG_VDB_CALLABLE={word} cannot be imported ({error}): give module:function.") from error
    if not callable(found):
        raise ModelError(f"XQG_VDB_CALLABLE={word} is no function.")
    return cast(Callable[[list[str]], Any], found)
