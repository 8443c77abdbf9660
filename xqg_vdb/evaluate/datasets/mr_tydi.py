"""Mr. TyDi v1.1: monolingual search in 11 Wikipedias (Zhang et al. 2021), MRR@100 and R@100, mean over languages.

The layout of its Hugging Face repositories, under `mr-tydi/`: `mrtydi-v1.1-{language}/{split}.jsonl.gz` with query_id,
query, positive_passages [{docid, title, text}], and the corpus as `corpus.jsonl.gz` or `docs.jsonl.gz` beside it
(docid, title, text). Each language is its own pool, and its ids get the prefix `{lang}:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.evaluate.datasets.task import (
    CorpusFiles,
    Pools,
    RetrievalTask,
    find_file,
    language_code,
    language_files,
    read_rows,
)
from xqg_vdb.types import Question

SOURCE = "https://huggingface.co/datasets/castorini/mr-tydi and castorini/mr-tydi-corpus"

_FOLDER = "mr-tydi/mrtydi-v1.1-{lang}"
_CORPORA = ("corpus.jsonl", "docs.jsonl", "collection/docs.jsonl")


def read_mr_tydi(data_dir: Path, *, split: str = "test", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read the languages whose questions are there, or `langs` (`swahili`). Corpora are streamed, not held.

    Raises DataError when questions or corpus of a language are missing or malformed, or no language is there.
    """
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    corpora: dict[str, CorpusFiles] = {}
    for name, path in language_files(data_dir, f"{_FOLDER}/{split}.jsonl", langs=langs, source=SOURCE):
        lang = language_code(name) or name
        for record, refused in read_rows(path, "a Mr. TyDi question"):
            try:
                query = Question(f"{lang}:{record['query_id']}", record["query"], lang)
                qrels[query.id] = {f"{lang}:{passage['docid']}": 1 for passage in record["positive_passages"]}
            except (KeyError, TypeError) as error:
                raise refused(error) from error
            queries.append(query)
        corpus = find_file(data_dir, *(f"{_FOLDER.format(lang=name)}/{file}" for file in _CORPORA), source=SOURCE)
        corpora[lang] = CorpusFiles([corpus], lang=lang, pool=lang)
    return RetrievalTask(
        name=f"mr-tydi-{split}",
        passages=Pools(corpora),
        queries=tuple(queries),
        qrels=qrels,
        metrics=("MRR@100", "R@100"),
        groups={query.id: str(query.lang) for query in queries},
        pooled=True,
    )
