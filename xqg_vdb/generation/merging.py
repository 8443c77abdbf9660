"""Shards: which passages belong to one, where its log lies, and how finished logs become one query file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.files import write_atomic
from xqg_vdb.generation.record_log import Committed, rows, scan
from xqg_vdb.queries import write_queries
from xqg_vdb.types import GeneratedQueries, Passage

SCHEMA = 2
"""Of logs, records and provenance. 1: records had no digest of their passage."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th passage, from the `number`-th on (1 to count)."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise DataError(f"--shard takes i/n with 1 <= i <= n, such as 1/4, not {self.number}/{self.count}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of `i/n`. Raises DataError."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match:
            raise DataError(f"--shard takes i/n, such as 1/4, not {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def of(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """The passages of this shard, in order."""
        return islice(iter(passages), self.number - 1, None, self.count)

    def path(self, out: Path) -> Path:
        """Where its log lies."""
        return out.with_name(f"{out.name}.shard-{self.number}-of-{self.count}")


def provenance_path(out: Path) -> Path:
    """Where the birth certificate of a query file lies."""
    return out.with_name(out.name + ".provenance.json")


def merge_shards(out: Path, *, keep_logs: bool = False) -> dict[str, Any]:
    """Join the finished shards beside `out` into `out`, in corpus order, with its provenance; returns the provenance.

    Raises DataError that names every shard that is missing or unfinished, MismatchError when they were made
    differently.
    """
    if out.exists():
        raise DataError(f"{out} is there already: remove it, or give another OUT.")
    paths = _shards_of(out)
    found = {path: scan(path) for path in paths if path.exists()}
    open_ones = [_state(path, found.get(path)) for path in paths if not _finished(found.get(path))]
    if open_ones:
        raise DataError(f"{out} cannot be merged yet: {'; '.join(open_ones)}. Run `xqg-vdb generate` for them.")
    shards = {path: committed for path, committed in found.items() if committed is not None}
    _check_alike(shards)
    provenance = _provenance(shards)
    write_atomic(provenance_path(out), orjson.dumps(provenance, option=orjson.OPT_INDENT_2) + b"\n")
    found_rows = _interleaved([rows(path, committed) for path, committed in shards.items()])
    # last: then it is complete
    write_queries(out, (GeneratedQueries(row["id"], row["queries"], row["digest"]) for row in found_rows))
    for path in () if keep_logs else paths:
        path.unlink()
    return provenance


def _shards_of(out: Path) -> list[Path]:
    pattern = re.compile(re.escape(out.name) + r"\.shard-\d+-of-(\d+)")
    counts = {int(match[1]) for path in out.parent.iterdir() if (match := pattern.fullmatch(path.name))}
    if not counts:
        raise DataError(f"There is no shard of {out} (files named {out.name}.shard-1-of-4 and so on) to merge.")
    if len(counts) > 1:
        raise MismatchError(
            f"{out} has shards of different splits ({', '.join(map(str, sorted(counts)))}): remove the wrong ones."
        )
    count = counts.pop()
    return [Shard(i + 1, count).path(out) for i in range(count)]


def _finished(committed: Committed | None) -> bool:
    return committed is not None and committed.end is not None


def _state(path: Path, committed: Committed | None) -> str:
    return (
        f"{path.name} is missing"
        if committed is None
        else f"{path.name} is unfinished ({committed.rows} passages so far)"
    )


def _check_alike(shards: dict[Path, Committed]) -> None:
    kinds = {orjson.dumps({**c.header, "shard": None}, option=orjson.OPT_SORT_KEYS) for c in shards.values()}
    if len(kinds) > 1:
        raise MismatchError(f"The shards {', '.join(p.name for p in shards)} were made with different settings.")


def _interleaved(parts: list[Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Row k of shard i is passage k·n + i of the corpus."""
    while parts:
        for part in parts:
            row = next(part, None)
            if row is None:
                return  # shards differ by one row at most, and the longer ones come first
            yield row


def _provenance(shards: dict[Path, Committed]) -> dict[str, Any]:
    ends = [committed.end or {} for committed in shards.values()]
    first = next(iter(shards.values()))
    settings = {key: value for key, value in first.header.items() if key != "shard"}
    rejected: Counter[str] = Counter()
    reused: Counter[str] = Counter()
    for end in ends:
        rejected.update(end["rejected"])
        reused.update(end["reused"])
    return {
        **settings,
        "passages": sum(end["rows"] for end in ends),
        "queries": sum(end["queries"] for end in ends),
        "rejected": dict(rejected),
        "reused": dict(reused),
        "seconds": round(sum(end["seconds"] for end in ends), 3),
        "shards": len(shards),
        "counters": [end["counters"] for end in ends],
        "environment": {key: ends[0][key] for key in ("versions", "python", "machine")},
    }
