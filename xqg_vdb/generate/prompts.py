"""Prompts: what a generator is told. The language is named last, so that everything before it is read once.

In: a passage, a language code. Out: text. This file knows no tokens and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.texts.languages import english_name, question_bank
from xqg_vdb.types import Passage

SEQ2SEQ_TEMPLATE = "Generate a {language} question for this passage: {title} {text}"
"""The prompt of xQG and of the mT5 docTquery models (ielab/xQG4xDR)."""

EXAMPLES = (
    (
        "The Nile is a major river in north-eastern Africa. It flows north into the Mediterranean Sea. It is about "
        "6,650 kilometres long, and its drainage basin covers eleven countries.",
        ("How long is the Nile?", "How many countries does the drainage basin of the Nile cover?"),
    ),
    (
        "Marie Curie was born in Warsaw in 1867. Together with her husband Pierre she discovered polonium and radium, "
        "and in 1903 she became the first woman to win a Nobel Prize.",
        ("Who discovered radium together with Pierre Curie?", "In which city was Marie Curie born?"),
    ),
    (
        "Coffee is brewed from the roasted seeds of plants of the genus Coffea. The plants were first grown in Yemen "
        "in the 15th century; today Brazil is the largest producer, with about a third of the world's harvest.",
        ("Which country produces the most coffee?", "When was coffee first grown in Yemen?"),
    ),
)
"""Passages with two questions each; the second one is what the direct prompt's language line shows translated."""


@dataclass(frozen=True)
class CausalPrompt:
    """prefix, then `passage` with {title} and {text}, then `ending_part` with {language}.

    stop: texts at which a query ends. max_passage_tokens: longer passages are cut there, the rest of the prompt stays.
    examples: questions shown in the prefix; a generated one that equals one of them is a copy.
    """

    name: str
    prefix: str
    passage: str
    ending_part: str
    stop: tuple[str, ...] = ("\n",)
    max_passage_tokens: int = 384
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The name, and a digest of all its texts."""
        digest = hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        return {"name": self.name, "max_passage_tokens": self.max_passage_tokens, "sha256": digest}

    def passage_parts(self, passage: Passage) -> tuple[str, str]:
        """The text before and after the place where a long passage is cut."""
        before, after = self.passage.split("{text}")
        title = " ".join(passage.title.split())
        return before.replace("{title}", f"{title}. " if title else "") + " ".join(passage.text.split()), after

    def ending(self, lang: str) -> str:
        """The part that names the language."""
        return self.ending_part.replace("{language}", english_name(lang))

    def cut(self, text: str) -> str:
        """A generated text up to the first stop, without surplus blanks."""
        for stop in self.stop:
            text = text.split(stop)[0]
        return " ".join(text.split())


def english_questions() -> CausalPrompt:
    """A few-shot prompt for base models that asks in English; the first half of `pivot`."""
    return _by_examples("english", shown="Question:", ending="Question:")


def few_shot() -> CausalPrompt:
    """A few-shot prompt for base models that asks in each language directly; the examples' questions are in English."""
    return _by_examples("few-shot", shown="Question in English:", ending="Question in {language}:")


def _by_examples(name: str, *, shown: str, ending: str) -> CausalPrompt:
    """shown: stands before an example's question; ending: before the one to be written."""
    parts = [
        "\n".join([f"Passage: {text}", *(f"{shown} {question}" for question in questions)])
        for text, questions in EXAMPLES
    ]
    return CausalPrompt(
        name=name,
        prefix="\n\n".join(parts) + "\n\n",
        passage="Passage: {title}{text}\n",
        ending_part=ending,
        examples=tuple(question for _, questions in EXAMPLES for question in questions),
    )


def finetuned(*, max_passage_tokens: int = 160) -> CausalPrompt:
    """The prompt that `xqg-vdb train generator` trains decoder-only models on: no example, the language last.

    max_passage_tokens: as in training; the exported folder records it.
    """
    return CausalPrompt(
        name="finetuned",
        prefix="",
        passage="Passage: {title}{text}\n",
        ending_part="Question in {language}:",
        max_passage_tokens=max_passage_tokens,
    )


def translation(lang: str, *, pairs: int = 16) -> CausalPrompt:
    """A few-shot prompt that translates an English question into `lang`, with examples from the shipped question bank.

    Raises DataError when the bank has no questions in `lang`.
    """
    bank, name = question_bank(), english_name(lang)
    if lang not in bank:
        raise DataError(
            f"The pivot prompt has no example questions in {name} ({lang}); it knows {', '.join(sorted(bank))}."
        )
    shown = list(zip(bank["en"], bank[lang], strict=False))[:pairs]
    return CausalPrompt(
        name="translation",
        prefix="".join(f"English: {english}\n{name}: {other}\n\n" for english, other in shown),
        passage="English: {title}{text}\n",
        ending_part="{language}:",
        examples=tuple(other for _, other in shown),
    )


def chat(before: str, after: str) -> CausalPrompt:
    """A zero-shot prompt for instruction-tuned models.

    Before and after are the checkpoint's chat template round a message.
    """
    return CausalPrompt(
        name="chat",
        prefix=before,
        passage="Passage: {title}{text}\n\n",
        ending_part="Write one short question that this passage answers. Answer with the question only. "
        "Write it in {language}." + after,
    )


# Tokens of the prompts: one function each for training and for writing, so that both see the very same prompt.

CHARACTERS_PER_TOKEN = 32  # far above any text's; 1 MB of text takes a second to tokenise, most of it in vain


def passage_tokens(
    encode: Callable[[str], list[int]], prompt: CausalPrompt, passage: Passage, *, room: int
) -> tuple[list[int], bool]:
    """Ids of the passage part, and whether the passage was cut to `room` tokens; what follows it is never cut.

    encode: text to ids without special tokens.
    """
    before, after = prompt.passage_parts(passage)
    ids = encode(before[: room * CHARACTERS_PER_TOKEN])
    return ids[:room] + encode(after), len(ids) > room


def seq2seq_tokens(
    encode: Callable[[str], list[int]], template: str, passage: Passage, *, lang: str, max_input: int, eos: int
) -> tuple[list[int], bool]:
    """Ids of an encoder-decoder's prompt, at most `max_input` with the end token, and whether the passage was cut."""
    text = template.replace("{language}", english_name(lang)).replace("{title}", passage.title.strip())
    text = " ".join(text.replace("{text}", passage.text[: max_input * CHARACTERS_PER_TOKEN]).split())
    ids = encode(text)
    return [*ids[: max_input - 1], eos], len(ids) >= max_input
