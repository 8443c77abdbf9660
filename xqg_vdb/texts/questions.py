"""Questions asked of a collection: files in, and the question bank and sample files that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.texts import languages
from xqg_vdb.texts.records import Rejects, Source, decoded, language_of, parse_object, read_sources, record_id, text_of
from xqg_vdb.types import UNKNOWN_LANGUAGE, Question

_QUESTION_KEYS = ("text", "question", "query")


def read_questions(path: str | Path, *, rejects: Rejects | None = None) -> list[Question]:
    """Read the questions of a JSON-lines file, or of plain text with one question a line and line numbers as ids.

    JSON lines (recognised by their first character) hold an id, `text`, `question` or `query`, and perhaps `lang`.
    Raises DataError when the file is missing or holds no question, or has more bad lines than `rejects` bears.
    """
    path = Path(path)
    rejects = Rejects() if rejects is None else rejects
    sources = read_sources(path, rejects)
    first = next(sources, None)
    json_lines = first is not None and first.raw.lstrip().startswith(b"{")
    make = (lambda source: _question(parse_object(source.raw))) if json_lines else _plain_question
    questions: dict[str, Question] = {}
    for source in chain([first] if first else [], sources):
        question = rejects.attempt(source, make, source)
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


def _question(record: Mapping[str, Any]) -> Question:
    key = next((key for key in _QUESTION_KEYS if key in record), "text")
    code = language_of(record.get("lang"))
    return Question(record_id(record), text_of(record, key), None if code == UNKNOWN_LANGUAGE else code)


def _plain_question(source: Source) -> Question:
    return Question(str(source.line), text_of({"text": decoded(source.raw).strip().replace("\0", "")}, "text"))


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
