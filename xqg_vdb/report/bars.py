"""Bars with intervals: for each group (language) a small panel with one bar a system, all on one scale.

In: the results on one dataset by one metric. Out: `Figure`s, one a group, for the page to lay out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from xqg_vdb.bench.records import Result, Value
from xqg_vdb.report.shapes import Box, Figure, Line, Scale, Shape, Words
from xqg_vdb.report.tables import groups_of
from xqg_vdb.report.wording import cut, interval, number, share

WIDTH = 300.0
_LEFT, _RIGHT = 20.0, 44.0
_TOP, _BOTTOM = 22.0, 18.0
_ROW, _BAR = 16.0, 10.0
_TITLE_LIMIT = 32


def bar_panels(results: Sequence[Result], *, keys: Mapping[str, int]) -> list[Figure]:
    """Return one panel a group; `keys` numbers the systems as the legend does (from 1)."""
    scale = Scale(0.0, _top_of(results), _LEFT, WIDTH - _RIGHT)
    return [_panel(name, results, keys=keys, scale=scale) for name in groups_of(results)]


def colour(key: int) -> str:
    """Return the style sheet's class of a system's colour; eight colours, then again."""
    return f"s{(key - 1) % 8}"


def _top_of(results: Sequence[Result]) -> float:
    """The end of the scale: the next tenth above every value and interval, so that low shares can be told apart."""
    ends = [_high(value) for one in results for value in one.groups.values()]
    return max(0.1, math.ceil(max(ends, default=1.0) * 10 - 1e-9) / 10)


def _high(value: Value) -> float:
    return value.value if value.interval is None else max(value.value, value.interval[1])


def _panel(name: str, results: Sequence[Result], *, keys: Mapping[str, int], scale: Scale) -> Figure:
    there = [one for one in results if name in one.groups]
    height = _TOP + _ROW * len(there) + _BOTTOM
    shapes: list[Shape] = [Words(0, 13, cut(name, _TITLE_LIMIT), "name", title=name)]
    counts = sorted({one.groups[name].n for one in there})
    shapes.append(Words(WIDTH, 13, "n = " + "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), "soft", "end"))
    shapes += _axis(scale, height)
    for row, one in enumerate(there):
        shapes += _bar(one, name, key=keys[one.system], scale=scale, middle=_TOP + _ROW * (row + 0.5))
    said = "; ".join(f"{one.system} {_said(one.groups[name])}" for one in there)
    return Figure(f"{name}: {there[0].metric}", said, WIDTH, height, shapes)


def _axis(scale: Scale, height: float) -> list[Shape]:
    bottom = height - _BOTTOM
    shapes: list[Shape] = []
    for tick in (0.0, scale.high / 2, scale.high):
        x = scale(tick)
        shapes.append(Line(x, _TOP, x, bottom, "axis" if tick == 0 else "grid"))
        shapes.append(Words(x, height - 6, number(tick), "soft", "middle"))
    return shapes


def _bar(result: Result, name: str, *, key: int, scale: Scale, middle: float) -> list[Shape]:
    value = result.groups[name]
    end = scale(max(value.value, 0.0))
    title = f"{result.system}, {name}: {_said(value)}, n = {value.n}"
    shapes: list[Shape] = [
        Words(_LEFT - 5, middle + 3.5, str(key), "key", "end"),
        Box(_LEFT, middle - _BAR / 2, end - _LEFT, _BAR, f"bar {colour(key)}", title),
        Words(WIDTH, middle + 3.5, share(value.value), "value", "end"),
    ]
    if value.interval is not None:
        low, high = (scale(max(end, 0.0)) for end in value.interval)
        shapes.append(Line(low, middle, high, middle, "whisker"))
        shapes += [Line(x, middle - 2.5, x, middle + 2.5, "whisker") for x in (low, high)]
    return shapes


def _said(value: Value) -> str:
    return share(value.value) if value.interval is None else f"{share(value.value)} ({interval(value.interval)})"
