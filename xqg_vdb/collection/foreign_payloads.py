"""Where other programs keep a passage's text and id in a point's payload, and what exactly they encoded.

In: payloads. Out: texts and ids. Known are the stock LangChain, LlamaIndex and Haystack stores, and ours; for all
others the keys are given. This file refuses to know collections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from ..errors import DataError

LayoutName = Literal["langchain", "llama-index", "haystack", "text", "given"]
_NODE = "_node_content"
_MARKS: tuple[tuple[LayoutName, frozenset[str], str], ...] = (
    ("llama-index", frozenset({_NODE}), "text"),
    ("langchain", frozenset({"page_content"}), "page_content"),
    ("haystack", frozenset({"content", "meta"}), "content"),
    ("text", frozenset({"text"}), "text"),
)
"""Layout, the keys by which it is known, and where its text lies; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class PayloadLayout:
    """Where payloads keep text and id. `haystack` is our own layout as well.

    text_key, id_key: may lead inwards, such as `metadata.doc_id`; id_key None takes the point's id.
    """

    name: LayoutName
    text_key: str
    id_key: str | None = None

    def key(self, point_id: int | str, payload: Mapping[str, Any]) -> str | None:
        """The id by which the query file knows this point; None when it has none."""
        if self.id_key is None:
            return str(point_id)
        found = _at(payload, self.id_key)
        return str(found) if isinstance(found, str | int) else None

    def wordings(self, payload: Mapping[str, Any]) -> tuple[str, ...]:
        """What may have been encoded for this point, the likeliest first; empty when it has no text.

        LlamaIndex puts the metadata before the text; we put the title.
        """
        text = _at(payload, self.text_key)
        node = _node(payload) if self.name == "llama-index" else {}
        text = node.get("text") or text
        if not isinstance(text, str) or not text.strip():
            return ()
        if self.name == "llama-index":
            return _unique(_with_metadata(node, text), text)
        title = _at(payload, "meta.title") if self.name == "haystack" else None
        return _unique(f"{title} {text}", text) if isinstance(title, str) and title else (text,)


def recognised(
    payloads: Sequence[Mapping[str, Any]], *, text_key: str | None = None, id_key: str | None = None
) -> PayloadLayout:
    """The layout that most of the payloads have. Raises DataError, with the keys that there are, for an unknown one."""
    if text_key is not None:
        if not any(isinstance(_at(payload, text_key), str) for payload in payloads):
            raise DataError(f"No payload has a text at {text_key!r}; {_keys(payloads)}.")
        name: LayoutName = next((one for one, _, usual in _MARKS if usual == text_key and one != "text"), "given")
        return PayloadLayout(name, text_key, id_key or _own_id(name, payloads))
    for name, marks, usual in _MARKS:
        if 2 * sum(marks <= payload.keys() for payload in payloads) > len(payloads):
            return PayloadLayout(name, usual, id_key or _own_id(name, payloads))
    raise DataError(
        f"The payloads are of no known layout (LangChain, LlamaIndex, Haystack): name the text's key with --text-key;"
        f" {_keys(payloads)}."
    )


def _own_id(name: LayoutName, payloads: Sequence[Mapping[str, Any]]) -> str | None:
    """Haystack and we keep the document's own id, from which the point's is made."""
    return "id" if name == "haystack" and all("id" in payload for payload in payloads) else None


def _at(payload: Mapping[str, Any], key: str) -> Any:
    """The value under `key`, or inside at its parts."""
    if key in payload:
        return payload[key]
    first, dot, rest = key.partition(".")
    inner = payload.get(first)
    return _at(inner, rest) if dot and isinstance(inner, Mapping) else None


def _node(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node that LlamaIndex keeps as JSON; empty when it is not one."""
    try:
        node = orjson.loads(payload.get(_NODE) or "{}")
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return node if isinstance(node, dict) else {}


def _with_metadata(node: Mapping[str, Any], text: str) -> str:
    """What LlamaIndex encodes: `TextNode.get_content(MetadataMode.EMBED)`. Templates are data: nothing is formatted."""
    metadata, left_out = node.get("metadata"), node.get("excluded_embed_metadata_keys")
    if not isinstance(metadata, dict):
        return text
    hidden = left_out if isinstance(left_out, list) else []
    each = str(node.get("metadata_template", "{key}: {value}"))
    lines = [
        each.replace("{key}", key).replace("{value}", str(value))
        for key, value in metadata.items()
        if key not in hidden
    ]
    head = str(node.get("metadata_separator", "\n")).join(lines).strip()
    whole = str(node.get("text_template", "{metadata_str}\n\n{content}"))
    return whole.replace("{metadata_str}", head).replace("{content}", text).strip() if head else text


def _unique(*wordings: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(wordings))


def _keys(payloads: Sequence[Mapping[str, Any]]) -> str:
    found = sorted({str(key) for payload in payloads for key in payload})
    return f"the payloads have {', '.join(found[:12])}" if found else "the payloads are empty"
