"""Curves over a parameter (α, λ, number of queries) and the chart of what happens when a language is left out.

In: sweeps of one dataset, metric and parameter. Out: `Figure`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xqg_vdb.bench.records import Point, Sweep
from xqg_vdb.report.bars import colour
from xqg_vdb.report.shapes import Curve, Dot, Figure, Line, Scale, Shape, Words, round_ticks, spread, text_width
from xqg_vdb.report.tables import PARAMETERS, setting
from xqg_vdb.report.wording import cut, number, share, signed

WIDTH = 360.0
_HEIGHT = 260.0
_LEFT, _TOP, _BOTTOM = 40.0, 12.0, 40.0
_LABEL = 11.0
_MOST_LABELS = 18
_LABEL_LIMIT = 10
_ROW = 18.0


def curve_figure(sweeps: Sequence[Sweep], *, keys: Mapping[str, int]) -> Figure:
    """Draw sweeps with numbers for x: one thick line a system, and each group thin when there is one system only."""
    lines = [_Track(one.system, colour(keys[one.system]), _ordered(one.points)) for one in sweeps]
    thin = _group_tracks(sweeps[0]) if len(sweeps) == 1 else []
    right = 12 + max((text_width(_label(track, keys)) for track in [*lines, *thin]), default=0.0)
    everything = [(x, y) for track in [*lines, *thin] for x, y in track.points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    across = Scale(min(xs), max(xs), _LEFT, WIDTH - right)
    up = _padded(min(ys), max(ys), first=_HEIGHT - _BOTTOM, last=_TOP)
    shapes = _axes(sweeps[0], across, up, xs=sorted(set(xs)))
    for track in thin:
        shapes.append(Curve([(across(x), up(y)) for x, y in track.points], f"thin {track.css}", track.name))
    for track in lines:
        shapes += _thick(track, across, up)
    shapes += _end_labels([*lines, *thin], across, up, keys=keys)
    said = "; ".join(f"{one.system}: {_course(one)}" for one in sweeps)
    return Figure(f"{sweeps[0].metric} over {sweeps[0].parameter}", said, WIDTH, _HEIGHT, shapes)


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
    return str(keys[track.name]) if track.css else cut(track.name, _LABEL_LIMIT)


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
        shapes.append(Words(_LEFT - 6, up(tick) + 3.5, number(tick), "soft", "end"))
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
    height = _TOP + 4 + _ROW * len(names) + 34
    across = _padded(min(values), max(values), first=left + 4, last=WIDTH - 92)
    shapes: list[Shape] = []
    for tick in round_ticks(across.low, across.high, most=4):
        shapes.append(Line(across(tick), _TOP, across(tick), height - 34, "grid"))
        shapes.append(Words(across(tick), height - 22, number(tick), "soft", "middle"))
    if reference is not None:
        shapes.append(Line(across(reference), _TOP, across(reference), height - 34, "reference"))
    for row, (point, name) in enumerate(zip(sweep.points, names, strict=True)):
        shapes += _left_out_row(point, name, across, y=_TOP + 4 + _ROW * (row + 0.5), left=left, reference=reference)
    caption = sweep.metric if reference is None else f"{sweep.metric}; line: nothing left out, {share(reference)}"
    shapes.append(Words(WIDTH / 2, height - 5, caption, "soft", "middle"))
    said = "; ".join(f"{setting(point.x)} {share(point.value)}" for point in sweep.points)
    return Figure(f"{sweep.metric} with one part left out", said, WIDTH, height, shapes)


def _left_out_row(
    point: Point, name: str, across: Scale, *, y: float, left: float, reference: float | None
) -> list[Shape]:
    told = share(point.value) + ("" if reference is None else f" ({signed(point.value - reference)})")
    shapes: list[Shape] = [] if reference is None else [Line(across(reference), y, across(point.value), y, "lead")]
    shapes.append(Words(left, y + 3.5, name, "value", "end", title=setting(point.x)))
    shapes.append(Dot(across(point.value), y, 4, "dot s1", f"{setting(point.x)}: {told}"))
    shapes.append(Words(WIDTH, y + 3.5, told, "value", "end"))
    return shapes
