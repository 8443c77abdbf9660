"""Untrusted lines in, checked JSON objects out; whatever cannot be used is counted and kept, never dropped silently."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import GZIP_MAGIC, disk_errors, refuse_foreign, refuse_pipe
from xqg_vdb.texts import languages

MAX_LINE_BYTES = 16 << 20
MAX_GZIP_RATIO = 100
"""JSON lines of prose shrink 3 to 10 times; what shrinks more than 100 times is a bomb or not text."""
MAX_JSON_BYTES = 256 << 20
"""Of a file that is one JSON array, which is held in memory whole."""
MAX_FIELD_BYTES = 4 << 20
"""Of what a record holds beside texts, as JSON."""
MAX_DEPTH = 32
"""Deepest nesting in a record: the embedded engine cannot reload a payload of about 124 levels after a crash."""

ID_KEYS = ("id", "_id", "docid", "id_")
"""Where an id may stand: ours, BEIR's, the paper's data set's, LlamaIndex's; the first that is there counts."""
TEXT_KEYS = ("text", "content", "contents", "page_content")
"""Where a passage may stand: ours, Haystack's, Pyserini's, LangChain's; the first that is there counts."""
LINE_FEEDS = "end lines by line feeds: tr '\\r' '\\n' < FILE > NEW"

_CONVERT = "convert the file from its encoding: iconv -f ENCODING -t UTF-8 FILE > NEW"
_NUMBERED = "number them: jq -c 'arrays[], strings' FILE | jq -c '{id: \"\\(input_line_number)\", text: .}' > NEW.jsonl"
_BOM = b"\xef\xbb\xbf"
_CONTROLS = frozenset(range(9)) | frozenset(range(14, 32))
_BLANKS = 256  # bytes
_HEAD_BYTES = 1024
_BLOCK = 1 << 16
_RATIO_FREE_BYTES = 16 << 20  # small files may shrink as much as they like
_HEAD_CHARACTERS = 200
_SHOWN = 5
_INNER = ("kwargs", "_source", "payload", "fields", "properties", "__data__", "metadata")  # where stores keep a record
_JSON_GAP = re.compile(r"[\s,\[\]]*")
_LONG_INTEGER = re.compile(rb"-\d{19}|\d{20}")
_KEY = re.compile(rb'"[ \t\r\n]*:')
_NAMES = {
    type(None): "null", bool: "true or false", int: "a number", float: "a fraction", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip
_T = TypeVar("_T")
_V = TypeVar("_V")


class BadRecord(ValueError):
    """A record cannot be used; its text is the reason."""


class Source(NamedTuple):
    r"""Where a record came from: line number from 1, byte offset in the (unpacked) file, without a BOM.

    raw: the line without its ending, or what stands for one where a file has no lines. cut: the size of a line that is
    too long; of it, raw holds the first bytes.
    """

    file: str
    line: int
    offset: int | None
    raw: bytes
    cut: int = 0


Rows = Iterator[tuple[Source, dict[str, Any]]]
"""Records with where they stand."""


def open_lines(path: str | Path, *, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Source]:
    r"""Read the lines of `path`, plain or gzip, split on b"\n" only, without one trailing b"\r" and a leading BOM.

    What a line has over `max_bytes` is never held in memory. Of hundreds of blank lines on end only some come.
    Raises DataError now when `path` is missing, and while reading when gzip data is damaged or unpacks to over
    `MAX_GZIP_RATIO` times its size, and for UTF-16.
    """
    path = Path(path)
    with disk_errors(path):
        if not path.is_fifo():
            open(path, "rb").close()  # now: a generator would report a wrong name only when it is first read
    return _lines(path, max_bytes)


def _lines(path: Path, max_bytes: int) -> Iterator[Source]:
    number, offset = 0, 0
    with disk_errors(path), open(path, "rb") as file:
        try:
            stream = _unpacked(path, file)
            while line := stream.readline(max_bytes + 2):
                number += 1
                if number == 1:
                    refuse_foreign(path, line + stream.peek()[:64])
                if not line.strip() and not (ahead := stream.peek())[:_BLANKS].strip() and len(ahead) >= _BLANKS:
                    run = stream.read(ahead.rfind(b"\n", 0, len(ahead) - len(ahead.lstrip(b" \t\r\n"))) + 1)
                    offset, number = offset + len(line) + len(run) - 1, number + run.count(b"\n")
                    line = b"\n"
                body, size, cut = line.removesuffix(b"\n").removesuffix(b"\r"), len(line), 0
                if len(body) > max_bytes:
                    while not line.endswith(b"\n") and (line := stream.readline(_BLOCK)):
                        size += len(line)
                    body, cut = body[:_HEAD_BYTES], size
                bom = len(_BOM) if offset == 0 and body.startswith(_BOM) else 0
                yield Source(str(path), number, offset + bom, body[bom:], cut)
                offset += size
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is cut short or damaged after line {number} ({error}); fetch it again.") from error


def _unpacked(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    head = file.peek(64)[:64]
    if head[:2] != GZIP_MAGIC:
        if path.suffix.lower() == ".gz" and _CONTROLS & set(head):
            raise gzip.BadGzipFile("it begins as neither gzip nor text does")
        return file
    # its own buffer is small and slow
    return io.BufferedReader(cast(io.RawIOBase, _Unpacker(fileobj=file, mode="rb")), _BLOCK)


class _Unpacker(gzip.GzipFile):
    unpacked = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.unpacked += len(data)
        if self.unpacked > _RATIO_FREE_BYTES:  # a bomb shows here already, long before its end
            packed = cast(io.BufferedReader, self.fileobj)
            done = packed.tell() if packed.seekable() else 0
            if self.unpacked > MAX_GZIP_RATIO * done:
                raise DataError(
                    f"{packed.name} unpacks to over {MAX_GZIP_RATIO} times its size, unlike text; unpack it"
                    " yourself if you trust it."
                )
        return data


class Rejects:
    """Counts what was read from one input: accepted + duplicates + blank + rejected = read, but for the record in hand.

    max_rejects: how many refused records are allowed; one more raises DataError. None: none, and none can be.
    path: JSON-lines file for refused records (file, line, offset, reason, head), replaced at the first of them.
    first: the first refused records: file, line, reason.
    left_out: columns with values that no record can hold, and what those were.
    """

    def __init__(self, max_rejects: int | None = None, path: str | Path | None = None) -> None:
        if (max_rejects or 0) < 0:
            raise ValueError(f"max_rejects must be 0 or more, got {max_rejects}")
        self.max_rejects = max_rejects
        self.path = None if path is None else Path(path)
        self.read = self.accepted = self.duplicates = self.blank = self.rejected = 0
        self.left_out: dict[str, str] = {}
        self.first: list[str] = []

    def refuse_inputs(self, files: Iterable[Path]) -> None:
        """Raise DataError when rejected records would be written over one of `files`."""
        path = self.path if self.path is not None and self.path.exists() else None
        if path is not None and any(file.exists() and file.samefile(path) for file in files):
            raise DataError(f"{path} is an input of this command: give --rejects another file.")

    def reject(self, source: Source, reason: str) -> None:
        """Record that `source` cannot be used. Raises DataError when that is one too many."""
        self.rejected += 1
        if self.path is not None:
            self._write(self.path, source, reason)
        if len(self.first) < _SHOWN:
            self.first.append(f"{source.file} line {source.line}: {reason}")
        if self.rejected > (self.max_rejects or 0):
            more = self.rejected - len(self.first)
            shown = "; ".join(self.first) + (f"; and {more} more" if more else "")
            kept = f" (all in {self.path})" if self.path is not None else ""
            kept += "".join(f"; column {name} was left out: {why}" for name, why in [*self.left_out.items()][:_SHOWN])
            borne = "" if self.max_rejects is None else ", or use --max-rejects to continue without such records"
            raise DataError(f"{shown}{kept}; correct the data{borne}.")

    def counts(self) -> dict[str, int]:
        """Return the five counts by name, for reports."""
        return {name: getattr(self, name) for name in ("read", "accepted", "duplicates", "blank", "rejected")}

    def _write(self, path: Path, source: Source, reason: str) -> None:
        if self.rejected == 1:
            self.refuse_inputs([Path(source.file)])
        head = source.raw[: 4 * _HEAD_CHARACTERS].decode("utf-8", "replace")[:_HEAD_CHARACTERS]
        record = {"file": source.file, "line": source.line, "offset": source.offset, "reason": reason, "head": head}
        with disk_errors(path), open(path, "wb" if self.rejected == 1 else "ab") as file:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def read_sources(path: Path, rejects: Rejects) -> Iterator[Source]:
    """Read the lines of `path` that hold something; blank ones are counted, those over the length limit rejected."""
    last = 0
    for source in open_lines(path):
        rejects.read += source.line - last
        rejects.blank += source.line - last - 1  # of hundreds of blank lines on end not all come
        last = source.line
        if source.cut:
            rejects.reject(source, f"the line has {source.cut:,} bytes, more than may be read at once")
        elif not source.raw.strip():
            rejects.blank += 1
        else:
            yield source


def made(rows: Iterable[tuple[Source, _V]], make: Callable[[_V], _T], rejects: Rejects) -> Iterator[tuple[Source, _T]]:
    """What `make` makes of each row; where it raises BadRecord, the row goes to `rejects`."""
    for source, value in rows:
        try:
            record = make(value)
        except BadRecord as bad:
            said = str(bad)
            if source.offset is None:  # in an array; or a row of Parquet, which jq does not read
                each = said.replace("jq -c '", "jq -c '(arrays[], objects) | ", 1)
                said = each if may_spread(Path(source.file)) else re.sub("; [^;]+jq -c .*", "", said)
            rejects.reject(source, said)
        else:
            yield source, record


def parsed(sources: Iterable[Source], parse: Callable[[bytes], _T], rejects: Rejects) -> Iterator[tuple[Source, _T]]:
    """What `parse` makes of each line, like `made`."""
    return made(((source, source.raw) for source in sources), parse, rejects)


def read_objects(path: Path, rejects: Rejects) -> Rows:
    """Read the JSON objects of a file, with where they stand; malformed ones go to `rejects`.

    One a line; of a file named .json also an array of them, or objects that are spread over lines.
    """
    spread = False
    if may_spread(path):
        refuse_pipe(path)
        line = next((source.raw.strip() for source in open_lines(path) if source.raw.strip()), b"")
        spread = line.startswith(b"[") or line == b"{"
    return parsed(_spread_sources(path, rejects) if spread else read_sources(path, rejects), parse_object, rejects)


def may_spread(path: Path) -> bool:
    """Whether a file's name allows an array, or objects that are spread over lines."""
    return ".json" in [suffix.lower() for suffix in path.suffixes[-2:]]


def read_whole(path: Path, *, most: int = MAX_JSON_BYTES) -> str:
    """The text of a file that is read at once. Raises DataError like `open_lines`, and for more than `most` bytes."""
    held, size = [], 0
    for source in open_lines(path, max_bytes=most):
        size += source.cut or len(source.raw) + 1
        if size > most:
            raise DataError(f"{path} is over {most:,} bytes; make JSON lines of it: jq -c '.[]' FILE > NEW.")
        held.append(source.raw.removeprefix(_BOM))
    try:
        return b"\n".join(held).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); {_CONVERT}.") from None


def _spread_sources(path: Path, rejects: Rejects) -> Iterator[Source]:
    text, decoder = read_whole(path), json.JSONDecoder()
    at, line, before, opened = 0, 1, 0, 0
    while True:
        gap = cast(re.Match[str], _JSON_GAP.match(text, at))
        at, opened = gap.end(), opened + gap[0].count("[") - gap[0].count("]")
        line, before = line + text.count("\n", before, at), at
        if at == len(text):
            break
        try:
            _, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} line {line}: not JSON ({str(error)[:100]}); correct the file.") from None
        rejects.read += 1
        yield Source(str(path), line, None, text[at:end].encode())
        at = end
    if opened:
        raise DataError(f"{path} ends within its array, as a file does that was cut short: fetch it again.")


# What may stand in a record.


def decoded(raw: bytes) -> str:
    """The text of a line, without the BOM of files that were joined. Raises BadRecord when it is not UTF-8."""
    try:
        return raw.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of the line; {_CONVERT}") from None


def line_of(raw: bytes) -> str:
    """The text of a line. Raises BadRecord like `decoded`, and where lines end with carriage returns alone."""
    if "\r" in (text := decoded(raw)).strip():
        raise BadRecord(f"a carriage return within the line; {LINE_FEEDS}")
    return text


def text_lines(path: str | Path, parse: Callable[[bytes], str] = decoded) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers. DataError, with the line, for what cannot be used."""
    sources = read_sources(Path(path), rejects := Rejects())
    return ((source.line, text) for source, text in parsed(sources, parse, rejects) if text.strip())


def hash64(data: bytes) -> int:
    """64 bits that tell one id or content from another."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse the JSON object on one line.

    Raises BadRecord for what JSON forbids (NaN, 1e999, lone surrogates, bytes that are not UTF-8, a second value) and
    for what would bite later: repeated keys, NUL characters, nesting deeper than `MAX_DEPTH`.
    """
    try:
        record = orjson.loads(raw.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        decoded(raw)
        hint = "; write null for NaN and Infinity" if b"NaN" in raw or b"Infinity" in raw else ""
        hint = "; name a file whose objects are spread over lines .json" if raw.strip() in (b"{", b"[") else hint
        hint = f"; {LINE_FEEDS}" if b"\r" in raw else hint
        raise BadRecord(f"not JSON: {error}{hint}") from None
    if not isinstance(record, dict):
        hints: dict[type, str] = {list: "; name a file that is an array .json", str: f"; {_NUMBERED}"}
        raise BadRecord(f"a JSON object was expected, not {_name_of(record)}{hints.get(type(record), '')}")
    if len(raw) > MAX_FIELD_BYTES:  # before each value is looked at
        size = len(orjson.dumps({key: value for key, value in record.items() if not isinstance(value, str)}))
        if size > MAX_FIELD_BYTES:
            raise BadRecord(f"its fields take {size:,} bytes, more than {MAX_FIELD_BYTES:,} beside its texts")
    # orjson keeps the last of two equal keys, and makes fractions of long integers; text may look like either
    if len(_KEY.findall(raw)) > check_record(record) or _LONG_INTEGER.search(raw):
        json.loads(raw, object_pairs_hook=_refuse_repeated_keys, parse_int=_refuse_long_integer)
    return record


def _refuse_long_integer(digits: str) -> int:
    if not -(2**63) <= int(digits) < 2**63:
        raise BadRecord(f"an integer of more than 64 bits (write it as text): {digits[:30]}")
    return 0


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRecord(f"key {key[:80]!r} appears twice")
        seen.add(key)


def check_record(record: Mapping[str, Any], depth: int = 1) -> int:
    """Count the keys of a record, all levels. Raises BadRecord that names the key whose value cannot be stored."""
    keys = len(record)
    for key, value in record.items():
        try:
            keys += check_value(key) + check_value(value, depth)
        except BadRecord as bad:
            raise BadRecord(f"{bad}, under {key[:80]!r}") from None
    return keys


def check_value(value: Any, depth: int = 0) -> int:
    """Count the keys in a JSON value, all levels. Raises BadRecord when it could not be stored and read back."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadRecord("a NUL character in a string")
        return 0
    if depth >= MAX_DEPTH:
        raise BadRecord(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return len(value) + sum(check_value(key) + check_value(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return sum(check_value(item, depth + 1) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(f"{value} is not a number that can be stored")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadRecord("an integer of more than 64 bits (write it as text)")
    if not isinstance(value, int | float | None):
        raise BadRecord(f"a value of type {type(value).__name__} cannot be stored as JSON")
    return 0


def key_of(record: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The first of `keys` that holds something. Raises BadRecord, with what is there instead."""
    for key in keys:
        if record.get(key) is not None:
            return key
    found = ", ".join(repr(key[:40]) for key in list(record)[:5]) or "nothing"
    one_of = f" (expected one of the keys {', '.join(keys)})" if len(keys) > 1 else ""
    raise BadRecord(f"no {keys[0]}{one_of}; found {found}{_what_to_type(record)}")


def _what_to_type(record: Mapping[str, Any]) -> str:
    """What makes records of those that lie in this one, or of one that lacks an id alone; "" where nothing is known."""
    if any(isinstance(record.get(key), str) for key in (*TEXT_KEYS, "question", "query")):
        return "; number them: jq -c '.' FILE | jq -c '. + {id: \"\\(input_line_number)\"}' > NEW.jsonl"
    if inner := next((key for key in _INNER if isinstance(record.get(key), dict)), ""):
        way = inner if inner == "kwargs" else f"{inner} + {{id: (._id // .id // .uuid)}}"
        return f"; make records of what lies in {inner}: jq -c '.{way}' FILE > NEW.jsonl"
    if record and all(isinstance(of, str) and re.search(r"\d", key) for key, of in record.items()):
        return "; make lines of its ids and texts: jq -c 'to_entries[] | {id: .key, text: .value}' FILE > NEW.jsonl"
    places = {_step(key): of for key, of in record.items()}
    inside = {way + _step(key): of[key] for way, of in places.items() if isinstance(of, dict) for key in of}
    for way, of in {**places, ".": record, **inside}.items():
        parts = of if isinstance(of, list) else [*of.values()] if isinstance(of, dict) else []
        if parts and all(isinstance(part, dict) for part in parts):
            way += "[].__data__" if "__data__" in parts[0] else "[]"  # LlamaIndex's nodes, SQuAD's articles
            way += ".paragraphs[] | {id: .qas[0].id, text: .context}" if "paragraphs" in parts[0] else ""
            return f"; make lines of what it lists: jq -c '{way}' FILE > NEW.jsonl"
    return ""


def _step(key: str) -> str:
    return f".{key}" if key.isidentifier() and key.isascii() else f".{json.dumps(key)}"


def record_id(record: Mapping[str, Any], keys: tuple[str, ...] = ID_KEYS) -> str:
    """Return the id as text; integers are spelled out. Raises BadRecord when it is missing, blank or no id."""
    key = key_of(record, keys)
    if isinstance(record[key], dict) and "$oid" in record[key]:
        raise BadRecord(f"{key} is an object of MongoDB's; write jq -c '.{key} |= .\"$oid\"' FILE > NEW.jsonl")
    return str(record[key]) if type(record[key]) is int else text_of(record, key, kind="text or a whole number")


def text_of(record: Mapping[str, Any], key: str, *, kind: str = "text") -> str:
    """Return the text under `key`. Raises BadRecord when it is missing, no text, or shows nothing."""
    value = record[key_of(record, (key,))]
    if not isinstance(value, str):
        raise BadRecord(f"{key} must be {kind}, not {_name_of(value)}")
    if not has_content(value):
        raise BadRecord(f"{key} is blank")
    return value


def language_of(value: Any) -> str:
    """Normalise a language code from a record, `und` for null. Raises BadRecord when it is none."""
    if not isinstance(value, str | None):
        raise BadRecord(f"a language code must be text, not {_name_of(value)}")
    try:
        return languages.normalized(value)
    except DataError as error:
        raise BadRecord(str(error).rstrip(".")) from None


def has_content(text: str) -> bool:
    """Tell whether anything would show: not only spaces, control characters, and others without ink."""
    return any(shown[0].isprintable() for shown in languages.SHOWN.finditer(text))


def _name_of(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def expect(what: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise DataError where what a caller gives is of another kind; True and False are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{what} must be {wanted}, found {value!r:.80}.")


def listed(texts: Iterable[Any], what: str = "texts") -> list[Any]:
    """The texts as a list. Raises DataError for a bare string, which is a list of letters, and for what is no list."""
    if isinstance(texts, str):
        raise DataError(f"Give a list of {what}, not one: [{texts[:40]!r}].")
    expect(what, texts, Iterable, "a list")
    return list(texts)
