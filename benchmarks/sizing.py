"""What a collection takes: disk and resident memory of the embedded engine, and what quantisation costs in recall.

    python benchmarks/sizing.py --points 20000 --dim 384

Vectors are random around 200 centres, so that neighbours mean something; texts are 600 characters. Each case runs in a
process of its own: load, index, open, ask 200 questions; then its resident memory is read from the kernel. Recall is
the share of the exact 10 nearest that graph search finds. No server takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from xqg_vdb.store.embedded.store import EmbeddedStore
from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.types import Card, EncoderFacts, Passage, PointBatch, Recipe, Search

CASES = {
    "none": CollectionOptions(),
    "none, vectors and texts on disk": CollectionOptions(on_disk_vectors=True, on_disk_payload=True),
    "scalar": CollectionOptions(quantization="scalar", on_disk_vectors=True, on_disk_payload=True),
    "turbo": CollectionOptions(quantization="turbo", on_disk_vectors=True, on_disk_payload=True),
    "product": CollectionOptions(quantization="product", on_disk_vectors=True, on_disk_payload=True),
    "binary": CollectionOptions(quantization="binary", on_disk_vectors=True, on_disk_payload=True),
}
MIB = 1 << 20


def card_of(dim: int) -> Card:
    facts = EncoderFacts("f00d", "random", dim, "mean", True, "", "", 128, "fp32")
    return Card(encoder=facts, distance="cosine", recipe=Recipe())


def vectors(n: int, dim: int, *, seed: int) -> np.ndarray:
    """Around 200 centres, the same ones for every seed."""
    centres = np.random.default_rng(1).standard_normal((200, dim))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 200, n)] + 0.7 * rng.standard_normal((n, dim))).astype(np.float32)


def resident() -> dict[str, float]:
    """MiB in memory now: own (RssAnon), and pages of files that the kernel may drop (RssFile)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {key: int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")}


def measure(case: str, points: int, dim: int, folder: Path, step: str) -> dict[str, float]:
    store = EmbeddedStore(folder, options=CASES[case])
    if step == "load":
        started = time.perf_counter()
        with store.writer("wiki", card=card_of(dim)) as writer:
            for at in range(0, points, 1000):
                n = min(1000, points - at)
                rows = [Passage(f"p{i}", f"{i} " + "text " * 119) for i in range(at, at + n)]
                writer.upsert(PointBatch(rows, {"text-dense": vectors(n, dim, seed=at + 10)}, [()] * n))
            writer.commit(points)
            writer.publish(Card(**{**vars_of(card_of(dim)), "count": points}))
        return {"load s": time.perf_counter() - started, "disk MiB": store.admin.state("wiki").disk_bytes / MIB}
    before = resident()
    questions = vectors(200, dim, seed=2)
    store.search("wiki", questions[:1], Search())
    started = time.perf_counter()
    for row in questions:
        found = store.search("wiki", row[None], Search(ef=128))
    each = (time.perf_counter() - started) / 200 * 1000
    after = resident()
    found = store.search("wiki", questions, Search(ef=128))
    exact = store.search("wiki", questions, Search(exact=True))
    same = [len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in zip(found, exact, strict=True)]
    return {
        "own MiB": after["RssAnon"] - before["RssAnon"],
        "mapped MiB": after["RssFile"] - before["RssFile"],
        "ms": each,
        "recall@10": float(np.mean(same)),
    }


def vars_of(card: Card) -> dict[str, object]:
    return {name: getattr(card, name) for name in card.__dataclass_fields__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(arguments.case[0], arguments.points, arguments.dim, arguments.folder, arguments.step)))
        return
    print("| passages | quantisation | disk MiB | own memory MiB | mapped MiB | ms a question | recall@10 | load s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in arguments.case or CASES:
        folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
        found: dict[str, float] = {}
        for step in ("load", "ask"):
            argv = [sys.executable, __file__, "--points", str(arguments.points), "--dim", str(arguments.dim)]
            argv += ["--case", case, "--step", step, "--folder", str(folder)]
            found |= json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        shutil.rmtree(folder)
        print(
            f"| {arguments.points:,} | {case} | {found['disk MiB']:.0f} | {found['own MiB']:.0f} |"
            f" {found['mapped MiB']:.0f} | {found['ms']:.1f} | {found['recall@10']:.3f} | {found['load s']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
