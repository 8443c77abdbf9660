"""SQuAD-style JSON with sentence breaks, as LAReQA publishes XQuAD-R and MLQA-R: the reader that two tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors


@dataclass(frozen=True, slots=True)
class SquadQuestion:
    """One question: `id` is shared by its translations; `start` is the character where the first answer begins."""

    id: str
    text: str
    start: int
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SquadParagraph:
    """One paragraph, numbered from 1 within its file as LAReQA does; `breaks` are its sentences' character ranges."""

    number: int
    title: str
    context: str
    breaks: tuple[tuple[int, int], ...]
    questions: tuple[SquadQuestion, ...]

    @property
    def sentences(self) -> list[str]:
        """The sentences cut from the context, as LAReQA does; the file's own `sentences` differ in one Turkish case."""
        return [self.context[start:end] for start, end in self.breaks]

    def answer_sentence(self, question: SquadQuestion) -> str | None:
        """Return the sentence in which the answer begins, or None where it begins between two."""
        within = ((start, end) for start, end in self.breaks if start <= question.start < end)
        return next((self.context[start:end] for start, end in within), None)


def read_squad(path: Path) -> Iterator[SquadParagraph]:
    """Read the paragraphs of one file. Raises DataError when it is missing or not SQuAD JSON."""
    with disk_errors(path):
        raw = path.read_bytes()
    try:
        articles = orjson.loads(raw)["data"]
        paragraphs = [(str(article.get("title", "")), p) for article in articles for p in article["paragraphs"]]
        yield from (_paragraph(number, title, p) for number, (title, p) in enumerate(paragraphs, start=1))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path} is not SQuAD v1.1 JSON ({type(error).__name__}: {error}); fetch it again.") from error


def _paragraph(number: int, title: str, record: dict[str, Any]) -> SquadParagraph:
    breaks = tuple((int(start), int(end)) for start, end in record.get("sentence_breaks", ()))
    questions = tuple(
        SquadQuestion(
            str(qa["id"]),
            qa["question"],
            int(qa["answers"][0]["answer_start"]),
            tuple(a["text"] for a in qa["answers"]),
        )
        for qa in record["qas"]
    )
    return SquadParagraph(number, title, record["context"], breaks, questions)
