"""What the runner is asked for and what it reports: job, progress, summary; and what it needs of a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xqg_vdb.batching import windows
from xqg_vdb.errors import DataError
from xqg_vdb.generation.filters import QueryFilter
from xqg_vdb.generation.merging import Shard
from xqg_vdb.languages import normalize
from xqg_vdb.types import GeneratedQueries, Passage


class BatchGenerator(Protocol):
    """What the runner needs of a generator. Equal calls give equal records, whatever was called before."""

    def batch_size(self, langs: Sequence[str], n: int) -> int:
        """Passages per batch; a function of its arguments and the settings alone."""
        ...

    def generate_batch(
        self, batch: Sequence[Passage], *, langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """One record per passage, in order."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that the queries depend on: model fingerprint, prompt, settings, seed. A JSON-able dict."""
        ...

    def examples(self) -> tuple[str, ...]:
        """Questions in the prompt that must not come back."""
        ...

    def counters(self) -> dict[str, float]:
        """Counts and seconds so far: passages cut, seconds per phase, tokens, failed requests."""
        ...


class InBatches:
    """What every generator makes of its `generate_batch`."""

    def generate(
        self: BatchGenerator, passages: Iterable[Passage], *, langs: Sequence[str], n: int
    ) -> Iterator[GeneratedQueries]:
        """One record per passage, in input order; greedy gives one query per language whatever n is."""
        for batch in windows(passages, self.batch_size(langs, n)):
            yield from self.generate_batch(batch, langs=langs, n=n)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. passages and queries since the start of the run; total counts passages of the shard.

    Passages of which nothing is left to write, because an earlier output has it all, are in none of these numbers.
    """

    passages: int
    total: int
    queries: int
    seconds: float
    resumed: int

    @property
    def rate(self) -> float:
        """Queries per second of this session."""
        return self.queries / self.seconds if self.seconds else 0.0

    @property
    def eta_seconds(self) -> float:
        """Seconds to go at the present speed."""
        done = self.passages - self.resumed
        return (self.total - self.passages) * self.seconds / done if done else float("inf")


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run. path is OUT, or the finished shard's log.

    Rejected counts queries by reason when filtered; reused, passages by the earlier output that their queries are from.
    """

    path: Path
    passages: int
    queries: int
    seconds: float
    rejected: Mapping[str, int]
    resumed: int = 0
    reused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What to generate: languages (normalised and checked), queries per language, which shard, filtered or not."""

    langs: tuple[str, ...]
    n: int
    shard: Shard = field(default_factory=Shard)
    query_filter: QueryFilter | None = None

    def __post_init__(self) -> None:
        if not self.langs:
            raise DataError("No language was given: name at least one, such as -l sw.")
        codes = [normalize(lang) for lang in self.langs]
        if len(set(codes)) < len(codes):
            raise DataError(f"A language is named twice in {', '.join(self.langs)}.")
        if self.n < 1:
            raise DataError(f"n must be 1 or more, got {self.n}.")
        object.__setattr__(self, "langs", tuple(codes))
