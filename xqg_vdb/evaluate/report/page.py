"""A report as one HTML file: no scripts, no network, figures as inline SVG, tables for everything that is drawn.

In: a `Report`. Out: one string. Names may hold anything: the template escapes every value, and a content policy in the
page forbids scripts and requests should that ever fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

from xqg_vdb.errors import MissingExtra
from xqg_vdb.evaluate.records import HeatMap, Report, Sweep
from xqg_vdb.evaluate.report.figures import (
    Figure,
    bar_panels,
    best_point,
    colour,
    curve_figure,
    heat_figure,
    left_out_figure,
)
from xqg_vdb.evaluate.report.tables import (
    PARAMETERS,
    Table,
    clean,
    comparison_table,
    comparisons_of,
    difference_table,
    group_table,
    headline_table,
    heat_table,
    measured,
    provenance_tables,
    results_of,
    setting,
    share,
    sweep_table,
)

if TYPE_CHECKING:
    from jinja2 import Template


Legend = Sequence[tuple[int, str, str]]
"""(number, style sheet class, name) of systems."""


@dataclass(frozen=True, slots=True)
class Section:
    """What one metric of a dataset shows; differences are folded away."""

    metric: str
    headline: Table
    legend: Legend
    panels: Sequence[Figure]
    groups: Table
    comparisons: Table
    differences: Sequence[Table]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with its caption, its legend (empty when it has one line) and the tables that say the same."""

    caption: str
    note: str
    figure: Figure
    legend: Legend
    tables: Sequence[Table]


def render_page(report: Report) -> str:
    """Return the HTML text. Raises MissingExtra without the extra `bench`."""
    keys = system_keys(report)
    datasets = [
        (name, [_section(report, name, metric, keys=keys) for metric in metrics]) for name, metrics in measured(report)
    ]
    text = _template().render(
        report=report,
        datasets=datasets,
        sweeps=[drawing for group in _together(report.sweeps) for drawing in _drawings(group, report, keys=keys)],
        heatmaps=[_heat(one) for one in report.heatmaps if one.rows and one.columns],
        provenance=provenance_tables(report),
        style=files(__package__).joinpath("templates/report.css").read_text("utf-8"),
        number=count(1).__next__,
    )
    return text.lstrip()  # the lines of the macros


def system_keys(report: Report) -> dict[str, int]:
    """Number every system that the report mentions, from 1, in the report's order; figures show these numbers."""
    mentioned = [*report.systems, *(one.system for one in report.results), *(one.system for one in report.sweeps)]
    return {name: key for key, name in enumerate(dict.fromkeys(mentioned), start=1)}


@cache
def _template() -> Template:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra('report.html needs jinja2; run: pip install "xqg-vdb[bench]"') from error
    folder = files(__package__).joinpath("templates")
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _visible(value: Any) -> Any:
    """What a template prints: plain text without control characters; markup of the template itself as it is."""
    return clean(value) if type(value) is str else value


def _section(report: Report, dataset: str, metric: str, *, keys: Mapping[str, int]) -> Section:
    results = results_of(report, dataset, metric)
    return Section(
        metric=metric,
        headline=headline_table(report, dataset, metric),
        legend=_legend([one.system for one in results], keys),
        panels=bar_panels(results, keys=keys),
        groups=group_table(report, dataset, metric),
        comparisons=comparison_table(report, dataset, metric),
        differences=[difference_table(one) for one in comparisons_of(report, dataset, metric)],
    )


def _legend(systems: Sequence[str], keys: Mapping[str, int]) -> Legend:
    return [(keys[name], colour(keys[name]), name) for name in dict.fromkeys(systems)]


def _together(sweeps: Sequence[Sweep]) -> list[list[Sweep]]:
    """Sweeps of the same dataset, metric and parameter share a figure."""
    groups: dict[tuple[str, str, str], list[Sweep]] = {}
    for one in sweeps:
        if one.points:
            groups.setdefault((one.dataset, one.metric, one.parameter), []).append(one)
    return list(groups.values())


def _drawings(group: Sequence[Sweep], report: Report, *, keys: Mapping[str, int]) -> list[Drawing]:
    """A curve over numbers for all sweeps of the group; a chart each for those over words."""
    over_words = [one for one in group if any(isinstance(point.x, str) for point in one.points)]
    over_numbers = [one for one in group if one not in over_words]
    drawings = [_left_out(one, report) for one in over_words]
    return drawings + ([_curve(over_numbers, keys=keys)] if over_numbers else [])


def _curve(sweeps: Sequence[Sweep], *, keys: Mapping[str, int]) -> Drawing:
    first = sweeps[0]
    parameter = PARAMETERS.get(first.parameter, first.parameter)
    best = [(one.system, best_point(one)) for one in sweeps]
    said = "; ".join(f"{name} {share(point.value)} at {setting(point.x)}" for name, point in best)
    note = f"Highest on these questions: {said}."
    if len(sweeps) == 1 and any(point.groups for point in first.points):
        note += " Thin lines: single groups."
    legend = _legend([one.system for one in sweeps], keys)
    caption = f"{first.dataset}: {first.metric} over {parameter}"
    return Drawing(caption, note, curve_figure(sweeps, keys=keys), legend, [sweep_table(one) for one in sweeps])


def _left_out(sweep: Sweep, report: Report) -> Drawing:
    whole = [one for one in results_of(report, sweep.dataset, sweep.metric) if one.system == sweep.system]
    figure = left_out_figure(sweep, reference=whole[0].headline.value if whole else None)
    caption = f"{sweep.dataset}: {sweep.system}, {sweep.metric} with one part left out"
    return Drawing(caption, "", figure, [], [sweep_table(sweep)])


def _heat(heatmap: HeatMap) -> Drawing:
    note = "Rows: query language; columns: passage language. The stronger the colour, the higher the value."
    caption = f"{heatmap.dataset}: {heatmap.system}, {heatmap.what}"
    return Drawing(caption, note, heat_figure(heatmap), [], [heat_table(heatmap)])
