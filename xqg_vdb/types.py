"""The words that every module shares: frozen records, and the protocols between the parts. Start reading here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pool = Literal["shrunk", "mean", "sum"]
Pooling = Literal["mean", "cls"]
Distance = Literal["cosine", "dot"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How query vectors are folded into passage vectors; see `fusion.fuse` for the equations.

    alpha: weight of the queries, 0 (plain passages) to 1.
    pool: `shrunk` (default), `mean`, or `sum` (the paper's; all passages must have equally many queries).
    shrink: pseudo-queries k at the language mean that `shrunk` adds to every passage.
    center: subtract each language's mean query vector before pooling (`shrunk` only), so that only
        content is added; the other half, the language's own direction, is subtracted from the question.
    query_langs: languages of the generated queries to use; None means all that the build holds.
    """

    alpha: float = 0.3
    pool: Pool = "shrunk"
    shrink: float = 5.0
    center: bool = True
    query_langs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")
        if self.pool not in ("shrunk", "mean", "sum"):
            raise ValueError(f"pool must be shrunk, mean or sum, got {self.pool!r}")
        if not 0.0 <= self.shrink < float("inf"):
            raise ValueError(f"shrink must be 0 or more, got {self.shrink}")
        if self.query_langs is not None:
            object.__setattr__(self, "query_langs", tuple(self.query_langs))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict from which `from_json` makes an equal recipe."""
        record = asdict(self)
        langs = record.pop("query_langs")
        return {**record, "langs": None if langs is None else list(langs)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; unknown keys are ignored, missing ones take their default."""
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        return cls(**{"query_langs": record.get("langs"), **known})


@dataclass(frozen=True, slots=True)
class EncoderFacts:
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

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EncoderFacts:
        """The facts that `to_json` wrote."""
        return cls(**{f.name: record[f.name] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What a load makes the sparse side of a collection from.

    lang: whose stemmer and stop words BM25 uses, `none` for neither; None: the passages', where nine in ten share one.
    """

    lang: str | None = None


@dataclass(frozen=True, slots=True)
class Bm25Settings:
    """How the sparse vectors of a collection were made; its questions are cut into tokens in the same way.

    lang: whose stemmer and stop words, `none` for neither. avg_len: tokens of an average document. k, b: BM25's own.
    """

    lang: str = "none"
    avg_len: float = 256.0
    k: float = 1.2
    b: float = 0.75


@dataclass(frozen=True, slots=True)
class Card:
    """The record that travels with vectors: who made them and how; kept in the collection and copied into reports.

    count and digest describe the finished collection (order-free digest over id and content), 0 and "" while loading.
    rows_digest: hash of everything that was encoded, in order; tells one corpus from another while loading.
    query_langs: languages whose generated queries are folded in.
    query_means: mean generated-query vector per language (base64 of little-endian float16 rows), which refine the
        encoder's own calibration for this collection; empty when there were no queries.
    calibration: the λ that `search` subtracts by default, as the encoder's folder recommended at load time.
    passage_calibration: the λ of the passages' side, 0 for passages as they were encoded; passage_means: what was
        subtracted, per language and for all others (`und`), packed as `query_means`.
    vectors: names of the dense vectors that every point has, each `encoder.dim` wide; the collection is made from them.
    bm25: how the sparse vector beside them was made; None when there is none.
    storage: how the collection is laid out, where that was asked for (`CollectionOptions.layout`).
    """

    encoder: EncoderFacts
    distance: Distance
    recipe: Recipe
    vectors: tuple[str, ...] = ("text-dense",)
    bm25: Bm25Settings | None = None
    calibration: float = 0.0
    query_langs: tuple[str, ...] = ()
    query_means: Mapping[str, str] = field(default_factory=dict)
    passage_calibration: float = 0.0
    passage_means: Mapping[str, str] = field(default_factory=dict)
    count: int = 0
    digest: str = ""
    rows_digest: str = ""
    storage: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict from which `from_json` makes an equal card."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **record,
            "schema": 1,
            "encoder": self.encoder.to_json(),
            "recipe": self.recipe.to_json(),
            "vectors": list(self.vectors),
            "bm25": None if self.bm25 is None else asdict(self.bm25),
            "query_langs": list(self.query_langs),
            "query_means": dict(self.query_means),
            "passage_means": dict(self.passage_means),
            "storage": dict(self.storage),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Card:
        """The card that `to_json` wrote; KeyError or TypeError when `record` is not one."""
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        known["encoder"] = EncoderFacts.from_json(record["encoder"])
        known["recipe"] = Recipe.from_json(record["recipe"])
        # a multivector that earlier versions could make; nothing reads it any more
        known["vectors"] = tuple(name for name in record.get("vectors", ("text-dense",)) if name != "text-dense-maxsim")
        known["query_langs"] = tuple(record.get("query_langs", ()))
        if (bm25 := record.get("bm25")) is not None:
            known["bm25"] = Bm25Settings(**{f.name: bm25[f.name] for f in fields(Bm25Settings)})
        return cls(**known)


# Texts: what is retrieved, what is asked, what was generated, what was found.

UNKNOWN_LANGUAGE = "und"
"""BCP 47 code of a language that nobody gave and detection was not sure of."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable text. `lang` is a BCP 47 code, `und` when unknown; `meta` holds the user's other fields."""

    id: str
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)

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
    """The machine-generated queries of one passage: language code -> questions.

    passage_digest: 16 hex digits (`vectors.row_digest` without queries) of the passage that they were generated from;
    empty when unknown.
    """

    id: str
    queries: Mapping[str, tuple[str, ...]]
    passage_digest: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found passage; higher scores are better; ties are ordered by id."""

    id: str
    score: float
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)


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
    """What to look up for each question.

    k: how many passages. passage_langs: only passages in these languages. using: the vector to compare with.
    exact: compare with every passage instead of walking the graph. ef: candidates that the walk keeps, None for the
    engine's own number.
    """

    k: int = 10
    passage_langs: Sequence[str] | None = None
    using: str = "text-dense"
    exact: bool = False
    ef: int | None = None


@dataclass(frozen=True, slots=True)
class PointBatch:
    """Rows to write: passages and, per vector name, a float32 matrix (len(passages), dim) in the same order.

    query_langs: per passage the languages of its generated queries, for the payload.
    sparse: per passage its token weights.
    """

    passages: Sequence[Passage]
    vectors: Mapping[str, Vectors]
    query_langs: Sequence[Sequence[str]]
    sparse: Sequence[SparseVector] | None = None


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """One point as it lies in a collection. vectors: by name, (dim,)."""

    id: str
    payload: Mapping[str, Any]
    vectors: Mapping[str, Vectors]
    sparse: SparseVector | None = None


# What the parts ask of one another: an encoder, a generator, a store and its writer.


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into float32 rows in input order; queries and passages have different conventions."""

    @property
    def facts(self) -> EncoderFacts:
        """The conventions and the fingerprint."""
        ...

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """Rows (n, dim) for questions, calibrated for their languages (None: detected) unless told otherwise."""
        ...

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) for passages."""
        ...


@runtime_checkable
class QueryGenerator(Protocol):
    """Writes questions in given languages about passages."""

    def generate(
        self, passages: Iterable[Passage], *, query_langs: Sequence[str], n: int
    ) -> Iterator[GeneratedQueries]:
        """One record per passage, in input order."""
        ...


class CollectionWriter(Protocol):
    """An unpublished version of a collection that is being filled; a context manager that closes without publishing."""

    @property
    def committed(self) -> int:
        """Rows that survive a power cut: what the last `commit` named, 0 for a new version."""
        ...

    def upsert(self, batch: PointBatch) -> None:
        """Validate, then write; nothing of a bad batch is written. Raises DataError, DiskError, ServerError."""
        ...

    def commit(self, rows: int) -> None:
        """Make everything durable, then record that the first `rows` rows of the input are in."""
        ...

    def publish(self, card: Card, *, indexed: Callable[[int], None] | None = None) -> None:
        """Check the count, build the index, write the card and switch readers to this version.

        indexed: told how many vectors are indexed so far, where the engine says so.
        """
        ...

    def close(self) -> None:
        """Release the handle and the lock; what was committed stays for the next run."""
        ...

    def __enter__(self) -> CollectionWriter: ...

    def __exit__(self, *exc: object) -> None: ...


class VectorStore(Protocol):
    """Where collections live: a folder (qdrant-edge) or a Qdrant server. `name` is the user's; versions are inside."""

    def names(self) -> list[str]:
        """The published collections, sorted."""
        ...

    def card(self, name: str) -> Card:
        """The card of the published version. DataError when there is no such collection or it is not ours."""
        ...

    def writer(self, name: str, *, card: Card) -> CollectionWriter:
        """A new version, or the unfinished one of an equal card (same encoder, distance, recipe, means)."""
        ...

    def search(self, name: str, questions: QuestionRows, search: Search) -> list[list[Hit]]:
        """The k best per question, ordered by score, then id."""
        ...

    def count(self, name: str, *, passage_langs: Sequence[str] | None = None) -> int:
        """Exact number of points."""
        ...

    def scroll(self, name: str, *, with_vectors: bool = False) -> Iterator[StoredPoint]:
        """Every point, in the engine's order."""
        ...

    def delete(self, name: str) -> None:
        """Remove the collection with all its versions."""
        ...

    def close(self) -> None:
        """Release handles and locks."""
        ...
