"""Vectors, and the points of a collection that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .texts import Passage

Vectors = NDArray[np.float32]
"""float32 matrix, one row per text."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """A text as weighted tokens: indices (t,) uint32, strictly rising, and values (t,) float32; t may be 0."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


Questions = Vectors | Sequence[SparseVector]
"""Questions as rows (q, dim) for a dense vector, or as token weights for the sparse one."""


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
