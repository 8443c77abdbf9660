"""Questions in, passages out: one vector and one look-up a question, calibrated for its language.

In: an encoder and a collection that it made. Out: hits, best first, ties by id. This file refuses to know how either
works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.collection import Collection
from xqg_vdb.collection.layout import TEXT_DENSE, TEXT_SPARSE, check_hybrid, check_langs
from xqg_vdb.languages import normalize
from xqg_vdb.progress import Progress, silent
from xqg_vdb.query_encoding import EncodedQueries, QueryEncoder, mean_rows, refuse_blank
from xqg_vdb.rank_fusion import DEPTH, fuse_ranks
from xqg_vdb.types import Hit, Query, Questions


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with what was found for it; `lang` is the language that its calibration was for."""

    query: Query
    lang: str
    hits: tuple[Hit, ...]


class QuestionExpander(Protocol):
    """Says what to search with in place of a question (`expansion.Expander`)."""

    def expand(self, queries: Sequence[Query]) -> list[tuple[Query, ...]]:
        """Per question one wording or more; the mean of their vectors is searched. `lang` None is detected."""
        ...


class HitReranker(Protocol):
    """Orders the hits of questions anew (`rerank.Reranker`). depth: how many hits it wants of each."""

    depth: int

    def rerank_all(
        self, queries: Sequence[Query], hits: Sequence[Sequence[Hit]], *, progress: Progress = silent
    ) -> list[list[Hit]]:
        """Per question the same hits, best first."""
        ...


@dataclass(frozen=True, slots=True)
class LookUp:
    """One call of a collection's search: the `questions` in `rows`, by the vector `using`, the `k` best of each."""

    using: str
    rows: list[int]
    questions: Questions
    k: int
    breadth: int | None


class Retriever:
    """Searches one collection with the encoder that made it; threads may share it.

    calibration: λ, None for what the collection's card recommends, 0 to switch it off.
    hybrid: search the words as well (BM25) and fuse the two rankings (`rank_fusion`); scores are then the fused ones.
    expander: what to search with in place of a question. reranker: orders the hits anew.
    Raises MismatchError when the collection was made by another encoder, with both fingerprints, and for `hybrid` when
    it was not loaded for that.
    """

    def __init__(
        self,
        encoder: CalibratedEncoder,
        collection: Collection,
        *,
        calibration: float | None = None,
        hybrid: bool = False,
        expander: QuestionExpander | None = None,
        reranker: HitReranker | None = None,
    ) -> None:
        self.encoder = encoder
        self.collection = collection
        self.query_encoder = QueryEncoder(encoder, collection=collection, calibration=calibration)
        self.expander = expander
        self.reranker = reranker
        self._words = None
        if hybrid:
            settings = check_hybrid(collection.card, name=collection.name)
            from xqg_vdb.collection.bm25 import WordWriter  # brings the embedded engine

            self._words = WordWriter(settings)

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        langs: Sequence[str] | None = None,
        lang: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question, by score, then id.

        langs: only passages in these languages. lang: the question's own language; detected when not given.
        """
        return list(self.run([Query("0", text, lang)], k=k, langs=langs, exact=exact)[0].hits)

    def run(
        self,
        queries: Sequence[Query],
        *,
        k: int = 10,
        langs: Sequence[str] | None = None,
        exact: bool = False,
        progress: Progress = silent,
    ) -> list[Answer]:
        """The k best passages for each question, in input order.

        progress: told how far the reranker is, the only slow step; ask it about many questions together, because it
            reads each passage once.
        Raises DataError for a blank question and for what is no language code.
        """
        if not queries:
            return []
        wanted = passage_languages(langs)
        asked = self.encode(queries)
        look_ups = self.look_ups(asked, k=k)
        found = [
            self.collection.search(one.questions, k=one.k, langs=wanted, using=one.using, exact=exact, ef=one.breadth)
            for one in look_ups
        ]
        return self.answers(queries, asked, look_ups, found, k=k, progress=progress)

    def encode(self, queries: Sequence[Query]) -> EncodedQueries:
        """The first step of `run`: one row per question, the mean over its wordings when there is an expander."""
        if self.expander is None:
            return self.query_encoder.encode(queries)
        refuse_blank(queries)
        wordings = self.expander.expand(queries)
        flat = self.query_encoder.encode([one for several in wordings for one in several])
        starts = np.cumsum([0, *(len(several) for several in wordings[:-1])])
        return EncodedQueries(
            mean_rows(flat.vectors, starts, normalize=self.encoder.facts.normalize),
            tuple(flat.langs[start] for start in starts),
            flat.breadth,
            tuple("\n".join(one.text for one in several) for several in wordings),
        )

    def look_ups(self, asked: EncodedQueries, *, k: int) -> list[LookUp]:
        """What to ask the collection: their vectors, and the words of those that have any."""
        wanted = self._depth(k)
        depth = wanted if self._words is None or k < 1 else max(wanted, DEPTH)
        calls = [LookUp(TEXT_DENSE, list(range(len(asked.vectors))), asked.vectors, depth, asked.breadth)]
        if self._words is not None:
            words = [self._words.question(text) for text in asked.texts]
            rows = [row for row, own in enumerate(words) if len(own.indices)]
            if rows:
                calls.append(LookUp(TEXT_SPARSE, rows, [words[row] for row in rows], depth, None))
        return calls

    def answers(
        self,
        queries: Sequence[Query],
        asked: EncodedQueries,
        look_ups: Sequence[LookUp],
        found: Sequence[Sequence[Sequence[Hit]]],
        *,
        k: int,
        progress: Progress = silent,
    ) -> list[Answer]:
        """The last step of `run`: each question's hits, fused when it is hybrid, reranked when asked for, cut to k."""
        rankings: list[list[Sequence[Hit]]] = [[] for _ in queries]
        for one, hits in zip(look_ups, found, strict=True):
            for row, own in zip(one.rows, hits, strict=True):
                rankings[row].append(own)
        merged: Sequence[Sequence[Hit]]
        if self._words is None:
            merged = [several[0] for several in rankings]
        else:
            merged = [fuse_ranks(several, k=self._depth(k)) for several in rankings]
        if self.reranker is not None:
            merged = self.reranker.rerank_all(queries, merged, progress=progress)
        return [
            Answer(query, lang, tuple(hits[:k])) for query, lang, hits in zip(queries, asked.langs, merged, strict=True)
        ]

    def _depth(self, k: int) -> int:
        """How many hits are wanted of the search when k are wanted in the end."""
        return k if self.reranker is None or k < 1 else max(k, self.reranker.depth)


def passage_languages(langs: Sequence[str] | None) -> list[str] | None:
    """The codes under which passages in `langs` are stored, None for all.

    Raises DataError for a bare string, an empty list, and what is no language code.
    """
    check_langs(langs)
    return None if langs is None else [normalize(code) for code in langs]
