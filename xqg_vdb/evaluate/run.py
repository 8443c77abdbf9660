"""Run a suite: every system on every dataset, in real collections; then compare, sweep, and make the report.

Stop it at any time: the next run takes up vectors at their last commit and skips finished cells (`workbench.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xqg_vdb.evaluate.cells import SHARE_DEPTH, Cell
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.judge import BITEXT, check_metrics, contrast, summarize
from xqg_vdb.evaluate.metrics import Run, read_run
from xqg_vdb.evaluate.questions import Asked, write_questions
from xqg_vdb.evaluate.records import Compared, HeatMap, Report, Result, environment
from xqg_vdb.evaluate.significance import RESAMPLES
from xqg_vdb.evaluate.suite import Suite, System
from xqg_vdb.evaluate.sweep import run_sweep
from xqg_vdb.evaluate.systems import counts
from xqg_vdb.evaluate.workbench import OpenEncoder, Workbench
from xqg_vdb.files import disk_errors, sha256_of
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store import open_store
from xqg_vdb.types import VectorStore

Cells = Mapping[tuple[str, str], Cell]


def run_suite(
    suite: Suite,
    *,
    data_dir: Path | None,
    out: Path,
    open_encoder: OpenEncoder,
    vectors: Path | None = None,
    store: VectorStore | None = None,
    threads: int = 1,
    command: str = "",
    resamples: int = RESAMPLES,
    progress: Progress = silent,
    own: Mapping[str, RetrievalTask] | None = None,
) -> Report:
    """Run everything that `out` does not hold yet, and report; `out/runs` and `out/questions.csv` are there afterwards.

    open_encoder: model name -> encoder. vectors: where texts' vectors are kept, `out/vectors` by default. store: where
    collections are written, a temporary embedded one by default; each is removed after use.
    Raises DataError for what is wrong with suite or data before anything is encoded, and what encoding, writing and
    searching raise. own: datasets of the suite that are read already.
    """
    bench = Workbench(suite, data_dir, out, vectors or out / "vectors", open_encoder, progress, threads, own or {})
    with closing(bench):
        return _run(bench, store, threads=threads, command=command, resamples=resamples)


def _run(bench: Workbench, store: VectorStore | None, *, threads: int, command: str, resamples: int) -> Report:
    suite = bench.suite
    _check(bench)
    cells = _run_cells(bench, store)
    _write_questions(bench, cells)
    tokenizer = next((cell.tokenizer for cell in cells.values() if cell.tokenizer), "")
    return Report(
        suite=suite.name,
        description=_description(suite),
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment={**environment(threads=threads), "tokenizer": tokenizer},
        datasets={name: _dataset_facts(bench, name) for name in suite.datasets},
        encoders={name: asdict(encoder.facts) for name, encoder in bench.encoders.items()},
        query_files=_query_facts(bench),
        systems={system.name: _system_facts(bench, system) for system in suite.systems},
        results=list(_results(bench, cells, resamples)),
        comparisons=list(_comparisons(bench, cells, resamples)),
        sweeps=[run_sweep(bench, plan, dataset) for plan in suite.sweeps for dataset in suite.datasets],
        heatmaps=list(_heat_maps(cells)),
        notes=[
            *(f"{name}: {what}: {n}" for name in suite.datasets for what, n in bench.task(name).notes.items()),
            *_own_language(cells),
            *(f"{dataset}: {system}: {note}" for (dataset, system), cell in cells.items() for note in cell.notes),
        ],
    )


def _description(suite: Suite) -> str:
    if suite.questions is None:
        return suite.description
    return f"{suite.description.rstrip()} Only {_limit(suite.questions)}.".lstrip()


def _limit(questions: int) -> str:
    return f"a sample of {questions} question{'s' * (questions > 1)} of each group, spread over passages"


def _check(bench: Workbench) -> None:
    for system in bench.suite.systems:
        bench.method_facts(system)  # a missing generator is told before hours of encoding
    for dataset in bench.suite.datasets:
        check_metrics(bench.metrics(dataset), bench.task(dataset))
        for system in bench.suite.systems:
            file = bench.suite.query_file(system, dataset)
            if file is not None:
                sha256_of(file)  # a missing file is told before hours of encoding


def _run_cells(bench: Workbench, store: VectorStore | None) -> dict[tuple[str, str], Cell]:
    suite, runs = bench.suite, bench.out / "runs"
    with disk_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[str, str], Cell] = {}
    with _chosen_store(suite, store) as chosen:
        for dataset in suite.datasets:
            for system in suite.systems:
                bench.progress(f"{dataset}: {system.name}", len(cells), len(suite.datasets) * len(suite.systems))
                cells[dataset, system.name], run = bench.cell(system, dataset, store=chosen)
                with disk_errors(runs):
                    shutil.copyfile(run, _run_file(bench, dataset, system.name))
    return cells


def _run_file(bench: Workbench, dataset: str, system: str) -> Path:
    return bench.out / "runs" / f"{_file_name(dataset)}.{_file_name(system)}.trec.gz"


def _write_questions(bench: Workbench, cells: Cells) -> None:
    """What became of every question; bitext mining has none."""
    names = [system.name for system in bench.suite.systems]
    asked = [
        Asked(
            dataset, bench.task(dataset), tuple(bench.task(dataset).passages),
            {name: cells[dataset, name].values for name in names},
            {name: _first(read_run(_run_file(bench, dataset, name))) for name in names},
        )
        for dataset in bench.suite.datasets
        if BITEXT not in bench.metrics(dataset)
    ]  # fmt: skip
    if asked:
        write_questions(bench.out, asked)


def _first(run: Run) -> dict[str, str]:
    """The best passage of each question."""
    return {qid: min(pairs, key=lambda pair: (-pair[1], pair[0]))[0] for qid, pairs in run.items() if pairs}


@contextmanager
def _chosen_store(suite: Suite, store: VectorStore | None) -> Iterator[VectorStore | None]:
    """The caller's store, a temporary one, or none when everything is ranked in memory."""
    if suite.search == "memory" or store is not None:
        yield None if suite.search == "memory" else store
        return
    with tempfile.TemporaryDirectory(prefix="xqg-bench-") as folder:
        temporary = open_store(folder)
        try:
            yield temporary
        finally:
            temporary.close()


def _results(bench: Workbench, cells: Cells, resamples: int) -> Iterator[Result]:
    for (dataset, system), cell in cells.items():
        task = bench.task(dataset)
        for metric, values in cell.values.items():
            yield summarize(
                values, task=task, dataset=dataset, system=system, metric=metric, seconds=cell.seconds,
                cost=cell.cost, resamples=resamples,
            )  # fmt: skip


def _comparisons(bench: Workbench, cells: Cells, resamples: int) -> Iterator[Compared]:
    """Every comparison of the suite by every metric, each once."""
    suite = bench.suite
    wanted = {
        (dataset, metric, one.baseline, system): None
        for one in suite.comparisons
        for system in one.systems
        for dataset in suite.datasets
        for metric in bench.metrics(dataset)
    }
    for dataset, metric, baseline, system in wanted:
        before, after = cells[dataset, baseline].values, cells[dataset, system].values
        if metric in before and metric in after:
            yield contrast(
                before[metric], after[metric], task=bench.task(dataset), dataset=dataset, metric=metric,
                names=(baseline, system), resamples=resamples,
            )  # fmt: skip


def _heat_maps(cells: Cells) -> Iterator[HeatMap]:
    for (dataset, system), cell in cells.items():
        if cell.shares:
            rows = sorted(cell.shares)
            columns = sorted(cell.shares[rows[0]])
            values = [[cell.shares[row][column] for column in columns] for row in rows]
            yield HeatMap(dataset, system, f"share of the first {SHARE_DEPTH} passages", rows, columns, values)


def _own_language(cells: Cells) -> Iterator[str]:
    """How many of the first passages are in the question's own language, the mean over languages."""
    for (dataset, system), cell in cells.items():
        own = [found[lang] for lang, found in cell.shares.items() if lang in found]
        if own:
            share = sum(own) / len(own)
            yield f"{dataset}: {system}: {share:.1%} of the first {SHARE_DEPTH} are in the question's own language"


def _dataset_facts(bench: Workbench, name: str) -> dict[str, Any]:
    task, limit = bench.task(name), bench.suite.questions
    groups = sorted(set(task.groups.values()))
    return {
        "task": task.name,
        "passages": sum(1 for _ in task.passages),
        "questions": len(task.queries),
        **({} if limit is None else {"limit": _limit(limit)}),
        "groups": {group: sum(own == group for own in task.groups.values()) for group in groups},
        "average": task.average,
        "metrics": list(bench.metrics(name)),
        "digest": bench.data_digest(name),
    }


def _query_facts(bench: Workbench) -> dict[str, dict[str, Any]]:
    """What the folded-in query files held for each dataset, by `dataset: set`."""
    found: dict[str, dict[str, Any]] = {}
    for system in bench.suite.systems:
        for dataset in bench.suite.datasets:
            vectors, file = bench.query_vectors(system, dataset), bench.suite.query_file(system, dataset)
            if vectors is not None and file is not None:
                passages = len(bench.material(system.encoder, dataset).passages)
                facts = {"file": file.name, "sha256": sha256_of(file), **counts(vectors, passages=passages)}
                found[f"{dataset}: {system.queries}"] = facts
    return found


def _system_facts(bench: Workbench, system: System) -> dict[str, Any]:
    strength = bench.encoder(system.encoder).calibration if system.calibration is None else system.calibration
    recipe = system.recipe.to_json() if system.queries else None
    facts = {"encoder": system.encoder, "λ": strength, "means": system.means, "languages": system.languages}
    folded = {"queries": system.queries, "content": system.content, "n": system.n, "recipe": recipe}
    centred = {"passage λ": system.passage_calibration} if system.passage_calibration else {}
    words = {"hybrid": "words of passages"} if system.hybrid else {}
    vectors = {**facts, **(folded if system.queries else {}), **centred, **words}
    return {**vectors, **_generator_facts(bench, system)}


def _generator_facts(bench: Workbench, system: System) -> dict[str, Any]:
    """As a report shows them: which generators, and how they are used."""
    found = bench.method_facts(system)
    facts: dict[str, Any] = {}
    if system.expand:
        facts |= {"expand": f"{system.expand.method}:{system.expand.model}", "expansion": found["expand"]}
    if system.rerank:
        facts |= {"rerank": f"upr:{system.rerank.model}", "reranking": found["rerank"]}
    return facts


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "+-_." else "-" for char in name)
