"""XOR-TyDi's XOR-Retrieve: questions in seven languages, English Wikipedia, answer strings (Asai et al. 2021).

Questions: JSON lines {id, question, answers[], lang, split}; answers are English spans or yes/no. Corpus: TSV
`id<TAB>text<TAB>title` of 100-word chunks (`enwiki_20190201_w100.tsv` by the authors' word, XORQA issue 7). There are
no relevant passages: see `answer_recall`, and retrieve 100 passages or more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xqg_vdb.evaluate.datasets.task import ENGLISH_WIKIPEDIA, CorpusFiles, RetrievalTask, find_file, read_rows
from xqg_vdb.texts.languages import normalize
from xqg_vdb.types import Question

_SOURCE = "https://nlp.cs.washington.edu/xorqa"

_QUESTIONS = ("xor_{}_retrieve_eng_span_v1_1.jsonl", "xor_{}_retrieve_eng_span.jsonl")
"""The publisher's names of the files; dev was corrected once."""


def read_xor_tydi(data_dir: Path, *, split: str = "dev") -> RetrievalTask:
    """Read XOR-Retrieve from `xor-tydi/`: the dev file has 2,110 questions, of which 1,928 are not yes/no only.

    The corpus is streamed, not held. Raises DataError when the questions or the corpus are missing.
    """
    queries, answers = read_xor_questions(data_dir, split=split)
    corpus = find_file(data_dir, *(f"xor-tydi/{name}" for name in ENGLISH_WIKIPEDIA), source=_SOURCE)
    yes_no = sum(all(answer in ("yes", "no") for answer in golds) for golds in answers.values())
    return RetrievalTask(
        name=f"xor-tydi-{split}",
        passages=CorpusFiles({"": [corpus]}, lang="en"),
        queries=queries,
        qrels={},
        metrics=("R@2kt", "R@5kt"),
        answers=answers,
        notes={"questions not evaluated: yes/no answers only": yes_no},
    )


def read_xor_questions(
    data_dir: Path, *, split: str = "dev"
) -> tuple[tuple[Question, ...], dict[str, tuple[str, ...]]]:
    """Read the questions and their answers alone, without a corpus. DataError when the file is missing or malformed."""
    path = find_file(data_dir, *(f"xor-tydi/{name.format(split)}" for name in _QUESTIONS), source=_SOURCE)
    asked = dict(read_rows(path, "a XOR-Retrieve question", _question))
    return tuple(asked), {query.id: answers for query, answers in asked.items()}


def _question(record: dict[str, Any]) -> tuple[Question, tuple[str, ...]]:
    # the train file writes Arabic as " ar"; normalize strips
    return Question(str(record["id"]), record["question"], normalize(record["lang"])), tuple(record["answers"])
