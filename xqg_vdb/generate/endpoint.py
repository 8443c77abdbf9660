"""Generation through an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a cloud.

Concurrency is bounded, what may pass is retried, tokens and cost are counted.

The key comes from the environment (`XQG_VDB_GENERATOR_KEY`, else `OPENAI_API_KEY`), goes into one header, and never
into a message, a log or a file. An answer that is no answer is counted and left out; it never ends a run.
"""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.generate.prompts import CausalPrompt, chat
from xqg_vdb.generate.run import InBatches
from xqg_vdb.models.decode import row_key
from xqg_vdb.types import GeneratedQueries, Passage

KEY_VARIABLES = ("XQG_VDB_GENERATOR_KEY", "OPENAI_API_KEY")
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PASSAGE = 8_000  # characters; the instruction follows the passage and must survive a server's own cutting


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


class EndpointGenerator(InBatches):
    """A `QueryGenerator` that asks an endpoint, one request per query; close it, or use it in a `with` block."""

    def __init__(
        self, endpoint: Endpoint, *, prompt: CausalPrompt | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint, self.prompt = endpoint, prompt or chat("", "")
        self._counts: Counter[str] = Counter()
        self._lock, self._sleep, self._given_up = threading.Lock(), sleep, False
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key and urlsplit(endpoint.url).scheme == "http" and not _is_loopback(endpoint.url):
            raise DataError(f"A key would go unencrypted to {urlsplit(endpoint.url).hostname}: use https.")
        # a redirect would carry the key to another host
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=endpoint.timeout, follow_redirects=False
        )
        self._pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="xqg-endpoint")

    def describe(self) -> dict[str, Any]:
        """What the queries depend on, as far as we can know it."""
        settings = asdict(self.endpoint)
        asked = {key: settings[key] for key in ("model", "temperature", "max_tokens", "seed")}
        host = urlsplit(self.endpoint.url).netloc
        return {"kind": "endpoint", "host": host, **asked, "prompt": self.prompt.to_json()}

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
        self._given_up = False
        seed = self.endpoint.seed + attempt
        asked = [
            (self._message(passage, lang), row_key(seed, passage.id, lang, i) % 2**31)
            for passage in batch
            for lang in query_langs
            for i in range(n)
        ]
        answers = iter(list(self._pool.map(lambda request: self._ask(*request), asked)))
        return [
            GeneratedQueries(
                p.id, {lang: tuple(filter(None, [next(answers) for _ in range(n)])) for lang in query_langs}
            )
            for p in batch
        ]

    def complete(self, messages: Sequence[str]) -> list[str]:
        """One answer per message, in order, empty when there is none. Raises ServerError like `generate_batch`."""
        self._given_up = False
        asked = [self._pool.submit(self._ask, message, self.endpoint.seed) for message in messages]
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

    def _ask(self, message: str, seed: int) -> str:
        settings = self.endpoint
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": seed,
        }
        for _ in range(2):  # an answer without a question is asked for once more
            text = self._read(self._post(body))
            if text:
                return text
            self._count({"useless_answers": 1})
        return ""

    def _read(self, response: httpx.Response) -> str:
        """The question in an answer, empty when there is none."""
        try:
            record = response.json()
            usage = record.get("usage") or {}
            used = {"tokens_read": usage.get("prompt_tokens", 0), "tokens_written": usage.get("completion_tokens", 0)}
            self._count({name: int(count) for name, count in used.items()})
            text = record["choices"][0]["message"]["content"]
            return self.prompt.cut(text.strip()).strip('"“”«» ') if isinstance(text, str) else ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return ""

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        """The answer with status 200, however often it takes within the endpoint's patience."""
        start, pause = time.monotonic(), 0.5
        while True:
            if self._given_up:  # another request of the batch was refused for good
                raise ServerError("not sent")
            reason, wait = "", 0.0
            try:
                self._count({"requests": 1})
                response = self._client.post(self.endpoint.url.rstrip("/") + "/chat/completions", json=body)
                if response.status_code == 200:
                    return response
                reason, wait = f"status {response.status_code}", _retry_after(response)
                if response.status_code not in RETRIED:
                    self._given_up = True
                    raise ServerError(self._refusal(response))
            except httpx.HTTPError as error:
                reason = type(error).__name__
            wait = max(wait, random.uniform(0.1, pause))  # noqa: S311 -- jitter, not a secret
            if time.monotonic() - start + wait > self.endpoint.patience:
                self._given_up = True
                raise ServerError(
                    f"{urlsplit(self.endpoint.url).netloc} did not answer for {self.endpoint.patience:.0f} s "
                    f"({reason}); what was made is kept: run the same command again when it is back."
                )
            self._count({"retries": 1})
            self._sleep(wait)
            pause = min(2 * pause, 30.0)

    def _refusal(self, response: httpx.Response) -> str:
        host, status = urlsplit(self.endpoint.url).netloc, response.status_code
        hints = {
            401: f"set {KEY_VARIABLES[0]} to a valid key",
            403: f"set {KEY_VARIABLES[0]} to a key that may use this model",
            404: f"check the URL, which ends with /v1 as a rule, and the model name {self.endpoint.model!r}",
        }
        return f"{host} refused the request with status {status}: {hints.get(status, 'see its log for the reason')}."

    def _count(self, more: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(more)


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
