"""The gate before every write: a batch passes whole, or nothing of it is written; so does a version to publish.

The engines take NaN, Inf, zero vectors and bottomless JSON without a word and then lose or poison points, so all of
that stops here.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.store.layout import RESERVED_META, payload_of, point_id, same_build
from xqg_vdb.texts.records import MAX_DEPTH
from xqg_vdb.types import Card, Passage, PointBatch, SparseVector, Vectors

MAX_POINT_BYTES = 1 << 20
_INT64 = 1 << 63
_AS_THEY_ARE = frozenset({str, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch that passed: per row its point id, payload and size in bytes (payload as JSON and float32 vectors)."""

    ids: list[uuid.UUID]
    payloads: list[dict[str, Any]]
    sizes: list[int]


class _Reason(Exception):
    """Why one passage cannot be stored; becomes a DataError that names the passage."""


def checked(batch: PointBatch, *, card: Card) -> Rows:
    """The rows of `batch`, every one fit to be stored under `card`.

    Raises DataError that names the first unfit passage and the reason, MismatchError when the matrices are not the ones
    that the card promises.
    """
    passages = batch.passages
    if len(batch.query_langs) != len(passages):
        raise DataError(
            f"The batch has {len(passages)} passages but {len(batch.query_langs)} entries of query languages."
        )
    vector_bytes = _check_vectors(batch, card)
    more_bytes = _check_sparse(batch, card)
    payloads, sizes = [], []
    digests = batch.rows or [""] * len(passages)
    for passage, langs, row, more in zip(passages, batch.query_langs, digests, more_bytes, strict=True):
        try:
            payload = _payload(passage, langs, row)
            size = _size(payload) + vector_bytes + more
        except _Reason as reason:
            raise DataError(f"Passage {passage.id!r} cannot be stored: {reason}.") from None
        payloads.append(payload)
        sizes.append(size)
    if twice := [docid for docid, times in Counter(passage.id for passage in passages).items() if times > 1]:
        raise DataError(f"Passage {twice[0]!r} cannot be stored: its id comes twice in one batch.")
    return Rows([point_id(passage.id) for passage in passages], payloads, sizes)


def _check_vectors(batch: PointBatch, card: Card) -> int:
    """Bytes of one point's vectors, after all of them were looked at."""
    given = sorted(batch.vectors)
    if given != sorted(card.vectors):
        raise MismatchError(f"The batch has vectors {given}, the collection {sorted(card.vectors)}.")
    shape = (len(batch.passages), card.encoder.dim)
    for name, matrix in batch.vectors.items():
        if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32 or matrix.shape != shape:
            found = f"{matrix.dtype} {matrix.shape}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
            raise MismatchError(f"The vectors {name!r} must be float32 {shape}, found {found}.")
        with np.errstate(over="ignore", invalid="ignore"):  # one pass finds NaN, infinities, zeros and overflow
            squares = np.einsum("ij,ij->i", matrix, matrix)
        bad = np.flatnonzero(~((squares > 0) & (squares < np.inf)))
        if bad.size:
            docid, reason = batch.passages[bad[0]].id, _what_is_wrong(matrix[bad[0]])
            raise DataError(f"Passage {docid!r} cannot be stored: its vector {name!r} {reason}.")
    return 4 * card.encoder.dim * len(batch.vectors)


def _check_sparse(batch: PointBatch, card: Card) -> list[int]:
    """Bytes of each point's sparse vector; the embedded engine panics when indices and values differ in number."""
    if (batch.sparse is None) != (card.bm25 is None) or len(batch.sparse or batch.passages) != len(batch.passages):
        raise MismatchError("A batch has one sparse vector a passage when the collection has them, and else none.")
    if batch.sparse is None:
        return [0] * len(batch.passages)
    for passage, weights in zip(batch.passages, batch.sparse, strict=True):
        if not _is_sparse(weights):
            raise DataError(
                f"Passage {passage.id!r} cannot be stored: its sparse vector must have strictly rising uint32 indices"
                " and as many finite float32 values."
            )
    return [weights.indices.nbytes + weights.values.nbytes for weights in batch.sparse]


def _is_sparse(sparse: SparseVector) -> bool:
    indices, values = sparse.indices, sparse.values
    if indices.dtype != np.uint32 or values.dtype != np.float32 or indices.ndim != 1 or indices.shape != values.shape:
        return False
    return bool((indices[1:] > indices[:-1]).all() and np.isfinite(values).all())


def _what_is_wrong(row: Vectors) -> str:
    if not np.isfinite(row).all():
        return "holds NaN or infinity"
    return "is all zeros, or as good as" if np.abs(row).max() < 1 else "is too long to be compared"


def _payload(passage: Passage, query_langs: Sequence[str], row: str) -> dict[str, Any]:
    _check_fields(passage, query_langs)
    payload = payload_of(passage, query_langs, row=row)
    payload["meta"] |= {key: _user_field(key, value) for key, value in passage.meta.items()}
    return payload


def _check_fields(passage: Passage, query_langs: Sequence[str]) -> None:
    if type(passage.id) is not str or not passage.id or "\0" in passage.id:
        raise _Reason("its id must be a non-empty string without NUL")
    if type(passage.text) is not str or not passage.text or passage.text.isspace():
        raise _Reason("its text is blank")
    if type(passage.title) is not str:
        raise _Reason(f"its title must be a string, found {type(passage.title).__name__}")
    if type(passage.lang) is not str or not passage.lang:
        raise _Reason("its language must be a non-empty string ('und' when unknown)")
    if isinstance(query_langs, str) or not all(type(lang) is str for lang in query_langs):
        raise _Reason("its query languages must be a list of strings")


def _user_field(key: object, value: object) -> object:
    if type(key) is not str:
        raise _Reason(f"the field name {key!r} is not a string")
    if key in RESERVED_META:
        raise _Reason(f"the field name {key!r} is reserved; rename that field")
    try:
        return _json_value(value, depth=3)  # below the payload and its "meta"
    except _Reason as reason:
        raise _Reason(f"field {key!r}: {reason}") from None


def _json_value(value: Any, *, depth: int) -> Any:
    """`value` with tuples as lists; _Reason when JSON or the engine could not carry it unchanged."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is int:
        if not -_INT64 <= value < _INT64:
            raise _Reason("an integer does not fit in 64 bits; store it as a string")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _Reason(f"{value} is not a JSON number")
        return value
    if kind not in (dict, list, tuple):
        raise _Reason(f"a {kind.__name__} is not a JSON value")
    if depth > MAX_DEPTH:
        raise _Reason(f"nested more than {MAX_DEPTH} levels deep")
    if kind is dict:
        if odd := [key for key in value if type(key) is not str]:
            raise _Reason(f"the key {odd[0]!r} is not a string")
        return {key: _json_value(inner, depth=depth + 1) for key, inner in value.items()}
    return [_json_value(inner, depth=depth + 1) for inner in value]


def _size(payload: dict[str, Any]) -> int:
    """Bytes of the payload as JSON; orjson refuses lone surrogates on the way."""
    try:
        size = len(orjson.dumps(payload))
    except TypeError as error:
        raise _Reason(f"it is not valid Unicode or JSON ({error})") from None
    if size > MAX_POINT_BYTES:
        raise _Reason(f"it takes {size:,} bytes, more than {MAX_POINT_BYTES:,}; split the passage")
    return size


def to_publish(card: Card, loaded: Card, *, version: str) -> Card:
    """The final card of a version that was filled under `loaded`. Raises MismatchError for one of another build."""
    card = replace(card, storage=loaded.storage)
    if not same_build(card, loaded):
        raise MismatchError("The card to publish describes another build than the one that was loaded.")
    return replace(card, version=version, created=card.created or datetime.now(UTC).isoformat(timespec="seconds"))


def wrong_count(where: str, found: int, card: Card) -> CorruptError:
    """The error for a version that was filled with other points than its card says."""
    return CorruptError(
        f"{where} holds {found:,} points, {card.count:,} were expected: the input changed since a stopped load, or has"
        " an id twice. Run the same command again: it starts over."
    )
