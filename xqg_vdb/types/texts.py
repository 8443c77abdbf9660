"""Texts: what is retrieved, what is asked, what was generated, what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN_LANGUAGE = "und"
"""BCP 47 code of a language that nobody gave and detection was not sure of."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable text. `lang` is a BCP 47 code, `und` when unknown; `meta` holds the user's other fields."""

    id: str
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title_and_text(self) -> str:
        """What is encoded: title, a space, text (the convention of DPR, Tevatron and xQG)."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Query:
    """One question asked of a collection; `lang` is None when it is to be detected."""

    id: str
    text: str
    lang: str | None = None


@dataclass(frozen=True, slots=True)
class GeneratedQueries:
    """The machine-generated queries of one passage: language code -> questions.

    passage_digest: 16 hex digits (`vectors.row_digest` without queries) of the passage that they were generated from;
    empty when unknown.
    """

    id: str
    queries: Mapping[str, tuple[str, ...]]
    passage_digest: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found passage; higher scores are better; ties are ordered by id."""

    id: str
    score: float
    text: str
    title: str = ""
    lang: str = UNKNOWN_LANGUAGE
    meta: Mapping[str, Any] = field(default_factory=dict)
