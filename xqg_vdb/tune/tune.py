"""Choosing α, λ, pooling, shrinkage and languages on half of the questions, and reporting on the other half.

In: a corpus, its queries, and questions whose passages are known. Out: `Tuned`.
Questions are split by the passage that they ask for, so that translations of one question never lie on both sides. One
coordinate at a time: for each pooling α, λ and α again; then languages that hurt are left out. What does not gain more
than one standard error (over passages) is a tie, and ties go to the default recipe.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import (
    LanguageMeans,
    TextEncoder,
    calibrate_passages,
    main_languages,
    pack_means,
    passage_means,
    resolve_languages,
)
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.matrix import Setting, Values, id_order, judge, sweep
from xqg_vdb.evaluate.metrics import FEW, Metric, Qrels, asked_passage, counted, parse_metrics, read_qrels
from xqg_vdb.evaluate.significance import GroupComparison, compare_groups
from xqg_vdb.fusion import Sums
from xqg_vdb.index.build import Window
from xqg_vdb.index.encode import encode_cached, encode_query_files
from xqg_vdb.index.write import generated_means, vectors_of
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import cache_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.store.layout import TEXT_DENSE
from xqg_vdb.texts.corpus import as_file, as_files, read_corpus, read_questions
from xqg_vdb.texts.records import expect, open_lines
from xqg_vdb.texts.tables import Records
from xqg_vdb.types import Card, Distance, Recipe, Vectors

SAMPLE = 2000
"""Passages to tune on: enough for intervals of a percent, few enough to encode in minutes."""

_SEED = b"xqg tuning 1"
ALPHAS = tuple(round(0.05 * i, 2) for i in range(20))
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SHRINKS = (1.0, 5.0, 20.0)
NO_HELP = (
    "the queries do not surely help these questions: load without --queries, or read some of them, write better ones "
    "with a larger model and tune again"
)
_SAME = 1e-9  # values that differ by less are equal
_DEFAULT = Recipe()


def hash_order(text: str) -> int:
    """Give a text a fixed pseudo-random number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=_SEED).digest(), "big")


@dataclass(frozen=True)
class TuneData:
    """Everything that tuning needs: passages (p, dim) and questions (q, dim) float32, not calibrated, with their names.

    sums: the query sums of the passages. notes: what a reader of the result should know about the data.
    """

    encoder: TextEncoder
    ids: Sequence[str]
    passages: Vectors
    sums: Sums
    question_ids: Sequence[str]
    questions: Vectors
    langs: Sequence[str]
    qrels: Qrels
    notes: tuple[str, ...]


def labelled(
    corpus: Path,
    queries: Sequence[Path],
    *,
    questions: Path,
    qrels: Path | Qrels,
    encoder: TextEncoder,
    passage_calibration: float = 0.0,
    folder: Path,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> TuneData:
    """Read questions with their qrels, and all judged passages and others, `sample` at least.

    passage_calibration: passages are those that such a load would write. folder: what is encoded is kept there. Raises
    DataError when no question is judged or no judged passage is in the corpus.
    """
    encode = partial(encode_cached, encoder=encoder, folder=folder, progress=progress)
    every = read_questions(questions)
    judged = qrels if isinstance(qrels, Mapping) else read_qrels(qrels)
    wanted = {docid for grades in judged.values() for docid, grade in grades.items() if grade > 0}
    chosen = heapq.nsmallest(
        max(sample, len(wanted)),
        read_corpus(corpus, detect=bool(passage_calibration)),
        key=lambda p: (p.id not in wanted, hash_order(p.id)),
    )
    chosen.sort(key=lambda p: p.id)
    ids = [p.id for p in chosen]
    present = wanted & set(ids)
    asked = [q for q in every if any(g > 0 and docid in present for docid, g in judged.get(q.id, {}).items())]
    if not asked:
        told = qrels if isinstance(qrels, Path) else "the qrels"
        raise DataError(
            f"No question in {questions} has a relevant passage of this corpus in {told}: are the ids the same?"
        )
    rows = encode([p.title_and_text for p in chosen], kind="passages", stage="passages")
    sums = encode_query_files(queries, ids, encoder=encoder, folder=folder, progress=progress).sums(passages=len(ids))
    notes = _bare_passages(ids, sums, present)
    if len(asked) < len(every):
        notes.append(f"{len(every) - len(asked)} questions without a relevant passage in the corpus are left out")
    if passage_calibration:
        langs = [p.lang for p in chosen]
        table = passage_means([(rows, langs)])
        if len(main_languages(table.counts)) < 2:
            notes.append("the corpus is in one language: passages stay as they are")
        else:
            unit = encoder.facts.normalize
            rows = calibrate_passages(rows, langs=langs, table=table, strength=passage_calibration, normalize=unit)
    return TuneData(
        encoder=encoder,
        ids=ids,
        passages=rows,
        sums=sums,
        question_ids=[q.id for q in asked],
        questions=encode([q.text for q in asked], kind="queries", stage="questions"),
        langs=resolve_languages([q.text for q in asked], [q.lang for q in asked]),
        qrels={q.id: judged[q.id] for q in asked},
        notes=tuple(notes),
    )


def _bare_passages(ids: Sequence[str], sums: Sums, asked: set[str]) -> list[str]:
    """Warn when the passages that are asked for have queries more often than the others."""
    has = np.add.reduce([counts for _, counts in sums.values()]) > 0
    judged = np.array([docid in asked for docid in ids])
    if judged.all() or has[judged].mean() - has[~judged].mean() < 0.1:
        return []
    return [
        f"{has[judged].mean():.0%} of the passages asked for have queries, but {has[~judged].mean():.0%} of the others:"
        " recipes that give passages with queries a head start (pool mean, not centred) are flattered"
    ]


@dataclass(frozen=True)
class Choice:
    """A recipe, the λ to search it with, and its value on the dev questions."""

    recipe: Recipe
    strength: float
    value: float = 0.0


class _Half:
    """One side of the questions, measured by one metric: values of recipes, macro means, and what is surely better."""

    def __init__(self, data: TuneData, rows: NDArray[np.int64], metric: Metric) -> None:
        self.ids = [data.question_ids[row] for row in rows.tolist()]
        self.langs = [data.langs[row] for row in rows.tolist()]
        self.sums = data.sums
        self._vectors = np.asarray(data.questions[rows])
        self._data, self._metric = data, metric
        self._judged = judge(data.qrels, query_ids=self.ids, passage_ids=data.ids)
        self._order = id_order(data.ids)
        parts = counted(self.ids, groups=dict(zip(self.ids, self.langs, strict=True)), average="groups")
        sizes = Counter(parts.values())
        weights = {lang: 1.0 / (n * len(sizes)) for lang, n in sizes.items()}
        self._weights = np.array([weights.get(lang, 0.0) for lang in self.langs], dtype=np.float64)
        self.clusters = {qid: str(asked_passage(data.qrels[qid])) for qid in self.ids}
        self._clusters = np.unique(list(self.clusters.values()), return_inverse=True)[1]

    def languages(self) -> dict[str, int]:
        """Number of questions by language, sorted."""
        return {lang: self.langs.count(lang) for lang in sorted(set(self.langs))}

    def rows(self, recipe: Recipe, settings: Sequence[Setting]) -> Values:
        """Values (settings, q); the recipe's own α does not matter."""
        folded = self.sums if recipe.query_langs is None else {lang: self.sums[lang] for lang in recipe.query_langs}
        encoder, ids = self._data.encoder, self._data.ids
        generated = generated_means([{lang: of for lang, of in folded.items() if of[1].any()}])
        table, facts = encoder.language_means.refined(generated, capped=True), encoder.facts
        means = pack_means(LanguageMeans({lang: table.means[lang] for lang in folded if lang in table.means}))
        distance: Distance = "cosine" if facts.normalize else "dot"
        card = Card(facts, distance, recipe, query_langs=tuple(sorted(folded)), query_means=means)
        window = Window(ids, np.zeros(len(ids), np.uint64), self._data.passages, folded)

        def fused(alpha: float) -> Vectors:
            at = replace(card, recipe=replace(recipe, alpha=alpha))
            return vectors_of(window, langs=[""] * len(ids), card=at)[TEXT_DENSE]

        return sweep(
            settings, self._vectors, fused, table=table, langs=self.langs, judged=self._judged, metric=self._metric,
            tie_order=self._order,
        )  # fmt: skip

    def scores(self, choice: Choice) -> Values:
        """Value of each question (q,)."""
        (values,) = self.rows(choice.recipe, [Setting(choice.recipe.alpha, choice.strength)])
        return np.asarray(values)

    def mean(self, values: Values) -> float:
        """Macro mean over languages."""
        return float(values @ self._weights)

    def curve(self, recipe: Recipe, settings: Sequence[Setting]) -> list[float]:
        """Macro mean of each setting."""
        return [self.mean(values) for values in self.rows(recipe, settings)]

    def by_id(self, choice: Choice) -> dict[str, float]:
        """Value of each question, for paired tests."""
        return dict(zip(self.ids, self.scores(choice).tolist(), strict=True))

    def best(self, recipe: Recipe, recommended: float) -> Choice:
        """The best α at the recommended λ, then another λ if that is surely better, and then the best α there."""
        best = self._first_best(recipe, ALPHAS, [recommended])
        other = self._first_best(recipe, [best.recipe.alpha], STRENGTHS)
        return self._first_best(recipe, ALPHAS, [other.strength]) if self.beats(other, best) else best

    def _first_best(self, recipe: Recipe, alphas: Sequence[float], strengths: Sequence[float]) -> Choice:
        """The best of all; of equals one of the default α, then of the smallest α."""
        points = [Setting(alpha, strength) for alpha in alphas for strength in strengths]
        value, point = min(
            zip(self.curve(recipe, points), points, strict=True),
            key=lambda item: (-round(item[0] / _SAME), item[1].alpha != _DEFAULT.alpha, item[1].alpha),
        )
        return Choice(replace(recipe, alpha=point.alpha), point.strength, value)

    def beats(self, choice: Choice, other: Choice) -> bool:
        """Whether a choice is surely better than another."""
        return self.surely_better(self.scores(choice), self.scores(other))

    def surely_better(self, values: Values, others: Values, *, errors: float = 1.0) -> bool:
        """Whether the gain of values over others (q,) is more than so many standard errors: less is a tie.

        Passages are the clusters of the standard error of the macro mean.
        """
        parts = np.bincount(self._clusters, weights=(values - others) * self._weights)
        error = float(parts.std(ddof=1) * np.sqrt(len(parts))) if len(parts) > 1 else float("inf")
        return float(parts.sum()) > errors * error + _SAME


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen. Values are macro means over languages; those of `held_out` were looked at once.

    trials: the best α and λ of each pooling. alphas, strengths: dev curves through the chosen recipe. without: dev
    value when a language's queries are left out. held_out: `plain` (no queries, no calibration), `calibrated` (no
    queries) and `default`, each as baseline of the chosen recipe.
    """

    metric: str
    passages: int
    questions: dict[str, int]
    held_out_questions: dict[str, int]
    chosen: Choice
    default: Choice
    trials: tuple[Choice, ...]
    alphas: tuple[tuple[float, float], ...]
    strengths: tuple[tuple[float, float], ...]
    without: dict[str, float]
    held_out: dict[str, GroupComparison]
    notes: tuple[str, ...]


def tune(
    corpus: str | PathLike[str] | Records,
    *,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | Records,
    questions: str | PathLike[str] | Records,
    qrels: str | PathLike[str] | Qrels,
    encoder: TextEncoder | str | Path = "starter",
    metric: str = "R@10",
    passage_calibration: float = 0.0,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> Tuned:
    """Choose the recipe for a corpus: half of the labelled questions choose, the other half report, once.

    corpus, queries: files, records or data frames, as `load` takes them. questions, qrels: what users ask, and which
    passages answer it: a file each, or records with id and text, and grades by question and passage. encoder: ready, or
    its folder or name. passage_calibration: λ that the load shall use for the passages. sample: passages to tune on.
    What was encoded is kept: the same call again takes seconds.
    """
    (measured,) = parse_metrics([metric])
    expect("qrels", qrels, (str, PathLike, Mapping), "a file, or grades by question and passage")
    with ExitStack() as stack:
        file, files = as_file(corpus, "corpus.jsonl", stack), as_files(queries, stack)
        asked = as_file(questions, "questions.jsonl", stack)
        judged = qrels if isinstance(qrels, Mapping) else Path(qrels)
        for given in (*files, asked, *([judged] if isinstance(judged, Path) else [])):
            open_lines(given)  # what is missing is said before a model is opened or exported
        if isinstance(encoder, str | Path):
            encoder = stack.enter_context(Encoder(encoder))
        data = labelled(
            file, files, questions=asked, qrels=judged, encoder=encoder, folder=cache_folder() / "tuning",
            sample=sample, passage_calibration=passage_calibration, progress=progress,
        )  # fmt: skip
        return choose(data, metric=measured, progress=progress)


def choose(data: TuneData, *, metric: Metric, progress: Progress = silent) -> Tuned:
    """Tune on the dev half of the questions and measure the result on the other half.

    Raises DataError when one half would be empty, MissingExtra without the extra `bench`.
    """
    dev, held = _split(data, metric)
    recommended = data.encoder.calibration
    default = Choice(_DEFAULT, recommended)
    default = replace(default, value=dev.mean(dev.scores(default)))
    shrunk = [replace(_DEFAULT, shrink=k, center=center) for center in (True, False) for k in SHRINKS]
    poolings = [_DEFAULT, *(recipe for recipe in shrunk if recipe != _DEFAULT), replace(_DEFAULT, pool="mean")]
    trials: list[Choice] = []
    for done, recipe in enumerate(poolings):
        progress("tuning", done, len(poolings))
        trials.append(dev.best(recipe, recommended))
    best, top = trials[0], max(trials, key=lambda trial: round(trial.value / _SAME))  # the first of equals
    best, without = _languages_that_help(dev, top if dev.beats(top, best) else best)
    if not dev.beats(best, default):
        best = default
    alphas = dev.curve(best.recipe, [Setting(alpha, best.strength) for alpha in ALPHAS])
    strengths = dev.curve(best.recipe, [Setting(best.recipe.alpha, strength) for strength in STRENGTHS])
    bare = replace(_DEFAULT, alpha=0.0)
    helped = dev.beats(best, Choice(bare, best.strength))
    baselines = {"plain": Choice(bare, 0.0), "calibrated": Choice(bare, recommended), "default": default}
    mine, groups = held.by_id(best), dict(zip(held.ids, held.langs, strict=True))
    few = ", ".join(lang for lang, n in held.languages().items() if n < FEW)
    left_out = "" if max(held.languages().values(), default=0) < FEW else ", and are not in the means"
    said = [f"fewer than {FEW} held-out questions in {few}: their own numbers say little{left_out}"] if few else []
    return Tuned(
        metric=str(metric),
        passages=len(data.ids),
        questions=dev.languages(),
        held_out_questions=held.languages(),
        chosen=best,
        default=default,
        trials=tuple(trials),
        alphas=tuple(zip(ALPHAS, alphas, strict=True)),
        strengths=tuple(zip(STRENGTHS, strengths, strict=True)),
        without=without,
        held_out={
            name: compare_groups(held.by_id(baseline), mine, groups=groups, clusters=held.clusters)
            for name, baseline in baselines.items()
        },
        notes=(*data.notes, *said, *([] if helped else [NO_HELP])),
    )


def _languages_that_help(dev: _Half, best: Choice) -> tuple[Choice, dict[str, float]]:
    """Leave out the language whose absence gains most, while that is more than two standard errors."""
    first: dict[str, float] = {}
    while best.recipe.alpha > 0.0:
        langs = best.recipe.query_langs or tuple(sorted(dev.sums))
        if len(langs) < 2:
            break
        less = {
            lang: replace(best, recipe=replace(best.recipe, query_langs=tuple(code for code in langs if code != lang)))
            for lang in langs
        }
        rows = {lang: dev.scores(choice) for lang, choice in less.items()}
        values = {lang: dev.mean(row) for lang, row in rows.items()}
        first = first or values
        worst = max(values, key=lambda lang: values[lang])
        if not dev.surely_better(rows[worst], dev.scores(best), errors=2.0):  # the best of many differences
            break
        best = replace(less[worst], value=values[worst])
    return best, first


def _split(data: TuneData, metric: Metric) -> tuple[_Half, _Half]:
    side = np.array([hash_order(f"half {asked_passage(data.qrels[qid])}") % 2 for qid in data.question_ids])
    dev, held = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not len(dev) or not len(held):
        raise DataError(
            f"{len(data.question_ids)} questions about one or two passages cannot be split in halves; give more."
        )
    return _Half(data, dev, metric), _Half(data, held, metric)
