"""BM25 on the sparse side: texts into token weights, by the embedded engine's own model, for either store.

In: texts and a collection's settings. Out: sparse vectors. A document's weight of a token is BM25's part for the term's
frequency; the engine multiplies by the inverse document frequency of its own points when it searches (`idf` modifier).

A server can make such vectors itself (`models.Document(model="qdrant/bm25")`) from 1.15 on, where inference is switched
on. Local ones are the same numbers on both stores, need nothing of a server, and cost 0.5 ms a passage.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import qdrant_edge as edge

from xqg_vdb.errors import DataError
from xqg_vdb.store.layout import sparse_vector
from xqg_vdb.types import UNKNOWN_LANGUAGE, Bm25Settings, Hybrid, Passage, SparseVector

NO_LANGUAGE = "none"
SAMPLE = 1000
"""Passages from which the language and the average length are taken: the first of the corpus."""

_ENOUGH_SHARE = 0.9
_COUNTING_K = 1e6  # so large that a token's weight is how often it occurs


class WordWriter:
    """Passages and questions into token weights, as a collection's settings say; threads may share one."""

    def __init__(self, settings: Bm25Settings) -> None:
        self._model = _model(settings.lang, k=settings.k, b=settings.b, avg_len=settings.avg_len)

    def document(self, passage: Passage) -> SparseVector:
        """tf·(k + 1) / (tf + k·(1 - b + b·len/avg_len)) per token of title and text."""
        found = self._model.embed_document(_composed(passage.title_and_text))
        return sparse_vector(found.indices, found.values)

    def question(self, text: str) -> SparseVector:
        """1 per different token; none for a text without tokens."""
        found = self._model.embed_query(_composed(text))
        return sparse_vector(found.indices, found.values)


def _composed(text: str) -> str:
    """NFC: a letter with its accent after it would be another token than the same letter in one."""
    return unicodedata.normalize("NFC", text)


def settings_of(sample: Sequence[Passage], hybrid: Hybrid) -> Bm25Settings:
    """The settings for a corpus that begins with `sample`.

    Raises DataError when a language is asked for that has neither stemmer nor stop words.
    """
    if hybrid.lang is not None:
        check_language(hybrid.lang)
    lang = hybrid.lang or _language_of([passage.lang for passage in sample])
    counting = _model(lang, k=_COUNTING_K, b=0.0, avg_len=1.0)
    lengths = [sum(counting.embed_document(_composed(passage.title_and_text)).values) for passage in sample]
    average = sum(lengths) / len(lengths) if lengths else 0.0
    return Bm25Settings(lang=lang, avg_len=max(round(average, 1), 1.0))


def check_language(lang: str) -> None:
    """Raise DataError when there are neither stop words nor a stemmer for a language; `none` is one here."""
    if not _is_known(lang):
        raise DataError(f"BM25 has neither a stemmer nor stop words for {lang!r}; use {NO_LANGUAGE!r}.")


def _is_known(lang: str) -> bool:
    try:
        _model(lang, k=1.2, b=0.75, avg_len=1.0)
    except ValueError:
        return False
    return True


def _language_of(langs: Sequence[str]) -> str:
    """The one language of nine passages in ten, where there are stop words for it; else `none`."""
    counted = Counter(lang.split("-", 1)[0] for lang in langs)
    lang, count = counted.most_common(1)[0] if counted else (UNKNOWN_LANGUAGE, 0)
    return lang if lang != UNKNOWN_LANGUAGE and count >= _ENOUGH_SHARE * len(langs) and _is_known(lang) else NO_LANGUAGE


def _model(lang: str, *, k: float, b: float, avg_len: float) -> edge.Bm25:
    """Words are found in any script, Chinese, Japanese and Thai included, whatever the stemmer."""
    tokens = edge.TokenizerType.Multilingual
    if lang != NO_LANGUAGE:
        return edge.Bm25(edge.Bm25Config(k=k, b=b, avg_len=avg_len, tokenizer=tokens, language=lang))
    # without these two it would take English
    off, nothing = edge.DisabledStemmer(), edge.StopwordsSet(languages=set(), custom=set())
    return edge.Bm25(edge.Bm25Config(k=k, b=b, avg_len=avg_len, tokenizer=tokens, stemmer=off, stopwords=nothing))
