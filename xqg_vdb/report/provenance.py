"""Where the numbers of a report come from, and what they cost: environment, inputs, storage, seconds.

In: the records of `bench.records`. Out: `Table`s, as in `tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xqg_vdb.bench.records import Report
from xqg_vdb.report.tables import Table
from xqg_vdb.report.wording import NOTHING, facts, seconds


def provenance_tables(report: Report) -> list[Table]:
    """What makes the numbers again (environment, datasets, encoders, query files, systems), and what they cost."""
    tables = [Table("Environment", ["what", "value"], facts(report.environment), words=(1,))]
    named: list[tuple[str, Mapping[str, Mapping[str, Any]]]] = [
        ("Datasets", report.datasets), ("Encoders", report.encoders), ("Query files", report.query_files),
        ("Systems", report.systems),
    ]  # fmt: skip
    for title, entries in named:
        rows = [[name, *pair] for name, entry in entries.items() for pair in facts(entry) or [(NOTHING, NOTHING)]]
        tables.append(Table(title, [title.lower().removesuffix("s"), "what", "value"], rows, words=(1, 2)))
    return [table for table in [*tables, cost_table(report), seconds_table(report)] if table.rows]


def cost_table(report: Report) -> Table:
    """Bytes of vectors a passage and milliseconds a look-up, one row a dataset and system."""
    costs: dict[tuple[str, str], Mapping[str, float]] = {}
    for one in report.results:
        if one.cost:
            costs.setdefault((one.dataset, one.system), one.cost)
    columns = list(dict.fromkeys(name for cost in costs.values() for name in cost))
    rows = [
        [f"{dataset}: {system}", *(_cost(cost[name]) if name in cost else NOTHING for name in columns)]
        for (dataset, system), cost in costs.items()
    ]
    note = (
        "Bytes of vectors as they are written, without index and texts. Milliseconds: single look-ups of 10 passages,"
        " without encoding the question. expand, rerank: one question alone, where it was timed."
    )
    return Table("Storage and time of a look-up", ["dataset: system", *columns], rows, note)


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def seconds_table(report: Report) -> Table:
    """Seconds a phase took, one row a dataset and system (metrics of one run share them)."""
    timed: dict[tuple[str, str], Mapping[str, float]] = {}
    for one in report.results:
        if one.seconds:
            timed.setdefault((one.dataset, one.system), one.seconds)
    phases = list(dict.fromkeys(name for phase in timed.values() for name in phase))
    rows = [
        [f"{dataset}: {system}", *(seconds(taken[name]) if name in taken else NOTHING for name in phases)]
        for (dataset, system), taken in timed.items()
    ]
    return Table("Seconds per phase", ["dataset: system", *phases], rows)
