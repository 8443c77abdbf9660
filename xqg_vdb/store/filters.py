"""Which passages a search may find: conditions on their fields, in a short form or as Qdrant's own `models.Filter`.

The short form is a dict of fields: a value, a list of values of which one is enough, None for a field that is missing
or empty, or a dict of `gt`, `gte`, `lt`, `lte` (numbers or dates) and `not` (a value or a list). A field that holds a
list matches when one of its values does. Dots lead into objects: `author.name`; a name with a dot is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import ValidationError
from qdrant_client import models

from xqg_vdb.errors import DataError

_BOUNDS = ("gt", "gte", "lt", "lte")
_COMPARED = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_TYPED = re.compile(r"\s*([^=<>!]+?)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*")
_PART = r'"[^"\\]+"|[^."\\]+'
_PATH = re.compile(rf"(?:{_PART})(?:\.(?:{_PART}))*")
_PLAIN = re.compile(r"[\w-]+(\[\d*\])?")


def as_filter(where: Any) -> models.Filter:
    """Qdrant's filter for the short form; its own as it is. Raises DataError for anything else."""
    if isinstance(where, models.Filter):
        return _sendable(where)
    if not isinstance(where, Mapping) or not where:
        raise DataError(
            "where must be a dict of fields, such as {'source': 'wiki', 'year': {'gte': 2020}}, or a"
            f" qdrant_client.models.Filter; found {where!r:.80}."
        )
    must: list[Any] = []
    must_not: list[Any] = []
    for field, wanted in where.items():
        path = payload_path(field)
        if not isinstance(wanted, Mapping):
            must.append(equal(path, wanted))
            continue
        if not wanted or wanted.keys() - {*_BOUNDS, "not"}:
            raise DataError(f"where[{field!r}] must have gt, gte, lt, lte or not; found {list(wanted)!r:.80}.")
        if "not" in wanted:
            must_not.append(equal(path, wanted["not"]))
        if bounds := {name: wanted[name] for name in _BOUNDS if name in wanted}:
            must.append(between(path, bounds))
    return _sendable(models.Filter(must=must or None, must_not=must_not or None))


def _sendable(where: models.Filter) -> models.Filter:
    """The filter, if it can be sent: in JSON, NaN and infinity become null, which is no bound at all."""
    try:
        json.dumps(where.model_dump(exclude_none=True), default=str, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"where has a number or a text that no field can have ({error}).") from error
    return where


def payload_path(field: Any) -> str:
    """Where a passage's field lies in its payload; as Qdrant writes paths. Raises DataError for what is no field."""
    if not isinstance(field, str) or not _PATH.fullmatch(field):
        raise DataError(f"{field!r:.80} names no field of a passage; write source, author.name or '\"a.b\"'.")
    parts = re.findall(_PART, field)
    if parts[0] == "meta" and len(parts) > 1:
        parts = parts[1:]
    elif parts in (["id"], ["content"], ["text"]):
        return "id" if parts == ["id"] else "content"
    quoted = [part if part[0] == '"' or _PLAIN.fullmatch(part) else f'"{part}"' for part in parts]
    return ".".join(["meta", *quoted])


def equal(path: str, wanted: Any) -> models.Condition:
    """A field with this value, or with one of these. Raises DataError for values that no field is compared with."""
    values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
    words = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if type(value) is int and abs(value) < 1 << 63]
    matches: list[Any] = [models.MatchAny(any=same) for same in (words, numbers) if same]
    matches += [models.MatchValue(value=value) for value in values if isinstance(value, bool)]
    conditions: list[Any] = [models.FieldCondition(key=path, match=match) for match in matches]
    for value in values:
        if value is None:
            conditions.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=path)))
        elif isinstance(value, float | date) or (type(value) is int and value not in numbers):
            conditions.append(between(path, {"gte": value, "lte": value}))
        elif not isinstance(value, str | int):
            raise DataError(f"{path} is compared with text, numbers, true, false, dates or None, not {value!r:.80}.")
    if not conditions:
        raise DataError(f"{path}: an empty list of values would find nothing; give one, or leave the field out.")
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def between(path: str, bounds: Mapping[str, Any]) -> models.FieldCondition:
    """A field within numbers or dates. Raises DataError for other bounds."""
    if None in bounds.values():  # to the engine, no bound at all
        raise DataError(f"{path} is compared with None: give a number or a date, or leave the bound out.")
    numeric = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds.values())
    try:
        range_type = models.Range if numeric else models.DatetimeRange
        plain: dict[str, Any] = {
            name: bound.isoformat() if type(bound) is date else bound for name, bound in bounds.items()
        }
        return models.FieldCondition(key=path, range=range_type(**plain))
    except ValidationError as error:
        raise DataError(
            f"{path} is compared with numbers or with dates such as 2026-01-31, not {dict(bounds)!r:.80}."
        ) from error


def parse_where(typed: Iterable[str]) -> dict[str, Any] | None:
    """The short form of `source=wiki`, `year>=2020`, `tenant!=acme`, `note=` (missing); None of nothing.

    One field's values that stand after several `=` are alternatives. Raises DataError for anything else.
    """
    where: dict[str, Any] = {}
    for text in typed:
        match = _TYPED.fullmatch(text)
        if match is None:
            raise DataError(f"{text!r} is no condition: write source=wiki, year>=2020, tenant!=acme or note=.")
        field, sign, value = match.groups()
        if sign in _COMPARED:
            _as_dict(where, field)[_COMPARED[sign]] = _number(value)
        elif sign == "!=":
            _as_dict(where, field).setdefault("not", []).extend(_readings(value))
        elif isinstance(where.setdefault(field, []), list):
            where[field] += _readings(value)
        else:
            raise DataError(f"{text!r}: {field} has a bound already, and cannot be equal to something as well.")
    return where or None


def _as_dict(where: dict[str, Any], field: str) -> dict[str, Any]:
    wanted: Any = where.setdefault(field, {})
    if not isinstance(wanted, dict):
        raise DataError(f"{field} is equal to something already, and cannot have a bound as well.")
    return wanted


def _readings(value: str) -> Sequence[Any]:
    """What a typed value may stand for in a payload."""
    if not value:
        return [None]
    number = _number(value)
    readings: list[Any] = [value] if isinstance(number, str) else [value, number]
    return [*readings, value == "true"] if value in ("true", "false") else readings


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
