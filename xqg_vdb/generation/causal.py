"""Decoder-only generators: every passage is read once, for all languages and all samples.

The prompt has three parts (see `prompts`): a fixed prefix, whose keys and values are computed once for the whole run;
the passage, once per passage; and a short ending that names the language, one per language. Samples branch from the
endings. Long passages are cut by tokens in the middle part, so the instruction always survives.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.generation.decoding import Stems, decode, samples_of, width_of
from xqg_vdb.generation.engine import Best, Bools, Clock, Forest, Ints, Stepper, join, join_best, open_session
from xqg_vdb.generation.job import InBatches
from xqg_vdb.generation.prompt_tokens import passage_tokens
from xqg_vdb.generation.prompts import CausalPrompt
from xqg_vdb.generation.sampling import Decoding, row_key
from xqg_vdb.model_folder import GRAPH, TOKENIZER, ModelFolder
from xqg_vdb.types import GeneratedQueries, Passage

ROWS = 32  # rows per step that keep the cores busy; more passages are taken together until there are so many

Tree = tuple[Forest, Stems]


class CausalModel:
    """A decoder-only model on onnxruntime: text to trees, trees to texts. One thread at a time."""

    def __init__(self, folder: ModelFolder, *, stop: Sequence[str], threads: int = 0) -> None:
        if folder.kind != "causal-generator":
            raise ModelError(f"{folder.path} holds a {folder.kind}, where a causal-generator is needed.")
        record = folder.manifest.get("generator") or {}
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.max_length = int(record.get("max_length", 2048))
        self.bos: int | None = record.get("bos")
        self.stops = stop_tokens(self.tokenizer, record.get("eos", []), stop)
        self.clock = Clock()
        self.stepper = Stepper(open_session(Path(folder.path) / GRAPH, threads=threads))

    def describe(self) -> dict[str, Any]:
        """Which model this is."""
        return describe_folder(self.folder)

    def ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def forest(self, trees: int) -> Forest:
        """So many trees without any text."""
        return self.stepper.empty(trees)

    def read(self, prefix: str) -> Forest:
        """The forest of one tree that every prompt starts with."""
        return self.read_ids(([] if self.bos is None else [int(self.bos)]) + self.ids(prefix))

    def read_ids(self, ids: Sequence[int]) -> Forest:
        """The same, of tokens."""
        forest = self.forest(1)
        if ids:
            self._append(
                forest, ids, np.arange(len(ids)), np.tril(np.ones((len(ids), len(ids)), np.bool_)), [], Decoding()
            )
        return forest

    def branch(
        self, prefix: Forest, body: Sequence[int], endings: Sequence[Sequence[int]], *, settings: Decoding
    ) -> Tree:
        """A tree that continues `prefix` (of one tree) by `body`, with a stem per ending; one pass over all of it."""
        now = time.perf_counter()
        old, shared = prefix.slots, len(body)
        start = int(prefix.positions.max(initial=-1)) + 1
        ids = [*body, *(token for ending in endings for token in ending)]
        places = [*range(start, start + shared)]
        for ending in endings:
            places += range(start + shared, start + shared + len(ending))
        ends = np.cumsum([len(ending) for ending in endings]) + shared - 1
        forest = prefix.keep([0])
        mask = branching_mask(old, shared, [len(ending) for ending in endings])
        best = self._append(forest, ids, np.array(places), mask, ends.tolist(), settings)
        stems = Stems(best, np.zeros(len(endings), np.int64), mask[ends], np.array(places)[ends] + 1)
        self.clock.add("prefill", now)
        return forest, stems

    def write(self, trees: Sequence[Tree], keys: Sequence[int], *, samples: int, settings: Decoding) -> list[str]:
        """`samples` texts per stem, tree by tree; `keys` has one entry per text."""
        forest = join([forest for forest, _ in trees])
        stems = join_stems([stems for _, stems in trees], forest.slots)
        tokens = decode(forest, stems, keys, settings, samples=samples, stops=self.stops, clock=self.clock)
        return list(self.tokenizer.decode_batch(tokens, skip_special_tokens=True))

    def _append(
        self, forest: Forest, ids: Sequence[int], places: Ints, mask: Bools, take: Sequence[int], settings: Decoding
    ) -> Best:
        where, tokens = np.array(take, np.int64), np.array([ids], np.int64)
        return forest.step(tokens, places[None], mask[None], where, k=width_of(settings))


class CausalGenerator(InBatches):
    """A `QueryGenerator` that asks for a question in every language straight from the passage."""

    def __init__(self, model: CausalModel, *, prompt: CausalPrompt, decoding: Decoding) -> None:
        self.model, self.prompt, self.decoding = model, prompt, decoding
        self.truncated = 0
        self._prefix = model.read(prompt.prefix)

    def describe(self) -> dict[str, Any]:
        """What the queries depend on."""
        return {**self.model.describe(), "prompt": self.prompt.to_json(), "decoding": self.decoding.to_json()}

    def examples(self) -> tuple[str, ...]:
        """Questions in the prompt that must not come back."""
        return self.prompt.examples

    def counters(self) -> dict[str, float]:
        """Passages cut so far, and seconds per phase."""
        return {"passages_cut": self.truncated, **self.model.clock.seconds}

    def batch_size(self, langs: Sequence[str], n: int) -> int:
        """Passages that are decoded together."""
        return max(1, ROWS // max(1, len(langs) * samples_of(self.decoding, n)))

    def generate_batch(
        self, batch: Sequence[Passage], *, langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """The records of a few passages, decoded together. attempt: 1 for another draw with other numbers."""
        samples = samples_of(self.decoding, n)
        endings = [self.model.ids(self.prompt.ending(lang)) for lang in langs]
        trees = [
            self.model.branch(
                self._prefix, self._body(passage, max(map(len, endings))), endings, settings=self.decoding
            )
            for passage in batch
        ]
        keys = [
            row_key(self.decoding.seed + attempt, passage.id, lang, i)
            for passage in batch
            for lang in langs
            for i in range(samples)
        ]
        texts = self.model.write(trees, keys, samples=samples, settings=self.decoding)
        table = iter([tuple(map(self.prompt.cut, texts[i : i + samples])) for i in range(0, len(texts), samples)])
        return [GeneratedQueries(passage.id, {lang: next(table) for lang in langs}) for passage in batch]

    def _body(self, passage: Passage, ending: int) -> list[int]:
        """Tokens of the passage part.

        The passage cut to what the model and the prompt leave room for, then what follows it.
        """
        tail = len(self.model.ids(self.prompt.passage_parts(passage)[1]))
        room = self.model.max_length - self._prefix.slots - ending - tail - self.decoding.max_tokens
        room = min(self.prompt.max_passage_tokens, room)
        if room < 8:
            raise ModelError(
                f"The prompt and {self.decoding.max_tokens} new tokens leave no room for a passage in the model's "
                f"{self.model.max_length} tokens; shorten the prompt or lower max_tokens."
            )
        ids, cut = passage_tokens(self.model.ids, self.prompt, passage, room=room)
        self.truncated += cut
        return ids


def describe_folder(folder: ModelFolder) -> dict[str, Any]:
    """Which model lies in a folder; of a checkpoint that was a folder of this machine, only the folder's own name."""
    found = {key: folder.manifest.get(key) for key in ("kind", "source", "revision", "precision")}
    if found["source"] and found["revision"] == "local":
        found["source"] = Path(str(found["source"])).name
    return {"fingerprint": folder.fingerprint, **found}


def greedily(settings: Decoding) -> Decoding:
    """The same settings without chance."""
    return replace(settings, mode="greedy")


def stop_tokens(tokenizer: Tokenizer, eos: Iterable[int], stops: Sequence[str]) -> frozenset[int]:
    """End-of-text ids, and every token whose text holds one of `stops` (a newline also in the middle of a token)."""
    found = set(map(int, eos))
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        plain = token.replace("<0x0A>", "\n").replace("Ċ", "\n")
        if any(stop in plain for stop in stops):
            found.add(i)
    return frozenset(found)


def branching_mask(old: int, shared: int, endings: Sequence[int]) -> Bools:
    """(S, old+S): everybody sees the old slots; the shared part is causal.

    An ending sees it and itself, not the others.
    """
    total = shared + sum(endings)
    mask = np.zeros((total, old + total), np.bool_)
    mask[:, : old + shared] = True
    mask[:shared, old : old + shared] = np.tril(np.ones((shared, shared), np.bool_))
    at = shared
    for length in endings:
        mask[at : at + length, old + at : old + at + length] = np.tril(np.ones((length, length), np.bool_))
        at += length
    return mask


def join_stems(parts: Sequence[Stems], slots: int) -> Stems:
    """The stems of joined trees, each tree of one part."""
    return Stems(
        best=join_best([part.best for part in parts]),
        tree=np.repeat(np.arange(len(parts)), [len(part.tree) for part in parts]),
        visible=np.concatenate([np.pad(p.visible, ((0, 0), (0, slots - p.visible.shape[1]))) for p in parts]),
        position=np.concatenate([part.position for part in parts]),
    )
