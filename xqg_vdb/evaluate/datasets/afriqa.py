"""AfriQA gold passages: questions in African languages, English or French Wikipedia passages (Ogundepo et al. 2023).

JSON lines `gold_span_passages.afriqa.{lang}.{en|fr}.{split}.json`: id, question_lang, question_translated, title,
context, answer_pivot {text, answer_start}. Ids restart in every file, and missing numbers are written as NaN, which is
not JSON. The pool is every distinct (title, context) of the splits read. Rows without a context, title or answer are
skipped and counted. The same shape as XOR-Retrieve: a question in X, a passage and an answer in the pivot language.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask, language_files
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import open_lines
from xqg_vdb.types import Passage, Question

SOURCE = "https://github.com/masakhane-io/afriqa (data/gold_passages)"

_FOLDERS = ("", "gold_passages/{lang}/", "data/gold_passages/{lang}/")
_NAMES = [
    f"{above}{folder}gold_span_passages.afriqa.{{lang}}.*.%s.json" for above in ("afriqa/", "") for folder in _FOLDERS
]


@dataclass(frozen=True, slots=True)
class _Row:
    """One usable line; lang: normalised code."""

    query_id: str
    lang: str
    question: str
    translation: str
    passage: Passage
    answers: tuple[str, ...]


def read_afriqa(
    data_dir: Path,
    *,
    split: str = "dev",
    translated: bool = False,
    langs: Sequence[str] | None = None,
    pool_splits: Sequence[str] = ("train", "dev"),
) -> RetrievalTask:
    """Read the questions of `split` against the passages of `pool_splits`: 1,579 for dev, against 3,120.

    translated: ask the human translations instead, grouped by the language they were translated from: how good the
    encoder is without the language gap. langs: question languages by AfriQA's three-letter codes; the pool stays.
    Raises DataError when no file is there, or one of `langs` has none.
    """
    rows, skipped = _rows(data_dir, [split], langs)
    pool, skipped_in_pool = _rows(data_dir, list(dict.fromkeys([*pool_splits, split])))
    return RetrievalTask(
        name=f"afriqa-{split}" + ("-english" if translated else ""),
        passages=_distinct(pool),
        queries=tuple(
            Question(r.query_id, r.translation if translated else r.question, r.passage.lang if translated else r.lang)
            for r in rows
        ),
        qrels={row.query_id: {row.passage.id: 1} for row in rows},
        metrics=("R@1", "R@10", "MRR@10"),
        groups={row.query_id: row.lang for row in rows},
        answers={row.query_id: row.answers for row in rows},
        notes={
            "questions skipped: no context, title or answer": skipped,
            "rows of the pool skipped": skipped_in_pool,
        },
    )


def read_afriqa_passages(data_dir: Path, *, splits: Sequence[str] = ("train", "dev")) -> list[Passage]:
    """Read the distinct passages of these splits, in file order. DataError when there are none."""
    return _distinct(_rows(data_dir, splits)[0])


def _distinct(rows: Sequence[_Row]) -> list[Passage]:
    return list({row.passage.id: row.passage for row in rows}.values())


def _rows(data_dir: Path, splits: Sequence[str], langs: Sequence[str] | None = None) -> tuple[list[_Row], int]:
    """Read the usable rows and count the others; DataError where no split has a file (Yoruba has none for dev)."""
    files: list[tuple[str, str, Path]] = []
    absent: list[DataError] = []
    for split in splits:
        try:
            there = language_files(data_dir, *(name % split for name in _NAMES), langs=langs, source=SOURCE)
            files += [(lang, split, path) for lang, path in there]
        except DataError as error:
            absent.append(error)
    if not files:
        raise absent[0]
    rows: list[_Row] = []
    skipped = 0
    for lang, split, path in sorted(files, key=lambda file: file[0]):
        for record in _records(path):
            row = _row(record, lang, split, pivot=path.name.split(".")[3])
            skipped += row is None
            if row is not None:
                rows.append(row)
    return rows, skipped


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for source in open_lines(path):
        try:
            # the standard library's reader takes NaN
            record = json.loads(b"" if source.cut else source.raw)
            yield {"id": record["id"], **record}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} line {source.line}: not an AfriQA row ({error!r}).") from error


def _row(record: dict[str, Any], lang: str, split: str, *, pivot: str) -> _Row | None:
    title, context, question = record.get("title"), record.get("context"), record.get("question_lang")
    answers = tuple(text for text in (record.get("answer_pivot") or {}).get("text") or () if text)
    if not (title and context and question and answers):
        return None
    # content decides: the same passage answers questions of several files
    digest = hashlib.blake2b(f"{title}\n{context}".encode(), digest_size=8).hexdigest()
    passage = Passage(f"afriqa-{digest}", context, title, normalize(pivot))
    translation = record.get("question_translated") or ""
    return _Row(f"{lang}-{split}-{record['id']}", normalize(lang), question, translation, passage, answers)
