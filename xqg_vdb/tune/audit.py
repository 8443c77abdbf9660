"""Which languages does a collection fail? Its passages' generated queries, asked of it, without a single label.

Per passage and language one query is drawn; recall is the share that finds its own passage among the first k. In: a
collection, query files. Out: recall per query language with intervals, and the passages that no language finds.

A collection that already has these queries folded in is judged too kindly: it was made to be found by them. The card
says which languages are (`LanguageAudit.folded`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import TextEncoder, calibrate
from xqg_vdb.errors import DataError
from xqg_vdb.index.encode import encode_cached
from xqg_vdb.progress import Progress, silent
from xqg_vdb.search import check_same_encoder, collection_means
from xqg_vdb.search.retriever import Collection
from xqg_vdb.texts.languages import as_written
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.tune.tune import hash_order
from xqg_vdb.types import UNKNOWN_LANGUAGE, Search, Vectors

_ASKED_TOGETHER = 256
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Share:
    """A share of n with its 95 % Wilson (1927) score interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LanguageAudit:
    """Recall of the queries in one language; folded: the collection has queries of this language folded in."""

    lang: str
    queries: int
    plain: Share
    calibrated: Share
    folded: bool


@dataclass(frozen=True)
class Audited:
    """What an audit found; languages worst first, by calibrated recall.

    passages: how many were asked for, of so many in the collection. strangers: query records whose id is not in the
    collection, and the first few ids. lost: audited passages that no language's query finds, calibrated.
    """

    collection: str
    k: int
    passages: int
    in_collection: int
    strangers: int
    first_strangers: tuple[str, ...]
    languages: tuple[LanguageAudit, ...]
    lost: tuple[str, ...]


def audit(
    collection: Collection,
    queries: Sequence[Path],
    *,
    encoder: TextEncoder,
    folder: Path,
    k: int = 10,
    sample: int = 2000,
    progress: Progress = silent,
) -> Audited:
    """Ask one generated query per language of up to `sample` passages; their vectors are kept in `folder`.

    Raises MismatchError when another encoder made the collection, DataError when no query belongs to it.
    """
    card = collection.card
    check_same_encoder(encoder, card, name=collection.name)
    with QueryFile(queries) as table:
        total, asked = _drawn(collection, table, sample, progress)
        strangers, first = table.unused_count, tuple(table.unused(5))
    if not asked:
        raise DataError(
            f"No query of {', '.join(map(str, queries))} belongs to a passage of collection {collection.name!r} "
            f"(the file has ids such as {', '.join(map(repr, first[:3]))}): give the file that was made for it."
        )
    asked_ids, langs, texts = zip(*asked, strict=True)
    vectors = encode_cached(texts, encoder=encoder, kind="queries", folder=folder, progress=progress, stage="queries")
    moved = calibrate(
        vectors, langs=langs, table=collection_means(encoder, card), strength=card.calibration,
        normalize=encoder.facts.normalize,
    )  # fmt: skip
    plain = _finds(collection, np.asarray(vectors), asked_ids, k=k, progress=progress, stage="plain")
    calibrated = plain
    if card.calibration:
        calibrated = _finds(collection, moved, asked_ids, k=k, progress=progress, stage="calibrated")
    of = np.array(langs)
    languages = [
        LanguageAudit(
            lang, int((of == lang).sum()), _share(plain[of == lang]), _share(calibrated[of == lang]),
            lang.removesuffix("-Latn") in card.query_langs,
        )
        for lang in sorted(set(langs))
    ]  # fmt: skip
    reached = {docid for docid, hit in zip(asked_ids, calibrated.tolist(), strict=True) if hit}
    return Audited(
        collection=collection.name,
        k=k,
        passages=len(set(asked_ids)),
        in_collection=total,
        strangers=strangers,
        first_strangers=first,
        languages=tuple(sorted(languages, key=lambda language: language.calibrated.value)),
        lost=tuple(sorted(set(asked_ids) - reached)),
    )


def _drawn(
    collection: Collection, table: QueryFile, sample: int, progress: Progress
) -> tuple[int, list[tuple[str, str, str]]]:
    """How many points there are; of passages drawn by the hash of their id, a query a language: id, language, text."""
    total, with_queries = 0, []
    for point in collection.scroll():
        total += 1
        if total % 1000 == 0:
            progress("reading ids", total, None)
        record = table.get(point.id)
        if record is not None and record.queries:
            with_queries.append(point.id)
    asked = []
    for docid in sorted(heapq.nsmallest(sample, with_queries, key=hash_order)):
        record = table.get(docid)
        for lang, texts in sorted(record.queries.items() if record else ()):
            text = texts[hash_order(docid) % len(texts)]
            asked.append((docid, as_written(lang or UNKNOWN_LANGUAGE, text), text))
    return total, asked


def _finds(
    collection: Collection, vectors: Vectors, own: Sequence[str], *, k: int, progress: Progress, stage: str
) -> NDArray[np.bool_]:
    """Whether each question's own passage is among its first k."""
    found: list[bool] = []
    for start in range(0, len(own), _ASKED_TOGETHER):
        progress(stage, start, len(own))
        answers = collection.nearest(vectors[start : start + _ASKED_TOGETHER], Search(k))
        found += [any(hit.id == docid for hit in hits) for docid, hits in zip(own[start:], answers, strict=False)]
    return np.array(found, np.bool_)


def _share(hits: NDArray[np.bool_]) -> Share:
    n, p = len(hits), float(hits.mean())
    square = _NORMAL_95**2
    middle = (p + square / (2 * n)) / (1 + square / n)
    reach = _NORMAL_95 * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return Share(p, max(0.0, middle - reach), min(1.0, middle + reach))
