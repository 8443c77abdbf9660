"""Small passages, vectors, cards and a loader for the tests of `xqg_vdb.store`, and the twin of its search."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_qdrant import FakeQdrant

from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import digest
from xqg_vdb.store.operations import Store
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Card, EncoderFacts, Passage, PointBatch, Recipe, Vectors, VectorStore

DIM = 16
SERVER = os.environ.get("XQG_TEST_QDRANT_URL")
STORES = ["embedded", "memory", "http", "server"]
LANGS = ("en", "sw", "yo")


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Store]:
    """A store of one of `STORES`; `server` is the real one, and skips where there is none."""
    if kind == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    with ExitStack() as stack:
        if kind == "embedded":
            store = EmbeddedStore(folder / "store", free_space_floor=0)
        else:
            url = {"memory": ":memory:", "server": SERVER}.get(kind)
            key = os.environ.get("XQG_TEST_QDRANT_API_KEY") if kind == "server" else None
            store = ServerStore.connect(url or stack.enter_context(FakeQdrant()).url, api_key=key)
        yield stack.enter_context(store)


def facts(*, dim: int = DIM, fingerprint: str = "f00d") -> EncoderFacts:
    return EncoderFacts(
        fingerprint=fingerprint, source="toy", dim=dim, pooling="mean", normalize=True, query_prefix="query: ",
        passage_prefix="passage: ", max_length=128, precision="fp32",
    )  # fmt: skip


def a_card(*, dim: int = DIM, fingerprint: str = "f00d", alpha: float = 0.3, distance: str = "cosine") -> Card:
    return Card(encoder=facts(dim=dim, fingerprint=fingerprint), distance=distance, recipe=Recipe(alpha=alpha))


def passages(n: int, *, start: int = 0, tag: str = "") -> list[Passage]:
    """Passage i has language i mod 3; `tag` makes texts of another edition."""
    return [
        Passage(f"p{i:05d}", f"text {tag}{i}", title=f"title {i}", lang=LANGS[i % 3], meta={"n": i})
        for i in range(start, start + n)
    ]


def vectors(n: int, *, dim: int = DIM, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def a_batch(rows: Sequence[Passage], matrix: Vectors) -> PointBatch:
    return PointBatch(rows, {"text-dense": matrix}, [("sw",)] * len(rows))


def load(
    store: VectorStore, name: str, rows: Sequence[Passage], matrix: Vectors, *, card: Card, batch: int = 100
) -> None:
    """What the real loader does, without encoder: upsert, commit, publish; continues where a stopped one was."""
    with store.writer(name, card=card) as writer:
        for at in range(writer.committed, len(rows), batch):
            writer.upsert(a_batch(rows[at : at + batch], matrix[at : at + batch]))
            writer.commit(min(at + batch, len(rows)))
        writer.publish(finished(card, rows))


def finished(card: Card, rows: Sequence[Passage]) -> Card:
    from dataclasses import replace

    return replace(card, count=len(rows), digest=digest((p.id, p.text) for p in rows))


def slow_search(
    rows: Sequence[Passage], matrix: Vectors, questions: Vectors, *, k: int, langs: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """Cosine in float64 over everything, one sort by (-score, id): what `search(exact=True)` must agree with."""
    unit = matrix / np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    answers = []
    for question in questions.astype(np.float64):
        scores = unit @ (question / np.linalg.norm(question))
        scored = [(p.id, float(s)) for p, s in zip(rows, scores, strict=True) if langs is None or p.lang in langs]
        answers.append(sorted(scored, key=lambda one: (-one[1], one[0]))[:k])
    return answers
