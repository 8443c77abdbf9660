"""Write a report's files, and read `report.json` back.

In: a `Report` and a folder. Out: files that appear whole or not at all. What is read is checked field by field against
the records' types, so that a file from elsewhere cannot surprise the tables and figures.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.records import Report
from xqg_vdb.evaluate.report.page import render_page
from xqg_vdb.evaluate.report.text import render_markdown
from xqg_vdb.files import disk_errors, write_atomic

SCHEMA = 1


def write_report(report: Report, folder: str | PathLike[str]) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into `folder`, made if missing; returns their paths.

    The JSON comes first: whatever fails later, the numbers are kept. Raises ValueError for NaN and infinity (records
    say None), MissingExtra without the extra `bench`, DiskError.
    """
    folder = Path(folder)
    paths = [folder / f"report.{kind}" for kind in ("json", "md", "html")]
    text = json.dumps(report.to_json(), indent=1, allow_nan=False)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(paths[0], text.encode("ascii") + b"\n")
    write_atomic(paths[1], render_markdown(report).encode("utf-8"))
    write_atomic(paths[2], render_page(report).encode("utf-8"))
    return paths


def read_report(path: str | PathLike[str]) -> Report:
    """Read a `report.json`. Raises DataError when it is missing or no report of this version."""
    path = Path(path)
    with disk_errors(path):
        data = path.read_bytes()
    try:
        record = json.loads(data)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f"no report of schema {SCHEMA}")
        report = Report.from_json(record)
        _check(report, Report, "report")
        _check_heatmaps(report)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{path} is not a report of this version ({reason}); make it again.") from error
    return report


def _check_heatmaps(report: Report) -> None:
    for one in report.heatmaps:
        if len(one.values) != len(one.rows) or any(len(row) != len(one.columns) for row in one.values):
            raise ValueError(f"the heat map {one.what[:40]!r} has not one value a row and column")


def _check(value: Any, kind: Any, where: str) -> None:
    """Raise TypeError, naming the place, unless `value` is of the annotated type; numbers must be finite."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            _check(getattr(value, field.name), hints[field.name], f"{where}.{field.name}")
    elif get_origin(kind) in (Union, types.UnionType):
        _check_any(value, get_args(kind), where)
    elif get_origin(kind) is not None:
        _check_parts(value, kind, where)
    elif kind is not Any and not _is(value, kind):
        raise TypeError(f"{where} is {value!r:.40}")


def _check_any(value: Any, kinds: Sequence[Any], where: str) -> None:
    for kind in kinds:
        try:
            return _check(value, kind, where)
        except TypeError:
            continue
    raise TypeError(f"{where} is {value!r:.40}")


def _check_parts(value: Any, kind: Any, where: str) -> None:
    """Mappings, sequences and pairs, with what is in them."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        right = isinstance(value, tuple) and len(value) == len(inner)
    else:
        right = isinstance(value, origin) and not isinstance(value, str)
    if not right:
        raise TypeError(f"{where} is {value!r:.40}")
    if origin is Mapping:
        for name, one in value.items():
            _check(one, inner[1], f"{where}.{name}")
    else:
        for one in value:
            _check(one, inner[0], f"{where}[]")


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is type(None):
        return value is None
    return isinstance(value, kind)
