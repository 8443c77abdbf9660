"""The errors that reach a user: one root, few children, each with the exit code of the command line.

Every message is one sentence or two that say what was expected, what was found, and what to type next.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata

LONGEST_REASON = 4000  # bytes of a body in which an error's page has its title
_REASONS = ("error", "errors", "message", "Message", "detail", "msg", "title")
_TITLE = re.compile(r"<title[^<>]*>\s*([^<>]*\w[^<>]*)</title", re.IGNORECASE)
_NO_ROOM = re.compile("(?:not|to) allocate|bad_alloc|ory allocation|MemoryErr|new thread|thread pool|shared object$")
_SHOWN = frozenset("\u00ad\u061c\u200c\u200d\u200e\u200f")  # of the format characters; others turn a line round


def printable(text: str) -> str:
    """A stranger's text on one line of a terminal: no escape sequence, line break or overriding direction acts."""
    kinds = {char: unicodedata.category(char) for char in set(text)}
    return "".join(
        " " if kinds[char] in ("Cc", "Zl", "Zp") else "" if kinds[char] == "Cf" and char not in _SHOWN else char
        for char in text
    )


def one_line(text: str) -> str:
    """The start of a text that somebody else wrote, safe to print."""
    return " ".join(printable(text).split())[:300]


def told_in(body: bytes) -> str:
    """What a server's answer says of an error, on one line: of a page its title; empty when it says nothing."""
    text = body[:LONGEST_REASON].decode(errors="replace")
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return one_line(html.unescape(page[1]) if (page := _TITLE.search(text)) else text)
    place = ""
    while isinstance(record, dict | list) and record:
        if isinstance(record, list):
            record = record[0]
            continue
        if isinstance(record.get("loc"), list):  # FastAPI's: where in the body
            place = ".".join(map(str, record["loc"])) + ": "
        record = next((record[key] for key in _REASONS if record.get(key)), str(record))
    return one_line(place + str(record))


def redacted(text: str, key: str) -> str:
    """`text` without any piece of the key that has eight characters or more, or without all of a shorter key."""
    size = min(len(key), 8)
    pieces = {key[at : at + size] for at in range(len(key) - size + 1)} - {""}
    hidden = {at + i for at in range(len(text)) if text[at : at + size] in pieces for i in range(size)}
    return re.sub("\0+", "***", "".join("\0" if at in hidden else text[at] for at in range(len(text))))


def reason(error: BaseException) -> str:
    """What another library says in one line: the first line of the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    first = " ".join(line.strip() for line in lines[: 2 if lines and lines[0].endswith(":") else 1])
    return printable(first)[:250].rstrip(".") if lines else type(error).__name__


class XqgError(Exception):
    """Root of all errors that this package raises on purpose; its text is meant for the user."""

    exit_code = 1


def no_room(error: BaseException) -> XqgError | None:
    """The error for memory or threads that there are not enough of; None where another library means something else."""
    if isinstance(error, XqgError) or not _NO_ROOM.search(f"{type(error).__name__}: {error}"):
        return None
    return XqgError(
        f"There is not enough memory, or too few processes are allowed ({reason(error)}): close other programs or raise"
        " the limit, then run the same command again; what was committed is kept."
    )


class DataError(XqgError):
    """A corpus, query or question file is missing, empty or malformed."""

    exit_code = 3


class ModelError(XqgError):
    """A model folder or checkpoint is missing, damaged or of a kind that cannot be used."""

    exit_code = 3


class MissingExtra(XqgError):
    """A feature needs packages that an extra of this package installs."""

    exit_code = 3


class MismatchError(XqgError):
    """Two things that must belong together do not: encoder and collection, recipe and data, export and original."""

    exit_code = 4


class ServerError(XqgError):
    """A Qdrant server (or another endpoint) is away, or refused a request for good."""

    exit_code = 5


class DiskError(XqgError):
    """The disk is full, or a path may not be written."""

    exit_code = 6


class LockedError(XqgError):
    """Another process (or another handle in this one) uses the store."""

    exit_code = 7


class CorruptError(XqgError):
    """A store or file of ours is damaged."""

    exit_code = 8
