"""Generated queries by passage id: the paper's JSON lines, in and out."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import GZIP_MAGIC, disk_errors
from xqg_vdb.texts.records import (
    BadRecord,
    Rejects,
    has_content,
    hash64,
    language_of,
    made,
    may_spread,
    parse_object,
    read_objects,
    record_id,
)
from xqg_vdb.types import GeneratedQueries, Passage


class QueryFile(AbstractContextManager["QueryFile"]):
    """Generated queries of one or several files by passage id, in some 20 bytes a record; closes them as a context.

    Lines are `{"id", "generated_queries": {language: [question, ...]}}` (`_id` and `docid` too). Records of one id, be
    they one per language or one per file, are merged in the order of `paths` and lines. Asking in the files' order is
    fastest. Not for several threads.

    languages: the languages that occur, sorted. blank: how many blank questions were dropped.
    Raises DataError when a file is missing, given twice, holds nothing, or has more bad lines than `rejects` allows.
    """

    def __init__(self, paths: Sequence[str | Path], *, rejects: Rejects | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise DataError(f"A query file is given twice: {', '.join(map(str, self.paths))}; name each once.")
        self.blank = 0
        self._open = ExitStack()
        self._files: list[IO[bytes]] = []
        try:
            self._scan(Rejects() if rejects is None else rejects)
        except BaseException:
            self.close()
            raise

    def get(self, id: str) -> GeneratedQueries | None:
        """Find the queries of one passage; None when no file has any. Raises DataError when a file has changed."""
        merged: dict[str, tuple[str, ...]] = {}
        any_record = False
        for record in self.records(id):
            any_record = True
            for lang, questions in _without_blank(record).queries.items():
                merged[lang] = merged.get(lang, ()) + questions
        return GeneratedQueries(id, merged) if any_record else None

    def records(self, id: str) -> Iterator[GeneratedQueries]:
        """Yield the records of one passage as they were written, blank questions and empty languages too.

        Raises DataError when a file has changed.
        """
        wanted = hash64(id.encode())
        row = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        while row < len(self._hashes) and int(self._hashes[row]) == wanted:
            record = self._read(row, wanted)
            if record.id == id:  # else another id with the same 64 bits
                self._used[row] = True
                yield record
            row += 1

    def unused(self, count: int) -> list[str]:
        """Return up to `count` ids that `get` was never asked for, in file order: no passage has them."""
        rows = np.flatnonzero(~self._used)
        order = np.lexsort((self._offsets[rows], self._numbers[rows]))
        ids = (self._read(int(row), int(self._hashes[row])).id for row in rows[order[:count]])
        return list(dict.fromkeys(ids))

    @property
    def unused_count(self) -> int:
        """Number of records that `get` has not returned."""
        return int(len(self._used) - np.count_nonzero(self._used))

    def __len__(self) -> int:
        return len(self._hashes)

    def close(self) -> None:
        """Close the files; temporary unpacked copies disappear."""
        self._open.close()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _scan(self, rejects: Rejects) -> None:
        hashes, numbers, offsets = array("Q"), array("H"), array("Q")
        seen: set[str] = set()
        for number, path in enumerate(self.paths):
            for record, offset in self._scan_file(path, rejects):
                seen.update(record.queries)
                hashes.append(hash64(record.id.encode()))
                numbers.append(number)
                offsets.append(offset)
        if not hashes:
            raise DataError(f"{', '.join(map(str, self.paths)) or 'No file'} holds no generated queries.")
        hash_array = np.frombuffer(hashes, np.uint64)
        order = np.argsort(hash_array, kind="stable")  # stable: records of one id stay in the files' order
        self._hashes = hash_array[order]
        self._numbers = np.frombuffer(numbers, np.uint16)[order]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]
        self._used = np.zeros(len(order), bool)
        self.languages: tuple[str, ...] = tuple(sorted(seen))

    def _scan_file(self, path: Path, rejects: Rejects) -> Iterator[tuple[GeneratedQueries, int]]:
        """Open `path` for later and yield its records with the offsets at which `_read` finds them."""
        with disk_errors(path):
            copied = _must_copy(path)
            file: IO[bytes] = tempfile.TemporaryFile() if copied else open(path, "rb")  # noqa: SIM115 - see close
            self._files.append(self._open.enter_context(file))
            for source, record in made(read_objects(path, rejects), _queries, rejects):
                rejects.accepted += 1
                kept = _without_blank(record)
                self.blank += count_queries(record) - count_queries(kept)
                yield kept, file.tell() if copied else cast(int, source.offset)
                if copied:
                    file.write(source.raw.replace(b"\n", b" ") + b"\n")  # JSON has line feeds between values only

    def _read(self, row: int, wanted: int) -> GeneratedQueries:
        number = int(self._numbers[row])
        with disk_errors(self.paths[number]):
            self._files[number].seek(int(self._offsets[row]))
            line = self._files[number].readline()
        try:
            record = _parsed(line)
            if hash64(record.id.encode()) != wanted:
                raise BadRecord(f"another id, {record.id[:80]!r}")
        except BadRecord as bad:
            said = f"{self.paths[number]} changed while it was in use ({bad}); run the command again."
            raise DataError(said) from None
        return record


def _must_copy(path: Path) -> bool:
    """Tell whether `path` cannot be sought in: gzip data, arrays, and pipes, which can be read only once."""
    if path.is_fifo() or may_spread(path):
        return True
    with open(path, "rb") as file:
        return file.read(2) == GZIP_MAGIC


def as_queries(record: Mapping[str, Any]) -> GeneratedQueries:
    """What a line of a query file says as a dict, without blank queries. Raises DataError for one that says none."""
    try:
        return _without_blank(_queries(record))
    except BadRecord as error:
        raise DataError(f"The queries of {record.get('id')!r:.60} cannot be used: {error}.") from error


def _parsed(raw: bytes) -> GeneratedQueries:
    return _queries(parse_object(raw))


def _queries(record: Mapping[str, Any]) -> GeneratedQueries:
    queries = record.get("generated_queries")
    if not isinstance(queries, dict):
        raise BadRecord('no generated_queries (expected {"id": …, "generated_queries": {"sw": ["…"]}})')
    merged: dict[str, tuple[str, ...]] = {}
    for lang, questions in queries.items():
        if not isinstance(questions, list) or not all(isinstance(question, str) for question in questions):
            raise BadRecord(f"generated_queries[{lang[:20]!r}] must be a list of texts")
        code = language_of(lang)
        merged[code] = merged.get(code, ()) + tuple(questions)
    digest = record.get("passage_digest", "")
    if not isinstance(digest, str):
        raise BadRecord("passage_digest must be text")
    return GeneratedQueries(record_id(record), merged, digest)


def _without_blank(record: GeneratedQueries) -> GeneratedQueries:
    kept = {lang: tuple(filter(has_content, questions)) for lang, questions in record.queries.items()}
    return replace(record, queries={lang: questions for lang, questions in kept.items() if questions})


def count_queries(record: GeneratedQueries) -> int:
    """How many queries a record holds, in all languages."""
    return sum(map(len, record.queries.values()))


def read_queries(path: str | Path) -> Iterator[GeneratedQueries]:
    """Read the records of one file in order, as they were written; DataError at the first that is none."""
    rejects = Rejects()
    for _, record in made(read_objects(Path(path), rejects), _queries, rejects):
        yield record


def row_digest(passage: Passage, queries: GeneratedQueries | None) -> int:
    """Hash what a row is computed from (id, title, text, queries by language) to 64 bits."""
    texts = {} if queries is None else {lang: list(questions) for lang, questions in queries.queries.items()}
    return hash64(orjson.dumps([passage.id, passage.title, passage.text, texts], option=orjson.OPT_SORT_KEYS))
