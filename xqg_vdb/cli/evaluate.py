"""`xqg-vdb bench`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xqg_vdb.cli.options import (
    Model,
    Place,
    command,
    json_option,
    methods_options,
    model_options,
    place_options,
    say,
    show,
)

if TYPE_CHECKING:
    from xqg_vdb.evaluate.datasets import RetrievalTask
    from xqg_vdb.evaluate.questions import Diff
    from xqg_vdb.evaluate.suite import Suite
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.progress import Progress
    from xqg_vdb.search import Methods
    from xqg_vdb.tune.audit import Audited, Share
    from xqg_vdb.tune.tune import Choice, Tuned
    from xqg_vdb.types import Recipe


@command(
    example="xqg-vdb bench afriqa --data-dir data/ --out reports/afriqa\n"
    "xqg-vdb bench corpus.jsonl --questions questions.jsonl --qrels qrels.txt \\\n    --out reports/mine\n"
    "xqg-vdb bench afriqa --out reports/upr --rerank upr:starter:generator \\\n    --rerank-depth 10 --questions 50"
)
@click.argument("what", metavar="DATASET|SUITE.toml|CORPUS")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of reports, runs and kept vectors.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the benchmarks  [default: XQG_DATA_DIR]")
@click.option(
    "--download", is_flag=True, help="Fetch what the data folder lacks from the publishers, checksums checked."
)
@click.option("--vectors", type=click.Path(path_type=Path), help="Where encoded texts are kept  [default: OUT/vectors]")
@model_options
@click.option("--queries", type=click.Path(path_type=Path), help="Generated queries of DATASET's passages: adds xQG.")
@click.option(
    "--search",
    type=click.Choice(["exact", "graph", "memory"]),
    help="Exact or graph search of a real collection, or ranking in memory  [default: exact, or the suite's]",
)
@click.option(
    "--questions",
    "wanted",
    multiple=True,
    metavar="N|FILE",
    help="Only a sample of so many of each language; or your own questions about CORPUS. May be given for both.",
)
@click.option("--qrels", type=click.Path(path_type=Path), help="Which passages answer them (TREC or BEIR).")
@methods_options
@place_options
@json_option
def bench(
    what: str,
    out: Path,
    data_dir: Path | None,
    download: bool,
    vectors: Path | None,
    model: Model,
    queries: Path | None,
    search: Literal["exact", "graph", "memory"] | None,
    wanted: tuple[str, ...],
    qrels: Path | None,
    methods: Methods,
    place: Place,
) -> None:
    """Measure systems on benchmarks or your own data: recall per language, with intervals and paired tests.

    DATASET runs plain against calibrated questions, and with --queries also xQG and its controls; a SUITE.toml says
    itself what it runs. Your own data: a CORPUS, --questions FILE, and --qrels FILE unless the questions' lines say
    `"relevant": [passage ids]`. Writes report.json, report.md, report.html, questions.csv and TREC runs to --out.
    What an earlier run finished there is not computed again; stop it with Ctrl-C and start it again at any time.

    --rerank and --expand add systems on top of calibrated questions (and xQG). They cost seconds a question, so limit
    --questions.
    """
    from xqg_vdb.evaluate.report.files import write_report
    from xqg_vdb.evaluate.report.text import render_terminal
    from xqg_vdb.evaluate.run import run_suite
    from xqg_vdb.progress import bars

    sample, file = _questions(wanted)
    if file is None and qrels is not None:
        raise click.UsageError("--qrels goes with your own questions: add --questions FILE")
    own = {} if file is None else _own(what, file, qrels)
    suite = _suite(what, own, model=model.name, queries=queries, search=search, questions=sample, methods=methods)
    with ExitStack() as stack:
        store = stack.enter_context(closing(place.open())) if place.path or place.url else None

        def open_encoder(name: str) -> Encoder:
            return stack.enter_context(model.open(name=name))

        progress = stack.enter_context(bars(unit=""))
        if download:
            _download(suite, data_dir, progress=progress)
        report = run_suite(
            suite, data_dir=data_dir, out=out, open_encoder=open_encoder, vectors=vectors, store=store,
            threads=model.threads or len(os.sched_getaffinity(0)), command=_command(), progress=progress,
            own=own,
        )  # fmt: skip
    written = write_report(report, out)
    show(report.to_json(), [render_terminal(report)])
    say("reports: " + ", ".join(map(str, written)))


def _questions(wanted: Sequence[str]) -> tuple[int | None, Path | None]:
    """What `--questions` means: the size of a sample, and a file of own questions."""
    numbers, files = [one for one in wanted if one.isdecimal()], [one for one in wanted if not one.isdecimal()]
    if len(numbers) > 1 or len(files) > 1 or "0" in numbers:
        raise click.UsageError("--questions takes one number of 1 or more, and one file")
    return int(numbers[0]) if numbers else None, Path(files[0]) if files else None


def _own(what: str, questions: Path, qrels: Path | None) -> dict[str, RetrievalTask]:
    from xqg_vdb.evaluate.datasets import is_dataset
    from xqg_vdb.evaluate.datasets.own import read_own

    if what.endswith(".toml") or (is_dataset(what) and not Path(what).exists()):
        raise click.UsageError(f"{what} brings its own questions; --questions FILE goes with a CORPUS file")
    task = read_own(Path(what), questions, qrels)
    return {task.name: task}


def _suite(
    what: str,
    own: Mapping[str, RetrievalTask],
    *,
    model: str,
    queries: Path | None,
    search: Any,
    questions: int | None,
    methods: Methods,
) -> Suite:
    """The suite file, or the preset of a dataset, with what the command line says of either."""
    from xqg_vdb.evaluate.datasets import is_dataset
    from xqg_vdb.evaluate.suite import preset, read_suite, with_methods
    from xqg_vdb.search import Methods

    if not what.endswith(".toml"):
        if not own and not is_dataset(what) and Path(what).exists():
            raise click.UsageError(f"{what} is your own data: add --questions FILE, your users' questions about it")
        name, several = what, None
        if own:
            name, task = next(iter(own.items()))
            several = len({passage.lang for passage in task.passages}) > 1
        made = preset(name, encoder=model, queries=queries, several_languages=several)
        suite = with_methods(made, methods)
    elif queries is not None:
        raise click.UsageError("a suite names its own query files; --queries goes with a DATASET")
    elif methods != Methods():
        raise click.UsageError("a suite names its own systems; --rerank and --expand go with a DATASET")
    else:
        suite = read_suite(what)
    return replace(suite, search=search or suite.search, questions=questions or suite.questions)


def _download(suite: Suite, data_dir: Path | None, *, progress: Progress) -> None:
    from xqg_vdb.evaluate.datasets import data_folder
    from xqg_vdb.evaluate.datasets.download import download

    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    for dataset in suite.datasets:
        download(dataset, data_folder(data_dir), progress=progress)


def _command() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["xqg-vdb", *sys.argv[1:]])


# `xqg-vdb bench diff`.


@command(
    "bench diff",
    example="xqg-vdb bench diff reports/before reports/after\n"
    "xqg-vdb bench diff reports/mine:plain reports/mine:calibrated \\\n    --csv changed.csv",
)
@click.argument("before", metavar="A[:SYSTEM]")
@click.argument("after", metavar="B[:SYSTEM]")
@click.option("--metric", help="Metric to compare by, such as R@10  [default: the first that both have]")
@click.option(
    "-n", "shown", type=click.IntRange(min=0), default=5, show_default=True, help="Questions to show of each."
)
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write every question that changed to this file.")
@json_option
def bench_diff(before: str, after: str, metric: str | None, shown: int, out: Path | None) -> None:
    """Tell which questions a run of `bench` won and lost against another one.

    A and B are two folders of `bench --out`, or two systems of one folder. The last system that both have is compared.
    """
    from xqg_vdb.evaluate.questions import diff_runs, write_changes

    diffs = diff_runs(before, after, metric=metric)
    if out is not None:
        write_changes(out, diffs)
    show([asdict(one) for one in diffs], (line for diff in diffs for line in _diff_lines(diff, shown)))
    if out is not None:
        say(f"written: {out}")


def _diff_lines(diff: Diff, shown: int) -> Iterator[str]:
    one = diff.compared
    yield (
        f"{diff.dataset}, {diff.metric}: {diff.before} {one.baseline:.3f} → {diff.after} {one.system:.3f}   "
        f"{one.difference:+.3f} [{one.interval.low:+.3f}, {one.interval.high:+.3f}]  p = {one.p_permutation:.2g}  "
        f"n = {one.n}"
    )
    if diff.only_one:
        yield f"note: {diff.only_one} questions are in one of the two only, and left out"
    for what, changes in (("won", diff.won), ("lost", diff.lost)):
        yield f"\n{len(changes)} questions {what}"
        for change in changes[:shown]:
            yield f"  {change.question} [{change.group}] {change.before:.3g} → {change.after:.3g}  {change.text}"
            yield f"    answered by    {change.relevant[:100]}"
            yield f"    first, before  {change.found_before[:100]}"
            yield f"    first, after   {change.found_after[:100]}"
        if len(changes) > shown:
            yield f"  … and {len(changes) - shown} more"


# `xqg-vdb audit`.

_SHOWN = 5


@command(example="xqg-vdb audit wiki queries.jsonl -k 10")
@click.argument("collection")
@click.argument("query_files", metavar="QUERIES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Found means among the first k.")
@click.option("--sample", type=click.IntRange(min=10), default=2000, show_default=True, help="Passages to ask for.")
@model_options
@place_options
@json_option
def audit(
    collection: str,
    query_files: tuple[Path, ...],
    k: int,
    sample: int,
    model: Model,
    place: Place,
) -> None:
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
        found = stack.enter_context(place.collection(collection))
        encoder = stack.enter_context(model.open_for(found))
        progress = stack.enter_context(bars(unit=""))
        result = run_audit(
            found, query_files, encoder=encoder, folder=cache_folder() / "tuning", k=k, sample=sample, progress=progress
        )
    show(result, _audit_lines(result))


def _audit_lines(found: Audited) -> Iterator[str]:
    yield f"{found.collection}: {found.passages} of {found.in_collection} passages asked for; recall@{found.k}\n"
    yield "language  queries  calibrated            plain                 folded in"
    for one in found.languages:
        folded = "yes" if one.folded else "no"
        yield (f"{one.lang:8s}  {one.queries:7d}  {_audit_words(one.calibrated)}  {_audit_words(one.plain)}  {folded}")
    few = ", ".join(found.lost[:_SHOWN]) + (" …" if len(found.lost) > _SHOWN else "")
    yield f"\nfound by no language: {len(found.lost)} passages" + (f" ({few})" if found.lost else "")
    if any(one.folded for one in found.languages):
        yield "note: queries of the languages marked yes are folded in; these were made to find their passages."
    yield "note: an estimate without labels ranks languages and says nothing about α; `xqg-vdb tune` does."
    if found.strangers:
        ids = ", ".join(found.first_strangers)
        yield f"note: {found.strangers} query records are of no passage of the collection ({ids})"


def _audit_words(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


# `xqg-vdb tune`.

_NO_LABELS = (
    "tune needs --questions and --qrels: write down questions of your users (a hundred or more; lines of "
    '{"id": …, "text": …, "lang": …}) and which passage answers each (lines of `QUESTION 0 PASSAGE 1`), or keep the '
    "default recipe: xqg-vdb load CORPUS NAME --queries FILE"
)


@command(
    example="xqg-vdb tune corpus.jsonl --queries queries.jsonl \\\n    --questions questions.jsonl --qrels qrels.txt"
)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--queries",
    "query_files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Generated queries; repeatable.",
)
@model_options
@click.option("--questions", type=click.Path(path_type=Path), help="Your users' questions, a hundred or more.")
@click.option("--qrels", type=click.Path(path_type=Path), help="Which passages answer --questions (TREC or BEIR).")
@click.option("--build", type=click.Path(path_type=Path), help="Take vectors from this folder of `load --build`.")
@click.option(
    "--passage-calibration",
    type=click.FloatRange(min=0, max=10),
    default=0.0,
    show_default=True,
    help="λ that the load shall use for the passages, of a corpus in several languages.",
)
@click.option("--metric", "metric_name", default="R@10", show_default=True, help="R@k, MRR@k, nDCG@k or MAP@k.")
@click.option("--sample", type=click.IntRange(min=10), default=2000, show_default=True, help="Passages to tune on.")
@json_option
def tune(
    corpus: Path,
    query_files: tuple[Path, ...],
    model: Model,
    questions: Path | None,
    qrels: Path | None,
    build: Path | None,
    passage_calibration: float,
    metric_name: str,
    sample: int,
) -> None:
    """Choose the recipe for CORPUS: α, λ, pooling, shrinkage and languages.

    Needs --questions, and in --qrels which passages answer them. Half of the questions choose, the other half report,
    once. What was encoded is kept: the same command again takes seconds.
    """
    if questions is None or qrels is None:
        raise click.UsageError(_NO_LABELS)
    from xqg_vdb.evaluate.metrics import parse_metrics
    from xqg_vdb.progress import bars
    from xqg_vdb.texts.records import open_lines
    from xqg_vdb.tune.tune import tune as run

    parse_metrics([metric_name])
    for file in (*query_files, questions, qrels):
        open_lines(file)  # what is missing is said before a model is exported
    with model.open() as encoder, bars(unit="") as progress:
        found = run(
            corpus, queries=query_files, questions=questions, qrels=qrels, encoder=encoder, metric=metric_name,
            build=build, passage_calibration=passage_calibration, sample=sample, progress=progress,
        )  # fmt: skip
    command = _load_line(found, corpus, query_files, model, build, passage_calibration)
    record = {**asdict(found), "command": command, "counts": {str(n): v for n, v in found.counts.items()}}
    show(record, [*_tune_lines(found), f"\n{command}"])


def _tune_lines(found: Tuned) -> Iterator[str]:
    n, held = sum(found.questions.values()), sum(found.held_out_questions.values())
    yield (
        f"{found.metric}, macro over {len(found.questions)} languages; {found.passages} passages, {n + held} questions"
    )
    yield f"\nbest α and λ of each pooling, on {n} dev questions"
    for trial in found.trials:
        yield f"  {_tune_words(trial):48s} {trial.value:.3f}"
    yield "α of the chosen      " + "  ".join(f"{alpha:g}: {value:.3f}" for alpha, value in found.alphas[::2])
    yield "λ of the chosen      " + "  ".join(f"{strength:g}: {value:.3f}" for strength, value in found.strengths)
    if found.counts:
        yield "queries a language   " + "  ".join(f"{n}: {value:.3f}" for n, value in found.counts.items())
    if found.without:
        yield "without              " + "  ".join(f"{lang}: {value:.3f}" for lang, value in found.without.items())
    yield f"\nchosen: {_tune_words(found.chosen)}; on {held} held-out questions"
    for name, compared in found.held_out.items():
        one = compared.macro
        yield (
            f"  against {name:11s} {one.baseline:.3f} → {one.system:.3f}   {one.difference:+.3f} "
            f"[{one.interval.low:+.3f}, {one.interval.high:+.3f}]  p = {one.p_permutation:.2g}"
        )
    for note in found.notes:
        yield f"note: {note}"


def _tune_words(choice: Choice) -> str:
    recipe = choice.recipe
    shrunk = f" k={recipe.shrink:g}{' centred' if recipe.center else ''}" if recipe.pool == "shrunk" else ""
    langs = f", languages {' '.join(recipe.query_langs)}" if recipe.query_langs is not None else ""
    return f"{recipe.pool}{shrunk}, α={recipe.alpha:g}, λ={choice.strength:g}{langs}"


def _load_line(
    found: Tuned,
    corpus: Path,
    query_files: tuple[Path, ...],
    model: Model,
    build: Path | None,
    passage_calibration: float,
) -> str:
    queries = [part for file in query_files for part in ("--queries", str(file))]
    kept = [] if build is None else ["--build", str(build)]
    words = [
        "xqg-vdb",
        "load",
        str(corpus),
        "NAME",
        *queries,
        *model.typed(),
        *kept,
        *_recipe_options(found.chosen.recipe),
    ]
    passages = ["--passage-calibration", f"{passage_calibration:g}"] if passage_calibration else []
    return shlex.join([*words, "--calibration", f"{found.chosen.strength:g}", *passages])


def _recipe_options(recipe: Recipe) -> list[str]:
    options = ["--alpha", f"{recipe.alpha:g}", "--pool", recipe.pool]
    if recipe.pool == "shrunk":
        options += ["--shrink", f"{recipe.shrink:g}", *([] if recipe.center else ["--no-center"])]
    return options + [part for lang in recipe.query_langs or () for part in ("--query-langs", lang)]
