"""A collection as its users hold it: a name in a store, and the encoder that its questions are encoded with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.errors import DataError
from xqg_vdb.models.folder import folder_of
from xqg_vdb.search.retriever import Answer, Retriever, ready_encoder
from xqg_vdb.store import open_store
from xqg_vdb.texts.records import Records, Rejects
from xqg_vdb.types import Card, Hit, Question, QuestionRows, Search, StoredPoint, UpdateReport, VectorStore


class Collection:
    """One published collection of a store. A context manager that closes the store.

    encoder: ready, or its folder or name; without one, `search` opens the encoder that the card names.
    """

    def __init__(self, name: str, store: VectorStore, *, encoder: CalibratedEncoder | str | Path | None = None) -> None:
        if not hasattr(store, "search"):
            raise DataError(
                f"Collection(name, store) needs an open store, found {store!r:.80}: write Collection.open({name!r:.80},"
                " path=…) or (…, url=…)."
            )
        self.name = name
        self.store = store
        self._encoder = encoder

    @classmethod
    def open(
        cls,
        name: str,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
        encoder: CalibratedEncoder | str | Path | None = None,
    ) -> Collection:
        """The collection `name` in the folder `path` or on the server at `url`; see `open_store` for what is not given.

        Raises DataError when there is none of that name; LockedError when another process reads the folder, so that a
        second worker of a service is refused at its start.
        """
        store = open_store(path, url=url, api_key=api_key)
        try:
            store.card(name)
            store.version(name)
        except BaseException:
            store.close()
            raise
        return cls(name, store, encoder=encoder)

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {self.store!r})"

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def card(self) -> Card:
        """Who made its vectors and how; read anew each time, because a load may publish another version."""
        return self.store.card(self.name)

    @property
    def version(self) -> str:
        """Which version searches see now, such as v0003; "" where it has none."""
        return self.store.version(self.name)

    def at(self, version: str) -> Collection:
        """The same, bound to one version: its searches raise `Moved` when that one is gone."""
        return Collection(f"{self.name.partition('@')[0]}@{version}", self.store) if version else self

    @cached_property
    def encoder(self) -> CalibratedEncoder:
        """What its questions are encoded with. Raises ModelError when none was given and the card's cannot be found."""
        return ready_encoder(self._encoder or folder_of(self.card.encoder, collection=self.name))

    @cached_property
    def _retriever(self) -> Retriever:
        return Retriever(self.encoder, self)

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        passage_langs: Sequence[str] | None = None,
        question_lang: str | None = None,
        where: Any = None,
        offset: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        """The k best passages for one question in any language; see `Retriever.search`."""
        return self._retriever.search(
            text, k=k, passage_langs=passage_langs, question_lang=question_lang, where=where, offset=offset, exact=exact
        )

    def run(self, questions: Sequence[Question | str], search: Search | None = None) -> list[Answer]:
        """The best passages for each of several questions, encoded together; see `Retriever.run`."""
        return self._retriever.run(questions, search)

    def nearest(self, questions: QuestionRows, search: Search | None = None) -> list[list[Hit]]:
        """The k best for each row, by score, then id."""
        return self.store.search(self.name, questions, search or Search())

    def count(self, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of passages, of those languages when given."""
        return self.store.count(self.name, passage_langs=passage_langs)

    def scroll(self, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point, in the engine's order."""
        return self.store.scroll(self.name, with_vectors=with_vectors)

    def add(
        self,
        passages: str | os.PathLike[str] | Records,
        *,
        queries: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Records | None = None,
        rejects: Rejects | None = None,
    ) -> UpdateReport:
        """Add passages, or replace those of their ids, by the collection's own card; see `index.update.add`."""
        report: UpdateReport = _updating().add(
            passages, self.name, encoder=self.encoder, store=self.store, queries=queries, rejects=rejects
        )
        return report

    def delete(self, ids: Iterable[str]) -> UpdateReport:
        """Delete passages; ids that are not there are reported, and no error."""
        report: UpdateReport = _updating().delete(ids, self.name, store=self.store)
        return report

    def close(self) -> None:
        """Close the store, and the encoder if it was opened here."""
        self.store.close()
        opened = self.__dict__.get("encoder")
        if opened is not None and opened is not self._encoder:
            opened.close()


def _updating() -> ModuleType:
    return import_module("xqg_vdb.index.update")  # which stands above this folder
