"""How a passage lies in a Qdrant collection: names, point ids, payloads, digests and the order of hits.

The layout is the one that the stock LangChain, LlamaIndex and Haystack integrations read.
"""

from __future__ import annotations

import difflib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from hashlib import blake2b
from itertools import groupby, starmap
from operator import attrgetter, itemgetter
from typing import Any, Literal, cast, get_args

import numpy as np

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.texts.records import expect
from xqg_vdb.types import (
    UNKNOWN_LANGUAGE,
    Bm25Settings,
    Card,
    Hit,
    Passage,
    QuestionRows,
    Search,
    SparseVector,
    StoredPoint,
    Vectors,
    option,
)

TEXT_DENSE = "text-dense"
TEXT_DENSE_PLAIN = "text-dense-plain"
"""The passage's own vector, without queries: for side-by-side and for undo."""
TEXT_SPARSE = "text-sparse"
"""BM25 weights; empty without hybrid search, because Haystack insists on a sparse vector of this name."""
LANG_KEY = "meta.lang"
RESERVED_META = frozenset({"lang", "title", "query_langs"})
"""Keys of payload["meta"] that are ours; all others belong to the user."""

Found = tuple[float, Mapping[str, Any]]
"""A score and the payload that has it."""

CONSTANT = 60  # of reciprocal rank fusion
DEPTH = 100
"""Hits of each ranking that take part in a fusion, or k where that is more."""

_NAMESPACE = uuid.UUID("6f0f1b1e-4c1d-5b7a-9d53-0d6b6f0a7c11")  # never change: it is part of every stored point's id
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_VERSION_SUFFIX = re.compile(r".*__v\d+")
_MOST_TIES = 1024
_MOST_CHUNKS = 1 << 16


def check_name(name: str) -> str:
    """`name` itself when it may name a collection. Raises DataError: names become folders, aliases and URL parts."""
    expect("The name of a collection", name, str, "text")
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name a collection: use 1 to 128 letters, digits, '.', '_' or '-', not starting with a"
            " dot."
        )
    if _VERSION_SUFFIX.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name a collection: endings like __v0001 are kept for versions; choose another."
        )
    return name


class Moved(DataError):
    """A version that a search was bound to is not there, or not published, any more: look again which one is."""


def split_version(name: str) -> tuple[str, str | None]:
    """("wiki", "v0003") for wiki@v0003, ("wiki", None) for wiki. Raises DataError for other names."""
    expect("The name of a collection", name, str, "text")
    base, at, version = name.partition("@")
    if at and not re.fullmatch(r"v\d{4,}", version):
        raise DataError(f"{name!r} names no version of a collection; write it like {base}@v0001.")
    return check_name(base), version or None


def point_id(docid: str) -> uuid.UUID:
    """The id of a passage's point: equal for equal passages ids, so that loading twice changes nothing."""
    return uuid.uuid5(_NAMESPACE, docid)


def payload_of(passage: Passage, query_langs: Sequence[str], *, row: str | None = None) -> dict[str, Any]:
    """What is stored beside the vectors of one passage. row: its digest, kept where queries are folded in."""
    meta = {"lang": passage.lang, "title": passage.title, "query_langs": list(query_langs)}
    payload: dict[str, Any] = {"id": passage.id, "content": passage.text, "meta": {**meta, **passage.meta}}
    if passage.span is not None:
        document, _, number = passage.id.rpartition("#")
        payload |= {"id": document, "chunk": int(number), "span": list(passage.span)}
    return {**payload, "row": row} if row and query_langs else payload


def id_of(payload: Mapping[str, Any]) -> str:
    """The id of the passage that a payload is of."""
    return f"{payload['id']}#{payload['chunk']}" if is_chunk(payload) else str(payload.get("id", ""))


def is_chunk(payload: Mapping[str, Any]) -> bool:
    """Whether it is of a part of a document."""
    return "span" in payload and "chunk" in payload and "id" in payload


def hit_of(score: float, payload: Mapping[str, Any]) -> Hit:
    """The hit that a payload stands for; lenient, because others may have written points beside ours."""
    meta_record = payload.get("meta") or payload.get("metadata")
    meta = dict(meta_record) if isinstance(meta_record, Mapping) else {}
    meta.pop("query_langs", None)
    text = next((payload[key] for key in ("content", "page_content", "text") if payload.get(key)), "")
    with suppress(ValueError, TypeError, AttributeError, RecursionError):  # LlamaIndex keeps a node as JSON
        text = text or json.loads(payload.get("_node_content") or "{}").get("text", "")
    title, lang = meta.pop("title", None), meta.pop("lang", None)
    span = tuple(payload["span"]) if is_chunk(payload) else None
    lang = str(lang or UNKNOWN_LANGUAGE)
    return Hit(str(payload.get("id", "")), score, str(text), str(title or ""), lang, meta, span)


STRANGERS = {"LangChain": "page_content", "LlamaIndex": "_node_content", "Haystack": "content"}
"""Libraries that write points of their own into a collection, and the key that their payloads have."""


def written_by(payload: Mapping[str, Any]) -> str | None:
    """Who wrote a point that no load of ours made, by its payload's layout; None for ours."""
    meta = payload.get("meta")
    if isinstance(meta, Mapping) and "query_langs" in meta:
        return None
    return next((library for library, key in STRANGERS.items() if key in payload), "others")


def stored_point(payload: Mapping[str, Any], vectors: Mapping[str, Any]) -> StoredPoint:
    """A point as either engine gives it: lists of numbers, and a record with `indices` and `values`."""
    words = vectors.get(TEXT_SPARSE)
    sparse = None if words is None else sparse_vector(words.indices, words.values)
    arrays = {
        name: np.asarray(value, dtype=np.float32) for name, value in vectors.items() if not hasattr(value, "indices")
    }
    return StoredPoint(id=id_of(payload), payload=payload, vectors=arrays, sparse=sparse)


def sparse_vector(indices: Sequence[int], values: Sequence[float]) -> SparseVector:
    """The token weights in rising order of their indices."""
    places = np.asarray(indices, dtype=np.uint32)
    order = np.argsort(places)
    return SparseVector(places[order], np.asarray(values, dtype=np.float32)[order])


def content_hash(docid: str, text: str) -> int:
    """What one passage adds to the digest of its collection, a sum modulo 2**128: any order will do.

    Ids hold no NUL (the gate refuses them), which makes id, NUL, text unambiguous.
    """
    return int.from_bytes(blake2b(f"{docid}\0{text}".encode(), digest_size=16).digest(), "little")


def digest_of(total: int) -> str:
    """The digest, 32 hexadecimal digits, of a sum of `content_hash`es; a passage that comes twice is seen."""
    return f"{total % (1 << 128):032x}"


def digest(passages: Iterable[tuple[str, str]]) -> str:
    """The digest of (id, text) pairs."""
    return digest_of(sum(starmap(content_hash, passages)))


_BUILD = (
    "distance", "recipe", "query_means", "passage_calibration", "passage_means", "vectors", "bm25", "rows_digest",
    "storage",
)  # fmt: skip


def same_build(card: Card, other: Card) -> bool:
    """Whether points written under the two cards may lie in one collection, so that a stopped load can be continued."""
    same_encoder = card.encoder.fingerprint == other.encoder.fingerprint
    return same_encoder and all(getattr(card, name) == getattr(other, name) for name in _BUILD)


def check_search(questions: QuestionRows, search: Search) -> QuestionRows:
    """Question rows as contiguous float32 (q, dim), token weights as they are.

    Raises DataError for another shape, NaN, infinity, k below 1 and for languages that filter everything away.
    """
    check_wanted(search)
    if isinstance(questions, Sequence) and questions and all(isinstance(row, SparseVector) for row in questions):
        return questions
    rows = np.ascontiguousarray(questions, dtype=np.float32)
    if rows.ndim != 2:
        raise DataError(f"Question vectors must be a matrix (questions, dim), found shape {np.shape(rows)}.")
    if not np.isfinite(rows).all():
        raise DataError("A question's vector holds NaN or infinity; check the encoder and its calibration.")
    return rows


def check_wanted(search: Search) -> None:
    """Raise DataError for what is no number of passages, and for languages that filter everything away."""
    for name, least in (("k", 1), ("offset", 0)):
        value = getattr(search, name)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise DataError(f"{name} must be {least} or more, found {value!r:.60}.")
    check_langs(search.passage_langs)


def check_langs(langs: Sequence[str] | None) -> None:
    """Raise DataError for a bare string or an empty list: both would filter everything away."""
    if isinstance(langs, str) or (langs is not None and not langs):
        raise DataError(
            f"passage_langs must be a list with at least one language code, or None for all; found {langs!r}."
        )


def check_using(card: Card, using: str, *, name: str, asked: QuestionRows) -> None:
    """Raise MismatchError unless `name` has vectors `using` that the questions can be compared with."""
    if using == TEXT_SPARSE:
        check_hybrid(card, name=name)
        return
    dim = cast(Vectors, asked).shape[1]
    if using not in card.vectors:
        raise MismatchError(f"Collection {name!r} has no vector {using!r}; it has {', '.join(card.vectors)}.")
    if dim != card.encoder.dim:
        raise MismatchError(
            f"Collection {name!r} holds vectors of {card.encoder.dim} numbers (encoder {card.encoder.source}), the"
            f" question has {dim}; search with the encoder that made it."
        )


def check_hybrid(card: Card, *, name: str) -> Bm25Settings:
    """How the collection's sparse vectors were made. Raises MismatchError when it has none."""
    if card.bm25 is None:
        raise MismatchError(f"Collection {name!r} has no sparse vectors: load it with --hybrid (hybrid=Hybrid()).")
    return card.bm25


async def best(
    rows: QuestionRows,
    first: Iterable[Sequence[Found]],
    ask: Callable[[Any, int], Awaitable[Sequence[Sequence[Found]]]],
    *,
    search: Search,
) -> list[list[Hit]]:
    """The best per row of `rows`, by score, then id, from the `first_limit` that were found; without texts, all equals.

    Engines order equal scores by chance, so one more than k is asked for. When it ties with the kth, which of them
    belong in is settled by `ask(rows, limit)` with a growing limit until the tie ends (at most 1,024 beyond k; then the
    choice stays the engine's). Of a document in chunks the best one stands for it, and the limit grows until there are
    k documents.
    """
    k, hits = search.offset + search.k, list[list[Hit]]()
    order = _one_a_document if search.texts else partial(sorted, key=itemgetter(0), reverse=True)
    for at, found in enumerate(first):
        limit, ranked = first_limit(search), order(found)
        while len(found) == limit:
            tied = len(ranked) >= k and found[-1][0] == ranked[k - 1][0]
            most = k + _MOST_TIES if tied else _MOST_CHUNKS
            if (len(ranked) >= k and not tied) or limit >= most:
                break
            limit = min(4 * limit, most)
            (found,) = await ask(rows[at : at + 1], limit)
            ranked = order(found)
        if search.texts:
            hits.append([hit_of(score, payload) for score, payload in ranked[search.offset : k]])
        else:
            hits.append([Hit(payload["id"], score, "") for score, payload in ranked])
    return hits


def first_limit(search: Search) -> int:
    """Points that are asked for at first."""
    return (search.offset + search.k) * search.per_document + 1


def fuse_ranks(rankings: Sequence[Sequence[Hit]], *, k: int) -> list[Hit]:
    """The k best of rankings that are ordered by score, then id, by reciprocal rank fusion, with the fused scores."""
    scores = defaultdict[str, float](float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] += 1.0 / (CONSTANT + rank)
    best = sorted((-score, docid) for docid, score in scores.items())[:k]
    hits = {hit.id: hit for ranking in reversed(rankings) for hit in ranking}
    return [replace(hits[docid], score=-score) for score, docid in best]


def contenders(rankings: Sequence[Sequence[Hit]], known: Mapping[str, Hit | None], *, k: int) -> set[str]:
    """Of rankings by point id: the points whose passages must still be known to say which k `fuse_points` finds.

    Among equal scores a point may stand anywhere, so that it can become as good as if it were the first of its equals,
    or as bad as the last; and where one of them stands depends on all of them.
    """
    best, worst, equals = defaultdict[str, float](float), defaultdict[str, float](float), list[list[str]]()
    for ranking in rankings:
        last = 0
        for _, group in groupby(_left(ranking, known), key=attrgetter("score")):
            equals.append([hit.id for hit in group])
            first, last = last + 1, last + len(equals[-1])
            for point in equals[-1]:
                best[point] += 1.0 / (CONSTANT + first)
                worst[point] += 1.0 / (CONSTANT + last) if last <= max(k, DEPTH) else 0.0
    least = min(sorted(worst.values(), reverse=True)[:k], default=0.0)
    found = {point for point, score in best.items() if score >= least}
    return found.union(*(group for group in equals if not found.isdisjoint(group))) - known.keys()


def fuse_points(rankings: Sequence[Sequence[Hit]], known: Mapping[str, Hit | None], *, k: int) -> list[Hit]:
    """`fuse_ranks` of rankings by point id. known: the passages of their `contenders`, None for what is gone."""
    named = ([(-hit.score, known.get(hit.id) or hit) for hit in _left(ranking, known)] for ranking in rankings)
    ranked = (sorted(hits, key=lambda one: (one[0], one[1].id)) for hits in named)
    return fuse_ranks([[hit for _, hit in hits[: max(k, DEPTH)]] for hits in ranked], k=k)


def _left(ranking: Sequence[Hit], known: Mapping[str, Hit | None]) -> Sequence[Hit]:
    return [hit for hit in ranking if known.get(hit.id, hit) is not None] if None in known.values() else ranking


def _one_a_document(found: Sequence[Found]) -> list[Found]:
    """Ordered by score, then id, without the chunks whose documents stand higher."""
    ranked = sorted(found, key=lambda one: (-one[0], str(one[1].get("id", "")), id_of(one[1])))
    seen: set[str] = set()
    kept = []
    for score, payload in ranked:
        if not (is_chunk(payload) and payload["id"] in seen):
            kept.append((score, payload))
            seen.add(str(payload.get("id")))
    return kept


def missing_collection(name: str, existing: Sequence[str], *, where: str) -> DataError:
    """The error for an unknown name: says what there is, the near matches first."""
    if not existing:
        return DataError(f"There is no collection {name!r} in {where}: it has none yet; make one with `xqg-vdb load`.")
    near = difflib.get_close_matches(name, existing, n=3)
    asked = f" Did you mean {', '.join(near)}?" if near else ""
    listed = ", ".join(existing[:20]) + (", …" if len(existing) > 20 else "")
    return DataError(f"There is no collection {name!r} in {where}.{asked} It has: {listed}.")


# How a collection is laid out and filled: everything that a user may choose, in one record that travels to the writer.

Quantization = Literal["scalar", "binary", "product", "turbo"]

OVERSAMPLING = 3.0
"""Candidates that a search of quantised vectors compares again with the full ones, in multiples of k."""

_SERVER_ONLY = ("shards", "replication_factor", "write_consistency")
_FILLING = frozenset({"keep", "bulk", "parallel"})
"""Options that change how a version is filled, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionOptions:
    """Options of the collections that a store makes; None leaves the choice to the engine.

    quantization `scalar` takes 1 byte a number, `product` 1/4, `turbo` 1/2 and `binary` 1/8; quantised vectors stay in
    memory. bulk: nobody searches a version before it is complete. Raises ValueError for what cannot be.
    """

    keep: int = option(2, "Finished versions to keep, the new one too, for `rollback`.", least=1, metavar="N")
    quantization: Quantization | None = option(
        None, "Search small copies of the vectors, and compare the best candidates again with the full ones."
    )
    hnsw_m: int | None = option(None, "Edges per node of the graph.", least=1, metavar="N")
    hnsw_ef_construct: int | None = option(None, "Candidates while the graph is built.", least=4, metavar="N")
    on_disk_vectors: bool | None = option(None, "Leave the full vectors on disk.")
    on_disk_payload: bool | None = option(None, "Leave the texts on disk.")
    shards: int | None = option(None, "Shards (server).", least=1, metavar="N")
    replication_factor: int | None = option(None, "Copies of each shard (server).", least=1, metavar="N")
    write_consistency: int | None = option(None, "Copies that must confirm a write (server).", least=1, metavar="N")
    parallel: int = option(1, "Connections that write at once (server).", least=1, most=64, metavar="N")
    bulk: bool = option(True, "Index after the last point (server).")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least, most = getattr(self, entry.name), entry.metadata["least"], entry.metadata["most"]
            if value is not None and least is not None and value < least:
                raise ValueError(f"{entry.name} must be {least} or more, got {value}")
            if most is not None and value > most:
                raise ValueError(f"{entry.name} must be {most} or less, got {value}")
        if self.quantization is not None and self.quantization not in get_args(Quantization):
            raise ValueError(f"quantization must be one of {get_args(Quantization)}, got {self.quantization!r}")

    def layout(self) -> dict[str, Any]:
        """What a collection's card keeps of them: the options that make it what it is, where they were given."""
        return {name: value for name, value in asdict(self).items() if name not in _FILLING and value is not None}

    def refuse_server_only(self) -> None:
        """Raise DataError naming an option that the embedded engine does not have."""
        given = ["--" + name.replace("_", "-") for name in _SERVER_ONLY if getattr(self, name) is not None]
        if given:
            raise DataError(
                f"{', '.join(given)}: an embedded collection is one shard in one folder; leave it out, or load into a"
                " Qdrant server (--url)."
            )
