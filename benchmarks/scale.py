"""What a cluster does to the speed of a load, and what a corpus of any size costs, from ratios measured here.

    python benchmarks/scale.py [--passages 1024] [--repeats 3] [--encoder starter]

`load` with two threads and `load --ray local` with two actors run in turn, on the shipped sample's passages and queries
over again; the ratio is the median of the repeats'. Without Ray that half is left out. Then one thread encodes passages
and queries apart, and the rest is multiplication: what is printed for a million passages was not run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb import Encoder
from xqg_vdb.files import bytes_on_disk
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.testing import HashEncoder
from xqg_vdb.texts.corpus import read_corpus, sample_corpus
from xqg_vdb.texts.queries import read_queries
from xqg_vdb.types import GeneratedQueries, Passage

HOUR, GIB = 3600, 1 << 30
LANGS = ("de", "sw")


def sample(passages: int, each: int) -> tuple[list[Passage], list[GeneratedQueries]]:
    """The sample's passages, and so many queries in each of two languages, over again under new ids."""
    rows = list(read_corpus(sample_corpus().corpus))
    asked = {record.id: record for record in read_queries(sample_corpus().queries)}
    corpus = [replace(rows[i % len(rows)], id=f"p{i}") for i in range(passages)]
    whose = {f"p{i}": rows[i % len(rows)].id for i in range(passages)}
    texts = {
        old: {lang: several[:each] for lang, several in asked[old].queries.items() if lang in LANGS} for old in asked
    }
    return corpus, [GeneratedQueries(new, texts[old]) for new, old in whose.items() if old in asked]


def loaded(corpus: list[Passage], queries: list[GeneratedQueries], encoder: Any) -> tuple[float, int, float, int]:
    """Seconds to encode, bytes of the build, seconds to fuse, write and index, bytes of all payloads as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder, "store"))
        build = Path(folder, "build")
        options = LoadOptions(build=build, default_lang="en")
        report = load(corpus, "scale", encoder=encoder, queries=queries, store=store, options=options).report
        payloads = sum(len(orjson.dumps(point.payload)) for point in store.scroll("scale"))
        store.close()
        return report.seconds["encode"], bytes_on_disk(build), report.seconds["write"], payloads


def own_memory(pids: Iterable[int]) -> list[float]:
    """MiB of private memory of each."""
    lines = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [int(text.partition("RssAnon:")[2].split()[0]) / 1024 for text in lines]


def side_by_side(model: str, corpus: list[Passage], queries: list[GeneratedQueries], repeats: int) -> None:
    """`load` and `load --ray`, in turn."""
    import ray

    from xqg_vdb.integrations.ray import on_cluster

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    encoder = Encoder(model, threads=2)
    times: dict[str, list[float]] = {"load": [], "load --ray": []}
    with on_cluster("local", encoder, encoder.again, workers=2) as far:
        far.encode_passages(["warm"] * 4)
        for _ in range(repeats):
            times["load"].append(loaded(corpus, queries, encoder)[0])
            times["load --ray"].append(loaded(corpus, queries, far)[0])
        workers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_actor(pid)]
        memory = own_memory(workers)
    for name, seconds in times.items():
        print(f"{name:12} {len(corpus) / statistics.median(seconds):8.1f} passages/s encoded")
    ratios = [one / other for one, other in zip(times["load"], times["load --ray"], strict=True)]
    print(f"--ray, two actors: {statistics.median(ratios):.2f} × the speed of load with two threads (bar .9)")
    print(f"private memory of a worker: {max(memory):.0f} MiB")
    ray.shutdown()


def is_actor(pid: int) -> bool:
    """Whether a process is an actor of ours."""
    try:
        return b"ray::_Actor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def per_text(encoder: Encoder, texts: list[str], *, queries: bool) -> float:
    """Seconds of one core for one text."""
    begun = time.process_time()  # one thread: what others do on this machine does not count
    encoder.encode_queries(texts, calibrate=False) if queries else encoder.encode_passages(texts)
    return (time.process_time() - begun) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=1, help="of a passage and language")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encoder", default="starter")
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour")
    arguments = parser.parse_args()
    corpus, queries = sample(arguments.passages, arguments.queries)
    try:
        side_by_side(arguments.encoder, corpus, queries, arguments.repeats)
    except ImportError:
        print("(no Ray here: pip install 'xqg-vdb[ray]')", file=sys.stderr)
    encoder = Encoder(arguments.encoder, threads=1)
    asked = [text for record in queries[:256] for texts in record.queries.values() for text in texts][:1024]
    passage = per_text(encoder, [row.title_and_text for row in corpus[:128]], queries=False)
    query = per_text(encoder, asked[:512], queries=True)
    stub = HashEncoder(dim=encoder.facts.dim)  # bytes do not depend on the model
    _, plain, _, _ = loaded(corpus, [], stub)
    _, folded, write, payloads = loaded(corpus, queries, stub)
    langs = len(LANGS)
    each = plain / len(corpus), (folded - plain) / len(corpus) / langs
    print(f"\none core: {1 / passage:.1f} passages/s, {1 / query:.1f} queries/s; build {each[0]:,.0f} bytes a passage")
    print(
        f"and {each[1]:,.0f} for each language of queries; fuse, write, index: {len(corpus) / write:,.0f} passages/s\n"
    )
    point = 4 * encoder.facts.dim + payloads / len(corpus)
    words = sum(len(text.encode()) for text in asked) / len(asked)
    print(
        "| passages | queries each | core-hours to encode | cost | build on disk | to and from workers | to Qdrant |",
        end="",
    )
    print(" vectors in memory |\n|---|---|---|---|---|---|---|---|")
    for rows in (1_000_000, 18_000_000, 1_000_000_000):
        for count, kinds in ((0, 0), (6, 2), (35, 7)):
            hours = rows * (passage + count * query) / HOUR
            disk, held = rows * (each[0] + kinds * each[1]) / GIB, rows * encoder.facts.dim * 4 * 1.5 / GIB
            sent = disk + rows * (point - 4 * encoder.facts.dim + count * words) / GIB  # rows come back, texts went out
            told = f"{hours:,.0f} | {hours * arguments.price:,.0f} | {disk:,.0f} GiB"
            told += f" | {sent:,.0f} GiB | {rows * point / GIB:,.0f} GiB | {held:,.0f} GiB"
            print(f"| {rows:,} | {count} in {kinds} languages | {told} |")


if __name__ == "__main__":
    main()
