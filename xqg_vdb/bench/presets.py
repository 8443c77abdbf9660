"""Suites made from a dataset's name: what `xqg-vdb bench DATASET` runs without a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xqg_vdb.bench.suite import ANY_DATASET, Comparison, Search, Suite, SweepPlan
from xqg_vdb.bench.systems import System
from xqg_vdb.types import Recipe

_PASSAGE_STRENGTH = 1.0


def preset(
    dataset: str, *, encoder: str = "starter", queries: Path | None = None, search: Search = "exact", depth: int = 100
) -> Suite:
    """Plain against calibrated; with generated queries also xQG, both together, and the controls that xQG must beat."""
    systems = [
        System("plain", encoder, calibration=0.0),
        System("calibrated", encoder, means="bank"),
    ]
    comparisons = [Comparison("plain", ("calibrated",))]
    sweeps: list[SweepPlan] = []
    if dataset.startswith("xquad-r") or dataset in ("mlqa-r", "mewsli-x"):  # one pool of several languages
        systems.append(System("both sides calibrated", encoder, means="bank", passage_calibration=_PASSAGE_STRENGTH))
        comparisons = [Comparison("plain", ("calibrated", "both sides calibrated"))]
    if queries is not None:
        systems += xqg_systems(encoder, "queries")
        comparisons = [
            Comparison("plain", ("calibrated", "xQG", "calibrated + xQG")),
            Comparison("calibrated", ("calibrated by its queries", "calibrated + xQG")),
            Comparison("calibrated + direction only", ("calibrated + xQG",)),
            Comparison("calibrated + shuffled queries", ("calibrated + xQG",)),
        ]
        sweeps = [SweepPlan("calibrated + xQG", what) for what in ("alpha", "lambda", "n", "without")]
    return Suite(
        name=dataset,
        datasets=(dataset,),
        systems=tuple(systems),
        description=f"{dataset} with {encoder}: what calibration"
        + (" and generated queries gain, beside the controls." if queries else " gains."),
        queries={} if queries is None else {"queries": {ANY_DATASET: queries}},
        depth=depth,
        search=search,
        comparisons=tuple(comparisons),
        sweeps=tuple(sweeps),
    )


def with_methods(suite: Suite, options: System) -> Suite:
    """The preset with UPR and query expansion on top of its best system; the suite as it is when neither is asked for.

    options: a system whose `rerank*` and `expand*` say how; with both, a system that does both is added, too.
    """
    names = [system.name for system in suite.systems]
    base = suite.systems[names.index("calibrated + xQG" if "calibrated + xQG" in names else "calibrated")]
    kinds = {"UPR": ("rerank",), "expansion": ("expand",), "expansion + UPR": ("expand", "rerank")}
    added = tuple(
        replace(base, name=f"{base.name} + {kind}", **_settings(options, methods))
        for kind, methods in kinds.items()
        if all(getattr(options, method) for method in methods)
    )
    if not added:
        return suite
    compared = Comparison(base.name, tuple(system.name for system in added))
    return replace(suite, systems=suite.systems + added, comparisons=(*suite.comparisons, compared))


def _settings(options: System, methods: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in System.__dataclass_fields__ if name.startswith(tuple(methods))}


def xqg_systems(encoder: str, queries: str) -> list[System]:
    """Name xQG alone (the paper's: questions as they are), with calibration, and the controls.

    Direction only is not centred: a centred recipe would leave nothing of a constant.
    """
    uncentred = Recipe(center=False)
    return [
        System("xQG", encoder, queries, recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0),
        System("calibrated by its queries", encoder, queries, recipe=Recipe(alpha=0.0), means="generated"),
        System("direction only", encoder, queries, "direction", recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0),
        System(
            "shuffled queries", encoder, queries, "shuffled", recipe=Recipe(alpha=0.5, pool="mean"), calibration=0.0
        ),
        System("calibrated + xQG", encoder, queries),
        System("calibrated + direction only", encoder, queries, "direction", recipe=uncentred),
        System("calibrated + shuffled queries", encoder, queries, "shuffled"),
    ]
