"""Tables with named columns as records: TSV in the style of DPR's passages, and Parquet.

This file refuses to know what the columns mean, apart from what tells a TSV header from data.
"""

from __future__ import annotations

import datetime
import re
from functools import partial
from pathlib import Path
from typing import Any, cast

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors
from xqg_vdb.records import ID_KEYS, BadRecord, Rejects, Rows, Source, check_value, read_sources

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
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of the line") from None
    fields = _tsv_fields(line)
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
