"""LangChain, LlamaIndex and Haystack: thin wrappers round a ready encoder or retriever, a module and an extra for each.

Every module has the same things: an embedder whose questions are calibrated, for the framework's own Qdrant store; a
retriever that does the whole search; a store, which writes, too; and `language_filter`, which says "only passages in
these languages" in the framework's words. No framework is imported here, so that one does not need the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from xqg_vdb.errors import DataError
from xqg_vdb.index.load import load
from xqg_vdb.search.retriever import Collection, QuestionEncoder, Retriever
from xqg_vdb.store.layout import point_id
from xqg_vdb.types import UNKNOWN_LANGUAGE, Hit, Passage, Question, Search

_AT_ONCE = 1000  # passages that are looked up together


def question_vector(encoder: QuestionEncoder, text: str, question_lang: str | None) -> list[float]:
    """The calibrated vector of one question. Raises DataError when it is blank."""
    vector: list[float] = encoder.encode([Question("0", text, question_lang)])[0][0].tolist()
    return vector


def search_options(*given: Any, default: tuple[Any, ...]) -> dict[str, Any]:
    """k, passage_langs, question_lang and where of a search: as a call says, else as its retriever was made."""
    names = ("k", "passage_langs", "question_lang", "where")
    return {
        name: otherwise if value is None else value
        for name, value, otherwise in zip(names, given, default, strict=True)
    }


def metadata_of(hit: Hit, *, known: bool = False) -> dict[str, Any]:
    """What frameworks keep beside a text: the passage's other fields, its language and its title.

    known: leave these two out where there is none, so that what a framework wrote comes back as it was.
    """
    told = {"lang": hit.lang, "title": hit.title}
    unsaid = {name for name, text in told.items() if known and text in ("", UNKNOWN_LANGUAGE)}
    span = {} if hit.span is None else {"span": list(hit.span)}
    return {**hit.meta, **span, **{name: text for name, text in told.items() if name not in unsaid}}


def passage_of(docid: str, text: str, metadata: Mapping[str, Any]) -> Passage:
    """The passage of a framework's document; `lang` and `title` of its metadata are the passage's own."""
    meta = dict(metadata)
    title, lang = meta.pop("title", None) or "", meta.pop("lang", None) or UNKNOWN_LANGUAGE
    return Passage(docid, text, title=str(title), lang=str(lang), meta=meta)


def with_ids(ids: Iterable[str]) -> models.HasIdCondition:
    """Only passages with these ids."""
    return models.HasIdCondition(has_id=[str(point_id(docid)) for docid in ids])


class Documents:
    """A collection that a framework writes into: the first documents make it, the next ones change it.

    collection: `Collection(name, open_store(…), encoder=…)`, which need not be there yet; where it is, its card says
    how to encode what is added. Generated queries come by `load` and `Collection.add`. Threads may share it.
    """

    def __init__(self, collection: Collection) -> None:
        if not isinstance(collection, Collection):
            raise DataError(f"A Collection(name, open_store(…), encoder=…) is needed, found {collection!r:.80}.")
        self.collection = collection
        self._mutex = threading.Lock()
        self._asked: Retriever | None = None

    def asked(self) -> Retriever | None:
        """What its questions are asked of; None as long as there is no collection."""
        with self._mutex:
            return self._find()

    def add(self, passages: Iterable[Passage]) -> None:
        """Add passages, or replace those of their ids; of several with one id, the last. Raises like `load`."""
        last = list({passage.id: passage for passage in passages}.values())
        into = self.collection
        with self._mutex:
            if last and self._find() is not None:
                into.add(last)
            elif last:
                load(last, into.name, encoder=into.encoder, store=into.store)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages; those that are not there are no error."""
        if self.asked() is not None:
            self.collection.delete(ids)

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """Those of the passages that are there, in the order of their ids."""
        points = [str(point_id(docid)) for docid in ids]
        found = {} if self.asked() is None else self.collection.store.fetch(self.collection.name, points)
        return [found[point] for point in points if point in found]

    def delete_matching(self, where: models.Filter) -> None:
        """Delete what a filter lets through."""
        while gone := [hit.id for hit in self.matching(where)]:
            self.delete(gone)

    def matching(self, where: Any, *, most: int = _AT_ONCE) -> list[Hit]:
        """Up to so many passages that a filter lets through, or that there are, in an order of no meaning."""
        return self.nearest([1.0] * self.collection.encoder.facts.dim, Search(most, where=where, exact=True))

    def count(self) -> int:
        """How many passages there are."""
        return 0 if self.asked() is None else self.collection.count()

    def ids(self) -> list[str]:
        """The id of every passage."""
        return [] if self.asked() is None else [point.id for point in self.collection.scroll()]

    def nearest(self, vector: Sequence[float], search: Search) -> list[Hit]:
        """The k best passages for one vector."""
        row = np.asarray(vector, np.float32)[None]
        return [] if self.asked() is None else self.collection.nearest(row, search)[0]

    def search(self, question: Question, search: Search) -> list[Hit]:
        """The k best passages for one question."""
        asked = self.asked()
        return [] if asked is None else list(asked.run([question], search)[0].hits)

    def _find(self) -> Retriever | None:
        if self._asked is None and self.collection.name in self.collection.store.names():
            self._asked = Retriever(self.collection.encoder, self.collection)
        return self._asked
