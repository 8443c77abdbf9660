"""Finished logs of a run, one for each shard, become one query file with the birth certificate of its queries."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.files import disk_errors, write_atomic
from xqg_vdb.journal import Committed, differences, rows, scan
from xqg_vdb.texts.queries import read_queries
from xqg_vdb.texts.tables import write_records
from xqg_vdb.types import GeneratedQueries

SCHEMA = 2
"""Of logs, records and provenance. 1: records had no digest of their passage."""


@dataclass
class Summary:
    """The result of a run, and what it is up to now. path is OUT, or the finished shard's log.

    Rejected counts queries by reason when filtered; reused, passages by the earlier output that their queries are from;
    gaps, passages that have no query in one language or more; new_*, what was not taken from an earlier output.
    """

    path: Path
    passages: int = 0
    queries: int = 0
    seconds: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    reused: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    new_passages: int = 0
    new_queries: int = 0

    def add(self, info: Mapping[str, Any]) -> None:
        """Add what a commit or an end record counts."""
        self.queries += info["queries"]
        self.seconds += info["seconds"]
        self.rejected.update(info["rejected"])
        self.reused.update(info["reused"])
        self.gaps += info.get("gaps", 0)
        self.new_passages += info.get("new_passages", 0)
        self.new_queries += info.get("new_queries", 0)

    def counts(self) -> dict[str, Any]:
        """For an end record or a provenance."""
        counted = {"queries": self.queries, "gaps": self.gaps, "seconds": round(self.seconds, 3)}
        return {**counted, "rejected": dict(self.rejected), "reused": dict(self.reused)}


def provenance_path(out: Path) -> Path:
    """Where the birth certificate of a query file lies."""
    return out.with_name(out.name + ".provenance.json")


def write_provenance(out: Path, record: Mapping[str, Any]) -> None:
    """Write the birth certificate of `out`."""
    write_atomic(provenance_path(out), orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")


def log_path(out: Path, number: int = 1, count: int = 1) -> Path:
    """Where the log of a shard lies."""
    return out.with_name(f"{out.name}.shard-{number}-of-{count}")


def _logs_of(out: Path) -> dict[Path, tuple[int, int]]:
    """The logs beside `out`, the number of each, and of how many."""
    pattern = re.compile(rf"\A{re.escape(out.name)}\.shard-([1-9]\d{{0,5}})-of-([1-9]\d{{0,5}})\Z", re.ASCII)
    named = {path: (int(i), int(n)) for path in out.parent.iterdir() for i, n in pattern.findall(path.name)}
    return {path: (i, n) for path, (i, n) in named.items() if i <= n}


def merge_shards(out: Path, *, over: bool = False) -> dict[str, Any]:
    """Join the finished shards beside `out` into `out`, in corpus order, with its provenance; returns the provenance.

    over: replace an `out` that is there.
    Raises DataError that names every shard that is missing or unfinished, MismatchError when they were made
    differently.
    """
    if out.is_file() and not over:
        provenance, paths = _merged_before(out)
    else:
        shards = _finished_shards(out)
        provenance, paths = _provenance(out, shards), list(shards)
        write_provenance(out, provenance)
        # row k of shard i is passage k·n + i of the corpus
        interleaved = zip_longest(*(rows(path, committed) for path, committed in shards.items()))
        merged = (GeneratedQueries(r["id"], r["queries"], r["digest"]) for several in interleaved for r in several if r)
        write_records(out, merged)  # last: then it is complete
    for path in paths:
        path.unlink()
    return provenance


def _merged_before(out: Path) -> tuple[dict[str, Any], list[Path]]:
    """The provenance of an `out` that was merged already, and its logs: a kill may have come before they were removed.

    Raises DataError when there is a log whose rows are not those of `out`.
    """
    logs = _logs_of(out)
    for path, (number, count) in logs.items():
        committed = scan(path)
        merged = islice(read_queries(out), number - 1, None, count)
        for row, record in zip_longest(rows(path, committed) if committed else (), merged):
            if not row or not record or (row["id"], row["digest"]) != (record.id, record.passage_digest):
                raise DataError(f"{out} is there already, not from {path.name}: remove one of them, or rename {out}.")
    if not logs and not provenance_path(out).exists():
        _finished_shards(out)  # raises
    return read_provenance(out), list(logs)


def _finished_shards(out: Path) -> dict[Path, Committed]:
    counts = {count for _, count in _logs_of(out).values()}
    if not counts:
        raise DataError(f"There is no shard of {out} (files named {out.name}.shard-1-of-4 and so on) to merge.")
    if len(counts) > 1:
        splits = " and ".join(f"{out.name}.shard-*-of-{count}" for count in sorted(counts))
        raise MismatchError(f"{out} has shards of different splits, {splits}: remove the wrong ones.")
    count = counts.pop()
    shards: dict[Path, Committed] = {}
    lacking: list[str] = []
    for number in range(1, count + 1):
        path = log_path(out, number, count)
        committed = scan(path) if path.exists() else None
        if committed is None:
            lacking.append(f"{path.name} is missing")
        elif committed.end is None:
            lacking.append(f"{path.name} is unfinished ({committed.rows} passages so far)")
        else:
            shards[path] = committed
            first, *_, made = [one.header | {"corpus": (one.end or {}).get("corpus")} for one in shards.values()] * 2
            if changed := differences({**first, "shard": [number, count]}, made):
                raise MismatchError(
                    f"{path.name} does not fit its name or the shards before it ({'; '.join(changed)}): remove what is"
                    f" wrong, and run `xqg-vdb generate` as before, such as with --shard {number}/{count}."
                )
    if lacking:
        todo = f"run `xqg-vdb generate` as before, with --shard i/{count} for each"
        raise DataError(f"{out} cannot be merged yet, {todo}: {'; '.join(lacking)}.")
    return shards


def _provenance(out: Path, shards: Mapping[Path, Committed]) -> dict[str, Any]:
    first = next(iter(shards.values())).header
    ends = [committed.end or {} for committed in shards.values()]
    total = Summary(out)
    for end in ends:
        total.add(end)
    return {
        **{key: value for key, value in first.items() if key != "shard"},
        "passages": sum(end["rows"] for end in ends),
        **total.counts(),
        "shards": len(shards),
        "counters": [end["counters"] for end in ends],
        "environment": {key: ends[0][key] for key in ("versions", "python", "machine")},
    }


def read_provenance(out: Path) -> dict[str, Any]:
    """The birth certificate of a query file. Raises DataError when there is none, MismatchError for an old one."""
    with disk_errors(out), out.open("rb"):
        pass  # a wrong name is named before its provenance is
    beside = provenance_path(out)
    try:
        record = orjson.loads(beside.read_bytes())
    except (FileNotFoundError, ValueError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("langs"), list):
        raise DataError(
            f"{out} cannot be reused without its {beside.name}, which says how it was made: put that file beside it."
        )
    if record.get("schema") != SCHEMA:
        raise MismatchError(
            f"{out} was written by another version of this program (schema {record.get('schema')}, this is {SCHEMA}), "
            "and does not say which texts its queries are about: leave --reuse out once."
        )
    return record


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of every package, `source` for one that runs from a checkout."""
    found = {name: next(iter(distributions(name=name)), None) for name in packages}
    return {name: "source" if package is None else package.version for name, package in found.items()}


def environment() -> dict[str, object]:
    """Versions and machine of a run."""
    packages = versions(("xqg-vdb", "onnxruntime", "tokenizers", "numpy"))
    return {"versions": packages, "python": platform.python_version(), "machine": platform.machine()}
