"""A report as plain text for a terminal.

In: a `Report`. Out: one string. Names may hold anything; control characters never reach the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from xqg_vdb.bench.records import Report
from xqg_vdb.report.tables import (
    Table,
    baseline_of,
    comparison_table,
    comparisons_of,
    group_table,
    headline_table,
    measured,
    sweep_table,
    transposed,
)
from xqg_vdb.report.wording import clean, cut, width

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
            cells = (_GAP + _pad_left(rest[place][line], widths[place]) for place in block)
            yield name + " " * (first - width(name)) + "".join(cells)
    if table.note:
        yield from _wrapped(table.note, columns)


def _aligned(column: Sequence[str]) -> list[str]:
    """Cells of one column, with spaces in the place of stars so that the numbers stand below each other."""
    cells = [cut(clean(cell), _CELL_LIMIT) for cell in column]
    most = max(_stars(cell) for cell in cells)
    return [cells[0], *(cell + " " * (most - _stars(cell)) for cell in cells[1:])]


def _stars(cell: str) -> int:
    return len(cell) - len(cell.rstrip("*"))


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


def _pad_left(text: str, size: int) -> str:
    return " " * (size - width(text)) + text


def _wrapped(text: str, columns: int, *, indent: str = "") -> list[str]:
    return textwrap.wrap(clean(text), columns, initial_indent=indent, subsequent_indent=indent)
