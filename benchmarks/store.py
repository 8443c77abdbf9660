"""How much of the raw engine's speed is left behind our stores: points per second written, milliseconds per question.

All contestants of a group run side by side: each batch is written to one after the other, each question asked of one
after the other, in rotating order, so that a busy machine is busy for all. Upsert speeds come from sums over all
batches, query times are medians; with `--repeats` above 1 all is done again in new folders, and medians are taken over
the repeats.

- embedded: `EmbeddedStore` (gate, ids, free-space check, upsert, commit every 5,000 points) against a bare loop over
  `EdgeShard.update` and `flush` with the same points, batches and flushes, vectors handed over as lists. HNSW is built
  for both, timed apart; then come the 10 nearest of each question, one at a time, with payload.
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from xqg_vdb.types import Search

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xqg_vdb.store.embedded.engine import build_index
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import payload_of, point_id
from xqg_vdb.store.server.store import ServerStore
from xqg_vdb.types import Card, EncoderFacts, Passage, PointBatch, Recipe, Vectors, VectorStore

DIM, BATCH, PER_FLUSH, K, BAR = 384, 500, 5_000, 10, 0.7
MOST_LOCAL_POINTS = 20_000
LANGS = ("en", "sw", "yo", "ha")
CARD = Card(
    encoder=EncoderFacts("bench", "bench", DIM, "mean", True, "", "", 512, "fp32"), distance="cosine", recipe=Recipe()
)


QUERY_LANGS = ("sw", "yo")


@dataclass(frozen=True)
class Data:
    """What all contestants write and ask."""

    passages: list[Passage]
    vectors: Vectors
    questions: Vectors

    def head(self, points: int) -> Data:
        """The first `points` points, same questions."""
        return Data(self.passages[:points], self.vectors[:points], self.questions)


class Contestant(Protocol):
    """One way to write and search."""

    def write(self, passages: list[Passage], vectors: Vectors) -> None:
        """Write one batch."""

    def commit(self, rows: int) -> None:
        """Make everything durable."""

    def finish(self, rows: int) -> None:
        """Build the index, open for reading."""

    def ask(self, question: NDArray[np.float32]) -> None:
        """Find the K nearest."""

    def close(self) -> None:
        """Let go."""


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


class Ours:
    """A store of this package."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store
        self.writer = store.writer("bench", card=CARD)

    def write(self, passages: list[Passage], vectors: Vectors) -> None:
        """Through the gate."""
        self.writer.upsert(PointBatch(passages, {"text-dense": vectors}, [QUERY_LANGS] * len(passages)))

    def commit(self, rows: int) -> None:
        """With a cursor."""
        self.writer.commit(rows)

    def finish(self, rows: int) -> None:
        """With checks of the count."""
        self.writer.publish(replace(CARD, count=rows))
        self.store.count("bench")

    def ask(self, question: NDArray[np.float32]) -> None:
        """With ties settled, as hits."""
        self.store.search("bench", question[None], Search(K))

    def close(self) -> None:
        """Let go."""
        self.store.close()


class RawEngine:
    """A bare EdgeShard; `rows` makes of a matrix what the engine is given."""

    def __init__(self, folder: Path, *, rows: Callable[[Vectors], list[Any]]) -> None:
        self.folder, self.rows = folder, rows
        dense = edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)
        sparse = edge.EdgeSparseVectorParams()
        config = edge.EdgeConfig(vectors={"text-dense": dense}, sparse_vectors={"text-sparse": sparse})
        self.shard = edge.EdgeShard.create(str(folder), config)
        self.shard.update(edge.UpdateOperation.create_field_index("meta.lang", edge.KeywordIndexParams()))

    def write(self, passages: list[Passage], vectors: Vectors) -> None:
        """Points, then one update."""
        points = [
            edge.Point(point_id(p.id), {"text-dense": row}, payload_of(p, QUERY_LANGS))
            for p, row in zip(passages, self.rows(vectors), strict=True)
        ]
        self.shard.update(edge.UpdateOperation.upsert_points(points))

    def commit(self, rows: int) -> None:
        """Flush."""
        self.shard.flush()

    def finish(self, rows: int) -> None:
        """Build the index in a child as ours does."""
        self.shard.close()
        build_index(self.folder)
        self.shard = edge.EdgeShard.load(str(self.folder))

    def ask(self, question: NDArray[np.float32]) -> None:
        """Query, and take the answers over into Python."""
        query = edge.Query.Nearest(self.rows(question[None])[0], using="text-dense")
        found = self.shard.query(edge.QueryRequest(limit=K, query=query, with_payload=True))
        _ = [(point.score, point.payload) for point in found]

    def close(self) -> None:
        """Let go."""
        self.shard.close()


class RawClient:
    """A bare in-memory client."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        dense = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
        self.client.create_collection("bench", vectors_config={"text-dense": dense})

    def write(self, passages: list[Passage], vectors: Vectors) -> None:
        """Points, then one upsert."""
        points = [
            models.PointStruct(id=str(point_id(p.id)), vector={"text-dense": row}, payload=payload_of(p, QUERY_LANGS))
            for p, row in zip(passages, vectors.tolist(), strict=True)
        ]
        self.client.upsert("bench", points, wait=True)

    def commit(self, rows: int) -> None:
        """Nothing to do in memory."""

    def finish(self, rows: int) -> None:
        """Nothing to do: brute force."""

    def ask(self, question: NDArray[np.float32]) -> None:
        """Query."""
        self.client.query_points("bench", query=question.tolist(), using="text-dense", limit=K, with_payload=True)

    def close(self) -> None:
        """Let go."""
        self.client.close()


def as_lists(vectors: Vectors) -> list[Any]:
    return list(vectors.tolist())


def as_memoryviews(vectors: Vectors) -> list[Any]:
    return [memoryview(row) for row in vectors]


Entrants = dict[str, Callable[[Path], Contestant]]
EMBEDDED: Entrants = {
    "ours": lambda folder: Ours(EmbeddedStore(folder)),
    "raw, lists": partial(RawEngine, rows=as_lists),
    "raw, memoryviews": partial(RawEngine, rows=as_memoryviews),
}
CLIENT: Entrants = {"ours": lambda folder: Ours(ServerStore.connect(":memory:")), "raw": lambda folder: RawClient()}


@dataclass
class Timings:
    """Seconds of one contestant in one repeat: all upserts with their flushes, the index, the median question."""

    upsert: float = 0.0
    index: float = 0.0
    query: float = 0.0


def side_by_side(entrants: Entrants, data: Data) -> dict[str, Timings]:
    """One repeat of a group."""
    names = list(entrants)
    times = {name: Timings() for name in names}
    with ExitStack() as stack:
        running = {name: started(make, stack) for name, make in entrants.items()}
        for turn, at in enumerate(range(0, len(data.passages), BATCH)):
            for name in rotated(names, turn):
                times[name].upsert += seconds(partial(write_batch, running[name], data, at))
        for name in names:
            times[name].index = seconds(partial(running[name].finish, len(data.passages)))
        asked: dict[str, list[float]] = {name: [] for name in names}
        for turn, question in enumerate(data.questions):
            for name in rotated(names, turn):
                asked[name].append(seconds(partial(running[name].ask, question)))
        for name in names:
            times[name].query = statistics.median(asked[name])
    return times


def started(make: Callable[[Path], Contestant], stack: ExitStack) -> Contestant:
    folder = Path(tempfile.mkdtemp(prefix="xqg-bench-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    contestant = make(folder)
    stack.callback(contestant.close)
    return contestant


def write_batch(contestant: Contestant, data: Data, at: int) -> None:
    contestant.write(data.passages[at : at + BATCH], data.vectors[at : at + BATCH])
    if (at + BATCH) % PER_FLUSH == 0:
        contestant.commit(at + BATCH)


def rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def summary(group: str, entrants: Entrants, data: Data, repeats: int) -> list[dict[str, Any]]:
    """One record per contestant; the ratios compare `ours` with it: its time divided by ours."""
    rounds = [side_by_side(entrants, data) for _ in range(repeats)]
    points = len(data.passages)
    middle = statistics.median
    return [
        {
            "group": group,
            "what": name,
            "points": points,
            "points_per_s": round(points / middle(one[name].upsert for one in rounds)),
            "index_s": round(middle(one[name].index for one in rounds), 1),
            "query_ms": round(1000 * middle(one[name].query for one in rounds), 3),
            "upsert_ratio": round(middle(one[name].upsert / one["ours"].upsert for one in rounds), 2),
            "query_ratio": round(middle(one[name].query / one["ours"].query for one in rounds), 2),
        }
        for name in entrants
    ]


def show(records: list[dict[str, Any]]) -> None:
    print(f"{'':32}{'points':>9}{'points/s':>10}{'index s':>9}{'ms/query':>10}{'ours: upsert':>14}{'query':>8}")
    for one in records:
        ratios = "" if one["what"] == "ours" else f"{one['upsert_ratio']:>13.2f}×{one['query_ratio']:>7.2f}×"
        name = f"{one['group']} {one['what']}"
        print(
            f"{name:32}{one['points']:>9,}{one['points_per_s']:>10,}{one['index_s']:>9.1f}{one['query_ms']:>10.3f}{ratios}"
        )
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
    records = summary("embedded", EMBEDDED, data, options.repeats)
    records += summary("client :memory:", CLIENT, small, options.repeats)
    versions = {name: version(name) for name in ("qdrant-edge-py", "qdrant-client", "numpy")}
    if options.json:
        print(json.dumps({"results": records, "versions": versions, "machine": platform.processor(), "bar": BAR}))
    else:
        show(records)


if __name__ == "__main__":
    main()
