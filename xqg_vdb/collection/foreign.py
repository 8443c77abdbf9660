"""A collection on a server that somebody else made: reading it page by page.

In: its name. Out: points as they lie there, in the order of their ids. This file writes nothing; where texts are is in
`foreign_payloads`, copies are in `foreign_copy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import QdrantClient, models

from ..errors import DataError, MismatchError
from ..types import Card, Distance
from .layout import missing_collection
from .retry import NotFound, Server
from .server_names import Names

AUGMENT_KEY = "xqg_augment"
"""Metadata of a copy that `augment` makes: of what, and by which run, so that it can be continued and undone."""
PAGE = 256

PointId = int | str
_DISTANCES: Mapping[models.Distance, Distance] = {models.Distance.COSINE: "cosine", models.Distance.DOT: "dot"}
_PRECISE = (None, models.Datatype.FLOAT32, models.Datatype.FLOAT16)


@dataclass(frozen=True, slots=True)
class ForeignPoint:
    """One point: dense vectors are lists of floats, sparse ones and multivectors are as the client gives them."""

    id: PointId
    payload: dict[str, Any]
    vectors: dict[str, Any]


class ForeignCollection:
    """A collection of any layout. `physical`: the collection itself, where `name` is an alias.

    Raises DataError when there is none of that name.
    """

    def __init__(self, names: Names, name: str, *, is_local: bool) -> None:
        self.names, self.name, self.is_local = names, name, is_local
        self.physical = names.target(name) or name
        self.metadata  # noqa: B018 - a wrong name is found out here

    def at(self, physical: str) -> ForeignCollection:
        """Another collection of the same server."""
        return ForeignCollection(self.names, physical, is_local=self.is_local)

    @property
    def client(self) -> QdrantClient:
        """Of the server."""
        return self.names.client

    @property
    def server(self) -> Server:
        """Of the collection."""
        return self.names.server

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The collection's own records, ours among them."""
        return self.info().config.metadata or {}

    @property
    def record(self) -> dict[str, Any]:
        """What `augment` noted about a copy that it made of another collection; empty for all others."""
        found = self.metadata.get(AUGMENT_KEY)
        return dict(found) if isinstance(found, dict) and found.get("source") != self.physical else {}

    @property
    def card(self) -> Card | None:
        """Its card, when it has one."""
        return self.names.card(self.physical)

    def info(self) -> models.CollectionInfo:
        """What the server says about it. Raises DataError when it is gone."""
        try:
            return self.server.call(lambda: self.client.get_collection(self.physical))
        except NotFound as error:
            existing = sorted(one.name for one in self.server.call(self.client.get_collections).collections)
            raise missing_collection(self.name, existing, where=self.server.where) from error

    def dense_vectors(self) -> dict[str, models.VectorParams]:
        """Its dense vectors by name, "" for the unnamed one; multivectors are left out."""
        found = self.info().config.params.vectors or {}
        named = {"": found} if isinstance(found, models.VectorParams) else found
        return {name: params for name, params in named.items() if params.multivector_config is None}

    def count(self) -> int:
        """Exact number of points."""
        return self.server.call(lambda: self.client.count(self.physical, exact=True)).count

    def pages(self, *, vectors: Sequence[str] | None, after: PointId | None = None) -> Iterator[list[ForeignPoint]]:
        """All points from the one with the id `after` on; of their vectors those named, all with None."""
        wanted: bool | list[str] = True if vectors is None or "" in vectors else list(vectors)
        offset: Any = after
        while True:
            records, offset = self.server.call(
                lambda offset=offset: self.client.scroll(  # type: ignore[misc]
                    self.physical, limit=PAGE, offset=offset, with_payload=True, with_vectors=wanted or False
                )
            )
            yield [_point(record) for record in records]
            if offset is None:
                return


def chosen_vector(vectors: Mapping[str, models.VectorParams], wanted: str | None, *, name: str) -> str:
    """The vector that is searched: `wanted`, the only one, or `text-dense`.

    Raises DataError when that cannot be said, MismatchError for distances and number formats that fusion cannot keep.
    """
    have = ", ".join(repr(one) for one in vectors) or "none"
    if wanted is None:
        wanted = next(iter(vectors)) if len(vectors) == 1 else "text-dense"
        if wanted not in vectors:
            raise DataError(f"Collection {name!r} has the dense vectors {have}: say which is searched with --vector.")
    if wanted not in vectors:
        raise DataError(f"Collection {name!r} has no dense vector {wanted!r}; it has {have} (--vector).")
    params = vectors[wanted]
    if params.distance not in _DISTANCES:
        raise MismatchError(
            f"Vector {wanted!r} of {name!r} is compared by {params.distance.value} distance; fusion is defined for"
            " Cosine and Dot: load the texts into a new collection with `xqg-vdb load`."
        )
    if params.datatype not in _PRECISE:
        raise MismatchError(
            f"Vector {wanted!r} of {name!r} is stored as {params.datatype.value if params.datatype else '?'}, which"
            " cannot hold fused vectors: load the texts into a new collection with `xqg-vdb load`."
        )
    return wanted


def distance_of(params: models.VectorParams) -> Distance:
    """In our words; for vectors that `chosen_vector` let pass."""
    return _DISTANCES[params.distance]


def _point(record: models.Record) -> ForeignPoint:
    vector: Any = record.vector
    vectors = vector if isinstance(vector, dict) else {} if vector is None else {"": vector}
    return ForeignPoint(_plain_id(record.id), record.payload or {}, vectors)


def _plain_id(found: Any) -> PointId:
    return found if isinstance(found, int) else str(found)
