"""Augment a collection that somebody else made: check the encoder, keep, fuse, write.

In: a server's collection, generated queries, the encoder that made its vectors. Out: the same points with fused
vectors, in a copy behind an alias or in place. This file refuses to know how points travel.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xqg_vdb.augmenting.check import check_encoder
from xqg_vdb.augmenting.keeping import PointCounts, build_of, keep_points
from xqg_vdb.augmenting.plan import Plan, Wishes, planned
from xqg_vdb.augmenting.writing import Fused, write_copy, write_in_place
from xqg_vdb.building import Kept
from xqg_vdb.calibration import CalibratedEncoder, LanguageMeans
from xqg_vdb.card_making import card_of
from xqg_vdb.errors import MismatchError
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.records import Rejects
from xqg_vdb.types import Card, Recipe

if TYPE_CHECKING:
    from xqg_vdb.collection.foreign import ForeignCollection
    from xqg_vdb.collection.server import ServerStore


@dataclass(frozen=True)
class AugmentReport:
    """What was done.

    collection: the name to search. layout: how payloads are written. vector: the one with the fused rows, "" for the
    unnamed one. cosine: median of the encoder check; None where a run that passed it was continued.
    queries: how many were folded in, by language. kept: where the originals are. later_points: came while it ran, and
    were left alone.
    """

    collection: str
    layout: str
    vector: str
    cosine: float | None
    counts: PointCounts
    queries: dict[str, int]
    kept: str
    later_points: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def augment(
    name: str,
    *,
    store: ServerStore,
    encoder: CalibratedEncoder,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]],
    recipe: Recipe | None = None,
    wishes: Wishes | None = None,
    sample: int = 32,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> AugmentReport:
    """Fold generated queries into the collection `name`; `wishes` says where to, by default a copy of it.

    sample: passages that are encoded again to check that `encoder` made the vectors; no other passage is encoded.
    A run that was stopped goes on when the same call is made again. Raises MismatchError for another encoder, for
    distances without fusion and for layouts that cannot be changed so; DataError, ServerError, DiskError, LockedError.
    """
    recipe, wishes = recipe or Recipe(), wishes or Wishes()
    given = [queries] if isinstance(queries, str | PathLike) else queries
    files = [Path(file) for file in given]
    source, wishes = _source(store, name, wishes)
    with QueryFile(files, rejects=rejects) as table:
        plan = planned(source, wishes, facts=encoder.facts, recipe=recipe, queries=files)
        started = time.perf_counter()
        cosine = _checked(source, plan, encoder, sample=sample)
        _prepare(source, plan)
        build, counts = keep_points(
            source, plan.place, table, encoder=encoder, folder=plan.folder, progress=progress
        )  # fmt: skip
    kept = time.perf_counter()
    card, means = card_of(
        Kept(build, plan.run), encoder, recipe=recipe, distance=plan.distance, asked=LanguageMeans(), more=()
    )
    fused, later = Fused(build, card=card, means=means), 0
    if plan.mode == "copy":
        _copy(source, plan, fused, card, progress)
    else:
        later = _in_place(source, plan, fused, card, progress)
    folded = {lang: int(build.counts[lang].sum()) for lang in card.query_langs}
    if wishes.backup is None:
        shutil.rmtree(plan.folder, ignore_errors=True)
    return AugmentReport(
        collection=plan.name,
        layout=plan.place.layout.name,
        vector=plan.into,
        cosine=cosine,
        counts=counts,
        queries=folded,
        kept=_where_kept(source, plan),
        later_points=later,
        seconds={"encode": round(kept - started, 2), "write": round(time.perf_counter() - kept, 2)},
    )


def _source(store: ServerStore, name: str, wishes: Wishes) -> tuple[ForeignCollection, Wishes]:
    """The collection to read. One that is a copy of ours is made again from what it was copied from."""
    found = store.foreign(name)
    record = found.record
    if record.get("mode") != "copy":
        return found, wishes
    if wishes.in_place:
        raise MismatchError(f"{name!r} is a copy with fused vectors; augment {record['source']!r} in place instead.")
    return found.at(record["source"]), replace(wishes, to=wishes.to or name)


def _checked(source: ForeignCollection, plan: Plan, encoder: CalibratedEncoder, *, sample: int) -> float | None:
    """The encoder check, on the originals; they are out of sight once a backup's run began to overwrite them."""
    record = source.record
    if record.get("backup"):
        build_of(Path(record["backup"]))  # without it, fused vectors would be taken for originals
        if record["backup"] != str(plan.folder.absolute()):
            raise MismatchError(
                f"{source.name!r} was augmented with other queries, another encoder or another backup folder"
                f" ({record['backup']}): undo that first: xqg-vdb augment {source.name} --undo"
            )
        return None
    layout = plan.place.layout
    points: list[tuple[tuple[str, ...], list[float]]] = []
    for point in plan.sample:
        texts, vector = layout.wordings(point.payload), plan.place.vector_of(point)
        if texts and vector is not None and len(points) < sample:
            points.append((texts, vector))
    stored = np.asarray([vector for _, vector in points], dtype=np.float32).reshape(len(points), -1)
    return check_encoder(encoder, [texts for texts, _ in points], stored, distance=plan.distance, name=source.name)


def _prepare(source: ForeignCollection, plan: Plan) -> None:
    """Refuse what cannot be written before hours of encoding; new vectors of the collection are added now."""
    from xqg_vdb.collection.foreign_copy import previous_target

    if plan.mode == "copy":
        source.names.refuse_plain(plan.name)
        previous_target(source, plan.name)
        return
    added = plan.keep_in if plan.mode == "overwrite" else plan.into
    if added is None:
        return
    is_new = not source.record
    if is_new:  # first, so that a vector of this name is known to be ours whatever happens next
        source.write_metadata(record=plan.record(source, previous=None))
    try:
        source.add_vector(added, like=source.dense_vectors()[plan.place.vector])
    except MismatchError:
        if is_new:
            source.clear_record()
        raise


def _copy(source: ForeignCollection, plan: Plan, fused: Fused, card: Card, progress: Progress) -> None:
    from xqg_vdb.collection.foreign_copy import open_copy, previous_target

    previous, replaced = previous_target(source, plan.name)
    record = plan.record(source, previous=previous)
    copy = open_copy(source, plan.name, record=record)
    write_copy(source, copy, fused, vector=plan.into, progress=progress)
    total = source.count()
    progress("indexing", 0, total)
    final = _finished(source, card, plan, version=copy.physical.rpartition("__")[2])
    copy.publish(
        plan.name, expected=total, card=final, record={**record, "finished": True},
        indexed=lambda done: progress("indexing", min(done, total), total),
    )  # fmt: skip
    if replaced is not None:
        source.names.remove(replaced)


def _in_place(source: ForeignCollection, plan: Plan, fused: Fused, card: Card, progress: Progress) -> int:
    record = source.record
    if not record or record.get("run") != plan.run or record.get("finished"):
        # before the first vector is overwritten: from now on the originals are where this says
        source.write_metadata(record=plan.record(source, previous=None))
    later = write_in_place(source, fused, into=plan.into, keep_in=plan.keep_in, progress=progress)
    finished = {**source.record, "finished": True}
    finished.pop("after", None)
    source.write_metadata(record=finished, card=_finished(source, card, plan, version=""))
    return later


def _finished(source: ForeignCollection, card: Card, plan: Plan, *, version: str) -> Card:
    before = source.card
    return replace(
        card,
        vectors=(plan.into,),
        count=source.count(),
        digest=before.digest if before is not None else "",  # over ids and texts, which are the same
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _where_kept(source: ForeignCollection, plan: Plan) -> str:
    if plan.mode == "copy":
        return f"collection {source.physical}"
    if plan.mode == "add":
        return f"vector {plan.place.vector!r}"
    return f"vector {plan.keep_in!r}" if plan.keep_in is not None else f"folder {plan.folder}"
