"""The figures of a report as SVG: differences with intervals, and curves over a parameter.

In: records. Out: markup in user units (1 unit is 1 CSS pixel at the figure's natural width) whose classes are those of
`report.css`. Every name is cleaned and escaped here; `tip` is what a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from xqg_vdb.evaluate.records import Compared, Difference, Point, Sweep
from xqg_vdb.evaluate.report import tables
from xqg_vdb.evaluate.report.tables import clean, cut, number, share, signed


def _safe(text: str) -> str:
    return escape(clean(text))


def _figure(title: str, description: str, size: tuple[float, float], shapes: Iterable[str]) -> str:
    """A drawing with its name and a sentence for those who cannot see it."""
    head = f'<svg viewBox="0 0 {size[0]:.1f} {size[1]:.1f}" xmlns="http://www.w3.org/2000/svg" role="img"'
    said = f"<title>{_safe(title)}</title>", f"<desc>{_safe(description)}</desc>"
    return "\n".join([f'{head} width="{size[0]:.0f}">', *said, *shapes, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _curve(points: Iterable[tuple[float, float]], css: str, tip: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{places}"><title>{_safe(tip)}</title></polyline>'


def _text(x: float, y: float, text: str, css: str, anchor: str = "start", *, tip: str = "") -> str:
    title = f"<title>{_safe(tip)}</title>" if tip else ""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{_safe(text)}</text>'


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


# Differences to the baseline: a dot and its interval for the mean and each group (language), beside a zero line.

_NAMES, _DOTS, _DOTS_WIDTH = 112.0, 286.0, 340.0
_ROW = 17.0


def difference_panels(compared: Sequence[Compared]) -> list[str]:
    """Return one panel a comparison, all on one scale that holds zero."""
    ends = [end for each in compared for d in _rows(each).values() for end in (d.difference, *(d.interval or ()))]
    across = scale(min([0.0, *ends]), max([0.0, *ends]), _NAMES, _DOTS)
    ticks = round_ticks(min([0.0, *ends]), max([0.0, *ends]), most=4)
    return [_panel(each, across, ticks) for each in compared]


def _rows(compared: Compared) -> dict[str, Difference]:
    """The mean first, under a name that no group has."""
    return {"\0": compared.macro, **compared.groups}


def _panel(compared: Compared, across: Callable[[float], float], ticks: Sequence[float]) -> str:
    rows, labels = _rows(compared), {"\0": "mean", **tables.labels_of(compared.groups)}
    top, bottom = 24.0, 24.0 + _ROW * len(rows)
    title = f"{compared.system} against {compared.baseline}"
    shapes = [_text(0, 12, cut(title, 52), "name", tip=title)]
    for tick in dict.fromkeys((0.0, *ticks)):
        shapes.append(_line(across(tick), top, across(tick), bottom, "grid" if tick else "zero"))
        shapes.append(_text(across(tick), bottom + 14, signed(tick) if tick else "0", "soft", "middle"))
    for place, (name, gap) in enumerate(rows.items()):
        middle = top + _ROW * (place + 0.5)
        tip = f"{labels[name]}: {_said(gap)}, n = {gap.n}"
        shapes.append(_text(0, middle + 3.5, cut(labels[name], 19), "value" if place else "name", tip=labels[name]))
        if gap.interval is not None:
            low, high = (across(end) for end in gap.interval)
            shapes.append(_line(low, middle, high, middle, "whisker"))
        css = "better" if tables.gain(gap, compared.metric) > 0 else "worse"
        css = css if tables.stars(tables.corrected(gap)) else "unsure"
        dot = f'cx="{across(gap.difference):.1f}" cy="{middle:.1f}" r="{3.6 if place else 4.8}"'
        shapes.append(f'<circle class="{css}" {dot}><title>{_safe(tip)}</title></circle>')
        shapes.append(_text(_DOTS_WIDTH, middle + 3.5, signed(gap.difference), "value", "end"))
    said = "; ".join(f"{labels[name]} {_said(gap)}" for name, gap in rows.items())
    return _figure(f"{title}: difference in {compared.metric}", said, (_DOTS_WIDTH, bottom + 20), shapes)


def _said(gap: Difference) -> str:
    sure = "sure" if tables.stars(tables.corrected(gap)) else "not sure"
    ends = "" if gap.interval is None else f" ({tables.interval(gap.interval, sign=True)})"
    return f"{signed(gap.difference)}{ends}, {sure}"


# Curves over a parameter: α, λ, number of queries.

CURVES_WIDTH, _HEIGHT = 360.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 330.0, 12.0, 220.0


def curve_figure(sweeps: Sequence[Sweep], *, keys: Mapping[str, int]) -> str:
    """Draw sweeps with numbers for x: one thick line a system, and each group thin when there is one system only."""
    lines = {sweep.system: _ordered([(point.x, point.value) for point in sweep.points]) for sweep in sweeps}
    names = dict.fromkeys(name for point in sweeps[0].points for name in point.groups) if len(sweeps) == 1 else ()
    thin = {name: _ordered((p.x, p.groups[name]) for p in sweeps[0].points if name in p.groups) for name in names}
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
    name = tables.parameter_name(sweeps[0])
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
    said = "; ".join(f"{sweep.system}: {_course(sweep)}" for sweep in sweeps)
    return _figure(f"{sweeps[0].metric} over {sweeps[0].parameter}", said, (CURVES_WIDTH, _HEIGHT), shapes)


def _ordered(points: Iterable[tuple[float | str, float]]) -> list[tuple[float, float]]:
    return sorted((float(x), y) for x, y in points)


def _course(sweep: Sweep) -> str:
    first, last, best = sweep.points[0], sweep.points[-1], best_point(sweep)
    ends = f"{share(first.value)} at {number(first.x)}, {share(last.value)} at {number(last.x)}"
    return f"{ends}, highest {share(best.value)} at {number(best.x)}"


def best_point(sweep: Sweep) -> Point:
    """Return the point with the highest value, the first of equals."""
    return max(sweep.points, key=lambda point: point.value)
