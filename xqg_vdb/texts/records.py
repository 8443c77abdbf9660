"""Untrusted lines in, checked JSON objects out; whatever cannot be used is counted and kept, never dropped silently."""

from __future__ import annotations

import datetime
import decimal
import gzip
import hashlib
import io
import json
import math
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors
from xqg_vdb.texts import languages
from xqg_vdb.types import UNKNOWN_LANGUAGE, GeneratedQueries, Passage

MAX_LINE_BYTES = 16 << 20
MAX_GZIP_RATIO = 100
"""JSON lines of prose shrink 3 to 10 times; what shrinks more than 100 times is a bomb or not text."""

GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_BLANK_RUN = re.compile(rb"(?:[ \t\r]*+\n){1024,}+")
_HEAD_BYTES = 1024
_BLOCK = 1 << 16
_RATIO_FREE_BYTES = 64 << 20  # small files may shrink as much as they like


@dataclass(frozen=True, slots=True)
class LongLine:
    """Stands for a line over the limit, which was skipped and never held in memory: its size and its first bytes."""

    size: int
    head: bytes


Line = tuple[int, int, bytes | LongLine]
"""Line number from 1, byte offset in the (unpacked) file, raw line without its newline."""


def open_lines(path: str | Path, *, max_bytes: int = MAX_LINE_BYTES, max_ratio: int = MAX_GZIP_RATIO) -> Iterator[Line]:
    r"""Read the lines of `path`, plain or gzip, split on b"\n" only, without one trailing b"\r" and a leading BOM.

    A line over `max_bytes` comes as a `LongLine`: memory stays bounded whatever the file holds. Of a thousand blank
    lines and more only the last comes. Raises DataError now when `path` is missing, and while reading when gzip data is
    damaged or unpacks to over `max_ratio` times its size, and for UTF-16.
    """
    path = Path(path)
    with disk_errors(path):
        if not path.is_fifo():
            open(path, "rb").close()  # now: a generator would report a wrong name only when it is first read
    return _lines(path, max_bytes, max_ratio)


def _lines(path: Path, max_bytes: int, max_ratio: int) -> Iterator[Line]:
    number, offset = 0, 0
    with disk_errors(path), open(path, "rb") as raw:
        allowed = max(_RATIO_FREE_BYTES, max_ratio * os.fstat(raw.fileno()).st_size)
        packed = path.suffix == ".gz" or raw.peek(2)[:2] == GZIP_MAGIC
        stream = _unpacked(raw) if packed else cast(BinaryIO, raw)
        try:
            while line := stream.readline(max_bytes + 2):
                number += 1
                if number == 1 and line.startswith(_WIDE_BOMS):
                    raise DataError(f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW.")
                if not line.strip() and (run := _BLANK_RUN.match(stream.peek())):  # type: ignore[attr-defined]
                    offset, number = offset + len(line), number + run[0].count(b"\n")
                    line = stream.read(run.end())
                    offset, line = offset + len(line) - 1, b"\n"
                body, size = _finish_line(stream, line, max_bytes, allowed - offset if packed else None)
                skip = len(_BOM) if offset == 0 and isinstance(body, bytes) and body.startswith(_BOM) else 0
                yield number, offset + skip, body[skip:] if isinstance(body, bytes) else body
                offset += size
                if packed and offset > allowed:
                    raise DataError(_bomb(path, max_ratio))
        except _TooMuch:
            raise DataError(_bomb(path, max_ratio)) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is cut short or damaged after line {number} ({error}); fetch it again.") from error


def _unpacked(raw: BinaryIO) -> BinaryIO:
    unpacker = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw, mode="rb"))
    return cast(BinaryIO, io.BufferedReader(unpacker, _BLOCK))  # its own buffer is small and slow


class _TooMuch(Exception):
    """A skipped line alone passes the unpacking limit."""


def _bomb(path: Path, max_ratio: int) -> str:
    return f"{path} unpacks to over {max_ratio} times its size, unlike text; unpack it yourself if you trust it."


def _finish_line(stream: BinaryIO, line: bytes, max_bytes: int, allowed: int | None) -> tuple[bytes | LongLine, int]:
    """Return the line without its ending, or its stand-in with the rest skipped, and its size in the file."""
    size = len(line)
    body = line[:-1] if line.endswith(b"\n") else line
    body = body[:-1] if body.endswith(b"\r") else body
    if len(body) <= max_bytes:
        return body, size
    last = line
    while not last.endswith(b"\n") and (last := stream.readline(_BLOCK)):
        size += len(last)
        if allowed is not None and size > allowed:
            raise _TooMuch
    return LongLine(size, line[:_HEAD_BYTES]), size


MAX_DEPTH = 32
"""Deepest nesting in a record: the embedded engine cannot reload a payload of about 124 levels after a crash."""

ID_KEYS = ("id", "_id", "docid")
"""Where an id may stand: ours, BEIR's, the paper's data set's; the first that is there counts."""

TEXT_KEYS = ("text", "content", "contents", "page_content")
"""Where a passage may stand: ours, Haystack's, Pyserini's, LangChain's; the first that is there counts."""

MAX_JSON_BYTES = 256 << 20
"""Of a file that is one JSON array, which is held in memory whole."""
_JSON_GAP = re.compile(r"[\s,\[\]]*")

_HEAD_CHARACTERS = 200
_SHOWN = 5
_KEY = re.compile(rb'"[ \t\r\n]*:')
_T = TypeVar("_T")
_V = TypeVar("_V")


class BadRecord(ValueError):
    """A record cannot be used; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record came from; `raw` is its line, or what stands for one where a file has no lines."""

    file: str
    line: int
    offset: int | None
    raw: bytes


Rows = Iterator[tuple[Source, dict[str, Any]]]
"""Records with where they stand."""


class Rejects:
    """Counts what was read from one input: accepted + duplicates + blank + rejected = read, but for the record in hand.

    max_rejects: how many refused records are borne; one more raises DataError. 0 stops at the first.
    path: JSON-lines file for refused records (file, line, offset, reason, head), replaced at the first of them.
    """

    def __init__(self, max_rejects: int = 0, path: str | Path | None = None) -> None:
        if max_rejects < 0:
            raise ValueError(f"max_rejects must be 0 or more, got {max_rejects}")
        self.max_rejects = max_rejects
        self.path = None if path is None else Path(path)
        self.read = self.accepted = self.duplicates = self.blank = self.rejected = 0
        self.left_out: dict[str, str] = {}
        """Columns with values that no record can hold, and what those were."""
        self.first: list[str] = []
        """The first refused records: file, line, reason."""

    def refuse_inputs(self, files: Iterable[Path]) -> None:
        """Raise DataError when rejected records would be written over one of `files`."""
        if self.path is None or not self.path.exists():
            return
        for file in files:
            if file.exists() and file.samefile(self.path):
                raise DataError(f"{self.path} is an input of this command: give --rejects another file.")

    def attempt(self, source: Source, make: Callable[[_V], _T], value: _V) -> _T | None:
        """Return `make(value)`, or None when it raises BadRecord, which is then recorded for `source`."""
        try:
            return make(value)
        except BadRecord as bad:
            self.reject(source, str(bad))
            return None

    def reject(self, source: Source, reason: str) -> None:
        """Record that `source` cannot be used. Raises DataError when that is one too many."""
        self.rejected += 1
        if self.path is not None:
            self._write(self.path, source, reason)
        if len(self.first) < _SHOWN:
            self.first.append(f"{source.file} line {source.line}: {reason}")
        if self.rejected > self.max_rejects:
            raise DataError(self._message())

    def counts(self) -> dict[str, int]:
        """Return the five counts by name, for reports."""
        return {name: getattr(self, name) for name in ("read", "accepted", "duplicates", "blank", "rejected")}

    def _message(self) -> str:
        more = self.rejected - len(self.first)
        shown = "; ".join(self.first) + (f"; and {more} more" if more else "")
        kept = f" (all in {self.path})" if self.path is not None else ""
        return f"{shown}{kept}; correct the data, or use --max-rejects to go on without such records."

    def _write(self, path: Path, source: Source, reason: str) -> None:
        if self.rejected == 1:
            self.refuse_inputs([Path(source.file)])
        head = source.raw[: 4 * _HEAD_CHARACTERS].decode("utf-8", "replace")[:_HEAD_CHARACTERS]
        record = {"file": source.file, "line": source.line, "offset": source.offset, "reason": reason, "head": head}
        with disk_errors(path), open(path, "wb" if self.rejected == 1 else "ab") as file:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


class ArrowStream(Protocol):
    """A data frame of pandas or polars, a table of pyarrow: what hands out its rows in Arrow's format."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


Records = Iterable[Passage | GeneratedQueries | Mapping[str, Any]] | ArrowStream
"""Records in memory, such as a line of a file holds."""


def write_records(path: Path, records: Records) -> Path:
    """Write records in memory as the JSON lines that the readers check. Raises DataError for what JSON cannot hold."""
    with disk_errors(path), open(path, "wb") as file:
        for number, record in enumerate(plain_records(records), 1):
            try:
                file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
            except orjson.JSONEncodeError as error:
                raise DataError(f"Record {number} in memory cannot be written as JSON: {error}.") from None
    return path


def plain_records(records: Records) -> Iterator[Mapping[str, Any]]:
    """Each record in memory as the dict that a line of a file would hold."""
    if isinstance(records, Iterable) and not hasattr(records, "__arrow_c_stream__"):
        for record in records:
            if isinstance(record, Passage | GeneratedQueries):
                yield _plain(record)
            else:
                yield record
        return
    import pyarrow as pa

    for batch in pa.RecordBatchReader.from_stream(records):
        for row in arrow_rows(batch, {}):
            # an index that pandas numbers is no field
            yield {key: _filled(value) for key, value in row.items() if key[:8] != "__index_"}


def _plain(record: Passage | GeneratedQueries) -> dict[str, Any]:
    if isinstance(record, GeneratedQueries):
        line = {"id": record.id, "generated_queries": dict(record.queries)}
        return {**line, "passage_digest": record.passage_digest}
    line = {"id": record.id, "title": record.title, "text": record.text, "meta": dict(record.meta)}
    return line if record.lang == UNKNOWN_LANGUAGE else {**line, "lang": record.lang}


def _filled(value: Any) -> Any:
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def arrow_rows(batch: Any, left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a record batch of pyarrow as JSON values; null cells are absent.

    Dates become ISO 8601 text, durations seconds, decimals, UUIDs and integers beyond 64 bits text, maps objects. What
    cannot be one (NaN, bytes that are no text, dates past the year 9999) is absent; its column is named in `left_out`.
    """
    names = batch.schema.names
    columns = [_cells(name, batch.column(at), left_out) for at, name in enumerate(names)]
    for cells in zip(*columns, strict=True):
        yield {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}


def _cells(name: str, column: Any, left_out: dict[str, str]) -> list[Any]:
    import pyarrow as pa

    def cell(value: Any) -> Any:
        try:
            return _plain_cell(value.as_py())
        except (_NoJson, ValueError, OverflowError, UnicodeDecodeError) as error:
            left_out.setdefault(name, str(error) if isinstance(error, _NoJson) else "out of range")
            return None

    kind = _micro(column.type)
    if kind != column.type:
        with suppress(pa.ArrowNotImplementedError, pa.ArrowInvalid):
            column = column.cast(kind, safe=False)
    return [cell(value) for value in column]


def _micro(kind: Any) -> Any:
    """The type with microseconds for nanoseconds, of which Python has none; a list's and a record's, too."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_struct(kind):
        return pa.struct([inner.with_type(_micro(inner.type)) for inner in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(_micro(kind.value_type))
    return pa.list_(_micro(kind.value_type)) if pa.types.is_list(kind) else kind


class _NoJson(Exception):
    """What a cell holds that no record can."""


def _plain_cell(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_cell(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return {str(key): _plain_cell(inner) for key, inner in value}  # a map
        return [_plain_cell(inner) for inner in value]
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NoJson(str(value))
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _NoJson("bytes that are no text") from None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise _NoJson(type(value).__name__)


def read_sources(path: Path, rejects: Rejects) -> Iterator[Source]:
    """Read the lines of `path` that hold something; blank ones are counted, those over the length limit rejected."""
    last = 0
    for number, offset, raw in open_lines(path):
        rejects.read += number - last
        rejects.blank += number - last - 1  # long runs of blank lines come as their last
        last = number
        if isinstance(raw, LongLine):
            source = Source(str(path), number, offset, raw.head)
            rejects.reject(source, f"the line has {raw.size:,} bytes, more than may be read at once")
        elif not raw.strip():
            rejects.blank += 1
        else:
            yield Source(str(path), number, offset, raw)


def read_objects(path: Path, rejects: Rejects) -> Rows:
    """Read the JSON objects of a file, with where they stand; malformed ones go to `rejects`.

    One a line; of a file named .json also an array of them, or objects that are spread over lines.
    """
    spread = ".json" in [suffix.lower() for suffix in path.suffixes[-2:]] and _is_spread(path)
    for source in _spread_sources(path, rejects) if spread else read_sources(path, rejects):
        record = rejects.attempt(source, parse_object, source.raw)
        if record is not None:
            yield source, record


def _is_spread(path: Path) -> bool:
    first = next((raw for _, _, raw in open_lines(path) if isinstance(raw, LongLine) or raw.strip()), b"")
    line = (first.head if isinstance(first, LongLine) else first).strip()
    return line.startswith(b"[") or line == b"{"


def _spread_sources(path: Path, rejects: Rejects) -> Iterator[Source]:
    lines = open_lines(path, max_bytes=MAX_JSON_BYTES)
    held, size = [], 0
    for _, _, raw in lines:
        size += len(raw) + 1 if isinstance(raw, bytes) else raw.size
        if size > MAX_JSON_BYTES or isinstance(raw, LongLine):
            raise DataError(f"{path} is over {MAX_JSON_BYTES:,} bytes; make JSON lines of it: jq -c '.[]' FILE > NEW.")
        held.append(raw)
    try:
        text = b"\n".join(held).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    decoder = json.JSONDecoder()
    at, line, before = _after_gap(text, 0), 1, 0
    while at < len(text):
        line, before = line + text.count("\n", before, at), at
        try:
            _, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} line {line}: not JSON ({str(error)[:100]}); correct the file.") from None
        rejects.read += 1
        yield Source(str(path), line, None, text[at:end].encode())
        at = _after_gap(text, end)


def _after_gap(text: str, at: int) -> int:
    gap = _JSON_GAP.match(text, at)
    return at if gap is None else gap.end()


def decoded(raw: bytes) -> str:
    """The text of a line. Raises BadRecord when it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of the line") from None


def hash64(data: bytes) -> int:
    """64 bits that tell one id or content from another."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse the JSON object on one line.

    Raises BadRecord for what JSON forbids (NaN, 1e999, lone surrogates, bytes that are not UTF-8, a second value) and
    for what would bite later: repeated keys, NUL characters, nesting deeper than `MAX_DEPTH`.
    """
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        hint = "; write null for NaN and Infinity" if b"NaN" in raw or b"Infinity" in raw else ""
        raise BadRecord(f"not JSON: {error}{hint}") from None
    if not isinstance(record, dict):
        hint = "; name a file that is an array .json" if isinstance(record, list) else ""
        raise BadRecord(f"a JSON object was expected, not {_name_of(record)}{hint}")
    keys = check_record(record)
    # orjson keeps the last of two equal keys; text may look like a key but can only add to this count
    if len(_KEY.findall(raw)) > keys:
        _refuse_repeated_keys(raw)
    return record


def _refuse_repeated_keys(raw: bytes) -> None:
    def refuse(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRecord(f"key {key[:80]!r} appears twice")
            seen.add(key)

    json.loads(raw, object_pairs_hook=refuse)


def check_record(record: Mapping[str, Any]) -> int:
    """Count the keys of a record, all levels. Raises BadRecord that names the key whose value cannot be stored."""
    keys = len(record)
    for key, value in record.items():
        try:
            keys += check_value(key) + check_value(value, 1)
        except BadRecord as bad:
            raise BadRecord(f"{bad}, under {key[:80]!r}") from None
    return keys


def check_value(value: Any, depth: int = 0) -> int:
    """Count the keys in a JSON value, all levels. Raises BadRecord when it could not be stored and read back."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadRecord("a NUL character in a string")
        return 0
    if depth >= MAX_DEPTH:
        raise BadRecord(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return len(value) + sum(check_value(key) + check_value(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return sum(check_value(item, depth + 1) for item in value)
    return _check_scalar(value)


def _check_scalar(value: Any) -> int:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(f"{value} is not a number that can be stored")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadRecord("an integer of more than 64 bits (write it as text)")
    if not isinstance(value, int | float | None):
        raise BadRecord(f"a value of type {type(value).__name__} cannot be stored as JSON")
    return 0


def record_id(record: Mapping[str, Any]) -> str:
    """Return the id as text; integers are spelled out. Raises BadRecord when it is missing, blank or no id."""
    key = next((k for k in ID_KEYS if k in record), None)
    if key is None:
        found = ", ".join(map(repr, list(record)[:5]))
        raise BadRecord(f"no id (expected one of the keys {', '.join(ID_KEYS)}); found {found or 'nothing'}")
    return str(record[key]) if type(record[key]) is int else text_of(record, key, kind="text or a whole number")


def text_of(record: Mapping[str, Any], key: str, *, kind: str = "text") -> str:
    """Return the text under `key`. Raises BadRecord when it is missing, no text, or shows nothing."""
    value = record.get(key)
    if value is None and key not in ID_KEYS:
        raise BadRecord(f"no {key}")
    if not isinstance(value, str):
        raise BadRecord(f"{key} must be {kind}, not {_name_of(value)}")
    if not has_content(value):
        raise BadRecord(f"{key} is blank")
    return value


def language_of(value: Any) -> str:
    """Normalise a language code from a record, `und` for null. Raises BadRecord when it is none."""
    if not isinstance(value, str | None):
        raise BadRecord(f"a language code must be text, not {_name_of(value)}")
    try:
        return languages.normalize(value)
    except DataError as error:
        raise BadRecord(str(error).rstrip(".")) from None


def has_content(text: str) -> bool:
    """Tell whether anything would show: not only spaces, control and zero-width characters."""
    return text[:1].isalnum() or any(character.isprintable() and not character.isspace() for character in text)


def _name_of(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a fraction",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
