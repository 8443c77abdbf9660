"""What systems are made from: the vectors of one task under one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.datasets import RetrievalTask
from xqg_vdb.kept_vectors import kept_vectors
from xqg_vdb.progress import Progress, silent
from xqg_vdb.query_vectors import QueryVectors
from xqg_vdb.types import Passage, Vectors


@dataclass(frozen=True)
class Material:
    """One task under one encoder: rows of its passages (n, dim) and questions (q, dim), not calibrated."""

    task: RetrievalTask
    passages: tuple[Passage, ...]
    passage_vectors: Vectors
    question_vectors: Vectors

    def narrowed(self, task: RetrievalTask) -> Material:
        """The same with the questions of `task` only, which has some of this one's, in their order."""
        kept = {query.id for query in task.queries}
        rows = [row for row, query in enumerate(self.task.queries) if query.id in kept]
        return Material(task, self.passages, self.passage_vectors, self.question_vectors[rows])


def prepare(task: RetrievalTask, *, encoder: CalibratedEncoder, folder: Path, progress: Progress = silent) -> Material:
    """Encode the task's passages and questions, or take them from `folder`."""
    passages = tuple(task.passages)
    facts = encoder.facts
    rows = kept_vectors(
        [passage.title_and_text for passage in passages], encode=encoder.encode_passages, encoder=facts,
        kind="passages", folder=folder, progress=progress, stage=f"passages of {task.name}",
    )  # fmt: skip
    asked = kept_vectors(
        [query.text for query in task.queries], encode=encoder.encode_queries, encoder=facts, kind="queries",
        folder=folder, progress=progress, stage=f"questions of {task.name}",
    )  # fmt: skip
    return Material(task, passages, rows, asked)


def counts(queries: QueryVectors, *, passages: int) -> Mapping[str, object]:
    """What a report says of a query file on a dataset."""
    return {
        "queries": len(queries.owner),
        "passages with queries": len(set(queries.owner.tolist())),
        "passages": passages,
        "languages": {lang: int((queries.lang == lang).sum()) for lang in queries.langs},
        "records of other passages": queries.unused,
    }
