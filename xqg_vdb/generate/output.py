"""Shards: which passages belong to one, where its log lies, and how finished logs become one query file."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.files import disk_errors, write_atomic
from xqg_vdb.journal import Committed, differences, rows, scan
from xqg_vdb.texts.queries import QueryFile, read_queries, row_digest, write_queries
from xqg_vdb.types import GeneratedQueries, Passage

SCHEMA = 2
"""Of logs, records and provenance. 1: records had no digest of their passage."""
_OF_SHARD = r"\.shard-\d+-of-(\d+)"


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


def merge_shards(out: Path, *, keep_logs: bool = False, over: bool = False) -> dict[str, Any]:
    """Join the finished shards beside `out` into `out`, in corpus order, with its provenance; returns the provenance.

    over: replace an `out` that is there.
    Raises DataError that names every shard that is missing or unfinished, MismatchError when they were made
    differently.
    """
    if out.exists() and not over:
        return _merged_before(out, keep_logs=keep_logs)
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


def _merged_before(out: Path, *, keep_logs: bool) -> dict[str, Any]:
    """The provenance of an `out` that was merged already: a kill may have come before the last log was removed.

    Raises DataError when there is a log whose rows are not those of `out`.
    """
    logs = [path for path in out.parent.iterdir() if re.fullmatch(re.escape(out.name) + _OF_SHARD, path.name)]
    for path in logs:
        number, count = map(int, re.findall(r"\d+", path.name[len(out.name) :]))
        committed = scan(path)
        merged = islice(read_queries(out), number - 1, None, count)
        for row, record in zip_longest(rows(path, committed) if committed else (), merged):
            if not row or not record or (row["id"], row["digest"]) != (record.id, record.passage_digest):
                raise DataError(f"{out} is there already: remove it, or give another OUT.")
    if not provenance_path(out).exists():
        raise DataError(f"{out} is there already: remove it, or give another OUT.")
    for path in () if keep_logs else logs:
        path.unlink()
    return _provenance_of(out)


def _shards_of(out: Path) -> list[Path]:
    pattern = re.compile(re.escape(out.name) + _OF_SHARD)
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
        "gaps": sum(end.get("gaps", 0) for end in ends),
        "rejected": dict(rejected),
        "reused": dict(reused),
        "seconds": round(sum(end["seconds"] for end in ends), 3),
        "shards": len(shards),
        "counters": [end["counters"] for end in ends],
        "environment": {key: ends[0][key] for key in ("versions", "python", "machine")},
    }


# The birth certificate of generated queries: everything that one needs to make the same file again.


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of every package, `source` for one that runs from a checkout."""
    found = {name: next(iter(distributions(name=name)), None) for name in packages}
    return {name: "source" if package is None else package.version for name, package in found.items()}


def environment() -> dict[str, object]:
    """Versions and machine of a run."""
    return {
        "versions": versions(("xqg-vdb", "onnxruntime", "tokenizers", "numpy")),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


# Queries of an earlier run for a corpus that has changed since: what it wrote about passages that are as they were.

LONGEST = 4096
"""Passages of a batch at most, most of them known: a kill loses no more, and no more texts are in memory."""


def passage_digest(passage: Passage) -> str:
    """16 hex digits of id, title and text: all that a prompt and its random numbers take from a passage."""
    return f"{row_digest(passage, None):016x}"


class EarlierQueries:
    """A finished output of `generate`, asked passage by passage; close it.

    langs: the languages that are taken from it. The rest of the settings are the same as now.
    """

    def __init__(self, path: Path, *, header: Mapping[str, Any], gaps: bool = False) -> None:
        """Open `path`; header: the settings of the run that reuses it. gaps: languages without a query are missing.

        Raises DataError when it has no provenance beside it or is no query file, MismatchError that names the settings
        which differ, or when its records have no digests of their passages.
        """
        self.name, self._gaps = path.name, gaps
        self.langs = _shared_languages(path, _provenance_of(path), header)
        self._table = QueryFile([path])
        try:
            first = next(self._table.records(self._table.unused(1)[0]))
            if not first.passage_digest:
                raise MismatchError(
                    f"{path} does not say which texts its queries are about: give --reuse the file that `xqg-vdb "
                    "generate` wrote, not one that was filtered afterwards, or leave --reuse out."
                )
        except BaseException:
            self.close()
            raise

    def find(self, passage: Passage) -> Mapping[str, tuple[str, ...]]:
        """The queries of a passage that is as it was, by language; none when it is new or changed."""
        digest = passage_digest(passage)
        for record in self._table.records(passage.id):
            if record.passage_digest == digest and record.queries.keys() >= set(self.langs):
                return {lang: record.queries[lang] for lang in self.langs if record.queries[lang] or not self._gaps}
        return {}

    def close(self) -> None:
        """Close the file."""
        self._table.close()


def _provenance_of(path: Path) -> dict[str, Any]:
    with disk_errors(path), path.open("rb"):
        pass  # a wrong name is named before its provenance is
    beside = provenance_path(path)
    try:
        record = orjson.loads(beside.read_bytes())
    except (FileNotFoundError, ValueError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("langs"), list):
        raise DataError(
            f"{path} cannot be reused without its {beside.name}, which says how it was made: put that file beside it."
        )
    if record.get("schema") != SCHEMA:
        raise MismatchError(
            f"{path} was written by another version of this program (schema {record.get('schema')}, this is {SCHEMA}), "
            "and does not say which texts its queries are about: leave --reuse out once."
        )
    return record


def _shared_languages(path: Path, record: Mapping[str, Any], header: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages that an output and the run have in common. Raises MismatchError when other settings differ."""
    found, wanted = _exact_settings(record, header), _exact_settings(header, header)
    # a filter knows the examples of all languages, and judges a query by them
    if header["filter"] is not None and set(record["langs"]) != set(header["langs"]):
        found["langs"], wanted["langs"] = sorted(record["langs"]), sorted(header["langs"])
    changed = differences(found, wanted)
    if changed:
        raise MismatchError(
            f"{path} was made with other settings ({'; '.join(changed)}): use the same ones, or leave --reuse out."
        )
    langs = tuple(lang for lang in header["langs"] if lang in record["langs"])
    if not langs:
        raise MismatchError(f"{path} has queries in {', '.join(record['langs'])} only: leave --reuse out.")
    return langs


def _exact_settings(record: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, of the keys that a header has.

    Languages do not influence each other; where a checkpoint once lay says nothing, the fingerprint everything. Files
    of 0.1.0 also recorded a number of beams, which sampling never used.
    """
    kept = {key: record.get(key) for key in header if key not in ("shard", "langs")}
    generator = kept.get("generator")
    if isinstance(generator, Mapping):
        exact = {key: value for key, value in generator.items() if key not in ("source", "revision")}
        if isinstance(decoding := exact.get("decoding"), Mapping):
            exact["decoding"] = {key: value for key, value in decoding.items() if key != "beams"}
        kept["generator"] = exact
    return kept


@dataclass(frozen=True, slots=True)
class Plan:
    """A passage, its known queries by language, and the languages that are left to write."""

    passage: Passage
    known: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]


def planned(passages: Iterable[Passage], langs: Sequence[str], earlier: EarlierQueries | None) -> Iterator[Plan]:
    """What is left to do, passage by passage; everything where there is no earlier output."""
    for passage in passages:
        known = {} if earlier is None else earlier.find(passage)
        yield Plan(passage, known, tuple(lang for lang in langs if lang not in known))


def in_batches(plans: Iterable[Plan], size: Callable[[Sequence[str]], int]) -> Iterator[list[Plan]]:
    """Consecutive plans, as many as fill one of the generator's batches (`size` passages for the same languages).

    Without known queries these are plain batches. They depend on where the first one begins and on nothing before it,
    so that a resumed run forms those of an unbroken one.
    """
    batch: list[Plan] = []
    waiting: Counter[tuple[str, ...]] = Counter()
    for plan in plans:
        batch.append(plan)
        if plan.missing:
            waiting[plan.missing] += 1
        if len(batch) == LONGEST or (plan.missing and waiting[plan.missing] == size(plan.missing)):
            yield batch
            batch, waiting = [], Counter()
    if batch:
        yield batch
