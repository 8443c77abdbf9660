"""What `load` costs beside qdrant-client's own `upload_points` on a Qdrant server: the same points, in turn.

Both make a collection, write the same made-up passages and vectors into it, wait for every write, and end when all
points are counted and indexed. `load` also reads both from its files, checks every point, notes a cursor, makes an
index of languages and moves an alias; its time is that of its report's "write", the client's begins with passages and
vectors in memory.

`server` sends requests that were made before its clock starts, one after the other: what no client with one connection
can go below. CPU is that of this process: of `load` from its first point on, of the client in its whole time.

    python benchmarks/upload.py --url http://localhost:6333 --points 10000 --repeats 3

Makes the collections `upload-benchmark` and `upload-benchmark-client` there, and removes them again.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_vdb import load
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import CollectionOptions, open_store
from xqg_vdb.store.gate import Rows
from xqg_vdb.store.layout import TEXT_DENSE, payload_of, point_id
from xqg_vdb.store.server.client import Server
from xqg_vdb.store.server.names import Names
from xqg_vdb.store.server.points import upserting
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.types import PointBatch, Vectors

NAME = "upload-benchmark"
BATCH = 512


def by_client(client: QdrantClient, passages: Sequence[Any], rows: Vectors, *, parallel: int) -> tuple[float, float]:
    """Seconds and CPU seconds of `upload_points`, which is given the points as it wants them."""
    name = f"{NAME}-client"
    client.delete_collection(name)
    begin, spent = time.perf_counter(), time.process_time()
    params = models.VectorParams(size=rows.shape[1], distance=models.Distance.COSINE)
    client.create_collection(name, vectors_config={TEXT_DENSE: params})
    points = [
        models.PointStruct(id=str(point_id(passage.id)), vector={TEXT_DENSE: row}, payload=payload_of(passage, []))
        for passage, row in zip(passages, rows.tolist(), strict=True)
    ]
    client.upload_points(name, points, batch_size=BATCH, parallel=parallel, wait=True)
    assert client.count(name).count == len(points)
    while client.get_collection(name).status != models.CollectionStatus.GREEN:  # `load` ends with the index, too
        time.sleep(0.1)
    taken = time.perf_counter() - begin, time.process_time() - spent
    client.delete_collection(name)
    return taken


def by_server(client: QdrantClient, passages: Sequence[Any], rows: Vectors) -> tuple[float, float]:
    """Seconds and CPU seconds of the same requests as `load` sends, made before; without the collection's making."""
    name = f"{NAME}-client"
    params = models.VectorParams(size=rows.shape[1], distance=models.Distance.COSINE)
    client.create_collection(name, vectors_config={TEXT_DENSE: params})
    whole = Rows([point_id(one.id) for one in passages], [payload_of(one, []) for one in passages], [])
    batch = PointBatch(tuple(passages), {TEXT_DENSE: rows}, ((),) * len(passages))
    parts = [slice(start, start + BATCH) for start in range(0, len(passages), BATCH)]
    sends = [upserting(Names(client, Server("", deadline=60)), name, whole, batch, part) for part in parts]
    begin, spent = time.perf_counter(), time.process_time()
    for send in sends:
        assert send() == "completed"
    while client.get_collection(name).status != models.CollectionStatus.GREEN:
        time.sleep(0.1)
    taken = time.perf_counter() - begin, time.process_time() - spent
    client.delete_collection(name)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="a Qdrant server, over http:// or grpc://")
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng, encoder = random.Random(0), HashEncoder(dim=options.dim)
    lines = (
        f'{{"id": "p{i}", "lang": "en", "text": "{" ".join(f"w{rng.randrange(9999)}" for _ in range(80))}"}}\n'
        for i in range(options.points)
    )
    spent: dict[str, float] = {}  # of CPU, when each stage of a load began
    took: dict[str, list[tuple[float, float]]] = {"load": [], "upload_points": [], "server": []}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(lines), "utf-8")
        passages = list(read_corpus(corpus))
        rows = encoder.encode_passages([passage.text for passage in passages])
        made = CollectionOptions(parallel=options.parallel, bulk=True)
        with open_store(url=options.url, options=made) as store:
            for _ in range(options.repeats):
                spent.clear()
                loaded = load(
                    corpus, NAME, encoder=encoder, store=store, options=LoadOptions(build=Path(folder) / "build"),
                    progress=lambda stage, done, total: spent.setdefault(stage, time.process_time()),
                )  # fmt: skip
                took["load"].append((loaded.report.seconds["write"], time.process_time() - spent["writing"]))
                store.delete(NAME)
                took["upload_points"].append(
                    by_client(store._client, passages, rows, parallel=options.parallel)  # type: ignore[attr-defined]
                )
                took["server"].append(by_server(store._client, passages, rows))  # type: ignore[attr-defined]
    for name, pairs in took.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:14}{wall:7.2f} s{options.points / wall:10,.0f} points/s{cpu:7.2f} s of CPU")
    ratios = [
        (theirs[0] / ours[0], ours[1] / theirs[1])
        for theirs, ours in zip(took["upload_points"], took["load"], strict=True)
    ]
    speed, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"load: {speed:.2f} × the points a second, {cpu:.2f} × the CPU")
    least = statistics.median(
        theirs[0] / bare[0] for theirs, bare in zip(took["upload_points"], took["server"], strict=True)
    )
    print(f"the server alone, one request after the other: {least:.2f} × the points a second")


if __name__ == "__main__":
    main()
