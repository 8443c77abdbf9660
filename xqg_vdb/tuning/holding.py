"""Pseudo-questions: generated queries that are taken out of the index and asked of it.

Per passage one place in the list is drawn, by a hash of its id, and the queries at that place are held out *in every
language*. Holding out one language at a time flatters high α: generators translate one question into all languages, and
what is then left in the index is the very question in another language. Measured on XQuAD (docs/tuning.md), that
picks α = 0.9 where labels say 0.1 to 0.3; this picks 0.3 to 0.5. Why still more than the labels: siblings come from the
same generator. `search.py` answers that by preferring the smallest α that does as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.queries import QueryFile
from xqg_vdb.query_vectors import QueryVectors
from xqg_vdb.types import Query

MOST_HELD = 6000
"""Pseudo-questions at most: enough for intervals of a percent, few enough to be searched in seconds."""

_SEED = b"xqg tuning 1"


def hash_order(text: str) -> int:
    """Give a text a fixed pseudo-random number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=_SEED).digest(), "big")


def hold_out(queries: QueryVectors, ids: Sequence[str]) -> tuple[QueryVectors, QueryVectors]:
    """Split into the pseudo-questions and the rest, whose `index` counts on without them.

    ids: of the passages that `queries.owner` numbers. Raises DataError when no passage has two queries in a language.
    """
    most = np.zeros(len(ids), dtype=np.int64)
    np.maximum.at(most, queries.owner, queries.index + 1)
    per_passage = np.bincount(queries.owner, minlength=len(ids))
    place = np.full(len(ids), -1, dtype=np.int64)
    for row in _drawn(ids, most, per_passage):
        place[row] = hash_order(ids[row]) % int(most[row])
    own = place[queries.owner]
    held = queries.index == own
    index = queries.index - ((own >= 0) & (queries.index > own))
    return _part(queries, held, queries.index), _part(queries, ~held, index)


def held_texts(
    table: QueryFile, ids: Sequence[str], *, counts: Mapping[str, NDArray[np.integer]]
) -> tuple[NDArray[np.int64], list[Query]]:
    """Find the texts that `hold_out` would hold out, with the passage row of each, when only sums are at hand.

    counts: by language, how many queries each row's sum has. Raises MismatchError when the file has other numbers.
    """
    by_lang = list(counts.values())
    most = np.max(by_lang, axis=0)
    owner, texts = [], []
    for row in _drawn(ids, most, np.add.reduce(by_lang)):
        record = table.get(ids[row])
        queries = record.queries if record else {}
        if any(len(queries.get(lang, ())) != own[row] for lang, own in counts.items()):
            raise MismatchError(
                f"The query files have other queries for {ids[row]!r} than the build was made from: give those files."
            )
        place = hash_order(ids[row]) % int(most[row])
        for lang in sorted(counts):
            if place < counts[lang][row]:
                owner.append(row)
                texts.append(Query(f"{ids[row]}/{lang}", queries[lang][place], lang))
    return np.array(owner, dtype=np.int64), texts


def _drawn(ids: Sequence[str], most: NDArray[np.integer], total: NDArray[np.integer]) -> list[int]:
    """Choose passages that have two queries or more in a language, in hash order, until there are `MOST_HELD`."""
    rows = sorted(np.flatnonzero(most > 1).tolist(), key=lambda row: hash_order(ids[row]))
    if not rows:
        raise DataError(
            "No passage has two queries in one language, so none can be held out: generate more (xqg-vdb generate "
            "-n 3), or give --questions and --qrels."
        )
    languages = np.cumsum([total[row] / most[row] for row in rows])  # at least so many are held out with a passage
    return rows[: max(1, int(np.searchsorted(languages, MOST_HELD)))]


def _part(queries: QueryVectors, chosen: NDArray[np.bool_], index: NDArray[np.int64]) -> QueryVectors:
    return QueryVectors(
        queries.vectors[chosen], queries.owner[chosen], index[chosen], queries.lang[chosen], queries.unused
    )
