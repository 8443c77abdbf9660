"""What a figure is made of: lines, boxes, dots and words at places, to be written as SVG by a template.

In: numbers in user units (1 unit is 1 CSS pixel at the figure's natural width). Out: frozen shapes. This file knows no
report; `css` names classes of `report.css`, `title` is what a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xqg_vdb.report.wording import width

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
