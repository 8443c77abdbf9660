"""Searches per second for many callers at once, in the ways that one could serve them; same questions, interleaved.

one after another: `Retriever.search` in a loop. threads: the same call from a pool of `--threads`.
coroutines: `AsyncRetriever.search`, all at once. together: 32 questions in one `Retriever.run`, which is the most
that batching the questions of concurrent callers could reach; the last line is the lowest cosine between a question's
vector alone and in such a batch.

    python benchmarks/async_search.py --encoder starter --questions 100 --repeats 3

The collection is the sample corpus in a temporary folder; `--url` puts it on a server instead (and removes it again).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xqg_vdb import AsyncRetriever, Encoder, Hit, Retriever, load
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.texts.corpus import read_questions, sample_corpus
from xqg_vdb.types import Question

BATCH = 32
Found = list[list[Hit]]


def ways(retriever: Retriever, texts: list[str], threads: int) -> dict[str, Callable[[], Found]]:
    """Every way as a function that answers all questions."""

    def pooled() -> Found:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(retriever.search, texts))

    async def gathered() -> Found:
        async with AsyncRetriever(retriever, threads=threads) as searcher:
            return await asyncio.gather(*map(searcher.search, texts))

    def together() -> Found:
        parts = [[Question(str(i), text) for i, text in enumerate(texts[at : at + BATCH])]
                 for at in range(0, len(texts), BATCH)]  # fmt: skip
        return [list(answer.hits) for part in parts for answer in retriever.run(part)]

    return {
        "one after another": lambda: [retriever.search(text) for text in texts],
        "threads": pooled,
        "coroutines": lambda: asyncio.run(gathered()),
        "together": together,
    }


def measure(retriever: Retriever, texts: list[str], *, threads: int, repeats: int) -> list[dict[str, object]]:
    """One record per way: the median of searches per second, and whether the answers are those of the first way."""
    entrants = ways(retriever, texts, threads)
    rates: dict[str, list[float]] = {name: [] for name in entrants}
    expected = entrants["one after another"]()  # also the warm-up
    same = dict.fromkeys(entrants, 0)
    for _ in range(repeats):
        for name, run in entrants.items():
            start = time.perf_counter()
            found = run()
            rates[name].append(len(texts) / (time.perf_counter() - start))
            same[name] = sum(
                [one.id for one in a] == [one.id for one in b] for a, b in zip(found, expected, strict=True)
            )
    return [
        {"way": name, "searches_per_s": round(statistics.median(rates[name]), 1), "same_hits": same[name]}
        for name in entrants
    ]


def lowest_cosine(encoder: Encoder, texts: list[str]) -> float:
    alone = [encoder.encode_queries([text], calibrate=False)[0] for text in texts]
    batched = [
        row
        for at in range(0, len(texts), BATCH)
        for row in encoder.encode_queries(texts[at : at + BATCH], calibrate=False)
    ]
    return min(float(a @ b) for a, b in zip(alone, batched, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="starter")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--url", help="a Qdrant server")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    sample = sample_corpus()
    texts = [question.text for question in read_questions(sample.questions)]
    random.Random(0).shuffle(texts)
    texts = texts[: options.questions]
    with tempfile.TemporaryDirectory() as folder, Encoder(options.encoder, threads=options.threads) as encoder:
        path = None if options.url else Path(folder) / "store"
        store = open_store(path, url=options.url)
        collection = load(
            sample.corpus,
            "async-search-benchmark",
            encoder=encoder,
            queries=sample.queries,
            store=store,
            options=LoadOptions(build=Path(folder) / "build"),
        ).collection
        records = measure(Retriever(encoder, collection), texts, threads=options.threads, repeats=options.repeats)
        cosine = round(lowest_cosine(encoder, texts), 4)
        store.delete("async-search-benchmark")
        store.close()
    if options.json:
        print(json.dumps({"results": records, "questions": len(texts), "lowest_cosine_in_batch": cosine}))
        return
    print(f"{len(texts)} questions, {options.threads} threads, {options.encoder}")
    for one in records:
        print(f"{one['way']:20}{one['searches_per_s']:>8} searches/s   same hits for {one['same_hits']} questions")
    print(f"lowest cosine of a question alone to the same in a batch of {BATCH}: {cosine}")


if __name__ == "__main__":
    main()
