"""`xqg-vdb tune`."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import encoder_options, json_option, print_json, say

if TYPE_CHECKING:
    from xqg_vdb.tuning.search import Choice, Tuned
    from xqg_vdb.types import Recipe


_NO_LABELS = (
    "tune needs --questions and --qrels: write down questions of your users (a hundred or more; lines of "
    '{"id": …, "text": …, "lang": …}) and which passage answers each (lines of `QUESTION 0 PASSAGE 1`), or keep the '
    "default recipe: xqg-vdb load CORPUS NAME --queries FILE"
)


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--queries",
    "query_files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Generated queries; repeatable.",
)
@encoder_options
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
    model: str,
    threads: int | None,
    questions: Path | None,
    qrels: Path | None,
    build: Path | None,
    passage_calibration: float,
    metric_name: str,
    sample: int,
    as_json: bool,
) -> None:
    """Choose the recipe for CORPUS: α, λ, pooling, shrinkage and languages.

    Needs --questions, and in --qrels which passages answer them. Half of the questions choose, the other half report,
    once. What was encoded is kept: the same command again takes seconds.

    \b
    Example:
      xqg-vdb tune corpus.jsonl --queries queries.jsonl --questions questions.jsonl --qrels qrels.txt
    """  # noqa: D301 - \b is click's
    if questions is None or qrels is None:
        raise click.UsageError(_NO_LABELS)
    from xqg_vdb.encoding import Encoder
    from xqg_vdb.files import open_lines
    from xqg_vdb.metrics import parse_metrics
    from xqg_vdb.model_folder import cache_folder
    from xqg_vdb.models import ensure_encoder
    from xqg_vdb.progress import bars
    from xqg_vdb.tuning.material import labelled, with_calibrated_passages
    from xqg_vdb.tuning.search import choose

    (metric,) = parse_metrics([metric_name])
    for file in (*query_files, questions, qrels):
        open_lines(file)  # what is missing is said before a model is exported
    folder = cache_folder() / "tuning" if build is None else build.with_name(f"{build.name}.tuning")
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(ensure_encoder(model, report=say), threads=threads))
        progress = stack.enter_context(bars(unit=""))
        data = labelled(
            corpus, query_files, questions=questions, qrels=qrels, encoder=encoder, build=build, folder=folder,
            sample=sample, progress=progress,
        )  # fmt: skip
        data = with_calibrated_passages(data, corpus, strength=passage_calibration, build=build, progress=progress)
        found = choose(data, metric=metric, progress=progress)
    command = _load_line(found, corpus, query_files, model, build, passage_calibration)
    if as_json:
        print_json({**asdict(found), "command": command, "counts": {str(n): v for n, v in found.counts.items()}})
        return
    _show(found)
    click.echo(f"\n{command}")


def _show(found: Tuned) -> None:
    n, held = sum(found.questions.values()), sum(found.held_out_questions.values())
    click.echo(
        f"{found.metric}, macro over {len(found.questions)} languages; {found.passages} passages, {n + held} questions"
    )
    click.echo(f"\nbest α and λ of each pooling, on {n} dev questions")
    for trial in found.trials:
        click.echo(f"  {_words(trial):48s} {trial.value:.3f}")
    click.echo("α of the chosen      " + "  ".join(f"{alpha:g}: {value:.3f}" for alpha, value in found.alphas[::2]))
    click.echo("λ of the chosen      " + "  ".join(f"{strength:g}: {value:.3f}" for strength, value in found.strengths))
    if found.counts:
        click.echo("queries a language   " + "  ".join(f"{n}: {value:.3f}" for n, value in found.counts.items()))
    if found.without:
        click.echo("without              " + "  ".join(f"{lang}: {value:.3f}" for lang, value in found.without.items()))
    click.echo(f"\nchosen: {_words(found.chosen)}; on {held} held-out questions")
    for name, compared in found.held_out.items():
        one = compared.macro
        click.echo(
            f"  against {name:11s} {one.baseline:.3f} → {one.system:.3f}   {one.difference:+.3f} "
            f"[{one.interval.low:+.3f}, {one.interval.high:+.3f}]  p = {one.p_permutation:.2g}"
        )
    for note in found.notes:
        click.echo(f"note: {note}")


def _words(choice: Choice) -> str:
    recipe = choice.recipe
    shrunk = f" k={recipe.shrink:g}{' centred' if recipe.center else ''}" if recipe.pool == "shrunk" else ""
    langs = f", languages {' '.join(recipe.langs)}" if recipe.langs is not None else ""
    return f"{recipe.pool}{shrunk}, α={recipe.alpha:g}, λ={choice.strength:g}{langs}"


def _load_line(
    found: Tuned,
    corpus: Path,
    query_files: tuple[Path, ...],
    model: str,
    build: Path | None,
    passage_calibration: float,
) -> str:
    queries = [part for file in query_files for part in ("--queries", str(file))]
    by = [] if model == "starter" else ["--encoder", model]
    kept = [] if build is None else ["--build", str(build)]
    words = ["xqg-vdb", "load", str(corpus), "NAME", *queries, *by, *kept, *_recipe_options(found.chosen.recipe)]
    passages = ["--passage-calibration", f"{passage_calibration:g}"] if passage_calibration else []
    return shlex.join([*words, "--calibration", f"{found.chosen.strength:g}", *passages])


def _recipe_options(recipe: Recipe) -> list[str]:
    options = ["--alpha", f"{recipe.alpha:g}", "--pool", recipe.pool]
    if recipe.pool == "shrunk":
        options += ["--shrink", f"{recipe.shrink:g}", *([] if recipe.center else ["--no-center"])]
    return options + [part for lang in recipe.langs or () for part in ("--lang", lang)]
