"""Query expansion in a benchmark: what a system searches for in place of its questions, written once and kept.

In: an expander and questions. Out: one text or two a question, and what they cost. Texts are in the `ExpansionCache`
beside the vectors, times in a log of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.batching import windows
from xqg_vdb.bench.kept_rows import KeptRows
from xqg_vdb.bench.spent import Spent, timed_rows
from xqg_vdb.expansion import Expander
from xqg_vdb.generation.completion import BATCH
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


def expand_all(
    expander: Expander, queries: Sequence[Query], *, times: KeptRows, progress: Progress, stage: str
) -> tuple[Wordings, Spent]:
    """The wordings of every question, and what they cost; the questions' languages must be settled.

    Some are asked about alone, for their time, the others in batches; an expander with a cache that is stopped loses
    one batch at most.
    """
    found: dict[int, tuple[Query, ...]] = {}
    seconds: list[float] = []
    started = time.perf_counter()
    for row in timed_rows(len(queries)):
        progress(stage, len(found), len(queries))
        found[row], took = _timed(expander, queries[row], times)
        seconds += took
    for rows in windows([row for row in range(len(queries)) if row not in found], BATCH):
        progress(stage, len(found), len(queries))
        found.update(zip(rows, expander.expand([queries[row] for row in rows]), strict=True))
    spent = Spent("expand", time.perf_counter() - started, seconds, _notes(expander, len(queries)))
    return [found[row] for row in range(len(queries))], spent


def vectors_of(wordings: Wordings, encode: Callable[[Sequence[str]], Vectors]) -> WordingVectors:
    """The wordings, encoded as questions."""
    flat = list(chain.from_iterable(wordings))
    starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
    texts = [one.text for one in flat]
    return WordingVectors(texts, [one.lang or "" for one in flat], encode(texts), starts)


def _timed(expander: Expander, query: Query, times: KeptRows) -> tuple[tuple[Query, ...], list[float]]:
    """The wordings of one question, and the seconds they took when they were written; none when nobody knows."""
    blob = orjson.dumps([query.text, query.lang, expander.plan.to_json(), expander.writer.describe()])
    key = hashlib.blake2b(blob, digest_size=16).hexdigest()
    cached = expander.counters()["cached"]
    started = time.perf_counter()
    (wordings,) = expander.expand([query])
    seconds = time.perf_counter() - started
    if expander.counters()["cached"] == cached:
        times.add([{"key": key, "seconds": seconds}])
    row = times.get(key)
    return wordings, [] if row is None else [row["seconds"]]


def _notes(expander: Expander, questions: int) -> tuple[str, ...]:
    counts, notes = expander.counters(), []
    if counts["cached"]:
        notes.append(
            f"{counts['cached']:.0f} of {questions} expansions were kept from before: their times are those of the run "
            "that wrote them"
        )
    if counts["fallbacks"]:
        why = f" ({expander.failure})" if expander.failure else ""
        notes.append(
            f"{counts['fallbacks']:.0f} of {questions} questions were searched as they are: the model wrote nothing of "
            f"use{why}"
        )
    return tuple(notes)
