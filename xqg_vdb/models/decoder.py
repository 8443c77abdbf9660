"""Language models on onnxruntime, text to trees of tokens and back: what generators, re-ranking and expansion share.

A *stem* is a place from which rows start: the end of a prompt in one language. All samples of a language leave from the
same stem, and see its slots without copying them. Finished rows leave the batch at once, finished trees too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import ModelError
from xqg_vdb.models.engine import open_session
from xqg_vdb.models.folder import GRAPH, TOKENIZER, ModelFolder
from xqg_vdb.models.forest import Best, Bools, Clock, Forest, Ints, Stepper, branching_mask, join
from xqg_vdb.types import option

# Choosing the next token: greedy, or top-k with seeded numbers.

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How queries are drawn. top_k and temperature are for `sample`, and the paper's unless told otherwise."""

    mode: Literal["sample", "greedy"] = option(
        "sample", "Draw queries, or write the likeliest one, whatever -n is.", flags=("--decode",)
    )
    top_k: int = option(10, "Draw from so many of the likeliest tokens.", least=1, most=1000)
    temperature: float = option(1.0, "Above 1: bolder; below: safer.", least=0, most=10, above=True)
    max_tokens: int = option(48, "Longest query.", least=1, most=32_768)
    seed: int = option(313, "The same number draws the same queries.")

    def __post_init__(self) -> None:
        if self.mode not in ("sample", "greedy"):
            raise ValueError(f"mode must be sample or greedy, got {self.mode!r}")
        for name, least, most in (("top_k", 1, 1000), ("temperature", 1e-6, 10.0), ("max_tokens", 1, 32_768)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between {least} and {most}, got {getattr(self, name)}")

    @property
    def width(self) -> int:
        """How many of the best tokens every step must know."""
        return 1 if self.mode == "greedy" else self.top_k

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def row_key(seed: int, passage_id: str, lang: str, index: int) -> int:
    """The 64-bit key of one query; different in any argument, different everywhere."""
    blob = "\x1f".join((str(seed), passage_id, lang, str(index))).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little")


def uniforms(keys: NDArray[np.uint64], step: int) -> NDArray[np.float64]:
    """One number in [0, 1) per key (n,) for this step: SplitMix64 (Steele, Lea, Flood 2014) at counter `step`."""
    with np.errstate(over="ignore"):
        z = keys + _GOLDEN * np.uint64(step + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    scores: NDArray[np.float32], tokens: NDArray[np.int64], *, keys: NDArray[np.uint64], step: int, temperature: float
) -> NDArray[np.int64]:
    """One token per row of `scores` and `tokens` (n, k), the k best logits best first.

    Softmax over the k, then inversion.
    """
    scaled = (scores.astype(np.float64) - scores[:, :1]) / temperature
    mass = np.exp(scaled).cumsum(axis=1)
    chosen = (mass <= uniforms(keys, step)[:, None] * mass[:, -1:]).sum(axis=1)
    return np.asarray(np.take_along_axis(tokens, np.minimum(chosen, tokens.shape[1] - 1)[:, None], axis=1)[:, 0])


@dataclass(frozen=True)
class Stems:
    """Where rows start, by stem: the best first tokens, the tree, the slots seen (stems, P), the next position."""

    best: Best
    tree: Ints
    visible: Bools
    position: Ints


def decode(
    forest: Forest,
    stems: Stems,
    keys: Sequence[int],
    settings: Decoding,
    *,
    samples: int,
    stops: Set[int],
    clock: Clock,
) -> list[list[int]]:
    """Token ids of `samples` texts per stem, stem by stem, each ending with its stop token when there was one.

    keys: one sampling key per text, unused when greedy.
    """
    rows = np.repeat(np.arange(len(stems.tree)), samples)
    written: list[list[int]] = [[] for _ in rows]
    numbers = np.array(keys, np.uint64)
    live = np.arange(len(rows))
    tree, visible, best = stems.tree[rows], stems.visible[rows], stems.best.rows(rows)
    for step in range(settings.max_tokens):
        now = time.perf_counter()
        chosen = best.tokens[:, 0]
        if settings.mode == "sample":
            chosen = draw(best.scores, best.tokens, keys=numbers[live], step=step, temperature=settings.temperature)
        for row, token in zip(live.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        going = ~np.isin(chosen, list(stops))
        live, tree, visible, chosen = live[going], tree[going], visible[going], chosen[going]
        clock.add("sampling", now)
        if not len(live) or step + 1 == settings.max_tokens:
            break
        forest, tree = without_finished(forest, tree)
        now = time.perf_counter()
        position = stems.position[rows[live]] + step
        best, visible = grow(forest, tree, visible, chosen, position, k=settings.width)
        clock.add("decode", now)
    return written


def grow(forest: Forest, tree: Ints, visible: Bools, tokens: Ints, positions: Ints, *, k: int) -> tuple[Best, Bools]:
    """Append one token to each row (all arrays have one entry per row); returns the best next ones and the new sight.

    Rows of a tree lie side by side in its new slots; trees with fewer rows than the widest are padded with unseen
    slots.
    """
    order = np.argsort(tree, kind="stable")
    counts = np.bincount(tree, minlength=len(forest.positions))
    column = np.empty(len(tree), np.int64)
    column[order] = np.arange(len(tree)) - np.repeat(np.cumsum(counts) - counts, counts)
    trees, width, slots = len(counts), int(counts.max()), forest.slots
    seen = np.concatenate([visible, column[:, None] == np.arange(width)[None, :]], axis=1)
    ids, places = np.zeros((trees, width), np.int64), np.zeros((trees, width), np.int64)
    mask = np.zeros((trees, width, slots + width), np.bool_)
    ids[tree, column], places[tree, column], mask[tree, column] = tokens, positions, seen
    return forest.step(ids, places, mask, tree * width + column, k=k), seen


def without_finished(forest: Forest, tree: Ints) -> tuple[Forest, Ints]:
    """The forest without trees that no row is in, and the trees' new numbers."""
    kept = np.unique(tree)
    if len(kept) == len(forest.positions):
        return forest, tree
    return forest.keep(kept), np.searchsorted(kept, tree)


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
            forest.append(ids)
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
        best = forest.step(np.array([ids], np.int64), np.array([places]), mask[None], ends, k=settings.width)
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


def describe_folder(folder: ModelFolder) -> dict[str, Any]:
    """Which model lies in a folder; of a checkpoint that was a folder of this machine, only the folder's own name."""
    facts = {key: folder.manifest.get(key) for key in ("kind", "source", "revision", "precision")}
    if facts["source"] and facts["revision"] == "local":
        facts["source"] = Path(str(facts["source"])).name.removeprefix("folder:")
    return {"fingerprint": folder.fingerprint, **facts}


def stop_tokens(tokenizer: Tokenizer, eos: Iterable[int], stops: Sequence[str]) -> frozenset[int]:
    """End-of-text ids, and every token whose text holds one of `stops` (a newline also in the middle of a token)."""
    stopping = set(map(int, eos))
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        plain = token.replace("<0x0A>", "\n").replace("Ċ", "\n")
        if any(stop in plain for stop in stops):
            stopping.add(i)
    return frozenset(stopping)


def join_stems(parts: Sequence[Stems], slots: int) -> Stems:
    """The stems of joined trees, each tree of one part."""
    return Stems(
        best=Best.joined([part.best for part in parts]),
        tree=np.repeat(np.arange(len(parts)), [len(part.tree) for part in parts]),
        visible=np.concatenate([np.pad(p.visible, ((0, 0), (0, slots - p.visible.shape[1]))) for p in parts]),
        position=np.concatenate([part.position for part in parts]),
    )
