"""Long documents into chunks: passages whose id is the document's, `#` and a number, and whose `span` says where.

Cuts are counted in the encoder's own tokens and fall on the end of a sentence where one is near, else between words,
else between characters, so that Chinese and Thai need no blanks.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError
from xqg_vdb.texts.records import has_content
from xqg_vdb.types import Passage

_SETTING = re.compile(r"(\d{1,6})(?::(\d{1,6}))?")
_LEAST = 16  # tokens
_BORDERS = (
    re.compile(r"\n\s*|[.!?][\"'”’»)\]]*\s+|[。！？｡؟۔।॥።។။]+[”’」』»)]*\s*"),  # of sentences
    re.compile(r"\s+"),
)
_JOINED = frozenset("\u200d\ufe0e\ufe0f\u0e33\u0eb3")  # belong to what stands before them, as marks do
_ABOUT_A_TOKEN = re.compile(r"[0-9A-Za-z\u00c0-\u024f]{1,4}|[^\s0-9A-Za-z\u00c0-\u024f]{1,2}")


def chunk_setting(text: str) -> tuple[int, int]:
    """TOKENS[:OVERLAP]: tokens of a chunk, and how many of them it shares with the next. Raises DataError."""
    found = _SETTING.fullmatch(text)
    tokens, overlap = (int(number or 0) for number in found.groups()) if found else (0, 0)
    if tokens < _LEAST or 2 * overlap > tokens:
        raise DataError(
            f"--chunk is TOKENS or TOKENS:OVERLAP, such as 200:40, of {_LEAST} tokens or more and with an overlap of at"
            f" most half of them, not {text[:40]!r}."
        )
    return tokens, overlap


def splitter(encoder: TextEncoder, setting: str) -> Callable[[Passage], Sequence[Passage]]:
    """What makes the chunks of a document. Raises DataError for more tokens than the encoder reads."""
    tokens, overlap = chunk_setting(setting)
    if tokens > (most := _room(encoder, "")):
        raise DataError(
            f"--chunk {setting}: {encoder.facts.source} reads {most} tokens of a passage; give at most {most}."
        )
    return partial(_chunks, encoder, tokens, overlap)


def _chunks(encoder: TextEncoder, tokens: int, overlap: int, document: Passage) -> list[Passage]:
    room, text = tokens, document.text
    if document.title:  # it is encoded with every chunk; one that leaves no room for text is cut off, and told
        room = max(min(tokens, _room(encoder, document.title + " ")), tokens // 2)
    starts = [start for start, _ in _spans(encoder, text)] or [0]
    made: list[Passage] = []
    for start, end in _cuts(text, starts, room, min(overlap, room // 2 - 1)):
        if has_content(text[start:end]):
            inside = text[start:end].strip()
            start = text.index(inside, start)
            span = start, start + len(inside)
            made.append(replace(document, id=f"{document.id}#{len(made)}", text=inside, span=span))
    return made


def _room(encoder: TextEncoder, title: str) -> int:
    """Tokens that are left for a text after special tokens, the prefix and a title."""
    before, most = encoder.facts.passage_prefix + title, getattr(encoder, "most_tokens", None)
    return (most or encoder.facts.max_length) - (len(_spans(encoder, before)) + 1 if before else 0)


def _spans(encoder: TextEncoder, text: str) -> Sequence[tuple[int, int]]:
    """Where its tokens lie; estimated, at two to four characters each, for an encoder that has no tokenizer here."""
    if getattr(encoder, "most_tokens", None) is None:
        return [found.span() for found in _ABOUT_A_TOKEN.finditer(text)]
    spans: list[list[tuple[int, int]]] = getattr(encoder, "token_spans")([text])  # noqa: B009 - few encoders have it
    return spans[0]


def _cuts(text: str, starts: Sequence[int], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Where chunks begin and end; starts: where each token begins."""
    begin = 0
    while (first := bisect_left(starts, begin)) + room < len(starts):
        latest = max(starts[first + room], begin + 1)
        end = _last_border(text, max(starts[first + room // 2], begin + 1), latest)
        yield begin, end
        shared = starts[max(bisect_left(starts, end) - overlap, first + 1)] if overlap else end
        begin = max(_first_border(text, shared, end), begin + 1)
    yield begin, len(text)


def _last_border(text: str, earliest: int, latest: int) -> int:
    for kind in _BORDERS:
        if ends := [found.end() for found in kind.finditer(text, earliest, latest)]:
            return ends[-1]
    return next((at for at in range(latest, earliest, -1) if not _is_inside(text, at)), latest)


def _first_border(text: str, start: int, end: int) -> int:
    for kind in _BORDERS:
        found = kind.search(text, max(start - 1, 0), end)
        if found is not None and found.end() < end:
            return found.end()
    return next((at for at in range(start, end) if not _is_inside(text, at)), end)


def _is_inside(text: str, at: int) -> bool:
    """Whether a cut here would part what is read as one character."""
    before, after = text[at - 1 : at], text[at : at + 1]
    return bool(before and after) and (after in _JOINED or before == "\u200d" or unicodedata.category(after)[0] == "M")
