"""LangChain, LlamaIndex and Haystack: thin wrappers round a ready encoder or retriever, a module and an extra for each.

Every module has the same three things: an embedder whose questions are calibrated, for the framework's own Qdrant
store; a retriever that does the whole search; and `language_filter`, which says "only passages in these languages" in
the framework's words. No framework is imported here, so that one does not need the others.
"""

from __future__ import annotations

from typing import Any

from xqg_vdb.search.retriever import QuestionEncoder
from xqg_vdb.types import Hit, Question


def question_vector(encoder: QuestionEncoder, text: str, question_lang: str | None) -> list[float]:
    """The calibrated vector of one question. Raises DataError when it is blank."""
    vector: list[float] = encoder.encode([Question("0", text, question_lang)])[0][0].tolist()
    return vector


def search_options(*given: Any, default: tuple[Any, ...]) -> dict[str, Any]:
    """k, passage_langs, question_lang and where of a search: as a call says, else as its retriever was made."""
    names = ("k", "passage_langs", "question_lang", "where")
    return {
        name: otherwise if value is None else value
        for name, value, otherwise in zip(names, given, default, strict=True)
    }


def metadata_of(hit: Hit) -> dict[str, Any]:
    """What frameworks keep beside a text: the passage's other fields, its language and its title."""
    return {**hit.meta, "lang": hit.lang, "title": hit.title}
