"""MKQA with a corpus: 10,000 questions in 26 languages, searched in English passages (Longpre et al. 2021).

Lines of `mkqa.jsonl.gz`: {example_id, query, queries {lang: str}, answers {lang: [{type, text, aliases}]}}. MKQA has no
passages and defines no retrieval task. As Contriever (Izacard et al. 2022) does, unanswerable, yes/no and long-answer
questions are left out, and a hit is an English answer string in the passages; here by R@2kt and R@5kt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xqg_vdb.evaluate.datasets.task import ENGLISH_WIKIPEDIA, CorpusFiles, RetrievalTask, find_file, read_rows
from xqg_vdb.texts.languages import normalize
from xqg_vdb.types import Question

SOURCE = "https://github.com/apple/ml-mkqa (dataset/mkqa.jsonl.gz)"
_LEFT_OUT = frozenset({"unanswerable", "long_answer", "binary"})


def read_mkqa(data_dir: Path, *, langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read `mkqa/mkqa.jsonl(.gz)` and an English corpus beside it (`corpus.tsv`, `corpus.jsonl`, `psgs_w100.tsv`).

    langs: MKQA's own codes (zh_cn, zh_hk and zh_tw are three groups); all by default.
    Raises DataError when a file is missing or malformed.
    """
    path = find_file(data_dir, "mkqa/mkqa.jsonl", source=SOURCE)
    corpus = find_file(
        data_dir, *(f"mkqa/{name}" for name in ENGLISH_WIKIPEDIA), source="a Wikipedia of your choice, in 100-word TSV"
    )
    queries: list[Question] = []
    answers: dict[str, tuple[str, ...]] = {}
    groups: dict[str, str] = {}
    topics: dict[str, str] = {}
    skipped = 0
    for record, refused in read_rows(path, "an MKQA question"):
        try:
            golds = _english_answers(record)
            asked = {lang: text for lang, text in record["queries"].items() if langs is None or lang in langs}
            number = record["example_id"]
        except (KeyError, TypeError, AttributeError) as error:
            raise refused(error) from error
        skipped += not golds
        for lang, text in asked.items() if golds else ():
            query = Question(f"{number}-{lang}", text, normalize(lang.replace("_", "-")))
            queries.append(query)
            answers[query.id], groups[query.id], topics[query.id] = golds, lang, str(number)
    return RetrievalTask(
        name="mkqa",
        passages=CorpusFiles([corpus], lang="en"),
        queries=tuple(queries),
        qrels={},
        metrics=("R@2kt", "R@5kt"),
        groups=groups,
        answers=answers,
        notes={"questions skipped: unanswerable, yes/no or long answers": skipped},
        topics=topics,
    )


def _english_answers(record: dict[str, Any]) -> tuple[str, ...]:
    answers = record["answers"]["en"]
    if any(answer["type"] in _LEFT_OUT for answer in answers):
        return ()
    texts = [text for answer in answers for text in (answer.get("text"), *(answer.get("aliases") or ()))]
    return tuple(dict.fromkeys(text for text in texts if text))
