"""A collection that grows while it is searched: seconds a call of `add`, searches meanwhile and after, memory, recall.

    python benchmarks/living.py --work /tmp/living

The rows are drawn (vectors of 384 numbers round 1,000 centres, as an encoder would give them); nothing is encoded. One
thread searches every 20 ms, and its seconds are counted from when a search was due; another adds, with pauses as long
as the calls. Meanwhile the new points come into the graph. Recall is of the exact ten, beside that of a collection into
which everything was loaded at once.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.index.load import load
from xqg_vdb.index.update import add
from xqg_vdb.store import open_store
from xqg_vdb.store.operations import Store
from xqg_vdb.types import EncoderFacts, Search, Vectors

CENTRES = 1000


class Drawn:
    """An encoder whose text i, such as "7 …", has the i-th vector; a question -1 - i."""

    calibration, language_means = 0.0, LanguageMeans()

    def __init__(self, dim: int) -> None:
        self.facts = EncoderFacts("drawn", "drawn", dim, "mean", True, "", "", 512, "fp32")
        self.centres = np.random.default_rng(0).standard_normal((CENTRES, dim), np.float32)

    def row(self, number: int) -> Vectors:
        """The vector of a number."""
        rng = np.random.default_rng([1, abs(number), number < 0])
        row = self.centres[rng.integers(CENTRES)] + 0.8 * rng.standard_normal(self.facts.dim, np.float32)
        unit: Vectors = row / np.linalg.norm(row)
        return unit

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows by the number that a text begins with."""
        return np.stack([self.row(int(text.split()[0])) for text in texts])

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """The same."""
        return self.encode_passages(texts)


def passages(start: int, stop: int) -> Iterator[dict[str, object]]:
    """Lines of a corpus; a text of some 500 characters."""
    for number in range(start, stop):
        yield {"id": str(number), "text": f"{number} " + "lorem ipsum dolor " * 28, "lang": "la", "year": number % 50}


def private_bytes() -> int:
    """Memory of this process that it shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private", "Swap:")))


@click.command()
@click.option("--passages", "loaded", type=int, default=100_000, show_default=True)
@click.option("--more", type=int, default=10_000, show_default=True, help="Passages that are added.")
@click.option("--at-once", type=int, default=50, show_default=True, help="Passages of a call.")
@click.option("--dim", type=int, default=384, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="An empty folder.")
@click.option("--url", help="A Qdrant server, in place of an embedded collection.")
def main(loaded: int, more: int, at_once: int, dim: int, work: Path, url: str | None) -> None:
    """Print what is measured."""
    encoder, questions = Drawn(dim), np.stack([Drawn(dim).row(-1 - i) for i in range(200)])
    with closing(open_store(None if url else work / "store", url=url)) as store:
        timed_load("living", loaded, encoder, store)

        calls: list[float] = []
        memory: list[int] = []
        searches: defaultdict[str, list[float]] = defaultdict(list)
        phase = ["warming"]

        def look() -> None:
            for turn in range(1_000_000):
                due = time.perf_counter() + 0.02
                time.sleep(0.02)
                store.search("living", questions[turn % 200 : turn % 200 + 1], Search(10))
                searches[phase[0]].append(time.perf_counter() - due)
                if phase[0] == "ended":
                    return

        looking = threading.Thread(target=look)
        looking.start()
        time.sleep(10)
        for number, start in enumerate(range(loaded, loaded + more, at_once)):
            if number % 10 == 0:  # idle and adding by turns, as long as one another: a busy machine is busy for both
                phase[0] = "idle"
                time.sleep(sum(calls[-10:]) or 2)
                phase[0] = "during adds"
            rows = list(passages(start, min(start + at_once, loaded + more)))
            began = time.perf_counter()
            add(rows, "living", encoder=encoder, store=store)
            calls.append(time.perf_counter() - began)
            memory.append(private_bytes())
        phase[0], began = "while they come into the graph", time.perf_counter()
        store.indexed("living")
        click.echo(f"until all was in the graph: {time.perf_counter() - began:.0f} s")
        phase[0] = "after it"
        time.sleep(10)
        phase[0] = "ended"
        looking.join()
        tell("add", calls)
        first, last = np.mean(memory[: len(memory) // 10]) / 1e6, np.mean(memory[-len(memory) // 10 :]) / 1e6
        click.echo(f"private memory: {first:.0f} MB in the first tenth of the calls, {last:.0f} MB in the last")
        for name in ("idle", "during adds", "while they come into the graph", "after it"):
            if searches[name]:
                tell(f"search, {name}", searches[name])
        ratio = np.percentile(searches["during adds"], 95) / np.percentile(searches["idle"], 95)
        click.echo(f"search p95, during adds ÷ idle: {ratio:.2f}")
        click.echo(f"the engine says: {store.admin.state('living').indexed:,} vectors in the graph")
        timed_load("whole", loaded + more, encoder, store)
        for name in ("living", "whole"):
            report(name, store, questions)


def timed_load(name: str, size: int, encoder: Drawn, store: Store) -> None:
    """Load so many, and say how long it took."""
    began = time.perf_counter()
    load(passages(0, size), name, encoder=encoder, store=store)
    click.echo(f"load of {size:,}: {time.perf_counter() - began:.0f} s")


def tell(what: str, seconds: Sequence[float]) -> None:
    """Median, 95th percentile and the longest."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    click.echo(f"{what}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, longest {max(seconds) * 1000:.0f} ms ({len(seconds)})")


def report(name: str, store: Store, questions: Vectors) -> None:
    """How much of the exact ten a search finds."""
    exact = [{hit.id for hit in hits} for hits in store.search(name, questions, Search(10, exact=True))]
    found = [{hit.id for hit in hits} for hits in store.search(name, questions, Search(10))]
    recall = np.mean([len(ten & wanted) / 10 for ten, wanted in zip(found, exact, strict=True)])
    click.echo(f"{name}: {store.count(name):,} passages, R@10 of the exact ten {recall:.4f}")


if __name__ == "__main__":
    main()
