"""Language codes, their English names, detection, and general questions in many of them.

A language has one primary BCP 47 code (`sw`, never `swa`, `swh` or `sw-KE`), so that data, generated queries and
filters meet; `und` when nothing is known. Arabic, Greek, Hindi and Urdu in Latin letters are `ar-Latn`, `el-Latn`,
`hi-Latn` and `ur-Latn`: encoders place them elsewhere.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import cast

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.types import UNKNOWN_LANGUAGE

MIN_CONFIDENCE = 0.3
"""Below it `detect` says `und`. On 2,200 XQuAD questions in 11 languages: 98.8 % right, 0.6 % `und`, 0.6 % wrong."""

_SAMPLE = 300  # characters that decide: 100 % right on XQuAD paragraphs in 11 languages, and the cost is linear
_LOAD_LOCK = threading.Lock()

# Members of these macrolanguages share a script and a written standard, and are what detection confuses
# (zh with wuu, ar with arz): one code for each group. The kept ones are written differently.
_FOLDED = frozenset({"ar", "fa", "no", "uz", "zh"})
_KEPT = frozenset({"hak", "nan", "yue"})
# langcodes prefers fil and ak; data sets, detectors and people who ask for Twi say tl and tw.
_OWN = {"fil": "tl", "fat": "fat", "tw": "tw", "twi": "tw", "pnb": "pnb"}
_ROMANISED = frozenset({"ar", "el", "hi", "ur"})
_ARABIZI = re.compile(r"[a-z]+[2357][a-z]*[a-z2-8]?|[2357][a-z]{3,}")  # 3 for ع, 7 for ح, and so on
_NOT_ONE_LANGUAGE = frozenset({"mul", "mis", "zxx", UNKNOWN_LANGUAGE})
_NO_CODES = frozenset({"n/a", "none", "null", "other", "undetermined", "unk", "unknown", "unspecified", "-", "?"})
_WIKIPEDIA = {
    "bat-smg": "sgs", "cbk-zam": "cbk", "eml": "egl", "fiu-vro": "vro", "map-bms": "jv", "roa-rup": "rup",
    "roa-tara": "nap", "simple": "en", "zh-classical": "lzh",
}  # fmt: skip
"""Names of its editions that are no codes; als is what it is for all others, Albanian (write gsw for Alemannic)."""
# Unicode's blanks, controls and Default_Ignorable_Code_Point; signs of Braille and of music without ink
_NO_INK = (
    r"\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d159"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
SHOWN = re.compile(rf"[^{_NO_INK}]")
_BLANKS = re.compile(rf"[{_NO_INK}]{{64,}}")
_COMMON_WITHOUT_TWO_LETTERS = ("bem", "ceb", "ckb", "gsw", "haw", "hmn", "nso", "pcm", "tl", "yue")


def normalize(code: str | None) -> str:
    """Return the primary-language code that this package uses for `code`; `und` for None, blank, `mul`, `zxx`.

    >>> normalize("swa"), normalize("iw"), normalize("zh-Hans"), normalize("arz"), normalize("hin_Latn")
    ('sw', 'he', 'zh', 'ar', 'hi-Latn')

    Raises DataError when `code` is no language, with the codes that were perhaps meant.
    """
    if code is None:
        return UNKNOWN_LANGUAGE
    if not isinstance(code, str):
        raise DataError(f"A language code such as en or sw must be text, not {code!r:.40}.")
    primary = _primary(code.strip())
    if primary is None:
        near = near_matches(code)
        hint = f"; perhaps {' or '.join(f'{c} ({english_name(c)})' for c in near)}" if near else ""
        raise DataError(f"{code[:40]!r} is not a language code such as en or sw{hint}.")
    return primary


normalized = lru_cache(maxsize=4096)(normalize)  # for the codes of records, of which there are few


def english_name(code: str) -> str:
    """Return the English name of a language, for prompts and tables: `Swahili` for `sw`. Raises like `normalize`."""
    import langcodes

    primary = normalize(code)
    return "Tagalog" if primary == "tl" else str(langcodes.Language.get(primary).display_name("en"))


def near_matches(text: str, *, limit: int = 3) -> list[str]:
    """Return up to `limit` codes whose code or English name resembles `text`, best first; empty when nothing does."""
    from difflib import get_close_matches

    wanted = text.strip().lower()[:40]
    known = spellings()
    close = get_close_matches(wanted, known, n=limit * 2, cutoff=0.75)
    return list(dict.fromkeys(known[name] for name in close))[:limit]


def detect(texts: Sequence[str], *, min_confidence: float = MIN_CONFIDENCE) -> list[str]:
    """Guess one code per text, in order; `und` for texts without letters and for guesses below `min_confidence`.

    Macrolanguage members are added up before the best is chosen. About 0.3 ms a question; safe from several threads.
    """
    if not any(_has_letters(text) for text in texts):
        return [UNKNOWN_LANGUAGE] * len(texts)
    rank = _ranker()
    texts = [without_long_blanks(text)[:_SAMPLE] for text in texts]
    return [
        (_romanised(text) or _best(rank, text, min_confidence)) if _has_letters(text) else UNKNOWN_LANGUAGE
        for text in texts
    ]


def as_written(lang: str, text: str) -> str:
    """`hi-Latn` for a text in Hindi with no other letters than a to z, and so on; `lang` for all others."""
    return f"{lang}-Latn" if lang in _ROMANISED and _is_ascii(text) else lang


def _is_ascii(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and all(map(str.isascii, letters))


@cache
def _romanised_words() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By code: words of questions in Latin letters that hardly another language has, and words that others have too."""
    record = orjson.loads(files("xqg_vdb").joinpath("data", "romanised.json").read_bytes())
    return {code: (frozenset(of["sure"].split()), frozenset(of["shared"].split())) for code, of in record.items()}


def _romanised(text: str) -> str | None:
    """The code of a text that is Arabic, Greek, or Hindi (or Urdu, which reads the same) in Latin letters.

    One word in four must be known, one in three where only one of them is sure.
    """
    if not _is_ascii(text):
        return None
    words, best, most = re.findall(r"[\w']+", text.lower()), None, 1
    for code, (known, shared) in _romanised_words().items():
        arabic = code == "ar-Latn"
        sure = sum(word in known or (arabic and _ARABIZI.fullmatch(word) is not None) for word in words)
        hits = sure + sum(word in shared or (arabic and len(word) > 5 and word.startswith("al")) for word in words)
        if sure and hits > most and hits * (4 if sure > 1 else 3) >= len(words):
            best, most = code, hits
    return best


def without_long_blanks(text: str) -> str:
    """The text with one space for 64 and more characters on end that show nothing: the front of a text decides."""
    return _BLANKS.sub(" ", text)


def question_bank(*, romanised: bool = True) -> dict[str, tuple[str, ...]]:
    """Read the general questions that ship with the package, by code; romanised: also `hi-Latn` and its like."""
    bank: dict[str, tuple[str, ...]] = {}
    folder = files("xqg_vdb").joinpath("data", "questions")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".txt"):
            lines = (line.strip() for line in entry.read_text("utf-8").split("\n"))
            code = normalize(entry.name.removesuffix(".txt"))
            if "-" in code and not romanised:
                continue
            bank[code] = bank.get(code, ()) + tuple(line for line in lines if line and not line.startswith("#"))
    return bank


def _has_letters(text: str) -> bool:
    return any(character.isalpha() for character in without_long_blanks(text)[:_SAMPLE])


def _best(rank: Callable[[str], list[tuple[str, float]]], text: str, min_confidence: float) -> str:
    totals: dict[str, float] = {}
    for label, probability in rank(text):
        code = _primary(label) or UNKNOWN_LANGUAGE
        totals[code] = totals.get(code, 0.0) + probability
    best = max(totals, key=totals.__getitem__)
    return best if totals[best] >= min_confidence else UNKNOWN_LANGUAGE


@lru_cache(maxsize=4096)
def _primary(code: str) -> str | None:
    """Return the normalised code, or None when `code` is not one."""
    import langcodes
    from langcodes.data_dicts import MACROLANGUAGES

    if not code or code.lower() in _NO_CODES:
        return UNKNOWN_LANGUAGE
    code = _WIKIPEDIA.get(code.lower().replace("_", "-").removesuffix("wiki"), code)
    try:
        if not langcodes.tag_is_valid(code):
            return None
        kept = _OWN.get(langcodes.standardize_tag(code).split("-", 1)[0])
        language, *rest = langcodes.standardize_tag(code, macro=True).split("-")
        language = kept or language
    except (langcodes.LanguageTagError, ValueError):
        return None
    if language in _NOT_ONE_LANGUAGE:
        return UNKNOWN_LANGUAGE
    if language not in _KEPT and MACROLANGUAGES.get(language) in _FOLDED:
        language = MACROLANGUAGES[language]
    if language in _ROMANISED and "Latn" in rest:
        return f"{language}-Latn"
    # the code becomes a file name and a vector name: letters only, whatever the data package says
    return language if language.isascii() and language.isalpha() and 2 <= len(language) <= 3 else None


@cache
def spellings() -> dict[str, str]:
    """Map lower-case codes and English names to codes, for the languages with a two-letter code and a few more."""
    from langcodes.data_dicts import LANGUAGE_ALPHA3

    table: dict[str, str] = {}
    for code, alpha3 in [*LANGUAGE_ALPHA3.items(), *((c, c) for c in _COMMON_WITHOUT_TWO_LETTERS)]:
        primary = _primary(code)
        if primary is not None and primary != UNKNOWN_LANGUAGE:
            for spelling in (primary, code, alpha3, english_name(primary).lower()):
                table.setdefault(spelling, primary)
    return table


def _ranker() -> Callable[[str], list[tuple[str, float]]]:
    with _LOAD_LOCK:  # `cache` alone would let two threads load the model twice
        return _load_ranker()


@cache
def _load_ranker() -> Callable[[str], list[tuple[str, float]]]:
    # an identifier of our own: the module-level one is shared with the host program, which may restrict its languages
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return cast(Callable[[str], list[tuple[str, float]]], identifier.rank)
