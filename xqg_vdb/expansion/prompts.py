"""What a model is asked for: four strategies, two kinds of text, and translation.

The paper's own wordings are not published; these are ours. In: a plan, a question, a language. Out: a prompt that ends
in a label, which leads a base model on and tells a chat model what to write. This file knows no model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from xqg_vdb.generation.prompts import EXAMPLES
from xqg_vdb.languages import english_name, normalize
from xqg_vdb.questions import question_bank
from xqg_vdb.types import UNKNOWN_LANGUAGE

Strategy = Literal["zero-shot", "few-shot", "chain-of-thought", "rephrase-and-respond"]
Kind = Literal["pseudo-document", "keywords", "translation"]
Combine = Literal["concat", "mean", "only"]
Order = Literal["direct", "expand-translate", "translate-expand"]

VERSION = 1
"""Of the wordings below; a cached expansion of another version is not used."""

PAIRS = 8  # example translations
LONGEST_QUESTION = 2000  # characters
LABELS = {"pseudo-document": "Passage", "keywords": "Keywords", "translation": "Translation"}

_TASKS = {
    "pseudo-document": "Write a short passage{language} that answers the question.",
    "keywords": "List up to ten keywords{language} that a text with the answer would contain, separated by commas.",
}
_KEYWORDS = (
    "Nile, length, kilometres, river, Mediterranean Sea, drainage basin",
    "radium, polonium, discovery, Marie Curie, Pierre Curie, Nobel Prize",
    "coffee, largest producer, Brazil, harvest, country",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How questions are expanded.

    kind: `pseudo-document` (default), `keywords`, or `translation` alone.
    combine: `concat` searches for question and expansion as one text, `mean` for the mean of their vectors, `only` for
        the expansion alone (HyDE).
    order: `direct` writes the expansion in `lang` at once; the others also translate the question into `lang`, after
        or before it was expanded, and the translation becomes part of the expansion.
    lang: language of the expansion, as a rule that of the passages; None for the question's own.
    max_tokens: of one answer of the model.
    Raises ValueError for what does not go together, DataError for an unknown language.
    """

    strategy: Strategy = "zero-shot"
    kind: Kind = "pseudo-document"
    combine: Combine = "concat"
    order: Order = "direct"
    lang: str | None = None
    max_tokens: int = 96

    def __post_init__(self) -> None:
        for name, allowed in (("strategy", Strategy), ("kind", Kind), ("combine", Combine), ("order", Order)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
        if not 1 <= self.max_tokens <= 1024:
            raise ValueError(f"max_tokens must lie between 1 and 1024, got {self.max_tokens}")
        if self.lang is not None:
            object.__setattr__(self, "lang", normalize(self.lang))
        if self.lang is None and (self.kind == "translation" or self.order != "direct"):
            raise ValueError("a translation needs a language to translate into: give lang")
        if self.kind == "translation" and self.order != "direct":
            raise ValueError(f"the kind translation has nothing to expand: leave order {self.order} out")

    def to_json(self) -> dict[str, Any]:
        """What an expansion depends on, the wordings' version included; how it is combined is not part of it."""
        return {**{key: value for key, value in asdict(self).items() if key != "combine"}, "prompts": VERSION}

    def stops(self, *, base: bool) -> tuple[str, ...]:
        """Where an answer of a base model ends; a chat model ends it itself."""
        if not base:
            return ()
        return ("\n",) if self.strategy in ("zero-shot", "few-shot") else ("\n\n", "Question:")


def expansion_prompt(plan: Plan, question: str, *, lang: str) -> str:
    """The prompt that asks for the plan's kind of text in `lang`; `und` leaves the language to the model."""
    language = "" if lang == UNKNOWN_LANGUAGE else f" in {english_name(lang)}"
    task, label = _TASKS[plan.kind].replace("{language}", language), LABELS[plan.kind]
    asked = f"Question: {one_line(question)}\n"
    if plan.strategy == "chain-of-thought":
        return (
            f"{task} First think step by step about what is asked and what the answer must name; then write a line "
            f"that starts with '{label}:' and holds the result.\n{asked}Reasoning:"
        )
    if plan.strategy == "rephrase-and-respond":
        return (
            f"Rephrase and expand the question, and respond. {task} Start the line with it by '{label}:'.\n"
            f"{asked}Rephrased question:"
        )
    shown = f"{_shots(plan.kind)}" if plan.strategy == "few-shot" else ""
    return f"{task}\n{shown}{asked}{label}:"


def translation_prompt(question: str, *, source: str, target: str, pairs: int = PAIRS) -> str:
    """The prompt that asks for a translation, led on by translated pairs where the question bank has both languages."""
    bank, name = question_bank(), english_name(target)
    other = "Text" if source == UNKNOWN_LANGUAGE else english_name(source)
    known = list(zip(bank.get(source, ()), bank.get(target, ()), strict=False))[:pairs]
    shown = "".join(f"{other}: {a}\n{name}: {b}\n" for a, b in known)
    return f"Translate into {name}. Answer with the translation only.\n{shown}{other}: {one_line(question)}\n{name}:"


def one_line(text: str) -> str:
    """A question as it stands in a prompt: without line breaks, which could pass for parts of the prompt."""
    return " ".join(text.split())[:LONGEST_QUESTION]


def _shots(kind: Kind) -> str:
    texts = [passage for passage, _ in EXAMPLES] if kind == "pseudo-document" else _KEYWORDS
    label = LABELS[kind]
    pairs = zip(EXAMPLES, texts, strict=True)
    return "".join(f"Question: {questions[0]}\n{label}: {text}\n" for (_, questions), text in pairs)
