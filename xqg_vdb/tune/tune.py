"""Choosing α, λ, pooling, shrinkage and languages on half of the questions, and reporting on the other half.

In: `TuneData`. Out: `Tuned`. Questions are split by the passage that they ask for, so that translations of one question
never lie on both sides. One coordinate at a time: for each pooling α, λ and α again; then languages that hurt are left
out; then, told but not used, how many queries a language are needed. What does not gain more than one standard error
(over passages) is a tie, and ties go to the default recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import TextEncoder
from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.matrix import Judgements, Setting, Values, id_order, judge, sweep
from xqg_vdb.evaluate.metrics import FEW, Metric, asked_passage, counted, parse_metrics
from xqg_vdb.evaluate.significance import GroupComparison, compare_groups
from xqg_vdb.fusion import Sums
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import cache_folder
from xqg_vdb.progress import Progress, silent
from xqg_vdb.texts.records import open_lines
from xqg_vdb.tune.material import SAMPLE, TuneData, hash_order, labelled, with_calibrated_passages
from xqg_vdb.types import Recipe

ALPHAS = tuple(round(0.05 * i, 2) for i in range(20))
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SHRINKS = (1.0, 5.0, 20.0)
NO_HELP = (
    "the queries do not surely help these questions: load without --queries, or read some of them, write better ones "
    "with a larger model and tune again"
)
_SAME = 1e-9  # values that differ by less are equal
_DEFAULT = Recipe()


@dataclass(frozen=True)
class Choice:
    """A recipe, the λ to search it with, and its value on the dev questions."""

    recipe: Recipe
    strength: float
    value: float


class Split:
    """One side of the questions, measured by one metric."""

    def __init__(self, data: TuneData, rows: NDArray[np.int64], metric: Metric) -> None:
        self.ids = [data.question_ids[row] for row in rows.tolist()]
        self.langs = [data.langs[row] for row in rows.tolist()]
        self._vectors = np.asarray(data.questions[rows])
        self._data, self._metric = data, metric
        self._judged: Judgements = judge(data.qrels, query_ids=self.ids, passage_ids=data.pool.ids)
        self._order = id_order(data.pool.ids)
        parts = counted(self.ids, groups=dict(zip(self.ids, self.langs, strict=True)), average="groups")
        sizes = Counter(parts.values())
        weights = {lang: 1.0 / (n * len(sizes)) for lang, n in sizes.items()}
        self._weights = np.array([weights.get(lang, 0.0) for lang in self.langs], dtype=np.float64)
        self.clusters = {qid: str(asked_passage(data.qrels[qid])) for qid in self.ids}
        self._clusters = np.unique(list(self.clusters.values()), return_inverse=True)[1]

    def languages(self) -> dict[str, int]:
        """Number of questions by language, sorted."""
        return {lang: self.langs.count(lang) for lang in sorted(set(self.langs))}

    def rows(self, sums: Sums, recipe: Recipe, settings: Sequence[Setting]) -> Values:
        """Values (settings, q); the recipe's own α does not matter."""
        folded = sums if recipe.query_langs is None else {lang: sums[lang] for lang in recipe.query_langs}
        return sweep(
            settings, self._vectors, self._data.pool.passages, folded, recipe=recipe, table=self._data.means(folded),
            langs=self.langs, normalize=self._data.encoder.facts.normalize, judged=self._judged, metric=self._metric,
            tie_order=self._order,
        )  # fmt: skip

    def values(self, sums: Sums, recipe: Recipe, settings: Sequence[Setting]) -> Values:
        """Macro means (settings,)."""
        return np.asarray(self.rows(sums, recipe, settings) @ self._weights)

    def value(self, sums: Sums, recipe: Recipe, strength: float) -> float:
        """Macro mean of one recipe and λ."""
        return float(self.values(sums, recipe, [Setting(recipe.alpha, strength)])[0])

    def by_id(self, sums: Sums, recipe: Recipe, strength: float) -> dict[str, float]:
        """Value of each question, for paired tests."""
        (values,) = self.rows(sums, recipe, [Setting(recipe.alpha, strength)])
        return dict(zip(self.ids, values.tolist(), strict=True))

    def best(self, sums: Sums, recipe: Recipe, recommended: float) -> Choice:
        """The best α at the recommended λ, then another λ if that is surely better, and then the best α there."""
        alpha, strength, value = self._first_best(sums, recipe, ALPHAS, [recommended])
        _, other, _ = self._first_best(sums, recipe, [alpha], STRENGTHS)
        own, others = self.rows(sums, recipe, [Setting(alpha, recommended), Setting(alpha, other)])
        if self.surely_better(others, own):
            alpha, strength, value = self._first_best(sums, recipe, ALPHAS, [other])
        return Choice(replace(recipe, alpha=alpha), strength, value)

    def beats(self, sums: Sums, choice: Choice, other: Choice) -> bool:
        """Whether a choice is surely better than another."""
        values, others = (
            self.rows(sums, one.recipe, [Setting(one.recipe.alpha, one.strength)])[0] for one in (choice, other)
        )
        return self.surely_better(values, others)

    def surely_better(self, values: Values, others: Values, *, errors: float = 1.0) -> bool:
        """Whether the gain of values over others (q,) is more than so many standard errors: less is a tie."""
        gain, error = self.difference(values, others)
        return gain > errors * error + _SAME

    def difference(self, values: Values, others: Values) -> tuple[float, float]:
        """Macro mean of values minus others (q,), and its standard error with passages as clusters."""
        parts = np.bincount(self._clusters, weights=(values - others) * self._weights)
        error = float(parts.std(ddof=1) * np.sqrt(len(parts))) if len(parts) > 1 else float("inf")
        return float(parts.sum()), error

    def _first_best(
        self, sums: Sums, recipe: Recipe, alphas: Sequence[float], strengths: Sequence[float]
    ) -> tuple[float, float, float]:
        """α, λ and value of the best point; of equals the default α's, then the smallest α's."""
        points = [Setting(alpha, strength) for alpha in alphas for strength in strengths]
        values = self.values(sums, recipe, points).tolist()
        best = min(
            range(len(points)),
            key=lambda i: (-round(values[i] / _SAME), points[i].alpha != _DEFAULT.alpha, points[i].alpha),
        )
        return points[best].alpha, points[best].strength, values[best]


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen. Values are macro means over languages; those of `held_out` were looked at once.

    trials: the best α and λ of each pooling. alphas, strengths: dev curves through the chosen recipe. without: dev
    value when a language's queries are left out. counts: dev value with n queries a passage and language, empty where
    only sums are known. held_out: `plain` (no queries, no calibration), `calibrated` (no queries) and `default`, each
    as baseline of the chosen recipe.
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
    counts: dict[int, float]
    held_out: dict[str, GroupComparison]
    notes: tuple[str, ...]


def tune(
    corpus: str | PathLike[str],
    *,
    queries: Sequence[str | PathLike[str]],
    questions: str | PathLike[str],
    qrels: str | PathLike[str],
    encoder: TextEncoder | str | Path = "starter",
    metric: str = "R@10",
    build: str | PathLike[str] | None = None,
    passage_calibration: float = 0.0,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> Tuned:
    """Choose the recipe for a corpus: half of the labelled questions choose, the other half report, once.

    questions, qrels: what users ask, and which passages answer it. encoder: ready, or its folder or name. build: take
    the vectors from this folder of a load. passage_calibration: λ that the load shall use for the passages.
    sample: passages to tune on. What was encoded is kept: the same call again takes seconds.
    """
    (measured,) = parse_metrics([metric])
    files = [Path(file) for file in queries]
    for file in (*files, Path(questions), Path(qrels)):
        open_lines(file)  # what is missing is said before a model is opened or exported
    if isinstance(encoder, str | Path):
        with Encoder(encoder) as opened:
            return tune(
                corpus, queries=files, questions=questions, qrels=qrels, encoder=opened, metric=metric, build=build,
                passage_calibration=passage_calibration, sample=sample, progress=progress,
            )  # fmt: skip
    kept = None if build is None else Path(build)
    folder = cache_folder() / "tuning" if kept is None else kept.with_name(f"{kept.name}.tuning")
    data = labelled(
        Path(corpus), files, questions=Path(questions), qrels=Path(qrels), encoder=encoder, build=kept, folder=folder,
        sample=sample, progress=progress,
    )  # fmt: skip
    data = with_calibrated_passages(data, Path(corpus), strength=passage_calibration, build=kept, progress=progress)
    return choose(data, metric=measured, progress=progress)


def choose(data: TuneData, *, metric: Metric, progress: Progress = silent) -> Tuned:
    """Tune on the dev half of the questions and measure the result on the other half.

    Raises DataError when one half would be empty, MissingExtra without the extra `bench`.
    """
    dev, held = _split(data, metric)
    sums = data.pool.sums(None)
    recommended = data.encoder.calibration
    default = Choice(_DEFAULT, recommended, dev.value(sums, _DEFAULT, recommended))
    trials: list[Choice] = []
    for done, recipe in enumerate(_poolings()):
        progress("tuning", done, len(_poolings()))
        trials.append(dev.best(sums, recipe, recommended))
    best, top = trials[0], max(trials, key=lambda one: round(one.value / _SAME))  # the first of equals
    best, without = _languages_that_help(dev, sums, top if dev.beats(sums, top, best) else best)
    if not dev.beats(sums, best, default):
        best = default
    alphas = dev.values(sums, best.recipe, [Setting(a, best.strength) for a in ALPHAS])
    strengths = dev.values(sums, best.recipe, [Setting(best.recipe.alpha, s) for s in STRENGTHS])
    most = data.pool.most_queries or 0
    counts = {n: dev.value(data.pool.sums(n), best.recipe, best.strength) for n in range(1, most + 1)}
    bare = replace(_DEFAULT, alpha=0.0)
    helped = dev.beats(sums, best, Choice(bare, best.strength, 0.0))
    baselines = {"plain": (bare, 0.0), "calibrated": (bare, recommended), "default": (_DEFAULT, recommended)}
    mine = held.by_id(sums, best.recipe, best.strength)
    groups = dict(zip(held.ids, held.langs, strict=True))
    return Tuned(
        metric=str(metric),
        passages=len(data.pool.ids),
        questions=dev.languages(),
        held_out_questions=held.languages(),
        chosen=best,
        default=default,
        trials=tuple(trials),
        alphas=tuple(zip(ALPHAS, alphas.tolist(), strict=True)),
        strengths=tuple(zip(STRENGTHS, strengths.tolist(), strict=True)),
        without=without,
        counts=counts,
        held_out={
            name: compare_groups(held.by_id(sums, recipe, strength), mine, groups=groups, clusters=held.clusters)
            for name, (recipe, strength) in baselines.items()
        },
        notes=(*data.notes, *_few(held.languages()), *([] if helped else [NO_HELP])),
    )


def _poolings() -> list[Recipe]:
    """The default first: of equals it is chosen."""
    shrunk = [replace(_DEFAULT, shrink=k, center=center) for center in (True, False) for k in SHRINKS]
    return [_DEFAULT, *(one for one in shrunk if one != _DEFAULT), replace(_DEFAULT, pool="mean")]


def _languages_that_help(dev: Split, sums: Sums, best: Choice) -> tuple[Choice, dict[str, float]]:
    """Leave out the language whose absence gains most, while that is more than two standard errors."""
    first: dict[str, float] = {}
    while best.recipe.alpha > 0.0:
        langs = best.recipe.query_langs or tuple(sorted(sums))
        if len(langs) < 2:
            break
        here = [Setting(best.recipe.alpha, best.strength)]
        (own,) = dev.rows(sums, best.recipe, here)
        rows = {}
        for lang in langs:
            recipe = replace(best.recipe, query_langs=tuple(one for one in langs if one != lang))
            (rows[lang],) = dev.rows(sums, recipe, here)
        gains = {lang: dev.difference(values, own)[0] for lang, values in rows.items()}
        first = first or {lang: best.value + gain for lang, gain in gains.items()}
        worst = max(gains, key=lambda lang: gains[lang])
        if not dev.surely_better(rows[worst], own, errors=2.0):  # the best of many differences
            break
        recipe = replace(best.recipe, query_langs=tuple(one for one in langs if one != worst))
        best = Choice(recipe, best.strength, dev.value(sums, recipe, best.strength))
    return best, first


def _split(data: TuneData, metric: Metric) -> tuple[Split, Split]:
    side = np.array([hash_order(f"half {asked_passage(data.qrels[qid])}") % 2 for qid in data.question_ids])
    dev, held = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not len(dev) or not len(held):
        raise DataError(
            f"{len(data.question_ids)} questions about one or two passages cannot be split in halves; give more."
        )
    return Split(data, dev, metric), Split(data, held, metric)


def _few(questions: dict[str, int]) -> list[str]:
    few = ", ".join(lang for lang, n in questions.items() if n < FEW)
    left_out = "" if max(questions.values(), default=0) < FEW else ", and are not in the means"
    return [f"fewer than {FEW} held-out questions in {few}: their own numbers say little{left_out}"] if few else []
