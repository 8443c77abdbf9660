"""Which generated queries are good enough: rules about one query. Nothing here generates; `run` tries again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.generate.output import provenance_path, write_provenance
from xqg_vdb.progress import windows
from xqg_vdb.texts.languages import detect, normalize, question_bank
from xqg_vdb.texts.queries import read_queries
from xqg_vdb.texts.tables import write_records
from xqg_vdb.types import UNKNOWN_LANGUAGE, GeneratedQueries, option

_Reason = Literal[
    "empty", "too long", "repetitive", "copied example", "no question", "wrong language", "repeated",
]  # fmt: skip
_Judged = tuple[GeneratedQueries, Mapping[str, list[_Reason]]]
REPLACED = "replaced by a second try"
"""Counted beside the reasons by whoever tries again."""

# question marks of Latin, Arabic, full-width, Greek, Armenian and Ethiopic writing
_MARKS = "?؟？\u037e;՞፧"
_FIRST = "en de nl sv no da fr es pt it ro ca gl lb pl cs sk ru uk bg sr he ar"  # whose questions begin with them
_UNSPACED = frozenset({"zh", "ja", "ko", "th", "lo", "km", "my"})
_LONGEST_SEARCH = 8  # words of a search without a question word, such as "length of the nile"
_STOP = ".!。！।።…"
_LOOP = re.compile(r"(.{2,40}?)\1{3,}|(\S)\2{5,}", re.DOTALL)
_WORD = r"(?!\d+\b)\S+"
_ROUND = re.compile(  # a word stands four times in a row, or a phrase of two to four twice and then begins again
    rf"(?<!\S)(?:({_WORD})(?: \1){{3}}|({_WORD})((?: {_WORD}){{1,3}}) \2\3 \2)(?!\S)"
)
LOOKED_AT = 2000  # passages of a finished file
DETECTED = 100  # of a language's queries in them
_NUMBER = re.compile(r"[\d\s.,:/-]*\d[\d\s.,:/-]*")


@dataclass(frozen=True, slots=True)
class QueryFilter:
    """What a query must be. examples: those of the prompt, which must not come back."""

    max_characters: int = option(200, "Longest query.", least=1)
    skip: tuple[_Reason, ...] = option(
        (), f"A rule of the filter that is not to count: {', '.join(get_args(_Reason))}; repeat it.", metavar="RULE"
    )
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Its settings, for a provenance."""
        return {"max_characters": self.max_characters, "skip": sorted(self.skip)}

    def judge(self, records: Sequence[GeneratedQueries]) -> list[_Judged]:
        """Each record with its good queries (its languages stay, perhaps without any), and why others are not.

        Languages of all records are detected together.
        """
        flat = [text for record in records for texts in record.queries.values() for text in texts]
        detected = iter(detect(flat) if "wrong language" not in self.skip else [UNKNOWN_LANGUAGE] * len(flat))
        return [self._judge_one(record, detected) for record in records]

    def _judge_one(self, record: GeneratedQueries, detected: Iterator[str]) -> _Judged:
        good: dict[str, tuple[str, ...]] = {}
        faults: dict[str, list[_Reason]] = {}
        for lang, texts in record.queries.items():
            seen: set[str] = set()
            for text in texts:
                reasons = self._faults(text, lang, next(detected), seen)
                if reason := next((reason for reason in reasons if reason not in self.skip), None):
                    faults.setdefault(lang, []).append(reason)
                else:
                    good[lang] = (*good.get(lang, ()), text)
                seen.add(_plain(text))
        return GeneratedQueries(record.id, {lang: good.get(lang, ()) for lang in record.queries}), faults

    def _faults(self, text: str, lang: str, detected: str, seen: Set[str]) -> Iterator[_Reason]:
        plain = _plain(text)
        if not any(character.isalpha() for character in text):
            yield "empty"
        if len(text) > self.max_characters:
            yield "too long"
        if _loops(text):
            yield "repetitive"
        if plain in map(_plain, self.examples):
            yield "copied example"
        if not is_question(text, lang):
            yield "no question"
        if detected not in (lang, UNKNOWN_LANGUAGE) and detection_knows(lang):
            yield "wrong language"
        if plain in seen:
            yield "repeated"


def _loops(text: str) -> bool:
    """Whether it says a thing again and again."""
    again = any(not _NUMBER.fullmatch(loop[0]) for loop in _LOOP.finditer(text))
    return again or _ROUND.search(_plain(text)) is not None


def is_question(text: str, lang: str) -> bool:
    """Whether `text` asks or searches: by a mark, a question word, or as a few words that are no whole sentence."""
    marks = _MARKS if lang == "el" else _MARKS.replace(";", "")
    if any(mark in text for mark in marks):
        return True
    known = f"{_question_words().get(lang, '')}|||".casefold().split("|")
    asking, first, copulas, inside = map(str.split, known[:4])
    if lang in _UNSPACED:
        return any(word in text for word in asking) or _is_search(text, lang)
    if not asking and not _marks_questions(lang):
        return True
    words = re.findall(r"[^\s.,;:!¿¡।()\"]+", text.casefold())
    early = words[:2] if lang in _FIRST.split() else words
    if {*early} & {*asking} or {*words[:1]} & {*first, *copulas} or {*words} & {*inside}:
        return True
    return _is_search(text, lang) and (set(words).isdisjoint(copulas) or not set(words).isdisjoint(asking))


def _is_search(text: str, lang: str) -> bool:
    words = len(text) / 3 if lang in _UNSPACED - {"ko"} else len(text.split())
    known = words > 1 or (text.islower() and len(text) > len("nein"))  # "weather"; "Nairobi" is rather an answer
    return known and words <= _LONGEST_SEARCH and text.rstrip()[-1:] not in _STOP


@cache
def _question_words() -> dict[str, str]:
    """By language: its question words, and endings that ask, where a language writes no spaces.

    Behind | what asks as the first word only; behind another | forms of "to be", which elsewhere make a statement; then
    what asks anywhere, where other question words must come first ("le Nil est-il …").
    """
    return dict(orjson.loads(files("xqg_vdb").joinpath("data", "question_words.json").read_bytes()))


@cache
def _marks_questions(lang: str) -> bool:
    known = question_bank().get(lang, ("?",))
    return 2 * sum(any(mark in text for mark in _MARKS) for text in known) > len(known)


@cache
def detection_knows(lang: str) -> bool:
    """Whether language detection recognises most of the shipped questions in `lang`; False when there are none."""
    known = question_bank().get(lang, ())
    return bool(known) and 2 * detect(known).count(normalize(lang)) > len(known)


@lru_cache(4096)
def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w]+", " ", text.casefold()).split())


def reasons_in(judged: Iterable[_Judged]) -> dict[str, int]:
    """How many queries each reason rejected."""
    counts = Counter(str(reason) for _, faults in judged for reasons in faults.values() for reason in reasons)
    return dict(sorted(counts.items()))


def dominant(rejected: Mapping[str, int], kept: int) -> str | None:
    """The rule that rejected more than half of all queries: perhaps it does not fit them."""
    counts = {reason: count for reason, count in rejected.items() if reason != REPLACED}
    made = kept + sum(counts.values())
    return next((reason for reason, count in counts.items() if 2 * count > made), None)


def look(records: Iterable[GeneratedQueries]) -> tuple[dict[str, list[str]], list[str]]:
    """Three examples a language, and in words what speaks against the queries of the first passages."""
    seen = [record.queries for record in islice(records, LOOKED_AT)]
    examples: dict[str, list[str]] = {}
    doubts: list[str] = []
    for lang in dict.fromkeys(lang for queries in seen for lang in queries):
        passages = [queries[lang] for queries in seen if queries.get(lang)]
        counts = Counter(text for texts in passages for text in set(texts))
        examples[lang] = list(dict.fromkeys(texts[0] for texts in passages))[:3]
        most, times = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if times >= 3 and 10 * times > len(passages):
            doubts.append(
                f'{lang}: "{most}" stands under {times} of {len(passages)} passages: it does not tell them apart.'
            )
        if loops := [text for text in counts if _loops(text)]:
            said = (
                f'{len(loops)} of {len(counts)} queries repeat themselves, such as "{loops[0][:80]}": --filter leaves'
            )
            doubts.append(f"{lang}: {said} them out.")
        found = Counter(detect(list(counts)[:DETECTED])) if detection_knows(lang) else Counter([lang])
        if 2 * (found[lang] + found[UNKNOWN_LANGUAGE]) < found.total():
            doubts.append(f"{lang}: most queries are in {found.most_common(1)[0][0]}: the model is not fit for {lang}.")
    return examples, doubts


# Filter a finished query file: by the rules; no second try (there is no generator here).

WINDOW = 256  # records whose languages are detected together


def filter_file(queries: Path, out: Path, *, query_filter: QueryFilter) -> dict[str, Any]:
    """Write the good queries of `queries` to `out`; return its provenance: that of `queries`, `filter` and `rejected`.

    Raises DataError when `out` is there already or a line of `queries` is no record of generated queries.
    """
    if out.exists():
        raise DataError(f"{out} is there already: remove it, or give another OUT.")
    rejected: Counter[str] = Counter()
    left = 0

    def good() -> Iterator[GeneratedQueries]:
        nonlocal left
        for window in windows(read_queries(queries), WINDOW):
            judged = query_filter.judge(window)
            rejected.update(reasons_in(judged))
            for record, _ in judged:
                left += sum(map(len, record.queries.values()))
                yield record

    kept = write_records(out, good())
    if not left and not rejected:
        out.unlink()
        raise DataError(f"{queries} holds no generated queries; write some with `xqg-vdb generate`.")
    source = provenance_path(queries)
    record = orjson.loads(source.read_bytes()) if source.is_file() else {}
    counts = {"passages": kept, "queries": left, "rejected": dict(sorted(rejected.items()))}
    provenance = {**record, "filter": query_filter.to_json(), **counts}
    write_provenance(out, provenance)
    return provenance
