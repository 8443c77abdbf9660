"""`xqg-vdb demo`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
import orjson

from xqg_vdb.cli.options import PATH, Model, command, say, show
from xqg_vdb.store.operations import Store
from xqg_vdb.texts.corpus import read_questions, sample_corpus
from xqg_vdb.types import Hit, Question, Recipe, Search

if TYPE_CHECKING:
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.retriever import Retriever

SYSTEMS = ("plain", "calibrated", "calibrated + xQG")


@command(example="xqg-vdb demo")
@click.option("--path", metavar="DIR", type=PATH, default="./xqg-data", show_default=True, help="For the collections.")
def demo(path: Path) -> None:
    """Run the whole flow on the sample corpus with a real multilingual encoder, and show what it gains.

    Makes the starter encoder (once, some seconds), loads 60 passages in six languages plain and with generated
    queries in ten languages, and asks 600 held-out questions.
    """
    from xqg_vdb.store import open_store

    with closing(open_store(path)) as store, Model().open() as encoder:
        questions, found, passages = _asked(encoder, store, path / "demo-vectors")
    records = (orjson.loads(line) for line in sample_corpus().questions.read_bytes().splitlines() if line)
    answers = {record["id"]: record["passage"] for record in records}
    right = {name: {q.id: hits[q.id].id == answers[q.id] for q in questions} for name, hits in found.items()}
    recall = {
        lang: {name: fmean([right[name][q.id] for q in questions if q.lang == lang]) for name in SYSTEMS}
        for lang in sorted({str(question.lang) for question in questions})
    }
    macro = {name: fmean([row[name] for row in recall.values()]) for name in SYSTEMS}
    result = {"recall": recall, "macro": macro, "questions": len(questions), "passages": passages, "example": None}
    won = [q for q in questions if [right[name][q.id] for name in SYSTEMS] == [False, True, True]]
    example = [(won[0], {name: found[name][won[0].id] for name in SYSTEMS})] if won else []
    show(result, _demo_lines(result, example, path))


def _asked(encoder: Encoder, store: Store, build: Path) -> tuple[list[Question], dict[str, dict[str, Hit]], int]:
    """Load the sample twice (with one build: encoded once), and ask every system every question."""
    from xqg_vdb.index.load import LoadOptions, load
    from xqg_vdb.search.retriever import Retriever

    sample, options = sample_corpus(), LoadOptions(build=build)
    say("loading 60 passages, plain")
    plain = load(
        sample.corpus, "demo-plain", encoder=encoder, queries=sample.queries, recipe=Recipe(alpha=0.0), store=store,
        options=options,
    ).collection  # fmt: skip
    say("loading them again with their queries folded in (nothing is encoded twice)")
    fused = load(
        sample.corpus, "demo", encoder=encoder, queries=sample.queries, store=store, options=options
    ).collection
    questions = read_questions(sample.questions)
    say(f"asking {len(questions)} held-out questions in ten languages")

    def first(retriever: Retriever) -> dict[str, Hit]:
        return {answer.question.id: answer.hits[0] for answer in retriever.run(questions, Search(1))}

    retrievers = (Retriever(encoder, plain, calibration=0.0), Retriever(encoder, plain), Retriever(encoder, fused))
    return questions, dict(zip(SYSTEMS, map(first, retrievers), strict=True)), plain.count()


def _demo_lines(record: dict[str, Any], example: list[tuple[Question, dict[str, Hit]]], path: Path) -> Iterator[str]:
    from xqg_vdb.texts.languages import english_name

    rows = {english_name(lang): row for lang, row in record["recall"].items()}
    yield f"\nRecall@1 of {record['questions']} held-out questions over {record['passages']} passages\n"
    yield f"{'question in':12s}" + "".join(f"{name:>18s}" for name in SYSTEMS)
    for name, row in rows.items():
        yield f"{name:12s}" + "".join(f"{row[system]:18.2f}" for system in SYSTEMS)
    yield f"{'mean':12s}" + "".join(f"{record['macro'][system]:18.3f}" for system in SYSTEMS)
    for question, hits in example:
        yield f"\n{english_name(str(question.lang))}: {question.text}"
        for system in SYSTEMS:
            yield f"  {system:17s} → {hits[system].title} [{hits[system].lang}]"
    say("\nNext:")
    for arguments in (["search", "demo", "Mto Nile una urefu gani?", "-k", "3"], ["info", "demo"]):
        say("  " + shlex.join(["xqg-vdb", *arguments, "--path", str(path)]))
    say(f"  xqg-vdb serve --path {shlex.quote(str(path))}  # a page to try both on; extra serve")
    say("  xqg-vdb load --help")
