"""Queries of an earlier run for a corpus that has changed since: what it wrote about passages that are as they were.

A query depends on its passage's id, title and text, its language, its index and the settings, on nothing else; so what
was written under the same settings need not be written again. This file generates nothing and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.files import disk_errors
from xqg_vdb.generation.merging import SCHEMA, provenance_path
from xqg_vdb.generation.record_log import differences
from xqg_vdb.queries import QueryFile
from xqg_vdb.types import Passage
from xqg_vdb.vectors import row_digest

LONGEST = 4096
"""Passages of a batch at most, most of them known: a kill loses no more, and no more texts are in memory."""

Queries = Mapping[str, tuple[str, ...]]


def passage_digest(passage: Passage) -> str:
    """16 hex digits of id, title and text: all that a prompt and its random numbers take from a passage."""
    return f"{row_digest(passage, None):016x}"


class EarlierQueries:
    """A finished output of `generate`, asked passage by passage; a context manager that closes the file.

    langs: the languages that are taken from it. The rest of the settings are the same as now.
    """

    def __init__(self, path: Path, *, header: Mapping[str, Any]) -> None:
        """Open `path`; header: the settings of the run that is to reuse it.

        Raises DataError when it has no provenance beside it or is no query file, MismatchError that names the settings
        which differ, or when its records have no digests of their passages.
        """
        self.name = path.name
        self.langs = _shared_languages(path, _provenance(path), header)
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

    def find(self, passage: Passage) -> Queries:
        """The queries of a passage that is as it was, by language; none when it is new or changed."""
        digest = passage_digest(passage)
        for record in self._table.records(passage.id):
            if record.passage_digest == digest and record.queries.keys() >= set(self.langs):
                return {lang: record.queries[lang] for lang in self.langs}
        return {}

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def __enter__(self) -> EarlierQueries:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _provenance(path: Path) -> dict[str, Any]:
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
    known: Queries
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
