"""UPR on the first questions of a task: recall with and without, for each prompt and weight, and what it costs.

    python benchmarks/upr.py --work /tmp/upr-bench --model GENERATOR --task xquad --langs de ar zh --questions 20

The first stage is the calibrated starter encoder; its best --depth passages are scored by the generator. Interpolation
needs no second pass, so its rows are computed from the same scores, which are kept below --work: a run that
--minutes ended goes on when it is repeated. Latency is per question, with --threads threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from small_task import collection_of, first_questions, in_turn, measured, narrowed, options, print_table, say  # noqa: E402
from tqdm import tqdm  # noqa: E402

from xqg_vdb.encoding import Encoder  # noqa: E402
from xqg_vdb.models import ensure_encoder  # noqa: E402
from xqg_vdb.rerank import Reranker, standardised  # noqa: E402
from xqg_vdb.retrieval import Retriever  # noqa: E402
from xqg_vdb.types import Hit, Query  # noqa: E402

WEIGHTS = (1.0, 0.5, 0.25)
PROMPTS = {"UPR": False, "UPR, language named": True}


def mixed(first: list[Hit], scored: list[Hit], weight: float) -> list[Hit]:
    """What `Reranker(weight=weight)` would give, without another pass of the model."""
    likelihood = {hit.id: hit.score for hit in scored}
    new = weight * standardised(np.array([likelihood[hit.id] for hit in first]))
    new = new + (1 - weight) * standardised(np.array([hit.score for hit in first], np.float64))
    return [hit for _, hit in sorted(zip(new, first, strict=True), key=lambda pair: (-pair[0], pair[1].id))]


class Scores:
    """Log-likelihoods in a file below --work, so that a run that was stopped goes on where it was."""

    def __init__(self, path: Path, reranker: Reranker, prompt: str) -> None:
        self.path, self.reranker, self.prompt = path, reranker, prompt
        self.model = reranker.scorer.model.describe()["fingerprint"]
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.kept = {tuple(record["key"]): record for record in map(json.loads, lines)}

    def of(self, query: Query, hits: list[Hit]) -> tuple[list[Hit], float]:
        """The hits with their new scores, and the seconds that took when it was done."""
        key = (self.model, self.prompt, query.id, *(hit.id for hit in hits))
        if key not in self.kept:
            start = time.perf_counter()
            found = self.reranker.rerank(query, hits)
            seconds = time.perf_counter() - start
            self.kept[key] = {"key": key, "seconds": seconds, "scores": {hit.id: hit.score for hit in found}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.kept[key]) + "\n")
        record = self.kept[key]
        return [replace(hit, score=record["scores"][hit.id]) for hit in hits], record["seconds"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--depth", type=int, default=20, help="passages that are scored per question")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), choices=list(PROMPTS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then report on the questions done so far")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    task = first_questions(given)
    encoder = Encoder(ensure_encoder("starter", report=say), threads=given.threads)
    retriever = Retriever(encoder, collection_of(task, encoder, given.work))
    start = time.perf_counter()
    answers = retriever.run(task.queries, k=given.depth, exact=True)
    latency = {"search": (time.perf_counter() - start) / len(answers)}
    first = {answer.query.id: list(answer.hits) for answer in answers}
    rerankers = {
        name: Reranker(given.model, name_language=PROMPTS[name], threads=given.threads) for name in given.prompts
    }
    scores = {name: Scores(given.work / "upr-scores.jsonl", reranker, name) for name, reranker in rerankers.items()}
    scored, seconds = {name: {} for name in scores}, {name: [] for name in scores}
    for query in tqdm(in_turn(task), file=sys.stderr):
        if time.monotonic() > end:
            break
        for name, table in scores.items():
            scored[name][query.id], took = table.of(query, first[query.id])
            seconds[name].append(took)
    done = narrowed(task, scored[given.prompts[0]])
    rows = {"first stage": measured(done, first)}
    for name in scores:
        latency[name] = {"p50": float(np.median(seconds[name])), "p95": float(np.quantile(seconds[name], 0.95))}
        for weight in WEIGHTS:
            found = {query.id: mixed(first[query.id], scored[name][query.id], weight) for query in done.queries}
            rows[name if weight == 1 else f"{name}, weight {weight}"] = measured(done, found)
    print_table(rows, given.langs)
    print(
        f"\n{len(done.queries)} questions, depth {given.depth}, {given.threads} threads; seconds a question: {latency}"
    )
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "latency": latency}, indent=2) + "\n")


if __name__ == "__main__":
    main()
