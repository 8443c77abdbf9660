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
from dataclasses import replace
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask, language_files
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.records import text_lines
from xqg_vdb.types import Passage, Question

_SOURCE = "https://github.com/masakhane-io/afriqa (data/gold_passages)"

_FOLDERS = ("", "gold_passages/{lang}/", "data/gold_passages/{lang}/")
_NAMES = [
    f"{above}{folder}gold_span_passages.afriqa.{{lang}}.*.%s.json" for above in ("afriqa/", "") for folder in _FOLDERS
]


def read_afriqa(
    data_dir: Path, *, split: str = "dev", translated: bool = False, pool_splits: Sequence[str] = ("train", "dev")
) -> RetrievalTask:
    """Read the questions of `split` against the passages of `pool_splits`: 1,579 for dev, against 3,120.

    translated: ask the human translations instead, grouped by the language they were translated from: how good the
    encoder is without the language gap. Raises DataError when no file is there.
    """
    rows, skipped = _rows(data_dir, [split])
    pool, skipped_in_pool = _rows(data_dir, list(dict.fromkeys([*pool_splits, split])))
    return RetrievalTask(
        name=f"afriqa-{split}" + ("-english" if translated else ""),
        passages=_distinct(pool),
        queries=tuple(
            replace(query, text=translation, lang=passage.lang) if translated else query
            for query, translation, passage, _ in rows
        ),
        qrels={query.id: {passage.id: 1} for query, _, passage, _ in rows},
        metrics=("R@1", "R@10", "MRR@10"),
        groups={query.id: str(query.lang) for query, *_ in rows},
        answers={query.id: answers for query, _, _, answers in rows},
        notes={"questions skipped: no context, title or answer": skipped, "rows of the pool skipped": skipped_in_pool},
    )


def read_afriqa_passages(data_dir: Path) -> list[Passage]:
    """Read the distinct passages of train and dev, in file order. DataError when there are none."""
    return _distinct(_rows(data_dir, ("train", "dev"))[0])


_Row = tuple[Question, str, Passage, tuple[str, ...]]
"""One usable line: the question, its translation, the passage, the answers."""


def _distinct(rows: Sequence[_Row]) -> list[Passage]:
    return list({passage.id: passage for _, _, passage, _ in rows}.values())


def _rows(data_dir: Path, splits: Sequence[str]) -> tuple[list[_Row], int]:
    """Read the usable rows and count the others; DataError where no split has a file (Yoruba has none for dev)."""
    files: list[tuple[str, str, Path]] = []
    absent: list[DataError] = []
    for split in splits:
        try:
            there = language_files(data_dir, *(name % split for name in _NAMES), source=_SOURCE)
            files += [(lang, split, path) for lang, path in there]
        except DataError as error:
            absent.append(error)
    if not files:
        raise absent[0]
    rows = [
        row
        for lang, split, path in sorted(files, key=lambda file: file[0])
        for row in _read(path, f"{lang}-{split}", lang, pivot=path.name.split(".")[3])
    ]
    return [row for row in rows if row is not None], rows.count(None)


def _read(path: Path, prefix: str, lang: str, *, pivot: str) -> Iterator[_Row | None]:
    """The rows of a file; None for one that cannot be used."""
    for line, text in text_lines(path):
        try:
            record = json.loads(text)  # the standard library's reader takes NaN
            name, title, context = f"{prefix}-{record['id']}", record.get("title"), record.get("context")
            answers = tuple(text for text in (record.get("answer_pivot") or {}).get("text") or () if text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} line {line}: not an AfriQA row ({error!r}).") from error
        if not (title and context and record.get("question_lang") and answers):
            yield None
            continue
        # content decides: the same passage answers questions of several files
        digest = hashlib.blake2b(f"{title}\n{context}".encode(), digest_size=8).hexdigest()
        question = Question(name, record["question_lang"], normalize(lang))
        passage = Passage(f"afriqa-{digest}", context, title, normalize(pivot))
        yield question, record.get("question_translated") or "", passage, answers
