"""The tables of a report, as text cells that the terminal, Markdown and HTML share.

In: the records of `bench.records`. Out: `Table`s. Whatever is printed goes through here, so the faces of a report
cannot disagree. This file knows no markup, and no name in it is escaped or cleaned yet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.metrics import FEW, LOWER_IS_BETTER
from xqg_vdb.evaluate.records import Change, Compared, Difference, Ends, HeatMap, Report, Result, Sweep
from xqg_vdb.texts.languages import english_name, normalize

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


def number(value: float | str) -> str:
    """Return a setting in as few digits as it needs, `0.35`; a word as it is."""
    return value if isinstance(value, str) else f"{value:.4g}"


def rounded(value: float | None) -> str:
    """Return seconds, bytes, milliseconds or an effect size: two decimals below 100, or a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


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
        return ", ".join(f"{name} {fact(entry)}" for name, entry in value.items()) or NOTHING
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
    """Rows of text under column names; the first column names the rows. words: columns of words, not of numbers.

    best: (row, column) of the cells that no other of their row or column beats. heat: shares to be coloured.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = ()
    best: Sequence[tuple[int, int]] = ()
    heat: bool = False

    @property
    def starred(self) -> list[int]:
        """Which columns hold numbers with stars."""
        numbers = [place for place in range(1, len(self.columns)) if place not in self.words]
        return [place for place in numbers if any(row[place].endswith("*") for row in self.rows)]


def measured(report: Report) -> list[tuple[str, list[str]]]:
    """Return each dataset with its metrics, in the order in which the report names them."""
    found: dict[str, dict[str, None]] = {}
    pairs = [(result.dataset, result.metric) for result in report.results]
    for dataset, metric in [*pairs, *((compared.dataset, compared.metric) for compared in report.comparisons)]:
        found.setdefault(dataset, {})[metric] = None
    return [(dataset, list(metrics)) for dataset, metrics in found.items()]


def results_of(report: Report, dataset: str, metric: str) -> list[Result]:
    """Return the results on one dataset by one metric."""
    return [result for result in report.results if (result.dataset, result.metric) == (dataset, metric)]


def groups_of(results: Iterable[Result]) -> list[str]:
    """Return the groups of several results, each once."""
    return list(dict.fromkeys(name for result in results for name in result.groups))


def are_languages(names: Iterable[str]) -> bool:
    """Tell whether all groups of a data set are languages, by their codes."""
    try:
        return all(re.fullmatch("[a-z]{2,3}(-Latn)?", name) and normalize(name) == name for name in names)
    except DataError:
        return False


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """Return what a reader calls each group: `Swahili (sw)` where all are languages, else the name itself."""
    names = list(names)
    return {name: f"{english_name(name)} ({name})" if are_languages(names) else name for name in names}


def comparisons_of(report: Report, dataset: str, metric: str) -> list[Compared]:
    """Return the comparisons on one dataset by one metric."""
    return [compared for compared in report.comparisons if (compared.dataset, compared.metric) == (dataset, metric)]


def baseline_of(report: Report, dataset: str, metric: str) -> str | None:
    """Return the baseline that the report compares with first; None without comparisons."""
    return next((compared.baseline for compared in comparisons_of(report, dataset, metric)), None)


def against_baseline(report: Report, dataset: str, metric: str) -> list[Compared]:
    """Return the comparisons with the first baseline, each system once."""
    baseline = baseline_of(report, dataset, metric)
    return [compared for compared in comparisons_of(report, dataset, metric) if compared.baseline == baseline]


def headline_table(report: Report, dataset: str, metric: str) -> Table:
    """One row a system: its average with the interval, and its difference to the baseline."""
    baseline = baseline_of(report, dataset, metric)
    against = {compared.system: compared for compared in against_baseline(report, dataset, metric)}
    columns = ["system", metric, "95 % interval", "n"]
    note = _MEANS.get(report.datasets.get(dataset, {}).get("average", ""), "")
    if baseline is not None:
        columns += [f"− {baseline}", "its 95 % interval", "p"]
        note += f" Differences to {baseline}, {_TESTS}"
    rows, results = [], results_of(report, dataset, metric)
    for result in results:
        row = [result.system, share(result.headline.value), interval(result.headline.interval), str(result.headline.n)]
        if result.system in against:
            macro = against[result.system].macro
            row.append(signed(macro.difference) + stars(macro.p_permutation))
            row += [interval(macro.interval, sign=True), p_value(macro.p_permutation)]
        rows.append(row + [NOTHING] * (len(columns) - len(row)))
    best = [(row, 1) for row in _best([result.headline.value for result in results], metric)]
    return Table(f"{dataset}: {metric}", columns, rows, note.strip(), best=best)


def _best(values: Sequence[float], metric: str) -> list[int]:
    """The places of the best of several values as they are printed; none where all are equal."""
    told = [share(value) for value in values]
    best = told[values.index((min if metric.startswith(LOWER_IS_BETTER) else max)(values))] if values else ""
    return [place for place, value in enumerate(told) if value == best] if len(set(told)) > 1 else []


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
    against = {compared.system: compared for compared in against_baseline(report, dataset, metric)}
    labels = labels_of(groups_of(results))
    counts = {name: max(result.groups[name].n for result in results if name in result.groups) for name in labels}
    rows, best = [], []
    for row, (name, label) in enumerate(labels.items()):
        cells = [_group_cell(result, name, against.get(result.system)) for result in results]
        rows.append([label, _count(counts[name], counts.values()), *cells])
        there = [
            (place, result.groups[name].value) for place, result in enumerate(results, start=2) if name in result.groups
        ]
        best += [(row, there[place][0]) for place in _best([value for _, value in there], metric)]
    note = ""
    if against:
        note = f"Stars: against {baseline_of(report, dataset, metric)}, p corrected by Holm for the number of groups;"
        note += " ↓ marks what is worse."
    first = "language" if are_languages(labels) else "group"
    columns = [first, "n", *(result.system for result in results)]
    return Table(f"{dataset}: {metric} per {first}", columns, rows, note, best=best)


def _group_cell(result: Result, name: str, compared: Compared | None) -> str:
    if name not in result.groups:
        return NOTHING
    change = None if compared is None else compared.groups.get(name)
    starred = "" if change is None else stars(corrected(change))
    worse = starred and change is not None and gain(change, result.metric) < 0
    return share(result.groups[name].value) + ("↓" if worse else "") + starred


def gain(change: Difference, metric: str) -> float:
    """The difference, negative where the system is worse."""
    return -change.difference if metric.startswith(LOWER_IS_BETTER) else change.difference


def corrected(difference: Difference) -> float:
    """Return the permutation p-value, corrected by Holm where the record has that."""
    return difference.p_permutation if difference.holm_permutation is None else difference.holm_permutation


def better_and_worse(compared: Compared) -> tuple[list[str], list[str]]:
    """Return the groups that are significantly better and worse, after Holm's correction."""
    changed = {name: gain(d, compared.metric) for name, d in compared.groups.items() if stars(corrected(d))}
    return [name for name, d in changed.items() if d > 0], [name for name, d in changed.items() if d < 0]


def comparison_table(report: Report, dataset: str, metric: str) -> Table:
    """One row a comparison, over all groups, with the groups in which the difference is significant after Holm."""
    columns = ["comparison", "difference", "95 % interval", "d_z", "p", "p (t)", "n", "better in", "worse in"]
    rows = []
    for compared in comparisons_of(report, dataset, metric):
        labels = labels_of(compared.groups)
        better, worse = (listed(labels[name] for name in names) for names in better_and_worse(compared))
        macro = compared.macro
        cells = [signed(macro.difference), interval(macro.interval, sign=True), rounded(macro.d_z)]
        cells += [p_value(macro.p_permutation), p_value(macro.p_t), str(macro.n)]
        rows.append([f"{compared.system} − {compared.baseline}", *cells, better, worse])
    note = (
        "p: permutation test of the mean difference; p (t) and d_z: over what the mean is over, questions or groups."
        " Better and worse: groups with p < 0.05 after Holm's correction."
    )
    return Table(f"{dataset}: {metric}, comparisons", columns, rows, note, words=(7, 8))


def difference_table(compared: Compared) -> Table:
    """One row a group of one comparison, with every number of the record."""
    columns = ["group", "n", compared.baseline, compared.system, "difference", "95 % interval", "d_z"]
    columns += ["p", "p, Holm", "p (t)", "p (t), Holm"]
    counts, labels = [gap.n for gap in compared.groups.values()], labels_of(compared.groups)
    rows = [_difference_row("mean", compared.macro, str(compared.macro.n))]
    rows += [_difference_row(labels[name], gap, _count(gap.n, counts)) for name, gap in compared.groups.items()]
    return Table(f"{compared.system} − {compared.baseline} on {compared.dataset}, {compared.metric}", columns, rows)


_SHOWN = 200


def changes_table(compared: Compared, what: str) -> Table:
    """Questions `won` or `lost`: what was asked, what is right, and what either system found first."""
    changes: Sequence[Change] = getattr(compared, what)
    columns = ["question", "asked in", compared.metric, "right passage"]
    columns += [f"{name} finds first" for name in (compared.baseline, compared.system)]
    labels = labels_of(compared.groups)
    rows = [
        [
            change.text, labels.get(change.group, change.group), f"{number(change.before)} → {number(change.after)}",
            cut(change.relevant, _SHOWN),
            *("the right one" if text == change.relevant else cut(text, _SHOWN)
              for text in (change.found_before, change.found_after)),
        ]
        for change in changes
    ]  # fmt: skip
    total = compared.counts[what == "lost"]
    told = f"{total} questions {what}" + (f", {len(rows)} of them" if len(rows) < total else "")
    title = f"{compared.dataset}, {compared.system} against {compared.baseline}: {told}"
    return Table(title, columns, rows, words=(1, 2, 3, 4, 5))


def _difference_row(name: str, gap: Difference, n: str) -> list[str]:
    values = [share(gap.baseline), share(gap.system), signed(gap.difference) + stars(corrected(gap))]
    tests = [p_value(p) for p in (gap.p_permutation, gap.holm_permutation, gap.p_t, gap.holm_t)]
    return [name, n, *values, interval(gap.interval, sign=True), rounded(gap.d_z), *tests]


def sweep_table(sweep: Sweep) -> Table:
    """One row a setting: the metric, then its groups."""
    names = list(dict.fromkeys(name for point in sweep.points for name in point.groups))
    rows = [[number(p.x), share(p.value), *cells(p.groups, names, share)] for p in sweep.points]
    title = f"{sweep.dataset}: {sweep.system}, {parameter_name(sweep)}"
    return Table(title, [sweep.parameter, sweep.metric, *names], rows)


def cells(values: Mapping[str, float], names: Sequence[str], told: Callable[[float], str]) -> list[str]:
    """Return the text of each named value, or a dash."""
    return [told(values[name]) if name in values else NOTHING for name in names]


def heat_table(heatmap: HeatMap) -> Table:
    """One row a query language, one column a passage language; the page colours the cells."""
    labels = labels_of(heatmap.rows)
    rows = [[labels[name], *map(share, values)] for name, values in zip(heatmap.rows, heatmap.values, strict=True)]
    note = "Rows: the question's language; columns: the passages'. The stronger the colour, the higher the value."
    title = f"{heatmap.dataset}: {heatmap.system}, {heatmap.what}"
    return Table(title, ["query \\ passage", *heatmap.columns], rows, note, heat=True)
