"""BM25 on the sparse side: texts into token weights, by the embedded engine's own model, for either store.

A document's weight of a token is BM25's part for the term's frequency; the engine multiplies by the inverse document
frequency of its own points when it searches (`idf` modifier).

A server can make such vectors itself (`models.Document(model="qdrant/bm25")`) from 1.15 on, where inference is switched
on. Local ones are the same numbers on both stores, need nothing of a server, and cost 0.5 ms a passage.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal

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
        self._model = _model(settings, k=settings.k, b=settings.b, avg_len=settings.avg_len)
        self._prepared = _PREPARED[settings.words]

    def document(self, passage: Passage) -> SparseVector:
        """tf·(k + 1) / (tf + k·(1 - b + b·len/avg_len)) per token of title and text."""
        weights = self._model.embed_document(self._prepared(passage.title_and_text))
        return sparse_vector(weights.indices, weights.values)

    def question(self, text: str) -> SparseVector:
        """1 per different token; none for a text without tokens."""
        weights = self._model.embed_query(self._prepared(text))
        return sparse_vector(weights.indices, weights.values)


def split_words(text: str) -> str:
    """The words of a text with a blank between them: lower case, digits of any script as 0 to 9, spellings made one.

    As `third_words`; besides, what is written in one piece or in two is found either way: e-mail is e, mail and email,
    5km is 5, km and 5km, 1 234 and 1.234 also 1234, a word that a line break cuts also whole. U.S.A. is usa, C++ also
    cplusplus, an emoji a word; Amharic's letters of one sound, Hindi's signs for one nasal, Romanian's ş and ș are one.
    """
    folded = _fold(_WITHIN.sub("-", text)).replace("เเ", "แ")
    # also letter by letter where they are two: "it" of I.T. may be a stop word
    folded = _INITIALS.sub(lambda u: re.sub("[. ]", "", u[0]) + f" {u[0]}".replace(".", " ") * (len(u[0]) == 3), folded)
    folded = _NASAL.sub("ं", folded)
    folded = _SIGNED.sub(lambda found: f"{found[1]} {found[1]}{_SPOKEN[found[2]]} ", folded)
    folded = _GROUPS.sub(lambda found: f"{re.sub(r'[. ]', '', found[0])} {found[0]}", folded)
    return " ".join(map(_forms, _pairs(folded.translate(_PIECES)).split()))


@lru_cache(1 << 14)
def _forms(word: str) -> str:
    """What stands between hyphens and apostrophes, then all of it at once; a number and its unit in pieces, too."""
    parts = [part for part in word.split("-") if part]
    units = [unit for part in parts if (found := _UNIT.fullmatch(part)) for unit in found.groups()]
    whole = "".join(parts)
    joined = len(parts) > 1 and "--" not in word.strip("-") and not whole.isdigit()
    return " ".join([*parts, *units, *([whole] if joined else [])])


def third_words(text: str) -> str:
    """The words as the third rule has them.

    1,234 is 1234; letters are without the points of Hebrew and the accents of Greek, dotless ı is i, ё is е, œ is oe,
    apostrophes are one, a mark such as ™ is none.
    Otherwise as `second_words`.
    """
    return second_words(_fold(text))


def _fold(text: str) -> str:
    text = _THOUSANDS.sub("", text).replace("´", "'")  # NFKC makes a blank and an accent of it
    return unicodedata.normalize("NFKC", text).lower().translate(_FOLDED)


def second_words(text: str) -> str:
    """The words as the second rule has them.

    Invisible characters go, ß is ss, Arabic letters that keyboards mix are one (Lucene's ArabicNormalizer and
    PersianNormalizer). Scripts without blanks, and Hangul with its endings, become overlapping pairs (Lucene's
    CJKBigramFilter): a question then finds them whatever language a dictionary would take its few signs for.
    """
    return _pairs(unicodedata.normalize("NFKC", text).lower().translate(_LETTERS))


def _pairs(text: str) -> str:
    plain = unicodedata.normalize("NFC", text)
    return _RUN.sub(lambda run: f" {' '.join(run[0][i : i + 2] for i in range(max(len(run[0]) - 1, 1)))} ", plain)


class _Letters(dict[int, str | None]):
    """What becomes of a character; asked once for each that occurs (`str.translate`)."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "Nd":
            value: str | None = str(unicodedata.digit(character))
        elif kind == "Cf":
            value = None
        else:
            value = character if kind[0] in "LMN" else " "
        self[code] = value
        return value


_ARABIC = dict.fromkeys([*range(0x064B, 0x0653), 0x0670, 0x0640]) | {  # vowel signs and the letter stretcher
    ord(written): meant
    for group, meant in [("أإآٱ", "ا"), ("یىے", "ي"), ("ک", "ك"), ("ةۀەہھ", "ه")]
    for written in group
}
_LETTERS = _Letters(_ARABIC | {ord("ß"): "ss", 0x0307: None})  # 0307: what `lower` leaves of İ
_WITHOUT_INK = [0x034F, 0x115F, 0x1160, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
_POINTS = [*range(0x0591, 0x05BE), 0x05BF, 0x05C1, 0x05C2, 0x05C4, 0x05C5, 0x05C7, 0x0654, 0x0332, 0x0335, 0x0336]
_FOLDED = dict.fromkeys(_WITHOUT_INK + _POINTS) | str.maketrans("άέήίόύώϊϋΐΰςıёʼʻ՚ڪ", "αεηιουωιυιυσiе'''ك")
_FOLDED |= dict(zip(map(ord, "œæൺൻർൽൾൿ"), ["oe", "ae", "ണ്", "ന്", "ര്", "ല്", "ള്", "ക്"], strict=True))
_FOLDED |= {sign: unicodedata.normalize("NFD", chr(sign))[0] for sign in range(0x1F00, 0x1FFD)}  # old Greek
_THOUSANDS = re.compile(
    r"[™℠]|(?<=\d)(?:[,'’\u00a0\u2009\u202f\u066c，](?=\d{3}(?!\d))(?<!\d{4}.)|,(?=(?:\d\d,)+\d{3}(?!\d)))"
)
_ONE_SOUND = [(0x1210, 0x1200), (0x1280, 0x1200), (0x1220, 0x1230), (0x12D0, 0x12A0), (0x1340, 0x1338)]  # Amharic's
_PIECES = _Letters(_LETTERS | dict.fromkeys(map(ord, "-‐'’‘`׳&·"), "-"))
_PIECES.update({sign: f" {chr(sign)} " for sign in [*range(0x2600, 0x27C0), *range(0x1F000, 0x1FB00)]})  # emoji
_PIECES.update({sign: chr(sign) for sign in range(0x1F1E6, 0x1F200)})  # flags are two of these
_PIECES.update(dict.fromkeys([*range(0x1F3FB, 0x1F400), 0x20E3, 0x093C]))  # colours of skin, keys, nukta
_PIECES.update({sign + row: chr(meant + row) for sign, meant in _ONE_SOUND for row in range(7)})
_PIECES.update(zip(map(ord, "ሃሓኃኣዓșțँ"), "ሀሀሀአአşţं", strict=True))
_WITHIN = re.compile(r"[-‐\xad](?<=\w.)[ \t]*\r?\n\s*(?=\w)|[\"״](?<=[א-ת].)(?=[א-ת])")
_NASAL = re.compile("[ङञणनम]्(?=[क-म])")
_INITIALS = re.compile(r"(?<!\w)[^\W\d_](?:\.(?: (?=.\.))?[^\W\d_](?![\w\u0900-\u0dff]))+")
_GROUPS = re.compile(r"\d(?<!0)(?<![\d.,].)\d{0,2}([. ])\d{3}(?:\1\d{3})*(?!\1?\d)")
_SIGNED = re.compile(r"(?<![^\W_])([^\W\d_]+)(\+\+|[+#♯](?!\w))")
_SPOKEN = {"+": "plus", "++": "plusplus", "#": "sharp", "♯": "sharp"}
_UNIT = re.compile(r"(\d+)(\D+)")
_RUN = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003134f\u3005]+|[\u3041-\u3096\u309d\u309e]+"
    "|[\u30a1-\u30fe]+|[\uac00-\ud7a3]+|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+|[\U0001f1e6-\U0001f1ff]+"
)
"""Han, hiragana, katakana, Hangul; Thai and Lao, Burmese, Khmer; flags."""

WORDS: Literal[4] = 4
"""How a new collection finds words. 1: the engine's own dictionaries, which drop every number."""
_PREPARED: dict[int, Callable[[str], str]] = {
    1: partial(unicodedata.normalize, "NFC"),
    2: second_words,
    3: third_words,
    WORDS: split_words,
}


def settings_of(sample: Sequence[Passage], hybrid: Hybrid) -> Bm25Settings:
    """The settings for a corpus that begins with `sample`."""
    if hybrid.lang is not None:
        check_language(hybrid.lang)
    if not (lang := hybrid.lang):  # the one language of nine passages in ten, where there are stop words for it
        counted = Counter(passage.lang.split("-", 1)[0] for passage in sample)
        lang, count = counted.most_common(1)[0] if counted else (UNKNOWN_LANGUAGE, 0)
        enough = lang != UNKNOWN_LANGUAGE and count >= _ENOUGH_SHARE * len(sample)
        lang = lang if enough and _is_known(lang) else NO_LANGUAGE
    settings = Bm25Settings(lang=lang, words=WORDS)
    counting = _model(settings, k=_COUNTING_K, b=0.0, avg_len=1.0)
    lengths = [sum(counting.embed_document(split_words(passage.title_and_text)).values) for passage in sample]
    average = sum(lengths) / len(lengths) if lengths else 0.0
    return replace(settings, avg_len=max(round(average, 1), 1.0))


def check_language(lang: str) -> None:
    """Raise DataError when there are neither stop words nor a stemmer for a language; `none` is one here."""
    if not _is_known(lang):
        raise DataError(f"BM25 has neither a stemmer nor stop words for {lang!r}; use {NO_LANGUAGE!r}.")


def _is_known(lang: str) -> bool:
    try:
        _model(Bm25Settings(lang), k=1.2, b=0.75, avg_len=1.0)
    except ValueError:
        return False
    return True


def _model(settings: Bm25Settings, *, k: float, b: float, avg_len: float) -> edge.Bm25:
    tokens = edge.TokenizerType.Multilingual if settings.words == 1 else edge.TokenizerType.Whitespace
    if settings.lang != NO_LANGUAGE:
        return edge.Bm25(edge.Bm25Config(k=k, b=b, avg_len=avg_len, tokenizer=tokens, language=settings.lang))
    # without these two it would take English
    off, nothing = edge.DisabledStemmer(), edge.StopwordsSet(languages=set(), custom=set())
    return edge.Bm25(edge.Bm25Config(k=k, b=b, avg_len=avg_len, tokenizer=tokens, stemmer=off, stopwords=nothing))
