"""MIRACL: monolingual search in 18 Wikipedias (Zhang et al. 2023), nDCG@10 and R@100, mean over languages.

The layout of its Hugging Face repositories: `miracl-v1.0-{lang}/topics/topics.miracl-v1.0-{lang}-{split}.tsv` (qid,
query), `miracl-v1.0-{lang}/qrels/qrels.miracl-v1.0-{lang}-{split}.tsv` (TREC) and
`miracl-corpus-v1.0-{lang}/docs-*.jsonl.gz` (docid, title, text), all under `miracl/`.
Each language is its own pool, and its ids get the prefix `{lang}:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import CorpusFiles, Pools, RetrievalTask, find_file, language_files, missing
from xqg_vdb.evaluate.metrics import read_pairs, read_qrels
from xqg_vdb.types import Question

SOURCE = "https://huggingface.co/datasets/miracl/miracl and miracl/miracl-corpus"


def read_miracl(data_dir: Path, *, split: str = "dev", langs: Sequence[str] | None = None) -> RetrievalTask:
    """Read the languages whose topics are there, or `langs`. Corpora are streamed, not held.

    Raises DataError when topics, qrels or corpus of a language are missing, or no language is there.
    """
    topics = f"miracl/miracl-v1.0-{{lang}}/topics/topics.miracl-v1.0-{{lang}}-{split}.tsv"
    there = language_files(data_dir, topics, langs=langs, source=SOURCE)
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    for lang, file in there:
        judged = read_qrels(find_file(data_dir, topics.replace("topics", "qrels").format(lang=lang), source=SOURCE))
        for qid, text in read_pairs(file):
            if qid in judged:
                queries.append(Question(f"{lang}:{qid}", text, lang))
                qrels[queries[-1].id] = {f"{lang}:{docid}": grade for docid, grade in judged[qid].items()}
    return RetrievalTask(
        name=f"miracl-{split}",
        passages=Pools({lang: CorpusFiles(_corpus(data_dir, lang), lang=lang, pool=lang) for lang, _ in there}),
        queries=tuple(queries),
        qrels=qrels,
        metrics=("nDCG@10", "R@100"),
        groups={query.id: str(query.lang) for query in queries},
        pooled=True,
    )


def _corpus(data_dir: Path, lang: str) -> list[Path]:
    folder = data_dir / "miracl" / f"miracl-corpus-v1.0-{lang}"
    files = [*folder.glob("docs-*.jsonl"), *folder.glob("docs-*.jsonl.gz")]
    if not files:
        raise DataError(missing(data_dir, f"miracl/{folder.name}/docs-0.jsonl.gz", source=SOURCE))
    return sorted(files, key=lambda path: (len(path.name), path.name))  # docs-10 after docs-9
