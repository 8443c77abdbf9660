"""UPR on a sample of a task's questions: recall with and without, for each weight, and what it costs.

    python benchmarks/upr.py --work /tmp/upr-bench --model GENERATOR --task xquad --langs de ar zh --questions 20

The first stage is the calibrated starter encoder; its best --depth passages are scored by the generator, --together
questions at a time, so that a passage is read once for all of those. Interpolation needs no second pass, so its rows
are computed from the same scores, which are kept below --work, passage by passage: a run that was stopped, by --minutes
or otherwise, goes on when it is repeated. What a single question takes is measured on the first --single ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from xqg_vdb.types import Search

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from small_task import collection_of, in_turn, measured, options, print_table, say, some_questions  # noqa: E402

from xqg_vdb.models.decoder import CausalModel  # noqa: E402
from xqg_vdb.models.encoder import Encoder  # noqa: E402
from xqg_vdb.models.folder import encoder_folder  # noqa: E402
from xqg_vdb.progress import bars, windows  # noqa: E402
from xqg_vdb.search.rerank import INSTRUCTION, Reranker, Scorer, standardised  # noqa: E402
from xqg_vdb.search.retriever import Retriever  # noqa: E402
from xqg_vdb.types import Hit, Question  # noqa: E402

WEIGHTS = (1.0, 0.5, 0.25)


def mixed(first: list[Hit], scored: list[Hit], weight: float) -> list[Hit]:
    """What `Reranker(weight=weight)` would give, without another pass of the model."""
    likelihood = {hit.id: hit.score for hit in scored}
    new = weight * standardised(np.array([likelihood[hit.id] for hit in first]))
    new = new + (1 - weight) * standardised(np.array([hit.score for hit in first], np.float64))
    return [hit for _, hit in sorted(zip(new, first, strict=True), key=lambda pair: (-pair[0], pair[1].id))]


class TimeUp(Exception):
    """--minutes are over."""


class KeptScorer:
    """A scorer that keeps every passage's scores, and its share of the seconds, in a file below --work."""

    def __init__(self, model: str, path: Path, *, threads: int, end: float) -> None:
        self.scorer, self.path, self.end = Scorer(model, threads=threads), path, end
        opened = self.scorer.model
        self.model = (opened.describe() if isinstance(opened, CausalModel) else opened.settings)["fingerprint"]
        self.truncated = 0
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.kept = {key: tuple(row) for line in lines for key, row in json.loads(line).items()}
        self.seconds = 0.0

    def score(self, passage: str, questions: Sequence[str]) -> NDArray[np.float64]:
        """See `Scorer`; adds to `seconds` what the scores took when they were computed. Raises TimeUp."""
        keys = {text: self._key(passage, text) for text in questions}
        missing = [text for text, key in keys.items() if key not in self.kept]
        if missing:
            if time.monotonic() > self.end:
                raise TimeUp
            start = time.perf_counter()
            scores = self.scorer.score(passage, missing).tolist()
            share = (time.perf_counter() - start) / len(missing)
            new = {keys[text]: (score, share) for text, score in zip(missing, scores, strict=True)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(new) + "\n")
            self.kept.update(new)
        rows = [self.kept[keys[text]] for text in questions]
        self.seconds += sum(seconds for _, seconds in rows)
        return np.array([score for score, _ in rows])

    def _key(self, passage: str, question: str) -> str:
        return hashlib.sha256(json.dumps([self.model, passage, [INSTRUCTION, question]]).encode()).hexdigest()


def rank_in_windows(
    queries: Sequence[Question], first: dict[str, list[Hit]], reranker: Reranker, scorer: KeptScorer, *, together: int
) -> tuple[dict[str, list[Hit]], float]:
    """Question id -> hits by their new score, of the windows that were finished; seconds a question."""
    scored: dict[str, list[Hit]] = {}
    seconds = 0.0
    with bars(unit=" passages") as progress:
        for number, window in enumerate(windows(queries, together), 1):
            say(f"Questions {(number - 1) * together + 1} to {(number - 1) * together + len(window)} of {len(queries)}")
            scorer.seconds = 0.0
            try:
                ranked = reranker.rerank_all(window, [first[query.id] for query in window], progress=progress)
            except TimeUp:
                break
            scored |= {query.id: own for query, own in zip(window, ranked, strict=True)}
            seconds += scorer.seconds
    return scored, seconds / max(1, len(scored))


def one_by_one(queries: Sequence[Question], first: dict[str, list[Hit]], scorer: Scorer) -> dict[str, float]:
    """Seconds of a question that is asked alone, nothing kept."""
    alone = Reranker(scorer, weight=1.0)
    seconds = []
    for query in queries:
        start = time.perf_counter()
        alone.rerank(query, first[query.id])
        seconds.append(time.perf_counter() - start)
    mean, median, p95 = np.mean(seconds), np.median(seconds), np.quantile(seconds, 0.95)
    return {"mean": float(mean), "p50": float(median), "p95": float(p95)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--depth", type=int, default=20, help="passages that are scored per question")
    parser.add_argument("--together", type=int, default=200, help="questions that share the reading of their passages")
    parser.add_argument("--single", type=int, default=5, help="questions that are timed alone; 0 for none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then report on the windows done so far")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    task = some_questions(given)
    encoder = Encoder(encoder_folder("starter", say=say), threads=given.threads)
    retriever = Retriever(encoder, collection_of(task, encoder, given.work))
    start = time.perf_counter()
    answers = retriever.run(task.queries, Search(given.depth, exact=True))
    print(f"search: {(time.perf_counter() - start) / len(answers):.3f} seconds a question")
    first = {answer.question.id: list(answer.hits) for answer in answers}
    scorer = KeptScorer(given.model, given.work / "upr-likelihoods.jsonl", threads=given.threads, end=end)
    reranker = Reranker(scorer, weight=1.0)  # the likelihoods themselves; `mixed` weighs them
    queries = in_turn(task)
    scored, together = rank_in_windows(queries, first, reranker, scorer, together=given.together)
    done = task.narrowed(scored)
    if not done.queries:
        sys.exit(f"No window of {given.together} questions is finished yet; repeat the command to go on.")
    rows, latency = {"first stage": measured(done, first)}, {"together": together}
    for weight in WEIGHTS:
        found = {query.id: mixed(first[query.id], scored[query.id], weight) for query in done.queries}
        rows["UPR" if weight == 1 else f"UPR, weight {weight}"] = measured(done, found)
    if given.single:
        latency |= one_by_one(queries[: given.single], first, scorer.scorer)
    print_table(rows, given.langs)
    passages = len({hit.id for query in done.queries for hit in first[query.id]})
    print(
        f"\n{len(done.queries)} questions, depth {given.depth}, {passages} passages, {given.threads} threads; "
        "seconds a question:"
    )
    alone = ""
    if given.single:
        alone = (
            f"; the first {given.single} alone: mean {latency['mean']:.2f}, median {latency['p50']:.2f}, "
            f"95th percentile {latency['p95']:.2f}, {latency['mean'] / together:.1f} times as much"
        )
    print(f"{together:.2f}, {given.together} together{alone}")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "latency": latency}, indent=2) + "\n")


if __name__ == "__main__":
    main()
