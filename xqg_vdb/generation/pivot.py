"""The generator for small base models: questions in English first, each then translated into every language.

A 270M base model asks sensible questions in English and translates short questions, but loses the language, the task or
the passage when it must do all at once. The passage is read once; a language's translation examples once for the whole
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xqg_vdb.generation.causal import ROWS, CausalGenerator, CausalModel, greedily
from xqg_vdb.generation.decoding import samples_of
from xqg_vdb.generation.job import InBatches
from xqg_vdb.generation.prompts import english_questions, translation
from xqg_vdb.generation.sampling import Decoding
from xqg_vdb.types import GeneratedQueries, Passage

PIVOT = "en"
PAIRS = 16  # example translations in the prompt
LONGEST_QUESTION = 64  # tokens of an English question that are translated


class PivotGenerator(InBatches):
    """A `QueryGenerator` for `langs`, in two steps. Chance is in the first step only: translations are greedy."""

    def __init__(self, model: CausalModel, *, langs: Sequence[str], decoding: Decoding) -> None:
        self.model, self.decoding = model, decoding
        self.english = CausalGenerator(model, prompt=english_questions(), decoding=decoding)
        prompts = {lang: translation(lang, pairs=PAIRS) for lang in langs if lang != PIVOT}
        self._translations = {lang: (prompt, model.read(prompt.prefix)) for lang, prompt in prompts.items()}

    def describe(self) -> dict[str, Any]:
        """What the queries depend on."""
        return {**self.english.describe(), "translation": {"prompt": "question bank", "pairs": PAIRS, "mode": "greedy"}}

    def examples(self) -> tuple[str, ...]:
        """Questions in the prompts that must not come back."""
        shown = [prompt.examples for prompt, _ in self._translations.values()]
        return self.english.examples() + tuple(text for several in shown for text in several)

    def counters(self) -> dict[str, float]:
        """Passages cut so far, and seconds per phase."""
        return self.english.counters()

    def batch_size(self, langs: Sequence[str], n: int) -> int:
        """Passages that are taken together: so many that each language has enough questions to translate at once."""
        return max(1, ROWS // samples_of(self.decoding, n))

    def generate_batch(
        self, batch: Sequence[Passage], *, langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """The records of a few passages; attempt: 1 for other English questions."""
        asked = self.english.generate_batch(batch, langs=[PIVOT], n=n, attempt=attempt)
        questions = [record.queries[PIVOT] for record in asked]
        by_lang = {lang: questions if lang == PIVOT else self._translated(questions, lang) for lang in langs}
        return [
            GeneratedQueries(passage.id, {lang: by_lang[lang][i] for lang in langs}) for i, passage in enumerate(batch)
        ]

    def _translated(self, questions: Sequence[tuple[str, ...]], lang: str) -> list[tuple[str, ...]]:
        prompt, prefix = self._translations[lang]
        before, after = prompt.passage.replace("{title}", "").split("{text}")
        flat = [question for several in questions for question in several]
        endings = [
            self.model.ids(before + question)[:LONGEST_QUESTION] + self.model.ids(after + prompt.ending(lang))
            for question in flat
        ]
        settings = greedily(self.decoding)
        tree = self.model.branch(prefix, [], endings, settings=settings)
        texts = self.model.write([tree], [0] * len(flat), samples=1, settings=settings)
        rest = iter(prompt.cut(text) if question else "" for text, question in zip(texts, flat, strict=True))
        return [tuple(next(rest) for _ in several) for several in questions]
