"""From a model's answer to text worth searching for: no talk about the task, no labels, no loops.

"To answer this question, I will …" is about no passage at all; it harms lexical search most (arXiv 2511.19325), and
pulls dense vectors towards one another. The patterns are English, the language in which models talk about a task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from xqg_vdb.expansion.prompts import LABELS, Kind, Strategy

MOST_WORDS = 160  # more is cut; an encoder reads no more of it, and a loop says nothing new
MOST_KEYWORDS = 12

_THING = r"(?:passage|paragraph|text|document|answer|response|keywords?|translation|list|question|rephrased)"
_META = re.compile(
    r"(?:in order )?to (?:answer|address|respond to|rephrase|expand|translate)\b.{0,80}?\b(?:i|we|you|let)\b"
    r"|(?:first|next|then|now|finally|okay|ok|so|well)?,?\s*(?:i|we)(?:'ll|'d| will| would| need| should| am going"
    r"| have to| must)\b.{0,40}?\b(?:answer|write|rephrase|expand|respond|translate|provide|generate|think|list|break"
    r"|start|explain|identify|consider|look|find|create|give|determine|use)\b"
    r"|let(?:'s| me| us)\s+(?:think|break|first|start|begin|rephrase|expand|answer|see|consider|write|translate)\b"
    rf"|(?:sure|certainly|of course|absolutely|okay|ok|great question)\b[,!.:]*\s*(?:here\b.*)?$"
    rf"|(?:sure|certainly|of course|okay)?[,!.]?\s*here(?: is|'s| are)\b.{{0,60}}?\b{_THING}\b[^.]*[:.]?"
    r"|as an ai\b"
    r"|(?:the|this|your) question (?:is asking|asks|wants|is about|can be|could be|seeks)\b"
    r"|the (?:rephrased|expanded|original) question\b"
    r"|i(?:'m sorry| am sorry| hope| don't know| do not know| cannot| can't)\b"
    r"|(?:step \d+|reasoning)\s*[:.]?\s*$",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?。！？؟।])\s+|(?<=:)\s*\n+|\n+|(?<=[。！？])")
_LABEL = re.compile(  # at the start of a line or a sentence; elsewhere the word belongs to the text
    rf"(?:^|(?<=[.!?:]\s)|(?<=\n))(?:{'|'.join(LABELS.values())}|Reasoning|Answer|Response"
    r"|(?:Rephrased|Expanded) question)"
    r"(?: in [A-Z]\w+)?\s*:\s*",
    re.IGNORECASE,
)
_NEXT_ITEM = re.compile(r"(?<!Rephrased )(?<!Expanded )\bQuestion\s*:")
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+", re.MULTILINE)


def clean(text: str, *, kind: Kind, strategy: Strategy) -> str:
    """The useful part of an answer on one line; empty when nothing is left."""
    text = _LIST_MARK.sub("", re.sub(r"[*#`_]{1,3}(?=\S)|(?<=\S)[*#`]{1,3}", "", text))
    text = _NEXT_ITEM.split(text)[0] if not _NEXT_ITEM.match(text) else ""
    final = re.split(rf"\b{LABELS[kind]}(?: in [A-Z]\w+)?\s*:", text, flags=re.IGNORECASE)
    if strategy == "chain-of-thought" and len(final) > 1:  # what stands before the result is reasoning
        text = final[-1]
    if kind == "keywords":
        return _keywords(_LABEL.sub(" ", text))
    kept = _without_repeats(map(without_meta, filter(None, _SENTENCE.split(_LABEL.sub("\n", text)))))
    return " ".join(" ".join(kept).strip("\"“”«» '").split()[:MOST_WORDS])


def is_meta(sentence: str) -> bool:
    """Whether a sentence is about the task rather than about the question's subject."""
    return _META.match(sentence.strip("\"“”«» '")) is not None


def without_meta(sentence: str) -> str:
    """The sentence, empty when it is meta-text; of "Here is a passage: …" what follows the colon."""
    while sentence and is_meta(sentence):
        sentence = sentence.partition(":")[2].strip()
    return sentence


def _keywords(text: str) -> str:
    parts = re.split(r"[,;،、，\n]+", "\n".join(map(without_meta, text.split("\n"))))
    words = [" ".join(part.strip(" .\"'").split()) for part in parts]
    kept = [word for word in dict.fromkeys(words) if word and not is_meta(word) and len(word.split()) <= 8]
    return ", ".join(kept[:MOST_KEYWORDS])


def _without_repeats(sentences: Iterable[str]) -> list[str]:
    """Each sentence once; none whose words repeat each other more than they say anything."""
    kept: dict[str, str] = {}
    for sentence in sentences:
        words = sentence.casefold().split()
        if words and not (len(words) > 12 and len(set(words)) < len(words) / 3):
            kept.setdefault(" ".join(words), sentence.strip())
    return list(kept.values())
