"""Answers to free prompts from any generator: an ONNX folder of either kind, or an OpenAI-compatible endpoint.

In: prompts. Out: one text per prompt, empty where the model had nothing to say. Decoding is greedy, so an answer can be
kept. What is asked, and what an answer is worth, other files know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from xqg_vdb.batching import windows
from xqg_vdb.errors import ModelError, ServerError
from xqg_vdb.generation.branches import common_length
from xqg_vdb.generation.causal import CausalModel, describe_folder, join_stems, stop_tokens
from xqg_vdb.generation.decoding import decode
from xqg_vdb.generation.endpoint import Endpoint, EndpointGenerator
from xqg_vdb.generation.engine import Clock, join
from xqg_vdb.generation.opening import generator_folder
from xqg_vdb.generation.prompts import CausalPrompt
from xqg_vdb.generation.sampling import Decoding
from xqg_vdb.generation.seq2seq import Seq2SeqGenerator
from xqg_vdb.model_folder import open_model_folder

BATCH = 8  # prompts that are answered together
PATIENCE = 10.0  # seconds that a question waits for an endpoint that is away, before it is asked as it is


class Writer(Protocol):
    """Something that answers prompts. base: it continues a text, so examples and a stop at the line's end help it."""

    base: bool

    def describe(self) -> dict[str, Any]:
        """Which model answers, and all settings on which its answers depend."""
        ...

    def write(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """One text per prompt, which ends before any of `stop`; empty when there is none. Never raises for a prompt."""
        ...


class CausalWriter:
    """A decoder-only folder."""

    def __init__(self, model: CausalModel, *, chat: Sequence[str] | None = None) -> None:
        self.model, self.base = model, chat is None
        self.before, self.after = chat or ("", "")
        self._stops: dict[tuple[str, ...], frozenset[int]] = {}

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return {**self.model.describe(), "chat": not self.base}

    def write(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """See `Writer`; a prompt too long for the model gives an empty text."""
        texts: list[str] = []
        for batch in windows(prompts, BATCH):
            texts += self._batch(batch, max_tokens, tuple(stop))
        # a base model may begin with the line break that ends an answer: then it is led on from the next line
        silent = [i for i, text in enumerate(texts) if stop and not text and not prompts[i].endswith("\n")]
        again = self.write([prompts[i] + "\n" for i in silent], max_tokens=max_tokens, stop=stop) if silent else []
        for i, text in zip(silent, again, strict=True):
            texts[i] = text
        return texts

    def _batch(self, prompts: Sequence[str], max_tokens: int, stop: tuple[str, ...]) -> list[str]:
        bos = [] if self.model.bos is None else [int(self.model.bos)]
        inputs = [bos + self.model.ids(self.before + prompt + self.after) for prompt in prompts]
        fitting = [i for i, ids in enumerate(inputs) if len(ids) + max_tokens <= self.model.max_length]
        texts = [""] * len(prompts)
        if not fitting:
            return texts
        settings = Decoding(mode="greedy", max_tokens=max_tokens)
        # examples and instructions that all begin with are read once; every prompt keeps a token of its own
        same = min(common_length([inputs[i] for i in fitting]), min(len(inputs[i]) for i in fitting) - 1)
        prefix = self.model.read_ids(inputs[fitting[0]][:same])
        trees = [self.model.branch(prefix, inputs[i][same:-1], [inputs[i][-1:]], settings=settings) for i in fitting]
        forest = join([forest for forest, _ in trees])
        stems = join_stems([stems for _, stems in trees], forest.slots)
        if stop not in self._stops:
            self._stops[stop] = self.model.stops | stop_tokens(self.model.tokenizer, (), stop)
        tokens = decode(
            forest, stems, [0] * len(fitting), settings, samples=1, stops=self._stops[stop], clock=self.model.clock
        )
        for i, text in zip(fitting, self.model.tokenizer.decode_batch(tokens, skip_special_tokens=True), strict=True):
            texts[i] = _until(text, stop)
        return texts


class Seq2SeqWriter:
    """An encoder-decoder folder; useful for instruction-tuned ones only."""

    base = False

    def __init__(self, model: Seq2SeqGenerator) -> None:
        self.model = model

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return describe_folder(self.model.folder)

    def write(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """See `Writer`; what is too long for the encoder is cut at its end."""
        texts: list[str] = []
        settings = Decoding(mode="greedy", max_tokens=max_tokens)
        for batch in windows(prompts, BATCH):
            forest = self.model.read([self._ids(prompt) for prompt in batch])
            tokens = decode(
                forest, self.model.begin(forest), [0] * len(batch), settings,
                samples=1, stops=self.model.stops, clock=Clock(),
            )  # fmt: skip
            texts += self.model.tokenizer.decode_batch(tokens, skip_special_tokens=True)
        return [_until(text, stop) for text in texts]

    def _ids(self, prompt: str) -> list[int]:
        ids = self.model.tokenizer.encode(prompt, add_special_tokens=False).ids
        return [*ids[: 2 * self.model.max_input - 1], self.model.eos[0]]


class EndpointWriter:
    """A chat model behind an OpenAI-compatible endpoint, at temperature 0. `failure` holds the last reason why not."""

    base = False

    def __init__(self, endpoint: Endpoint) -> None:
        self.generator = EndpointGenerator(endpoint, prompt=CausalPrompt("free", "", "{text}", "", stop=()))
        self.failure = ""

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return self.generator.describe()

    def write(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """See `Writer`; the length is the endpoint's `max_tokens`. An endpoint that is away gives empty texts."""
        texts: list[str] = []
        for batch in windows(prompts, BATCH):
            try:
                texts += self.generator.complete(batch)
            except ServerError as error:
                self.failure = str(error)
                texts += [""] * len(batch)
        return [_until(text, stop) for text in texts]

    def close(self) -> None:
        """Close the connections."""
        self.generator.close()


def open_writer(
    model: str | Path, *, max_tokens: int, endpoint_model: str = "default", threads: int = 0
) -> CausalWriter | Seq2SeqWriter | EndpointWriter:
    """The writer of a generator's folder or name, or of an endpoint's URL. Raises ModelError, DataError."""
    if str(model).startswith(("http://", "https://")):
        return EndpointWriter(
            Endpoint(
                str(model), endpoint_model, concurrency=BATCH, temperature=0.0, max_tokens=max_tokens,
                timeout=60.0, patience=PATIENCE,
            )
        )  # fmt: skip
    folder = open_model_folder(generator_folder(model))
    if folder.kind == "encoder":
        raise ModelError(f"{folder.path} holds an encoder; expansion needs a generator, such as starter:generator.")
    if folder.kind == "seq2seq-generator":
        return Seq2SeqWriter(Seq2SeqGenerator(folder, decoding=Decoding(mode="greedy"), threads=threads))
    chat = (folder.manifest.get("generator") or {}).get("chat")
    return CausalWriter(CausalModel(folder, stop=(), threads=threads), chat=chat)


def _until(text: str, stop: Sequence[str]) -> str:
    text = text.lstrip()  # a base model may begin with the very line break that ends its answer
    for end in stop:
        text = text.split(end)[0]
    return text.strip()
