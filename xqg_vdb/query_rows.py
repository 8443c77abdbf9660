"""Every generated query's own vector, where a build folder has only sums: for collections with a row per query.

In: the rows of a corpus, an encoder. Out: a build folder of query rows, in the order of passage, language, query. It is
filled by a pass of its own, so that a load without them pays nothing; the sums are then made from these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.batching import windows
from xqg_vdb.building import WINDOW, Row, changed_input
from xqg_vdb.fusion import mixed_rows, unit_rows
from xqg_vdb.kept_vectors import text_digest
from xqg_vdb.progress import Progress, silent
from xqg_vdb.types import Card, EncoderFacts, TextEncoder, Vectors
from xqg_vdb.vectors import Build

_EACH_QUERY = "each-query"


@dataclass(frozen=True)
class QueryRows:
    """Query vectors (m, dim) float32, memory-mapped; those of passage i are starts[i] to starts[i + 1]."""

    vectors: Vectors
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, kept: Build, rows: Build) -> QueryRows:
        """The rows of every passage of the build that they belong to."""
        counts = np.zeros(kept.rows, dtype=np.int64)
        for own in kept.counts.values():
            counts += own
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        if starts[-1] != rows.rows:
            raise changed_input(kept.path, 0)
        return cls(rows.passages, starts)

    def matrices(
        self, kept: Build, window: slice, passages: Vectors, *, card: Card, means: Mapping[str, Vectors]
    ) -> list[Vectors]:
        """For each passage of the window its own row and one per query, (1 + queries, dim) float32.

        passages: the window's own rows. Languages that the card does not fold in are left out.
        """
        langs = sorted(kept.counts)
        counts = np.stack([kept.counts[lang][window] for lang in langs], axis=1) if langs else np.zeros((0, 0))
        first, last = self.starts[window.start], self.starts[window.start + len(passages)]
        normalize = card.distance == "cosine"
        owner = np.repeat(
            np.arange(len(passages)), np.diff(self.starts[window.start : window.start + len(passages) + 1])
        )
        lang_of = np.repeat(np.tile(np.array(langs), len(passages)), counts.astype(np.int64).ravel())
        chosen = np.isin(lang_of, card.query_langs)
        queries = np.asarray(self.vectors[first:last])[chosen]
        mixed = mixed_rows(
            passages[owner[chosen]], queries, langs=lang_of[chosen].tolist(), recipe=card.recipe, means=means
        )
        own, mixed = (unit_rows(passages), unit_rows(mixed)) if normalize else (passages, mixed)
        ends = np.searchsorted(owner[chosen], np.arange(len(passages) + 1))
        return [np.concatenate([own[i : i + 1], mixed[ends[i] : ends[i + 1]]]) for i in range(len(passages))]


class KeptQueryEncoder:
    """A `TextEncoder` that takes the vectors of the queries that `rows` holds from there, and encodes only others."""

    def __init__(self, encoder: TextEncoder, rows: Build) -> None:
        self._encoder, self._vectors = encoder, rows.passages
        self._order = np.argsort(rows.digests, kind="stable")
        self._digests = rows.digests[self._order]

    @property
    def facts(self) -> EncoderFacts:
        """The encoder's own."""
        return self._encoder.facts

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) float32."""
        return self._encoder.encode_passages(texts)

    def encode_queries(self, texts: Iterable[str], *, langs: Sequence[str | None] | None = None) -> Vectors:
        """Rows (n, dim) float32; calibrated ones, for which `langs` is given, are always encoded."""
        texts = list(texts)
        if langs is not None or not len(self._digests):
            return self._encoder.encode_queries(texts, langs=langs)
        digests = np.array([text_digest(text) for text in texts], dtype=np.uint64)
        at = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        found = self._digests[at] == digests
        vectors = np.empty((len(texts), self.facts.dim), dtype=np.float32)
        vectors[found] = self._vectors[self._order[at[found]]]
        if not found.all():
            vectors[~found] = self._encoder.encode_queries([texts[i] for i in np.flatnonzero(~found).tolist()])
        return vectors


def keep_query_rows(rows: Iterable[Row], *, encoder: TextEncoder, build: Path, progress: Progress = silent) -> Build:
    """Encode every query of the rows into the build folder's `each-query`, going on where an earlier run stopped.

    Raises MismatchError when it was made from other queries or by another encoder, LockedError, DiskError,
    CorruptError, DataError when `build` holds something else.
    """
    facts = encoder.facts
    with Build.create_or_resume(build, dim=facts.dim, fingerprint=facts.fingerprint):
        path = build / _EACH_QUERY  # inside a folder that is known for a build now
    with Build.create_or_resume(path, dim=facts.dim, fingerprint=facts.fingerprint) as writer:
        known, done, passages = writer.digest_prefix(), 0, 0
        for window in windows(rows, WINDOW):
            texts = query_texts(window)
            digests = np.array([text_digest(text) for text in texts], dtype=np.uint64)
            if done < len(known):
                if not np.array_equal(known[done : done + len(texts)], digests):
                    raise changed_input(build, passages + _first_changed(window, known[done:], digests))
            elif texts:
                writer.append([str(done + i) for i in range(len(texts))], digests, encoder.encode_queries(texts))
                writer.commit()
            done, passages = done + len(texts), passages + len(window)
            progress("encoding queries", passages, None)
        if done < len(known):
            raise changed_input(build, passages)
        if not writer.complete:
            writer.commit(complete=True)
    return Build.open(path)


def _first_changed(window: Sequence[Row], known: NDArray[np.uint64], digests: NDArray[np.uint64]) -> int:
    """Which passage of the window has the first query that is not as it was kept."""
    shared = min(len(known), len(digests))
    query = next(iter(np.flatnonzero(known[:shared] != digests[:shared]).tolist()), shared)
    ends = np.cumsum([len(query_texts([row])) for row in window])
    return int(np.searchsorted(ends, query, side="right"))


def query_texts(window: Sequence[Row]) -> list[str]:
    """The queries of some passages, by passage, language, and their own order."""
    return [
        text
        for _, queries in window
        if queries is not None
        for _, texts in sorted(queries.queries.items())
        for text in texts
    ]
