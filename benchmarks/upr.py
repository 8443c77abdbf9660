"""UPR on the first questions of a task: recall with and without, for each prompt and weight, and what it costs.

    python benchmarks/upr.py --work /tmp/upr-bench --model GENERATOR --task xquad --langs de ar zh --questions 20

The first stage is the calibrated starter encoder; its best --depth passages are scored by the generator. Interpolation
needs no second pass, so its rows are computed from the same scores. Latency is per question, with --threads threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from small_task import by_id, collection_of, first_questions, measured, options, print_table, say  # noqa: E402
from tqdm import tqdm  # noqa: E402

from xqg_vdb.encoding import Encoder  # noqa: E402
from xqg_vdb.models import ensure_encoder  # noqa: E402
from xqg_vdb.rerank import Reranker, standardised  # noqa: E402
from xqg_vdb.retrieval import Retriever  # noqa: E402
from xqg_vdb.types import Hit  # noqa: E402

WEIGHTS = (1.0, 0.5, 0.25)
PROMPTS = {"UPR": False, "UPR, language named": True}


def mixed(first: list[Hit], scored: list[Hit], weight: float) -> list[Hit]:
    """What `Reranker(weight=weight)` would give, without another pass of the model."""
    likelihood = {hit.id: hit.score for hit in scored}
    new = weight * standardised(np.array([likelihood[hit.id] for hit in first]))
    new = new + (1 - weight) * standardised(np.array([hit.score for hit in first], np.float64))
    return [hit for _, hit in sorted(zip(new, first, strict=True), key=lambda pair: (-pair[0], pair[1].id))]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--depth", type=int, default=20, help="passages that are scored per question")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), choices=list(PROMPTS))
    given = parser.parse_args()
    task = first_questions(given)
    encoder = Encoder(ensure_encoder("starter", report=say), threads=given.threads)
    retriever = Retriever(encoder, collection_of(task, encoder, given.work))
    start = time.perf_counter()
    answers = retriever.run(task.queries, k=given.depth, exact=True)
    search = (time.perf_counter() - start) / len(answers)
    first = [list(answer.hits) for answer in answers]
    rows = {"first stage": measured(task, by_id(task.queries, first))}
    latency = {"search": search}
    for prompt in given.prompts:
        reranker = Reranker(given.model, name_language=PROMPTS[prompt], threads=given.threads)
        seconds, scored = [], []
        for query, hits in tqdm(list(zip(task.queries, first, strict=True)), desc=prompt, file=sys.stderr):
            start = time.perf_counter()
            scored.append(reranker.rerank(query, hits))
            seconds.append(time.perf_counter() - start)
        latency[prompt] = {"p50": float(np.median(seconds)), "p95": float(np.quantile(seconds, 0.95))}
        for weight in WEIGHTS:
            name = prompt if weight == 1 else f"{prompt}, weight {weight}"
            found = [mixed(hits, new, weight) for hits, new in zip(first, scored, strict=True)]
            rows[name] = measured(task, by_id(task.queries, found))
    print_table(rows, given.langs)
    print(f"\n{len(answers)} questions, depth {given.depth}, {given.threads} threads; seconds a question: {latency}")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "latency": latency}, indent=2) + "\n")


if __name__ == "__main__":
    main()
