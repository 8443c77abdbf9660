"""What a figure is made of: lines, boxes, dots and words at places, to be written as SVG by a template.

In: numbers in user units (1 unit is 1 CSS pixel at the figure's natural width). Out: frozen shapes. This file knows no
report; `css` names classes of `report.css`, `title` is what a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from xqg_vdb.evaluate.records import HeatMap, Point, Result, Sweep, Value
from xqg_vdb.evaluate.report.tables import PARAMETERS, cut, groups_of, interval, number, setting, share, signed, width

CHARACTER = 6.2
"""Mean width of a character of the figures' 11-unit text."""


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    kind: ClassVar[str] = "line"
    x1: float
    y1: float
    x2: float
    y2: float
    css: str


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; opacity None leaves it to the style sheet."""

    kind: ClassVar[str] = "box"
    x: float
    y: float
    width: float
    height: float
    css: str
    title: str = ""
    opacity: float | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A circle around a point."""

    kind: ClassVar[str] = "dot"
    x: float
    y: float
    radius: float
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points joined by straight lines."""

    kind: ClassVar[str] = "curve"
    points: Sequence[tuple[float, float]]
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Text at a point; anchor is SVG's (start, middle, end), rotate in degrees about the point."""

    kind: ClassVar[str] = "words"
    x: float
    y: float
    text: str
    css: str
    anchor: str = "start"
    rotate: float = 0.0
    title: str = ""


Shape = Line | Box | Dot | Curve | Words


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its name and a sentence for those who cannot see it."""

    title: str
    description: str
    width: float
    height: float
    shapes: Sequence[Shape]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps low..high to the places first..last."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Return the place of `value`; the middle when the scale has no extent."""
        if self.high == self.low:
            return (self.first + self.last) / 2
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


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
    previous = low - gap
    for index in order:
        previous = moved[index] = max(places[index], previous + gap)
    following = high + gap
    for index in reversed(order):
        following = moved[index] = min(moved[index], following - gap)
    return moved


def text_width(text: str) -> float:
    """Return about how many units a text takes."""
    return CHARACTER * width(text)


# Bars with intervals: for each group (language) a small panel with one bar a system, all on one scale.

BARS_WIDTH = 300.0
_BARS_LEFT, _BARS_RIGHT = 20.0, 44.0
_BARS_TOP, _BARS_BOTTOM = 22.0, 18.0
_BARS_ROW, _BAR = 16.0, 10.0
_TITLE_LIMIT = 32


def bar_panels(results: Sequence[Result], *, keys: Mapping[str, int]) -> list[Figure]:
    """Return one panel a group; `keys` numbers the systems as the legend does (from 1)."""
    scale = Scale(0.0, _top_of(results), _BARS_LEFT, BARS_WIDTH - _BARS_RIGHT)
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
    height = _BARS_TOP + _BARS_ROW * len(there) + _BARS_BOTTOM
    shapes: list[Shape] = [Words(0, 13, cut(name, _TITLE_LIMIT), "name", title=name)]
    counts = sorted({one.groups[name].n for one in there})
    shapes.append(
        Words(BARS_WIDTH, 13, "n = " + "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), "soft", "end")
    )
    shapes += _axis(scale, height)
    for row, one in enumerate(there):
        shapes += _bar(one, name, key=keys[one.system], scale=scale, middle=_BARS_TOP + _BARS_ROW * (row + 0.5))
    said = "; ".join(f"{one.system} {_said(one.groups[name])}" for one in there)
    return Figure(f"{name}: {there[0].metric}", said, BARS_WIDTH, height, shapes)


def _axis(scale: Scale, height: float) -> list[Shape]:
    bottom = height - _BARS_BOTTOM
    shapes: list[Shape] = []
    for tick in (0.0, scale.high / 2, scale.high):
        x = scale(tick)
        shapes.append(Line(x, _BARS_TOP, x, bottom, "axis" if tick == 0 else "grid"))
        shapes.append(Words(x, height - 6, number(tick), "soft", "middle"))
    return shapes


def _bar(result: Result, name: str, *, key: int, scale: Scale, middle: float) -> list[Shape]:
    value = result.groups[name]
    end = scale(max(value.value, 0.0))
    title = f"{result.system}, {name}: {_said(value)}, n = {value.n}"
    shapes: list[Shape] = [
        Words(_BARS_LEFT - 5, middle + 3.5, str(key), "key", "end"),
        Box(_BARS_LEFT, middle - _BAR / 2, end - _BARS_LEFT, _BAR, f"bar {colour(key)}", title),
        Words(BARS_WIDTH, middle + 3.5, share(value.value), "value", "end"),
    ]
    if value.interval is not None:
        low, high = (scale(max(end, 0.0)) for end in value.interval)
        shapes.append(Line(low, middle, high, middle, "whisker"))
        shapes += [Line(x, middle - 2.5, x, middle + 2.5, "whisker") for x in (low, high)]
    return shapes


def _said(value: Value) -> str:
    return share(value.value) if value.interval is None else f"{share(value.value)} ({interval(value.interval)})"


# Curves over a parameter (α, λ, number of queries) and the chart of what happens when a language is left out.

CURVES_WIDTH = 360.0
_HEIGHT = 260.0
_CURVES_LEFT, _CURVES_TOP, _CURVES_BOTTOM = 40.0, 12.0, 40.0
_LABEL = 11.0
_MOST_LABELS = 18
_CURVES_LABEL_LIMIT = 10
_CURVES_ROW = 18.0


def curve_figure(sweeps: Sequence[Sweep], *, keys: Mapping[str, int]) -> Figure:
    """Draw sweeps with numbers for x: one thick line a system, and each group thin when there is one system only."""
    lines = [_Track(one.system, colour(keys[one.system]), _ordered(one.points)) for one in sweeps]
    thin = _group_tracks(sweeps[0]) if len(sweeps) == 1 else []
    right = 12 + max((text_width(_label(track, keys)) for track in [*lines, *thin]), default=0.0)
    everything = [(x, y) for track in [*lines, *thin] for x, y in track.points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    across = Scale(min(xs), max(xs), _CURVES_LEFT, CURVES_WIDTH - right)
    up = _padded(min(ys), max(ys), first=_HEIGHT - _CURVES_BOTTOM, last=_CURVES_TOP)
    shapes = _axes(sweeps[0], across, up, xs=sorted(set(xs)))
    for track in thin:
        shapes.append(Curve([(across(x), up(y)) for x, y in track.points], f"thin {track.css}", track.name))
    for track in lines:
        shapes += _thick(track, across, up)
    shapes += _end_labels([*lines, *thin], across, up, keys=keys)
    said = "; ".join(f"{one.system}: {_course(one)}" for one in sweeps)
    return Figure(f"{sweeps[0].metric} over {sweeps[0].parameter}", said, CURVES_WIDTH, _HEIGHT, shapes)


class _Track:
    """The points of one line, ordered by x."""

    def __init__(self, name: str, css: str, points: Sequence[tuple[float, float]]) -> None:
        self.name, self.css, self.points = name, css, points


def _ordered(points: Sequence[Point], group: str | None = None) -> list[tuple[float, float]]:
    chosen = [point for point in points if not isinstance(point.x, str) and (group is None or group in point.groups)]
    return sorted((float(point.x), point.value if group is None else point.groups[group]) for point in chosen)


def _group_tracks(sweep: Sweep) -> list[_Track]:
    names = dict.fromkeys(name for point in sweep.points for name in point.groups)
    return [_Track(name, "", _ordered(sweep.points, name)) for name in names]


def _label(track: _Track, keys: Mapping[str, int]) -> str:
    return str(keys[track.name]) if track.css else cut(track.name, _CURVES_LABEL_LIMIT)


def _course(sweep: Sweep) -> str:
    best = best_point(sweep)
    first, last = sweep.points[0], sweep.points[-1]
    ends = f"{share(first.value)} at {setting(first.x)}, {share(last.value)} at {setting(last.x)}"
    return f"{ends}, highest {share(best.value)} at {setting(best.x)}"


def best_point(sweep: Sweep) -> Point:
    """Return the point with the highest value, the first of equals."""
    return max(sweep.points, key=lambda point: point.value)


def _padded(low: float, high: float, *, first: float, last: float) -> Scale:
    room = max((high - low) * 0.06, 0.005)
    return Scale(low - room, high + room, first, last)


def _axes(sweep: Sweep, across: Scale, up: Scale, *, xs: Sequence[float]) -> list[Shape]:
    shapes: list[Shape] = []
    for tick in round_ticks(up.low, up.high, most=6):
        shapes.append(Line(across.first, up(tick), across.last, up(tick), "grid"))
        shapes.append(Words(_CURVES_LEFT - 6, up(tick) + 3.5, number(tick), "soft", "end"))
    ticks = xs if len(xs) <= 6 and sweep.parameter == "n" else round_ticks(across.low, across.high, most=7)
    for tick in ticks:
        shapes.append(Line(across(tick), up.first, across(tick), up.first + 4, "axis"))
        shapes.append(Words(across(tick), up.first + 16, number(tick), "soft", "middle"))
    shapes.append(Line(across.first, up.first, across.last, up.first, "axis"))
    name = PARAMETERS.get(sweep.parameter, sweep.parameter)
    shapes.append(Words((across.first + across.last) / 2, _HEIGHT - 6, cut(name, 48), "soft", "middle", title=name))
    return shapes


def _thick(track: _Track, across: Scale, up: Scale) -> list[Shape]:
    places = [(across(x), up(y), x, y) for x, y in track.points]
    shapes: list[Shape] = [Curve([(x, y) for x, y, _, _ in places], f"thick {track.css}", track.name)]
    for x, y, setting_, value in places:
        shapes.append(Dot(x, y, 2.5, f"dot {track.css}", f"{track.name}: {share(value)} at {number(setting_)}"))
    return shapes


def _end_labels(tracks: Sequence[_Track], across: Scale, up: Scale, *, keys: Mapping[str, int]) -> list[Shape]:
    """Name the lines at their right ends, moved apart; of very many lines only the thick ones."""
    named = tracks if len(tracks) <= _MOST_LABELS else [track for track in tracks if track.css]
    ends = [up(track.points[-1][1]) for track in named]
    places = spread(ends, gap=_LABEL, low=up.last + 4, high=up.first - 2)
    shapes: list[Shape] = []
    for track, end, place in zip(named, ends, places, strict=True):
        shapes.append(Line(across.last + 1, end, across.last + 7, place, "lead"))
        css = "key" if track.css else "soft"
        shapes.append(Words(across.last + 9, place + 3.5, _label(track, keys), css, title=track.name))
    return shapes


def left_out_figure(sweep: Sweep, *, reference: float | None) -> Figure:
    """Draw one row a setting (`without sw`), a dot at its value, and a line at `reference`, the value with all."""
    values = [point.value for point in sweep.points] + ([] if reference is None else [reference])
    names = [cut(setting(point.x), 22) for point in sweep.points]
    left = 10 + max(map(text_width, names))
    height = _CURVES_TOP + 4 + _CURVES_ROW * len(names) + 34
    across = _padded(min(values), max(values), first=left + 4, last=CURVES_WIDTH - 92)
    shapes: list[Shape] = []
    for tick in round_ticks(across.low, across.high, most=4):
        shapes.append(Line(across(tick), _CURVES_TOP, across(tick), height - 34, "grid"))
        shapes.append(Words(across(tick), height - 22, number(tick), "soft", "middle"))
    if reference is not None:
        shapes.append(Line(across(reference), _CURVES_TOP, across(reference), height - 34, "reference"))
    for row, (point, name) in enumerate(zip(sweep.points, names, strict=True)):
        shapes += _left_out_row(
            point, name, across, y=_CURVES_TOP + 4 + _CURVES_ROW * (row + 0.5), left=left, reference=reference
        )
    caption = sweep.metric if reference is None else f"{sweep.metric}; line: nothing left out, {share(reference)}"
    shapes.append(Words(CURVES_WIDTH / 2, height - 5, caption, "soft", "middle"))
    said = "; ".join(f"{setting(point.x)} {share(point.value)}" for point in sweep.points)
    return Figure(f"{sweep.metric} with one part left out", said, CURVES_WIDTH, height, shapes)


def _left_out_row(
    point: Point, name: str, across: Scale, *, y: float, left: float, reference: float | None
) -> list[Shape]:
    told = share(point.value) + ("" if reference is None else f" ({signed(point.value - reference)})")
    shapes: list[Shape] = [] if reference is None else [Line(across(reference), y, across(point.value), y, "lead")]
    shapes.append(Words(left, y + 3.5, name, "value", "end", title=setting(point.x)))
    shapes.append(Dot(across(point.value), y, 4, "dot s1", f"{setting(point.x)}: {told}"))
    shapes.append(Words(CURVES_WIDTH, y + 3.5, told, "value", "end"))
    return shapes


# The heat map of query language by passage language.

NARROW = 360.0
_LEAST, _MOST = 22.0, 44.0
_HEAT_LABEL_LIMIT = 14
_STRONG = 0.73
"""From here on light text is easier to read on the light page's blue than dark text."""


def heat_figure(heatmap: HeatMap) -> Figure:
    """Draw the cells with their values; wider than a phone when there are many columns (the page then scrolls it)."""
    names = [cut(name, _HEAT_LABEL_LIMIT) for name in heatmap.columns]
    left = 8 + max((text_width(cut(name, _HEAT_LABEL_LIMIT)) for name in heatmap.rows), default=0.0)
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
        shapes.append(Words(left - 4, y + size / 2 + 3.5, cut(name, _HEAT_LABEL_LIMIT), "value", "end", title=name))
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
