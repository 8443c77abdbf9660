"""Passages and questions in, one at a time, from JSON, Parquet, TSV, CSV and folders of them; and the shipped sample.

Memory grows by 24 to 48 bytes a record (to know duplicates), never by texts. What cannot be used goes to `Rejects`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.resources import files
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors, refuse_foreign
from xqg_vdb.progress import windows
from xqg_vdb.texts import languages
from xqg_vdb.texts.records import (
    ID_KEYS,
    TEXT_KEYS,
    BadRecord,
    Rejects,
    Rows,
    check_record,
    has_content,
    hash64,
    key_of,
    language_of,
    line_of,
    made,
    parse_object,
    parsed,
    read_objects,
    read_sources,
    record_id,
    text_of,
)
from xqg_vdb.texts.tables import Records, read_parquet, read_table, table_rows, written
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage, Question

_WINDOW = 256  # passages whose languages are detected together
_NOT_META = frozenset({"title", "lang", "meta", "generated_queries"})
_CORPUS_NAMES = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.tsv", "corpus.tsv.gz")
_NO_CORPUS = ("queries", "query", "questions", "topics", "qrels")
_MAX_PASSAGE_BYTES = (1 << 20) - 4096
"""As JSON; the store takes a MiB, and the languages of the queries come in beside it."""
_ESCAPED = 6  # characters of JSON that one may take
_LISTED = re.compile(  # numbers, letters, marks before each line; cells of a table without its name
    r"\s*(?:[\"'(\[]?[qQ]?(\d{1,9})(?:[\"')\]]*\s*[.．、:：,;|)]\s*|\s+)|[-*#•–—·◦▪●○►‣]\s+|[a-zA-Z][.)]\s+)\S"
)
_ONE_NUMBERED = re.compile(r"\s*(?:1[.)]|[qQ]1\s*[.):])\s+\S")  # a file of one line
_QUESTION_KEYS = ("text", "question", "query")
QUESTION_IDS = (*ID_KEYS, "qid", "query_id", "question_id")
_COLUMNS = {*_QUESTION_KEYS, *QUESTION_IDS, "questions", "queries", "lang", "language", "answer", "answers"}
_Text = TypeVar("_Text", Passage, Question)


def read_corpus(
    path: str | Path, *more: Path, rejects: Rejects | None = None, default_lang: str | None = None,
    detect: bool = True, title_only: bool = False, whole: bool = True,
) -> Iterator[Passage]:  # fmt: skip
    """Read passages from a `.jsonl`, `.json`, `.tsv`, `.csv` (also `.gz`) or `.parquet` file, or a folder of such.

    more: further ones of the same corpus. rejects: counts, and how many bad records to allow; None stops at the first.
    default_lang: language of records that name none; None asks detection, or gives `und` where `detect` is off.
    title_only: the title of a record without text is its text, as BEIR encodes it; else there is nothing to use.
    whole: refuse what is too large for one point.

    An id seen before with equal content is skipped and counted; with other content it is rejected. Raises DataError at
    once when the path is missing or of an unknown kind, and at the end when there was no passage at all.
    """
    inputs = [file for one in (path, *more) for file in files_of(Path(one))]
    fallback = None if default_lang is None else languages.normalize(default_lang)
    rejects = Rejects() if rejects is None else rejects
    rows = chain.from_iterable(_reader(file)(file, rejects) for file in inputs)
    make = _titled_passage if title_only else _passage if whole else _document
    passages = _distinct(rows, make, rejects)
    some = _not_none(
        passages, rejects, f"{path} holds no passage that can be used", 'lines such as {"id": "1", "text": "…"}'
    )
    return with_languages(some, fallback, detect)


def read_questions(path: str | Path, *, rejects: Rejects | None = None) -> list[Question]:
    """Read questions: JSON (`.jsonl`, `.json`), tables (`.tsv`, `.csv`, `.parquet`), or text with one question a line.

    Records hold an id, `text`, `question` or `query`, and perhaps `lang`; a table of two columns may do without a
    header. Files of other names are JSON lines or text as their first line shows; ids of text are its line numbers.
    Raises DataError when there is no question, or more bad records than `rejects` allows.
    """
    path, rejects = Path(path), Rejects() if rejects is None else rejects
    kind = "" if path.is_fifo() else suffix_of(path)
    if kind in (".tsv", ".csv"):
        rows = read_table(path, rejects, ids=QUESTION_IDS, texts=_QUESTION_KEYS)
    else:
        rows = READERS.get(kind, _by_first_line)(path, rejects)
    expected = "one a line, as text or as JSON with id and text"
    return list(_not_none(_distinct(rows, _question, rejects), rejects, f"{path} holds no question", expected))


def files_of(path: Path) -> list[Path]:
    """List the files to read in order: `path` itself, or a folder's `corpus.*`, its `shard_*`, or all of one kind."""
    with disk_errors(path):
        if not path.is_dir():
            path.stat()
            _reader(path)
            return [path]
        inside = sorted(p for p in path.iterdir() if p.is_file())
    corpus = [p for p in inside if p.name.lower() in _CORPUS_NAMES]
    shards = [p for p in inside if p.name.startswith("shard_")]
    return corpus[:1] or sorted(shards or _of_one_kind(path, inside), key=lambda p: (len(p.name), p.name))


def _of_one_kind(folder: Path, inside: list[Path]) -> list[Path]:
    kinds: dict[str, list[Path]] = {}
    for file in inside:
        if not file.name.startswith((".", "_")) and suffix_of(file) in READERS:
            kinds.setdefault(suffix_of(file), []).append(file)
    if len(kinds) > 1:
        kinds.pop(".json", None)  # what describes the others
    chosen = next(iter(kinds.values()), [])
    other = next((file.name for file in chosen if file.name.lower().startswith(_NO_CORPUS)), None)
    if len(kinds) != 1 or other is not None:
        below = next((f"only folders such as {entry.name}" for entry in folder.iterdir() if entry.is_dir()), "")
        found = f"{other} beside them" if other else " and ".join(kinds) or below or "no file that can be read"
        raise DataError(
            f"{folder} holds neither corpus.jsonl nor shard_*.jsonl nor passages of one kind only, but {found}; give"
            " the corpus file itself."
        )
    return chosen


READERS: Mapping[str, Callable[[Path, Rejects], Rows]] = {
    ".jsonl": read_objects,
    ".json": read_objects,
    ".ndjson": read_objects,
    ".tsv": read_table,
    ".csv": read_table,
    ".parquet": read_parquet,
}


def suffix_of(path: Path) -> str:
    """What kind a file is by its name, in lower case, without `.gz`."""
    name = path.name.lower()
    return Path(name if name.endswith(".parquet.gz") else name.removesuffix(".gz")).suffix


def _reader(path: Path) -> Callable[[Path, Rejects], Rows]:
    if path.is_fifo():
        return read_objects  # a shell's <(command) has no name to go by
    if suffix_of(path) not in READERS:
        with disk_errors(path), open(path, "rb") as file:
            refuse_foreign(path, file.read(64))
        raise DataError(
            f"{path} is not a corpus by its name; expected .jsonl, .json, .tsv, .csv (each with .gz, too) or .parquet."
        )
    return READERS[suffix_of(path)]


def _by_first_line(path: Path, rejects: Rejects) -> Rows:
    """JSON lines or text, as the first line shows; in text, ids stand before a tab, or are the line numbers."""
    sources = read_sources(path, rejects)
    for first in sources:
        raw, lines = first.raw.lstrip(), chain([first], sources)
        if re.match(rb"[\[<]|---|- \w+:|\w+:\s*\Z|\w+\s*=\s*[\"'\[]", raw):
            said = "write one question a line, or name it by its kind: .json, .jsonl, .tsv, .csv, .parquet"
            raise DataError(f"{path} holds no lines of text; {said}.")
        if raw.startswith(b"{"):
            yield from parsed(lines, parse_object, rejects)
        elif b"\t" in raw:
            yield from table_rows(lines, "\t", rejects, ids=QUESTION_IDS, texts=_QUESTION_KEYS)
        else:
            heads = [first, *islice(sources, 2)]
            lines_of_text = [source.raw.decode("utf-8", "replace") for source in heads]
            if _is_list(lines_of_text) or (len(heads) == 1 and _ONE_NUMBERED.match(lines_of_text[0])):
                raise DataError(
                    f"{path} is a list with numbers or marks; write a number, a tab and the question a line."
                )
            if set(re.split(r"\s*[,;|]\s*", lines_of_text[0].strip().lower())) <= _COLUMNS:
                raise DataError(f"{path} begins with names of columns: name it .csv or .tsv, or take that line out.")
            for source, text in parsed(chain(heads, sources), _plain_text, rejects):
                yield source, {"id": source.line, "text": text}


def _is_list(lines: list[str]) -> bool:
    """Whether lines begin with a mark each, or with numbers in order."""
    found = [_LISTED.match(line) for line in lines]
    numbers = [int(match[1]) for match in found if match and match[1]]
    consecutive = numbers == list(range(numbers[0], numbers[0] + len(lines))) if numbers else False
    return len(lines) > 1 and all(found) and (consecutive or not numbers)


def _plain_text(raw: bytes) -> str:
    if (text := line_of(raw).strip()).startswith("# "):
        raise BadRecord("a comment, no question; take the line out")
    quoted = text[:1] + text[-1:] in ('""', "“”", "«»", "„“", "「」") and not set(text[1:-1]) & {text[0], text[-1]}
    return (text[1:-1].strip() if quoted else text).replace("\0", "")


def _distinct(rows: Rows, make: Callable[[Mapping[str, Any]], _Text], rejects: Rejects) -> Iterator[_Text]:
    """What is made of each row, but for repeated ones: those are counted, or rejected where they say something else."""
    seen = _Seen()
    for source, text in made(rows, make, rejects):
        before = seen.add(text.id, orjson.dumps(text, option=orjson.OPT_SORT_KEYS))
        if before == "different":
            rejects.reject(source, f"id {text.id[:80]!r} appeared before with other content")
        elif before == "same":
            rejects.duplicates += 1
        else:
            rejects.accepted += 1
            yield text


def _not_none(texts: Iterable[_Text], rejects: Rejects, missing: str, expected: str) -> Iterator[_Text]:
    """All of them. Raises DataError, with the first reason, when there is none."""
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        why = f" ({rejects.first[0]})" if rejects.first else ""
        raise DataError(f"{missing}{why}; expected {expected}.")


def _question(record: Mapping[str, Any]) -> Question:
    code = language_of(record.get("lang"))
    code = _named_language(record.get("language")) if code == UNKNOWN_LANGUAGE else code
    text = text_of(record, key_of(record, _QUESTION_KEYS))
    return Question(record_id(record, QUESTION_IDS), text, None if code == UNKNOWN_LANGUAGE else code)


def _passage(record: Mapping[str, Any]) -> Passage:
    passage = _document(record)
    _check_size(passage)
    return passage


def _document(record: Mapping[str, Any]) -> Passage:
    id_key, text_key = key_of(record, ID_KEYS), key_of(record, TEXT_KEYS)
    meta_key = "metadata" if "meta" not in record and isinstance(record.get("metadata"), dict) else "meta"
    given = record.get(meta_key)
    if not isinstance(given, dict | None):
        raise BadRecord("meta must be an object")
    nested = dict(given or {})
    title, code = (_own_or_nested(record, nested, key) for key in ("title", "lang"))
    if not isinstance(title, str | None):
        raise BadRecord("title must be text")
    lang = language_of(code)
    if code is None:
        lang = _named_language(record.get("language", nested.get("language")))
    used = {text_key, meta_key, id_key, *_NOT_META}
    used.update(key for key in (*TEXT_KEYS, *ID_KEYS) if record.get(key) is None)
    beside = {key: value for key, value in record.items() if key not in used}
    return Passage(record_id(record), text_of(record, text_key), title or "", lang, _meta_of(nested, beside))


def _titled_passage(record: Mapping[str, Any]) -> Passage:
    text, title = next((record[key] for key in TEXT_KEYS if record.get(key) is not None), ""), record.get("title")
    blank = isinstance(text, str) and not has_content(text)
    return _passage({**record, "text": title, "title": ""} if blank and isinstance(title, str) else record)


def as_passage(record: Mapping[str, Any]) -> Passage:
    """What a line of a corpus says as a dict. Raises DataError for one that says no passage."""
    try:
        check_record(record)
        return _passage(record)
    except BadRecord as error:
        raise DataError(f"{record!r:.60} is no passage: {error}.") from error


def _own_or_nested(record: Mapping[str, Any], nested: dict[str, Any], key: str) -> Any:
    """What the record says, else its meta, as exports of other stores do."""
    own, other = record.get(key), nested.pop(key, None)
    if key == "lang":  # other spellings of one code do not differ, and some say that it is not known
        own, other = (None if language_of(code) == UNKNOWN_LANGUAGE else language_of(code) for code in (own, other))
    if own and other and str(other).strip() != str(own).strip():
        raise BadRecord(f"meta.{key} differs from {key}; rename that field")
    return own or other


def _named_language(name: object) -> str:
    """The language that a field `language` names by code or in English, if it does."""
    with suppress(DataError):
        if isinstance(name, str):
            return languages.normalize(languages.spellings().get(name.strip().lower(), name))
    return UNKNOWN_LANGUAGE


def _meta_of(nested: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    clash = next((key for key in beside if key in nested and nested[key] != beside[key]), None)
    if clash is not None:
        raise BadRecord(f"{clash!r} stands in meta and beside it with different values")
    if "query_langs" in nested or "query_langs" in beside:
        raise BadRecord("the field name 'query_langs' is reserved; rename that field")
    check_record(beside, depth=2)  # it will lie in meta
    return {**nested, **beside}


def _check_size(passage: Passage) -> None:
    if not passage.meta and _ESCAPED * sum(map(len, (passage.id, passage.text, passage.title))) < _MAX_PASSAGE_BYTES:
        return
    size = len(orjson.dumps([passage.id, passage.title, passage.text, passage.lang, passage.meta]))
    if size > _MAX_PASSAGE_BYTES:
        hint = "load with --chunk" if len(orjson.dumps(passage.text)) * 2 > size else "shorten its other fields"
        raise BadRecord(f"it takes {size:,} bytes, more than {_MAX_PASSAGE_BYTES:,} can be stored; {hint}")


def as_file(
    records: str | PathLike[str] | Records, name: str, stack: ExitStack, left_out: dict[str, str] | None = None
) -> Path:
    """What is in memory is written to a file, so that the same reader checks it, and can read it twice."""
    if isinstance(records, str | PathLike):
        return Path(records)
    return stack.enter_context(written(records, name, left_out))


def as_files(
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records | None, stack: ExitStack
) -> list[Path]:
    """Query files as a list of them; what is in memory is written to one."""
    if queries is None or isinstance(queries, str | PathLike):
        return [] if queries is None else [Path(queries)]
    if isinstance(queries, Sequence) and all(isinstance(file, str | PathLike) for file in queries):
        return [Path(cast(str, file)) for file in queries]
    return [as_file(cast(Records, queries), "queries.jsonl", stack)]


def with_languages(passages: Iterable[Passage], fallback: str | None, detect: bool) -> Iterator[Passage]:
    """Fill in the language of the passages that have none; window by window, in order."""
    for window in windows(passages, _WINDOW):
        unknown = [i for i, passage in enumerate(window) if passage.lang == UNKNOWN_LANGUAGE]
        found: Sequence[str] = [fallback or UNKNOWN_LANGUAGE] * len(unknown)
        if unknown and fallback is None and detect:
            found = languages.detect([window[i].text for i in unknown])
        for i, lang in zip(unknown, found, strict=True):
            window[i] = replace(window[i], lang=lang)
        yield from window


class _Seen:
    """Which ids were seen, and whether with the same content: 16 bytes of hash each in an open-addressing table.

    A dict would take about 170 bytes a passage. Two of 10 million ids share their 64 bits with probability 3e-6, and
    then the second is rejected aloud.
    """

    def __init__(self) -> None:
        self.count, self._mask = 0, 7
        self._ids, self._contents = array("Q", bytes(64)), array("Q", bytes(64))

    def add(self, id: str, content: bytes) -> Literal["new", "same", "different"]:
        identity, hashed = hash64(id.encode()) or 1, hash64(content)  # 0 marks an empty slot
        slot = self._slot(identity)
        if self._ids[slot]:
            return "same" if self._contents[slot] == hashed else "different"
        self._ids[slot], self._contents[slot] = identity, hashed
        self.count += 1
        if self.count * 3 > self._mask * 2:
            self._grow()
        return "new"

    def _slot(self, identity: int) -> int:
        slot = identity & self._mask
        while self._ids[slot] and self._ids[slot] != identity:
            slot = (slot + 1) & self._mask
        return slot

    def _grow(self) -> None:
        """Double the table where it lies, from an empty slot on, so that each entry finds those before it in place."""
        slots = self._mask + 1
        empty, self._mask = self._ids.index(0), 2 * slots - 1
        for table in (self._ids, self._contents):
            table.frombytes(bytes(8 * slots))
        for old in chain(range(empty, slots), range(empty)):
            if identity := self._ids[old]:
                self._ids[old] = 0
                slot = self._slot(identity)
                self._ids[slot], self._contents[slot] = identity, self._contents[old]


class _Sample(NamedTuple):
    corpus: Path
    queries: Path
    questions: Path


def sample_corpus() -> _Sample:
    """Where the small corpus lies that ships with the package: three files in the formats that users bring."""
    folder = Path(str(files("xqg_vdb").joinpath("data", "sample")))
    return _Sample(folder / "corpus.jsonl", folder / "queries.jsonl", folder / "questions.jsonl")
