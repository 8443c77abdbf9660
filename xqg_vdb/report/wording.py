"""Numbers and untrusted names as the text of a cell, the same in every kind of report.

In: numbers of the records, names out of data files. Out: short strings without control characters. This file knows no
table, and escapes nothing: that is the business of whoever writes HTML or Markdown.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xqg_vdb.bench.records import Ends

NOTHING = "–"
"""A cell without a value."""

LEVELS = (0.001, 0.01, 0.05)
"""Three stars, two stars, one star."""

_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
# Overrides and isolates make a reader see other text than the file holds; single left-to-right marks do not.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NO_XML = frozenset("\ufffe\uffff")


def share(value: float) -> str:
    """Return a share with three decimals, `0.617`."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign, `+0.038`."""
    return f"{value:+.3f}"


def interval(ends: Ends, *, sign: bool = False) -> str:
    """Return `0.580 to 0.650`, with signs for intervals of differences."""
    if ends is None:
        return NOTHING
    low, high = ((signed(end) if sign else share(end)) for end in ends)
    return f"{low} to {high}"


def p_value(p: float | None) -> str:
    """Return `0.012`, `<0.001`, or a dash for None."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float | None) -> str:
    """Return `***` below 0.001, `**` below 0.01, `*` below 0.05, else nothing."""
    return "" if p is None else "*" * sum(p < level for level in LEVELS)


def number(value: float) -> str:
    """Return a setting in as few digits as it needs, `0.35`."""
    return f"{value:.4g}"


def effect(value: float | None) -> str:
    """Return an effect size with two decimals, or a dash for None."""
    return NOTHING if value is None else f"{value:.2f}"


def seconds(value: float) -> str:
    """Return seconds with one decimal, or as whole seconds from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def fact(value: Any) -> str:
    """Return a fact of the environment, a recipe or a dataset as one line; `facts` takes nested ones apart."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(fact, value)) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {fact(one)}" for name, one in value.items()) or NOTHING
    return str(value)


def listed(names: Iterable[str]) -> str:
    """Return the names with commas between, or a dash; names in Arabic or Hebrew letters stay in their order."""
    joined = ", ".join(names)
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in joined):
        joined = joined.replace(", ", ", \N{LEFT-TO-RIGHT MARK}")
    return joined or NOTHING


def facts(nested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) pairs; names of inner mappings follow the outer one's after a dot: `machine.cpu`."""
    found: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            found += [(f"{name}.{inner}", text) for inner, text in facts(value)]
        else:
            found.append((str(name), fact(value)))
    return found


def clean(text: str) -> str:
    """Replace what is no visible text: control characters (terminal escapes too), lone surrogates, text reordering.

    Newlines and tabs become spaces.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if character in _REORDERING or character in _NO_XML or unicodedata.category(character) in ("Cc", "Cs"):
        return _NO_TEXT
    return character


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two for wide East Asian characters, none for marks."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, limit: int) -> str:
    """Return the text, or its beginning with an ellipsis when it is wider than `limit` columns."""
    if width(text) <= limit:
        return text
    kept, used = "", 0
    for character in text:
        used += _columns(character)
        if used > limit - 1:
            break
        kept += character
    return kept + "…"
