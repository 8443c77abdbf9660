"""How fast a sweep over α is, and evaluating a large benchmark from vectors, against the obvious way.

- alpha sweep: 20 values of α, R@10 and MRR@10, at the size of AfriQA dev (1,579 questions, 3,120 passages, 384 wide,
  calibrated), by `tuning.sweep.ScoreTables`, against fusing, calibrating and searching with numpy for each α, once with
  our metrics and once with ir-measures on runs. Bar: ten seconds.
- one evaluation: 13,090 questions against 13,014 passages with 11 relevant ones each (XQuAD-R), MAP@20 and MRR@10, by
  the same tables at one setting, against numpy search and ir-measures.

With --data-dir the vectors are those of AfriQA and XQuAD-R under the starter encoder, kept in --vectors; the query side
of the fusion is random in any case (no generated queries are needed to measure speed). Contestants are interleaved;
times are medians, CPU seconds beside them for machines that do other things too; all results are compared first.

    python benchmarks/sweep.py [--data-dir DIR --vectors DIR] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xqg_vdb.calibration import LanguageMeans, calibrate
from xqg_vdb.evaluate.matrix import as_run, id_order, judge, per_row, search_rows
from xqg_vdb.evaluate.metrics import Metric, Qrels, parse_metrics, per_query
from xqg_vdb.evaluate.sweep import Setting, recipe_tables
from xqg_vdb.fusion import Sums, fuse, unit_rows
from xqg_vdb.types import Recipe, Vectors

DIM, LAMBDA = 384, 0.8
ALPHAS = [round(0.05 * i, 2) for i in range(20)]
Means = dict[str, list[float]]
"""Metric -> mean at each α."""


@dataclass(frozen=True)
class Task:
    """Vectors and judgements of one benchmark."""

    questions: Vectors
    passages: Vectors
    sums: Sums
    table: LanguageMeans
    langs: list[str]
    question_ids: list[str]
    passage_ids: list[str]
    qrels: Qrels
    metrics: tuple[Metric, ...]


def random_task(questions: int, passages: int, relevant: int, langs: int, metrics: Sequence[str]) -> Task:
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.standard_normal((passages, DIM)).astype(np.float32))
    own = rng.integers(0, passages, (questions, relevant))
    asked = unit_rows(rows[own[:, 0]] + 0.08 * rng.standard_normal((questions, DIM)).astype(np.float32))
    ids = [f"p{i}" for i in range(passages)]
    qrels = {f"q{i}": {ids[p]: 1 for p in line} for i, line in enumerate(own.tolist())}
    codes = [f"l{i * langs // questions}" for i in range(questions)]
    return finished(asked, rows, codes, list(qrels), ids, qrels, metrics)


def real_task(name: str, data_dir: Path, vectors: Path, metrics: Sequence[str]) -> Task:
    from xqg_vdb.evaluate.datasets import load_task
    from xqg_vdb.evaluate.systems import prepare
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.models.folder import encoder_folder

    task = load_task(name, data_dir)
    with Encoder(encoder_folder("starter", report=lambda line: None)) as encoder:
        found = prepare(task, encoder=encoder, folder=vectors)
    ids = [passage.id for passage in found.passages]
    langs = [query.lang or "und" for query in task.queries]
    asked = [query.id for query in task.queries]
    rows = np.asarray(found.passage_vectors)
    return finished(np.asarray(found.question_vectors), rows, langs, asked, ids, task.qrels, metrics)


def finished(
    questions: Vectors, passages: Vectors, langs: list[str], question_ids: list[str], ids: list[str], qrels: Qrels,
    metrics: Sequence[str],
) -> Task:  # fmt: skip
    rng = np.random.default_rng(1)
    counts = np.full(len(passages), 3, np.int32)
    total = passages * 2 + 0.1 * rng.standard_normal(passages.shape).astype(np.float32)
    means = {lang: 0.3 * unit_rows(rng.standard_normal((1, DIM)).astype(np.float32))[0] for lang in sorted(set(langs))}
    table = LanguageMeans({**means, "sw": total.mean(axis=0) / 3}, dict.fromkeys([*means, "sw"], 1))
    sums = {"sw": (total.astype(np.float32), counts)}
    return Task(questions, passages, sums, table, langs, question_ids, ids, qrels, parse_metrics(metrics))


def ours(task: Task, alphas: Sequence[float]) -> Means:
    tables = recipe_tables(
        task.questions, task.passages, task.sums, recipe=Recipe(), table=task.table, langs=task.langs, normalize=True
    )
    judged = judge(task.qrels, query_ids=task.question_ids, passage_ids=task.passage_ids)
    settings = [Setting(alpha, LAMBDA) for alpha in alphas]
    found = tables.sweep(settings, judged=judged, metrics=task.metrics, tie_order=id_order(task.passage_ids))
    return {str(metric): values.mean(axis=1).tolist() for metric, values in found.items()}


def searched(task: Task, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    fused = fuse(task.passages, task.sums, recipe=Recipe(alpha=alpha), means=task.table.means, normalize=True)
    asked = calibrate(task.questions, langs=task.langs, table=task.table, strength=LAMBDA, normalize=True)
    return search_rows(asked, fused, k=max(metric.k for metric in task.metrics))


def numpy_search(task: Task, alphas: Sequence[float]) -> Means:
    judged = judge(task.qrels, query_ids=task.question_ids, passage_ids=task.passage_ids)
    every = [searched(task, alpha)[0] for alpha in alphas]
    return {str(m): [float(per_row(rows, judged, metric=m).mean()) for rows in every] for m in task.metrics}


def numpy_and_ir_measures(task: Task, alphas: Sequence[float]) -> Means:
    means: Means = {str(metric): [] for metric in task.metrics}
    for alpha in alphas:
        run = as_run(*searched(task, alpha), query_ids=task.question_ids, passage_ids=task.passage_ids)
        for metric, values in per_query(run, task.qrels, metrics=task.metrics).items():
            means[str(metric)].append(sum(values.values()) / len(task.question_ids))
    return means


CONTESTANTS: dict[str, Callable[[Task, Sequence[float]], Means]] = {
    "score tables": ours, "numpy, our metrics": numpy_search, "numpy, ir-measures": numpy_and_ir_measures,
}  # fmt: skip


def measure(task: Task, alphas: Sequence[float], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each contestant; SystemExit when they disagree by more than rounding explains."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    found: dict[str, Means] = {}
    for _ in range(repeats):
        for name, contestant in CONTESTANTS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = contestant(task, alphas)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, means in found.items():
        for metric, values in means.items():
            if not np.allclose(values, found["score tables"][metric], atol=2e-4):
                raise SystemExit(f"{name} and score tables disagree on {metric}: {values}")
    return {
        name: (statistics.median(w for w, _ in own), statistics.median(c for _, c in own))
        for name, own in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="real vectors instead of random ones")
    parser.add_argument("--vectors", type=Path, default=Path("vectors"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["afriqa", "xquad-r"], help="one of the two")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = {"afriqa": (1579, 3120, 1, 6, ["R@10", "MRR@10"]), "xquad-r": (13090, 13014, 11, 11, ["MAP@20", "MRR@10"])}
    report = {}
    for name, (questions, passages, relevant, langs, metrics) in sizes.items():
        if options.only not in (None, name):
            continue
        task = (
            real_task(name, options.data_dir, options.vectors, metrics)
            if options.data_dir
            else random_task(questions, passages, relevant, langs, metrics)
        )
        alphas = ALPHAS if name == "afriqa" else [0.3]
        seconds = measure(task, alphas, options.repeats)
        report[name] = {"questions": len(task.questions), "passages": len(task.passages), "alphas": len(alphas),
                        "wall and CPU seconds": seconds}  # fmt: skip
        if not options.json:
            print(f"\n{name}: {len(task.questions)} questions x {len(task.passages)} passages, {len(alphas)} α")
            own_wall, own_cpu = seconds["score tables"]
            for contestant, (wall, cpu) in seconds.items():
                ratios = f"x {wall / own_wall:.1f} and {cpu / own_cpu:.1f}"
                print(f"  {contestant:20s} {wall:8.2f} s, {cpu:8.2f} s of CPU   {ratios}")
    if options.json:
        print(json.dumps({"repeats": options.repeats, "vectors": "real" if options.data_dir else "random", **report}))


if __name__ == "__main__":
    main()
