"""Passages in: JSON lines, Parquet, TSV (DPR, XOR-TyDi) and BEIR folders become `Passage` records, one at a time.

Memory grows by some 50 bytes a passage (to know duplicates), never by texts. What cannot be used goes to `Rejects`.
"""

from __future__ import annotations

import datetime
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from xqg_vdb.batching import windows
from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors
from xqg_vdb.texts import languages
from xqg_vdb.texts.records import (
    ID_KEYS,
    BadRecord,
    Rejects,
    Rows,
    Source,
    check_value,
    decoded,
    has_content,
    hash64,
    language_of,
    read_objects,
    read_sources,
    record_id,
    text_of,
)
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage

# Tables with named columns as records: TSV in the style of DPR's passages, and Parquet.

_PARQUET_BATCH = 512
_QUOTED_OR_PLAIN = re.compile(r'"((?:[^"]++|"")*+)"(?=\t|\Z)|([^\t]*)')


def read_tsv(path: Path, rejects: Rejects) -> Rows:
    """Read the rows under the header line, cells as text. Raises DataError when the header names no id or no text."""
    header: list[str] | None = None
    for source in read_sources(path, rejects):
        if header is None:
            header = _header(source)
            rejects.read -= 1  # not a record
            continue
        row = rejects.attempt(source, partial(_tsv_row, header), source.raw)
        if row is not None:
            yield source, row


def _header(source: Source) -> list[str]:
    names = [name.strip().lower() for name in source.raw.decode("utf-8", "replace").split("\t")]
    if "text" not in names or not set(ID_KEYS) & set(names) or len(set(names)) < len(names):
        raise DataError(
            f"{source.file} line {source.line}: expected a header such as id<TAB>text<TAB>title, found {names[:5]}."
        )
    return names


def _tsv_row(names: list[str], raw: bytes) -> dict[str, Any]:
    fields = _tsv_fields(decoded(raw))
    if len(fields) != len(names):
        raise BadRecord(f"{len(fields)} columns, the header has {len(names)}")
    row = dict(zip(names, fields, strict=True))
    check_value(row)
    return row


def _tsv_fields(line: str) -> list[str]:
    """Split into columns; quoted ones as csv writes them for DPR. A quote inside a column is just a character."""
    if '"' not in line:
        return line.split("\t")
    if line.count('"') % 2 and re.search(r'(?:^|\t)"', line):
        raise BadRecord("a quoted column does not end on its line")
    fields, position = [], 0
    while position <= len(line):
        match = cast(re.Match[str], _QUOTED_OR_PLAIN.match(line, position))  # the plain branch matches anywhere
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end() + 1
    return fields


def read_parquet(path: Path, rejects: Rejects) -> Rows:
    """Read the rows of a Parquet file; row numbers stand for lines, null cells are absent, dates become ISO 8601 text.

    Raises DataError when the file is damaged or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with disk_errors(path):
        try:
            with pq.ParquetFile(path) as table:
                wanted = [name for name in table.schema_arrow.names if name != "generated_queries"]
                for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted):
                    for cells in batch.to_pylist():
                        number += 1
                        rejects.read += 1
                        row = {key: _jsonable(value) for key, value in cells.items() if value is not None}
                        source = Source(str(path), number, None, repr(row)[:800].encode("utf-8", "replace"))
                        if rejects.attempt(source, check_value, row) is not None:
                            yield source, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            reason = str(error)[:200].rstrip(".")
            raise DataError(f"{path} is not a readable Parquet file (after row {number}: {reason}).") from error


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


_WINDOW = 256  # passages whose languages are detected together
_NOT_META = frozenset({"text", "title", "lang", "meta", "generated_queries"})
_CORPUS_NAMES = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.tsv", "corpus.tsv.gz")


def read_corpus(
    path: str | Path,
    *,
    rejects: Rejects | None = None,
    default_lang: str | None = None,
    detect: bool = True,
    title_only: bool = False,
) -> Iterator[Passage]:
    """Read passages from a `.jsonl`, `.tsv` (either also `.gz`) or `.parquet` file, or a folder with `corpus.jsonl`.

    rejects: counts, and how many bad records to bear; None stops at the first.
    default_lang: language of records that name none; None asks detection, or gives `und` where `detect` is off.
    title_only: the title of a record without text is its text, as BEIR encodes it; else there is nothing to use.

    An id seen before with equal content is skipped and counted; with other content it is rejected. Raises DataError at
    once when the path is missing or of an unknown kind, and at the end when there was no passage at all.
    """
    files = _files_of(Path(path))
    fallback = None if default_lang is None else languages.normalize(default_lang)
    passages = _passages(files, Rejects() if rejects is None else rejects, path, title_only)
    return _with_languages(passages, fallback, detect)


def _files_of(path: Path) -> list[Path]:
    """List the files to read in order: `path` itself, or a folder's `corpus.*`, or its `shard_*` files."""
    with disk_errors(path):
        if not path.is_dir():
            path.stat()
            _reader(path)
            return [path]
        inside = sorted(p for p in path.iterdir() if p.is_file())
    corpus = [p for p in inside if p.name in _CORPUS_NAMES]
    shards = [p for p in inside if p.name.startswith("shard_")]
    if not corpus and not shards:
        raise DataError(f"{path} holds neither corpus.jsonl nor shard_*.jsonl; give the corpus file itself.")
    return corpus[:1] or sorted(shards, key=lambda p: (len(p.name), p.name))


_READERS: Mapping[str, Callable[[Path, Rejects], Rows]] = {
    ".jsonl": read_objects,
    ".json": read_objects,
    ".ndjson": read_objects,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def _reader(path: Path) -> Callable[[Path, Rejects], Rows]:
    if path.is_fifo():
        return read_objects  # a shell's <(command) has no name to go by
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS or path.name.endswith(".parquet.gz"):
        raise DataError(f"{path} is not a corpus by its name; expected .jsonl, .tsv (or either with .gz) or .parquet.")
    return _READERS[suffix]


def _passages(files: list[Path], rejects: Rejects, path: str | Path, title_only: bool) -> Iterator[Passage]:
    seen, make = _Seen(), _titled_passage if title_only else _passage
    for file in files:
        for source, record in _reader(file)(file, rejects):
            passage = rejects.attempt(source, make, record)
            if passage is None:
                continue
            before = seen.add(passage)
            if before == "different":
                rejects.reject(source, f"id {passage.id[:80]!r} appeared before with other content")
            elif before == "same":
                rejects.duplicates += 1
            else:
                rejects.accepted += 1
                yield passage
    if not seen.count:
        raise DataError(f'{path} holds no passage that can be used; expected lines such as {{"id": "1", "text": "…"}}.')


def _passage(record: Mapping[str, Any]) -> Passage:
    title, meta = record.get("title"), record.get("meta")
    if not isinstance(title, str | None):
        raise BadRecord("title must be text")
    if not isinstance(meta, dict | None):
        raise BadRecord("meta must be an object")
    lang = language_of(record.get("lang"))
    return Passage(record_id(record), text_of(record, "text"), title or "", lang, _meta_of(record, meta or {}))


def _titled_passage(record: Mapping[str, Any]) -> Passage:
    text, title = record.get("text"), record.get("title")
    blank = text is None or (isinstance(text, str) and not has_content(text))
    return _passage({**record, "text": title, "title": ""} if blank and isinstance(title, str) else record)


def as_passage(record: Mapping[str, Any]) -> Passage:
    """What a line of a corpus says as a dict. Raises DataError for one that says no passage."""
    try:
        return _passage(record)
    except BadRecord as error:
        raise DataError(f"{record!r:.60} is no passage: {error}.") from error


def _meta_of(record: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
    id_key = next(key for key in ID_KEYS if key in record)
    beside = {key: value for key, value in record.items() if key not in _NOT_META and key != id_key}
    clash = next((key for key in beside if key in nested and nested[key] != beside[key]), None)
    if clash is not None:
        raise BadRecord(f"{clash!r} stands in meta and beside it with different values")
    return {**nested, **beside}


def _with_languages(passages: Iterator[Passage], fallback: str | None, detect: bool) -> Iterator[Passage]:
    """Fill in the language of the passages that have none; window by window, in order."""
    for window in windows(passages, _WINDOW):
        unknown = [i for i, passage in enumerate(window) if passage.lang == UNKNOWN_LANGUAGE]
        if unknown and fallback is None and detect:
            found = languages.detect([window[i].text for i in unknown])
        else:
            found = [fallback or UNKNOWN_LANGUAGE] * len(unknown)
        for i, lang in zip(unknown, found, strict=True):
            window[i] = replace(window[i], lang=lang)
        yield from window


class _Seen:
    """Which ids were seen, and whether with the same content: 16 bytes of hash each in an open-addressing table.

    A dict would take about 170 bytes a passage. Two of 10 million ids share their 64 bits with probability 3e-6, and
    then the second is rejected aloud.
    """

    def __init__(self) -> None:
        self.count, self._mask = 0, (1 << 12) - 1
        self._ids, self._contents = self._empty(), self._empty()

    def add(self, passage: Passage) -> Literal["new", "same", "different"]:
        identity = hash64(passage.id.encode()) or 1  # 0 marks an empty slot
        fields = [passage.title, passage.text, passage.lang, passage.meta]
        content = hash64(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS))
        slot = self._slot(identity)
        if self._ids[slot]:
            return "same" if self._contents[slot] == content else "different"
        self._ids[slot], self._contents[slot] = identity, content
        self.count += 1
        if self.count * 3 > self._mask * 2:
            self._grow()
        return "new"

    def _empty(self) -> array[int]:
        return array("Q", bytes(8 * (self._mask + 1)))

    def _slot(self, identity: int) -> int:
        slot = identity & self._mask
        while self._ids[slot] and self._ids[slot] != identity:
            slot = (slot + 1) & self._mask
        return slot

    def _grow(self) -> None:
        ids, contents = self._ids, self._contents
        self._mask = self._mask * 2 + 1
        self._ids, self._contents = self._empty(), self._empty()
        for identity, content in zip(ids, contents, strict=True):
            if identity:
                slot = self._slot(identity)
                self._ids[slot], self._contents[slot] = identity, content
