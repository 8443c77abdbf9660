"""A million passages on one machine: memory of a load, fusing again, and what a graph finds by its breadth (`ef`).

    python benchmarks/million.py --work /tmp/million [--passages 1000000] [--quantization scalar]

Vectors of 384 numbers are drawn round 1,000 centres; nothing is encoded, so what is timed is all the rest: reading the
files and keeping vectors ("encode"); fusing them and writing points ("write"), and the engine's graph ("index"), which
is all that another α costs. Each step is a process of its own, and its private memory is looked at every second: with
10,000 passages, then with all. So is that of the engine alone, which is given such points by its own calls: what is
above it is ours.

Questions are of three kinds, 300 each: as passages are; moved as a language moves its questions (all by one vector, of
length .5); and these calibrated (less .8 of the mean of 200 others). Recall is of the exact ten.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import click
import numpy as np
import orjson
import qdrant_edge as edge

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.index.load import LoadOptions, load
from xqg_vdb.progress import windows
from xqg_vdb.store import CollectionOptions, open_store
from xqg_vdb.store.embedded.engine import create
from xqg_vdb.store.layout import TEXT_DENSE, payload_of, point_id
from xqg_vdb.types import Card, EncoderFacts, Passage, Recipe, Search, Vectors

DIM, CENTRES = 384, 1000
rng = np.random.default_rng(0)
CENTRE = rng.standard_normal((CENTRES, DIM), np.float32)
OFFSET = rng.standard_normal(DIM).astype(np.float32)
OFFSET *= 0.5 / np.linalg.norm(OFFSET)


def row(number: int, salt: int) -> Vectors:
    """The unit vector of a passage (salt 0), of its query (1) or of a question about it (2)."""
    drawn = np.random.default_rng([number, salt]).standard_normal(DIM, np.float32)
    found: Vectors = CENTRE[number % CENTRES] + 0.8 * drawn
    return found / np.linalg.norm(found)


class Drawn:
    """An encoder whose text "7 …" has the vector of number 7."""

    calibration, language_means = 0.0, LanguageMeans()
    facts = EncoderFacts("drawn", "drawn", DIM, "mean", True, "", "", 512, "fp32")

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows by the number that a text begins with."""
        return np.stack([row(int(text.split()[0]), 0) for text in texts])

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """The same for queries."""
        return np.stack([row(int(text.split()[0]), 1) for text in texts])


def files(work: Path, count: int) -> tuple[Path, Path]:
    """Corpus and queries, one of each for a passage."""
    corpus, queries = work / f"{count}.jsonl", work / f"{count}.queries.jsonl"
    if not queries.exists():
        with corpus.open("wb") as a, queries.open("wb") as b:
            for i in range(count):
                a.write(orjson.dumps({"id": str(i), "text": f"{i} " + "words " * 40, "lang": "en"}) + b"\n")
                b.write(orjson.dumps({"id": str(i), "generated_queries": {"sw": [f"{i} swali"]}}) + b"\n")
    return corpus, queries


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most private memory while this lasts."""
    ended, seen = threading.Event(), [0]

    def look() -> None:
        seen[0] = private()
        while not ended.wait(1):
            seen[0] = max(seen[0], private())

    threading.Thread(target=look).start()
    try:
        yield seen
    finally:
        ended.set()


def engine_alone(work: Path, count: int) -> None:
    """Write the points without vectors of queries, and print what memory that took."""
    folder = work / f"engine-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shard = create(folder, Card(encoder=Drawn.facts, recipe=Recipe(), distance="cosine"), CollectionOptions())
    with watched() as seen:
        for part in windows(range(count), 512):
            passages = [Passage(str(i), f"{i} " + "words " * 40, lang="en") for i in part]
            points = [
                edge.Point(point_id(p.id), {TEXT_DENSE: row(int(p.id), 0).tolist()}, payload_of(p, ["sw"]))
                for p in passages
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
            if part[0] % 8192 == 0:
                shard.flush()
    shard.close()
    shutil.rmtree(folder)
    click.echo(f"{count:>9,} passages: the engine alone: private memory at most {seen[0]} MiB")


def loaded(work: Path, count: int, quantization: str | None) -> None:
    """Load, and print what it took."""
    corpus, queries = files(work, count)
    options = CollectionOptions(quantization=quantization)
    with watched() as seen, closing(open_store(work / f"store-{count}", options=options)) as store:
        report = load(
            corpus, "drawn", encoder=Drawn(), queries=queries, store=store, recipe=Recipe(pool="mean", alpha=0.4),
            options=LoadOptions(build=work / f"build-{count}", force=True),
        ).report  # fmt: skip
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    click.echo(f"{count:>9,} passages: {phases}; private memory at most {seen[0]} MiB")


def private() -> int:
    """MiB of this process that no file backs."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) // 1024


def asked(work: Path, count: int) -> None:
    """Recall and milliseconds by kind of question and ef."""
    numbers = np.random.default_rng(3).choice(count, 500, replace=False)
    plain = np.stack([row(int(i), 2) for i in numbers])
    moved = unit(plain + OFFSET)
    calibrated = unit(moved[:300] - 0.8 * moved[300:].mean(axis=0))
    kinds = {"as passages": plain[:300], "of a language": moved[:300], "calibrated": calibrated}
    with closing(open_store(work / f"store-{count}")) as store:
        for kind, rows in kinds.items():
            exact = [{hit.id for hit in hits} for hits in store.search("drawn", rows, Search(10, exact=True))]
            for ef in (64, 128, 256, 512):
                took, shared = [], []
                for question, wanted in zip(rows, exact, strict=True):
                    began = time.perf_counter()
                    hits = store.search("drawn", question[None], Search(10, ef=ef))[0]
                    took.append(time.perf_counter() - began)
                    shared.append(len({hit.id for hit in hits} & wanted) / 10)
                p50, p95 = np.percentile(took, [50, 95]) * 1000
                click.echo(
                    f"{kind:>14}, ef {ef:>3}: recall@10 {np.mean(shared):.4f}, p50 {p50:.1f} ms, p95 {p95:.1f} ms"
                )


def unit(rows: Vectors) -> Vectors:
    """Each row with length 1."""
    found: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Some 9 GB for a million.")
@click.option("--passages", default=1_000_000, show_default=True)
@click.option("--quantization", type=click.Choice(["scalar", "turbo"]))
@click.option("--step", hidden=True)
def main(work: Path, passages: int, quantization: str | None, step: str | None) -> None:
    """Print what is measured."""
    work.mkdir(parents=True, exist_ok=True)
    if step == "ask":
        return asked(work, passages)
    if step == "engine":
        return engine_alone(work, passages)
    if step:
        return loaded(work, passages, quantization)
    for count in (10_000, passages):
        run(work, count, "engine", None)
        run(work, count, "load", quantization)
    run(work, passages, "ask", None)


def run(work: Path, count: int, step: str, quantization: str | None) -> None:
    """A step in a process of its own."""
    argv = [sys.executable, __file__, "--work", str(work), "--passages", str(count), "--step", step]
    subprocess.run([*argv, *(["--quantization", quantization] if quantization else [])], check=True)


if __name__ == "__main__":
    main()
