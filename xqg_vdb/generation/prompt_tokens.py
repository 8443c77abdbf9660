"""Tokens of the prompts: one function each for training and for writing, so that both see the very same prompt."""

from __future__ import annotations

from collections.abc import Callable

from xqg_vdb.generation.prompts import CausalPrompt
from xqg_vdb.languages import english_name
from xqg_vdb.types import Passage

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
