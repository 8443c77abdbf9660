"""A benchmark of people's own data: their corpus, their users' questions, and which passages answer them.

The questions' file may hold it itself: JSON lines with `relevant` (a list of passage ids, or one) beside id and text;
otherwise qrels do (TREC, or BEIR's with a header).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask, Skipped, with_corpus_notes
from xqg_vdb.evaluate.metrics import read_qrels
from xqg_vdb.files import refuse_pipe
from xqg_vdb.texts import languages
from xqg_vdb.texts.corpus import QUESTION_IDS, read_corpus, read_questions
from xqg_vdb.texts.records import Rejects, open_lines, read_objects, record_id

_KEYS = ("relevant", "passages", "passage_id", "passage", "positive_ids")


def read_own(corpus: Path, questions: Path, qrels: Path | None = None) -> RetrievalTask:
    """Read corpus, questions and judgements; languages that are not given are detected.

    Questions that nothing is relevant for are left out and counted. Raises DataError when nobody says which passages
    are relevant, when they are none of the corpus, or when a relevant one cannot be used.
    """
    if qrels is None:
        refuse_pipe(questions)
    asked = read_questions(questions)
    judged = read_qrels(qrels) if qrels is not None else _relevant_in(questions)
    if not judged:
        raise DataError(
            f"{questions} does not say which passages answer its questions: give --qrels FILE (lines of `QUESTION 0 "
            'PASSAGE 1`), or lines such as {"id": "q1", "text": "…", "relevant": ["passage id"]}. Without labels, '
            "`xqg-vdb audit` tells which languages fail."
        )
    kept = [q for q in asked if any(grade > 0 for grade in judged.get(q.id, {}).values())]
    if not kept:
        raise DataError(_strangers("question", questions, [q.id for q in asked], qrels or questions, list(judged)))
    skipped = Skipped()
    passages = list(read_corpus(corpus, rejects=skipped))
    relevant = {docid for query in kept for docid, grade in judged[query.id].items() if grade > 0}
    if not relevant & {passage.id for passage in passages}:
        raise DataError(_strangers("passage", corpus, [p.id for p in passages], qrels or questions, sorted(relevant)))
    langs = languages.detect([query.text for query in kept])
    queries = tuple(query if query.lang else replace(query, lang=lang) for query, lang in zip(kept, langs, strict=True))
    task = RetrievalTask(
        name=corpus.name.partition(".")[0] or corpus.name,
        passages=passages,
        queries=queries,
        qrels={query.id: judged[query.id] for query in queries},
        metrics=("R@1", "R@10", "MRR@10"),
        average="queries",
        notes={"questions left out: nothing is relevant for them": len(asked) - len(kept)} if asked != kept else {},
    )
    return with_corpus_notes(task, skipped.records)


def _strangers(what: str, file: Path, ids: Sequence[str], other: Path, named: Sequence[str]) -> str:
    return f"no {what} of {file} (such as {ids[0]!r}) is in {other} (such as {named[0]!r}); do the two belong together?"


def _relevant_in(path: Path) -> dict[str, dict[str, int]]:
    """What questions in JSON say themselves of relevant passages; {} for other files."""
    first = next((source.raw for source in open_lines(path) if source.raw.strip()), b"")
    if first.lstrip()[:1] not in (b"{", b"["):
        return {}
    judged: dict[str, dict[str, int]] = {}
    for _, record in read_objects(path, Rejects()):
        given: Any = next((record[key] for key in _KEYS if record.get(key)), [])
        ids = [str(docid) for docid in (given if isinstance(given, list) else [given]) if isinstance(docid, str | int)]
        if ids:
            judged[record_id(record, QUESTION_IDS)] = dict.fromkeys(ids, 1)
    return judged
