"""A report as plain text for a terminal.

In: a `Report`. Out: one string. Names may hold anything; control characters never reach the terminal.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from xqg_vdb.evaluate.records import Report
from xqg_vdb.evaluate.report.tables import (
    Table,
    baseline_of,
    clean,
    comparison_table,
    comparisons_of,
    cut,
    difference_table,
    group_table,
    headline_table,
    heat_table,
    measured,
    provenance_tables,
    sweep_table,
    transposed,
    width,
)

MIN_WIDTH = 40
_NAME_LIMIT = 30
_CELL_LIMIT = 22
_GAP = "  "


def render_terminal(report: Report, *, width: int = 100) -> str:
    """Return the headline, language, comparison and sweep tables, in lines of `width` columns.

    Tables that are wider come in blocks of columns. Lines are never shorter than 40 columns. Heat maps and provenance
    are left to the other reports.
    """
    columns = max(width, MIN_WIDTH)
    parts = [clean(report.suite), *_wrapped(report.description, columns)]
    for dataset, metrics in measured(report):
        for metric in metrics:
            parts += ["", *_table(headline_table(report, dataset, metric), columns)]
            parts += ["", *_table(transposed(group_table(report, dataset, metric)), columns)]
            parts += ["", *_table(_other_comparisons(report, dataset, metric), columns)]
    for sweep in report.sweeps:
        parts += ["", *_table(transposed(sweep_table(sweep)), columns)]
    for note in report.notes:
        parts += ["", *_wrapped(f"Note: {note}", columns)]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _other_comparisons(report: Report, dataset: str, metric: str) -> Table:
    """Those that the headline table does not show, without the columns of languages, which have a table already."""
    table = comparison_table(report, dataset, metric)
    compared = comparisons_of(report, dataset, metric)
    shown = baseline_of(report, dataset, metric)
    rows = [row[:-2] for row, one in zip(table.rows, compared, strict=True) if one.baseline != shown]
    return Table(table.title, table.columns[:-2], rows)


def _table(table: Table, columns: int) -> Iterator[str]:
    """The title, the rows in blocks of columns that fit, the note; nothing for a table without rows."""
    if not table.rows or len(table.columns) < 2:
        return
    yield clean(table.title)
    rest = [_aligned([row[place] for row in (table.columns, *table.rows)]) for place in range(1, len(table.columns))]
    widths = [max(map(width, cells)) for cells in rest]
    room = columns - sum(widths) - len(_GAP) * len(widths)
    names = [cut(clean(row[0]), max(room, _NAME_LIMIT)) for row in (table.columns, *table.rows)]
    first = max(map(width, names))
    for number, block in enumerate(_blocks(widths, columns - first)):
        if number:
            yield ""
        for line, name in enumerate(names):
            cells = ((rest[place][line], widths[place]) for place in block)
            told = (_GAP + " " * (size - width(cell)) + cell for cell, size in cells)
            yield name + " " * (first - width(name)) + "".join(told)
    if table.note:
        yield from _wrapped(table.note, columns)


def _aligned(column: Sequence[str]) -> list[str]:
    """Cells of one column, with spaces in the place of stars so that the numbers stand below each other."""
    cells = [cut(clean(cell), _CELL_LIMIT) for cell in column]
    most = max(len(cell) - len(cell.rstrip("*")) for cell in cells)
    return [cells[0], *(cell + " " * (most - len(cell) + len(cell.rstrip("*"))) for cell in cells[1:])]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of columns that fit side by side, at least one a block."""
    blocks: list[list[int]] = []
    free = 0
    for place, needed in enumerate(widths):
        taken = len(_GAP) + needed
        if not blocks or taken > free:
            blocks.append([])
            free = room
        blocks[-1].append(place)
        free -= taken
    return blocks


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(clean(text), columns)


# A report as GitHub Markdown.

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
    parts += [
        part for table in provenance_tables(report) for part in (f"### {_text(table.title)}", _markdown_table(table))
    ]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_text(note)}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metric(report: Report, dataset: str, metric: str) -> Iterator[str]:
    yield f"### {_text(metric)}"
    for table in (headline_table(report, dataset, metric), group_table(report, dataset, metric)):
        if table.rows:
            yield _markdown_table(table)
            yield _text(table.note)
    table = comparison_table(report, dataset, metric)
    if table.rows:
        yield "#### Comparisons"
        yield _markdown_table(table)
        yield _text(table.note)
    for one in comparisons_of(report, dataset, metric):
        yield from _folded(difference_table(one))


def _folded(table: Table) -> list[str]:
    summary = clean(table.title).translate(_HTML)
    return [f"<details><summary>{summary}</summary>", _markdown_table(table), "</details>"]


def _markdown_table(table: Table) -> str:
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
