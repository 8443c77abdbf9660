"""The figures of a report as SVG: bars with intervals, curves over a parameter, heat maps of languages.

In: records. Out: markup in user units (1 unit is 1 CSS pixel at the figure's natural width) whose classes are those of
`report.css`. Every name is cleaned and escaped here; `tip` is what a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from xqg_vdb.evaluate.records import HeatMap, Point, Result, Sweep, Value
from xqg_vdb.evaluate.report.tables import (
    clean,
    cut,
    groups_of,
    interval,
    number,
    parameter_name,
    setting,
    share,
    width,
)

CHARACTER = 6.2
"""Mean width of a character of the figures' 11-unit text."""


def _safe(text: str) -> str:
    return escape(clean(text))


def _figure(title: str, description: str, size: tuple[float, float], shapes: Iterable[str]) -> str:
    """A drawing with its name and a sentence for those who cannot see it."""
    head = f'<svg viewBox="0 0 {size[0]:.1f} {size[1]:.1f}" xmlns="http://www.w3.org/2000/svg" role="img"'
    said = f"<title>{_safe(title)}</title>", f"<desc>{_safe(description)}</desc>"
    return "\n".join([f'{head} style="--w:{size[0]:.0f}px">', *said, *shapes, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(x: float, y: float, size: tuple[float, float], css: str, tip: str, *, opacity: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect class="{css}" {place}{opacity}><title>{_safe(tip)}</title></rect>'


def _curve(points: Iterable[tuple[float, float]], css: str, tip: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{places}"><title>{_safe(tip)}</title></polyline>'


def _text(
    x: float, y: float, text: str, css: str, anchor: str = "start", *, slanted: bool = False, tip: str = ""
) -> str:
    turned = f' transform="rotate(-45 {x:.1f} {y:.1f})"' if slanted else ""
    title = f"<title>{_safe(tip)}</title>" if tip else ""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{title}{_safe(text)}</text>'


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Map low..high to the places first..last; everything to the middle when there is no extent."""
    if high == low:
        return lambda value: (first + last) / 2
    return lambda value: first + (value - low) / (high - low) * (last - first)


def round_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Return at most `most` round numbers (1, 2 or 5 times a power of ten apart) that lie within low..high."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        return [low]  # also where steps would be lost in the rounding of floats
    exponent = math.floor(math.log10((high - low) / most))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(place * step, 12) for place in range(first, last + 1)]
    return [low, high]


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: the places in the same order, at least `gap` apart and within low..high if there is room."""
    order = sorted(range(len(places)), key=places.__getitem__)
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    moved = list(places)
    previous, following = low - gap, high + gap
    for index in order:
        previous = moved[index] = max(places[index], previous + gap)
    for index in reversed(order):
        following = moved[index] = min(moved[index], following - gap)
    return moved


def colour(key: int) -> str:
    """Return the style sheet's class of a system's colour; eight colours, then again."""
    return f"s{(key - 1) % 8}"


# Bars with intervals: for each group (language) a small panel with one bar a system, all on one scale.

BARS_WIDTH = 300.0
_BARS_LEFT, _BARS_RIGHT = 20.0, 44.0
_BARS_TOP, _BARS_BOTTOM = 22.0, 18.0
_BARS_ROW, _BAR = 16.0, 10.0


def bar_panels(results: Sequence[Result], *, keys: Mapping[str, int]) -> list[str]:
    """Return one panel a group; `keys` numbers the systems as the legend does (from 1)."""
    # the next tenth above every value and interval, so that low shares can be told apart
    ends = [max([value.value, *(value.interval or ())]) for one in results for value in one.groups.values()]
    top = max(0.1, math.ceil(max(ends, default=1.0) * 10 - 1e-9) / 10)
    return [_panel(name, [one for one in results if name in one.groups], keys, top) for name in groups_of(results)]


def _panel(name: str, results: Sequence[Result], keys: Mapping[str, int], top: float) -> str:
    across = scale(0.0, top, _BARS_LEFT, BARS_WIDTH - _BARS_RIGHT)
    bottom = _BARS_TOP + _BARS_ROW * len(results)
    counts = [one.groups[name].n for one in results]
    told = "–".join(map(str, sorted({min(counts), max(counts)})))
    shapes = [_text(0, 13, cut(name, 32), "name", tip=name), _text(BARS_WIDTH, 13, f"n = {told}", "soft", "end")]
    for tick in (0.0, top / 2, top):
        shapes.append(_line(across(tick), _BARS_TOP, across(tick), bottom, "grid" if tick else "axis"))
        shapes.append(_text(across(tick), bottom + _BARS_BOTTOM - 6, number(tick), "soft", "middle"))
    for row, one in enumerate(results):
        value, middle, key = one.groups[name], _BARS_TOP + _BARS_ROW * (row + 0.5), keys[one.system]
        tip = f"{one.system}, {name}: {_said(value)}, n = {value.n}"
        size = across(max(value.value, 0.0)) - _BARS_LEFT, _BAR
        shapes.append(_text(_BARS_LEFT - 5, middle + 3.5, str(key), "key", "end"))
        shapes.append(_box(_BARS_LEFT, middle - _BAR / 2, size, f"bar {colour(key)}", tip))
        shapes.append(_text(BARS_WIDTH, middle + 3.5, share(value.value), "value", "end"))
        if value.interval is not None:
            low, high = (across(max(end, 0.0)) for end in value.interval)
            shapes.append(_line(low, middle, high, middle, "whisker"))
            shapes += [_line(x, middle - 2.5, x, middle + 2.5, "whisker") for x in (low, high)]
    said = "; ".join(f"{one.system} {_said(one.groups[name])}" for one in results)
    return _figure(f"{name}: {results[0].metric}", said, (BARS_WIDTH, bottom + _BARS_BOTTOM), shapes)


def _said(value: Value) -> str:
    return share(value.value) if value.interval is None else f"{share(value.value)} ({interval(value.interval)})"


# Curves over a parameter: α, λ, number of queries.

CURVES_WIDTH, _HEIGHT = 360.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 330.0, 12.0, 220.0


def curve_figure(sweeps: Sequence[Sweep], *, keys: Mapping[str, int]) -> str:
    """Draw sweeps with numbers for x: one thick line a system, and each group thin when there is one system only."""
    lines = {one.system: _ordered([(point.x, point.value) for point in one.points]) for one in sweeps}
    thin = _groups(sweeps[0]) if len(sweeps) == 1 else {}
    xs, ys = zip(*(place for line in (*lines.values(), *thin.values()) for place in line), strict=True)
    room = max((max(ys) - min(ys)) * 0.06, 0.005)
    low, high = min(ys) - room, max(ys) + room
    across, up = scale(min(xs), max(xs), _LEFT, _RIGHT), scale(low, high, _BOTTOM, _TOP)
    shapes = []
    for tick in round_ticks(low, high, most=6):
        shapes.append(_line(_LEFT, up(tick), _RIGHT, up(tick), "grid"))
        shapes.append(_text(_LEFT - 6, up(tick) + 3.5, number(tick), "soft", "end"))
    few = len(set(xs)) <= 6 and sweeps[0].parameter == "n"
    for tick in sorted(set(xs)) if few else round_ticks(min(xs), max(xs), most=7):
        shapes.append(_line(across(tick), _BOTTOM, across(tick), _BOTTOM + 4, "axis"))
        shapes.append(_text(across(tick), _BOTTOM + 16, number(tick), "soft", "middle"))
    shapes.append(_line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"))
    name = parameter_name(sweeps[0])
    shapes.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, cut(name, 48), "soft", "middle", tip=name))
    shapes += [_curve([(across(x), up(y)) for x, y in line], "thin", group) for group, line in thin.items()]
    # numbers of the systems at the right ends
    labels = spread([up(line[-1][1]) for line in lines.values()], gap=11.0, low=_TOP + 4, high=_BOTTOM - 2)
    for (system, line), label in zip(lines.items(), labels, strict=True):
        css = colour(keys[system])
        shapes.append(_curve([(across(x), up(y)) for x, y in line], f"thick {css}", system))
        for x, y in line:
            tip = _safe(f"{system}: {share(y)} at {number(x)}")
            place = f'cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.5"'
            shapes.append(f'<circle class="dot {css}" {place}><title>{tip}</title></circle>')
        shapes.append(_line(_RIGHT + 1, up(line[-1][1]), _RIGHT + 7, label, "lead"))
        shapes.append(_text(_RIGHT + 9, label + 3.5, str(keys[system]), "key", tip=system))
    said = "; ".join(f"{one.system}: {_course(one)}" for one in sweeps)
    return _figure(f"{sweeps[0].metric} over {sweeps[0].parameter}", said, (CURVES_WIDTH, _HEIGHT), shapes)


def _ordered(points: Iterable[tuple[float | str, float]]) -> list[tuple[float, float]]:
    return sorted((float(x), y) for x, y in points)


def _groups(sweep: Sweep) -> dict[str, list[tuple[float, float]]]:
    names = dict.fromkeys(name for point in sweep.points for name in point.groups)
    return {name: _ordered((p.x, p.groups[name]) for p in sweep.points if name in p.groups) for name in names}


def _course(sweep: Sweep) -> str:
    first, last, best = sweep.points[0], sweep.points[-1], best_point(sweep)
    ends = f"{share(first.value)} at {setting(first.x)}, {share(last.value)} at {setting(last.x)}"
    return f"{ends}, highest {share(best.value)} at {setting(best.x)}"


def best_point(sweep: Sweep) -> Point:
    """Return the point with the highest value, the first of equals."""
    return max(sweep.points, key=lambda point: point.value)


# The heat map of query language by passage language.

_STRONG = 0.73
"""From here on light text is easier to read on the light page's blue than dark text."""


def heat_figure(heatmap: HeatMap) -> str:
    """Draw the cells with their values; wider than a phone when there are many columns (the page then scrolls it)."""
    names, rows = ([cut(name, 14) for name in several] for several in (heatmap.columns, heatmap.rows))
    left = 8 + CHARACTER * max(map(width, rows), default=0)
    size = min(44.0, max(22.0, (360.0 - left) / max(len(names), 1)))
    longest = CHARACTER * max(map(width, names), default=0)
    slanted = longest > size - 2
    top = longest * 0.75 + 12 if slanted else 18.0
    cells = [value for row in heatmap.values for value in row]
    low, high = min([0.0, *cells]), max(cells, default=1.0)
    shapes = []
    for column, (name, whole) in enumerate(zip(names, heatmap.columns, strict=True)):
        anchor = "start" if slanted else "middle"
        shapes.append(_text(left + size * (column + 0.5), top - 5, name, "value", anchor, slanted=slanted, tip=whole))
    for row, (name, values) in enumerate(zip(heatmap.rows, heatmap.values, strict=True)):
        y = top + size * row
        shapes.append(_text(left - 4, y + size / 2 + 3.5, rows[row], "value", "end", tip=name))
        for column, value in enumerate(values):
            x, strength = left + size * column, 0.0 if high == low else (value - low) / (high - low)
            tip = f"{name} → {heatmap.columns[column]}: {share(value)}"
            opacity = f' fill-opacity="{0.06 + 0.94 * strength:.3f}"'
            shapes.append(_box(x + 0.5, y + 0.5, (size - 1, size - 1), "heat", tip, opacity=opacity))
            css, text = "on-dark" if strength > _STRONG else "on-light", f"{value:.2f}"
            shapes.append(_text(x + size / 2, y + size / 2 + 3.5, text.removeprefix("0"), css, "middle"))
    said = f"{heatmap.what}: rows are query languages, columns passage languages, from {share(low)} to {share(high)}."
    whole_size = left + size * len(names) + (longest * 0.7 if slanted else 0.0), top + size * len(heatmap.rows) + 2
    return _figure(f"{heatmap.system}: {heatmap.what}", said, whole_size, shapes)
