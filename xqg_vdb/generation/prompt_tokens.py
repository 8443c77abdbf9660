"""Tokens of a causal prompt: one function for training and for writing, so that both see the very same prompt."""

from __future__ import annotations

from collections.abc import Callable

from xqg_vdb.generation.prompts import CausalPrompt
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
