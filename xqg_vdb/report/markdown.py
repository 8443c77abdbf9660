"""A report as GitHub Markdown.

In: a `Report`. Out: one string. Names may hold anything; they are shown as they are, never read as Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xqg_vdb.bench.records import Report
from xqg_vdb.report.provenance import provenance_tables
from xqg_vdb.report.tables import (
    Table,
    comparison_table,
    comparisons_of,
    difference_table,
    group_table,
    headline_table,
    heat_table,
    measured,
    sweep_table,
)
from xqg_vdb.report.wording import clean

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")
_LIST_START = re.compile(r"^(\s*)([-+]|\d+[.)])(?=\s|$)")
_HTML = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def render_markdown(report: Report) -> str:
    """Return every table of the report; the long ones are folded."""
    parts = [f"# {_text(report.suite)}", *_paragraphs(report.description), _code(report.command)]
    parts.append(f"Made on {_text(report.created)}.")
    for dataset, metrics in measured(report):
        parts.append(f"## {_text(dataset)}")
        for metric in metrics:
            parts += _metric(report, dataset, metric)
    if report.sweeps:
        parts.append("## Sweeps")
        parts += [part for sweep in report.sweeps for part in _folded(sweep_table(sweep))]
    if report.heatmaps:
        parts.append("## Query language and passage language")
        parts += [part for one in report.heatmaps for part in _folded(heat_table(one))]
    parts.append("## Provenance")
    parts += [part for table in provenance_tables(report) for part in (f"### {_text(table.title)}", _table(table))]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_text(note)}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metric(report: Report, dataset: str, metric: str) -> Iterator[str]:
    yield f"### {_text(metric)}"
    for table in (headline_table(report, dataset, metric), group_table(report, dataset, metric)):
        if table.rows:
            yield _table(table)
            yield _text(table.note)
    compared = comparisons_of(report, dataset, metric)
    if compared:
        table = comparison_table(report, dataset, metric)
        yield "#### Comparisons"
        yield _table(table)
        yield _text(table.note)
    for one in compared:
        yield from _folded(difference_table(one))


def _section(title: str, table: Table) -> list[str]:
    return [f"## {title}", _table(table)] if table.rows else []


def _folded(table: Table) -> list[str]:
    summary = clean(table.title).translate(_HTML)
    return [f"<details><summary>{summary}</summary>", _table(table), "</details>"]


def _table(table: Table) -> str:
    rule = ["---" if place in (0, *table.words) else "---:" for place in range(len(table.columns))]
    lines = [table.columns, rule, *table.rows]
    return "\n".join(
        "| " + " | ".join(cell if number == 1 else _text(cell) for cell in row) + " |"
        for number, row in enumerate(lines)
    )


def _paragraphs(text: str) -> list[str]:
    return [_text(part) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _text(text: str) -> str:
    """Escape what Markdown, GitHub's extensions and HTML would read; one line."""
    escaped = _SPECIAL.sub(r"\\\1", clean(text).strip().translate(_HTML))
    return _LIST_START.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", escaped)


def _code(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks within."""
    lines = [clean(line) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}console", *lines, fence]) if text.strip() else ""
