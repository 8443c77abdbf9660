"""Questions in, passages out, and the two neighbouring methods by their names: query expansion and UPR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.search.expand import Expander
    from xqg_vdb.search.rerank import Reranker


@dataclass(frozen=True)
class Methods:
    """What a search does besides; nothing unless told."""

    expand: str | None = option(
        None,
        "Search also with a generator's (or an endpoint URL's) translation of the question, or with a passage that it "
        "writes: translation or pseudo-document.",
        metavar="METHOD:MODEL",
    )
    expand_lang: str | None = option(None, "Language of the expansion  [default: the question's]", metavar="CODE")
    expand_model: str = option("default", "Model name at an endpoint.", metavar="NAME")
    rerank: str | None = option(
        None,
        "Rank again, by how likely a generator finds the question (upr:MODEL) or by a cross-encoder (cross:MODEL).",
        metavar="METHOD:MODEL",
    )
    rerank_depth: int = option(100, "Passages that are ranked again.", least=1, most=10_000)
    rerank_weight: float | None = option(
        None, "Weight of that against the first score  [default: 0.25 of UPR, 1 of a cross-encoder]", least=0, most=1
    )

    @contextmanager
    def open(self, *, threads: int | None = None) -> Iterator[tuple[Expander | None, Reranker | None]]:
        """What `Retriever` takes. Raises DataError for another method, ModelError for what is no such generator."""
        expander = reranker = None
        if self.rerank is not None:
            from xqg_vdb.search.rerank import Reranker, reranker_spec

            model = reranker_spec(self.rerank)
            reranker = Reranker(model, depth=self.rerank_depth, weight=self.rerank_weight, threads=threads or 0)
        if self.expand is not None:
            from xqg_vdb.search.expand import Expander, expansion_spec

            method, model = expansion_spec(self.expand)
            expander = Expander(
                model, method=method, lang=self.expand_lang, endpoint_model=self.expand_model, threads=threads or 0
            )
        try:
            yield expander, reranker
        finally:
            if expander is not None:
                expander.close()
