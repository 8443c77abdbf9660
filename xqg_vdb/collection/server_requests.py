"""What a Qdrant server is asked, and what it answers, in the client's words: for both of its clients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from qdrant_client import models

from ..batching import windows
from ..types import Questions, SparseVector
from . import layout

_QUERY_BATCH = 64


def search_requests(
    questions: Questions, *, limit: int, langs: Sequence[str] | None, using: str, params: models.SearchParams | None
) -> list[models.QueryRequest]:
    """One request per question for its `limit` nearest, with payloads."""
    wanted = language_filter(langs)
    ask = partial(models.QueryRequest, using=using, filter=wanted, params=params, limit=limit, with_payload=True)
    return [ask(query=_asked(one)) for one in questions]


def _asked(one: Any) -> list[float] | models.SparseVector:
    if isinstance(one, SparseVector):
        return models.SparseVector(indices=one.indices.tolist(), values=one.values.tolist())
    row: list[float] = one.tolist()
    return row


def batched_requests(requests: Sequence[models.QueryRequest]) -> list[list[models.QueryRequest]]:
    """The requests, as many at a time as one call carries."""
    return list(windows(requests, _QUERY_BATCH))


def found_in(answer: models.QueryResponse) -> list[layout.Found]:
    """The scores and payloads of one answer."""
    return [(point.score, point.payload or {}) for point in answer.points]


def language_filter(langs: Sequence[str] | None) -> models.Filter | None:
    """Only passages in these languages; None for all."""
    if langs is None:
        return None
    return models.Filter(must=[models.FieldCondition(key=layout.LANG_KEY, match=models.MatchAny(any=list(langs)))])
