"""Runs a decoder graph (see `export/graphs.py` for its face) over trees of rows, on onnxruntime; no torch.

A *tree* is one shared context (a passage, or an encoder's output) with rows that branch from it. The keys and values of
all slots stay where the graph wrote them: the outputs of one step are bound as the inputs of the next, and never pass
through Python. Which slots a row may see is a boolean row that the caller keeps; nothing in this file chooses a token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.models.engine import ort_value


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


Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Clock:
    """Seconds per phase of decoding, for reports."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, since: float) -> float:
        """Book the time since `since` under `phase`; returns now."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - since
        return now


@dataclass(frozen=True)
class Best:
    """The k best next tokens of the taken places.

    Logits (N, k) best first, token ids (N, k), log-sum-exp (N,) if asked for.
    """

    scores: NDArray[np.float32]
    tokens: Ints
    log_norm: NDArray[np.float32]

    def rows(self, index: Ints) -> Best:
        """The entries `index`, in that order."""
        return Best(
            self.scores[index], self.tokens[index], self.log_norm[index] if len(self.log_norm) else self.log_norm
        )

    @staticmethod
    def joined(parts: Sequence[Best]) -> Best:
        """All entries, one part after the other."""
        return Best(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("scores", "tokens", "log_norm")))

    @property
    def log_probabilities(self) -> NDArray[np.float32]:
        """(N, k) float32; needs `norm=True` in `Forest.step`."""
        return self.scores - self.log_norm[:, None]


class Stepper:
    """A decoder graph."""

    def __init__(self, session: Any) -> None:
        self.session = session
        inputs = {node.name: node for node in session.get_inputs()}
        self.inputs = frozenset(inputs)  # the tracer drops what a model does not use (positions of the past, say)
        self.past = [name for name in inputs if name.startswith("past_") and name != "past_positions"]
        self.present = [name.removeprefix("past_") for name in self.past]
        shape = inputs[self.past[0]].shape
        self.heads, self.width = int(shape[1]), int(shape[3])

    @property
    def can_score(self) -> bool:
        """Whether the graph gives log-probabilities of given tokens; those exported by 0.1 and before do not."""
        return "targets" in self.inputs

    def empty(self, trees: int, context: Mapping[str, Any] | None = None) -> Forest:
        """A forest of `trees` trees without any slot. context: OrtValues of an encoder (`cross_*`)."""
        nothing = np.zeros((trees, self.heads, 0, self.width), np.float32)
        cache = [ort_value(nothing) for _ in self.past]
        return Forest(self, cache, np.zeros((trees, 0), np.int64), dict(context or {}))

    def run(self, forest: Forest, feeds: Mapping[str, NDArray[Any]]) -> tuple[Best, list[Any]]:
        """One pass; returns the best tokens and the grown cache as OrtValues."""
        wanted = ("top_scores", "top_tokens", "log_norm", *self.present)
        scores, tokens, log_norm, *cache = self._outputs(forest, feeds, wanted)
        return Best(scores.numpy(), tokens.numpy(), log_norm.numpy()), cache

    def score(self, forest: Forest, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """One pass of which only the targets' log-probabilities are kept; the graph must be one that `can_score`."""
        (found,) = self._outputs(forest, feeds, ("target_log_probabilities",))
        return np.asarray(found.numpy(), np.float32)

    def _outputs(self, forest: Forest, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[Any]:
        binding = self.session.io_binding()
        for name in feeds.keys() & self.inputs:
            binding.bind_ortvalue_input(name, ort_value(feeds[name]))
        for name, value in (*zip(self.past, forest.cache, strict=True), *forest.context.items()):
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return list(binding.get_outputs())


@dataclass
class Forest:
    """The state of B trees: the cache of P slots each, and every slot's position in its text (B, P)."""

    stepper: Stepper
    cache: list[Any]
    positions: Ints
    context: dict[str, Any]

    @property
    def slots(self) -> int:
        """P, the number of slots of every tree, padding included."""
        return int(self.positions.shape[1])

    def step(self, tokens: Ints, positions: Ints, mask: Bools, take: Ints, *, k: int, norm: bool = False) -> Best:
        """Append tokens (B, S) at `positions` (B, S) that see `mask` (B, S, P+S).

        take: flat places (N,) in (B·S) whose `k` best next tokens are wanted.
        norm: also the log-sum-exp over the vocabulary, which costs a pass over it.
        """
        rows, asked = len(take), len(take) if norm else 0
        # onnxruntime before 1.31 cannot reduce no rows at all: where none are wanted, one is made and left out
        take = take if rows else np.zeros(1, np.int64)
        feeds = self._feeds(tokens, positions, mask, take, k=k, targets=np.zeros(max(asked, 1), np.int64))
        best, self.cache = self.stepper.run(self, feeds)
        self.positions = np.concatenate([self.positions, positions], axis=1)
        return Best(best.scores[:rows], best.tokens[:rows], best.log_norm[:asked])

    def append(self, ids: Sequence[int], *, take: Sequence[int] = (), k: int = 1, norm: bool = False) -> Best:
        """Append tokens to a forest of one tree, each at the next position and seeing all before it."""
        old, new = self.slots, len(ids)
        positions, where = np.arange(old, old + new)[None], np.array(take, np.int64)
        mask = branching_mask(old, new, [])[None]
        return self.step(np.array([ids], np.int64), positions, mask, where, k=k, norm=norm)

    def log_probabilities(
        self, tokens: Ints, positions: Ints, mask: Bools, take: Ints, targets: Ints
    ) -> NDArray[np.float32]:
        """The log-probability (N,) of `targets` (N,), each as the next token after its place in `take` (N,).

        The other arguments are those of `step`; nothing is appended.
        """
        return self.stepper.score(self, self._feeds(tokens, positions, mask, take, k=1, targets=targets))

    def _feeds(
        self, tokens: Ints, positions: Ints, mask: Bools, take: Ints, *, k: int, targets: Ints
    ) -> dict[str, NDArray[Any]]:
        return {
            "tokens": tokens,
            "positions": positions,
            "past_positions": self.positions,
            "mask": mask,
            "take": take,
            "k": np.array([k], np.int64),
            "norm": np.arange(len(targets), dtype=np.int64),
            "targets": targets,
        }

    def keep(self, trees: Sequence[int] | Ints) -> Forest:
        """A forest of the trees numbered `trees`, in that order; this one stays usable."""
        index = np.asarray(trees, np.int64)

        def taken(value: Any) -> Any:
            return ort_value(np.ascontiguousarray(value.numpy()[index]))

        context = {name: taken(value) for name, value in self.context.items()}
        return Forest(self.stepper, [taken(value) for value in self.cache], self.positions[index], context)


def join(forests: Sequence[Forest]) -> Forest:
    """One forest of all trees; shorter ones are padded with slots that nobody sees."""
    if len(forests) == 1:
        return forests[0]
    first, slots = forests[0], max(forest.slots for forest in forests)

    def padded(array: NDArray[Any], axis: int) -> NDArray[Any]:
        width = [(0, 0)] * array.ndim
        width[axis] = (0, slots - array.shape[axis])
        return np.pad(array, width)

    cache = [
        ort_value(np.concatenate([padded(forest.cache[i].numpy(), 2) for forest in forests]))
        for i in range(len(first.cache))
    ]
    positions = np.concatenate([padded(forest.positions, 1) for forest in forests])
    return Forest(first.stepper, cache, positions, {})


# Given texts behind one context: every text's log-probability, while the context is read once for all of them.

CHUNK_LOGITS = 2**25  # targets × vocabulary inside the graph: 128 MiB of float32
_Branch = tuple[Sequence[int], Sequence[int]]
CHUNK_TOKENS = 512  # tokens of the branches side by side; attention is computed between all of them, mostly in vain


def mean_log_probabilities(
    forest: Forest, shared: Sequence[int], branches: Sequence[_Branch], *, vocabulary: int
) -> NDArray[np.float64]:
    """Per branch (n,) the mean log-probability of its targets after the tree, `shared` and its own tokens before them.

    branches: (tokens to read, targets); the last of the tokens predict the targets one by one.
    forest: one tree, all of whose slots count, at positions 0, 1, …; `shared` may be appended to it.
    """
    if not branches:
        return np.empty(0, np.float64)
    chunks = list(_chunks(branches, most_targets=max(1, CHUNK_LOGITS // vocabulary)))
    if len(chunks) > 1 and shared:
        forest.append(shared)
        shared = ()
    return np.concatenate([_pass(forest, shared, chunk) for chunk in chunks])


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` (one or more) begin with."""
    # whatever the first and the last in order agree in, those between them have too
    first, last = min(texts, key=list), max(texts, key=list)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))


def _chunks(branches: Sequence[_Branch], *, most_targets: int) -> Iterator[list[_Branch]]:
    """Consecutive branches within both bounds; a larger one is a chunk of its own."""
    chunk: list[_Branch] = []
    targets = tokens = 0
    for branch in branches:
        read, wanted = map(len, branch)
        targets, tokens = targets + wanted, tokens + read
        if chunk and (targets > most_targets or tokens > CHUNK_TOKENS):
            yield chunk
            chunk, targets, tokens = [], wanted, read
        chunk.append(branch)
    yield chunk


def _pass(forest: Forest, shared: Sequence[int], chunk: Sequence[_Branch]) -> NDArray[np.float64]:
    lengths, counts = np.array([(len(tokens), len(targets)) for tokens, targets in chunk]).T
    old, start = forest.slots, forest.slots + len(shared)
    tokens = np.array([*shared, *(token for read, _ in chunk for token in read)], np.int64)
    positions = np.concatenate([np.arange(old, start), *(np.arange(start, start + length) for length in lengths)])
    ends = len(shared) + np.cumsum(lengths)
    take = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    targets = np.array([token for _, wanted in chunk for token in wanted], np.int64)
    mask = branching_mask(old, len(shared), lengths.tolist())
    scores = forest.log_probabilities(tokens[None], positions[None], mask[None], take, targets)
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(scores.astype(np.float64), starts) / counts)
