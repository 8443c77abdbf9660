"""Copy a published collection into another store, vectors and all, without encoding again; a stopped copy continues.

In: two stores. Out: a published collection with the source's card. Both engines hand out points in the order of their
ids, which makes "the first n" mean the same to every run, as long as the source stays the version that it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xqg_vdb.errors import CorruptError, MismatchError
from xqg_vdb.index.build import WINDOW
from xqg_vdb.progress import Progress, silent, windows
from xqg_vdb.store.layout import content_hash, digest_of, is_chunk, payload_of, sparse_vector
from xqg_vdb.types import Card, Passage, PointBatch, StoredPoint, VectorStore

COMMIT_EVERY = 8192
_BY_ID = " in the order of ids"


def migrate(
    source: VectorStore, name: str, target: VectorStore, *, to_name: str | None = None, progress: Progress = silent
) -> Card:
    """Copy `name` from `source` to `target` (as `to_name` when given) and return the card that it has there.

    Vectors come out as they lie in the source, which for cosine collections is at unit length. Raises CorruptError when
    the points are not those that the source's card promises, MismatchError for points that xqg-vdb did not write.
    """
    card = source.card(name)
    target.names()  # a server that is away says so soon
    # rows of a load come in the corpus's order: a copy must not continue where a load stopped
    wanted = replace(card, rows_digest=card.rows_digest.removesuffix(_BY_ID) + _BY_ID, storage={}, digest="")
    total = done = 0
    with target.writer(to_name or name, card=wanted) as writer:
        for batch in windows(source.scroll(name, with_vectors=True), WINDOW):
            passages = [_passage(point, name) for point in batch]
            total += sum(content_hash(passage.id, passage.text) for passage in passages)
            stop = done + len(batch)
            if stop > writer.committed:
                writer.upsert(_points(batch, passages, card))
                if stop // COMMIT_EVERY > done // COMMIT_EVERY:
                    writer.commit(stop)
            done = stop
            progress("copying", done, card.count)
        digest = digest_of(total)
        if (done, digest) != (card.count, card.digest or digest):
            raise CorruptError(
                f"Collection {name!r} is not what its card says ({done:,} points of {card.count:,}, or other texts);"
                " look at it with `xqg-vdb verify`."
            )
        writer.commit(done)
        progress("indexing", 0, done)
        final = replace(wanted, count=card.count, digest=digest, created=card.created)
        writer.publish(final, indexed=lambda count: progress("indexing", min(count, done), done))
        progress("indexing", done, done)
    return target.card(to_name or name)


def _passage(point: StoredPoint, name: str) -> Passage:
    """The passage of a point. Raises MismatchError when its payload says more, or less, than one of ours."""
    try:
        meta = dict(point.payload["meta"])
        query_langs = meta.pop("query_langs")
        lang, title = meta.pop("lang"), meta.pop("title")
        span = tuple(point.payload["span"]) if is_chunk(point.payload) else None
        passage = Passage(point.id, point.payload["content"], title=title, lang=lang, meta=meta, span=span)
        if payload_of(passage, query_langs, row=point.payload.get("row")) == point.payload:
            return passage
    except (KeyError, TypeError, ValueError):
        pass
    raise MismatchError(
        f"The point of passage {point.id!r} in {name!r} has a payload that xqg-vdb did not write; load the collection"
        " again instead of copying it."
    )


def _points(batch: Sequence[StoredPoint], passages: list[Passage], card: Card) -> PointBatch:
    return PointBatch(
        passages,
        {name: np.stack([point.vectors[name] for point in batch]).astype(np.float32) for name in card.vectors},
        [point.payload["meta"]["query_langs"] for point in batch],
        rows=[point.payload.get("row", "") for point in batch],
        # of a passage without a single token some engines give back nothing
        sparse=None if card.bm25 is None else [point.sparse or sparse_vector([], []) for point in batch],
    )
