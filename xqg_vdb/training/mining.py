"""Hard negatives: the passages that an encoder ranks highest for a question and that do not answer it.

The passages go into a collection of the embedded store, as they would in production, and every question is searched
exactly. In: pairs and a `TextEncoder`. Out: the same pairs with negatives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

from xqg_vdb.batching import windows
from xqg_vdb.collection import open_store
from xqg_vdb.collection.layout import TEXT_DENSE, digest
from xqg_vdb.training.pairs import TrainingPair, content_key
from xqg_vdb.types import Card, Passage, PointBatch, Recipe, TextEncoder, VectorStore

_NAME = "mining"
_WINDOW = 512


def mine_negatives(
    pairs: Sequence[TrainingPair], encoder: TextEncoder, *, count: int, skip: int = 0
) -> list[TrainingPair]:
    """Each pair with `count` mined negatives after its own; fewer when there are not so many passages.

    The pool is all positives and negatives of `pairs`. Passages that answer the same question are never negatives.
    skip: leave out the best so many of what remains; the top often holds answers that nobody marked.
    """
    pool = {content_key(p): p for pair in pairs for p in (pair.positive, *pair.negatives)}
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(content_key(pair.positive))
    most = max(len(found) for found in answers.values())
    with tempfile.TemporaryDirectory(prefix="xqg-mining-") as folder:
        store = open_store(folder)
        try:
            _write(store, [replace(passage, id=key) for key, passage in pool.items()], encoder)
            found: list[TrainingPair] = []
            for window in windows(pairs, _WINDOW):
                rows = encoder.encode_queries([pair.query for pair in window])
                wanted = min(len(pool), count + skip + most + max(len(pair.negatives) for pair in window))
                hits = store.search(_NAME, rows, k=wanted, langs=None, using=TEXT_DENSE, exact=True, ef=None)
                for pair, found_here in zip(window, hits, strict=True):
                    taken = answers[pair.query] | {content_key(passage) for passage in pair.negatives}
                    keys = [hit.id for hit in found_here if hit.id not in taken][skip : skip + count]
                    found.append(replace(pair, negatives=(*pair.negatives, *(pool[key] for key in keys))))
        finally:
            store.close()
    return found


def _write(store: VectorStore, passages: Sequence[Passage], encoder: TextEncoder) -> None:
    card = Card(encoder.facts, "cosine" if encoder.facts.normalize else "dot", Recipe(alpha=0.0))
    with store.writer(_NAME, card=card) as writer:
        done = 0
        for window in windows(passages, _WINDOW):
            rows = encoder.encode_passages([passage.title_and_text for passage in window])
            plain = [Passage(p.id, p.text, p.title, p.lang) for p in window]
            writer.upsert(PointBatch(plain, {TEXT_DENSE: rows}, [()] * len(window)))
            done += len(window)
        writer.commit(done)
        writer.publish(replace(card, count=done, digest=digest((p.id, p.text) for p in passages)))
