"""MIRACL and Mr. TyDi v1.1: monolingual search in 18 and 11 Wikipedias (Zhang et al. 2023, 2021), mean over languages.

The layouts of their Hugging Face repositories. MIRACL, under `miracl/`:
`miracl-v1.0-{lang}/{topics|qrels}/{topics|qrels}.miracl-v1.0-{lang}-{split}.tsv` (qid, query; TREC) and
`miracl-corpus-v1.0-{lang}/docs-*.jsonl.gz` (docid, title, text). Mr. TyDi, under `mr-tydi/mrtydi-v1.1-{language}/`:
`{split}.jsonl.gz` with query_id, query, positive_passages [{docid, title, text}], and the corpus beside it as
`corpus.jsonl.gz` or `docs.jsonl.gz`.
Each language is its own pool, and its ids get the prefix `{lang}:`. Corpora are streamed, not held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import (
    CorpusFiles,
    RetrievalTask,
    find_file,
    language_code,
    language_files,
    missing,
    read_rows,
)
from xqg_vdb.evaluate.metrics import read_pairs, read_qrels
from xqg_vdb.types import Question

_MIRACL = "https://huggingface.co/datasets/miracl/miracl and miracl/miracl-corpus"
_MR_TYDI = "https://huggingface.co/datasets/castorini/mr-tydi and castorini/mr-tydi-corpus"


def read_miracl(data_dir: Path, *, split: str = "dev") -> RetrievalTask:
    """Read the languages whose topics are there; nDCG@10 and R@100.

    Raises DataError when topics, qrels or corpus of a language are missing, or no language is there.
    """
    topics = f"miracl/miracl-v1.0-{{lang}}/topics/topics.miracl-v1.0-{{lang}}-{split}.tsv"
    asked: list[tuple[Question, Mapping[str, int]]] = []
    corpora: dict[str, list[Path]] = {}
    for lang, file in language_files(data_dir, topics, source=_MIRACL):
        judged = read_qrels(find_file(data_dir, topics.replace("topics", "qrels").format(lang=lang), source=_MIRACL))
        asked += [(Question(qid, text, lang), judged[qid]) for qid, text in read_pairs(file) if qid in judged]
        folder = f"miracl/miracl-corpus-v1.0-{lang}"
        found = sorted((data_dir / folder).glob("docs-*.jsonl*"), reverse=True)
        files = {path.name.removesuffix(".gz"): path for path in found}.values()  # the plain one before its own .gz
        if not files:
            raise DataError(missing(data_dir, f"{folder}/docs-0.jsonl.gz", source=_MIRACL))
        corpora[lang] = sorted(files, key=lambda path: (len(path.name), path.name))  # docs-10 after docs-9
    return _task(f"miracl-{split}", asked, corpora, ("nDCG@10", "R@100"))


def read_mr_tydi(data_dir: Path, *, split: str = "test") -> RetrievalTask:
    """Read the languages whose questions are there; MRR@100 and R@100.

    Raises DataError when questions or corpus of a language are missing or malformed, or no language is there.
    """
    asked: list[tuple[Question, Mapping[str, int]]] = []
    corpora: dict[str, list[Path]] = {}
    for name, path in language_files(data_dir, f"mr-tydi/mrtydi-v1.1-{{lang}}/{split}.jsonl", source=_MR_TYDI):
        lang = language_code(name) or name

        def question(record: dict[str, Any], lang: str = lang) -> tuple[Question, Mapping[str, int]]:
            relevant = {str(passage["docid"]): 1 for passage in record["positive_passages"]}
            return Question(str(record["query_id"]), record["query"], lang), relevant

        asked += read_rows(path, "a Mr. TyDi question", question)
        names = (f"mr-tydi/mrtydi-v1.1-{name}/{file}.jsonl" for file in ("corpus", "docs", "collection/docs"))
        corpora[lang] = [find_file(data_dir, *names, source=_MR_TYDI)]
    return _task(f"mr-tydi-{split}", asked, corpora, ("MRR@100", "R@100"))


def _task(
    name: str,
    asked: Sequence[tuple[Question, Mapping[str, int]]],
    corpora: Mapping[str, Sequence[Path]],
    metrics: tuple[str, ...],
) -> RetrievalTask:
    """Ids of questions and judgements get the prefix that `CorpusFiles` gives passages."""
    return RetrievalTask(
        name=name,
        passages=CorpusFiles(corpora),
        queries=tuple(Question(f"{query.lang}:{query.id}", query.text, query.lang) for query, _ in asked),
        qrels={
            f"{query.lang}:{query.id}": {f"{query.lang}:{docid}": grade for docid, grade in judged.items()}
            for query, judged in asked
        },
        metrics=metrics,
        pooled=True,
    )
