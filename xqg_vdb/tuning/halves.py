"""One half of the questions under one metric: values of recipes, the best of a grid, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.fusion import Sums
from xqg_vdb.metrics import Metric
from xqg_vdb.score_matrix import Judgements, Values, id_order, judge
from xqg_vdb.tuning.material import Material
from xqg_vdb.tuning.sweep import Setting, recipe_tables
from xqg_vdb.types import Recipe

ALPHAS = tuple(round(0.05 * i, 2) for i in range(20))
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SAME = 1e-9
"""Values that differ by less are equal."""

_DEFAULT_ALPHA = Recipe().alpha


@dataclass(frozen=True)
class Choice:
    """A recipe, the λ to search it with, and its value on the dev questions."""

    recipe: Recipe
    strength: float
    value: float


class Half:
    """One side of the questions, measured by one metric."""

    def __init__(self, material: Material, rows: NDArray[np.int64], metric: Metric) -> None:
        asked = material.asked
        self.ids = [asked.ids[row] for row in rows.tolist()]
        self.langs = [asked.langs[row] for row in rows.tolist()]
        self._vectors = np.asarray(asked.vectors[rows])
        self._material, self._metric = material, metric
        self._judged: Judgements = judge(asked.qrels, query_ids=self.ids, passage_ids=material.pool.ids)
        self._order = id_order(material.pool.ids)
        counts = self.languages()
        self._weights = np.array([1.0 / (counts[lang] * len(counts)) for lang in self.langs], dtype=np.float64)
        names = [asked_passage(asked.qrels[qid]) for qid in self.ids]
        self._clusters = np.unique(names, return_inverse=True)[1]

    def languages(self) -> dict[str, int]:
        """Number of questions by language, sorted."""
        return {lang: self.langs.count(lang) for lang in sorted(set(self.langs))}

    def rows(self, sums: Sums, recipe: Recipe, settings: Sequence[Setting]) -> Values:
        """Values (settings, q); the recipe's own α does not matter."""
        folded = sums if recipe.langs is None else {lang: sums[lang] for lang in recipe.langs}
        tables = recipe_tables(
            self._vectors, self._material.pool.passages, folded, recipe=recipe, table=self._material.means(folded),
            langs=self.langs, normalize=self._material.encoder.facts.normalize,
        )  # fmt: skip
        metric = self._metric
        return tables.sweep(settings, judged=self._judged, metrics=[metric], tie_order=self._order)[metric]

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
        return gain > errors * error + SAME

    def lowered(self, sums: Sums, choice: Choice) -> Choice:
        """The smallest α that the choice is not surely better than."""
        alphas = [a for a in ALPHAS if a < choice.recipe.alpha]
        points = [Setting(a, choice.strength) for a in (*alphas, choice.recipe.alpha)]
        rows = self.rows(sums, choice.recipe, points)
        for alpha, values in zip(alphas, rows, strict=False):
            if not self.surely_better(rows[-1], values):
                return Choice(replace(choice.recipe, alpha=alpha), choice.strength, float(values @ self._weights))
        return choice

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
            key=lambda i: (-round(values[i] / SAME), points[i].alpha != _DEFAULT_ALPHA, points[i].alpha),
        )
        return points[best].alpha, points[best].strength, values[best]


def asked_passage(grades: Mapping[str, int]) -> str:
    """Name the passage that a question asks for: the first relevant one."""
    return min(docid for docid, grade in grades.items() if grade > 0)
