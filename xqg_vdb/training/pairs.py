"""Question-passage pairs, the training data of both trainers, and what of them the evaluation must not have seen.

In: records of `pair_files` and `datasets`. Out: `TrainingPair`. This file refuses to know formats, tokens and models.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xqg_vdb.types import Passage


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One question and a passage that answers it.

    lang: the question's language, normalised. negatives: passages that do not answer it. translation: the question in
    English, "" when nobody gave one.
    """

    id: str
    query: str
    lang: str
    positive: Passage
    negatives: tuple[Passage, ...] = ()
    translation: str = ""


@dataclass(frozen=True, slots=True)
class Leakage:
    """What training and evaluation pairs have in common.

    passages: evaluation passages (distinct by content) that are positives of training pairs; pairs: training pairs with
    such a positive; questions: evaluation questions that are training questions too, letter for letter.
    """

    passages: int
    pairs: int
    questions: int
    evaluation_passages: int

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.passages} of {self.evaluation_passages} dev passages are positives of {self.pairs} training pairs, "
            f"{self.questions} dev questions are training questions"
        )


def content_key(passage: Passage) -> str:
    """A digest of title and text; ids are ignored, because they differ from file to file."""
    text = " ".join(passage.title.split()) + "\n" + " ".join(passage.text.split())
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def measure_leakage(train: Sequence[TrainingPair], dev: Sequence[TrainingPair]) -> Leakage:
    """Count the passages and questions that are in both."""
    held_out = {content_key(pair.positive) for pair in dev}
    seen = {content_key(pair.positive) for pair in train}
    questions = {pair.query for pair in train}
    return Leakage(
        passages=len(held_out & seen),
        pairs=sum(content_key(pair.positive) in held_out for pair in train),
        questions=sum(pair.query in questions for pair in dev),
        evaluation_passages=len(held_out),
    )


def without_leaks(train: Sequence[TrainingPair], dev: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Leave out the training pairs whose positive is an evaluation passage or whose question is one of dev's."""
    held_out = {content_key(pair.positive) for pair in dev}
    questions = {pair.query for pair in dev}
    return [p for p in train if content_key(p.positive) not in held_out and p.query not in questions]


def with_translations(pairs: Iterable[TrainingPair]) -> list[TrainingPair]:
    """Each pair, followed by the same pair with its English translation as the question, where there is one."""
    found = []
    for pair in pairs:
        found.append(pair)
        if pair.translation and pair.lang != "en":
            found.append(TrainingPair(f"{pair.id}-en", pair.translation, "en", pair.positive, pair.negatives))
    return found


def translated(pairs: Iterable[TrainingPair]) -> list[TrainingPair]:
    """Each pair with its English translation instead of the question; pairs without one are left out (zero-shot)."""
    return [TrainingPair(p.id, p.translation, "en", p.positive, p.negatives) for p in pairs if p.translation]


def describe_pairs(pairs: Sequence[TrainingPair]) -> dict[str, Any]:
    """Count pairs, passages and languages, and digest all content in order, for model cards and resumed runs."""
    digest = hashlib.sha256()
    for pair in pairs:
        for text in (pair.query, pair.lang, content_key(pair.positive), *map(content_key, pair.negatives)):
            digest.update(text.encode() + b"\0")
    return {
        "pairs": len(pairs),
        "passages": len({content_key(pair.positive) for pair in pairs}),
        "languages": dict(sorted(Counter(pair.lang for pair in pairs).items())),
        "sha256": digest.hexdigest()[:16],
    }
