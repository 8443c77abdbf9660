"""The tables of a report, as text cells that the terminal, Markdown and HTML share.

In: the records of `bench.records`. Out: `Table`s. Whatever is printed goes through here, so the faces of a report
cannot disagree. This file knows no markup, and no name in it is escaped or cleaned yet.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xqg_vdb.evaluate.metrics import FEW, LOWER_IS_BETTER
from xqg_vdb.evaluate.records import Compared, Difference, Ends, HeatMap, Report, Result, Sweep

# Numbers and untrusted names as the text of a cell, the same in every kind of report.

NOTHING = "–"
"""A cell without a value."""

LEVELS = (0.001, 0.01, 0.05)
"""Three stars, two stars, one star."""

_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
# Overrides and isolates make a reader see other text than the file holds; single left-to-right marks do not.
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_NO_VISIBLE_TEXT = frozenset(_REORDERING + "\ufffe\uffff")  # the last two are not allowed in XML


def share(value: float) -> str:
    """Return a share with three decimals, `0.617`."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign, `+0.038`."""
    return f"{value:+.3f}"


def interval(ends: Ends, *, sign: bool = False) -> str:
    """Return `0.580 to 0.650`, with signs for intervals of differences."""
    if ends is None:
        return NOTHING
    low, high = ((signed(end) if sign else share(end)) for end in ends)
    return f"{low} to {high}"


def p_value(p: float | None) -> str:
    """Return `0.012`, `<0.001`, or a dash for None."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float | None) -> str:
    """Return `***` below 0.001, `**` below 0.01, `*` below 0.05, else nothing."""
    return "" if p is None else "*" * sum(p < level for level in LEVELS)


def number(value: float) -> str:
    """Return a setting in as few digits as it needs, `0.35`."""
    return f"{value:.4g}"


def effect(value: float | None) -> str:
    """Return an effect size with two decimals, or a dash for None."""
    return NOTHING if value is None else f"{value:.2f}"


def seconds(value: float) -> str:
    """Return seconds with one decimal, or as whole seconds from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def fact(value: Any) -> str:
    """Return a fact of the environment, a recipe or a dataset as one line; `facts` takes nested ones apart."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(fact, value)) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {fact(one)}" for name, one in value.items()) or NOTHING
    return str(value)


def listed(names: Iterable[str]) -> str:
    """Return the names with commas between, or a dash; names in Arabic or Hebrew letters stay in their order."""
    joined = ", ".join(names)
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in joined):
        joined = joined.replace(", ", ", \N{LEFT-TO-RIGHT MARK}")
    return joined or NOTHING


def facts(nested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) pairs; names of inner mappings follow the outer one's after a dot: `machine.cpu`."""
    found: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            found += [(f"{name}.{inner}", text) for inner, text in facts(value)]
        else:
            found.append((str(name), fact(value)))
    return found


def clean(text: str) -> str:
    """Replace what is no visible text: control characters (terminal escapes too), lone surrogates, text reordering.

    Newlines and tabs become spaces.
    """
    spaced = text.translate(dict.fromkeys(map(ord, "\n\r\t"), " "))
    return "".join(
        _NO_TEXT if char in _NO_VISIBLE_TEXT or unicodedata.category(char) in ("Cc", "Cs") else char for char in spaced
    )


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two for wide East Asian characters, none for marks."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, limit: int) -> str:
    """Return the text, or its beginning with an ellipsis when it is wider than `limit` columns."""
    if width(text) <= limit:
        return text
    kept, used = "", 0
    for character in text:
        used += _columns(character)
        if used > limit - 1:
            break
        kept += character
    return kept + "…"


_PARAMETERS = {
    "alpha": "α, weight of the generated queries",
    "lambda": "λ, strength of the calibration",
    "n": "generated queries per language",
    "without": "left out",
}


def parameter_name(sweep: Sweep) -> str:
    """Return what the parameter of a sweep is called."""
    return _PARAMETERS.get(sweep.parameter, sweep.parameter)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column names; the first column names the rows. words: columns of words, not of numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = ()

    @property
    def starred(self) -> list[int]:
        """Which columns hold numbers with stars."""
        numbers = [place for place in range(1, len(self.columns)) if place not in self.words]
        return [place for place in numbers if any(row[place].endswith("*") for row in self.rows)]


def measured(report: Report) -> list[tuple[str, list[str]]]:
    """Return each dataset with its metrics, in the order in which the report names them."""
    found: dict[str, dict[str, None]] = {}
    pairs = [(one.dataset, one.metric) for one in report.results]
    for dataset, metric in [*pairs, *((one.dataset, one.metric) for one in report.comparisons)]:
        found.setdefault(dataset, {})[metric] = None
    return [(dataset, list(metrics)) for dataset, metrics in found.items()]


def results_of(report: Report, dataset: str, metric: str) -> list[Result]:
    """Return the results on one dataset by one metric."""
    return [one for one in report.results if (one.dataset, one.metric) == (dataset, metric)]


def groups_of(results: Iterable[Result]) -> list[str]:
    """Return the groups of several results, each once."""
    return list(dict.fromkeys(name for one in results for name in one.groups))


def comparisons_of(report: Report, dataset: str, metric: str) -> list[Compared]:
    """Return the comparisons on one dataset by one metric."""
    return [one for one in report.comparisons if (one.dataset, one.metric) == (dataset, metric)]


def baseline_of(report: Report, dataset: str, metric: str) -> str | None:
    """Return the baseline of most comparisons, the first of equals; None without comparisons."""
    counted = Counter(one.baseline for one in comparisons_of(report, dataset, metric))
    return counted.most_common(1)[0][0] if counted else None


def headline_table(report: Report, dataset: str, metric: str) -> Table:
    """One row a system: its average with the interval, and its difference to the baseline of most comparisons."""
    baseline = baseline_of(report, dataset, metric)
    against = _against(report, dataset, metric, baseline)
    columns = ["system", metric, "95 % interval", "n"]
    note = _MEANS.get(report.datasets.get(dataset, {}).get("average", ""), "")
    if baseline is not None:
        columns += [f"− {baseline}", "its 95 % interval", "p"]
        note += f" Differences to {baseline}, {_TESTS}"
    rows = []
    for one in results_of(report, dataset, metric):
        row = [one.system, share(one.headline.value), interval(one.headline.interval), str(one.headline.n)]
        if one.system in against:
            macro = against[one.system].macro
            row.append(signed(macro.difference) + stars(macro.p_permutation))
            row += [interval(macro.interval, sign=True), p_value(macro.p_permutation)]
        rows.append(row + [NOTHING] * (len(columns) - len(row)))
    return Table(f"{dataset}: {metric}", columns, rows, note.strip())


_MEANS = {
    "queries": "Means over questions.",
    "groups": f"Means over groups; † marks groups with fewer than {FEW} questions, which are left out.",
}
_TESTS = (
    "intervals and p are of the same mean; p: sign-flip permutation test, two-sided."
    " Questions of one passage and translations of one question are resampled and flipped together."
    " * p < 0.05, ** p < 0.01, *** p < 0.001."
)


def _count(n: int, others: Iterable[int]) -> str:
    """The questions of a group, marked where they are few beside other groups'."""
    return f"{n}†" if n < FEW <= max(others, default=0) else str(n)


def group_table(report: Report, dataset: str, metric: str) -> Table:
    """One row a group (language), one column a system; starred where it differs from the baseline after Holm."""
    results = results_of(report, dataset, metric)
    baseline = baseline_of(report, dataset, metric)
    against = _against(report, dataset, metric, baseline)
    counts = {name: max(one.groups[name].n for one in results if name in one.groups) for name in groups_of(results)}
    rows = [
        [name, _count(n, counts.values()), *(_group_cell(one, name, against.get(one.system)) for one in results)]
        for name, n in counts.items()
    ]
    note = ""
    if baseline is not None:
        note = f"Stars: against {baseline}, p corrected by Holm for the number of groups; ↓ marks what is worse."
    return Table(f"{dataset}: {metric} per group", ["group", "n", *(one.system for one in results)], rows, note)


def _group_cell(result: Result, name: str, compared: Compared | None) -> str:
    if name not in result.groups:
        return NOTHING
    change = None if compared is None else compared.groups.get(name)
    starred = "" if change is None else stars(corrected(change))
    worse = starred and change is not None and _gain(change, result.metric) < 0
    return share(result.groups[name].value) + ("↓" if worse else "") + starred


def _gain(change: Difference, metric: str) -> float:
    """The difference, negative where the system is worse."""
    return -change.difference if metric.startswith(LOWER_IS_BETTER) else change.difference


def corrected(difference: Difference) -> float:
    """Return the permutation p-value, corrected by Holm where the record has that."""
    return difference.p_permutation if difference.holm_permutation is None else difference.holm_permutation


def _against(report: Report, dataset: str, metric: str, baseline: str | None) -> dict[str, Compared]:
    return {one.system: one for one in comparisons_of(report, dataset, metric) if one.baseline == baseline}


def comparison_table(report: Report, dataset: str, metric: str) -> Table:
    """One row a comparison, over all groups, with the groups in which the difference is significant after Holm."""
    columns = ["comparison", "difference", "95 % interval", "d_z", "p", "p (t)", "n", "better in", "worse in"]
    rows = []
    for one in comparisons_of(report, dataset, metric):
        changed = {name: _gain(d, metric) for name, d in one.groups.items() if stars(corrected(d))}
        better = listed(name for name, gain in changed.items() if gain > 0)
        worse = listed(name for name, gain in changed.items() if gain < 0)
        cells = [signed(one.macro.difference), interval(one.macro.interval, sign=True), effect(one.macro.d_z)]
        cells += [p_value(one.macro.p_permutation), p_value(one.macro.p_t), str(one.macro.n)]
        rows.append([f"{one.system} − {one.baseline}", *cells, better, worse])
    note = (
        "p: permutation test of the mean difference; p (t) and d_z: over what the mean is over, questions or groups."
        " Better and worse: groups with p < 0.05 after Holm's correction."
    )
    return Table(f"{dataset}: {metric}, comparisons", columns, rows, note, words=(7, 8))


def difference_table(compared: Compared) -> Table:
    """One row a group of one comparison, with every number of the record."""
    columns = ["group", "n", compared.baseline, compared.system, "difference", "95 % interval", "d_z"]
    columns += ["p", "p, Holm", "p (t)", "p (t), Holm"]
    counts = [one.n for one in compared.groups.values()]
    rows = [_difference_row("mean", compared.macro, str(compared.macro.n))]
    rows += [_difference_row(name, one, _count(one.n, counts)) for name, one in compared.groups.items()]
    return Table(f"{compared.system} − {compared.baseline} on {compared.dataset}, {compared.metric}", columns, rows)


def _difference_row(name: str, one: Difference, n: str) -> list[str]:
    values = [share(one.baseline), share(one.system), signed(one.difference) + stars(corrected(one))]
    tests = [p_value(p) for p in (one.p_permutation, one.holm_permutation, one.p_t, one.holm_t)]
    return [name, n, *values, interval(one.interval, sign=True), effect(one.d_z), *tests]


def sweep_table(sweep: Sweep) -> Table:
    """One row a setting: the metric, then its groups."""
    names = list(dict.fromkeys(name for point in sweep.points for name in point.groups))
    rows = [[setting(p.x), share(p.value), *_cells(p.groups, names, share)] for p in sweep.points]
    title = f"{sweep.dataset}: {sweep.system}, {parameter_name(sweep)}"
    return Table(title, [sweep.parameter, sweep.metric, *names], rows)


def _cells(values: Mapping[str, float], names: Sequence[str], told: Callable[[float], str]) -> list[str]:
    return [told(values[name]) if name in values else NOTHING for name in names]


def setting(x: float | str) -> str:
    """Return the x of a sweep's point as a label."""
    return x if isinstance(x, str) else number(x)


def heat_table(heatmap: HeatMap) -> Table:
    """One row a query language, one column a passage language."""
    rows = [[name, *map(share, values)] for name, values in zip(heatmap.rows, heatmap.values, strict=True)]
    title = f"{heatmap.dataset}: {heatmap.system}, {heatmap.what}"
    return Table(title, ["query \\ passage", *heatmap.columns], rows)


def transposed(table: Table) -> Table:
    """Swap rows and columns."""
    columns = [table.columns[0], *(row[0] for row in table.rows)]
    rows = [[name, *(row[place] for row in table.rows)] for place, name in enumerate(table.columns[1:], start=1)]
    return replace(table, columns=columns, rows=rows)


# Where the numbers of a report come from, and what they cost: environment, inputs, storage, seconds.


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
    note = (
        "Bytes of vectors as they are written, without index and texts. Milliseconds: single look-ups of 10 passages,"
        " without encoding the question. expand, rerank: one question alone, where it was timed."
    )
    return _measured_table("Storage and time of a look-up", [(r, r.cost) for r in report.results], _cost, note)


def seconds_table(report: Report) -> Table:
    """Seconds a phase took, one row a dataset and system (metrics of one run share them)."""
    return _measured_table("Seconds per phase", [(r, r.seconds) for r in report.results], seconds)


def _measured_table(
    title: str,
    measured: Sequence[tuple[Result, Mapping[str, float]]],
    told: Callable[[float], str],
    note: str = "",
) -> Table:
    """One row a dataset and system, one column a name of what was measured."""
    found: dict[str, Mapping[str, float]] = {}
    for result, values in measured:
        if values:
            found.setdefault(f"{result.dataset}: {result.system}", values)
    columns = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [[row, *_cells(values, columns, told)] for row, values in found.items()]
    return Table(title, ["dataset: system", *columns], rows, note)


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
