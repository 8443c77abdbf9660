"""Augment a collection that somebody else made: a copy with fused vectors, behind an alias; and undo that.

The collection itself is only read, twice: its vectors and its queries' sums go into a build, then every point, fused,
into the copy. Either pass continues where it was stopped. No passage is encoded, but a sample that checks the encoder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count, islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import sha256_of
from xqg_vdb.index.build import Build, Window, fill_build
from xqg_vdb.index.encode import combined_digest, digests_of, query_sums
from xqg_vdb.index.write import card_of, check_counts, finished, folded_langs, generated_means, vectors_of
from xqg_vdb.models.folder import cache_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store.layout import TEXT_DENSE
from xqg_vdb.texts.corpus import as_files
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.texts.records import Rejects
from xqg_vdb.texts.tables import Records
from xqg_vdb.types import (
    UNKNOWN_LANGUAGE,
    Card,
    Distance,
    EncoderFacts,
    GeneratedQueries,
    Passage,
    Recipe,
    Vectors,
    option,
)

if TYPE_CHECKING:
    from xqg_vdb.store.server.foreign import ForeignCollection, ForeignPoint, PayloadLayout
    from xqg_vdb.store.server.store import ServerStore


LEAST_COSINE = 0.99
"""Equal models of equal precision are above it, batches of an int8 model included; other models are far below."""
_NEAR = 0.9
_LENGTHS = (0.9, 1.1)
_COMMIT_PAGES = 16


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a collection is to be augmented; the command line makes its options of these fields."""

    to: str | None = option(None, "Name of the new collection  [default: COLLECTION-xqg]", metavar="NAME")
    vector: str | None = option(
        None, 'The searched vector, "" for the unnamed  [default: recognised]', metavar="VECTOR"
    )
    text_key: str | None = option(None, "Where payloads have the text  [default: recognised]", metavar="KEY")
    id_key: str | None = option(
        None, "Where payloads have the queries' id  [default: recognised, or point id]", metavar="KEY"
    )
    sample: int = option(32, "Passages to check the encoder on.", least=1, most=256)


@dataclass(frozen=True)
class AugmentReport:
    """What was done.

    collection: the name to search. source: the collection that was copied. layout: how payloads are written.
    vector: the one with the fused rows, "" for the unnamed one. cosine: median of the encoder check.
    counts: points, those of them `without_text`, `without_vector` or `without_queries`, and `unused_queries`, the query
    records that belong to no point. queries: how many were folded in, by language.
    """

    collection: str
    source: str
    layout: str
    vector: str
    cosine: float
    counts: Mapping[str, int]
    queries: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)


def augment(
    name: str,
    *,
    store: ServerStore,
    encoder: TextEncoder,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records,
    recipe: Recipe | None = None,
    wishes: Wishes | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> AugmentReport:
    """Copy the collection `name` with generated queries folded into its vectors; `wishes` says under which name.

    A run that was stopped continues when the same call is made again. Raises MismatchError for another encoder, for
    distances without fusion and for layouts that cannot be copied; DataError, ServerError, DiskError, LockedError.
    """
    recipe, wishes = recipe or Recipe(), wishes or Wishes()
    source = store.foreign(name)
    if source.record:  # a copy of ours is made again from what it was copied from
        source, wishes = store.foreign(source.record["source"]), replace(wishes, to=wishes.to or name)
    started = time.perf_counter()
    with ExitStack() as stack:
        files = as_files(queries, stack)
        table = stack.enter_context(QueryFile(files, rejects=rejects))
        plan = _planned(source, wishes, facts=encoder.facts, recipe=recipe, queries=files)
        cosine = _checked(plan, encoder, sample=wishes.sample)
        try:
            build, counts = _encode(plan, table, encoder, progress)
        except (MismatchError, CorruptError):  # points or queries changed since, or it is damaged
            shutil.rmtree(plan.folder, ignore_errors=True)
            build, counts = _encode(plan, table, encoder, progress)
        generated, encoded = generated_means(build.sums()), time.perf_counter()
        if not generated.counts:
            keys = filter(None, (plan.layout.key(point.id, point.payload) for point in plan.sample))
            raise DataError(
                f"No generated query belongs to any of the {counts['points']:,} points: their ids are such as"
                f" {', '.join(islice(keys, 3))}, the query file's such as {', '.join(table.unused(3))}. Say where the"
                " points keep those with --id-key."
            )
    digest = combined_digest(build.digests(), plan.run)
    card = card_of(encoder, rows_digest=digest, recipe=recipe, distance=plan.distance, generated=generated)
    check_counts(build, card)
    _publish(plan, build, card, progress)
    shutil.rmtree(plan.folder, ignore_errors=True)
    return AugmentReport(
        collection=plan.name,
        source=source.physical,
        layout=plan.layout.name,
        vector=plan.vector,
        cosine=cosine,
        counts=dict(counts),
        queries={lang: generated.counts[lang] for lang in card.query_langs},
        seconds={"encode": round(encoded - started, 2), "write": round(time.perf_counter() - encoded, 2)},
    )


def undo(name: str, *, store: ServerStore, to: str | None = None) -> str:
    """Delete the copy `name`, or the one of the collection `name` under the name `to`; says what was done.

    An alias that was switched to the copy points again where it pointed before. Raises DataError when there is no copy.
    """
    from xqg_vdb.store.server.foreign import remove_copy, remove_unfinished

    collection = store.foreign(name)
    record = collection.record
    if record:
        remove_copy(collection.names, name, collection.physical, previous=record["previous"])
        return f"{name}: the copy {collection.physical} is gone; {record['source']} is as it was"
    target = to or f"{name}-xqg"
    removed = remove_unfinished(collection, target)
    published = collection.names.target(target)
    copied = {} if published is None else store.foreign(published).record
    if published is not None and copied.get("source") == collection.physical:
        remove_copy(collection.names, target, published, previous=copied["previous"])
        removed.append(published)
    if not removed:
        raise DataError(f"{name!r} is not augmented, and {target!r} is no copy of it: there is nothing to undo.")
    return f"{target}: {', '.join(removed)} is gone; {name} is as it was"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done. name: of the copy. sample: the first points.

    folder: of the first pass. run: hash of all that the outcome depends on, but the points.
    """

    source: ForeignCollection
    name: str
    vector: str
    layout: PayloadLayout
    distance: Distance
    folder: Path
    run: str
    sample: list[ForeignPoint]


def _planned(
    source: ForeignCollection, wishes: Wishes, *, facts: EncoderFacts, recipe: Recipe, queries: Sequence[Path]
) -> _Plan:
    """The plan. What is unknown, unfit, or could not be published later is refused here, before hours of encoding."""
    from xqg_vdb.store.layout import check_name
    from xqg_vdb.store.server.foreign import chosen_vector, previous_target, recognised

    card = source.card
    if card is not None and card.query_langs:
        raise MismatchError(
            f"The vectors of {source.name!r} have generated queries in them, by `xqg-vdb load`: load again with the new"
            " queries (with --build nothing is encoded twice)."
        )
    vectors = source.dense_vectors()
    vector, distance = chosen_vector(vectors, wishes.vector, name=source.name)
    name = check_name(wishes.to or f"{source.name}-xqg")
    source.names.refuse_plain(name)
    previous_target(source, name)
    sample = next(source.pages(vectors=[vector]))
    if not sample:
        raise DataError(f"Collection {source.name!r} holds no points.")
    layout = recognised([point.payload for point in sample], text_key=wishes.text_key, id_key=wishes.id_key)
    inputs = _hash(source.names.server.where, source.physical, vector, layout.id_key, facts.fingerprint,
                   *[sha256_of(file) for file in queries])  # fmt: skip
    folder = cache_folder() / "augment" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.physical)}-{inputs}"
    run = _hash(inputs, recipe.to_json())
    return _Plan(source, name, vector, layout, distance, folder, run, sample)


def _hash(*parts: object) -> str:
    return hashlib.blake2b(orjson.dumps(parts), digest_size=8).hexdigest()


def _encode(plan: _Plan, table: QueryFile, encoder: TextEncoder, progress: Progress) -> tuple[Build, Counter[str]]:
    """A build of the points that have the vector, and what was seen (`AugmentReport.counts`)."""
    counts, total, facts = Counter[str](), plan.source.names.count(plan.source.physical), encoder.facts
    counts.update(dict.fromkeys(("points", "without_text", "without_vector", "without_queries"), 0))

    def rows() -> Iterator[tuple[Passage, GeneratedQueries | None, Vectors]]:
        for point in (point for page in plan.source.pages(vectors=[plan.vector]) for point in page):
            texts, values = plan.layout.wordings(point.payload), point.vectors.get(plan.vector)
            key = plan.layout.key(point.id, point.payload)
            queries = None if key is None else table.get(key)
            counts["points"] += 1
            counts["without_text"] += not texts
            counts["without_vector"] += values is None
            counts["without_queries"] += queries is None
            if values is not None:
                yield Passage(str(point.id), texts[0] if texts else ""), queries, np.asarray(values, dtype=np.float32)

    build = fill_build(
        plan.folder,
        rows(),
        dim=facts.dim,
        fingerprint=facts.fingerprint,
        digests=lambda rows: digests_of([(passage, queries) for passage, queries, _ in rows]),
        encode=lambda rows, digests: Window(
            [passage.id for passage, _, _ in rows],
            digests,
            np.stack([values for _, _, values in rows]),
            query_sums([queries for _, queries, _ in rows], encoder),
        ),
        say=lambda _: progress("encoding queries", min(counts["points"], total), total),
    )
    counts["unused_queries"] = table.unused_count
    return build, counts


def _publish(plan: _Plan, build: Build, card: Card, progress: Progress) -> None:
    """Make the copy, or continue it; the alias shows it when it is complete, and the copy before it goes away."""
    from xqg_vdb.store.server.foreign import open_copy, previous_target

    source = plan.source
    previous, replaced = previous_target(source, plan.name)
    record: dict[str, Any] = {
        "source": source.physical, "previous": previous, "run": card.rows_digest, "finished": False
    }  # fmt: skip
    copy = open_copy(source, plan.name, record=record)
    rows = {point: row for row, point in enumerate(build.ids())}
    for number, page in zip(count(1), source.pages(vectors=None, after=copy.after), strict=False):
        copy.upsert(_fused(page, rows, build, card=card, vector=plan.vector))
        if last := [rows[str(point.id)] for point in page if str(point.id) in rows][-1:]:
            progress("copying", last[0] + 1, build.rows)
        if page and number % _COMMIT_PAGES == 0:
            copy.commit(page[-1].id)
    total, before = source.names.count(source.physical), source.card
    progress("indexing", 0, total)
    # the digest is over ids and texts, which are the same
    card = finished(card, count=total, digest="" if before is None else before.digest)
    copy.publish(
        plan.name,
        card=replace(card, vectors=(plan.vector,), version=copy.physical.rpartition("__")[2]),
        record={**record, "finished": True},
        indexed=lambda done: progress("indexing", min(done, total), total),
    )
    if replaced is not None:
        source.names.remove(replaced)


def _fused(
    page: Sequence[ForeignPoint], rows: Mapping[str, int], build: Build, *, card: Card, vector: str
) -> list[ForeignPoint]:
    """The points, those in the build with their fused `vector`; our own layout says which languages are folded in."""
    points, known = list(page), [i for i, point in enumerate(page) if str(point.id) in rows]
    window = build.take(np.array([rows[str(page[i].id)] for i in known], np.int64))
    fused = vectors_of(window, langs=[UNKNOWN_LANGUAGE] * len(known), card=card)[TEXT_DENSE].tolist()
    for i, values, langs in zip(known, fused, folded_langs(window, card), strict=True):
        payload, meta = page[i].payload, page[i].payload.get("meta")
        if isinstance(meta, dict) and "query_langs" in meta:
            payload = {**payload, "meta": {**meta, "query_langs": langs}}
        points[i] = replace(page[i], vectors={**page[i].vectors, vector: values}, payload=payload)
    return points


def _checked(plan: _Plan, encoder: TextEncoder, *, sample: int) -> float:
    """The encoder check on the first points that have a text and the vector."""
    points = [(plan.layout.wordings(point.payload), point.vectors.get(plan.vector)) for point in plan.sample]
    chosen = [(texts, vector) for texts, vector in points if texts and vector is not None][:sample]
    stored = np.asarray([vector for _, vector in chosen], dtype=np.float32).reshape(len(chosen), -1)
    wordings = [texts for texts, _ in chosen]
    return check_encoder(encoder, wordings, stored, distance=plan.distance, name=plan.source.name)


def check_encoder(
    encoder: TextEncoder, wordings: Sequence[Sequence[str]], stored: Vectors, *, distance: Distance, name: str
) -> float:
    """The median cosine of stored rows (n, dim) to the rows that `encoder` makes of the same texts.

    wordings: per row what may have been encoded, the likeliest first; the kind of wording that fits best counts.
    Raises MismatchError, with what was found and what is wanted, for another encoder; DataError without texts.
    """
    if not wordings:
        raise DataError(f"None of the first points of {name!r} has a text: name its key with --text-key.")
    facts = encoder.facts
    if stored.shape[1] != facts.dim:
        raise MismatchError(
            f"The vectors of {name!r} have {stored.shape[1]} dimensions, those of {facts.source} {facts.dim}: give the"
            " encoder that made them (--encoder)."
        )
    if distance == "cosine" and not facts.normalize:
        raise MismatchError(
            f"{name!r} keeps its vectors at length 1, and {facts.source} makes others: how long the passages' vectors"
            " were is lost, so that queries cannot be weighed against them. Load the texts with `xqg-vdb load`."
        )
    kinds = range(max(map(len, wordings)))
    texts = [[ways[min(kind, len(ways) - 1)] for ways in wordings] for kind in kinds]
    rows = [encoder.encode_passages(batch) for batch in texts]
    cosines = [_median_cosine(stored, made) for made in rows]
    best = int(np.argmax(cosines))
    if cosines[best] < LEAST_COSINE:
        as_queries = max(_median_cosine(stored, encoder.encode_queries(batch, calibrate=False)) for batch in texts)
        raise MismatchError(_refusal(facts, cosines[best], as_queries, name=name))
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in (stored, rows[best])]
    ratio = float(np.median(lengths[0] / np.maximum(lengths[1], 1e-12)))
    if distance == "dot" and not _LENGTHS[0] <= ratio <= _LENGTHS[1]:
        raise MismatchError(
            f"The vectors of {name!r} are {ratio:.2f} times as long as those that {facts.source} makes: they were"
            " scaled, or normalised, by other means. Load the texts with `xqg-vdb load`."
        )
    return cosines[best]


def _median_cosine(stored: Vectors, made: Vectors) -> float:
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(made, axis=1)
    return float(np.median(np.sum(stored * made, axis=1) / np.maximum(lengths, 1e-12)))


def _refusal(facts: EncoderFacts, passages: float, queries: float, *, name: str) -> str:
    said = (
        f"{facts.source} ({facts.precision}) did not make the vectors of {name!r}: encoded again, a sample of its texts"
        f" has a median cosine of {passages:.3f} to what is stored, at least {LEAST_COSINE} is wanted."
    )
    if queries >= LEAST_COSINE:
        return (
            f"{said} Encoded as queries it has {queries:.3f}: the passages were given the prefix"
            f" {facts.query_prefix!r}. Export the encoder with that as --passage-prefix."
        )
    if passages >= _NEAR:
        other = "fp32" if facts.precision == "int8" else "int8"
        return (
            f"{said} That is near: another precision (`xqg-vdb export --precision {other}`), another prefix before the"
            f" passages (this encoder's is {facts.passage_prefix!r}), or a title or metadata before the text."
        )
    return f"{said} Give the encoder that made them (--encoder), or the key of the text that was encoded (--text-key)."
