"""The heat map of query language by passage language.

In: a `HeatMap`. Out: a `Figure`; the stronger a cell's colour, the higher its value.
"""

from __future__ import annotations

from xqg_vdb.bench.records import HeatMap
from xqg_vdb.report.shapes import Box, Figure, Shape, Words, text_width
from xqg_vdb.report.wording import cut, share

NARROW = 360.0
_LEAST, _MOST = 22.0, 44.0
_LABEL_LIMIT = 14
_STRONG = 0.73
"""From here on light text is easier to read on the light page's blue than dark text."""


def heat_figure(heatmap: HeatMap) -> Figure:
    """Draw the cells with their values; wider than a phone when there are many columns (the page then scrolls it)."""
    names = [cut(name, _LABEL_LIMIT) for name in heatmap.columns]
    left = 8 + max((text_width(cut(name, _LABEL_LIMIT)) for name in heatmap.rows), default=0.0)
    size = min(_MOST, max(_LEAST, (NARROW - left) / max(len(names), 1)))
    longest = max(map(text_width, names), default=0.0)
    slanted = longest > size - 2
    top = longest * 0.75 + 12 if slanted else 18.0
    overhang = longest * 0.7 if slanted else 0.0
    cells = [value for row in heatmap.values for value in row]
    low, high = min([0.0, *cells]), max(cells, default=1.0)
    shapes: list[Shape] = []
    for column, name in enumerate(names):
        x, title = left + size * (column + 0.5), heatmap.columns[column]
        shapes.append(Words(x, top - 5, name, "value", "start" if slanted else "middle", -45 if slanted else 0, title))
    for row, (name, values) in enumerate(zip(heatmap.rows, heatmap.values, strict=True)):
        y = top + size * row
        shapes.append(Words(left - 4, y + size / 2 + 3.5, cut(name, _LABEL_LIMIT), "value", "end", title=name))
        for column, value in enumerate(values):
            strength = 0.0 if high == low else (value - low) / (high - low)
            title = f"{name} → {heatmap.columns[column]}: {share(value)}"
            shapes += _cell(left + size * column, y, size, strength=strength, value=value, title=title)
    said = f"{heatmap.what}: rows are query languages, columns passage languages, from {share(low)} to {share(high)}."
    width = left + size * len(names) + overhang
    return Figure(f"{heatmap.system}: {heatmap.what}", said, width, top + size * len(heatmap.rows) + 2, shapes)


def _cell(x: float, y: float, size: float, *, strength: float, value: float, title: str) -> list[Shape]:
    text = f"{value:.2f}"
    short = text[1:] if text.startswith("0.") else text
    css = "on-dark" if strength > _STRONG else "on-light"
    return [
        Box(x + 0.5, y + 0.5, size - 1, size - 1, "heat", title, round(0.06 + 0.94 * strength, 3)),
        Words(x + size / 2, y + size / 2 + 3.5, short, css, "middle"),
    ]
