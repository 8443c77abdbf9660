"""How vectors were made: a recipe, an encoder's facts, the words' settings, and the card that holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

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
    langs: the query languages to use; None means all that the build holds.
    """

    alpha: float = 0.3
    pool: Pool = "shrunk"
    shrink: float = 5.0
    center: bool = True
    langs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")
        if self.pool not in ("shrunk", "mean", "sum"):
            raise ValueError(f"pool must be shrunk, mean or sum, got {self.pool!r}")
        if not 0.0 <= self.shrink < float("inf"):
            raise ValueError(f"shrink must be 0 or more, got {self.shrink}")
        if self.langs is not None:
            object.__setattr__(self, "langs", tuple(self.langs))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict from which `from_json` makes an equal recipe."""
        return {**asdict(self), "langs": None if self.langs is None else list(self.langs)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; unknown keys are ignored, missing ones take their default."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})


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
