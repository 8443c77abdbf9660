"""A report as files: `report.json`, Markdown, and one HTML page without scripts and network, and the JSON read back.

What is read is checked field by field against the records' types, so that a file from elsewhere cannot surprise the
tables and figures. Names may hold anything: the page's template escapes every value, and a content policy in the page
forbids scripts and requests should that ever fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.evaluate.records import HeatMap, Report, Sweep
from xqg_vdb.evaluate.report.figures import bar_panels, best_point, colour, curve_figure, heat_figure
from xqg_vdb.evaluate.report.tables import (
    clean,
    comparison_table,
    comparisons_of,
    difference_table,
    group_table,
    headline_table,
    heat_table,
    measured,
    parameter_name,
    provenance_tables,
    results_of,
    setting,
    share,
    sweep_table,
)
from xqg_vdb.evaluate.report.text import render_markdown
from xqg_vdb.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from jinja2 import Template

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
        for one in report.heatmaps:
            if len(one.values) != len(one.rows) or any(len(row) != len(one.columns) for row in one.values):
                raise ValueError(f"the heat map {one.what[:40]!r} has not one value a row and column")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{path} is not a report of this version ({reason}); make it again.") from error
    return report


def render_page(report: Report) -> str:
    """Return the HTML text. Raises MissingExtra without the extra `bench`."""
    keys = system_keys(report)
    datasets = [
        (name, [_section(report, name, metric, keys=keys) for metric in metrics]) for name, metrics in measured(report)
    ]
    text = _template().render(
        report=report,
        datasets=datasets,
        sweeps=[_drawing(group, keys=keys) for group in _together(report.sweeps)],
        heatmaps=[_heat(one) for one in report.heatmaps if one.rows and one.columns],
        provenance=provenance_tables(report),
        style=files(__package__).joinpath("templates/report.css").read_text("utf-8"),
    )
    return text.lstrip()  # the lines of the macros


def system_keys(report: Report) -> dict[str, int]:
    """Number every system that the report mentions, from 1, in the report's order; figures show these numbers."""
    mentioned = [*report.systems, *(one.system for one in report.results), *(one.system for one in report.sweeps)]
    return {name: key for key, name in enumerate(dict.fromkeys(mentioned), start=1)}


@cache
def _template() -> Template:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra('report.html needs jinja2; run: pip install "xqg-vdb[bench]"') from error
    folder = files(__package__).joinpath("templates")
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=StrictUndefined,
        # plain text without control characters; markup of the template itself as it is
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _section(report: Report, dataset: str, metric: str, *, keys: Mapping[str, int]) -> dict[str, Any]:
    """What the template shows of one metric of a dataset."""
    results = results_of(report, dataset, metric)
    return {
        "metric": metric,
        "headline": headline_table(report, dataset, metric),
        "legend": _legend((one.system for one in results), keys),
        "panels": bar_panels(results, keys=keys),
        "groups": group_table(report, dataset, metric),
        "comparisons": comparison_table(report, dataset, metric),
        "differences": [difference_table(one) for one in comparisons_of(report, dataset, metric)],
    }


def _legend(systems: Iterable[str], keys: Mapping[str, int]) -> list[tuple[int, str, str]]:
    return [(keys[name], colour(keys[name]), name) for name in dict.fromkeys(systems)]


def _together(sweeps: Sequence[Sweep]) -> list[list[Sweep]]:
    """Sweeps of the same dataset, metric and parameter share a figure; those over words have none and stand alone."""
    groups: dict[tuple[object, ...], list[Sweep]] = {}
    for place, one in enumerate(sweeps):
        alone = place if any(isinstance(point.x, str) for point in one.points) else None
        if one.points:
            groups.setdefault((one.dataset, one.metric, one.parameter, alone), []).append(one)
    return list(groups.values())


def _drawing(group: Sequence[Sweep], *, keys: Mapping[str, int]) -> dict[str, Any]:
    """A caption, a note, a figure ("" where the tables say it all) with its legend, and the tables."""
    first, tables = group[0], [sweep_table(one) for one in group]
    if any(isinstance(point.x, str) for point in first.points):
        caption = f"{first.dataset}: {first.system}, {first.metric} with one part left out"
        return {"caption": caption, "note": "", "figure": "", "legend": [], "tables": tables}
    best = [(one.system, best_point(one)) for one in group]
    said = "; ".join(f"{name} {share(point.value)} at {setting(point.x)}" for name, point in best)
    note = f"Highest on these questions: {said}."
    if len(group) == 1 and any(point.groups for point in first.points):
        note += " Thin lines: single groups."
    return {
        "caption": f"{first.dataset}: {first.metric} over {parameter_name(first)}",
        "note": note,
        "figure": curve_figure(group, keys=keys),
        "legend": _legend((one.system for one in group), keys),
        "tables": tables,
    }


def _heat(heatmap: HeatMap) -> dict[str, Any]:
    return {
        "caption": f"{heatmap.dataset}: {heatmap.system}, {heatmap.what}",
        "note": "Rows: query language; columns: passage language. The stronger the colour, the higher the value.",
        "figure": heat_figure(heatmap),
        "legend": [],
        "tables": [heat_table(heatmap)],
    }
