"""Language models on onnxruntime, text to trees of tokens and back: what generators, re-ranking and expansion share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.models.decode import Decoding, Stems, decode
from xqg_vdb.models.engine import open_session
from xqg_vdb.models.folder import GRAPH, TOKENIZER, ModelFolder
from xqg_vdb.models.forest import (
    Best,
    Bools,
    Clock,
    Forest,
    Ints,
    Stepper,
    branching_mask,
    join,
    join_best,
)


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
    ) -> tuple[Forest, Stems]:
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

    def write(
        self, trees: Sequence[tuple[Forest, Stems]], keys: Sequence[int], *, samples: int, settings: Decoding
    ) -> list[str]:
        """`samples` texts per stem, tree by tree; `keys` has one entry per text."""
        forest = join([forest for forest, _ in trees])
        stems = join_stems([stems for _, stems in trees], forest.slots)
        tokens = decode(forest, stems, keys, settings, samples=samples, stops=self.stops, clock=self.clock)
        return list(self.tokenizer.decode_batch(tokens, skip_special_tokens=True))

    def _append(
        self, forest: Forest, ids: Sequence[int], places: Ints, mask: Bools, take: Sequence[int], settings: Decoding
    ) -> Best:
        where, tokens = np.array(take, np.int64), np.array([ids], np.int64)
        return forest.step(tokens, places[None], mask[None], where, k=settings.width)


def describe_folder(folder: ModelFolder) -> dict[str, Any]:
    """Which model lies in a folder; of a checkpoint that was a folder of this machine, only the folder's own name."""
    found = {key: folder.manifest.get(key) for key in ("kind", "source", "revision", "precision")}
    if found["source"] and found["revision"] == "local":
        found["source"] = Path(str(found["source"])).name.removeprefix("folder:")
    return {"fingerprint": folder.fingerprint, **found}


def stop_tokens(tokenizer: Tokenizer, eos: Iterable[int], stops: Sequence[str]) -> frozenset[int]:
    """End-of-text ids, and every token whose text holds one of `stops` (a newline also in the middle of a token)."""
    found = set(map(int, eos))
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        plain = token.replace("<0x0A>", "\n").replace("Ċ", "\n")
        if any(stop in plain for stop in stops):
            found.add(i)
    return frozenset(found)


def join_stems(parts: Sequence[Stems], slots: int) -> Stems:
    """The stems of joined trees, each tree of one part."""
    return Stems(
        best=join_best([part.best for part in parts]),
        tree=np.repeat(np.arange(len(parts)), [len(part.tree) for part in parts]),
        visible=np.concatenate([np.pad(p.visible, ((0, 0), (0, slots - p.visible.shape[1]))) for p in parts]),
        position=np.concatenate([part.position for part in parts]),
    )
