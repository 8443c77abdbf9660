"""The sparse side of a hybrid system: BM25 vectors of passages and questions, as `load` and `Retriever` make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.collection.bm25 import SAMPLE, WordWriter, settings_of
from xqg_vdb.queries import QueryFile
from xqg_vdb.types import Bm25Settings, GeneratedQueries, Hybrid, Passage, SparseVector


@dataclass(frozen=True)
class Words:
    """How they were made; one sparse vector a passage, and one a question."""

    settings: Bm25Settings
    passages: Sequence[SparseVector]
    questions: Sequence[SparseVector]

    def inside(self, rows: Sequence[int], asked: Sequence[int]) -> Words:
        """Those of some passages and questions."""
        return Words(self.settings, [self.passages[row] for row in rows], [self.questions[row] for row in asked])


def words_of(
    questions: Sequence[str], passages: Sequence[Passage], *, queries: Path | None, langs: Sequence[str] | None
) -> Words:
    """The words of questions and passages; queries: the file whose queries are indexed with these, of `langs` only."""
    own: list[GeneratedQueries | None] = [None] * len(passages)
    if queries is not None:
        with QueryFile([queries]) as table:
            own = [table.get(passage.id) for passage in passages]
    found = sorted({lang for one in own if one is not None for lang in one.queries})
    rows = list(zip(passages, own, strict=True))
    settings = settings_of(rows[:SAMPLE], Hybrid(queries=queries is not None), query_langs=langs or found)
    writer = WordWriter(settings)
    documents = [writer.document(*row) for row in rows]
    return Words(settings, documents, [writer.question(text) for text in questions])
