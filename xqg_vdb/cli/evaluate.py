"""`xqg-vdb bench`."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xqg_vdb.cli.options import (
    PATH,
    Model,
    Place,
    command,
    corpus_argument,
    methods_options,
    model_options,
    place_options,
    say,
    show,
    takes,
)
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.evaluate.datasets import RetrievalTask
    from xqg_vdb.evaluate.records import Compared, Difference
    from xqg_vdb.evaluate.suite import Suite
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.progress import Progress
    from xqg_vdb.search import Methods
    from xqg_vdb.tune.audit import Audited
    from xqg_vdb.tune.tune import Choice, Tuned


@dataclass(frozen=True)
class _Bench:
    """What is measured, and where the data is and goes."""

    data_dir: Path | None = option(None, "Folder of the benchmarks  [default: XQG_DATA_DIR]")
    download: bool = option(False, "Fetch what the data folder lacks from the publishers, checksums checked.")
    vectors: Path | None = option(None, "Where encoded texts are kept  [default: OUT/vectors]")
    queries: Path | None = option(None, "Generated queries of DATASET's passages: adds xQG.")
    search: Literal["exact", "graph", "memory"] | None = option(
        None, "Exact or graph search of a real collection, or ranking in memory  [default: exact, or the suite's]"
    )
    ef: int | None = option(
        None, "Candidates that a graph search keeps, with --search graph  [default: 512]", least=1, metavar="N"
    )
    questions: tuple[str, ...] = option(
        (),
        "Only a sample of so many of each language; or your own questions about CORPUS. May be given for both.",
        metavar="N|FILE",
    )
    qrels: Path | None = option(None, "Which passages answer them (TREC or BEIR).")

    def __post_init__(self) -> None:
        numbers = [given for given in self.questions if given.isdecimal()]
        if len(numbers) > 1 or len(self.questions) > len(numbers) + 1 or "0" in numbers:
            raise ValueError("--questions takes one number of 1 or more, and one file")
        if self.file is None and self.qrels is not None:
            raise ValueError("--qrels is for your own questions: add --questions FILE")

    @property
    def sample(self) -> int | None:
        """How many questions of each language."""
        return next((int(given) for given in self.questions if given.isdecimal()), None)

    @property
    def file(self) -> Path | None:
        """The user's own questions."""
        return next((Path(given) for given in self.questions if not given.isdecimal()), None)


@command(
    example="xqg-vdb bench afriqa --data-dir data/ --out reports/afriqa\n"
    "xqg-vdb bench corpus.jsonl --questions questions.jsonl --qrels qrels.txt \\\n    --out reports/mine\n"
    "xqg-vdb bench afriqa --out reports/upr --rerank upr:starter:generator \\\n    --rerank-depth 10 --questions 50"
)
@click.argument("what", metavar="DATASET|SUITE.toml|CORPUS")
@click.option("--out", type=PATH, required=True, help="Folder of reports, runs and kept vectors.")
@takes("asked", "xqg_vdb.cli.evaluate._Bench")
@model_options
@methods_options
@place_options
def bench(what: str, out: Path, asked: _Bench, model: Model, methods: Methods, place: Place) -> None:
    """Measure systems on benchmarks or your own data: recall per language, with intervals and paired tests.

    DATASET runs plain against calibrated questions, and with --queries also xQG and its controls; a SUITE.toml says
    itself what it runs. Your own data: a CORPUS, --questions FILE, and --qrels FILE unless the questions' lines say
    `"relevant": [passage ids]`. Writes report.json, report.md, report.html, questions.csv and TREC runs to --out.
    What an earlier run finished there is not computed again; stop it with Ctrl-C and start it again at any time.

    --rerank and --expand add systems on top of calibrated questions (and xQG). They cost seconds a question, so limit
    --questions.
    """
    from xqg_vdb.evaluate.report import render_terminal, write_report
    from xqg_vdb.evaluate.run import run_suite
    from xqg_vdb.evaluate.suite import preset, read_suite, with_methods
    from xqg_vdb.evaluate.workbench import Workbench
    from xqg_vdb.progress import bars

    own = _own(what, asked)
    if what.endswith(".toml"):
        if asked.queries is not None:
            raise click.UsageError("a suite names its own query files; --queries is for a DATASET")
        if methods != type(methods)():
            raise click.UsageError("a suite names its own systems; --rerank and --expand are for a DATASET")
        suite = read_suite(what)
    else:
        name = own[0].name if own else what
        several = len({passage.lang for passage in own[0].passages}) > 1 if own else None
        suite = preset(name, encoder=model.name, queries=asked.queries, several_languages=several)
        suite = with_methods(suite, methods)
    suite = replace(
        suite, search=asked.search or suite.search, ef=asked.ef or suite.ef, questions=asked.sample or suite.questions
    )
    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open())) if place.path or place.url else None

        def open_encoder(name: str) -> Encoder:
            return stack.enter_context(model.open(name=name))

        progress = stack.enter_context(bars(unit=""))
        if asked.download:
            _download(suite, asked.data_dir, progress=progress)
        desk = Workbench(
            suite, open_encoder, out, asked.vectors or out / "vectors", asked.data_dir, progress,
            threads=model.threads or len(os.sched_getaffinity(0)), own={task.name: task for task in own},
        )  # fmt: skip
        report = run_suite(desk, store=store, command=shlex.join(["xqg-vdb", *sys.argv[1:]]))
    written = write_report(report, out)
    show(report.to_json(), [render_terminal(report)])
    say("reports: " + ", ".join(map(str, written)))


def _own(what: str, asked: _Bench) -> list[RetrievalTask]:
    """The user's own data, where they gave questions about it."""
    from xqg_vdb.evaluate.datasets import is_dataset
    from xqg_vdb.evaluate.datasets.own import read_own

    brings_its_own = what.endswith(".toml") or (is_dataset(what) and not Path(what).exists())
    if asked.file is None:
        if not brings_its_own and not is_dataset(what) and Path(what).exists():
            raise click.UsageError(f"{what} is your own data: add --questions FILE, your users' questions about it")
        return []
    if brings_its_own:
        raise click.UsageError(f"{what} brings its own questions; --questions FILE is for a CORPUS file")
    return [read_own(Path(what), asked.file, asked.qrels)]


def _download(suite: Suite, data_dir: Path | None, *, progress: Progress) -> None:
    from xqg_vdb.evaluate.datasets import data_folder
    from xqg_vdb.evaluate.datasets.download import download

    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    for dataset in suite.datasets:
        download(dataset, data_folder(data_dir), progress=progress)


# `xqg-vdb bench diff`.


@command(
    "bench diff",
    example="xqg-vdb bench diff reports/before reports/after\n"
    "xqg-vdb bench diff reports/mine:plain reports/mine:calibrated \\\n    --csv changed.csv",
)
@click.argument("before", metavar="A[:SYSTEM]")
@click.argument("after", metavar="B[:SYSTEM]")
@click.option("--metric", help="Metric to compare by, such as R@10  [default: the first that both have]")
@click.option("-n", "shown", type=click.IntRange(0), default=5, show_default=True, help="Questions to show of each.")
@click.option("--csv", "out", type=PATH, help="Write every question that changed to this file.")
def bench_diff(before: str, after: str, metric: str | None, shown: int, out: Path | None) -> None:
    """Tell which questions a run of `bench` won and lost against another one.

    A and B are two folders of `bench --out`, or two systems of one folder. The last system that both have is compared.
    """
    from xqg_vdb.evaluate.questions import diff_runs, write_changes

    diffs = diff_runs(before, after, metric=metric)
    if out is not None:
        write_changes(out, (diff for diff, _ in diffs))
    record = [
        {"dataset": diff.dataset, "metric": diff.metric, "before": diff.baseline, "after": diff.system,
         "compared": asdict(diff.macro), "won": list(map(asdict, diff.won)), "lost": list(map(asdict, diff.lost)),
         "only_one": left_out}
        for diff, left_out in diffs
    ]  # fmt: skip
    show(record, (line for diff, left_out in diffs for line in _diff_lines(diff, left_out, shown)))
    if out is not None:
        say(f"written: {out}")


def _diff_lines(diff: Compared, left_out: int, shown: int) -> Iterator[str]:
    before, after = f"{diff.dataset}, {diff.metric}: {diff.baseline}", diff.system
    yield f"{_compared(diff.macro, before, after)}  n = {diff.macro.n}"
    if left_out:
        yield f"note: {left_out} questions are in one of the two only, and left out"
    for what, changes in (("won", diff.won), ("lost", diff.lost)):
        yield f"\n{len(changes)} questions {what}"
        for change in changes[:shown]:
            yield f"  {change.question} [{change.group}] {change.before:.3g} → {change.after:.3g}  {change.text}"
            yield f"    answered by    {change.relevant[:100]}"
            yield f"    first, before  {change.found_before[:100]}"
            yield f"    first, after   {change.found_after[:100]}"
        if len(changes) > shown:
            yield f"  … and {len(changes) - shown} more"


def _compared(found: Difference, before: str, after: str = "") -> str:
    low, high = found.interval or (math.nan, math.nan)
    return (
        f"{before} {found.baseline:.3f} → {after}{' ' if after else ''}{found.system:.3f}   {found.difference:+.3f} "
        f"[{low:+.3f}, {high:+.3f}]  p = {found.p_permutation:.2g}"
    )


# `xqg-vdb audit`.

_SHOWN = 5


@command(example="xqg-vdb audit wiki queries.jsonl -k 10")
@click.argument("collection")
@click.argument("query_files", metavar="QUERIES...", nargs=-1, required=True, type=PATH)
@click.option("-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Found means among the first k.")
@click.option("--sample", type=click.IntRange(min=10), default=2000, show_default=True, help="Passages to ask for.")
@model_options
@place_options
def audit(collection: str, query_files: tuple[Path, ...], k: int, sample: int, model: Model, place: Place) -> None:
    """Tell which languages COLLECTION fails, worst first, without labels.

    Do generated QUERIES find their own passages? One query per passage and language is asked, plain and calibrated. A
    collection that has these queries folded in is judged too kindly.
    """
    from xqg_vdb.models.folder import cache_folder
    from xqg_vdb.progress import bars
    from xqg_vdb.texts.records import open_lines
    from xqg_vdb.tune.audit import audit as run_audit

    for file in query_files:
        open_lines(file)
    with ExitStack() as stack:
        opened = stack.enter_context(place.collection(collection))
        encoder = stack.enter_context(model.open(made=opened.card, collection=collection))
        progress = stack.enter_context(bars(unit=""))
        result = run_audit(
            opened, query_files, encoder=encoder, folder=cache_folder() / "tuning", k=k, sample=sample,
            progress=progress,
        )  # fmt: skip
    show(result, _audit_lines(result))


def _audit_lines(found: Audited) -> Iterator[str]:
    yield f"{found.collection}: {found.passages} of {found.in_collection} passages asked for; recall@{found.k}\n"
    yield "language  queries  calibrated            plain                 folded in"
    for line in found.languages:
        shares = "  ".join(f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in (line.calibrated, line.plain))
        yield f"{line.lang:8s}  {line.queries:7d}  {shares}  {'yes' if line.folded else 'no'}"
    few = ", ".join(found.lost[:_SHOWN]) + (" …" if len(found.lost) > _SHOWN else "")
    yield f"\nfound by no language: {len(found.lost)} passages" + (f" ({few})" if found.lost else "")
    if any(line.folded for line in found.languages):
        yield "note: queries of the languages marked yes are folded in; these were made to find their passages."
    if latin := sum(line.queries for line in found.languages if line.lang.endswith("-Latn")):
        yield (
            f"warning: {latin} queries are in Latin letters (-Latn), where small encoders find far less: ask in the "
            "language's own letters, or with an encoder that was trained on such questions."
        )
    yield "note: an estimate without labels ranks languages and says nothing about α; `xqg-vdb tune` does."
    if found.strangers:
        ids = ", ".join(found.first_strangers)
        yield f"note: {found.strangers} query records are of no passage of the collection ({ids})"


# `xqg-vdb tune`.

_NO_LABELS = (
    "tune needs --questions and --qrels: write down questions of your users (a hundred or more; lines of "
    '{"id": …, "text": …, "lang": …}) and which passage answers each (lines of `QUESTION 0 PASSAGE 1`), or keep the '
    "default recipe: xqg-vdb load CORPUS NAME --queries FILE"
)


@dataclass(frozen=True)
class _Tune:
    """What is tuned on."""

    questions: Path | None = option(None, "Your users' questions, a hundred or more.")
    qrels: Path | None = option(None, "Which passages answer --questions (TREC or BEIR).")
    passage_calibration: float = option(
        0.0, "λ that the load shall use for the passages, of a corpus in several languages.", least=0, most=10
    )
    metric: str = option("R@10", "R@k, MRR@k, nDCG@k or MAP@k.")
    sample: int = option(2000, "Passages to tune on.", least=10)


@command(
    example="xqg-vdb tune corpus.jsonl --queries queries.jsonl \\\n    --questions questions.jsonl --qrels qrels.txt"
)
@corpus_argument
@click.option("--queries", "files", multiple=True, required=True, type=PATH, help="Generated queries; repeatable.")
@model_options
@takes("asked", "xqg_vdb.cli.evaluate._Tune")
def tune(corpus: Path, files: tuple[Path, ...], model: Model, asked: _Tune) -> None:
    """Choose the recipe for CORPUS: α, λ, pooling, shrinkage and languages.

    Needs --questions, and in --qrels which passages answer them. Half of the questions choose, the other half report,
    once. What was encoded is kept: the same command again takes seconds.
    """
    if asked.questions is None or asked.qrels is None:
        raise click.UsageError(_NO_LABELS)
    from xqg_vdb.evaluate.metrics import parse_metrics
    from xqg_vdb.progress import bars
    from xqg_vdb.texts.records import open_lines
    from xqg_vdb.tune.tune import tune as run

    parse_metrics([asked.metric])
    for file in (*files, asked.questions, asked.qrels):
        open_lines(file)  # what is missing is said before a model is exported
    with model.open() as encoder, bars(unit="") as progress:
        tuned = run(
            corpus, queries=files, questions=asked.questions, qrels=asked.qrels, encoder=encoder, metric=asked.metric,
            passage_calibration=asked.passage_calibration, sample=asked.sample, progress=progress,
        )  # fmt: skip
    words = ["xqg-vdb", "load", str(corpus), "NAME"]
    words += [part for file in files for part in ("--queries", str(file))] + model.typed()
    recipe = tuned.chosen.recipe
    words += ["--alpha", f"{recipe.alpha:g}", "--pool", recipe.pool]
    if recipe.pool == "shrunk":
        words += ["--shrink", f"{recipe.shrink:g}", *([] if recipe.center else ["--no-center"])]
    words += [part for lang in recipe.query_langs or () for part in ("--query-langs", lang)]
    words += ["--calibration", f"{tuned.chosen.strength:g}"]
    if asked.passage_calibration:
        words += ["--passage-calibration", f"{asked.passage_calibration:g}"]
    command = shlex.join(words)
    record = {**asdict(tuned), "command": command}
    show(record, [*_tune_lines(tuned), f"\n{command}"])


def _tune_lines(tuned: Tuned) -> Iterator[str]:
    n, held = sum(tuned.questions.values()), sum(tuned.held_out_questions.values())
    languages = f"{len(tuned.questions)} languages"
    yield f"{tuned.metric}, macro over {languages}; {tuned.passages} passages, {n + held} questions"
    yield f"\nbest α and λ of each pooling, on {n} dev questions"
    for trial in tuned.trials:
        yield f"  {_tune_words(trial):48s} {trial.value:.3f}"
    yield "α of the chosen      " + "  ".join(f"{alpha:g}: {value:.3f}" for alpha, value in tuned.alphas[::2])
    yield "λ of the chosen      " + "  ".join(f"{strength:g}: {value:.3f}" for strength, value in tuned.strengths)
    if tuned.without:
        yield "without              " + "  ".join(f"{lang}: {value:.3f}" for lang, value in tuned.without.items())
    yield f"\nchosen: {_tune_words(tuned.chosen)}; on {held} held-out questions"
    for name, compared in tuned.held_out.items():
        yield _compared(compared.macro, f"  against {name:11s}")
    for note in tuned.notes:
        yield f"note: {note}"


def _tune_words(choice: Choice) -> str:
    recipe = choice.recipe
    shrunk = f" k={recipe.shrink:g}{' centred' if recipe.center else ''}" if recipe.pool == "shrunk" else ""
    langs = f", languages {' '.join(recipe.query_langs)}" if recipe.query_langs is not None else ""
    return f"{recipe.pool}{shrunk}, α={recipe.alpha:g}, λ={choice.strength:g}{langs}"
