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

_SOURCE = "https://github.com/apple/ml-mkqa (dataset/mkqa.jsonl.gz)"
_LEFT_OUT = frozenset({"unanswerable", "long_answer", "binary"})


def read_mkqa(data_dir: Path, *, langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read `mkqa/mkqa.jsonl(.gz)` and an English corpus beside it (`corpus.tsv`, `corpus.jsonl`, `psgs_w100.tsv`).

    langs: MKQA's own codes (zh_cn, zh_hk and zh_tw are three groups); all by default.
    Raises DataError when a file is missing or malformed.
    """
    path = find_file(data_dir, "mkqa/mkqa.jsonl", source=_SOURCE)
    corpus = find_file(
        data_dir, *(f"mkqa/{name}" for name in ENGLISH_WIKIPEDIA), source="a Wikipedia of your choice, in 100-word TSV"
    )
    queries: list[Question] = []
    answers: dict[str, tuple[str, ...]] = {}
    groups: dict[str, str] = {}
    topics: dict[str, str] = {}
    skipped = 0
    for number, texts, golds in read_rows(path, "an MKQA question", _question):
        skipped += not golds
        for lang, text in texts.items() if golds else ():
            if langs is None or lang in langs:
                query = Question(f"{number}-{lang}", text, normalize(lang.replace("_", "-")))
                queries.append(query)
                answers[query.id], groups[query.id], topics[query.id] = golds, lang, number
    return RetrievalTask(
        name="mkqa",
        passages=CorpusFiles({"": [corpus]}, lang="en"),
        queries=tuple(queries),
        qrels={},
        metrics=("R@2kt", "R@5kt"),
        groups=groups,
        answers=answers,
        notes={"questions skipped: unanswerable, yes/no or long answers": skipped},
        topics=topics,
    )


def _question(record: dict[str, Any]) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """Its number, its text in each language, and its short answers in English."""
    answers = record["answers"]["en"]
    texts = [text for answer in answers for text in (answer.get("text"), *(answer.get("aliases") or ()))]
    left_out = any(answer["type"] in _LEFT_OUT for answer in answers)
    golds = () if left_out else tuple(dict.fromkeys(text for text in texts if text))
    return str(record["example_id"]), dict(record["queries"]), golds
