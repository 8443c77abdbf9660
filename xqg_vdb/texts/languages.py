"""Language codes, their English names, detection, and general questions in many of them.

A language has one primary BCP 47 code (`sw`, never `swa`, `swh` or `sw-KE`), so that data, generated queries and
filters meet; `und` when nothing is known.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import cast

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
_NOT_ONE_LANGUAGE = frozenset({"mul", "mis", "zxx", UNKNOWN_LANGUAGE})
_NO_CODES = frozenset({"n/a", "none", "null", "other", "undetermined", "unk", "unknown"})
_WIKIPEDIA = {
    "bat-smg": "sgs",
    "cbk-zam": "cbk",
    "eml": "egl",
    "fiu-vro": "vro",
    "map-bms": "jv",
    "roa-rup": "rup",
    "roa-tara": "nap",
    "simple": "en",
    "zh-classical": "lzh",
}
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

    >>> normalize("swa"), normalize("iw"), normalize("zh-Hans"), normalize("arz")
    ('sw', 'he', 'zh', 'ar')

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


def english_name(code: str) -> str:
    """Return the English name of a language, for prompts and tables: `Swahili` for `sw`. Raises like `normalize`."""
    import langcodes

    primary = normalize(code)
    return "Tagalog" if primary == "tl" else str(langcodes.Language.get(primary).display_name("en"))


def code_of(name: str) -> str:
    """The code of a language that is named in English, or `name` itself."""
    return _spellings().get(name.strip().lower(), name)


def near_matches(text: str, *, limit: int = 3) -> list[str]:
    """Return up to `limit` codes whose code or English name resembles `text`, best first; empty when nothing does."""
    from difflib import get_close_matches

    wanted = text.strip().lower()[:40]
    spellings = _spellings()
    close = get_close_matches(wanted, spellings, n=limit * 2, cutoff=0.75)
    return list(dict.fromkeys(spellings[name] for name in close))[:limit]


def detect(texts: Sequence[str], *, min_confidence: float = MIN_CONFIDENCE) -> list[str]:
    """Guess one code per text, in order; `und` for texts without letters and for guesses below `min_confidence`.

    Macrolanguage members are added up before the best is chosen. About 0.3 ms a question; safe from several threads.
    """
    if not any(_has_letters(text) for text in texts):
        return [UNKNOWN_LANGUAGE] * len(texts)
    rank = _ranker()
    texts = [without_long_blanks(text) for text in texts]
    return [_best(rank, text[:_SAMPLE], min_confidence) if _has_letters(text) else UNKNOWN_LANGUAGE for text in texts]


def without_long_blanks(text: str) -> str:
    """The text with one space for 64 and more characters on end that show nothing: the front of a text decides."""
    return _BLANKS.sub(" ", text)


def question_bank() -> dict[str, tuple[str, ...]]:
    """Read the general questions that ship with the package, by language code."""
    bank: dict[str, tuple[str, ...]] = {}
    folder = files("xqg_vdb").joinpath("data", "questions")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".txt"):
            lines = (line.strip() for line in entry.read_text("utf-8").split("\n"))
            code = normalize(entry.name.removesuffix(".txt"))
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
        language = kept or langcodes.standardize_tag(code, macro=True).split("-", 1)[0]
    except (langcodes.LanguageTagError, ValueError):
        return None
    if language in _NOT_ONE_LANGUAGE:
        return UNKNOWN_LANGUAGE
    if language not in _KEPT and MACROLANGUAGES.get(language) in _FOLDED:
        language = MACROLANGUAGES[language]
    # the code becomes a file name and a vector name: letters only, whatever the data package says
    return language if language.isascii() and language.isalpha() and 2 <= len(language) <= 3 else None


@cache
def _spellings() -> dict[str, str]:
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
