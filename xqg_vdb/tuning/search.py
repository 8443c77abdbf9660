"""Choosing α, λ, pooling, shrinkage and languages on half of the questions, and reporting on the other half.

In: `Material`. Out: `Tuned`. Questions are split by the passage that they ask for, so that translations of one question
never lie on both sides. One coordinate at a time: for each pooling α, λ and α again; then languages that hurt are left
out; then, told but not used, how many queries a language are needed. What does not gain more than one standard error
(over passages) is a tie, and ties go to the default recipe. Pseudo-questions flatter α (`holding.py`): without labels,
ties go to the smallest α instead, and α never rises above the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xqg_vdb.errors import DataError
from xqg_vdb.fusion import Sums
from xqg_vdb.metrics import Metric
from xqg_vdb.progress import Progress, silent
from xqg_vdb.significance import GroupComparison, compare_groups
from xqg_vdb.tuning.halves import ALPHAS, SAME, STRENGTHS, Choice, Half, asked_passage
from xqg_vdb.tuning.holding import hash_order
from xqg_vdb.tuning.material import Material
from xqg_vdb.tuning.sweep import Setting
from xqg_vdb.types import Recipe

SHRINKS = (1.0, 5.0, 20.0)
FEW = 30
"""Questions of a language below which its own numbers say little."""

_DEFAULT = Recipe()


@dataclass(frozen=True)
class Tuned:
    """What was tried and chosen. Values are macro means over languages; those of `held_out` were looked at once.

    trials: the best α and λ of each pooling. alphas, strengths: dev curves through the chosen recipe. without: dev
    value when a language's queries are left out. counts: dev value with n queries a passage and language, empty where
    only sums are known. held_out: `plain` (no queries, no calibration), `calibrated` (no queries) and `default`, each
    as baseline of the chosen recipe.
    """

    metric: str
    label_free: bool
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


def choose(material: Material, *, metric: Metric, progress: Progress = silent) -> Tuned:
    """Tune on the dev half of the questions and measure the result on the other half.

    Raises DataError when one half would be empty, MissingExtra without the extra `bench`.
    """
    dev, held = _halves(material, metric)
    sums = material.pool.sums(None)
    recommended = material.encoder.calibration
    default = Choice(_DEFAULT, recommended, dev.value(sums, _DEFAULT, recommended))
    trials: list[Choice] = []
    for done, recipe in enumerate(_poolings()):
        progress("tuning", done, len(_poolings()))
        trials.append(dev.best(sums, recipe, recommended))
    best, top = trials[0], max(trials, key=lambda one: round(one.value / SAME))  # the first of equals
    best, without = _languages_that_help(dev, sums, top if dev.beats(sums, top, best) else best)
    if material.label_free:
        best = dev.lowered(sums, _capped(dev, sums, best))
    elif not dev.beats(sums, best, default):
        best = default
    alphas = dev.values(sums, best.recipe, [Setting(a, best.strength) for a in ALPHAS])
    strengths = dev.values(sums, best.recipe, [Setting(best.recipe.alpha, s) for s in STRENGTHS])
    most = material.pool.most_queries or 0
    counts = {n: dev.value(material.pool.sums(n), best.recipe, best.strength) for n in range(1, most + 1)}
    bare = replace(_DEFAULT, alpha=0.0)
    baselines = {"plain": (bare, 0.0), "calibrated": (bare, recommended), "default": (_DEFAULT, recommended)}
    mine = held.by_id(sums, best.recipe, best.strength)
    groups = dict(zip(held.ids, held.langs, strict=True))
    return Tuned(
        metric=str(metric),
        label_free=material.label_free,
        passages=len(material.pool.ids),
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
            name: compare_groups(held.by_id(sums, recipe, strength), mine, groups=groups)
            for name, (recipe, strength) in baselines.items()
        },
        notes=(*material.notes, *_few(held.languages())),
    )


def _poolings() -> list[Recipe]:
    """The default first: of equals it is chosen."""
    shrunk = [replace(_DEFAULT, shrink=k, center=center) for center in (True, False) for k in SHRINKS]
    return [_DEFAULT, *(one for one in shrunk if one != _DEFAULT), replace(_DEFAULT, pool="mean")]


def _languages_that_help(dev: Half, sums: Sums, best: Choice) -> tuple[Choice, dict[str, float]]:
    """Leave out the language whose absence gains most, while that is more than two standard errors."""
    first: dict[str, float] = {}
    while best.recipe.alpha > 0.0:
        langs = best.recipe.langs or tuple(sorted(sums))
        if len(langs) < 2:
            break
        here = [Setting(best.recipe.alpha, best.strength)]
        (own,) = dev.rows(sums, best.recipe, here)
        rows = {}
        for lang in langs:
            recipe = replace(best.recipe, langs=tuple(one for one in langs if one != lang))
            (rows[lang],) = dev.rows(sums, recipe, here)
        gains = {lang: dev.difference(values, own)[0] for lang, values in rows.items()}
        first = first or {lang: best.value + gain for lang, gain in gains.items()}
        worst = max(gains, key=lambda lang: gains[lang])
        if not dev.surely_better(rows[worst], own, errors=2.0):  # the best of many differences
            break
        recipe = replace(best.recipe, langs=tuple(one for one in langs if one != worst))
        best = Choice(recipe, best.strength, dev.value(sums, recipe, best.strength))
    return best, first


def _capped(dev: Half, sums: Sums, best: Choice) -> Choice:
    """The choice with the default α where it has a larger one."""
    if best.recipe.alpha <= _DEFAULT.alpha:
        return best
    recipe = replace(best.recipe, alpha=_DEFAULT.alpha)
    return Choice(recipe, best.strength, dev.value(sums, recipe, best.strength))


def _halves(material: Material, metric: Metric) -> tuple[Half, Half]:
    asked = material.asked
    side = np.array([hash_order(f"half {asked_passage(asked.qrels[qid])}") % 2 for qid in asked.ids])
    dev, held = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not len(dev) or not len(held):
        raise DataError(f"{len(asked.ids)} questions about one or two passages cannot be split in halves; give more.")
    return Half(material, dev, metric), Half(material, held, metric)


def _few(questions: dict[str, int]) -> list[str]:
    few = [lang for lang, n in questions.items() if n < FEW]
    return [f"fewer than {FEW} held-out questions in {', '.join(few)}: their own numbers say little"] if few else []
