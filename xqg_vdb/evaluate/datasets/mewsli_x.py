"""Mewsli-X of XTREME-R: link a mention in one of 11 languages to its entity's description (Ruder et al. 2021).

Files as google-research's `get-mewsli-x.sh` makes them, under `mewsli-x/` (or XTREME's `mewslix/`):
`wikinews_mentions-{dev|test}.jsonl` {context {text, sentence_spans, language, …}, mentions [{example_id, mention_span,
entity_id}]} and `candidate_set_entities.jsonl` {entity_id, title, description, description_language, sentence_spans}.
Texts are those of XTREME-R's baseline (`third_party/utils_mewslix.py`). One gold entity, so its mAP@20 is MRR@20.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from xqg_vdb.evaluate.datasets.task import Reread, RetrievalTask, find_file, read_rows
from xqg_vdb.texts.languages import normalize
from xqg_vdb.types import Passage, Question

_SOURCE = "https://github.com/google-research/google-research (dense_representations_for_entity_retrieval/mel)"
_FOLDERS = ("mewsli-x", "mewslix")
_BRACES = re.compile(r"\{(.*?)\}")


def read_mewsli_x(data_dir: Path, *, split: str = "test") -> RetrievalTask:
    """Read mentions and candidates; the candidates (about a million) are streamed.

    A mention that crosses a sentence boundary, on which the baseline stops, is skipped and counted.
    Raises DataError when a file is missing or malformed.
    """
    mentions = find_file(data_dir, *(f"{f}/wikinews_mentions-{split}.jsonl" for f in _FOLDERS), source=_SOURCE)
    entities = find_file(data_dir, *(f"{f}/candidate_set_entities.jsonl" for f in _FOLDERS), source=_SOURCE)
    queries: list[Question] = []
    qrels: dict[str, dict[str, int]] = {}
    skipped = 0
    for mention, text, lang in (
        part for parts in read_rows(mentions, "a Mewsli-X context", _mentions) for part in parts
    ):
        skipped += text is None
        if text is not None:
            queries.append(Question(mention["example_id"], text, lang))
            qrels[mention["example_id"]] = {mention["entity_id"]: 1}
    return RetrievalTask(
        name=f"mewsli-x-{split}",
        passages=Reread(lambda: read_rows(entities, "a Mewsli-X entity", _entity)),
        queries=tuple(queries),
        qrels=qrels,
        metrics=("mAP@20",),
        notes={"mentions skipped: not within one sentence": skipped},
    )


def _mentions(record: dict[str, Any]) -> list[tuple[dict[str, Any], str | None, str]]:
    context, lang = record["context"], normalize(record["context"]["language"])
    return [(mention, mention_text(context, mention["mention_span"]), lang) for mention in record["mentions"]]


def mention_text(context: dict[str, Any], span: dict[str, Any]) -> str | None:
    """Write a mention as the baseline does: `mention: left { mention } right`, with the sentence around it.

    Braces of the text become parentheses, and new lines and (once) double spaces a space. None when no single sentence
    holds the mention.
    """
    start, end = span["start"], span["end"]
    within = ((s["start"], s["end"]) for s in context["sentence_spans"] if s["start"] <= start < end <= s["end"])
    sentence = next(within, None)
    if sentence is None:
        return None
    text = context["text"]
    left, right = (_BRACES.sub(r"(\1)", part) for part in (text[sentence[0] : start], text[end : sentence[1]]))
    return _one_line(f"{span['text']}: {left} {{ {span['text']} }} {right}")


def _entity(record: dict[str, Any]) -> Passage:
    text = " ".join(record["description"][span["start"] : span["end"]] for span in record["sentence_spans"])
    # the baseline encodes the description alone, so the title is not the passage's
    lang, meta = normalize(record["description_language"]), {"name": record["title"]}
    return Passage(record["entity_id"], _one_line(text), lang=lang, meta=meta)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()).replace("  ", " ").strip()
