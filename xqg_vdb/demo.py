"""The whole flow on the sample corpus that ships with the package: load it plain and with xQG, ask held-out questions.

In: an encoder and a store. Out: recall per language of three systems. The corpus has 60 passages in six languages, the
queries are two per passage in ten languages, and the questions are others, one per passage and language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from xqg_vdb.encoding import Encoder
from xqg_vdb.loading import load
from xqg_vdb.questions import read_questions, sample_corpus
from xqg_vdb.retrieval import Retriever
from xqg_vdb.types import Hit, Query, Recipe, VectorStore

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
    sample = sample_corpus()
    report("loading 60 passages, plain")
    no_queries = Recipe(alpha=0.0)
    plain = load(
        sample.corpus, PLAIN, encoder=encoder, queries=sample.queries, recipe=no_queries, store=store, build=build
    )
    report("loading them again with their queries folded in (nothing is encoded twice)")
    fused = load(sample.corpus, FUSED, encoder=encoder, queries=sample.queries, store=store, build=build)
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


def _ask(retriever: Retriever, questions: list[Query]) -> dict[str, Hit]:
    return {answer.query.id: answer.hits[0] for answer in retriever.run(questions, k=1)}


def _relevant(path: Path) -> dict[str, str]:
    records = (orjson.loads(line) for line in path.read_bytes().splitlines() if line)
    return {record["id"]: record["passage"] for record in records}


def _recall(hits: dict[str, Hit], questions: list[Query], answers: dict[str, str]) -> float:
    return sum(hits[question.id].id == answers[question.id] for question in questions) / len(questions)


def _example(
    questions: list[Query], answers: dict[str, str], found: dict[str, dict[str, Hit]]
) -> tuple[str, str, dict[str, Hit]] | None:
    for question in questions:
        hits = {name: found[name][question.id] for name in SYSTEMS}
        right = [hits[name].id == answers[question.id] for name in SYSTEMS]
        if right == [False, True, True]:
            return question.text, str(question.lang), hits
    return None
