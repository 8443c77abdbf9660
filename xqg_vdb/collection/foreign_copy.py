"""A copy of somebody's collection under construction: same layout, same payloads, published by an alias when complete.

In: a source and a name. Out: `name__v0001` and so on, seen by nobody until `publish` points the alias `name` at it.
This file refuses to know what is different in the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qdrant_client import models

from ..errors import CorruptError, MismatchError
from ..types import Card
from .client_errors import NotDone
from .foreign import AUGMENT_KEY, ForeignCollection, ForeignPoint, PointId
from .retry import TooLarge
from .server_index import build_index
from .server_names import CARD_KEY, CURSOR_KEY, Names, version_number


class ForeignCopy:
    """An unpublished copy. `after`: the id up to which it is filled; None for a new one."""

    def __init__(self, source: ForeignCollection, physical: str) -> None:
        self._names, self.physical, self._is_local = source.names, physical, source.is_local
        self.after: PointId | None = (self._names.metadata(physical).get(CURSOR_KEY) or {}).get("after")

    def upsert(self, points: Sequence[ForeignPoint]) -> None:
        """Write whole points; writing them again is harmless."""
        if not points:
            return
        client = self._names.client
        structs = [models.PointStruct(id=one.id, payload=one.payload, vector=_struct(one.vectors)) for one in points]
        try:
            self._names.server.call(lambda: _completed(client.upsert(self.physical, structs, wait=True)))
        except TooLarge:
            if len(points) == 1:
                raise
            middle = len(points) // 2
            self.upsert(points[:middle])
            self.upsert(points[middle:])

    def commit(self, after: PointId) -> None:
        """Note that all points up to this one are in."""
        self._names.write_metadata(self.physical, {CURSOR_KEY: {"after": after}})

    def publish(self, name: str, *, card: Card, record: Mapping[str, Any], indexed: Callable[[int], None]) -> None:
        """Check the count, wait for the index, write card and record, and point the alias `name` here, in this order.

        Raises CorruptError when points are missing: the source changed meanwhile.
        """
        found = self._names.server.call(lambda: self._names.client.count(self.physical, exact=True)).count
        if found != card.count:
            self._names.remove(self.physical)
            raise CorruptError(
                f"The source has {card.count:,} points now, its copy {found:,}: it was changed meanwhile. Run the same"
                " command again while nobody writes."
            )
        if not self._is_local:
            build_index(self._names, self.physical, indexed=indexed)
        self._names.write_metadata(self.physical, {CARD_KEY: card.to_json(), AUGMENT_KEY: dict(record)})
        self._names.switch(name, self.physical)


def open_copy(source: ForeignCollection, name: str, *, record: Mapping[str, Any]) -> ForeignCopy:
    """Go on with the unfinished copy that has an equal `run` in its record, else begin one; others of ours go away.

    Raises MismatchError when `name` is a collection itself, is loaded by somebody, or when shards have keys.
    """
    names = source.names
    names.refuse_plain(name)
    current = version_number(name, names.target(name) or "") or 0
    highest = current
    for version in names.versions(name):
        highest = max(highest, version_number(name, version) or 0)
        found = names.metadata(version).get(AUGMENT_KEY) or {}
        if not found or found.get("finished"):
            continue
        if found.get("run") == record["run"] and found.get("source") == source.physical:
            return ForeignCopy(source, version)
        names.remove(version)
    physical = f"{name}__v{highest + 1:04d}"
    names.server.call(lambda: _create_like(source, physical, {AUGMENT_KEY: dict(record)}))
    return ForeignCopy(source, physical)


def _create_like(source: ForeignCollection, physical: str, metadata: Mapping[str, Any]) -> None:
    """An empty collection with the source's vectors, graph, quantisation, shards and payload indexes."""
    info, client = source.info(), source.client
    params = info.config.params
    if params.sharding_method == models.ShardingMethod.CUSTOM:
        raise MismatchError(
            f"{source.name!r} has shards with keys of its own, which are not copied: load"
            " its texts into a new collection with `xqg-vdb load`."
        )
    graph = info.config.hnsw_config.model_dump(include=set(models.HnswConfigDiff.model_fields), exclude_none=True)
    if not client.collection_exists(physical):
        client.create_collection(
            physical,
            vectors_config=params.vectors,
            sparse_vectors_config=params.sparse_vectors,
            shard_number=params.shard_number,
            replication_factor=params.replication_factor,
            write_consistency_factor=params.write_consistency_factor,
            on_disk_payload=params.on_disk_payload,
            hnsw_config=models.HnswConfigDiff(**graph),
            quantization_config=info.config.quantization_config,
            metadata=dict(metadata),
        )
    if source.is_local:  # it has no indexes, and says so each time
        return
    for key, index in (info.payload_schema or {}).items():
        client.create_payload_index(physical, key, field_schema=index.params or index.data_type, wait=True)


def previous_target(source: ForeignCollection, name: str) -> tuple[str | None, str | None]:
    """Where the alias `name` pointed before any copy of `source`, and the copy that it points to now.

    Raises MismatchError when it points to something else.
    """
    target = source.names.target(name)
    if target in (None, source.physical):
        return target, None
    found = source.at(str(target)).record
    if found.get("source") != source.physical:
        raise MismatchError(
            f"{name!r} on {source.server.where} points to {target!r}, which is no copy of {source.name!r}: choose"
            " another name (--to)."
        )
    return found["previous"], target


def remove_copy(names: Names, name: str, physical: str, *, previous: str | None) -> None:
    """Point the alias `name` at `previous` again, or take it away, then delete the copy."""
    if names.target(name) == physical:
        if previous is not None:
            names.switch(name, previous)
        else:
            gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
            names.server.call(lambda: names.client.update_collection_aliases([gone]))
    names.remove(physical)


def remove_unfinished(source: ForeignCollection, name: str) -> list[str]:
    """Delete what stopped runs left of copies of `source` under `name`; their names."""
    removed = []
    for version in source.names.versions(name):
        found = source.names.metadata(version).get(AUGMENT_KEY) or {}
        if found.get("source") == source.physical and not found.get("finished"):
            source.names.remove(version)
            removed.append(version)
    return removed


def _struct(vectors: Mapping[str, Any]) -> Any:
    """As the client takes them: the unnamed vector alone is a bare list."""
    return vectors[""] if set(vectors) == {""} else dict(vectors)


def _completed(result: models.UpdateResult) -> None:
    """Raise NotDone, so that the call is repeated, unless the server has carried it out."""
    if result.status != models.UpdateStatus.COMPLETED:
        raise NotDone(f"points were answered with {result.status.value}")
