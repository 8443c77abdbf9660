"""A collection on a server that somebody else made: reading it page by page, and writing vectors back.

In: its name. Out: points as they lie there, in the order of their ids. This file refuses to know what vectors mean;
where texts are is in `foreign_payloads`, copies are in `foreign_copy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import QdrantClient, models

from ..errors import DataError, MismatchError
from ..types import Card, Distance, Vectors
from .client_errors import NotDone
from .layout import missing_collection
from .retry import NotFound, Refused, Server, TooLarge
from .server_names import CARD_KEY, Names

AUGMENT_KEY = "xqg_augment"
"""Metadata of an augmented collection: what was done to it, so that it can be continued and undone."""
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
        """What `augment` noted about it; empty when it never did anything."""
        found = self.metadata.get(AUGMENT_KEY)
        return dict(found) if isinstance(found, dict) else {}

    @property
    def card(self) -> Card | None:
        """Its card, when it has one."""
        return self.names.card(self.physical)

    def write_metadata(self, *, record: Mapping[str, Any] | None = None, card: Card | None = None) -> None:
        """Replace our record, and the card when given; empty ones stand for none."""
        entries: dict[str, Any] = {} if record is None else {AUGMENT_KEY: dict(record)}
        if card is not None:
            entries[CARD_KEY] = card.to_json()
        self.names.write_metadata(self.physical, entries)

    def clear_record(self) -> None:
        """Take our record out, and put the card back that was there before."""
        self.names.write_metadata(self.physical, {AUGMENT_KEY: {}, CARD_KEY: self.record.get("card") or {}})

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

    def pages(
        self, *, vectors: Sequence[str] | None, payloads: bool, after: PointId | None = None
    ) -> Iterator[list[ForeignPoint]]:
        """All points from the one with the id `after` on; of their vectors those named, all with None."""
        wanted: bool | list[str] = True if vectors is None or "" in vectors else list(vectors)
        offset: Any = after
        while True:
            records, offset = self.server.call(
                lambda offset=offset: self.client.scroll(  # type: ignore[misc]
                    self.physical, limit=PAGE, offset=offset, with_payload=payloads, with_vectors=wanted or False
                )
            )
            yield [_point(record) for record in records]
            if offset is None:
                return

    def write_vectors(self, ids: Sequence[PointId], rows: Mapping[str, Vectors]) -> None:
        """Replace these vectors (n, dim) of the points `ids`, those of one point in one step; others stay."""
        columns = {name: matrix.tolist() for name, matrix in rows.items()}
        points = [
            models.PointVectors(id=one, vector=struct({name: column[i] for name, column in columns.items()}))
            for i, one in enumerate(ids)
        ]
        self._send(points)

    def _send(self, points: Sequence[models.PointVectors]) -> None:
        if not points:
            return
        try:
            self.server.call(lambda: completed(self.client.update_vectors(self.physical, points, wait=True)))
        except TooLarge:
            if len(points) == 1:
                raise
            middle = len(points) // 2
            self._send(points[:middle])
            self._send(points[middle:])

    def add_vector(self, name: str, *, like: models.VectorParams) -> None:
        """Add an empty named vector; one that is there already is fine.

        Raises MismatchError where the server cannot: Qdrant can since 1.18.
        """
        dense = models.DenseVectorConfig(size=like.size, distance=like.distance, datatype=_storage(like))
        config = models.DenseVectorNameConfig(dense=dense)
        try:
            self.server.call(lambda: self.client.create_vector_name(self.physical, name, config, wait=True))
        except (DataError, MismatchError, NotFound, Refused) as error:
            raise MismatchError(
                f"{self.server.where} cannot add a vector {name!r} to {self.name!r} ({error}) Qdrant can since version"
                " 1.18; keep the original vectors in a folder instead (--backup DIR), or leave out --in-place: then"
                " a new collection is made."
            ) from error

    def drop_vector(self, name: str) -> None:
        """Remove a named vector from all points."""
        self.server.call(lambda: self.client.delete_vector_name(self.physical, name, wait=True))


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


def struct(vectors: Mapping[str, Any]) -> Any:
    """As the client takes them: the unnamed vector alone is a bare list."""
    return vectors[""] if set(vectors) == {""} else dict(vectors)


def completed(result: models.UpdateResult) -> None:
    """Raise NotDone, so that the call is repeated, unless the server has carried it out."""
    if result.status != models.UpdateStatus.COMPLETED:
        raise NotDone(f"a change of vectors was answered with {result.status.value}")


def _storage(like: models.VectorParams) -> models.VectorStorageDatatype | None:
    return None if like.datatype is None else models.VectorStorageDatatype(like.datatype.value)
