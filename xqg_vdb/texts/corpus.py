"""Passages in: JSON, Parquet, TSV, CSV and folders of them become `Passage` records, one at a time.

Memory grows by some 50 bytes a passage (to know duplicates), never by texts. What cannot be used goes to `Rejects`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors
from xqg_vdb.progress import windows
from xqg_vdb.texts import languages
from xqg_vdb.texts.records import (
    ID_KEYS,
    TEXT_KEYS,
    BadRecord,
    Rejects,
    Rows,
    Source,
    arrow_rows,
    check_record,
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
_MOST_CSV_LINES = 1000
_CELLS = {mark: re.compile(rf'"((?:[^"]++|"")*+)"(?={mark}|\Z)|([^{mark}]*)') for mark in "\t,"}


def read_table(path: Path, rejects: Rejects, *, need: tuple[frozenset[str], ...] = ()) -> Rows:
    """Read the rows of TSV or CSV, by the suffix, cells as text; only CSV's quoted cells may hold line breaks.

    The first line names the columns, one of each set of `need` among them (an id and a text). Without one it is a row:
    where there are two columns and the first holds a digit, they are id and text. Raises DataError for other headers.
    """
    mark = "," if ".csv" in [suffix.lower() for suffix in path.suffixes[-2:]] else "\t"
    header: list[str] | None = None
    sources = read_sources(path, rejects)
    for source in _joined(sources, rejects) if mark == "," else sources:
        if header is None:
            header = _header(source, mark, need or (frozenset(ID_KEYS), frozenset(TEXT_KEYS)))
            if header:
                rejects.read -= 1  # not a record
                continue
            header = ["id", "text"]
        row = rejects.attempt(source, partial(_table_row, header, mark), source.raw)
        if row is not None:
            yield source, row


def _joined(sources: Iterator[Source], rejects: Rejects) -> Iterator[Source]:
    """The rows of CSV: lines whose quoted cell goes on, with those that follow."""
    for source in sources:
        raw, lines = source.raw, 1
        while raw.count(b'"') % 2 and lines < _MOST_CSV_LINES and (after := next(sources, None)) is not None:
            raw, lines = raw + b"\n" * (after.line - source.line - lines + 1) + after.raw, after.line - source.line + 1
            rejects.read -= 1
        yield replace(source, raw=raw)


def _header(source: Source, mark: str, need: tuple[frozenset[str], ...]) -> list[str]:
    try:
        cells = _table_cells(decoded(source.raw), mark, most=1000)
    except BadRecord as error:
        raise DataError(f"{source.file} line {source.line}: {error}, where the columns should be named.") from None
    names = [name.strip().lower() for name in cells]
    if all(keys & set(names) for keys in need) and len(set(names)) == len(names):
        return names
    if len(names) == 2 and any(map(str.isdigit, names[0])) and not set(names) & set().union(*need):
        return []
    example = mark.join(("id", "text", "title")).replace("\t", "<TAB>")
    found = [name[:40] for name in names[:5]]
    raise DataError(f"{source.file} line {source.line}: expected a header such as {example}, found {found}.")


def _table_row(names: list[str], mark: str, raw: bytes) -> dict[str, Any]:
    fields = _table_cells(decoded(raw), mark, most=len(names))
    if len(fields) != len(names):
        raise BadRecord(f"{len(fields)} columns, the header has {len(names)}")
    row = dict(zip(names, fields, strict=True))
    check_record(row)
    return row


def _table_cells(line: str, mark: str, *, most: int) -> list[str]:
    """Split into columns; quoted ones as csv writes them for DPR. A quote inside a column is just a character."""
    if '"' not in line:
        return line.split(mark)
    if line.count('"') % 2 and re.search(rf'(?:^|{mark})"', line):
        raise BadRecord("a quoted column does not end on its line (write passages with line breaks as JSON lines)")
    fields: list[str] = []
    position = 0
    while position <= len(line):
        if len(fields) > most:
            raise BadRecord(f"more columns than {most}")
        match = cast(re.Match[str], _CELLS[mark].match(line, position))  # the plain branch matches anywhere
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end() + 1
    return fields


def read_parquet(path: Path, rejects: Rejects) -> Rows:
    """Read the rows of a Parquet file as `arrow_rows` makes them; row numbers stand for lines.

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
                    for row in arrow_rows(batch, rejects.left_out):
                        number += 1
                        rejects.read += 1
                        source = Source(str(path), number, None, repr(row)[:800].encode("utf-8", "replace"))
                        if rejects.attempt(source, check_record, row) is not None:
                            yield source, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            reason = str(error)[:200].rstrip(".")
            raise DataError(f"{path} is not a readable Parquet file (after row {number}: {reason}).") from error


_WINDOW = 256  # passages whose languages are detected together
_NOT_META = frozenset({"title", "lang", "meta", "generated_queries"})
_CORPUS_NAMES = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.tsv", "corpus.tsv.gz")
_NO_CORPUS = ("queries", "query", "questions", "topics", "qrels")
_MAX_PASSAGE_BYTES = (1 << 20) - 4096
"""As JSON; the store takes a MiB, and the languages of the queries come in beside it."""
_ESCAPED = 6  # characters of JSON that one may take


def read_corpus(
    path: str | Path,
    *,
    rejects: Rejects | None = None,
    default_lang: str | None = None,
    detect: bool = True,
    title_only: bool = False,
) -> Iterator[Passage]:
    """Read passages from a `.jsonl`, `.json`, `.tsv`, `.csv` (also `.gz`) or `.parquet` file, or a folder of such.

    rejects: counts, and how many bad records to bear; None stops at the first.
    default_lang: language of records that name none; None asks detection, or gives `und` where `detect` is off.
    title_only: the title of a record without text is its text, as BEIR encodes it; else there is nothing to use.

    An id seen before with equal content is skipped and counted; with other content it is rejected. Raises DataError at
    once when the path is missing or of an unknown kind, and at the end when there was no passage at all.
    """
    files = files_of(Path(path))
    fallback = None if default_lang is None else languages.normalize(default_lang)
    passages = _passages(files, Rejects() if rejects is None else rejects, path, title_only)
    return _with_languages(passages, fallback, detect)


def files_of(path: Path) -> list[Path]:
    """List the files to read in order: `path` itself, or a folder's `corpus.*`, its `shard_*`, or all of one kind."""
    with disk_errors(path):
        if not path.is_dir():
            path.stat()
            _reader(path)
            return [path]
        inside = sorted(p for p in path.iterdir() if p.is_file())
    corpus = [p for p in inside if p.name.lower() in _CORPUS_NAMES]
    shards = [p for p in inside if p.name.startswith("shard_")]
    return corpus[:1] or sorted(shards or _of_one_kind(path, inside), key=lambda p: (len(p.name), p.name))


def _of_one_kind(folder: Path, inside: list[Path]) -> list[Path]:
    kinds: dict[str, list[Path]] = {}
    for file in inside:
        if not file.name.startswith((".", "_")) and suffix_of(file) in READERS:
            kinds.setdefault(suffix_of(file), []).append(file)
    if len(kinds) > 1:
        kinds.pop(".json", None)  # what describes the others
    files = next(iter(kinds.values()), [])
    other = next((file.name for file in files if file.name.lower().startswith(_NO_CORPUS)), None)
    if len(kinds) != 1 or other is not None:
        found = f"{other} beside them" if other else " and ".join(kinds) or "no file that can be read"
        raise DataError(
            f"{folder} holds neither corpus.jsonl nor shard_*.jsonl nor passages of one kind only, but {found}; give"
            " the corpus file itself."
        )
    return files


READERS: Mapping[str, Callable[[Path, Rejects], Rows]] = {
    ".jsonl": read_objects,
    ".json": read_objects,
    ".ndjson": read_objects,
    ".tsv": read_table,
    ".csv": read_table,
    ".parquet": read_parquet,
}


def suffix_of(path: Path) -> str:
    """What kind a file is by its name, in lower case, without `.gz`."""
    name = path.name.lower()
    return Path(name if name.endswith(".parquet.gz") else name.removesuffix(".gz")).suffix


def _reader(path: Path) -> Callable[[Path, Rejects], Rows]:
    if path.is_fifo():
        return read_objects  # a shell's <(command) has no name to go by
    if suffix_of(path) not in READERS:
        raise DataError(
            f"{path} is not a corpus by its name; expected .jsonl, .json, .tsv, .csv (each with .gz, too) or .parquet."
        )
    return READERS[suffix_of(path)]


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
        why = f" ({rejects.first[0]})" if rejects.first else ""
        expected = '{"id": "1", "text": "…"}'
        raise DataError(f"{path} holds no passage that can be used{why}; expected lines such as {expected}.")


def _passage(record: Mapping[str, Any]) -> Passage:
    text_key = next((key for key in TEXT_KEYS if key in record), "text")
    given = record.get("metadata" if text_key == "page_content" and "meta" not in record else "meta")
    if not isinstance(given, dict | None):
        raise BadRecord("meta must be an object")
    nested = dict(given or {})
    title, code = (_own_or_nested(record, nested, key) for key in ("title", "lang"))
    if not isinstance(title, str | None):
        raise BadRecord("title must be text")
    lang = language_of(code)
    if code is None:
        lang = _named_language(record.get("language", nested.get("language")))
    meta = _meta_of(record, nested, {text_key, "metadata"} if text_key == "page_content" else {text_key})
    passage = Passage(record_id(record), text_of(record, text_key), title or "", lang, meta)
    _check_size(passage)
    return passage


def _own_or_nested(record: Mapping[str, Any], nested: dict[str, Any], key: str) -> Any:
    """What the record says, else its meta, as exports of other stores do."""
    own, other = record.get(key), nested.pop(key, None)
    if own and other is not None and other != own:
        raise BadRecord(f"meta.{key} differs from {key}; rename that field")
    return own or other


def _named_language(name: object) -> str:
    """The language that a field `language` names by code or in English, if it does."""
    with suppress(DataError):
        if isinstance(name, str):
            return languages.normalize(languages.code_of(name))
    return UNKNOWN_LANGUAGE


def _check_size(passage: Passage) -> None:
    if not passage.meta and _ESCAPED * (len(passage.text) + len(passage.title)) < _MAX_PASSAGE_BYTES:
        return
    size = len(orjson.dumps([passage.id, passage.title, passage.text, passage.lang, passage.meta]))
    if size > _MAX_PASSAGE_BYTES:
        raise BadRecord(f"it takes {size:,} bytes, more than {_MAX_PASSAGE_BYTES:,} can be stored; split the passage")


def _titled_passage(record: Mapping[str, Any]) -> Passage:
    text, title = next((record[key] for key in TEXT_KEYS if key in record), None), record.get("title")
    blank = text is None or (isinstance(text, str) and not has_content(text))
    return _passage({**record, "text": title, "title": ""} if blank and isinstance(title, str) else record)


def as_passage(record: Mapping[str, Any]) -> Passage:
    """What a line of a corpus says as a dict. Raises DataError for one that says no passage."""
    try:
        return _passage(record)
    except BadRecord as error:
        raise DataError(f"{record!r:.60} is no passage: {error}.") from error


def _meta_of(record: Mapping[str, Any], nested: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    used.add(next((key for key in ID_KEYS if key in record), "id"))
    beside = {key: value for key, value in record.items() if key not in _NOT_META and key not in used}
    clash = next((key for key in beside if key in nested and nested[key] != beside[key]), None)
    if clash is not None:
        raise BadRecord(f"{clash!r} stands in meta and beside it with different values")
    if "query_langs" in nested or "query_langs" in beside:
        raise BadRecord("the field name 'query_langs' is reserved; rename that field")
    for key, value in beside.items():
        try:
            check_value(value, 2)  # it will lie in meta
        except BadRecord as bad:
            raise BadRecord(f"{bad}, under {key[:80]!r}") from None
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
