"""Whether a collection still holds what its card promises, and what its build would make anew; nothing is repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np

from xqg_vdb.errors import MismatchError
from xqg_vdb.index.build import Build
from xqg_vdb.index.update import since_load
from xqg_vdb.index.write import vectors_of
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store.layout import TEXT_DENSE, content_hash, digest_of, written_by
from xqg_vdb.texts.queries import row_digest
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, Passage, StoredPoint, VectorStore

LEAST_COSINE = 0.9999
"""Of a stored vector to the one that its build makes: the card keeps language means in 16 bits, which costs about
1e-6; a vector of another passage, recipe or encoder is far below."""
_UNIT = 1e-3


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. problems: one sentence each, empty when all is well.

    points: how many there are. others: of these, points that no load of ours wrote, by library; nothing promises them.
    compared: how many were compared with the build; lowest_cosine: the worst of them. since_load: what `add` and
    `delete` did (`index.update.since_load`).
    """

    collection: str
    version: str
    points: int
    languages: Mapping[str, int]
    others: Mapping[str, int]
    compared: int
    lowest_cosine: float | None
    problems: tuple[str, ...]
    since_load: str = ""


def verify(
    store: VectorStore,
    name: str,
    *,
    build: str | PathLike[str] | None = None,
    sample: int = 1000,
    progress: Progress = silent,
) -> Verification:
    """Read all points of the published version and compare them with its card.

    Points and texts are compared by count and digest; every vector must be finite and, for cosine, of unit length.
    build: the folder that `load --build` filled; about `sample` points are made from it once more and compared.
    Raises MismatchError when the build is another encoder's or corpus's, and whatever the store raises.
    """
    card = store.card(name)
    kept = None if build is None else Build.open(str(build))
    if kept is not None and kept.fingerprint != card.encoder.fingerprint:
        raise MismatchError(
            f"{kept.path} was encoded by another encoder (fingerprint {kept.fingerprint}) than {name!r}"
            f" ({card.encoder.fingerprint}); give the build that it was loaded from."
        )
    total, points, unfit, chosen = 0, 0, 0, []
    languages, others = Counter[str](), Counter[str]()
    step = max(card.count // max(sample, 1), 1)
    for point in store.scroll(name, with_vectors=True):
        library = written_by(point.payload) if card.digest else None
        if library is not None:
            others[library] += 1
            continue
        total += content_hash(point.id, str(point.payload.get("content", "")))
        languages[_lang_of(point)] += 1
        unfit += not _is_fit(point, card)
        if kept is not None and points % step == 0:
            chosen.append(point)
        points += 1
        if points % 1024 == 0:
            progress("verifying", points, card.count)
    cosines, problems = ([], []) if kept is None else _compared(chosen, kept, card)
    problems = _differences(card, points=points, digest=digest_of(total), unfit=unfit) + problems
    return Verification(
        name, card.version, points + others.total(), dict(sorted(languages.items())), others, len(cosines),
        min(cosines, default=None), tuple(problems), since_load(card),
    )  # fmt: skip


def _is_fit(point: StoredPoint, card: Card) -> bool:
    for key in card.vectors:
        vector = point.vectors.get(key)
        if vector is None or vector.shape != (card.encoder.dim,) or not np.isfinite(vector).all():
            return False
        length = np.linalg.norm(vector)
        if length == 0 or (card.distance == "cosine" and abs(length - 1) > _UNIT):
            return False
    return card.bm25 is None or point.sparse is None or bool(np.isfinite(point.sparse.values).all())


def _differences(card: Card, *, points: int, digest: str, unfit: int) -> list[str]:
    problems = []
    if card.pending:
        problems.append(
            f"an add or a delete of {len(card.pending):,} passages was stopped: make the same call again to end it"
        )
    elif points != card.count:
        problems.append(f"{points:,} points where the card promises {card.count:,}")
    elif card.digest and digest != card.digest:
        problems.append("the texts are not those that were loaded (another digest)")
    if unfit:
        problems.append(f"{unfit:,} points have a vector that is missing, not finite or not of unit length")
    return problems


def _compared(chosen: list[StoredPoint], kept: Build, card: Card) -> tuple[list[float], list[str]]:
    """Cosines of the stored vectors to those that the build makes, and what is wrong with them."""
    wanted = {point.id for point in chosen}
    rows = {docid: row for row, docid in enumerate(kept.ids()) if docid in wanted}
    known = [point for point in chosen if point.id in rows]
    problems = []
    if card.since_load:  # others may have come, or other texts for the same ids
        digests = kept.digests()
        known = [point for point in known if int(digests[rows[point.id]]) == _row_of(point)]
    elif chosen and not known:
        raise MismatchError(f"{kept.path} has none of {len(chosen):,} sampled passages: give the build of its load.")
    elif len(known) < len(chosen):
        problems.append(f"{len(chosen) - len(known):,} of {len(chosen):,} sampled passages are not in {kept.path}")
    if not known:
        return [], problems
    window = kept.take(np.array([rows[point.id] for point in known]))
    fresh = vectors_of(window, langs=list(map(_lang_of, known)), card=card)[TEXT_DENSE]
    stored = np.stack([point.vectors[card.vectors[0]] for point in known]).astype(np.float64)
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
    cosines = (stored * fresh).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    wrong = int((cosines < LEAST_COSINE).sum())
    if wrong:
        problems.append(f"{wrong:,} of {len(known):,} sampled vectors are not what {kept.path} makes")
    return cosines.tolist(), problems


def _row_of(point: StoredPoint) -> int:
    """The digest of the passage and its queries, as the build has it."""
    if "row" in point.payload:
        return int(point.payload["row"], 16)
    text, meta = str(point.payload.get("content", "")), point.payload.get("meta") or {}
    return row_digest(Passage(point.id, text, title=str(meta.get("title", ""))), None)


def _lang_of(point: StoredPoint) -> str:
    meta = point.payload.get("meta")
    return str(meta.get("lang", UNKNOWN_LANGUAGE)) if isinstance(meta, Mapping) else UNKNOWN_LANGUAGE
