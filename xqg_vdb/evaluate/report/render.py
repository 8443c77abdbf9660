"""A report as files and texts: `report.json` and back, one HTML page without scripts and network, Markdown, a terminal.

The three texts show the blocks of `outline`. Names may hold anything: each text escapes what its readers would obey, no
control character leaves this file, and a content policy in the page forbids scripts and requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.evaluate.records import Report
from xqg_vdb.evaluate.report.outline import outline
from xqg_vdb.evaluate.report.tables import Table, clean, cut
from xqg_vdb.evaluate.report.tables import width as _width
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
    """Read a `report.json`, every field checked. Raises DataError when it is missing or no report of this version."""
    path = Path(path)
    with disk_errors(path):
        data = path.read_bytes()
    try:
        record = json.loads(data)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f"no report of schema {SCHEMA}")
        report = Report.from_json(record)
        for grid in report.heatmaps:
            if len(grid.values) != len(grid.rows) or any(len(row) != len(grid.columns) for row in grid.values):
                raise ValueError(f"the heat map {grid.what[:40]!r} has not one value a row and column")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{path} is not a report of this version ({reason}); make it again.") from error
    return report


def render_page(report: Report) -> str:
    """Return the HTML text. Raises MissingExtra without the extra `bench`."""
    style = "\n" + files(__package__).joinpath("templates/report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    text = _template().render(blocks=list(outline(report)), style=style, style_hash=f"sha256-{digest}")
    return text.lstrip()  # the lines of the macros


@cache
def _template() -> Template:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra('report.html needs jinja2; run: pip install "xqg-vdb[bench]"') from error
    environment = Environment(
        autoescape=True,
        loader=PackageLoader(str(__package__)),
        undefined=StrictUndefined,
        # plain text without control characters; markup of the template itself as it is
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


# As plain text for a terminal.

MIN_WIDTH = 40
_NAME_LIMIT = 30
_CELL_LIMIT = 22
_GAP = "  "


def render_terminal(report: Report, *, width: int = 100) -> str:
    """Return verdict, tables, sweeps and notes, in lines of `width` columns, never shorter than 40.

    Tables that are wider come in blocks of columns. What the page folds, heat maps and provenance are left to the
    other reports.
    """
    columns, lines, head = max(width, MIN_WIDTH), list[str](), list[str]()
    for kind, content in outline(report):
        if kind == "part":
            head = ["", clean(content), "=" * min(_width(clean(content)), columns)]
        elif block := list(_terminal(kind, content, columns)):
            lines += [*head, "", *block]
            head = []
    return "\n".join(line.rstrip() for line in lines[1:]) + "\n"


def _terminal(kind: str, content: Any, columns: int) -> Iterator[str]:
    """The lines of one block; none for what a terminal does not show."""
    match kind:
        case "title" | "text" | "note":
            yield from _wrapped(content, columns)
        case "pairs":
            yield from [*_wrapped(content[0], columns), *_items(content[1], columns)]
        case "list":
            yield from _items(content, columns)
        case "terms":
            yield from _items([f"{word}: {said}" for word, said in content], columns)
        case "table":
            yield from _table(content, columns)
        case "drawings":
            for number, table in enumerate(table for drawing in content for table in drawing["tables"]):
                yield from [*([""] if number else []), *_table(table, columns)]


def _items(texts: Sequence[str], columns: int) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(clean(text), columns - 2, initial_indent="- ",
                                                             subsequent_indent="  ")]  # fmt: skip


def _table(table: Table, columns: int) -> Iterator[str]:
    """The title, the rows in blocks of columns that fit, the note; nothing for a table without rows."""
    places = [place for place in range(1, len(table.columns)) if place not in table.words]
    if not table.rows or not places:
        return
    yield from _wrapped(table.title, columns)
    rest = [_aligned([row[place] for row in (table.columns, *table.rows)]) for place in places]
    widths = [max(map(_width, cells)) for cells in rest]
    room = columns - sum(widths) - len(_GAP) * len(widths)
    names = [cut(clean(row[0]), max(room, _NAME_LIMIT)) for row in (table.columns, *table.rows)]
    first = max(map(_width, names))
    for number, block in enumerate(_blocks(widths, columns - first)):
        if number:
            yield ""
        for line, name in enumerate(names):
            cells = ((rest[place][line], widths[place]) for place in block)
            told = (_GAP + " " * (size - _width(cell)) + cell for cell, size in cells)
            yield name + " " * (first - _width(name)) + "".join(told)
    if table.note:
        yield from _wrapped(table.note, columns)


def _aligned(column: Sequence[str]) -> list[str]:
    """Cells of one column, with spaces in the place of stars so that the numbers stand below each other."""
    cells = [cut(clean(cell), _CELL_LIMIT) for cell in column]
    most = max(len(cell) - len(cell.rstrip("*")) for cell in cells)
    return [cells[0], *(cell + " " * (most - len(cell) + len(cell.rstrip("*"))) for cell in cells[1:])]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of columns that fit side by side, at least one a block."""
    blocks = [[0]]
    for place in range(1, len(widths)):
        if sum(widths[i] + len(_GAP) for i in (*blocks[-1], place)) > room:
            blocks.append([])
        blocks[-1].append(place)
    return blocks


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(clean(text), columns)


# As GitHub Markdown.

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")
_LIST_START = re.compile(r"^(\s*)([-+]|\d+[.)])(?=\s|$)")
_HTML = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
_HEADS = {"title": "# ", "part": "## ", "metric": "### ", "heading": "#### ", "text": "", "note": ""}


def render_markdown(report: Report) -> str:
    """Return every block of the report but the drawings; long tables are folded."""
    parts = (part for kind, content in outline(report) for part in _markdown(kind, content))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(kind: str, content: Any) -> Iterator[str]:
    match kind:
        case "title" | "part" | "metric" | "heading" | "text" | "note":
            yield content and _HEADS[kind] + _text(content)
        case "code":
            yield from (_text(content[0]), _code(content[1]))
        case "list":
            yield "\n".join(f"- {_text(text)}" for text in content)
        case "pairs":
            yield from (_text(content[0]), *_markdown("list", content[1]))
        case "terms":
            yield "\n".join(f"- **{_text(word)}**: {_text(said)}" for word, said in content)
        case "table" if content.rows:
            yield from (_markdown_table(content), _text(content.note))
        case "folded" if content.rows:
            yield f"<details><summary>{clean(content.title).translate(_HTML)}</summary>"
            yield from (_markdown_table(content), _text(content.note), "</details>")
        case "drawings":
            for table in (table for drawing in content for table in drawing["tables"]):
                yield from _markdown("folded", table)


def _markdown_table(table: Table) -> str:
    rule = ["---" if place in (0, *table.words) else "---:" for place in range(len(table.columns))]
    rows = [[_text(cell) for cell in row] for row in table.rows]
    for row, column in table.best:
        rows[row][column] = re.sub(r"^[^\\]+", r"**\g<0>**", rows[row][column])  # without its stars
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(map(_text, table.columns)), rule, *rows))


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
