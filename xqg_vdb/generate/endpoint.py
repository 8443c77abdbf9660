"""Generation through an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a cloud.

Concurrency is bounded, what may pass is retried, tokens and cost are counted.

The key comes from the environment (`XQG_VDB_GENERATOR_KEY`, else `OPENAI_API_KEY`), goes into one header, and never
into a message, a log or a file. An answer without a query is asked for once more, then counted; `run` stops when there
is nothing else.
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx

from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.generate.answers import broken, query_of, said
from xqg_vdb.generate.prompts import CausalPrompt, chat
from xqg_vdb.generate.run import BatchGenerator
from xqg_vdb.models.decode import row_key
from xqg_vdb.types import GeneratedQueries, Passage

KEY_VARIABLES = ("XQG_VDB_GENERATOR_KEY", "OPENAI_API_KEY")
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
UNREACHED = 5.0  # seconds of patience with a host that has never answered
LONGEST_BODY = 4_000_000  # bytes of an answer
LONGEST_PASSAGE = 8_000  # characters; the instruction follows the passage and must survive a server's own cutting

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to ask. url: up to and with `/v1`.

    price_read, price_written: per million tokens, for the totals.
    patience: seconds to keep trying one request that fails for a reason that may pass.
    """

    url: str
    model: str
    concurrency: int = 8
    temperature: float = 0.8
    max_tokens: int = 64
    seed: int = 313
    timeout: float = 120.0
    patience: float = 600.0
    price_read: float = 0.0
    price_written: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"An endpoint is a URL such as http://localhost:8000/v1, not {self.url.split('@')[-1]!r}.")
        if parts.username or parts.password:
            raise DataError(f"Put no key into the URL of {parts.hostname}; set {KEY_VARIABLES[0]} instead.")


class EndpointGenerator(BatchGenerator):
    """A `QueryGenerator` that asks an endpoint, one request per query; close it, or use it in a `with` block."""

    tries_again = True

    def __init__(
        self, endpoint: Endpoint, *, prompt: CausalPrompt | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint, self.prompt, self.failure = endpoint, prompt or chat("", ""), ""
        self._counts: Counter[str] = Counter()
        self._lock, self._sleep, self._given_up = threading.Lock(), sleep, ""
        self._reached, self._warned = False, False
        self._body: dict[str, Any] = {"model": endpoint.model, "temperature": endpoint.temperature}
        self._body |= {"max_tokens": endpoint.max_tokens, "seed": endpoint.seed}
        self._host = urlsplit(endpoint.url).netloc
        self._key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
        if self._key and urlsplit(endpoint.url).scheme == "http" and not _is_loopback(endpoint.url):
            raise DataError(f"A key would go unencrypted to {urlsplit(endpoint.url).hostname}: use https.")
        self._client = _client(endpoint, self._key)
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="xqg-endpoint")

    def describe(self) -> dict[str, Any]:
        """What the queries depend on, as far as we can know it."""
        settings = asdict(self.endpoint)
        asked = {key: settings[key] for key in ("model", "temperature", "max_tokens", "seed")}
        return {"kind": "endpoint", "host": self._host, **asked, "prompt": self.prompt.to_json()}

    def examples(self) -> tuple[str, ...]:
        """Questions in the prompt that must not come back."""
        return self.prompt.examples

    def counters(self) -> dict[str, float]:
        """Requests, retries, useless answers, tokens and cost so far."""
        with self._lock:
            counts: dict[str, float] = dict(self._counts)
        read, written = counts.get("tokens_read", 0), counts.get("tokens_written", 0)
        cost = (read * self.endpoint.price_read + written * self.endpoint.price_written) / 1e6
        return {**counts, "cost": round(cost, 6)}

    def batch_size(self, query_langs: Sequence[str], n: int) -> int:
        """Passages whose requests are sent together; enough to keep all connections busy."""
        return max(1, 4 * self.endpoint.concurrency // (len(query_langs) * n))

    def generate_batch(
        self, batch: Sequence[Passage], *, query_langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """The records of a few passages. Raises ServerError when the endpoint is away for good or refuses."""
        self._given_up = ""
        seed = self.endpoint.seed + attempt
        asked = [
            (self._message(passage, lang), row_key(seed, passage.id, lang, i) % 2**31)
            for passage in batch
            for lang in query_langs
            for i in range(n)
        ]
        answers = iter(list(self._pool.map(lambda request: self._ask(*request, read=query_of), asked)))
        return [
            GeneratedQueries(
                p.id, {lang: tuple(filter(None, [next(answers) for _ in range(n)])) for lang in query_langs}
            )
            for p in batch
        ]

    def complete(self, messages: Sequence[str]) -> list[str]:
        """One answer per message, in order, empty when there is none. Raises ServerError like `generate_batch`."""
        self._given_up = ""
        asked = [self._pool.submit(self._ask, message, self.endpoint.seed, read=said) for message in messages]
        wait(asked)  # a straggler that fails must not stop the next call
        return [answer.result() for answer in asked]

    def close(self) -> None:
        """Stop the threads and close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def __enter__(self) -> EndpointGenerator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _message(self, passage: Passage, lang: str) -> str:
        before, after = self.prompt.passage_parts(passage)
        return self.prompt.prefix + before[:LONGEST_PASSAGE] + after + self.prompt.ending(lang)

    def _ask(self, message: str, seed: int, *, read: Callable[[str], str]) -> str:
        for _ in range(2):  # an answer without a query is asked for once more
            response = self._post(message, seed)
            try:
                if text := read(self._content(response)):
                    return text
                reason = f"it wrote {_one_line(self._content(response))!r}"
            except _NoAnswerError as error:
                reason = str(error)
            self.failure = f"{self._host}: {self._without_key(reason)}"
            self._count({"useless_answers": 1})
        return ""

    def _content(self, response: httpx.Response) -> str:
        """The text of an answer. Raises _NoAnswerError, with what the server sent instead."""
        if len(response.content) > LONGEST_BODY:
            raise _NoAnswerError(f"an answer of {len(response.content):,} bytes")
        try:
            choice = response.json()["choices"][0]
            content, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _NoAnswerError(_reason(response) or "an empty body") from None
        if isinstance(content, list):  # in parts
            parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
            content = "".join(text for part in parts if isinstance(text := part.get("text"), str))
        if not isinstance(content, str) or not content.strip():
            thought = any(choice["message"].get(key) for key in ("reasoning_content", "reasoning", "thinking"))
            why = "it only reasoned" if thought else "the answer is empty"
            raise _NoAnswerError(why + self._cut_short(finish))
        if broken(content):
            raise _NoAnswerError("an answer that is too long or no valid text")
        if finish == "length" and not said(content):
            raise _NoAnswerError("it only reasoned" + self._cut_short(finish))
        return content

    def _cut_short(self, finish: object) -> str:
        limit = self.endpoint.max_tokens
        return f", and was cut at {limit} tokens: raise --max-tokens, or switch its reasoning off" * (
            finish == "length"
        )

    def _post(self, message: str, seed: int) -> httpx.Response:
        """The answer with status 200, however often it takes within the endpoint's patience."""
        start, pause = time.monotonic(), 0.5
        while True:
            if self._given_up:  # another request of the batch was refused for good
                raise ServerError(self._given_up)
            reason, wait = "", 0.0
            with self._lock:
                body = {**self._body, "messages": [{"role": "user", "content": message}]}
            body |= {"seed": seed} if "seed" in body else {}
            try:
                self._count({"requests": 1})
                response = self._client.post(self.endpoint.url.rstrip("/") + "/chat/completions", json=body)
                self._reached, status = True, _status(response)
                if status == 200:
                    self._count_tokens(response)
                    return response
                reason, wait = self._without_key(f"status {status} {_reason(response)}".strip()), _retry_after(response)
                if status in (400, 422) and self._adapted(body, response):
                    continue
                if status not in RETRIED:
                    self._give_up(self._refusal(response))
            except httpx.HTTPError as error:
                reason = type(error).__name__
            wait = max(wait, random.uniform(0.1, pause))  # noqa: S311 -- jitter, not a secret
            self._wait_or_give_up(reason, wait, spent=time.monotonic() - start)
            pause = min(2 * pause, 30.0)

    def _wait_or_give_up(self, reason: str, wait: float, *, spent: float) -> None:
        patience = self.endpoint.patience
        if not self._reached and spent + wait > min(UNREACHED, patience):
            self._give_up(f"{self._host} is not there ({reason}): start it, or correct the URL.")
        if spent + wait > patience:
            kept = "what was made is kept: run the same command again when it is back."
            self._give_up(f"{self._host} did not answer for {patience:.0f} s ({reason}); {kept}")
        if self._reached and not self._warned:
            self._warned = True
            _log.warning("%s: %s; trying again for up to %.0f s", self._host, reason, patience)
        self._count({"retries": 1})
        self._sleep(wait)

    def _give_up(self, sentence: str) -> NoReturn:
        self._given_up = sentence
        raise ServerError(sentence)

    def _adapted(self, body: Mapping[str, Any], response: httpx.Response) -> bool:
        """Whether the server refused a setting that later requests do without; other threads may have seen to it."""
        reason = _reason(response).lower()
        if "max_tokens" in body and re.search(
            r"max_completion_tokens|(?:un|not )(?:supported|known).*max_tokens", reason
        ):
            with self._lock:
                self._body.pop("max_tokens", None)
                self._body["max_completion_tokens"] = self.endpoint.max_tokens
            return True
        for name in ("temperature", "seed"):
            if name in body and re.search(rf"\b{name}\b", reason):
                with self._lock:
                    if self._body.pop(name, None) is not None:
                        _log.warning("%s takes no %s: asking without", self._host, name)
                return True
        return False

    def _refusal(self, response: httpx.Response) -> str:
        hint = {
            401: f"set {KEY_VARIABLES[0]} to a valid key",
            403: f"set {KEY_VARIABLES[0]} to a key that may use this model",
            404: f"check the URL, which ends with /v1 as a rule, and the model name {self.endpoint.model!r}",
        }.get(status := _status(response), "")
        reason = self._without_key(_reason(response))
        told = "; ".join(filter(None, (reason.rstrip("."), hint))) or "see its log for the reason"
        return f"{self._host} refused the request with status {status}: {told}."

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _count_tokens(self, response: httpx.Response) -> None:
        try:
            usage = response.json()["usage"]
            used = {"tokens_read": usage["prompt_tokens"], "tokens_written": usage["completion_tokens"]}
            self._count({name: int(count) for name, count in used.items()})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass  # a server that does not count; the answer may be good

    def _count(self, more: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(more)


class _NoAnswerError(Exception):
    """What a server sent instead of an answer."""


def _client(endpoint: Endpoint, key: str) -> httpx.Client:
    try:
        return httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=endpoint.timeout,
            follow_redirects=False,  # a redirect would carry the key to another host
            trust_env=not _is_loopback(endpoint.url),  # no proxy in the way of this machine
        )
    except (ImportError, ValueError) as error:
        raise DataError(f"The proxy of the environment cannot be used ({error}): correct or unset it.") from None


def _status(response: httpx.Response) -> int:
    """The status, also one that a gateway wrote into the `error` of a body under status 200."""
    if response.status_code != 200 or len(response.content) > LONGEST_BODY:
        return response.status_code
    try:
        code = response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return 200
    return code if isinstance(code, int) and code in RETRIED else 200


def _reason(response: httpx.Response) -> str:
    """What a server says of an error, on one line; empty when it says nothing."""
    try:
        record = response.json()
    except (ValueError, RecursionError):
        return _one_line(response.content[:1000].decode(errors="replace"))
    while isinstance(record, dict):
        record = next((record[key] for key in ("error", "message", "detail", "msg") if record.get(key)), str(record))
        record = record[0] if isinstance(record, list) and record else record
    return _one_line(str(record))


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:300]


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks for, at most 120; 0 when it says nothing sensible."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), 120.0) if seconds == seconds else 0.0
