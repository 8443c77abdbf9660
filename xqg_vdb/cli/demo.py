"""`xqg-vdb demo`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from xqg_vdb.cli.options import Model, json_option, print_json, say
from xqg_vdb.texts.corpus import read_questions, sample_corpus
from xqg_vdb.types import Hit, Question, Recipe, Search, VectorStore

if TYPE_CHECKING:
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.retriever import Retriever

# The whole flow on the sample corpus that ships with the package: load it plain and with xQG, ask held-out questions.

SYSTEMS = ("plain", "calibrated", "calibrated + xQG")
PLAIN, FUSED = "demo-plain", "demo"


@dataclass(frozen=True)
class DemoResult:
    """Recall at 1 per language and system, its macro mean, and an example that the plain system misses."""

    recall: dict[str, dict[str, float]]
    macro: dict[str, float]
    questions: int
    passages: int
    example: tuple[str, str, dict[str, Hit]] | None


def run_demo(encoder: Encoder, store: VectorStore, *, build: Path, report: Callable[[str], None]) -> DemoResult:
    """Load the sample twice (one build folder, so the passages are encoded once), ask, and count."""
    from xqg_vdb.index.load import LoadOptions, load
    from xqg_vdb.search.retriever import Retriever

    sample = sample_corpus()
    report("loading 60 passages, plain")
    no_queries = Recipe(alpha=0.0)
    options = LoadOptions(build=build)
    plain = load(
        sample.corpus, PLAIN, encoder=encoder, queries=sample.queries, recipe=no_queries, store=store, options=options
    ).collection
    report("loading them again with their queries folded in (nothing is encoded twice)")
    fused = load(sample.corpus, FUSED, encoder=encoder, queries=sample.queries, store=store, options=options).collection
    questions = read_questions(sample.questions)
    answers = _relevant(sample.questions)
    report(f"asking {len(questions)} held-out questions in ten languages")
    found = {
        "plain": _ask(Retriever(encoder, plain, calibration=0.0), questions),
        "calibrated": _ask(Retriever(encoder, plain), questions),
        "calibrated + xQG": _ask(Retriever(encoder, fused), questions),
    }
    langs = sorted({str(question.lang) for question in questions})
    recall = {
        lang: {name: _recall(hits, [q for q in questions if q.lang == lang], answers) for name, hits in found.items()}
        for lang in langs
    }
    macro = {name: sum(row[name] for row in recall.values()) / len(recall) for name in SYSTEMS}
    return DemoResult(recall, macro, len(questions), plain.count(), _example(questions, answers, found))


def _ask(retriever: Retriever, questions: list[Question]) -> dict[str, Hit]:
    return {answer.question.id: answer.hits[0] for answer in retriever.run(questions, Search(1))}


def _relevant(path: Path) -> dict[str, str]:
    records = (orjson.loads(line) for line in path.read_bytes().splitlines() if line)
    return {record["id"]: record["passage"] for record in records}


def _recall(hits: dict[str, Hit], questions: list[Question], answers: dict[str, str]) -> float:
    return sum(hits[question.id].id == answers[question.id] for question in questions) / len(questions)


def _example(
    questions: list[Question], answers: dict[str, str], found: dict[str, dict[str, Hit]]
) -> tuple[str, str, dict[str, Hit]] | None:
    for question in questions:
        hits = {name: found[name][question.id] for name in SYSTEMS}
        right = [hits[name].id == answers[question.id] for name in SYSTEMS]
        if right == [False, True, True]:
            return question.text, str(question.lang), hits
    return None


@click.command()
@click.option(
    "--path",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="./xqg-data",
    show_default=True,
    help="Where the collections go.",
)
@json_option
def demo(path: Path, as_json: bool) -> None:
    """Run the whole flow on the sample corpus with a real multilingual encoder, and show what it gains.

    Exports the starter encoder (once, about a minute), loads 60 passages in six languages plain and with generated
    queries in ten languages, and asks 600 held-out questions.

    \b
    Example:
      xqg-vdb demo
    """  # noqa: D301 - \b is click's
    from xqg_vdb.store import open_store

    with closing(open_store(path)) as store, Model().open() as encoder:
        result = run_demo(encoder, store, build=path / "demo-vectors", report=say)
    if as_json:
        print_json({**asdict(result), "example": None})
        return
    _show(result)
    say("\nNext:")
    for arguments in (["search", "demo", "Mto Nile una urefu gani?", "-k", "3"], ["info", "demo"]):
        say("  " + shlex.join(["xqg-vdb", *arguments, "--path", str(path)]))
    say("  xqg-vdb load --help")


def _show(result: DemoResult) -> None:
    from xqg_vdb.texts.languages import english_name

    click.echo(f"\nRecall@1 of {result.questions} held-out questions over {result.passages} passages\n")
    click.echo(f"{'question in':12s}" + "".join(f"{name:>18s}" for name in SYSTEMS))
    for lang, row in result.recall.items():
        click.echo(f"{english_name(lang):12s}" + "".join(f"{row[name]:18.2f}" for name in SYSTEMS))
    click.echo(f"{'mean':12s}" + "".join(f"{result.macro[name]:18.3f}" for name in SYSTEMS))
    if result.example:
        text, lang, hits = result.example
        click.echo(f"\n{english_name(lang)}: {text}")
        for name in SYSTEMS:
            click.echo(f"  {name:17s} → {hits[name].title} [{hits[name].lang}]")
