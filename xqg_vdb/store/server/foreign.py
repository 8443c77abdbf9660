"""A collection on a server that somebody else made: reading it in the order of ids, and copying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from qdrant_client import models

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.store.layout import missing_collection
from xqg_vdb.store.server.client import NotFound, TooLarge
from xqg_vdb.store.server.names import AUGMENT_KEY, CARD_KEY, CURSOR_KEY, Names, card_in, completed, is_ours
from xqg_vdb.store.server.writer import build_index
from xqg_vdb.texts.records import hash64
from xqg_vdb.types import Card, Distance

PAGE = 256

_DISTANCES: Mapping[models.Distance, Distance] = {models.Distance.COSINE: "cosine", models.Distance.DOT: "dot"}
_PRECISE = (None, models.Datatype.FLOAT32, models.Datatype.FLOAT16)


@dataclass(frozen=True, slots=True)
class ForeignPoint:
    """One point: dense vectors are lists of floats, sparse ones and multivectors are as the client gives them."""

    id: int | str
    payload: dict[str, Any]
    vectors: dict[str, Any]

    @property
    def hash(self) -> int:
        """What tells its payload from another."""
        return hash64(orjson.dumps(self.payload, option=orjson.OPT_SORT_KEYS))


class ForeignCollection:
    """A collection of any layout, which must exist. `physical`: the collection itself, where `name` is an alias."""

    def __init__(self, names: Names, name: str) -> None:
        self.names, self.name = names, name
        self.physical = names.target(name) or name
        self.info()  # a wrong name is found out here

    @property
    def record(self) -> dict[str, Any]:
        """What `augment` noted about a copy that it made of another collection; empty for all others."""
        found: Any = (self.info().config.metadata or {}).get(AUGMENT_KEY)
        whole = isinstance(found, dict) and isinstance(found.get("source"), str) and "previous" in found
        return dict(found) if whole and found["source"] != self.physical else {}

    @property
    def card(self) -> Card | None:
        """Its card, when it has one."""
        return card_in(self.info().config.metadata or {})

    def info(self) -> models.CollectionInfo:
        """What the server says about it. Raises DataError when it is gone."""
        try:
            return self.names.look(lambda: self.names.client.get_collection(self.physical))
        except NotFound as error:
            existing = sorted(self.names.collections())
            raise missing_collection(self.name, existing, where=self.names.server.where) from error

    def dense_vectors(self) -> dict[str, models.VectorParams]:
        """Its dense vectors by name, "" for the unnamed one; multivectors are left out."""
        found = self.info().config.params.vectors or {}
        named = {"": found} if isinstance(found, models.VectorParams) else found
        return {name: params for name, params in named.items() if params.multivector_config is None}

    def pages(self, *, vectors: Sequence[str] | None, after: int | str | None = None) -> Iterator[list[ForeignPoint]]:
        """All points from the one with the id `after` on; of their vectors those named, all with None."""
        wanted: bool | list[str] = True if vectors is None or "" in vectors else list(vectors)
        for page in self.names.pages(self.physical, page=PAGE, after=after, vectors=wanted or False):
            yield [_point(record) for record in page]

    def remove(self, hashes: Mapping[int | str, int]) -> None:
        """Delete those of the points whose payloads are still what they were."""
        client = self.names.client
        found = self.names.look(lambda: client.retrieve(self.physical, list(hashes), with_payload=True))
        gone = [point.id for point in map(_point, found) if point.hash == hashes[point.id]]
        selected = models.PointIdsList(points=list(gone))
        self.names.server.call(lambda: completed(client.delete(self.physical, selected, wait=True).status))


def chosen_vector(vectors: Mapping[str, models.VectorParams], wanted: str | None, *, name: str) -> tuple[str, Distance]:
    """The vector that is searched: `wanted`, the only one, or `text-dense`; and how it is compared.

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
    return wanted, _DISTANCES[params.distance]


def _point(record: models.Record) -> ForeignPoint:
    vector: Any = record.vector
    vectors = vector if isinstance(vector, dict) else {} if vector is None else {"": vector}
    return ForeignPoint(record.id if isinstance(record.id, int) else str(record.id), record.payload or {}, vectors)


# A copy of somebody's collection under construction: same layout, same payloads, published by an alias when complete.


class ForeignCopy:
    """An unpublished copy. `after`: the id up to which it is filled; None for a new one."""

    def __init__(self, source: ForeignCollection, physical: str) -> None:
        self._names, self.physical = source.names, physical
        self.after: int | str | None = (self._names.metadata(physical).get(CURSOR_KEY) or {}).get("after")

    def upsert(self, points: Sequence[ForeignPoint]) -> None:
        """Write whole points; writing them again is harmless."""
        if not points:
            return
        structs = [
            models.PointStruct.model_construct(  # as the server gave them: nothing to validate
                id=point.id, payload=point.payload,
                vector=point.vectors[""] if set(point.vectors) == {""} else point.vectors,
            )
            for point in points
        ]  # fmt: skip
        try:
            upsert = partial(self._names.client.upsert, self.physical, structs, wait=True)
            self._names.server.call(lambda: completed(upsert().status.value))
        except TooLarge:
            if len(points) == 1:
                raise
            middle = len(points) // 2
            self.upsert(points[:middle])
            self.upsert(points[middle:])

    def commit(self, after: int | str) -> None:
        """Note that all points up to this one are in."""
        self._names.write_metadata(self.physical, {CURSOR_KEY: {"after": after}})

    def publish(self, name: str, *, card: Card, record: Mapping[str, Any], indexed: Callable[[int], None]) -> None:
        """Check the count, wait for the index, write card and record, then point the alias `name` here."""
        found = self._names.count(self.physical)
        if found != card.count:
            self._names.remove(self.physical)
            raise CorruptError(
                f"The source has {card.count:,} points now, its copy {found:,}: it was changed meanwhile. Run the same"
                " command again while nobody writes."
            )
        if not self._names.is_local:
            build_index(self._names, self.physical, indexed=indexed)
        self._names.write_metadata(self.physical, {CARD_KEY: card.to_json(), AUGMENT_KEY: dict(record)})
        self._names.publish(name, self.physical)


def open_copy(source: ForeignCollection, name: str, *, record: Mapping[str, Any]) -> ForeignCopy:
    """Continue the unfinished copy that has an equal `run` in its record, else begin one; others of ours go away."""
    names = source.names
    names.refuse_plain(name)
    taken = names.numbered(name)
    for version, metadata in names.records(name).items():
        found = metadata.get(AUGMENT_KEY) or {}
        if not found or found.get("finished"):
            continue
        if found.get("run") == record["run"] and found.get("source") == source.physical:
            return ForeignCopy(source, version)
        names.remove(version)
    physical = names.new_version(name, past=taken)
    _create_like(source, physical, {AUGMENT_KEY: dict(record)})
    return ForeignCopy(source, physical)


def _create_like(source: ForeignCollection, physical: str, metadata: Mapping[str, Any]) -> None:
    """An empty collection with the source's vectors, graph, optimisers, shards, payload indexes and metadata."""
    info, client = source.info(), source.names.client
    config, params = info.config, info.config.params
    if params.sharding_method == models.ShardingMethod.CUSTOM:
        raise MismatchError(
            f"{source.name!r} has shards with keys of its own, which are not copied: load"
            " its texts into a new collection with `xqg-vdb load`."
        )
    theirs = {key: value for key, value in (config.metadata or {}).items() if not is_ours({key: value})}
    create = partial(
        client.create_collection, physical,
        vectors_config=params.vectors, sparse_vectors_config=params.sparse_vectors, shard_number=params.shard_number,
        replication_factor=params.replication_factor, write_consistency_factor=params.write_consistency_factor,
        on_disk_payload=params.on_disk_payload, quantization_config=config.quantization_config,
        hnsw_config=models.HnswConfigDiff.model_validate(config.hnsw_config, from_attributes=True),
        optimizers_config=models.OptimizersConfigDiff.model_validate(config.optimizer_config, from_attributes=True),
        metadata=theirs | dict(metadata),
    )  # fmt: skip
    source.names.create(physical, create)
    if source.names.is_local:  # it has no indexes, and says so each time
        return
    for key, index in (info.payload_schema or {}).items():
        schema = index.params or index.data_type
        source.names.server.call(partial(client.create_payload_index, physical, key, field_schema=schema, wait=True))


def previous_target(source: ForeignCollection, name: str) -> tuple[str | None, str | None]:
    """Where the alias `name` pointed before any copy of `source`, and the copy that it points to now."""
    target = source.names.target(name)
    if target in (None, source.physical):
        return target, None
    found = ForeignCollection(source.names, str(target)).record
    if found.get("source") != source.physical:
        raise MismatchError(
            f"{name!r} on {source.names.server.where} points to {target!r}, which is no copy of {source.name!r}: choose"
            " another name (--to)."
        )
    return found["previous"], target


def remove_copy(names: Names, name: str, physical: str, *, previous: str | None) -> None:
    """Point the alias `name` at `previous` again, or take it away, then delete the copy."""
    if names.target(name) == physical:
        if previous is not None:
            names.publish(name, previous)
        else:
            names.unpublish(name)
    names.remove(physical)


def remove_unfinished(source: ForeignCollection, name: str) -> list[str]:
    """Delete what stopped runs left of copies of `source` under `name`; their names."""
    removed = []
    for version, metadata in source.names.records(name).items():
        found = metadata.get(AUGMENT_KEY) or {}
        if found.get("source") == source.physical and not found.get("finished"):
            source.names.remove(version)
            removed.append(version)
    return removed


# Where other programs keep a passage's text and id in a point's payload, and what exactly they encoded.

_NODE = "_node_content"
_MARKS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("llama-index", frozenset({_NODE}), "text"),
    ("langchain", frozenset({"page_content"}), "page_content"),
    ("haystack", frozenset({"content", "meta"}), "content"),
    ("text", frozenset({"text"}), "text"),
)
"""Layout, the keys by which it is known, and where its text lies; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class PayloadLayout:
    """Where payloads keep text and id. `haystack` is our own layout as well.

    text_key, id_key: may lead inwards, such as `metadata.doc_id`; id_key None takes the point's id.
    """

    name: str
    text_key: str
    id_key: str | None = None

    def key(self, point_id: int | str, payload: Mapping[str, Any]) -> str | None:
        """The id by which the query file knows this point; None when it has none."""
        if self.id_key is None:
            return str(point_id)
        found = _at(payload, self.id_key)
        return str(found) if isinstance(found, str | int) else None

    def wordings(self, payload: Mapping[str, Any]) -> tuple[str, ...]:
        """What may have been encoded, the likeliest first: LlamaIndex puts metadata before the text, we the title."""
        text = _at(payload, self.text_key)
        node = _node(payload) if self.name == "llama-index" else {}
        text = node.get("text") or text
        if not isinstance(text, str) or not text.strip():
            return ()
        if self.name == "llama-index":
            return tuple(dict.fromkeys((_with_metadata(node, text), text)))
        title = _at(payload, "meta.title") if self.name == "haystack" else None
        return (f"{title} {text}", text) if isinstance(title, str) and title else (text,)

    def fields(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What lies beside text and id; a node of LlamaIndex stays one, without its text, as in our own store."""
        if node := _node(payload):
            return {**payload, _NODE: orjson.dumps({**node, "text": ""}).decode()}
        if self.name in ("langchain", "haystack"):
            found = payload.get("metadata" if self.name == "langchain" else "meta")
            return dict(found) if isinstance(found, Mapping) else {}
        return {key: value for key, value in payload.items() if key not in (self.text_key, _NODE)}


def recognised(
    payloads: Sequence[Mapping[str, Any]], *, text_key: str | None = None, id_key: str | None = None
) -> PayloadLayout:
    """The layout that most of the payloads have. Raises DataError, with the keys that there are, for an unknown one."""
    if text_key is not None:
        if not any(isinstance(_at(payload, text_key), str) for payload in payloads):
            raise DataError(f"No payload has a text at {text_key!r}; {_keys(payloads)}.")
        name: str = next((one for one, _, usual in _MARKS if usual == text_key and one != "text"), "given")
        return PayloadLayout(name, text_key, id_key or _own_id(name, payloads))
    for name, marks, usual in _MARKS:
        if 2 * sum(marks <= payload.keys() for payload in payloads) > len(payloads):
            return PayloadLayout(name, usual, id_key or _own_id(name, payloads))
    raise DataError(
        f"The payloads are of no known layout (LangChain, LlamaIndex, Haystack): name the text's key with --text-key;"
        f" {_keys(payloads)}."
    )


def _own_id(name: str, payloads: Sequence[Mapping[str, Any]]) -> str | None:
    """Haystack and we keep the document's own id, from which the point's is made."""
    return "id" if name == "haystack" and all("id" in payload for payload in payloads) else None


def _at(payload: Mapping[str, Any], key: str) -> Any:
    """The value under `key`, or inside at its parts."""
    if key in payload:
        return payload[key]
    first, dot, rest = key.partition(".")
    inner = payload.get(first)
    return _at(inner, rest) if dot and isinstance(inner, Mapping) else None


def _node(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node that LlamaIndex keeps as JSON; empty when it is not one."""
    try:
        node = orjson.loads(payload.get(_NODE) or "{}")
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return node if isinstance(node, dict) else {}


def _with_metadata(node: Mapping[str, Any], text: str) -> str:
    """What LlamaIndex encodes: `TextNode.get_content(MetadataMode.EMBED)`. Templates are data: nothing is formatted."""
    metadata, left_out = node.get("metadata"), node.get("excluded_embed_metadata_keys")
    if not isinstance(metadata, dict):
        return text
    hidden = left_out if isinstance(left_out, list) else []
    each = str(node.get("metadata_template", "{key}: {value}"))
    lines = [
        each.replace("{key}", key).replace("{value}", str(value))
        for key, value in metadata.items()
        if key not in hidden
    ]
    head = str(node.get("metadata_separator", "\n")).join(lines).strip()
    whole = str(node.get("text_template", "{metadata_str}\n\n{content}"))
    return whole.replace("{metadata_str}", head).replace("{content}", text).strip() if head else text


def _keys(payloads: Sequence[Mapping[str, Any]]) -> str:
    found = sorted({str(key) for payload in payloads for key in payload})
    return f"the payloads have {', '.join(found[:12])}" if found else "the payloads are empty"
