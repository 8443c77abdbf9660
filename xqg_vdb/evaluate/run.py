"""Run a suite: every system on every dataset, in real collections; then compare, sweep, and make the report.

Stop it at any time: the next run takes up vectors at their last commit and skips finished cells (`workbench.py`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.cells import SHARE_DEPTH, Cell, check_metrics, run_cell
from xqg_vdb.evaluate.metrics import counted, group_means, headline, macro_mean, ranked, read_run
from xqg_vdb.evaluate.questions import compare_rows, question_rows, write_questions
from xqg_vdb.evaluate.records import Compared, HeatMap, Point, Report, Result, Sweep, Value, environment
from xqg_vdb.evaluate.significance import RESAMPLES, mean_interval
from xqg_vdb.evaluate.suite import Choice, SweepPlan, System
from xqg_vdb.evaluate.workbench import Workbench
from xqg_vdb.files import disk_errors, sha256_of
from xqg_vdb.search import Methods
from xqg_vdb.store import open_store
from xqg_vdb.types import VectorStore

_EXAMPLES = 4
"""Questions won, and lost, that a report shows of a comparison."""
Cells = Mapping[tuple[str, str], Cell]


def run_suite(
    bench: Workbench, *, store: VectorStore | None = None, command: str = "", resamples: int = RESAMPLES
) -> Report:
    """Run everything that `bench.out` does not hold yet, and report; `runs` and `questions.csv` are there afterwards.

    store: where collections are written, a temporary embedded one by default; each is removed after use.
    Raises DataError for what is wrong with suite or data before anything is encoded, and what encoding, writing and
    searching raise.
    """
    suite = bench.suite
    limits = [] if suite.questions is None else [f"Only {_limit(suite.questions)}."]
    if suite.choices:
        limits.append("Half of the questions, by what they are about, chose settings; all figures are of the others.")
    with closing(bench.generators):
        _check(bench)
        cells = _run_cells(bench, store)
        rows = _write_questions(bench, cells)
        tokenizer = next((cell.tokenizer for cell in cells.values() if cell.tokenizer), "")
        return Report(
            suite=suite.name,
            description=_without_folders(" ".join([suite.description.rstrip(), *limits]).lstrip()),
            command=_without_folders(command),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment={**environment(threads=bench.threads), "tokenizer": tokenizer},
            datasets={name: _dataset_facts(bench, name) for name in suite.datasets},
            encoders={
                _without_folders(name): {
                    key: _without_folders(v) for key, v in asdict(bench.encoder(name).facts).items()
                }
                for name in dict.fromkeys(system.encoder for system in suite.systems)
            },
            query_files=_query_facts(bench),
            systems={system.name: _system_facts(bench, system) for system in suite.systems}
            | {choice.name: {"chosen": choice.system, "among": dict(choice.grid)} for choice in suite.choices},
            results=list(_results(bench, cells, resamples)),
            comparisons=list(_comparisons(bench, cells, rows, resamples)),
            sweeps=[_sweep(bench, plan, dataset) for plan in suite.sweeps for dataset in suite.datasets],
            heatmaps=list(_heat_maps(cells)),
            notes=[
                *(f"{name}: {what}: {n}" for name in suite.datasets for what, n in bench.task(name).notes.items()),
                *_own_language(cells),
                *(f"{dataset}: {system}: {note}" for (dataset, system), cell in cells.items() for note in cell.notes),
            ],
        )


def _without_folders(value: Any) -> Any:
    """A text without the folders of this machine, for a report travels: `--out x` of `--out /home/me/x`."""
    return re.sub(r"(?<![\w.:/~])~?/(?:[^\s'\"/]+/)+(?=[^\s'\"/])", "", value) if isinstance(value, str) else value


def _limit(questions: int) -> str:
    return f"a sample of {questions} question{'s' * (questions > 1)} of each group, spread over passages"


def _check(bench: Workbench) -> None:
    for system in bench.suite.systems:
        bench.generators.facts(system.methods)  # a missing generator is told before hours of encoding
        bench.check_means(system)
    for dataset in bench.suite.datasets:
        check_metrics(bench.metrics(dataset), bench.task(dataset))
        for choice in bench.suite.choices:
            if choice.metric not in bench.metrics(dataset):
                raise DataError(f"{choice.name} is chosen by {choice.metric}, which {dataset} is not measured by.")
        for system in bench.suite.systems:
            file = bench.suite.query_file(system, dataset)
            if file is not None:
                sha256_of(file)  # a missing file is told before hours of encoding


def _run_cells(bench: Workbench, store: VectorStore | None) -> dict[tuple[str, str], Cell]:
    suite, runs = bench.suite, bench.out / "runs"
    with disk_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[str, str], Cell] = {}
    with ExitStack() as stack:
        if suite.search == "memory":
            store = None
        elif store is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xqg-bench-"))
            store = stack.enter_context(closing(open_store(folder)))
        entries: list[System | Choice] = [*suite.systems, *suite.choices]
        for dataset, entry in product(suite.datasets, entries):
            bench.progress(f"{dataset}: {entry.name}", len(cells), len(suite.datasets) * len(entries))
            if isinstance(entry, Choice):
                cells[dataset, entry.name], run = _chosen(bench, entry, dataset, store)
            else:
                cells[dataset, entry.name], run = bench.cell(entry, dataset, store=store)
            with disk_errors(runs):
                shutil.copyfile(run, _run_file(bench, dataset, entry.name))
    if not suite.choices:
        return cells
    return {
        (dataset, name): replace(cell, values=_half(bench, dataset, cell.values, held_out=True))
        for (dataset, name), cell in cells.items()
    }


def _chosen(bench: Workbench, choice: Choice, dataset: str, store: VectorStore | None) -> tuple[Cell, Path]:
    """The cell of the best candidate on the first half of the questions, and its run; of equals the first."""
    base, task = next(system for system in bench.suite.systems if system.name == choice.system), bench.task(dataset)
    tried: list[tuple[float, str, tuple[Cell, Path]]] = []
    for candidate in choice.candidates(base):
        bench.progress(f"{dataset}: choosing {choice.name}", len(tried), None)
        cell, run = bench.cell(candidate, dataset, store=store)
        values = _half(bench, dataset, cell.values, held_out=False)[choice.metric]
        setting = ", ".join(f"{name} {getattr(candidate, name):g}" for name in choice.grid)
        tried.append((headline(values, groups=task.groups, average=task.average), setting, (cell, run)))
    value, setting, (cell, run) = max(tried, key=lambda trial: trial[0])
    note = f"chosen of {len(tried)} settings: {setting} ({choice.metric} {value:.3f} on the half that chooses)"
    return replace(cell, notes=(*cell.notes, note)), run


def _half(
    bench: Workbench, dataset: str, values: Mapping[str, Mapping[str, float]], *, held_out: bool
) -> dict[str, dict[str, float]]:
    """The values of the questions of half of the clusters: those that choose settings, or the others."""
    side = {
        qid: hashlib.blake2b(f"half {cluster}".encode(), digest_size=1).digest()[0] % 2 == held_out
        for qid, cluster in bench.task(dataset).clusters().items()
    }
    return {metric: {qid: v for qid, v in of.items() if side.get(qid, True)} for metric, of in values.items()}


def _run_file(bench: Workbench, dataset: str, system: str) -> Path:
    name = "".join(char if char.isalnum() or char in "+-_." else "-" for char in f"{dataset}.{system}")
    return bench.out / "runs" / f"{name}.trec.gz"


def _write_questions(bench: Workbench, cells: Cells) -> list[dict[str, str]]:
    """What became of every question, which is returned, too."""
    names = list(dict.fromkeys(name for _, name in cells))
    rows = [
        row
        for dataset in bench.suite.datasets
        for row in question_rows(
            dataset, bench.task(dataset), {name: cells[dataset, name].values for name in names},
            {name: {
                qid: ranked(pairs)[0][0] for qid, pairs in read_run(_run_file(bench, dataset, name)).items() if pairs
            } for name in names},
        )
    ]  # fmt: skip
    if rows:
        write_questions(bench.out, rows)
    return rows


def _results(bench: Workbench, cells: Cells, resamples: int) -> Iterator[Result]:
    """Every system's mean by the publisher's average, and each group's, with bootstrap intervals."""
    for (dataset, system), cell in cells.items():
        task = bench.task(dataset)
        clusters = task.clusters()
        for metric, values in cell.values.items():
            parts = {"": counted(values, groups=task.groups, average=task.average)}
            for name in sorted({task.groups[qid] for qid in values}):
                parts[name] = {qid: name for qid in values if task.groups[qid] == name}
            means = {}
            for name, part in parts.items():
                chosen = {qid: values[qid] for qid in part}
                interval = mean_interval(chosen, groups=part, clusters=clusters, resamples=resamples)
                means[name] = Value(len(chosen), macro_mean(chosen, groups=part), interval)
            yield Result(dataset, system, metric, means.pop(""), means, cell.seconds, cell.cost)


def _comparisons(bench: Workbench, cells: Cells, rows: Sequence[dict[str, str]], resamples: int) -> Iterator[Compared]:
    """Every comparison of the suite by every metric, each once; by the first with questions won and lost."""
    suite = bench.suite
    wanted = {
        (dataset, metric, comparison.baseline, system): None
        for comparison in suite.comparisons
        for system in comparison.systems
        for dataset in suite.datasets
        for metric in bench.metrics(dataset)
    }
    for dataset, metric, baseline, system in wanted:
        before, after = (cells[dataset, name].values.get(metric) for name in (baseline, system))
        if before is None or after is None:
            continue
        of = [row for row in rows if row["dataset"] == dataset]
        compared, _ = compare_rows([of, of], (f"{baseline} | {metric}", f"{system} | {metric}"), resamples=resamples)
        if metric == bench.metrics(dataset)[0]:
            yield replace(compared, won=compared.won[:_EXAMPLES], lost=compared.lost[:_EXAMPLES])
        else:
            yield replace(compared, won=(), lost=(), counts=(0, 0))


def _sweep(bench: Workbench, plan: SweepPlan, dataset: str) -> Sweep:
    """The plan's system with each value in its place, ranked in memory. DataError for what cannot be swept there."""
    system = next(entry for entry in bench.suite.systems if entry.name == plan.system)
    if system.queries is None and plan.parameter != "lambda":
        raise DataError(f"system {system.name!r} folds in no queries: there is nothing to sweep {plan.parameter} over.")
    if system.methods != Methods() or system.hybrid:
        raise DataError(f"system {system.name!r} expands, ranks again or is hybrid: name its own base to sweep.")
    task, metric = bench.task(dataset), plan.metric or bench.metrics(dataset)[0]
    check_metrics([metric], task)
    passages, points = bench.material(system.encoder, dataset).passages, list[Point]()
    for x, variant in _variants(bench, plan, system, dataset):
        bench.progress(f"{dataset}: {plan.parameter} of {system.name}", len(points), None)
        cell, _ = run_cell(task, passages, bench.placed(variant, dataset), metrics=[metric], depth=1)
        values = cell.values[metric]
        value = headline(values, groups=task.groups, average=task.average)
        points.append(Point(x, value, group_means(values, groups=task.groups)))
    return Sweep(dataset, metric, system.name, plan.parameter, points)


def _variants(bench: Workbench, plan: SweepPlan, system: System, dataset: str) -> Iterator[tuple[float | str, System]]:
    """The points' labels and their systems."""
    queries, recipe = bench.query_vectors(system, dataset), system.recipe
    if plan.parameter == "alpha":
        for alpha in plan.values or [round(0.05 * i, 2) for i in range(20)]:
            yield alpha, replace(system, recipe=replace(recipe, alpha=alpha))
    elif plan.parameter == "lambda":
        for strength in plan.values or [round(0.1 * i, 1) for i in range(13)]:
            yield strength, replace(system, calibration=strength)
    elif plan.parameter == "n":
        most = 1 if queries is None else int(queries.index.max()) + 1
        for n in plan.values or range(1, most + 1):
            yield n, replace(system, n=int(n))
    else:
        langs = recipe.query_langs or (queries.langs if queries else ())
        yield "all", system
        for lang in langs if len(langs) > 1 else ():
            rest = tuple(other for other in langs if other != lang)
            yield f"without {lang}", replace(system, recipe=replace(recipe, query_langs=rest))


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
        shares = [of_lang[lang] for lang, of_lang in cell.shares.items() if lang in of_lang]
        if shares:
            share = sum(shares) / len(shares)
            yield f"{dataset}: {system}: {share:.1%} of the first {SHARE_DEPTH} are in the question's own language"


def _dataset_facts(bench: Workbench, name: str) -> dict[str, Any]:
    task, limit = bench.task(name), bench.suite.questions
    return {
        "task": task.name,
        "passages": sum(1 for _ in task.passages),
        "questions": len(task.queries),
        **({} if limit is None else {"limit": _limit(limit)}),
        "groups": dict(sorted(Counter(task.groups.values()).items())),
        "average": task.average,
        "metrics": list(bench.metrics(name)),
        "digest": bench.data_digest(name),
    }


def _query_facts(bench: Workbench) -> dict[str, dict[str, Any]]:
    """What the folded-in query files held for each dataset, by `dataset: set`."""
    facts: dict[str, dict[str, Any]] = {}
    for system in bench.suite.systems:
        for dataset in bench.suite.datasets:
            queries, file = bench.query_vectors(system, dataset), bench.suite.query_file(system, dataset)
            if queries is not None and file is not None:
                facts[f"{dataset}: {system.queries}"] = {
                    "file": file.name,
                    "sha256": sha256_of(file),
                    "queries": len(queries.owner),
                    "passages with queries": len(set(queries.owner.tolist())),
                    "passages": len(bench.material(system.encoder, dataset).passages),
                    "languages": {lang: int((queries.lang == lang).sum()) for lang in queries.langs},
                    "records of other passages": queries.unused,
                }
    return facts


def _system_facts(bench: Workbench, system: System) -> dict[str, Any]:
    """As a report shows them."""
    strength = bench.encoder(system.encoder).calibration if system.calibration is None else system.calibration
    facts = {"encoder": _without_folders(system.encoder), "λ": strength}
    facts |= {"means": system.means, "languages": system.languages}
    if system.queries:
        recipe = system.recipe.to_json()
        facts |= {"queries": system.queries, "content": system.content, "n": system.n, "recipe": recipe}
    if system.passage_calibration:
        facts |= {"passage λ": system.passage_calibration, "passage means": system.passage_means}
    facts |= {name: value for name, value in (("lir", system.lir), ("csls", system.csls)) if value}
    if system.hybrid:
        facts["hybrid"] = "words of passages"
    for method, used in bench.generators.facts(system.methods).items():
        name = {"expand": "expansion", "rerank": "reranking"}[method]
        facts |= {method: getattr(system.methods, method), name: used}
    return facts
