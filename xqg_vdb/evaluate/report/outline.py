"""What a report says, in one order for all its forms: blocks of (kind, content) that page, Markdown and terminal show.

title, text, note           one string
code                        (what it is, command)
part, metric, heading       a heading, from the highest
list                        strings
pairs                       (what the strings are, strings)
terms                       (word, meaning)
table, folded               a `Table`, open or folded
panels                      (caption, drawings)
drawings                    figures as `_drawing` makes them
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from xqg_vdb.evaluate.metrics import LOWER_IS_BETTER
from xqg_vdb.evaluate.records import Compared, Report, Result, Sweep
from xqg_vdb.evaluate.report import tables
from xqg_vdb.evaluate.report.figures import best_point, colour, curve_figure, difference_panels
from xqg_vdb.evaluate.report.tables import Table, against_baseline, are_languages, gain, measured, share, stars

_Block = tuple[str, Any]
_SENTENCES = 4


def outline(report: Report) -> Iterator[_Block]:
    """Yield the blocks of a report; a part without content is left out."""
    yield "title", title(report)
    yield from (("text", part) for part in re.split(r"\n\s*\n", report.description.strip()) if part)
    yield from _verdicts(report)
    for dataset, metrics in measured(report):
        yield "part", dataset
        yield "note", _size(report, dataset)
        for metric in metrics:
            yield from _metric(report, dataset, metric, first=metric == metrics[0])
        yield from _changes(report, dataset)
    keys = system_keys(report)
    if report.sweeps:
        yield "part", "Sweeps: the measure over one setting"
        yield "drawings", [_drawing(group, keys=keys) for group in _together(report.sweeps)]
    if report.heatmaps:
        yield "part", "Language of the question and of the passages"
        yield from (("folded", tables.heat_table(grid)) for grid in report.heatmaps if grid.columns)
    yield from _provenance(report)
    if report.notes:
        yield "part", "Notes"
        yield "list", report.notes


def title(report: Report) -> str:
    """Return what was measured: systems, data, languages; the suite's name where nothing was."""
    found = measured(report)
    if not found:
        return report.suite
    against = [compared for dataset, metrics in found for compared in against_baseline(report, dataset, metrics[0])]
    baselines, systems = {compared.baseline for compared in against}, {compared.system for compared in against}
    what = systems.pop() if len(systems) == 1 else f"{len(systems or {one.system for one in report.results})} systems"
    what += f" against {baselines.pop()}" if len(baselines) == 1 else ""
    names, groups = [dataset for dataset, _ in found], tables.groups_of(report.results)
    data = f"{len(names)} data sets" if len(names) > 2 else " and ".join(names)
    told = f", {len(groups)} languages" if len(groups) > 1 and are_languages(groups) else ""
    return ("" if report.suite in names else f"{report.suite}: ") + f"{what} on {data}{told}"


def _size(report: Report, dataset: str) -> str:
    of = report.datasets.get(dataset, {})
    told = [f"{of[name]:,} {name}" for name in ("passages", "questions") if isinstance(of.get(name), int)]
    return ", ".join([*told, *([str(of["limit"])] if "limit" in of else [])])


# The verdict: one sentence a metric, and one a system for the first metric.


def _verdicts(report: Report) -> Iterator[_Block]:
    told = [(dataset, metrics, list(_sentences(report, dataset, metrics))) for dataset, metrics in measured(report)]
    told = [entry for entry in told if entry[2]]
    if not told:
        return
    yield "part", "Verdict"
    for dataset, metrics, sentences in told:
        place = f"On {dataset}, against" if len(told) > 1 else "Against"
        yield "pairs", (f"{place} {tables.baseline_of(report, dataset, metrics[0])}:", sentences)
    yield (
        "note",
        (
            "Sure: p < 0.05, chance alone gives so large a difference in fewer than 5 of 100 tests. Better, worse in:"
            " where that still holds after a correction for the number of languages or groups (Holm)."
        ),
    )
    names = "\n".join(result.system for result in report.results)
    words = [(word, said) for word, (kind, said) in _words()["systems"].items() if re.search(kind, names)]
    if words:
        yield "terms", words


def _sentences(report: Report, dataset: str, metrics: Sequence[str]) -> Iterator[str]:
    for place, metric in enumerate(metrics):
        against = against_baseline(report, dataset, metric)
        yield from map(sentence, against[: 1 if place else _SENTENCES])
        if not place and len(against) > _SENTENCES:
            yield f"More systems in the table: {len(against) - _SENTENCES}."


def sentence(compared: Compared) -> str:
    """Return the verdict on one system: `calibrated: R@1 0.752 → 0.785, sure; better in 7 of 11 languages, …`."""
    macro, change = compared.macro, gain(compared.macro, compared.metric)
    sure = "sure" if stars(macro.p_permutation) else "not sure, it may be chance"
    verdict = "no difference" if not change else sure if change > 0 else f"worse, {sure}"
    told = f"{compared.system}: {compared.metric} {share(macro.baseline)} → {share(macro.system)}, {verdict}"
    if len(compared.groups) > 1:
        better, worse = map(len, tables.better_and_worse(compared))
        kind = "languages" if are_languages(compared.groups) else "groups"
        told += f"; better in {better or 'none'} of {len(compared.groups)} {kind}, worse in {worse or 'none'}"
    return told + "."


@cache
def _words() -> Mapping[str, Mapping[str, Any]]:
    """What metrics and systems are, by patterns of their names."""
    return tomllib.loads(files(__package__).joinpath("templates/words.toml").read_text("utf-8"))


def meaning(metric: str) -> str:
    """Return what a metric measures, in a few words; "" for one that is not described."""
    found = ((re.fullmatch(pattern, metric), said) for pattern, said in _words()["metrics"].items())
    return next((f"{metric}: {said.format(*match.groups())}." for match, said in found if match), "")


def _metric(report: Report, dataset: str, metric: str, *, first: bool) -> Iterator[_Block]:
    """Its tables and its plot; how to read them is said at the first metric."""
    headline, groups = tables.headline_table(report, dataset, metric), tables.group_table(report, dataset, metric)
    yield "metric", metric
    yield "note", meaning(metric)
    yield "table", headline if first else replace(headline, note="")
    against = against_baseline(report, dataset, metric)
    if against:
        better = "left" if metric.startswith(LOWER_IS_BETTER) else "right"
        caption = (
            f"{metric}: difference to {against[0].baseline}, the line at 0; {better} of it is better."
            " Bar: 95 % interval. Filled dot: sure; hollow dot: not sure."
        )
        yield "panels", (caption, difference_panels(against))
    yield "table", groups if first else replace(groups, note="")
    table = tables.comparison_table(report, dataset, metric)
    if len(table.rows) > len(against):
        yield "heading", "All comparisons"
        yield "table", table
    yield from (("folded", tables.difference_table(pair)) for pair in tables.comparisons_of(report, dataset, metric))


def _changes(report: Report, dataset: str) -> Iterator[_Block]:
    """Questions won and lost; reports of before they were kept have none."""
    changed = [pair for pair in report.comparisons if pair.dataset == dataset and (pair.won or pair.lost)]
    if changed:
        yield "metric", "Questions won and lost"
    for place, compared in enumerate(changed):
        for table in (tables.changes_table(compared, what) for what in ("won", "lost") if getattr(compared, what)):
            yield from [("folded", table)] if place else [("heading", table.title), ("table", table)]


# Sweeps and heat maps.


def system_keys(report: Report) -> dict[str, int]:
    """Number every system that the report mentions, from 1, in the report's order; curves show these numbers."""
    mentioned = [*report.systems, *(one.system for one in report.results), *(one.system for one in report.sweeps)]
    return {name: key for key, name in enumerate(dict.fromkeys(mentioned), start=1)}


def _together(sweeps: Sequence[Sweep]) -> list[list[Sweep]]:
    """Sweeps of the same dataset, metric and parameter share a figure; those over words have none and stand alone."""
    groups: dict[tuple[object, ...], list[Sweep]] = {}
    for place, sweep in enumerate(sweeps):
        alone = place if any(isinstance(point.x, str) for point in sweep.points) else None
        if sweep.points:
            groups.setdefault((sweep.dataset, sweep.metric, sweep.parameter, alone), []).append(sweep)
    return list(groups.values())


def _drawing(group: Sequence[Sweep], *, keys: Mapping[str, int]) -> dict[str, Any]:
    """A caption, a note, a figure ("" where the tables say it all) with its legend, and the tables."""
    first, numbers = group[0], [tables.sweep_table(sweep) for sweep in group]
    if any(isinstance(point.x, str) for point in first.points):
        caption = f"{first.dataset}: {first.system}, {first.metric} with one part left out"
        return {"caption": caption, "note": "", "figure": "", "legend": [], "tables": numbers}
    best = [(sweep.system, best_point(sweep)) for sweep in group]
    said = "; ".join(f"{name} {share(point.value)} at {tables.number(point.x)}" for name, point in best)
    note = f"Highest on these questions: {said}."
    if len(group) == 1 and any(point.groups for point in first.points):
        note += " Thin lines: single groups."
    return {
        "caption": f"{first.dataset}: {first.metric} over {tables.parameter_name(first)}",
        "note": note,
        "figure": curve_figure(group, keys=keys),
        "legend": [(keys[name], colour(keys[name]), name) for name in dict.fromkeys(sweep.system for sweep in group)],
        "tables": numbers,
    }


# Where the numbers of a report come from, and what they cost: environment, inputs, storage, seconds.


def _provenance(report: Report) -> Iterator[_Block]:
    """What makes the numbers again (command, environment, data, encoders, systems), and what they cost."""
    if not (report.created or report.command or report.environment):
        return
    yield "part", "How it was measured"
    made = f"Made on {report.created}" + (" with" if report.command.strip() else ".")
    yield "code", (made, report.command)
    yield "folded", Table("Environment", ["what", "value"], tables.facts(report.environment), words=(1,))
    named: list[tuple[str, Mapping[str, Mapping[str, Any]]]] = [
        ("Datasets", report.datasets), ("Encoders", report.encoders), ("Query files", report.query_files),
        ("Systems", report.systems),
    ]  # fmt: skip
    for name, entries in named:
        none = [(tables.NOTHING, tables.NOTHING)]
        rows = [[name, *pair] for name, entry in entries.items() for pair in tables.facts(entry) or none]
        yield "folded", Table(name, [name.lower().removesuffix("s"), "what", "value"], rows, words=(1, 2))
    note = (
        "Bytes of vectors as they are written, without index and texts. Milliseconds: single look-ups of 10 passages,"
        " without encoding the question. expand, rerank: one question alone, where it was timed."
    )
    yield "folded", _costs("Storage and time of a look-up", [(r, r.cost) for r in report.results], note)
    yield "folded", _costs("Seconds per phase", [(r, r.seconds) for r in report.results])


def _costs(name: str, costs: Sequence[tuple[Result, Mapping[str, float]]], note: str = "") -> Table:
    """One row a dataset and system (the metrics of one run share them), one column a name of what was measured."""
    found: dict[str, Mapping[str, float]] = {}
    for result, values in costs:
        if values:
            found.setdefault(f"{result.dataset}: {result.system}", values)
    columns = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [[row, *tables.cells(values, columns, tables.rounded)] for row, values in found.items()]
    return Table(name, ["dataset: system", *columns], rows, note)
