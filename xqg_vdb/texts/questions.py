"""Questions asked of a collection: files in, and the question bank and sample files that ship with the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.texts import languages
from xqg_vdb.texts.corpus import READERS, read_table, suffix_of
from xqg_vdb.texts.records import (
    ID_KEYS,
    BadRecord,
    Rejects,
    Source,
    decoded,
    language_of,
    parse_object,
    read_sources,
    record_id,
    text_of,
)
from xqg_vdb.types import UNKNOWN_LANGUAGE, Question

_QUESTION_KEYS = ("text", "question", "query")
_ID_KEYS = (*ID_KEYS, "qid", "query_id", "question_id")


def read_questions(path: str | Path, *, rejects: Rejects | None = None) -> list[Question]:
    """Read questions: JSON (`.jsonl`, `.json`), tables (`.tsv`, `.csv`, `.parquet`), or text with one question a line.

    Records hold an id, `text`, `question` or `query`, and perhaps `lang`; a table of two columns may do without a
    header. Files of other names are JSON lines, a table or text as their first line shows; ids of text are its line
    numbers. Raises DataError when there is no question, or more bad records than `rejects` bears.
    """
    path = Path(path)
    rejects = Rejects() if rejects is None else rejects
    questions: dict[str, Question] = {}
    for source, make in _asked(path, rejects):
        question = rejects.attempt(source, lambda made: made(), make)
        if question is None:
            continue
        if questions.setdefault(question.id, question) is question:
            rejects.accepted += 1
        elif questions[question.id] == question:
            rejects.duplicates += 1
        else:
            rejects.reject(source, f"id {question.id[:80]!r} appeared before with another question")
    if not questions:
        raise DataError(f"{path} holds no question; expected one a line, as text or as JSON with id and text.")
    return list(questions.values())


def _asked(path: Path, rejects: Rejects) -> Iterator[tuple[Source, Callable[[], Question]]]:
    """Every record of the file, with what makes a question of it."""
    kind = "" if path.is_fifo() else suffix_of(path)
    need = (frozenset(_ID_KEYS), frozenset(_QUESTION_KEYS))
    if kind in (".tsv", ".csv"):
        rows = read_table(path, rejects, need=need)
    elif kind in READERS:
        rows = READERS[kind](path, rejects)
    else:
        yield from _by_first_line(path, rejects)
        return
    for source, record in rows:
        yield source, partial(_question, record)


def _by_first_line(path: Path, rejects: Rejects) -> Iterator[tuple[Source, Callable[[], Question]]]:
    sources = read_sources(path, rejects)
    first = next(sources, None)
    raw = b"" if first is None else first.raw.lstrip()
    if raw.startswith((b"[", b"<", b"PAR1")):
        raise DataError(f"{path} holds no lines of text; name it by its kind: .json, .jsonl, .tsv, .csv or .parquet.")
    numbered = re.match(rb"\S*\d\S*\t", raw) is not None
    for source in chain([first] if first else [], sources):
        if raw.startswith(b"{"):
            yield source, partial(_parsed_question, source)
        else:
            yield source, partial(_plain_question, source, numbered)


def _parsed_question(source: Source) -> Question:
    return _question(parse_object(source.raw))


def _question(record: Mapping[str, Any]) -> Question:
    key = next((key for key in _QUESTION_KEYS if key in record), "text")
    other = next((key for key in _ID_KEYS if key in record), "id")
    code = language_of(record.get("lang"))
    return Question(record_id({"id": record[other]} if other in record else {}), text_of(record, key), _known(code))


def _known(code: str) -> str | None:
    return None if code == UNKNOWN_LANGUAGE else code


def _plain_question(source: Source, numbered: bool) -> Question:
    line = decoded(source.raw).strip().replace("\0", "")
    id, tab, text = line.partition("\t") if numbered else (str(source.line), "\t", line)
    if not tab:
        raise BadRecord("no tab between id and question, as on the first line")
    return Question(id, text_of({"text": text}, "text"))


def question_bank() -> dict[str, tuple[str, ...]]:
    """Read the general questions that ship with the package, by language code."""
    bank: dict[str, tuple[str, ...]] = {}
    folder = files("xqg_vdb").joinpath("data", "questions")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".txt"):
            lines = (line.strip() for line in entry.read_text("utf-8").split("\n"))
            code = languages.normalize(entry.name.removesuffix(".txt"))
            bank[code] = bank.get(code, ()) + tuple(line for line in lines if line and not line.startswith("#"))
    return bank


@dataclass(frozen=True, slots=True)
class Sample:
    """The small corpus that ships with the package: three files in the formats that users bring."""

    corpus: Path
    queries: Path
    questions: Path


def sample_corpus() -> Sample:
    """Tell where the shipped sample lies."""
    folder = Path(str(files("xqg_vdb").joinpath("data", "sample")))
    return Sample(folder / "corpus.jsonl", folder / "queries.jsonl", folder / "questions.jsonl")
