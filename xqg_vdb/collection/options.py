"""How a collection is laid out and filled: everything that a user may choose, in one record that travels to the writer.

In: plain numbers and words. Out: the same, checked. This file refuses to know any engine; what an option is called
there stands in `engine` (embedded) and `server_layout` (server).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..errors import DataError

Quantization = Literal["scalar", "binary", "product", "turbo"]

OVERSAMPLING = 3.0
"""Candidates that a search of quantised vectors compares again with the full ones, in multiples of k."""
MOST_CONNECTIONS = 64

_SERVER_ONLY = {
    "shards": "--shards",
    "replication_factor": "--replication-factor",
    "write_consistency": "--write-consistency",
}
_FILLING = frozenset({"keep", "bulk", "parallel"})
"""Options that change how a version is filled, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionOptions:
    """Options of the collections that a store makes; None leaves the choice to the engine.

    shards, replication_factor, write_consistency: of a server's collection; the last is how many replicas must confirm.
    on_disk_vectors, on_disk_payload: leave them on disk instead of in memory; quantised vectors stay in memory.
    hnsw_m, hnsw_ef_construct: edges per node of the graph, and candidates while it is built.
    quantization: keep small copies of the vectors, and compare the best candidates again with the full ones.
        `scalar` takes 1 byte a number, `product` 1/4, `turbo` 1/2 and `binary` 1/8.
    keep: how many finished versions stay, the published one among them; what more than 1 is needed for is `rollback`.
    bulk: build the index after the last point instead of while they come in (server; nobody searches a version before).
    parallel: connections that write to a server at once.
    Raises ValueError for numbers below 1 and unknown words.
    """

    shards: int | None = None
    replication_factor: int | None = None
    write_consistency: int | None = None
    on_disk_vectors: bool | None = None
    on_disk_payload: bool | None = None
    hnsw_m: int | None = None
    hnsw_ef_construct: int | None = None
    quantization: Quantization | None = None
    keep: int = 1
    bulk: bool = True
    parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("shards", "replication_factor", "write_consistency", "hnsw_m", "keep", "parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.hnsw_ef_construct is not None and self.hnsw_ef_construct < 4:
            raise ValueError(f"hnsw_ef_construct must be 4 or more, got {self.hnsw_ef_construct}")
        if self.parallel > MOST_CONNECTIONS:
            raise ValueError(f"parallel must be {MOST_CONNECTIONS} or less, got {self.parallel}")
        if self.quantization is not None and self.quantization not in get_args(Quantization):
            raise ValueError(f"quantization must be one of {get_args(Quantization)}, got {self.quantization!r}")

    def layout(self) -> dict[str, Any]:
        """What a collection's card keeps of them: the options that make it what it is, where they were given."""
        return {name: value for name, value in asdict(self).items() if name not in _FILLING and value is not None}

    @classmethod
    def from_layout(cls, record: Mapping[str, Any]) -> CollectionOptions:
        """The options whose `layout` is `record`; unknown keys are ignored."""
        known = {one.name for one in fields(cls)} - _FILLING
        return cls(**{name: value for name, value in record.items() if name in known})

    def refuse_server_only(self) -> None:
        """Raise DataError naming an option that the embedded engine does not have."""
        given = [flag for name, flag in _SERVER_ONLY.items() if getattr(self, name) is not None]
        if given:
            raise DataError(
                f"{', '.join(given)}: an embedded collection is one shard in one folder; leave it out, or load into a"
                " Qdrant server (--url)."
            )
