"""Query expansion in a benchmark: what a system searches for in place of its questions, written once and kept.

In: an expander and questions. Out: one text or two a question, and what they cost. What the model wrote is kept in a
log beside the vectors, with the seconds of what it wrote alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.batching import windows
from xqg_vdb.bench.kept_rows import KeptRows
from xqg_vdb.bench.spent import Spent, timed_rows
from xqg_vdb.expansion.expander import BATCH, Expander, Writer
from xqg_vdb.progress import Progress
from xqg_vdb.types import Query, Vectors

Wordings = Sequence[tuple[Query, ...]]


@dataclass(frozen=True)
class WordingVectors:
    """The wordings of all questions one after the other: texts and languages (m,), vectors (m, dim), not calibrated.

    starts: (q,) where each question's begin; it has one at least.
    """

    texts: Sequence[str]
    langs: Sequence[str]
    vectors: Vectors
    starts: NDArray[np.int64]

    def joined(self) -> list[str]:
        """Per question the text that its words are taken from."""
        ends = [*self.starts[1:].tolist(), len(self.texts)]
        return ["\n".join(self.texts[a:b]) for a, b in zip(self.starts.tolist(), ends, strict=True)]


class KeptWriter:
    """A `Writer` that asks another one only for what `kept` does not hold.

    took: per answer the seconds of a prompt that was written `alone`, None for those that were written with others.
    reused: how many answers were kept from before. Both are the caller's to reset.
    """

    def __init__(self, writer: Writer, *, kept: KeptRows) -> None:
        self._writer, self._kept = writer, kept
        self.took: list[float | None] = []
        self.reused, self.alone, self.failure = 0, False, ""

    def describe(self) -> dict[str, Any]:
        """See `Writer`."""
        return self._writer.describe()

    def write(self, prompts: Sequence[str]) -> list[str]:
        """See `Writer`; what is written is on the disk when this returns, failures are not kept."""
        keys = [hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest() for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self._kept.get(key) is None}
        started = time.perf_counter()
        texts = dict(zip(new, self._writer.write(list(new.values())), strict=True)) if new else {}
        self.failure = self._writer.failure
        seconds = {"seconds": time.perf_counter() - started} if self.alone else {}
        if written := [{"key": key, "text": text, **seconds} for key, text in texts.items() if text]:
            self._kept.add(written)
        rows = [self._kept.get(key) or {"text": "", **seconds} for key in keys]
        self.took += [row.get("seconds") for row in rows]
        self.reused += len(prompts) - len(new)
        return [row["text"] for row in rows]

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()


def expand_all(
    expander: Expander, writer: KeptWriter, queries: Sequence[Query], *, progress: Progress, stage: str
) -> tuple[Wordings, Spent]:
    """The wordings of every question, and what they cost; the questions' languages must be settled.

    writer: the expander's. Some are asked about alone, for their time, the others in batches; a run that is stopped
    loses one batch at most.
    """
    found: dict[int, tuple[Query, ...]] = {}
    seconds: list[float] = []
    started, writer.reused = time.perf_counter(), 0
    for row in timed_rows(len(queries)):
        progress(stage, len(found), len(queries))
        writer.took, writer.alone = [], True
        found[row] = expander.expand([queries[row]])[0]
        writer.alone = False
        seconds += [one for one in writer.took if one is not None]
    for rows in windows([row for row in range(len(queries)) if row not in found], BATCH):
        progress(stage, len(found), len(queries))
        found.update(zip(rows, expander.expand([queries[row] for row in rows]), strict=True))
    notes = _notes(expander, writer.reused, len(queries))
    return [found[row] for row in range(len(queries))], Spent("expand", time.perf_counter() - started, seconds, notes)


def vectors_of(wordings: Wordings, encode: Callable[[Sequence[str]], Vectors]) -> WordingVectors:
    """The wordings, encoded as questions."""
    flat = list(chain.from_iterable(wordings))
    starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
    texts = [one.text for one in flat]
    return WordingVectors(texts, [one.lang or "" for one in flat], encode(texts), starts)


def _notes(expander: Expander, reused: int, questions: int) -> tuple[str, ...]:
    counts, notes = expander.counters(), []
    if reused:
        notes.append(
            f"{reused} of {questions} expansions were kept from before: their times are those of the run "
            "that wrote them"
        )
    if counts["fallbacks"]:
        why = f" ({expander.writer.failure})" if expander.writer.failure else ""
        notes.append(
            f"{counts['fallbacks']:.0f} of {questions} questions were searched as they are: the model wrote nothing of "
            f"use{why}"
        )
    return tuple(notes)
