"""How much of the raw engine's speed is left behind our stores: points per second written, milliseconds per question.

Measured on the same machine, one after the other, alternating, medians of `--repeats` loads and of all question rounds:

- embedded: `EmbeddedStore` (gate, ids, free-space check, upsert, commit every 5,000 points) against a bare loop over
  `EdgeShard.update` and `flush` with the same points, batches and flushes, vectors handed over as lists. HNSW is built for
  both, timed apart; then come the 10 nearest of each question, one at a time, with payload.
- embedded, raw with memoryviews: the same bare loop with the fastest form of vectors that the engine takes.
- client: `ServerStore` over the client's in-memory mode against a bare `client.upsert` of the same batches, at no more
  than 20,000 points: that mode searches by brute force and says itself that it is not made for more.

Points are 384 wide, cosine, in 40 overlapping groups, with a text of 400 characters, a title, a language and a number.
A ratio above 1 means faster than raw; 0.7 is the bar.

    python benchmarks/store.py [--points 100000] [--questions 500] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xqg_vdb.collection.embedded import EmbeddedStore
from xqg_vdb.collection.index_build import build_index
from xqg_vdb.collection.layout import payload_of, point_id
from xqg_vdb.collection.server import ServerStore
from xqg_vdb.types import (
    Card,
    CollectionWriter,
    EncoderFacts,
    Passage,
    PointBatch,
    Recipe,
    Vectors,
    VectorStore,
)

DIM, BATCH, PER_FLUSH, K, BAR = 384, 500, 5_000, 10, 0.7
MOST_LOCAL_POINTS = 20_000
LANGS = ("en", "sw", "yo", "ha")
CARD = Card(
    encoder=EncoderFacts("bench", "bench", DIM, "mean", True, "", "", 512, "fp32"), distance="cosine", recipe=Recipe()
)


@dataclass
class Timings:
    """Seconds of every repeat of one contestant."""

    upsert: list[float] = field(default_factory=list)
    index: list[float] = field(default_factory=list)
    query: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """What all contestants write and ask."""

    passages: list[Passage]
    vectors: Vectors
    questions: Vectors

    def batches(self) -> Iterator[tuple[int, list[Passage], Vectors]]:
        """(rows before it, passages, vectors), BATCH rows each."""
        for at in range(0, len(self.passages), BATCH):
            yield at, self.passages[at : at + BATCH], self.vectors[at : at + BATCH]

    def head(self, points: int) -> Data:
        """The first `points` points, same questions."""
        return Data(self.passages[:points], self.vectors[:points], self.questions)


def make_data(points: int, questions: int) -> Data:
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((40, 24, DIM)).astype(np.float32)
    groups = rng.integers(0, 40, points + questions)
    weights = rng.standard_normal((points + questions, 24)).astype(np.float32)
    rows = np.empty((points + questions, DIM), np.float32)
    for group in range(40):
        chosen = groups == group
        rows[chosen] = weights[chosen] @ basis[group] + 3 * basis[group, 0]
    rows += 0.5 * rng.standard_normal(rows.shape).astype(np.float32)
    text = "A passage of four hundred characters, more or less. " * 8
    passages = [
        Passage(f"doc-{i}", f"{text[:390]} {i}", title=f"title {i}", lang=LANGS[i % 4], meta={"n": i})
        for i in range(points)
    ]
    return Data(passages, rows[:points], rows[points:])


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    into.append(time.perf_counter() - begin)


def ours_embedded(data: Data, folder: Path, times: Timings) -> None:
    with EmbeddedStore(folder) as store:
        writer = store.writer("bench", card=CARD)
        with timed(times.upsert):
            load_ours(writer, data)
        with timed(times.index):
            writer.publish(replace(CARD, count=len(data.passages)))
        store.count("bench")
        ask_ours(store, data, times)


def load_ours(writer: CollectionWriter, data: Data) -> None:
    for at, passages, vectors in data.batches():
        writer.upsert(PointBatch(passages, {"text-dense": vectors}, [("sw", "yo")] * len(passages)))
        if (at + BATCH) % PER_FLUSH == 0:
            writer.commit(at + BATCH)


def ask_ours(store: VectorStore, data: Data, times: Timings) -> None:
    for row in data.questions:
        with timed(times.query):
            store.search("bench", row[None], k=K, langs=None, using="text-dense", exact=False, ef=None)


def raw_embedded(data: Data, folder: Path, times: Timings, *, rows: Callable[[Vectors], list[Any]]) -> None:
    shard = edge.EdgeShard.create(
        str(folder),
        edge.EdgeConfig(
            vectors={"text-dense": edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)},
            sparse_vectors={"text-sparse": edge.EdgeSparseVectorParams()},
        ),
    )
    shard.update(edge.UpdateOperation.create_field_index("meta.lang", edge.KeywordIndexParams()))
    with timed(times.upsert):
        for at, passages, vectors in data.batches():
            points = [
                edge.Point(point_id(p.id), {"text-dense": row}, payload_of(p, ("sw", "yo")))
                for p, row in zip(passages, rows(vectors), strict=True)
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
            if (at + BATCH) % PER_FLUSH == 0:
                shard.flush()
    with timed(times.index):
        shard.close()
        build_index(folder)  # the engine's `optimize`, in a child as well
    shard = edge.EdgeShard.load(str(folder))
    for row in rows(data.questions):
        with timed(times.query):
            query = edge.Query.Nearest(row, using="text-dense")
            shard.query(edge.QueryRequest(limit=K, query=query, with_payload=True))
    shard.close()


def as_lists(vectors: Vectors) -> list[Any]:
    return vectors.tolist()


def as_memoryviews(vectors: Vectors) -> list[Any]:
    return [memoryview(row) for row in vectors]


def ours_client(data: Data, folder: Path, times: Timings) -> None:
    with ServerStore.connect(":memory:") as store:
        writer = store.writer("bench", card=CARD)
        with timed(times.upsert):
            load_ours(writer, data)
        writer.publish(replace(CARD, count=len(data.passages)))
        ask_ours(store, data, times)


def raw_client(data: Data, folder: Path, times: Timings) -> None:
    client = QdrantClient(":memory:")
    client.create_collection(
        "bench", vectors_config={"text-dense": models.VectorParams(size=DIM, distance=models.Distance.COSINE)}
    )
    with timed(times.upsert):
        for _, passages, vectors in data.batches():
            points = [
                models.PointStruct(
                    id=str(point_id(p.id)), vector={"text-dense": row}, payload=payload_of(p, ("sw", "yo"))
                )
                for p, row in zip(passages, vectors.tolist(), strict=True)
            ]
            client.upsert("bench", points, wait=True)
    for row in data.questions.tolist():
        with timed(times.query):
            client.query_points("bench", query=row, using="text-dense", limit=K, with_payload=True)
    client.close()


Contestant = Callable[[Data, Path, Timings], None]


def race(contestants: dict[str, Contestant], data: Data, repeats: int) -> dict[str, Timings]:
    """Every contestant `repeats` times, in turn, so that a busy machine is busy for all."""
    results = {name: Timings() for name in contestants}
    for number in range(repeats):
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in names:
            folder = Path(tempfile.mkdtemp(prefix="xqg-bench-"))
            try:
                contestants[name](data, folder, results[name])
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return results


def summary(group: str, results: dict[str, Timings], points: int) -> list[dict[str, Any]]:
    """One record per contestant; the ratios compare `ours` with it: its time divided by ours."""
    ours = results["ours"]
    return [
        {
            "group": group,
            "what": name,
            "points": points,
            "points_per_s": round(points / statistics.median(times.upsert)),
            "index_s": round(statistics.median(times.index), 1) if times.index else None,
            "query_ms": round(1000 * statistics.median(times.query), 3),
            "upsert_ratio": round(statistics.median(times.upsert) / statistics.median(ours.upsert), 2),
            "query_ratio": round(statistics.median(times.query) / statistics.median(ours.query), 2),
        }
        for name, times in results.items()
    ]


def show(records: list[dict[str, Any]]) -> None:
    print(f"{'':32}{'points':>9}{'points/s':>10}{'index s':>9}{'ms/query':>10}{'ours: upsert':>14}{'query':>8}")
    for one in records:
        ratios = "" if one["what"] == "ours" else f"{one['upsert_ratio']:>13.2f}×{one['query_ratio']:>7.2f}×"
        index = "" if one["index_s"] is None else f"{one['index_s']:.1f}"
        name = f"{one['group']}: {one['what']}"
        print(f"{name:32}{one['points']:>9,}{one['points_per_s']:>10,}{index:>9}{one['query_ms']:>10.3f}{ratios}")
    print(f"ours: upsert and query: our speed divided by that line's; the bar is {BAR}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    data = make_data(options.points, options.questions)
    small = data.head(min(options.points, MOST_LOCAL_POINTS))
    embedded: dict[str, Contestant] = {
        "ours": ours_embedded,
        "raw, lists": lambda d, f, t: raw_embedded(d, f, t, rows=as_lists),
        "raw, memoryviews": lambda d, f, t: raw_embedded(d, f, t, rows=as_memoryviews),
    }
    records = summary("embedded", race(embedded, data, options.repeats), len(data.passages))
    client: dict[str, Contestant] = {"ours": ours_client, "raw": raw_client}
    records += summary("client :memory:", race(client, small, options.repeats), len(small.passages))
    versions = {name: version(name) for name in ("qdrant-edge-py", "qdrant-client", "numpy")}
    if options.json:
        print(json.dumps({"results": records, "versions": versions, "machine": platform.processor(), "bar": BAR}))
    else:
        show(records)


if __name__ == "__main__":
    main()
