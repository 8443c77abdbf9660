"""The words that every module shares: frozen records, and the protocols between the parts. Start reading here."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Protocol, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

Pool = Literal["shrunk", "mean", "sum"]
Pooling = Literal["mean", "cls", "last", "max", "weighted-mean"]
Distance = Literal["cosine", "dot"]


class Stored:
    """A record that lies in a file or a collection as a JSON object."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict from which `from_json` makes an equal record."""
        return dict(_plain(self))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The record that `to_json` wrote, its unknown keys left out. ValueError names what is missing or wrong."""
        made: Self = checked(cls, record, f"the {cls.__name__.lower()}")
        return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {_key(f): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _key(entry: Field[Any]) -> str:
    return str(entry.metadata.get("json", entry.name))


_type_hints = cache(get_type_hints)


def checked(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the type that a field has: a record, a tuple, one of several words, a plain value."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return checked(type(value) if type(value) in inside else inside[0], value, name)
    if origin is Mapping and isinstance(value, dict):
        return {key: checked(inside[1], item, name) for key, item in value.items()}
    if origin in (tuple, Sequence) and isinstance(value, list):
        items = [checked(inside[0], item, name) for item in value]
        return tuple(items) if origin is tuple else items
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        hints = _type_hints(kind)
        there = [f for f in fields(kind) if _key(f) in value]
        known = {f.name: checked(hints[f.name], value[_key(f)], _key(f)) for f in there}
        try:
            return kind(**known)
        except TypeError as error:
            raise ValueError(str(error).partition("__init__() ")[2]) from None
    plain = kind is Any or type(value) is kind or (kind is float and type(value) is int)
    if plain and isinstance(value, float) and not math.isfinite(value):
        plain = False
    if plain or (origin is Literal and value in inside):
        return float(value) if kind is float else value
    words = f"; it is one of {', '.join(map(str, inside))}" if origin is Literal else ""
    raise ValueError(f"{name} cannot be {value!r:.60}{words}")


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: bool = False,
    flags: Sequence[str] = (),
    metavar: str | None = None,
    varies: bool = False,
    json: str | None = None,
) -> Any:
    """A field of a record that users set: its default and its help, for Python and for the command line.

    least, most: bounds of a number; above: not the lower one itself. flags: on the command line, where they are not the
    field's name. varies: whoever uses the record has another default. json: its key in files, where that is another.
    """
    said = {"help": help, "least": least, "most": most, "open": above, "flags": tuple(flags), "metavar": metavar}
    said["varies"] = varies
    return field(default=default, metadata=said if json is None else {**said, "json": json})


@dataclass(frozen=True, slots=True)
class Recipe(Stored):
    """How query vectors are folded into passage vectors; see `fusion.fuse` for the equations.

    alpha 0 gives plain passages. pool `sum` wants equally many queries of every passage. shrink: pseudo-queries k at
    the language mean that `shrunk` adds to every passage. center (`shrunk` only): subtract each language's mean query
    vector before pooling.
    """

    alpha: float = option(0.3, "Weight of the queries.", least=0, most=1)
    pool: Pool = option("shrunk", "How queries are pooled; sum is the paper's.")
    shrink: float = option(5.0, "Strength of pool shrunk.", least=0)
    center: bool = option(True, "Fold in the queries' content only, or (no) their language too.")
    query_langs: tuple[str, ...] | None = option(
        None, "Fold in queries in this language only; repeatable.", json="langs"
    )

    def __post_init__(self) -> None:
        if isinstance(self.alpha, str) or not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be a number between 0 and 1, got {self.alpha!r}")
        if self.pool not in ("shrunk", "mean", "sum"):
            raise ValueError(f"pool must be shrunk, mean or sum, got {self.pool!r}")
        if isinstance(self.shrink, str) or not 0.0 <= self.shrink < float("inf"):
            raise ValueError(f"shrink must be a number of 0 or more, got {self.shrink!r}")
        if isinstance(self.query_langs, str):
            raise ValueError(f"query_langs must be a list, such as [{self.query_langs!r}]")
        if self.query_langs is not None:
            object.__setattr__(self, "query_langs", tuple(self.query_langs))


@dataclass(frozen=True, slots=True)
class EncoderFacts(Stored):
    """What makes two sets of vectors comparable; equal `fingerprint` means equal weights, tokeniser and conventions."""

    fingerprint: str
    source: str
    dim: int
    pooling: Pooling
    normalize: bool
    query_prefix: str
    passage_prefix: str
    max_length: int
    precision: str


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What a load makes the sparse side of a collection from.

    lang: whose stemmer and stop words BM25 uses, `none` for neither; None: the passages', where nine in ten share one.
    """

    lang: str | None = None


@dataclass(frozen=True, slots=True)
class Bm25Settings(Stored):
    """How sparse vectors were made: `Hybrid.lang`, tokens of an average document, BM25's k and b, the rule of words."""

    lang: str = "none"
    avg_len: float = 256.0
    k: float = 1.2
    b: float = 0.75
    words: Literal[1, 2, 3, 4] = 1  # cards that say nothing are of the first kind


@dataclass(frozen=True, slots=True)
class Card(Stored):
    """Who made the vectors of a collection and how; kept in it and copied into reports.

    vectors: names of the dense vectors of every point, each `encoder.dim` wide. bm25: of the sparse one, if there is.
    calibration: the λ that `search` subtracts by default, as the encoder's folder recommended at load time.
    query_langs: languages whose generated queries are folded in; query_means: their mean vectors
        (`calibration.pack_means`), which refine the encoder's own calibration for this collection.
    passage_calibration: the λ of the passages' side; passage_means: what was subtracted, packed alike.
    count, digest: of the finished collection (over id and content, in any order), 0 and "" while loading.
    rows_digest: of everything that was encoded, in order; tells one corpus from another while loading.
    inputs: of all that the load was given, for a second load that finds nothing changed; "" once passages were added
        or deleted.
    since_load: what `add` and `delete` did: how many passages were added, replaced and deleted, and the means (packed)
        and counts of what came, by "queries sw" and "passages en".
    pending: of an `add` or `delete` that is at work, or was stopped: the ids that it touches, each with the hash of the
        content that it had, "" for a new one. The next call settles count and digest by them.
    storage: how the collection is laid out, where that was asked for (`CollectionOptions.layout`).
    chunk: TOKENS:OVERLAP of the chunks that documents are cut into, `add`ed ones too; "" where they are not.
    """

    encoder: EncoderFacts
    distance: Distance
    recipe: Recipe
    vectors: tuple[str, ...] = ("text-dense",)
    bm25: Bm25Settings | None = None
    calibration: float = 0.0
    query_langs: tuple[str, ...] = ()
    query_means: Mapping[str, str] = field(default_factory=dict, repr=False)
    passage_calibration: float = 0.0
    passage_means: Mapping[str, str] = field(default_factory=dict, repr=False)
    count: int = 0
    digest: str = ""
    rows_digest: str = ""
    inputs: str = ""
    since_load: Mapping[str, Any] = field(default_factory=dict)
    pending: Mapping[str, str] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    chunk: str = ""
    version: str = ""
    created: str = ""
    schema: int = 1

    def __post_init__(self) -> None:
        # a multivector that earlier versions could make; nothing reads it any more
        object.__setattr__(self, "vectors", tuple(name for name in self.vectors if name != "text-dense-maxsim"))

    @property
    def fewest(self) -> int:
        """Points that are there at least: an update that was stopped has removed some of `pending`."""
        return self.count - sum(map(bool, self.pending.values()))

    @property
    def has_unit_rows(self) -> bool:
        """Whether fused vectors get length 1: for cosine, and where the encoder's own have it."""
        return self.distance == "cosine" or self.encoder.normalize


# Texts: what is retrieved, what is asked, what was generated, what was found.

UNKNOWN_LANGUAGE = "und"
"""BCP 47 code of a language that nobody gave and detection was not sure of."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable text. `lang` is a BCP 47 code, `und` when unknown; `meta` holds the user's other fields.

    span: of a chunk, which characters of its document's text it is; its id ends with `#` and its number there.
    """

    id: str
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None

    @property
    def title_and_text(self) -> str:
        """What is encoded: title, a space, text (the convention of DPR, Tevatron and xQG)."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Question:
    """One question asked of a collection; `lang` is None when it is to be detected."""

    id: str
    text: str
    lang: str | None = None


@dataclass(frozen=True, slots=True)
class GeneratedQueries:
    """The generated queries of one passage by language, and the digest of the text that they are from, if known."""

    id: str
    queries: Mapping[str, tuple[str, ...]]
    passage_digest: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found passage; higher scores are better; ties are ordered by id.

    span: where documents are cut into chunks, which characters of the document `id` are the `text`, its best chunk.
    """

    id: str
    score: float
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None


# Vectors, and the points of a collection that hold them.

Vectors = NDArray[np.float32]
"""float32 matrix, one row per text."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """A text as weighted tokens: indices (t,) uint32, strictly rising, and values (t,) float32; t may be 0."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


QuestionRows = Vectors | Sequence[SparseVector]
"""Questions as rows (q, dim) for a dense vector, or as token weights for the sparse one."""


@dataclass(frozen=True, slots=True)
class Search:
    """What to look up for each question. using: the vector.

    ef: measured among a million passages, where 512 finds .99 of the exact ten and 256 not always .96.
    where: conditions on the passages' fields (`store.filters`), or a `qdrant_client.models.Filter`.
    texts: False for hits with a score and the point's id alone, at least k, and all that score as the kth does.
    """

    k: int = option(10, "How many passages.", least=1, most=10_000, flags=("-k",))
    passage_langs: Sequence[str] | None = option(None, "Only passages in this language; repeatable.")
    using: str = "text-dense"
    exact: bool = option(False, "Compare with every passage instead of walking the graph.")
    ef: int = option(
        512, "Candidates that the graph search keeps: more find more, and take longer.", least=1, metavar="N"
    )
    where: Any = None
    offset: int = option(0, "Leave out this many of the best, for the next page.", least=0, most=10_000)
    per_document: int = 1  # points that are asked for, of each document that is wanted
    texts: bool = True


@dataclass(frozen=True, slots=True)
class PointBatch:
    """Points to write: passages and, in their order, a matrix (len(passages), dim) per vector name.

    query_langs: languages of each passage's generated queries, for the payload. sparse: each passage's token weights.
    rows: what tells each passage with its queries from another (`row_digest`, hexadecimal), for the payload of those
    that have queries; none where that is not known.
    """

    passages: Sequence[Passage]
    vectors: Mapping[str, Vectors]
    query_langs: Sequence[Sequence[str]]
    sparse: Sequence[SparseVector] | None = None
    rows: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """One point as it lies in a collection. vectors: by name, (dim,)."""

    id: str
    payload: Mapping[str, Any]
    vectors: Mapping[str, Vectors]
    sparse: SparseVector | None = None


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What `add` or `delete` did to a collection, which then has so many `passages`.

    unchanged: passages that were there already, as they are. missing: ids to delete that were not there. not_folded:
    languages of queries that the collection's recipe leaves out. counts: lines of the corpus (`Rejects.counts`).
    cut: of what was written, as a load's report has it. Of documents in chunks, all of these numbers count chunks.
    """

    collection: str
    passages: int
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    missing: tuple[str, ...] = ()
    not_folded: tuple[str, ...] = ()
    unused_queries: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, Any] = field(default_factory=dict)


# What the parts ask of a store and its writer.


class CollectionWriter(Protocol):
    """An unpublished version of a collection that is being filled; a context manager that closes without publishing."""

    @property
    def committed(self) -> int:
        """Rows that survive a power cut: what the last `commit` named, 0 for a new version."""

    def upsert(self, batch: PointBatch) -> None:
        """Validate, then write; nothing of a bad batch is written. Raises DataError, DiskError, ServerError."""

    def commit(self, rows: int) -> None:
        """Make everything durable, then record that the first `rows` rows of the input are in."""

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        """Check the count, build the index (`indexed` is told how far it is), write the card and switch readers."""

    def close(self) -> None:
        """Release the handle and the lock; what was committed stays for the next run."""

    def __enter__(self) -> CollectionWriter: ...

    def __exit__(self, *exc: object) -> None: ...


class CollectionUpdate(Protocol):
    """The published version of a collection while its points are changed in place; searches continue."""

    @property
    def card(self) -> Card:
        """Its card as `record` left it."""

    def find(self, ids: Sequence[str], *, chunks: bool = False) -> dict[str, StoredPoint]:
        """Those of the passages that are there, without their vectors; `chunks`: all of those of these documents."""

    def upsert(self, batch: PointBatch) -> None:
        """Validate, then write; of every point a search sees the old one or the new one. Raises like a writer's."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove these passages; what is not there is no error."""

    def record(self, card: Card) -> None:
        """Make everything before it durable, then replace the card."""


class VectorStore(Protocol):
    """Where collections live: a folder (qdrant-edge) or a Qdrant server. `name` is the user's; versions are inside."""

    @property
    def storage(self) -> Mapping[str, Any]:
        """What the cards of its new collections say of their options."""

    def names(self) -> list[str]:
        """The published collections, sorted."""

    def version(self, name: str) -> str:
        """Which version searches see now, such as v0003: read as `wiki@v0003`, all answers are of that one."""
        ...

    def card(self, name: str) -> Card:
        """The card of the published version. DataError when there is no such collection or it is not ours."""

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card (encoder, recipe, …); card.count: expected, or 0."""

    def update(self, name: str) -> AbstractContextManager[CollectionUpdate]:
        """The published version, to be changed in place by one at a time."""

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, ordered by score, then id."""

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points."""

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point, in the engine's order."""

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions."""

    def close(self) -> None:
        """Release handles and locks."""
