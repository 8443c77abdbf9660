"""Text to vectors with an exported encoder: onnxruntime and tokenizers only, no torch, no transformers.

A folder without a graph names a server, or belongs to a Python callable (`remote.py`); all else is the same.

In: any iterable of texts. Out: float32 rows in input order. Work goes in bounded windows of the stream; inside a
window, texts are batched by a token budget. Each batch runs on one thread and `threads` batches run side by side: on a
CPU that beats one batch on all threads, because element-wise operators and short batches do not scale over threads.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.calibration import LanguageMeans, calibrated, model_arrays
from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.models.engine import CPU, Engine, cpu_has_vnni, open_encoder_graph, open_tokenizer
from xqg_vdb.models.folder import (
    DENSE,
    GRAPH,
    STARTER,
    TOKENIZER,
    EncoderSpec,
    ModelFolder,
    encoder_folder,
    open_model_folder,
)
from xqg_vdb.progress import per_process, tick, windows
from xqg_vdb.texts.languages import without_long_blanks
from xqg_vdb.texts.records import expect, listed
from xqg_vdb.types import EncoderFacts, Pooling, Vectors

if TYPE_CHECKING:
    from xqg_vdb.models.remote import Remote

WINDOW = 512
"""Texts that are sorted together; also what a killed load has to encode again, at most."""

_CHARACTERS_PER_TOKEN = (
    16  # generous: real text has 2 to 6; a megabyte would take a second to tokenise before truncation
)
_MAX_ROWS = 256
_SURROGATE = re.compile("[\ud800-\udfff]")


class Encoder(AbstractContextManager["Encoder"]):
    """A dual encoder exported by `xqg-vdb export`, ready to encode; safe to use from several threads at once.

    model: a model folder, a hub id, or `starter`; what has a name is exported when it is first used, which needs the
    extra `export` (and `starter`) and a minute or two.
    engine: what runs the graph; those of OpenVINO need the extra `openvino`.
    threads: CPU threads, default all that this process may use.
    provider: an onnxruntime execution provider, as named by `onnxruntime.get_available_providers()`.
    calibration: λ for `encode_queries`; None takes what `export` measured for this encoder, 0 switches it
    off. batch_tokens: padded tokens in a batch. max_length: tokens a text is cut to, at most the model's own (default).
    embed: for a folder that was exported from a callable, that callable.
    Raises ModelError when the model or the provider is not to be had, CorruptError when a file was changed.
    """

    at_once = 1  # windows of a corpus that it can be asked for at a time

    def __init__(
        self,
        model: str | Path = STARTER,
        *,
        engine: Engine = "onnxruntime",
        threads: int | None = None,
        provider: str = CPU,
        calibration: float | None = None,
        batch_tokens: int = 1024,
        max_length: int | None = None,
        embed: Callable[[list[str]], Any] | None = None,
    ) -> None:
        expect("The model of an encoder", model, (str, PathLike), "'starter', a hub id or a model folder")
        self.folder: ModelFolder = open_model_folder(encoder_folder(model))
        self.spec = self.folder.spec
        self.threads = _checked_threads(threads)
        self.provider = provider
        self.calibration = self.folder.recommended_calibration if calibration is None else calibration
        expect("calibration", self.calibration, Real, "a number")
        self.language_means: LanguageMeans = self.folder.language_means()
        self.max_length = min(max_length or self.spec.max_length, self.spec.max_length)
        self.again = partial(
            Encoder, self.folder.path, engine=engine, threads=self.threads, provider=provider, embed=embed,
            calibration=self.calibration, batch_tokens=batch_tokens, max_length=self.max_length,
        )  # fmt: skip
        self._rows: _Graph | Remote
        if "remote" in self.folder.manifest:
            from xqg_vdb.models.remote import open_remote  # brings an HTTP client

            self._rows = open_remote(self.folder, embed=embed)
        else:
            spec = replace(self.spec, max_length=self.max_length)
            self._rows = _Graph(self.folder, spec, engine, self.threads, provider, batch_tokens)

    @property
    def facts(self) -> EncoderFacts:
        """The conventions and the fingerprint that go into a collection's card."""
        return self.folder.facts

    @property
    def fingerprint(self) -> str:
        """That of `facts`."""
        return self.facts.fingerprint

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) float32 for passages, in input order, with the passage prefix.

        Raises DataError for a blank text, ModelError for a NaN or zero vector; both name the text.
        """
        return self._stack(self.stream_passages(texts))

    def stream_passages(self, texts: Iterable[str]) -> Iterator[Vectors]:
        """The rows of `encode_passages`, a window at a time, for streams of any length in bounded memory."""
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            texts = listed(texts)
        return self._stream(texts, prefix=self.spec.passage_prefix)

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """Rows (n, dim) float32 for questions, in input order, with the query prefix, calibrated for their languages.

        question_langs: one language code per text; None, for a text or for all, means detect it; `und` or a language
        without calibration takes the mean over languages. calibrate: False leaves the encoder's own rows.
        """
        texts = listed(texts)
        vectors = self._stack(self._stream(texts, prefix=self.spec.query_prefix))
        if not calibrate or not self.calibration or not self.language_means.means:
            return vectors
        table, normalize = self.language_means, self.spec.normalize
        return calibrated(vectors, texts, question_langs, table=table, strength=self.calibration, normalize=normalize)

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a text, prefix included, that are encoded; None where the tokenizer is elsewhere."""
        return self.max_length - self._rows.special_tokens if isinstance(self._rows, _Graph) else None

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where each token of each text begins and ends, however many. Raises ModelError without a tokenizer."""
        if not isinstance(self._rows, _Graph):
            raise ModelError(f"{self.facts.source} has its tokenizer elsewhere.")
        return self._rows.token_spans(texts)

    def __reduce__(self) -> tuple[Callable[[], Encoder], tuple[()]]:
        """Another process opens the folder again, with the same settings."""
        return self.again, ()

    def __repr__(self) -> str:
        facts = self.facts
        return f"Encoder({facts.source!r}, {facts.precision}, {facts.dim} dimensions, λ={self.calibration:g})"

    def close(self) -> None:
        """Stop the worker threads; the encoder cannot be used afterwards."""
        self._rows.close()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stack(self, parts: Iterator[Vectors]) -> Vectors:
        matrices = list(parts)
        return np.concatenate(matrices) if matrices else np.zeros((0, self.spec.dim), dtype=np.float32)

    def _stream(self, texts: Iterable[str], *, prefix: str) -> Iterator[Vectors]:
        done = 0
        for window in windows(texts, WINDOW):
            yield self._encode_window(window, prefix=prefix, first=done)
            done += len(window)

    def _encode_window(self, texts: Sequence[str], *, prefix: str, first: int) -> Vectors:
        longest = self.max_length * _CHARACTERS_PER_TOKEN
        shown = [without_long_blanks(text)[:longest] if isinstance(text, str) else "" for text in texts]
        for i, text in enumerate(shown):
            expect(f"Text {first + i}", texts[i], str, "a text")
            if not text.strip():
                raise DataError(f"Text {first + i} is blank; an encoder has nothing to say about it: leave it out.")
        cut = [prefix + text for text in shown]
        try:
            rows = self._rows.rows(cut, prefix=prefix)
        except UnicodeError as error:
            bad = next((i for i, text in enumerate(texts) if _SURROGATE.search(text)), 0)
            raise DataError(f"Text {first + bad} is not valid Unicode ({texts[bad][:60]!a}): {error}.") from error
        if self.spec.truncated:
            rows = np.ascontiguousarray(rows[:, : self.spec.dim])
        norms = np.linalg.norm(rows, axis=1)
        for i in map(int, np.flatnonzero(~np.isfinite(norms) | (norms == 0.0))):
            kind = "zero" if norms[i] == 0.0 else "not finite"
            raise ModelError(f"The vector of text {first + i} is {kind} ({texts[i][:60]!r}): the model may be damaged.")
        return np.asarray(rows / norms[:, None], np.float32) if self.spec.normalize else rows


class _Graph:
    """Texts to rows by the folder's graph, pooled and projected; a batch a thread, several batches side by side."""

    def __init__(
        self, model: ModelFolder, spec: EncoderSpec, engine: Engine, threads: int, provider: str, batch_tokens: int
    ) -> None:
        folder = model.path
        self._spec, self._batch_tokens = spec, batch_tokens
        saturates = model.needs_vnni and not cpu_has_vnni()
        self._inputs, self._hidden = open_encoder_graph(
            folder / GRAPH, engine=engine, threads=threads, provider=provider, saturates=saturates
        )
        self._tokenizer = open_tokenizer(folder / TOKENIZER)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=spec.max_length)
        self._pad_id = pad_id(self._tokenizer)
        self.special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._dense: list[tuple[Vectors, Vectors, str]] = []  # weights (in, out), bias (out,), activation
        if (folder / DENSE).is_file():
            with model_arrays(folder / DENSE, "projections") as data:
                for i, name in enumerate(data["activations"]):
                    self._dense.append((data[f"{i}.weight"], data[f"{i}.bias"], str(name)))
        self._process = os.getpid()
        # gunicorn's preload and Celery fork
        self._pool = per_process(partial(ThreadPoolExecutor, threads, thread_name_prefix="xqg-encode"))

    def close(self) -> None:
        """Stop the worker threads of this process."""
        self._pool().shutdown()

    def rows(self, texts: Sequence[str], *, prefix: str) -> Vectors:
        """Rows (n, dim). Raises UnicodeError."""
        encodings = self._encodings(texts, self._tokenizer.encode_batch_fast)
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        skip = 0 if self._spec.pool_prompt or not prefix else self._prompt_tokens(prefix)
        batches = token_budget_batches(list(map(len, ids)), budget=self._batch_tokens, max_rows=_MAX_ROWS)
        run = map if len(batches) == 1 else self._pool().map  # a single question needs no thread switch
        rows = np.empty((0, 0), dtype=np.float32)
        for batch, vectors in zip(
            batches, run(lambda batch: self._run([ids[i] for i in batch], skip), batches), strict=True
        ):
            rows = rows if len(rows) else np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
            rows[batch] = vectors
            tick(len(batch))
        return rows

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The first character of each token and the one after its last. Raises UnicodeError."""
        found = []
        for whole in self._encodings(texts, self._tokenizer.encode_batch):
            parts = [whole, *whole.overflowing]
            special = [mark for part in parts for mark in part.special_tokens_mask]
            spans = [span for part in parts for span in part.offsets]
            found.append([span for span, mark in zip(spans, special, strict=True) if not mark])
        return found

    def _encodings(self, texts: Sequence[str], together: Callable[[Sequence[str]], list[Any]]) -> list[Any]:
        try:
            if os.getpid() == self._process:
                return together(texts)
            return [self._tokenizer.encode(text) for text in texts]  # its own threads stayed behind at the fork
        except TypeError as error:  # what tokenizers raises for a lone surrogate in a batch
            raise UnicodeError(str(error)) from error

    def _prompt_tokens(self, prefix: str) -> int:
        """Tokens of a prefix by itself, without the special one at its end: sentence-transformers counts so."""
        encoding = self._tokenizer.encode(prefix)
        return len(encoding.ids) - int(encoding.special_tokens_mask[-1])

    def _run(self, token_ids: Sequence[NDArray[np.int64]], skip: int) -> Vectors:
        """One batch through the graph, pooled without the first `skip` tokens, projected: (rows, dim)."""
        lengths = np.array([len(ids) for ids in token_ids])
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        input_ids[mask] = np.concatenate(token_ids)
        positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        feeds = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64)}
        feeds |= {"token_type_ids": np.zeros_like(input_ids), "position_ids": positions}
        hidden = self._hidden({name: values for name, values in feeds.items() if name in self._inputs})
        mask[:, :skip] = False
        rows = POOL[self._spec.pooling](hidden, mask)
        for weight, bias, activation in self._dense:
            rows = ACTIVATIONS[activation](rows @ weight + bias)
        return np.asarray(rows, np.float32)


ACTIVATIONS: dict[str, Callable[[Vectors], Any]] = {
    "Identity": lambda rows: rows,
    "Tanh": np.tanh,
    "ReLU": lambda rows: np.maximum(rows, 0),
    "Sigmoid": lambda rows: 1 / (1 + np.exp(-rows)),
    "GELU": lambda rows: rows * (1 + np.vectorize(math.erf, otypes=[np.float32])(rows / math.sqrt(2))) / 2,
}
"""Of a sentence-transformers `Dense` module, by the name of torch's class."""


def _weighted(hidden: Vectors, weights: NDArray[Any]) -> Vectors:
    shares = np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
    return np.asarray((shares[:, None, :] @ hidden)[:, 0, :], dtype=np.float32)


def _one(hidden: Vectors, places: NDArray[Any]) -> Vectors:
    return np.ascontiguousarray(hidden[np.arange(len(hidden)), places], dtype=np.float32)


POOL: dict[Pooling, Callable[[Vectors, NDArray[np.bool_]], Vectors]] = {
    "mean": _weighted,
    "weighted-mean": lambda hidden, mask: _weighted(hidden, mask * np.arange(1, mask.shape[1] + 1)),  # SGPT
    "cls": lambda hidden, mask: _one(hidden, mask.argmax(axis=1)),
    "last": lambda hidden, mask: _one(hidden, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)),
    "max": lambda hidden, mask: np.asarray(np.where(mask[..., None], hidden, -np.inf).max(axis=1), np.float32),
}
"""A text's row by its tokens' vectors: hidden (rows, length, dim) and mask (rows, length) to (rows, dim)."""


def _checked_threads(threads: int | None) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ModelError(f"threads must be 1 or more, got {threads!r} (this process may use {available}).")
    return threads or available


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that fills short rows."""
    # masked anyway, but models of the RoBERTa family count positions by it
    return next((i for token in ("<pad>", "[PAD]") if (i := tokenizer.token_to_id(token)) is not None), 0)


def token_budget_batches(lengths: Sequence[int], *, budget: int, max_rows: int) -> list[NDArray[np.intp]]:
    """Indices into `lengths`, grouped so that rows × longest <= budget (a single longer text makes a batch of its own).

    Every index occurs exactly once; longest texts come first, so the first batch shows the peak of memory.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = min(max(1, budget // longest), max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches
