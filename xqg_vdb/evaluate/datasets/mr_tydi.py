"""Mr. TyDi v1.1: monolingual search in 11 Wikipedias (Zhang et al. 2021), MRR@100 and R@100, mean over languages.

The layout of its Hugging Face repositories, under `mr-tydi/`: `mrtydi-v1.1-{language}/{split}.jsonl.gz` with query_id,
query, positive_passages [{docid, title, text}], and the corpus as `corpus.jsonl.gz` or `docs.jsonl.gz` beside it
(docid, title, text). Each language is its own pool, and its ids get the prefix `{lang}:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import CorpusFiles, Pools, RetrievalTask, find_file, look_for, missing
from xqg_vdb.texts.records import Rejects, read_objects
from xqg_vdb.types import Question

LANGUAGES = {
    "ar": "arabic", "bn": "bengali", "en": "english", "fi": "finnish", "id": "indonesian", "ja": "japanese",
    "ko": "korean", "ru": "russian", "sw": "swahili", "te": "telugu", "th": "thai",
}  # fmt: skip
SOURCE = "https://huggingface.co/datasets/castorini/mr-tydi and castorini/mr-tydi-corpus"

_CORPORA = ("corpus.jsonl", "docs.jsonl", "collection/docs.jsonl")


def load(data_dir: Path, *, split: str = "test", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read the languages whose questions are there, or `langs`. Corpora are streamed, not held.

    Raises DataError when questions or corpus of a language are missing or malformed, or no language is there.
    """
    there = (
        [lang for lang in LANGUAGES if look_for(data_dir, f"{_folder(lang)}/{split}.jsonl")] if langs is None else langs
    )
    if not there:
        raise DataError(missing(data_dir, f"mr-tydi/mrtydi-v1.1-{{language}}/{split}.jsonl.gz", source=SOURCE))
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    corpora: dict[str, CorpusFiles] = {}
    for lang in there:
        path = find_file(data_dir, f"{_folder(lang)}/{split}.jsonl", source=SOURCE)
        for source, record in read_objects(path, Rejects()):
            try:
                query = Question(f"{lang}:{record['query_id']}", record["query"], lang)
                qrels[query.id] = {f"{lang}:{passage['docid']}": 1 for passage in record["positive_passages"]}
            except (KeyError, TypeError) as error:
                raise DataError(f"{path} line {source.line}: not a Mr. TyDi question ({error!r}).") from error
            queries.append(query)
        corpus = find_file(data_dir, *(f"{_folder(lang)}/{name}" for name in _CORPORA), source=SOURCE)
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


def _folder(lang: str) -> str:
    if lang not in LANGUAGES:
        raise DataError(f"{lang!r} is not a language of Mr. TyDi; it has {', '.join(LANGUAGES)}.")
    return f"mr-tydi/mrtydi-v1.1-{LANGUAGES[lang]}"
