"""Tables as records: TSV in the style of DPR's passages, CSV, Parquet, and what lies in memory, Arrow's frames too."""

from __future__ import annotations

import datetime
import decimal
import gzip
import math
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import atomic_file, disk_errors, refuse_foreign
from xqg_vdb.texts.records import (
    ID_KEYS,
    LINE_FEEDS,
    TEXT_KEYS,
    BadRecord,
    Rejects,
    Rows,
    Source,
    check_record,
    decoded,
    expect,
    parsed,
    read_sources,
)
from xqg_vdb.types import UNKNOWN_LANGUAGE, GeneratedQueries, Passage

_PARQUET_BATCH = 512
_MOST_CSV_LINES = 1000
_CELLS = {mark: re.compile(rf'"((?:[^"]++|"")*+)"(?={mark}|\Z)|([^{mark}]*)') for mark in "\t,"}


def read_table(
    path: Path, rejects: Rejects, *, ids: tuple[str, ...] = ID_KEYS, texts: tuple[str, ...] = TEXT_KEYS
) -> Rows:
    """Read the rows of TSV or CSV, by the suffix, cells as text; only CSV's quoted cells may hold line breaks.

    The first line names the columns, one of `ids` and of `texts` among them. Without one it is a row: where there are
    two columns and the first holds a digit, they are id and text. Raises DataError for other headers.
    """
    mark = "," if ".csv" in [suffix.lower() for suffix in path.suffixes[-2:]] else "\t"
    sources = read_sources(path, rejects)
    return table_rows(_joined(sources, rejects) if mark == "," else sources, mark, rejects, ids=ids, texts=texts)


def table_rows(
    sources: Iterator[Source], mark: str, rejects: Rejects, *, ids: tuple[str, ...], texts: tuple[str, ...]
) -> Rows:
    """The rows in lines of cells, the first as in `read_table`."""
    for first in sources:
        header = _header(first, mark, ids, texts)
        if header:
            rejects.read -= 1  # not a record
        else:
            sources = chain([first], sources)
        yield from parsed(sources, partial(_table_row, header or ["id", "text"], mark), rejects)


def _joined(sources: Iterator[Source], rejects: Rejects) -> Iterator[Source]:
    """The rows of CSV: lines whose quoted cell continues, with those that follow."""
    for source in sources:
        raw, lines = source.raw, 1
        while raw.count(b'"') % 2 and lines < _MOST_CSV_LINES and (after := next(sources, None)) is not None:
            raw, lines = raw + b"\n" * (after.line - source.line - lines + 1) + after.raw, after.line - source.line + 1
            rejects.read -= 1
        if raw.strip(b' ,"\r'):
            yield source._replace(raw=raw)
        else:  # a row of Excel's that holds nothing
            rejects.blank += 1


def _header(source: Source, mark: str, ids: tuple[str, ...], texts: tuple[str, ...]) -> list[str]:
    """The names of the columns; none where the first line is a row."""
    try:
        cells = _table_cells(decoded(source.raw), mark, most=1000)
    except BadRecord as error:
        raise DataError(f"{source.file} line {source.line}: {error}, where the columns should be named.") from None
    names = [name.strip().lower() for name in cells]
    known = set(names)
    if known.intersection(ids) and known.intersection(texts) and len(known) == len(names):
        return names
    if len(names) == 2 and any(map(str.isdigit, names[0])) and not known.intersection(ids + texts):
        return []
    example = mark.join(("id", texts[0], "title")).replace("\t", "<TAB>")
    columns = [name[:40] for name in names[:5]]
    others = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    other = next((sign for sign in others if sign != mark and sign in names[0]), "")
    hint = f"; separate columns by {others[mark]}, not {others[other]}" if other else ""
    hint = f"; {LINE_FEEDS}" if b"\r" in source.raw else hint
    raise DataError(f"{source.file} line {source.line}: expected a header such as {example}, found {columns}{hint}.")


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
                names = table.schema_arrow.names
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise DataError(f"{path} has two columns {twice!r}: rename or leave out one of them.")
                wanted = [name for name in names if name != "generated_queries"]
                for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted):
                    for row in arrow_rows(batch, rejects.left_out):
                        number += 1
                        rejects.read += 1
                        source = Source(str(path), number, None, repr(row)[:800].encode("utf-8", "replace"))
                        try:
                            check_record(row)
                        except BadRecord as bad:
                            rejects.reject(source, str(bad))
                        else:
                            yield source, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            with open(path, "rb") as file:
                if (head := file.read(64))[:4] != b"PAR1":
                    refuse_foreign(path, head)
            reason = str(error)[:200].rstrip(".")
            said = f"{path} is not a readable Parquet file (after row {number}: {reason}); fetch or write it again."
            raise DataError(said) from error


def arrow_rows(batch: Any, left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a record batch of pyarrow as JSON values; null cells and fields are absent.

    Dates become ISO 8601 text, durations seconds, decimals, UUIDs and integers beyond 64 bits text, maps objects. What
    cannot be one (NaN, bytes that are no text, dates past the year 9999) is absent; its column is named in `left_out`.
    """
    names = batch.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"There are two columns {twice!r}: rename or leave out one of them.")
    for at in range(len(batch)):
        row: dict[str, Any] = {}
        for name, column in zip(names, batch.columns, strict=True):
            if name.startswith("__index_level_"):
                continue  # pandas' own is no field
            try:
                value = _json_of(column[at])
            except (BadRecord, ValueError, OverflowError) as error:
                known = {UnicodeDecodeError: "text that is not UTF-8", OverflowError: "out of range"}
                left_out.setdefault(name, known.get(type(error), str(error)[:80]))
            else:
                if value is not None:
                    row[name] = value
        yield row


def _json_of(cell: Any) -> Any:
    """A scalar of pyarrow as a JSON value. Raises BadRecord with what it holds, ValueError, OverflowError."""
    import pyarrow as pa

    if not cell.is_valid:
        return None
    if isinstance(cell, pa.MapScalar):
        pairs = {str(_json_of(entry["key"])): _json_of(entry["value"]) for entry in cell.values}
        if len(pairs) < len(cell.values):
            raise BadRecord("a map with a key twice")
        return pairs
    if isinstance(cell, pa.ExtensionScalar) and isinstance(cell.value, pa.ListScalar | pa.StructScalar):
        cell = cell.value  # tensors
    if isinstance(cell, pa.ListScalar):
        return [_json_of(item) for item in cell.values]
    if isinstance(cell, pa.StructScalar):
        fields = {str(name): _json_of(item) for name, item in cell.items() if item.is_valid}
        if len(set(cell)) < len(cell):
            raise BadRecord("a record with a field twice")
        return fields
    if getattr(cell.type, "unit", "") == "ns":  # Python has no nanoseconds
        kinds = {pa.TimestampScalar: pa.timestamp, pa.DurationScalar: pa.duration, pa.Time64Scalar: pa.time64}
        zone = [cell.type.tz] if isinstance(cell, pa.TimestampScalar) else []
        cell = cell.cast(kinds[type(cell)]("us", *zone), safe=False)
    if isinstance(cell, pa.TimestampScalar) and cell.type.tz:
        with suppress(OSError, ValueError, KeyError):  # no zone of this machine, or no date of Python's
            return cell.as_py().isoformat()
        cell = cell.cast(pa.timestamp(cell.type.unit, "UTC"))  # the instant is known all the same
    return _plain_value(cell.as_py())


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        if b"\0" not in value:
            with suppress(UnicodeDecodeError):
                return value.decode()
        raise BadRecord("bytes that are no text")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(str(value))
    if not isinstance(value, str | bool | int | float | None):
        raise BadRecord(type(value).__name__)
    return value


# Records in memory, as a line of a file would hold them.


class _ArrowStream(Protocol):
    """A data frame of pandas or polars, a table of pyarrow: what hands out its rows in Arrow's format."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


Records = Iterable[Passage | GeneratedQueries | Mapping[str, Any]] | _ArrowStream
"""Records in memory, such as a line of a file holds."""


def write_records(path: str | Path, records: Records, left_out: dict[str, str] | None = None) -> int:
    """Write one line per record, atomically, gzipped when `path` ends in `.gz`; how many there were.

    left_out: takes the fields of which a record loses a value, and why, as `arrow_rows` has them. Raises DataError for
    what JSON cannot hold, and DiskError like `files.atomic_file`; nothing is written when `records` raises.
    """
    count = 0
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(atomic_file(path))
        if str(path).endswith(".gz"):
            # no name and no time in the header: equal records make equal bytes
            file = cast(BinaryIO, stack.enter_context(gzip.GzipFile("", "wb", 6, fileobj=file, mtime=0)))
        for count, record in enumerate(plain_records(records, left_out), 1):
            try:
                line = _line_of(record)
                if b"null" in line:  # what is no number would be one
                    line = _line_of(_of_numbers(record, {} if left_out is None else left_out))
                file.write(line)
            except orjson.JSONEncodeError as error:
                said = f"Record {count} in memory cannot be written as JSON: {error}, in {record!r:.120}."
                raise DataError(said) from None
    return count


def _line_of(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, _plain_value, orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _of_numbers(record: Mapping[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
    """The record without fields in which a number is none."""
    odd = {name: told for name, value in record.items() if (told := _no_number(value))}
    left_out.update(odd)
    return {name: value for name, value in record.items() if name not in odd}


def _no_number(value: Any) -> str:
    """The first NaN or infinity in a value; empty where there is none."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's
    if isinstance(value, Mapping | list | tuple):
        return next(filter(None, map(_no_number, value.values() if isinstance(value, Mapping) else value)), "")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else ""


def plain_records(records: Records, left_out: dict[str, str] | None = None) -> Iterator[Mapping[str, Any]]:
    """Each record in memory as the dict that a line of a file would hold."""
    if isinstance(records, Iterable) and not hasattr(records, "__arrow_c_stream__"):
        for record in records:
            yield record if isinstance(record, Mapping) else _plain(record)
        return
    if not hasattr(records, "__arrow_c_stream__"):
        raise DataError(f"Give a file, a list of dicts or of Passages, or a data frame, not {records!r:.80}.")
    import pyarrow as pa

    for batch in pa.RecordBatchReader.from_stream(records):
        yield from arrow_rows(batch, {} if left_out is None else left_out)


def _plain(record: Passage | GeneratedQueries) -> dict[str, Any]:
    if isinstance(record, GeneratedQueries):
        line = {"id": record.id, "generated_queries": dict(record.queries)}
        return {**line, "passage_digest": record.passage_digest} if record.passage_digest else line
    expect("A record", record, Passage, 'a dict such as {"id": "1", "text": "…"}, or a Passage')
    line = {"id": record.id, "title": record.title, "text": record.text, "meta": dict(record.meta or {})}
    return line if record.lang == UNKNOWN_LANGUAGE else {**line, "lang": record.lang}


@contextmanager
def written(records: Records, name: str, left_out: dict[str, str] | None) -> Iterator[Path]:
    """A file for a while; errors name the record in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        try:
            write_records(path, records, left_out)
            yield path
        except DataError as error:
            said = str(error).replace(f"{path} line ", f"{path.stem} record ")
            said = re.sub(r"; [^;]*jq -c .*?> NEW(\.jsonl)?", "", said.replace(str(path), f"the {path.stem} in memory"))
            error.args = (said[0].upper() + said[1:],)
            raise
