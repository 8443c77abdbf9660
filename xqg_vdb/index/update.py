"""Add, replace and delete passages in a published collection, by its own card: recipe, means and settings stay.

In windows of 512: the card says first which ids are about to change and what they held (`Card.pending`), then the
points change, then the card gets the new count and digest. Killed anywhere, the next call settles what was pending by
what is really there, so that the same call again ends as one that was never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from xqg_vdb.calibration import ENOUGH_PASSAGES, LanguageMeans, TextEncoder, pack_means, passage_means, unpack_means
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.build import WINDOW, Window
from xqg_vdb.index.chunks import splitter
from xqg_vdb.index.encode import EarlierBuild, Row, count_cut, digests_of, encode_rows, read_rows
from xqg_vdb.index.load import check_inputs, rejects_of
from xqg_vdb.index.write import generated_means, points
from xqg_vdb.progress import Progress, silent, windows
from xqg_vdb.search import check_same_encoder
from xqg_vdb.store.layout import TEXT_DENSE, content_hash, digest_of, id_of, payload_of, point_id
from xqg_vdb.texts.corpus import as_file, as_files, as_passage
from xqg_vdb.texts.queries import QueryFile
from xqg_vdb.texts.records import Rejects, listed
from xqg_vdb.texts.tables import Records
from xqg_vdb.types import Card, CollectionUpdate, PointBatch, StoredPoint, UpdateReport, VectorStore

if TYPE_CHECKING:
    from xqg_vdb.store.server.store import ServerStore

_log = logging.getLogger(__name__)
_DONE = ("added", "replaced", "deleted")
MANY, FAR = 1 / 3, 0.1
"""The share of passages that came since the load, and the drift of a mean, from which on `since_load` advises a new
load. Rules of thumb: no experiment chose them."""


def add(
    passages: str | PathLike[str] | Records,
    name: str,
    *,
    encoder: TextEncoder,
    store: VectorStore,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records | None = None,
    rejects: Rejects | None = None,
    default_lang: str | None = None,
    progress: Progress = silent,
) -> UpdateReport:
    """Add passages, in any form that `load` takes, to the collection `name`, or replace those of their ids.

    What is there already is neither encoded nor written; without `queries`, it keeps those that it has. A passage whose
    text or fields changed gets the queries that are given. Raises MismatchError for another encoder than the
    collection's and for pool `sum`, DataError, LockedError, DiskError, ServerError.
    """
    rejects = rejects or Rejects()
    with ExitStack() as stack:
        corpus, files = as_file(passages, "corpus.jsonl", stack, rejects.left_out), as_files(queries, stack)
        check_inputs(corpus, name, queries=files)
        _check_card(store.card(name), encoder, name=name)
        others = rejects_of("queries", like=rejects)
        table = None if queries is None else stack.enter_context(QueryFile(files, rejects=others))
        update = stack.enter_context(store.update(name))
        settle(update)
        done = unchanged = 0
        before, strange = dict(update.card.since_load), set[str]()
        split = splitter(encoder, update.card.chunk) if update.card.chunk else None
        rows = read_rows(corpus, queries=table, rejects=rejects, default_lang=default_lang, split=split)
        cut: dict[str, Any] = {}
        for part in _parts(rows):
            changed, gone = _changed(part, update, with_queries=table is not None)
            strange |= {lang for _, given in part if given for lang in given.queries} - set(update.card.query_langs)
            done, unchanged = done + len(part), unchanged + len(part) - len(changed)
            count_cut(changed, encoder, cut)
            if changed or gone:
                _write(changed, gone, update, encoder)
            progress("adding", done, None)
        for column, what in rejects.left_out.items():
            _log.warning("left out of column %s: %s", column, what)
        return UpdateReport(
            name, update.card.count, **_since(update.card, before), unchanged=unchanged, counts=rejects.counts(),
            not_folded=tuple(sorted(strange)), unused_queries=0 if table is None else table.unused_count, cut=cut,
        )  # fmt: skip


def take_in(
    name: str,
    *,
    encoder: TextEncoder,
    store: ServerStore,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> tuple[UpdateReport, list[str]]:
    """Add the passages that stock stores of LangChain, LlamaIndex and Haystack wrote into `name`, and remove theirs.

    They are encoded anew and keep text, fields and id (Haystack's own, else the point's). A point goes when its passage
    is durable; one that changed meanwhile stays, and what is no passage: second comes which, and why. Raises like
    `add`; stopped anywhere, the same call again ends it.
    """
    from xqg_vdb.store.server.foreign import recognised

    source, taken, left = store.foreign(name), dict[int | str, int](), list[str]()

    def passages() -> Iterator[dict[str, Any]]:
        for point in chain.from_iterable(source.pages(vectors=[])):
            payload = point.payload
            if str(point.id) == str(point_id(id_of(payload))):
                continue
            try:
                layout = recognised([payload])
                text, meta = (layout.wordings(payload) or ("",))[-1], layout.fields(payload)
                meta.pop("query_langs", None)  # Haystack read it here, and wrote it again
                passage = {"id": layout.key(point.id, payload), "text": text, "meta": meta}
                as_passage(passage)
            except DataError as error:
                left.append(f"{point.id}: {error}")
            else:
                taken[point.id] = point.hash
                yield passage

    with ExitStack() as stack:
        file = as_file(passages(), "corpus.jsonl", stack)
        if not taken:
            return UpdateReport(name, store.card(name).count), left
        report = add(file, name, encoder=encoder, store=store, queries=queries, rejects=rejects, progress=progress)
    for part in windows([] if report.counts["rejected"] else taken, WINDOW):
        source.remove({point: taken[point] for point in part})
    return report, left


def delete(ids: Iterable[str], name: str, *, store: VectorStore) -> UpdateReport:
    """Delete passages, or documents with all their chunks; ids that `name` does not have are reported, and no error."""
    docids, missing = dict.fromkeys(map(_docid, listed(ids, "ids"))), list[str]()
    with store.update(name) as update:
        settle(update)
        before = dict(update.card.since_load)
        for part in windows(docids, WINDOW):
            stored = update.find(part, chunks=bool(update.card.chunk))
            there = {point.payload.get("id") for point in stored.values()}
            missing += [docid for docid in part if docid not in there]
            if stored:
                update.record(_intent(update.card, list(stored), stored))
                update.delete(list(stored))
                settle(update)
        return UpdateReport(name, update.card.count, **_since(update.card, before), missing=tuple(missing))


def _docid(docid: Any) -> str:
    """As text; a number is spelled out, as that of a corpus is."""
    text = str(docid) if type(docid) is int else docid
    if not isinstance(text, str) or text != text.encode(errors="ignore").decode():
        raise DataError(f"An id is a text or a whole number, not {docid!r:.60}.")
    return text


def settle(update: CollectionUpdate) -> None:
    """Give the card the count and the digest that the pending points, as they are now, make."""
    card = update.card
    if not card.pending:
        return
    there = {docid: point for part in windows(card.pending, WINDOW) for docid, point in update.find(part).items()}
    count, total = card.count, int(card.digest or "0", 16)
    done = dict.fromkeys(_DONE, 0)
    for docid, held in card.pending.items():
        point = there.get(docid)
        count += (point is not None) - bool(held)
        total += (0 if point is None else _hash_of(point)) - int(held or "0", 16)
        if held or point is not None:
            done["replaced" if held and point else "added" if point else "deleted"] += 1
    since = {**card.since_load, **{what: card.since_load.get(what, 0) + n for what, n in done.items()}}
    update.record(replace(card, count=count, digest=digest_of(total), since_load=since, pending={}))


def since_load(card: Card) -> str:
    """What came since the load, how far that moves the language means, and whether a new load is worth it; "" for none.

    The drift of a mean is the distance of the mean of what came from the card's, times the share of what came.
    """
    since = card.since_load
    if not since:
        return ""
    said = ", ".join(f"{since[what]:,} {what}" for what in _DONE if since.get(what))
    share = (since.get("added", 0) + since.get("replaced", 0)) / max(card.count, 1)
    drifts = _drifts(card, min(share, 1.0))
    if drifts:
        worst = max(drifts, key=lambda what: drifts[what])
        said += f"; the mean of {worst} has drifted by {drifts[worst]:.3f}"
    if share >= MANY or max(drifts.values(), default=0.0) >= FAR:
        said += "; a new load is worth it: language means are those of the load"
    return said


def _drifts(card: Card, share: float) -> dict[str, float]:
    counts, dim = card.since_load.get("counts", {}), card.encoder.dim
    came = unpack_means(card.since_load.get("means", {}), dim=dim).means
    theirs = {"queries": card.query_means, "passages": card.passage_means}
    drifts = {}
    for what, mean in came.items():
        kind, _, lang = what.partition(" ")
        known = unpack_means(theirs[kind], dim=dim).mean_of(lang)
        if known is not None and counts[what] >= ENOUGH_PASSAGES:
            drifts[what] = share * float(np.linalg.norm(mean - known))
    return drifts


def _check_card(card: Card, encoder: TextEncoder, *, name: str) -> None:
    check_same_encoder(encoder, card, name=name)
    if TEXT_DENSE not in card.vectors:
        raise MismatchError(f"The vectors of {name!r} have other names than those of `xqg-vdb load`: load it again.")
    if card.query_langs and card.recipe.pool == "sum":
        raise MismatchError(
            f"{name!r} was loaded with --pool sum, which wants equally many queries of every passage: load all of it"
            " again, or with --pool shrunk."
        )


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Windows that hold all chunks of a document."""
    part: list[Row] = []
    for row in rows:
        if len(part) >= WINDOW and (row[0].span is None or _document(row) != _document(part[-1])):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _document(row: Row) -> str:
    return row[0].id if row[0].span is None else row[0].id.rpartition("#")[0]


def _changed(rows: Sequence[Row], update: CollectionUpdate, *, with_queries: bool) -> tuple[list[Row], list[str]]:
    """The rows that are not there as they are, and the chunks that their documents do not have any more."""
    card = update.card
    stored = update.find(list(dict.fromkeys(map(_document, rows))), chunks=bool(card.chunk))
    changed = []
    for row, digest in zip(rows, digests_of(rows).tolist(), strict=True):
        passage, queries = row
        point = stored.get(passage.id)
        if point is not None:
            langs = sorted(set(queries.queries) & set(card.query_langs)) if queries is not None else []
            key: str | None = f"{digest:016x}"
            if not with_queries:
                langs, key = (point.payload.get("meta") or {}).get("query_langs", []), point.payload.get("row")
            payload = orjson.loads(orjson.dumps(payload_of(passage, langs, row=key)))
            if payload == dict(point.payload):
                continue
        changed.append(row)
    return changed, sorted(stored.keys() - {passage.id for passage, _ in rows})


def _write(rows: Sequence[Row], gone: Sequence[str], update: CollectionUpdate, encoder: TextEncoder) -> None:
    passages, card, batches = [passage for passage, _ in rows], update.card, list[PointBatch]()
    if rows:
        window, _ = encode_rows(rows, digests_of(rows), encoder, EarlierBuild((), encoder=encoder.facts))
        card = _with_means(card, window, [passage.lang for passage in passages])
        batches = list(points([(window, passages)], card))
    ids = [*(passage.id for passage in passages), *gone]
    update.record(_intent(card, ids, update.find(ids)))
    try:
        for batch in batches:
            update.upsert(batch)
        if gone:
            update.delete(gone)
    except (DataError, MismatchError):
        settle(update)  # a batch that is refused changed nothing
        raise
    settle(update)


def _intent(card: Card, ids: Sequence[str], stored: Mapping[str, StoredPoint]) -> Card:
    pending = {docid: f"{_hash_of(stored[docid]):x}" if docid in stored else "" for docid in ids}
    return replace(card, pending=pending, inputs="")


def _with_means(card: Card, window: Window, langs: Sequence[str]) -> Card:
    """The card with the means of what comes added to those of what came: of everything that the card subtracts."""
    came = generated_means([window.sums])
    fresh = {
        f"queries {lang}": (came.means[lang], came.counts[lang]) for lang in card.query_langs if lang in came.means
    }
    if card.passage_calibration:
        means = passage_means([(window.passages, langs)])
        fresh |= {f"passages {lang}": (means.means[lang], means.counts[lang]) for lang in means.counts}
    since = card.since_load
    known = LanguageMeans(unpack_means(since.get("means", {}), dim=card.encoder.dim).means, since.get("counts", {}))
    both = known.refined(
        LanguageMeans({what: mean for what, (mean, _) in fresh.items()}, {what: n for what, (_, n) in fresh.items()})
    )
    return replace(card, since_load={**since, "means": pack_means(both), "counts": dict(both.counts)})


def _hash_of(point: StoredPoint) -> int:
    return content_hash(point.id, str(point.payload.get("content", "")))


def _since(card: Card, before: Mapping[str, int]) -> dict[str, Any]:
    return {what: card.since_load.get(what, 0) - before.get(what, 0) for what in _DONE}
