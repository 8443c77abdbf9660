"""Generation through an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a cloud.

Concurrency is bounded, what may pass is retried, tokens and cost are counted.

The key comes from the environment (`XQG_VDB_GENERATOR_KEY`, else `OPENAI_API_KEY`), goes into one header, and never
into a message, a log or a file. An answer without a query is asked for once more, then counted; `run` stops when there
is nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx

from xqg_vdb.errors import one_line, told_in
from xqg_vdb.generate.prompts import CausalPrompt, asks, broken, chat, query_of, said
from xqg_vdb.generate.run import BatchGenerator
from xqg_vdb.models.remote import LONGEST_BODY, Server
from xqg_vdb.progress import per_process
from xqg_vdb.types import Passage

KEY_VARIABLES = ("XQG_VDB_GENERATOR_KEY", "OPENAI_API_KEY")
LONGEST_PASSAGE = 8_000  # characters; the instruction follows the passage and must survive a server's own cutting

_FILTERED = re.compile(  # Azure's, OpenAI's, DashScope's, DeepSeek's, Zhipu's words
    r"content[_ ](?:filter|management|policy|exists risk)|data_?inspection|inappropriate|was flagged|usage policy"
    r"|sensitive (?:word|content|information)|moderation|safety (?:filter|system|setting)|responsible_?ai"
)
_STOPPED = re.compile(r"filter|safety|recitation|prohibited|blocklist|spii", re.IGNORECASE)  # reasons to finish
_EVENTS = re.compile(rb"\s*(?:(?::|event:|id:|retry:)[^\n]*\s*)*data:")
MOST_TOKENS = 10**9  # of one answer; what says more does not count
_log = logging.getLogger(__name__)


class EndpointGenerator(BatchGenerator, AbstractContextManager["EndpointGenerator"]):
    """A generator that asks an endpoint, one request per query; close it, or use it in a `with` block.

    url: up to and with `/v1`. price: of a million tokens read and written, for the totals.
    patience: seconds to keep trying one request that fails for a reason that may pass.
    """

    tries_again = True
    cure = "raise --max-tokens, or switch its reasoning off"

    def __init__(
        self, url: str, model: str, *, prompt: CausalPrompt | None = None, concurrency: int = 8,
        temperature: float = 0.8, max_tokens: int = 64, seed: int = 313, timeout: float = 120.0,
        patience: float = 600.0, price: tuple[float, float] = (0.0, 0.0), sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.prompt, self.seed, self.rows = prompt or chat("", ""), seed, 4 * concurrency  # keep all connections busy
        self.examples, self._max_tokens, self._price = self.prompt.examples, max_tokens, price
        self._server = Server(url, model=model, keys=KEY_VARIABLES, timeout=timeout, patience=patience, sleep=sleep)
        self._lock = threading.Lock()
        self._body: dict[str, Any] = {"model": model, "temperature": temperature}
        self._body |= {"max_tokens": max_tokens, "seed": seed}
        self.settings = {"kind": "endpoint", "host": self._server.host, **self._body, "prompt": self.prompt.to_json()}
        self._pool = per_process(partial(ThreadPoolExecutor, concurrency, thread_name_prefix="xqg-endpoint"))

    def counters(self) -> dict[str, float]:
        """Requests, retries, useless answers, tokens and cost so far."""
        counts: dict[str, float] = dict(self._server.counts)
        tokens = counts.get("tokens_read", 0), counts.get("tokens_written", 0)
        cost = sum(count * price for count, price in zip(tokens, self._price, strict=True))
        return {**counts, "cost": round(cost / 1e6, 6)}

    def _texts(self, batch: Sequence[Passage], langs: Sequence[str], keys: Sequence[int], count: int) -> list[str]:
        self._server.given_up = ""
        messages = [self._message(passage, lang) for passage in batch for lang in langs for _ in range(count)]
        seeds = [key % 2**31 for key in keys]
        return list(self._pool().map(lambda message, seed: self._ask(message, seed, read=query_of), messages, seeds))

    def complete(self, messages: Sequence[str]) -> list[str]:
        """One answer per message, in order, empty when there is none. Raises ServerError like `generate_batch`."""
        self._server.given_up = ""
        asked = [self._pool().submit(self._ask, message, self.seed, read=said) for message in messages]
        wait(asked)  # a straggler that fails must not stop the next call
        return [answer.result() for answer in asked]

    def close(self) -> None:
        """Stop the threads and close the connections."""
        self._pool().shutdown(cancel_futures=True)
        self._server.close()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _message(self, passage: Passage, lang: str) -> str:
        before, after = self.prompt.passage_parts(passage)
        return self.prompt.prefix + before[:LONGEST_PASSAGE] + after + self.prompt.ending(lang)

    def _ask(self, message: str, seed: int, *, read: Callable[[str], str]) -> str:
        for _ in range(2):  # an answer without a query is asked for once more
            try:
                content, cut = self._content(self._post(message, seed))
                text = read(content)
                if text and not (cut and read is query_of and not asks(text)):
                    return text
                why = "it only reasoned" if cut and not said(content) else f"it wrote {one_line(content)!r}"
                reason = why + cut
            except _NoAnswerError as error:
                reason = str(error)
            self.failure = f"{self._server.host}: {self._server.without_key(reason)}".rstrip(".")
            self._server.count({"useless_answers": 1})
        return ""

    def _content(self, response: httpx.Response) -> tuple[str, str]:
        """The text of an answer, and what to do where it was cut. Raises _NoAnswerError, with what came instead."""
        if len(response.content) > LONGEST_BODY:
            raise _NoAnswerError(f"an answer of {len(response.content):,} bytes")
        try:
            choices = _record(response)["choices"]  # several, where a server was told so: the first that says something
            choice = next((one for one in choices if _joined(one["message"].get("content")).strip()), choices[0])
            message, finish = choice["message"], choice.get("finish_reason")
            calls = message.get("tool_calls") or [{"function": message.get("function_call")}]  # though it has no tools
            content = _joined(message.get("content")) or str((calls[0].get("function") or {}).get("arguments") or "")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            hint = "" if b'"error"' in response.content else " (no chat completion: check the URL)"
            raise _NoAnswerError((told_in(response.content) or "an empty body") + hint) from None
        cut = f", and was cut at {self._max_tokens} tokens: {self.cure}" if finish == "length" else ""
        cut = "; its filter kept the answer back" if _STOPPED.search(str(finish)) else cut
        if not content.strip():
            raise _NoAnswerError(_silence(choice, message) + cut)
        if broken(content):
            raise _NoAnswerError("an answer that is too long or no valid text")
        return content, cut

    def _post(self, message: str, seed: int) -> httpx.Response:
        def body() -> dict[str, Any]:
            with self._lock:
                settings = {**self._body, "messages": [{"role": "user", "content": message}]}
            return settings | ({"seed": seed} if "seed" in settings else {})

        response = self._server.post("/chat/completions", body, adapted=self._adapted)
        self._count_tokens(response)
        return response

    def _adapted(self, body: Mapping[str, Any], response: httpx.Response) -> bool:
        """Whether the server refused a setting that later requests do without; other threads may have seen to it.

        Raises _NoAnswerError when it refused this one text.
        """
        told = response.text[:LONGEST_PASSAGE].lower()  # whole: some name the setting outside their sentence
        if re.search(r"\bstream\b|\bstreaming\b", told) and "stream" not in body:  # some models do not answer else
            with self._lock:
                self._body["stream"] = True
            return True
        if _FILTERED.search(told):
            raise _NoAnswerError(f"its filter kept the answer back: {told_in(response.content)}")
        for name in ("max_tokens", "max_completion_tokens", "temperature", "seed"):
            if name not in body or not re.search(rf"\b{name}\b", told):
                continue
            if name[:3] == "max" and re.search(r"\b(?:context|exceeds?|too (?:large|small)|at (?:most|least))\b", told):
                continue  # of its value the user decides
            with self._lock:
                if self._body.pop(name, None) is not None:
                    if name == "max_tokens":
                        self._body["max_completion_tokens"] = self._max_tokens
                    else:
                        _log.warning("%s takes no %s: asking without", self._server.host, name)
            return True
        return False

    def _count_tokens(self, response: httpx.Response) -> None:
        try:
            usage = _record(response)["usage"]
            used = {"tokens_read": usage["prompt_tokens"], "tokens_written": usage["completion_tokens"]}
            self._server.count({name: min(max(int(count), 0), MOST_TOKENS) for name, count in used.items()})
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            pass  # a server that does not count; the answer may be good


def _record(response: httpx.Response) -> Any:
    """The body of an answer, made of its pieces where a server streams though nobody asked it to."""
    if not _EVENTS.match(response.content):
        return response.json()
    events = [json.loads(told) for told in re.findall(rb"^data:\s*(\{.*)", response.content, re.MULTILINE)]
    choices = [choice for event in events for choice in event.get("choices") or [] if not choice.get("index")]
    deltas = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    message = {key: value for delta in deltas for key, value in delta.items()}
    message["content"] = "".join(_joined(delta.get("content")) for delta in deltas)
    finish = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), None)
    usage = next((event["usage"] for event in events if event.get("usage")), None)
    if not choices or not (finish or b"[DONE]" in response.content):  # an error, or a stream that broke off
        raise ValueError
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _joined(content: Any) -> str:
    """The text of an answer, which some servers give in parts, or as a record."""
    if isinstance(content, list):
        return "".join(map(_joined, content))
    if isinstance(content, dict):
        if content.get("type") not in (None, "text", "output_text"):
            return ""
        inner = content.get("text", content.get("value"))
        return _joined(inner) if inner is not None else json.dumps(content, ensure_ascii=False)
    return content if isinstance(content, str) else ""


def _silence(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    """Why an answer has no text."""
    if told := choice.get("error") or message.get("refusal"):
        return f"it says {one_line(str(told))!r}"
    if any(message[key] for key in message if re.search("reason|think|thought", key)):
        return "it only reasoned"
    return "the answer is empty"


class _NoAnswerError(Exception):
    """What a server sent instead of an answer."""
