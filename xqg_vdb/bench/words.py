"""The sparse side of a hybrid system: BM25 vectors of passages and questions, as `load` and `Retriever` make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xqg_vdb.collection.bm25 import SAMPLE, WordWriter, settings_of
from xqg_vdb.types import Bm25Settings, Hybrid, Passage, SparseVector


@dataclass(frozen=True)
class Words:
    """How they were made; one sparse vector a passage, and one a question."""

    settings: Bm25Settings
    passages: Sequence[SparseVector]
    questions: Sequence[SparseVector]

    def inside(self, rows: Sequence[int], asked: Sequence[int]) -> Words:
        """Those of some passages and questions."""
        return Words(self.settings, [self.passages[row] for row in rows], [self.questions[row] for row in asked])


def words_of(questions: Sequence[str], passages: Sequence[Passage]) -> Words:
    """The words of questions and passages."""
    settings = settings_of(passages[:SAMPLE], Hybrid())
    writer = WordWriter(settings)
    documents = [writer.document(passage) for passage in passages]
    return Words(settings, documents, [writer.question(text) for text in questions])
