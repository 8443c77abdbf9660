"""Write a report's files, and read `report.json` back.

In: a `Report` and a folder. Out: files that appear whole or not at all. What is read is checked field by field against
the records' types, so that a file from elsewhere cannot surprise the tables and figures.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

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
        _check_heatmaps(report)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{path} is not a report of this version ({reason}); make it again.") from error
    return report


def _check_heatmaps(report: Report) -> None:
    for one in report.heatmaps:
        if len(one.values) != len(one.rows) or any(len(row) != len(one.columns) for row in one.values):
            raise ValueError(f"the heat map {one.what[:40]!r} has not one value a row and column")
