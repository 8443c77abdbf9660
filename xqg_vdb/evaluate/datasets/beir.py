"""Any folder in BEIR's format: `corpus.jsonl`, `queries.jsonl`, `qrels/{split}.tsv` (Thakur et al. 2021).

Corpus {_id, title, text}, queries {_id, text}, qrels with the header `query-id corpus-id score`. As BEIR's own loader
and evaluation do, only questions that the split judges are asked, a title alone is a text, and a passage with the
question's own id is not among what it finds (ArguAna and Quora ask with passages). Lines may carry `lang`.
"""

from __future__ import annotations

from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import CorpusFiles, RetrievalTask, find_file, look_for, missing, such_as
from xqg_vdb.evaluate.metrics import read_qrels
from xqg_vdb.texts.corpus import read_questions

_SOURCE = "https://github.com/beir-cellar/beir"


def read_beir(folder: Path, *, split: str = "test") -> RetrievalTask:
    """Read the BEIR-format folder.

    Raises DataError when a file is missing or malformed, or when no question of the qrels is in `queries.jsonl`.
    """
    corpus = find_file(folder, "corpus.jsonl", source=_SOURCE)
    questions = find_file(folder, "queries.jsonl", source=_SOURCE)
    judgements = look_for(folder, f"qrels/{split}.tsv")
    if judgements is None:
        splits = sorted(path.name.partition(".tsv")[0] for path in folder.glob("qrels/*.tsv*"))
        there = f" There is {', '.join(splits)}: ask for beir/{folder.name}:{splits[0]}." if splits else ""
        raise DataError(missing(folder, f"qrels/{split}.tsv", source=_SOURCE) + there)
    qrels = read_qrels(judgements)
    queries = [query for query in read_questions(questions) if query.id in qrels]
    if not queries:
        raise DataError(f"no question of qrels/{split}.tsv is in {questions}; do the two belong together?")
    without = qrels.keys() - {query.id for query in queries}
    return RetrievalTask(
        name=f"{folder.name}-{split}",
        passages=CorpusFiles({"": [corpus]}),
        queries=tuple(queries),
        qrels={query.id: qrels[query.id] for query in queries},
        metrics=("nDCG@10", "R@100"),
        average="queries",
        notes={f"judged questions without a text{such_as(without)}": len(without)} if without else {},
        not_itself=True,
    )
