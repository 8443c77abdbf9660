"""AfriQA gold passages: questions in African languages, English Wikipedia passages (Ogundepo et al. 2023).

JSON lines `gold_span_passages.afriqa.{lang}.en.{split}.json`: id, question_lang, question_translated, title, context,
answer_pivot {text, answer_start}. Ids restart in every file, and missing numbers are written as NaN, which is not JSON.
The pool is every distinct (title, context) of the splits read. Rows without a context, title or answer are skipped and
counted. The same shape as XOR-Retrieve: a question in X, an English passage, an English answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask, find_file, look_for, missing
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import LongLine, open_lines
from xqg_vdb.types import Passage, Question

LANGUAGES = ("bem", "hau", "ibo", "kin", "twi", "yor", "zul")
SOURCE = "https://github.com/masakhane-io/afriqa (data/gold_passages)"
Split = Literal["train", "dev", "test"]

_FOLDERS = ("afriqa/", "gold_passages/{lang}/", "afriqa/gold_passages/{lang}/")
_NAME = "gold_span_passages.afriqa.{lang}.en.{split}.json"


@dataclass(frozen=True, slots=True)
class _Row:
    """One usable line; lang: normalised code."""

    query_id: str
    lang: str
    question: str
    translation: str
    passage: Passage
    answers: tuple[str, ...]


def load(
    data_dir: Path,
    *,
    split: Split = "dev",
    translated: bool = False,
    langs: Sequence[str] | None = None,
    pool_splits: Sequence[Split] = ("train", "dev"),
) -> RetrievalTask:
    """Read the questions of `split` against the passages of `pool_splits`: 1,579 for dev, against 3,120.

    translated: ask the human English translations instead, grouped by the language they were translated from: how good
    the encoder is without the language gap. langs: question languages by AfriQA's three-letter codes; the pool stays.
    Raises DataError when no file is there, or one of `langs` has none.
    """
    rows, skipped = _rows(data_dir, [split], langs or LANGUAGES, needed=langs is not None)
    if not rows:
        raise DataError(missing(data_dir, _FOLDERS[0] + _NAME.format(lang="{lang}", split=split), source=SOURCE))
    pool, skipped_in_pool = _rows(data_dir, list(dict.fromkeys([*pool_splits, split])), LANGUAGES, needed=False)
    return RetrievalTask(
        name=f"afriqa-{split}" + ("-english" if translated else ""),
        passages=_distinct(pool),
        queries=tuple(
            Question(r.query_id, r.translation if translated else r.question, "en" if translated else r.lang)
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


def passages(data_dir: Path, *, splits: Sequence[Split] = ("train", "dev")) -> list[Passage]:
    """Read the distinct English passages of these splits, in file order. DataError when there are none."""
    rows, _ = _rows(data_dir, splits, LANGUAGES, needed=False)
    if not rows:
        raise DataError(missing(data_dir, _FOLDERS[0] + _NAME.format(lang="{lang}", split="dev"), source=SOURCE))
    return _distinct(rows)


def _distinct(rows: Sequence[_Row]) -> list[Passage]:
    return list({row.passage.id: row.passage for row in rows}.values())


def _rows(data_dir: Path, splits: Sequence[str], langs: Sequence[str], *, needed: bool) -> tuple[list[_Row], int]:
    """Read the usable rows and count the others; needed: a missing file is an error (Yoruba has no dev file)."""
    rows: list[_Row] = []
    skipped = 0
    for lang in langs:
        for split in splits:
            names = [(folder + _NAME).format(lang=lang, split=split) for folder in _FOLDERS]
            path = find_file(data_dir, *names, source=SOURCE) if needed else look_for(data_dir, *names)
            for record in _records(path):
                row = _row(record, lang, split)
                skipped += row is None
                if row is not None:
                    rows.append(row)
    return rows, skipped


def _records(path: Path | None) -> Iterator[dict[str, Any]]:
    for number, _, raw in () if path is None else open_lines(path):
        try:
            # the standard library's reader takes NaN
            record = json.loads(b"" if isinstance(raw, LongLine) else raw)
            yield {"id": record["id"], **record}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} line {number}: not an AfriQA row ({error!r}).") from error


def _row(record: dict[str, Any], lang: str, split: str) -> _Row | None:
    title, context, question = record.get("title"), record.get("context"), record.get("question_lang")
    answers = tuple(text for text in (record.get("answer_pivot") or {}).get("text") or () if text)
    if not (title and context and question and answers):
        return None
    # content decides: the same passage answers questions of several files
    digest = hashlib.blake2b(f"{title}\n{context}".encode(), digest_size=8).hexdigest()
    passage = Passage(f"afriqa-{digest}", context, title, "en")
    translation = record.get("question_translated") or ""
    return _Row(f"{lang}-{split}-{record['id']}", normalize(lang), question, translation, passage, answers)
