"""Encoder-decoder generators (mT5 docTquery and its like); the encoder runs once per (passage, language).

Each (passage, language) is a tree whose context is the encoder's output, already as cross-attention keys and values;
all n samples branch from its start token. Long passages are cut by tokens at their end; the instruction stands in
front.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.generation.causal import ROWS, describe_folder, stop_tokens
from xqg_vdb.generation.decoding import Stems, decode, samples_of, width_of
from xqg_vdb.generation.engine import Bools, Clock, Forest, Ints, Stepper, open_session, ort_value
from xqg_vdb.generation.job import InBatches
from xqg_vdb.generation.prompt_tokens import seq2seq_tokens
from xqg_vdb.generation.prompts import SEQ2SEQ_TEMPLATE
from xqg_vdb.generation.sampling import Decoding, row_key
from xqg_vdb.model_folder import GRAPH, TOKENIZER, ModelFolder
from xqg_vdb.types import GeneratedQueries, Passage

ENCODER_GRAPH = "encoder.onnx"


class Seq2SeqGenerator(InBatches):
    """A `QueryGenerator` on a folder of kind `seq2seq-generator`. max_passage_tokens: the paper's is 256."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        decoding: Decoding,
        template: str = SEQ2SEQ_TEMPLATE,
        max_input: int = 256,
        threads: int = 0,
    ) -> None:
        if folder.kind != "seq2seq-generator":
            raise ModelError(f"{folder.path} holds a {folder.kind}, where a seq2seq-generator is needed.")
        record = folder.manifest.get("generator") or {}
        self.folder = folder
        self.decoding, self.template, self.max_input = decoding, template, max_input
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.eos = [int(token) for token in record["eos"]]
        self.start = int(record["start"])
        self.stops = stop_tokens(self.tokenizer, self.eos, ())
        self.clock, self.truncated = Clock(), 0
        self._encoder = open_session(Path(folder.path) / ENCODER_GRAPH, threads=threads)
        self.stepper = Stepper(open_session(Path(folder.path) / GRAPH, threads=threads))

    def describe(self) -> dict[str, Any]:
        """What the queries depend on."""
        prompt = {"template": self.template, "max_input": self.max_input}
        return {**describe_folder(self.folder), "prompt": prompt, "decoding": self.decoding.to_json()}

    def examples(self) -> tuple[str, ...]:
        """None: the prompt shows no question."""
        return ()

    def counters(self) -> dict[str, float]:
        """Prompts cut so far, and seconds per phase."""
        return {"prompts_cut": self.truncated, **self.clock.seconds}

    def batch_size(self, langs: Sequence[str], n: int) -> int:
        """Passages that are decoded together."""
        return max(1, ROWS // max(1, len(langs) * samples_of(self.decoding, n)))

    def generate_batch(
        self, batch: Sequence[Passage], *, langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """The records of a few passages, decoded together. attempt: 1 for another draw with other numbers."""
        samples = samples_of(self.decoding, n)
        forest = self.read([self.input_ids(passage, lang) for passage in batch for lang in langs])
        stems = self.begin(forest)
        keys = [
            row_key(self.decoding.seed + attempt, passage.id, lang, i)
            for passage in batch
            for lang in langs
            for i in range(samples)
        ]
        tokens = decode(forest, stems, keys, self.decoding, samples=samples, stops=self.stops, clock=self.clock)
        texts = [" ".join(text.split()) for text in self.tokenizer.decode_batch(tokens, skip_special_tokens=True)]
        table = iter([tuple(texts[i : i + samples]) for i in range(0, len(texts), samples)])
        return [GeneratedQueries(passage.id, {lang: next(table) for lang in langs}) for passage in batch]

    def input_ids(self, passage: Passage, lang: str) -> list[int]:
        """Token ids of the prompt, at most `max_input` with the end token; what is cut is the passage's end."""
        ids, cut = seq2seq_tokens(
            lambda text: list(self.tokenizer.encode(text, add_special_tokens=False).ids),
            self.template,
            passage,
            lang=lang,
            max_input=self.max_input,
            eos=self.eos[0],
        )
        self.truncated += cut
        return ids

    def read(self, inputs: Sequence[Sequence[int]]) -> Forest:
        """A forest with one tree per input (token ids that end with `eos`), its context padded to the longest."""
        now = time.perf_counter()
        outputs = [self._encode(ids) for ids in inputs]
        names = [node.name for node in self._encoder.get_outputs()]
        longest = max(map(len, inputs))
        context = {name: ort_value(_padded([output[i] for output in outputs], longest)) for i, name in enumerate(names)}
        seen: Bools = np.arange(longest)[None, :] < np.array([len(ids) for ids in inputs])[:, None]
        forest = self.stepper.empty(len(inputs), {**context, "cross_mask": ort_value(seen)})
        self.clock.add("prefill", now)
        return forest

    def _encode(self, ids: Sequence[int]) -> list[np.ndarray]:
        # one at a time: batches of unequal lengths would only add padding to a pass that keeps all cores busy anyway
        feeds = {"tokens": np.array([ids], np.int64), "cross_mask": np.ones((1, len(ids)), np.bool_)}
        return list(self._encoder.run(None, feeds))

    def begin(self, forest: Forest) -> Stems:
        """The stem of every tree: its start token, read."""
        trees = len(forest.positions)
        first: Ints = np.zeros((trees, 1), np.int64)
        mask = np.ones((trees, 1, 1), np.bool_)
        now = time.perf_counter()
        best = forest.step(first + self.start, first, mask, np.arange(trees), k=width_of(self.decoding))
        self.clock.add("decode", now)
        return Stems(best, np.arange(trees), mask[:, 0], np.ones(trees, np.int64))


def _padded(parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, length - part.shape[2]), (0, 0))) for part in parts])
