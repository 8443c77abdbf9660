"""Reports say what the records say, in every form, whatever the names are."""

import base64
import hashlib
import html as html_lib
import math
import re
import sys
import unicodedata
from dataclasses import fields, replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_cases import AFRIQA, XQUAD, empty, named, realistic

from xqg_vdb.errors import DataError, MissingExtra
from xqg_vdb.evaluate.records import Change, Compared, Difference, HeatMap, Point, Report, Result, Sweep, Value
from xqg_vdb.evaluate.report import render
from xqg_vdb.evaluate.report.figures import curve_figure, difference_panels, round_ticks, scale, spread
from xqg_vdb.evaluate.report.outline import sentence
from xqg_vdb.evaluate.report.render import read_report, render_markdown, render_page, render_terminal, write_report
from xqg_vdb.evaluate.report.tables import (
    clean,
    cut,
    facts,
    group_table,
    headline_table,
    interval,
    listed,
    p_value,
    stars,
    width,
)
from xqg_vdb.texts.languages import english_name

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'/><svg onload=alert(1)>", "{{ 7 * 7 }}{% raw %}",
    "]]></style></title></desc><!--", "a|b\nc\r\nd", "\x1b[31mred\x07\x00", "\u202egnp.exe", "\ud800", "&lt;b&gt;",
    "`x` **y** _z_ [l](http://evil.example) ![i](http://evil.example/i.png)", "# head", "- item", "", "   ",
]  # fmt: skip


class Seen(HTMLParser):
    """The tags, attributes, text and tables of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.tables, self.cell = [], [], [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell is not None:
            self.cell += data


def svgs(html):
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg .*?</svg>", html, re.DOTALL)]


@pytest.fixture(scope="module")
def report():
    return realistic()


@pytest.fixture(scope="module")
def html(report):
    return render_page(report)


# ---- files


def test_three_files_and_what_is_read_is_what_was_written(tmp_path, report):
    paths = write_report(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert read_report(paths[0]) == report
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)
    assert write_report(read_report(paths[0]), tmp_path)[2].read_bytes() == paths[2].read_bytes()


NAMES = st.one_of(st.text(max_size=12), st.sampled_from(HOSTILE), st.sampled_from([*AFRIQA, "العربية", "中文"]))
SHARES = st.floats(0, 1)
CHANGES = st.floats(-1, 1)
COUNTS = st.integers(0, 10**6)
FACTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e9, 1e9), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
NAMED_FACTS = st.dictionaries(NAMES, st.dictionaries(NAMES, FACTS, max_size=3), max_size=2)
VALUES = st.builds(Value, COUNTS, SHARES, st.one_of(st.none(), st.tuples(SHARES, SHARES)))
MAYBE = st.one_of(st.none(), SHARES)
DIFFERENCES = st.builds(
    Difference, COUNTS, SHARES, SHARES, CHANGES, st.one_of(st.none(), st.tuples(CHANGES, CHANGES)),
    st.one_of(st.none(), st.floats(-50, 50)), SHARES, SHARES, MAYBE, MAYBE,
)  # fmt: skip
POINTS = st.builds(Point, st.one_of(NAMES, st.floats(0, 100)), SHARES, st.dictionaries(NAMES, SHARES, max_size=3))
SWEEPS = st.builds(
    Sweep, NAMES, NAMES, NAMES, st.sampled_from(["alpha", "lambda", "n", "without"]), st.lists(POINTS, max_size=4)
)


@st.composite
def heat(draw):
    rows, columns = draw(st.lists(NAMES, max_size=3)), draw(st.lists(NAMES, max_size=3))
    row = st.lists(SHARES, min_size=len(columns), max_size=len(columns))
    values = draw(st.lists(row, min_size=len(rows), max_size=len(rows)))
    return HeatMap(draw(NAMES), draw(NAMES), draw(NAMES), rows, columns, values)


def some(strategy):
    return st.lists(strategy, max_size=3)


GROUPS = st.dictionaries(NAMES, VALUES, max_size=3)
SECONDS = st.dictionaries(NAMES, st.floats(0, 1e6), max_size=2)
REPORTS = st.builds(
    Report, NAMES, NAMES, NAMES, NAMES, st.dictionaries(NAMES, FACTS, max_size=3), NAMED_FACTS, NAMED_FACTS,
    NAMED_FACTS, NAMED_FACTS, some(st.builds(Result, NAMES, NAMES, NAMES, VALUES, GROUPS, SECONDS)),
    some(st.builds(Compared, NAMES, NAMES, NAMES, NAMES, DIFFERENCES, st.dictionaries(NAMES, DIFFERENCES, max_size=3))),
    some(SWEEPS), some(heat()),
    some(NAMES),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REPORTS)
def test_any_report_is_written_and_comes_back(one):
    with TemporaryDirectory() as folder:
        paths = write_report(one, folder)
        assert read_report(paths[0]) == one
        page_text = paths[2].read_text("utf-8")
    assert "<script" not in page_text
    svgs(page_text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", render_terminal(one))


def test_an_empty_report_has_no_empty_sections(tmp_path):
    write_report(empty(), tmp_path)
    page_text = (tmp_path / "report.html").read_text()
    seen = Seen(page_text)
    assert (seen.tables, seen.tags.count("h2"), seen.tags.count("figure")) == ([], 0, 0)
    assert render_terminal(empty()) == "nothing\n"
    assert "|" not in (tmp_path / "report.md").read_text()


def test_numbers_that_json_does_not_know_are_refused_before_anything_is_written(tmp_path, report):
    wrong = replace(report, results=[replace(report.results[0], headline=Value(1, math.nan))])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(wrong, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "{", "JSONDecodeError"),
        (lambda text: "[" * 100_000, "RecursionError"),
        (lambda text: "[]", "no report of schema 1"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "no report of schema 1"),
        (lambda text: text.replace('"suite"', '"sweet"'), "missing 1 required positional argument: 'suite'"),
        (lambda text: text.replace('"p_t"', '"p_z"', 1), "missing 1 required positional argument: 'p_t'"),
        (lambda text: text.replace('"value": 0', '"value": "<b>", "x": 0', 1), "ValueError: value cannot be"),
        (lambda text: text.replace('"system": "plain"', '"system": 5', 1), "system cannot be 5"),
        (lambda text: text.replace('"n": 190', '"n": true', 1), "ValueError: n cannot be True"),
        (lambda text: text.replace('"n": 190', '"n": NaN', 1), "ValueError: n cannot be nan"),
        (lambda text: text.replace('"zh"\n', '"zh", "zu"\n'), "has not one value a row and column"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, report, change, said):
    path = write_report(report, tmp_path)[0]
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError) as caught:
        read_report(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path} is not a report of this version (")


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*report\.json"):
        read_report(tmp_path / "report.json")


def test_without_jinja2_the_numbers_are_kept_and_the_extra_is_named(tmp_path, report, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    render._template.cache_clear()
    with pytest.raises(MissingExtra) as caught:
        write_report(report, tmp_path)
    assert str(caught.value) == 'report.html needs jinja2; run: pip install "xqg-vdb[bench]"'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


# ---- names


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
def test_no_name_changes_the_page(name):
    harmless, hostile = Seen(render_page(named("a longer name"))), Seen(render_page(named(name)))
    if name.strip():
        assert hostile.tags == harmless.tags
    assert {entry[:2] for entry in hostile.attributes} <= {entry[:2] for entry in harmless.attributes}
    assert len(svgs(render_page(named(name)))) == 2
    if "\n" not in name:
        assert clean(name) in "".join(hostile.text)


def visible_pipes(line):
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
def test_no_name_changes_the_markdown(name):
    text = render_markdown(named(name))
    body = re.sub(r"^(`{3,})console\n.*?^\1$", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"<[^>]*>", body)) == {"<details>", "<summary>", "</summary>", "</details>"}
    assert not re.search(r"(?<!\\)[`*\[]", re.sub(r"<summary>.*", "", body))  # a line of HTML
    tables = re.findall(r"(?:^\|.*\n?)+", body, re.MULTILINE)
    assert len(tables) == len(re.findall(r"(?:^\|.*\n?)+", render_markdown(named("name")), re.MULTILINE))
    for table in tables:
        assert len({visible_pipes(line) for line in table.splitlines()}) == 1
    if name.strip():
        heads = re.findall(r"^#+ ", body, re.MULTILINE)
        assert heads == re.findall(r"^#+ ", render_markdown(named("name")), re.MULTILINE)


@pytest.mark.parametrize("name", HOSTILE, ids=[f"{number}" for number in range(len(HOSTILE))])
def test_no_name_reaches_the_terminal_as_a_command(name):
    text = render_terminal(named(name))
    assert [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"] == []
    assert "\u202e" not in text


def test_a_command_with_backticks_stays_in_its_block():
    text = render_markdown(replace(empty(), command="xqg-vdb bench `a` ```\n# not a heading"))
    assert "````console\nxqg-vdb bench `a` ```\n# not a heading\n````\n" in text


# ---- numbers


def rows_of(tables, head):
    return next(table[1:] for table in tables if table[0] == list(head))


def stars_of(p):
    if p < 0.001:
        return "***"
    if p < 0.01:
        return "**"
    return "*" if p < 0.05 else ""


def expected_headline(report, dataset, metric):
    """Written out from the records, row by row."""
    rows = []
    for one in report.results:
        if (one.dataset, one.metric) != (dataset, metric):
            continue
        low, high = one.headline.interval
        row = [one.system, f"{one.headline.value:.3f}", f"{low:.3f} to {high:.3f}", str(one.headline.n)]
        against = [
            c.macro for c in report.comparisons
            if (c.dataset, c.metric, c.system, c.baseline) == (dataset, metric, one.system, "plain")
        ]  # fmt: skip
        for macro in against:
            p = macro.p_permutation
            row += [f"{macro.difference:+.3f}{stars_of(p)}", f"{macro.interval[0]:+.3f} to {macro.interval[1]:+.3f}"]
            row.append("<0.001" if p < 0.001 else f"{p:.3f}")
        rows.append(row if against else [*row, "–", "–", "–"])
    return rows


def language(code):
    return f"{english_name(code)} ({code})"


def expected_groups(report, dataset, metric):
    results = [one for one in report.results if (one.dataset, one.metric) == (dataset, metric)]
    rows = []
    for name in results[0].groups:
        row = [language(name), str(results[0].groups[name].n)]
        for one in results:
            cell = f"{one.groups[name].value:.3f}"
            for c in report.comparisons:
                if (c.dataset, c.metric, c.system, c.baseline) == (dataset, metric, one.system, "plain"):
                    d = c.groups[name]
                    mark = stars_of(d.holm_permutation)
                    cell += ("↓" if mark and d.difference < 0 else "") + mark
            row.append(cell)
        rows.append(row)
    return rows


def markdown_tables(text):
    text = re.sub(r"\*\*(\d[\d.]*↓?)\*\*", r"\1", text)  # the best of a row
    plain = re.sub(r"\\([\\`*_\[\]|~$#])", r"\1", text).replace("&lt;", "<")
    blocks = re.findall(r"(?:^\|.*\n?)+", plain, re.MULTILINE)
    tables = [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in [table[0], *table[2:]]] for table in tables]


@pytest.mark.parametrize("metric", ["R@10", "MRR@10"])
def test_the_tables_say_what_the_records_say(report, html, metric):
    headline = headline_table(report, "afriqa", metric)
    groups = group_table(report, "afriqa", metric)
    assert list(map(list, headline.rows)) == expected_headline(report, "afriqa", metric)
    assert list(map(list, groups.rows)) == expected_groups(report, "afriqa", metric)
    assert "↓" not in headline.columns
    for tables in (Seen(html).tables, markdown_tables(render_markdown(report))):
        assert rows_of(tables, headline.columns) == expected_headline(report, "afriqa", metric)
        found = [table[1:] for table in tables if table[0] == list(groups.columns)]
        assert expected_groups(report, "afriqa", metric) in found


def test_some_marks_are_there_to_be_checked(report):
    cells = [cell for row in group_table(report, "afriqa", "R@10").rows for cell in row[2:]]
    assert {cell.lstrip("0123456789.") for cell in cells} >= {"", "*", "**", "***"}


def test_what_is_significantly_worse_is_marked(report):
    groups = {"sw": Difference(9, 0.5, 0.25, -0.25, None, None, 0.001, 0.002, 0.002, 0.004)}
    results = [Result("d", s, "m", Value(9, v), {"sw": Value(9, v)}) for s, v in (("a", 0.5), ("b", 0.25))]
    compared = Compared("d", "m", "a", "b", groups["sw"], groups)
    small = replace(empty(), results=results, comparisons=[compared])
    assert group_table(small, "d", "m").rows == [["Swahili (sw)", "9", "0.500", "0.250↓**"]]
    assert headline_table(small, "d", "m").rows[1] == ["b", "0.250", "–", "9", "-0.250**", "–", "0.002"]


def test_the_baseline_is_the_first_that_is_compared_with(report):
    assert headline_table(report, "afriqa", "R@10").columns[4] == "− plain"
    fewer = replace(report, comparisons=[c for c in report.comparisons if c.baseline != "plain"])
    assert headline_table(fewer, "afriqa", "R@10").columns[4] == "− calibrated (question bank)"
    none = replace(report, comparisons=[])
    assert headline_table(none, "afriqa", "R@10").columns == ["system", "R@10", "95 % interval", "n"]


def test_sweeps_heat_maps_and_provenance_are_in_all_tables(report, html):
    for tables in (Seen(html).tables, markdown_tables(render_markdown(report))):
        alpha = rows_of(tables, ["alpha", "R@10", *AFRIQA])
        sweep = report.sweeps[0]
        assert alpha == [
            [f"{p.x:.4g}", f"{p.value:.3f}", *(f"{p.groups[g]:.3f}" for g in AFRIQA)] for p in sweep.points
        ]
        shares = rows_of(tables, ["query \\ passage", *XQUAD])
        assert shares == [
            [language(name), *(f"{v:.3f}" for v in row)]
            for name, row in zip(XQUAD, report.heatmaps[0].values, strict=True)
        ]
        systems = rows_of(tables, ["system", "what", "value"])
        assert ["xQG", "recipe.alpha", "0.35"] in systems
        assert ["commit", report.environment["commit"]] in rows_of(tables, ["what", "value"])
        first = report.results[0]
        assert rows_of(tables, ["dataset: system", *first.seconds])[0][0] == "afriqa: plain"


@pytest.mark.parametrize("columns", [100, 72, 60])
def test_the_terminal_report_fits_and_says_the_same(report, columns):
    text = render_terminal(report, width=columns)
    assert max(map(width, text.splitlines())) <= columns
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    for name in [*AFRIQA, *XQUAD]:
        assert re.search(rf"^{re.escape(language(name))} +\d", text, re.MULTILINE)
    if columns == 100:
        for row in expected_headline(report, "afriqa", "R@10"):
            assert re.search(r" +".join(map(re.escape, row)), text)
        for row in expected_groups(report, "afriqa", "R@10"):
            assert re.search(rf"^{' +'.join(map(re.escape, row[:6]))} *$", text, re.MULTILINE)
            assert re.search(rf"^{' +'.join(map(re.escape, [row[0], *row[6:]]))} *$", text, re.MULTILINE)


# ---- the verdict


def by_hand():
    """Three languages: one surely better, one surely worse, one unsure; the mean is surely better."""

    def change(baseline, system, p):
        return Difference(100, baseline, system, system - baseline, (-0.1, 0.1), 0.2, p, p, p, p)

    groups = {"ar": change(0.5, 0.75, 0.001), "sw": change(0.5, 0.25, 0.001), "zh": change(0.5, 0.55, 0.4)}
    won = Change(
        "q1",
        "sw",
        "Mto Nile una urefu gani?",
        "The Nile is long.",
        0.0,
        1.0,
        "The Rhine is short.",
        "The Nile is long.",
    )
    compared = Compared("set", "R@1", "plain", "calibrated", change(0.5, 0.5166, 0.01), groups, (won,), (), (12, 0))
    values = {name: Value(100, 0.5) for name in groups}
    results = [
        Result("set", name, "R@1", Value(300, value), values)
        for name, value in (("plain", 0.5), ("calibrated", 0.5166))
    ]
    return replace(empty(), suite="set", created="today", results=results, comparisons=[compared])


def forms(report):
    """What the three forms say, without markup and line ends."""
    page = html_lib.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]*>", "", render_page(report), flags=re.DOTALL))
    return [
        re.sub(r"\\(?=[*_])|\s+(?=\s)", "", text).replace("\n", " ")
        for text in (page, render_markdown(report), render_terminal(report))
    ]


def test_the_verdict_and_the_title_are_the_same_in_every_form():
    for text in forms(by_hand()):
        assert "calibrated against plain on set, 3 languages" in text
        assert "calibrated: R@1 0.500 → 0.517, sure; better in 1 of 3 languages, worse in 1." in text
        assert "from each question's vector, the mean question of its language is taken away" in text
        assert "R@1: the share of a question's right passages that are found in the first place." in text


@pytest.mark.parametrize(("p", "system", "metric", "said"), [
    (0.2, 0.6, "R@1", "not sure, it may be chance"), (0.01, 0.4, "R@1", "worse, sure"),
    (0.01, 0.5, "R@1", "no difference"),
    (0.01, 0.4, "RankDistance@10", "sure"), (0.2, 0.4, "R@1", "worse, not sure, it may be chance"),
])  # fmt: skip
def test_the_verdict_in_words(p, system, metric, said):
    macro = Difference(9, 0.5, system, system - 0.5, None, None, p, p)
    told = sentence(Compared("d", metric, "plain", "new", macro, {"short": macro, "long": macro}))
    better, worse = ("2", "none") if said == "sure" else ("none", "2" if said == "worse, sure" else "none")
    assert told == f"new: {metric} 0.500 → {system:.3f}, {said}; better in {better} of 2 groups, worse in {worse}."
    assert sentence(Compared("d", metric, "plain", "new", macro, {})) == f"new: {metric} 0.500 → {system:.3f}, {said}."


def test_questions_won_are_shown_with_their_texts():
    page, markdown, _ = forms(by_hand())
    for text in (page, markdown):
        assert "set, calibrated against plain: 12 questions won, 1 of them" in text
        assert "Mto Nile una urefu gani?" in text and "Swahili (sw)" in text
        assert "The Rhine is short." in text and "the right one" in text
    without = replace(by_hand(), comparisons=[replace(by_hand().comparisons[0], won=())])
    assert "won and lost" not in render_page(without), "reports of before they were kept"


# ---- words


def test_words_for_numbers():
    assert [p_value(p) for p in (None, 0.0, 0.00099, 0.001, 0.0504, 1.0)] == [
        "–",
        "<0.001",
        "<0.001",
        "0.001",
        "0.050",
        "1.000",
    ]
    assert [stars(p) for p in (None, 0.0, 0.001, 0.0099, 0.01, 0.049, 0.05)] == ["", "***", "**", "**", "*", "*", ""]
    assert (interval(None), interval((0.1, 0.25)), interval((-0.1, 0.2), sign=True)) == (
        "–",
        "0.100 to 0.250",
        "-0.100 to +0.200",
    )
    assert (listed([]), listed(["sw", "ha"]), listed(["א", "ب"])) == ("–", "sw, ha", "א, \u200eب")
    assert facts({"a": {"b": 1, "c": []}, "d": [True, None], "e": {}, "f": 123456}) == [
        ("a.b", "1"), ("a.c", "–"), ("d", "yes, –"), ("e", "–"), ("f", "123456"),
    ]  # fmt: skip


def test_widths_of_wide_and_combining_characters():
    assert [width(text) for text in ("abc", "北京", "e\u0301", "")] == [3, 4, 1, 0]
    assert [cut("abcdef", 4), cut("北京官话", 5), cut("abc", 3)] == ["abc…", "北京…", "abc"]


# ---- the page


def test_the_page_asks_for_nothing_and_runs_nothing(html):
    seen = Seen(html)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(seen.tags)
    named_attributes = {name for _, name, _ in seen.attributes}
    assert not {"src", "srcset", "xlink:href", "action", "data"} & named_attributes
    assert not [name for name in named_attributes if name.startswith("on")]
    targets = [value for _, name, value in seen.attributes if name == "href"]
    assert targets
    assert all(target.startswith("#") for target in targets)
    without_namespace = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|url\(|@import", without_namespace)
    assert "default-src 'none'" in html


def test_the_policy_allows_the_style_sheet_and_no_other(html):
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style.strip() == files("xqg_vdb.evaluate.report").joinpath("templates/report.css").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for tag, name, value in Seen(html).attributes if (tag, name) == ("meta", "content"))
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert " style=" not in html.replace(style, "")


def test_ids_are_unique_and_links_arrive(html):
    ids = [value for _, name, value in Seen(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in Seen(html).attributes if name == "href"} <= set(ids)


def test_every_figure_is_wellformed_and_described(report, html):
    found = svgs(html)
    panels = 4 * (len(report.systems) - 1)  # a panel a system and metric of a dataset
    assert len(found) == panels + 3
    for one in found:
        title, description = one[0], one[1]
        assert (title.tag, description.tag) == (SVG + "title", SVG + "desc")
        assert title.text
        assert description.text


KEYS = {name: number for number, name in enumerate(realistic().systems, start=1)}


SVG = "{http://www.w3.org/2000/svg}"


def figures(report):
    yield from difference_panels([one for one in report.comparisons if one.dataset == "afriqa"])
    yield from [curve_figure([one], keys=KEYS) for one in report.sweeps[:2]]
    yield curve_figure([one for one in report.sweeps if one.parameter == "n"], keys=KEYS)


def shapes(figure, tag, css=""):
    """The shapes of a drawing with this tag whose classes begin so."""
    return [one for one in ElementTree.fromstring(figure).iter(SVG + tag) if one.get("class", "").startswith(css)]


def at(shape, *names):
    return [float(shape.get(name)) for name in names]


def points_of(curve):
    return [tuple(map(float, point.split(","))) for point in curve.get("points").split()]


def corners(shape):
    match shape.tag.removeprefix(SVG):
        case "line":
            return [at(shape, "x1", "y1"), at(shape, "x2", "y2")]
        case "rect":
            (x, y), (width, height) = at(shape, "x", "y"), at(shape, "width", "height")
            return [(x, y), (x + width, y + height)]
        case "circle":
            (x, y), (radius,) = at(shape, "cx", "cy"), at(shape, "r")
            return [(x - radius, y - radius), (x + radius, y + radius)]
        case "polyline":
            return points_of(shape)
        case "text":
            return [at(shape, "x", "y")]
        case _:
            return []


def test_nothing_is_drawn_outside_its_figure(report):
    for figure in figures(report):
        drawn = ElementTree.fromstring(figure)
        _, _, width, height = map(float, drawn.get("viewBox").split())
        assert len(drawn) > 5
        for shape in drawn.iter():
            for x, y in corners(shape):
                assert -0.1 <= x <= width + 0.1, ElementTree.tostring(shape)
                assert -0.1 <= y <= height + 0.1, ElementTree.tostring(shape)


def test_dots_and_whiskers_lie_at_their_numbers_from_the_zero_line(report):
    compared = [one for one in report.comparisons if (one.dataset, one.metric) == ("afriqa", "R@10")]
    for one, panel in zip(compared, difference_panels(compared), strict=True):
        changes = [one.macro, *one.groups.values()]
        (zero,) = {at(line, "x1")[0] for line in shapes(panel, "line", "zero")}
        dots = shapes(panel, "circle")
        unit = (at(dots[0], "cx")[0] - zero) / one.macro.difference
        for change, dot, line in zip(changes, dots, shapes(panel, "line", "whisker"), strict=True):
            assert (at(dot, "cx")[0] - zero) / unit == pytest.approx(change.difference, abs=1e-3)
            assert [(x - zero) / unit for x in at(line, "x1", "x2")] == pytest.approx(list(change.interval), abs=1e-3)
            p = change.p_permutation if change.holm_permutation is None else change.holm_permutation
            assert dot.get("class") == ("unsure" if p >= 0.05 else "better" if change.difference > 0 else "worse")
        assert {one.get("class") for one in dots} <= {"better", "worse", "unsure"}
    panel = difference_panels([replace(compared[0], metric="RankDistance@10")])[0]
    assert shapes(panel, "circle", "worse") and not shapes(panel, "circle", "better"), "there less is better"


def test_curves_pass_through_their_points(report):
    sweep = report.sweeps[0]
    figure = curve_figure([sweep], keys=KEYS)
    assert [one[0].text for one in shapes(figure, "polyline", "thin")] == AFRIQA
    points = points_of(shapes(figure, "polyline", "thick")[0])
    (x0, y0), (x1, y1) = points[0], points[7]  # the ends of a rising part give the scale
    per_x, per_y = (x1 - x0) / 0.35, (y1 - y0) / (sweep.points[7].value - sweep.points[0].value)
    for point, (x, y) in zip(sweep.points, points, strict=True):
        assert x == pytest.approx(x0 + per_x * point.x, abs=0.5)
        assert y == pytest.approx(y0 + per_y * (point.value - sweep.points[0].value), abs=1)


def test_a_cell_of_the_heat_map_is_as_strong_as_its_value(report, html):
    shown = re.findall(r'<td class="h(\d)">(0\.\d{3}|1\.000)</td>', html)
    values = [value for heatmap in report.heatmaps for row in heatmap.values for value in row]
    assert [value for _, value in shown] == [f"{value:.3f}" for value in values]
    assert all(int(strength) == min(9, int(float(value) * 10)) for strength, value in shown)


NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.integers(2, 9))
def test_ticks_lie_within_and_are_few(one, other, most):
    low, high = min(one, other), max(one, other)
    ticks = round_ticks(low, high, most=most)
    room = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert 1 <= len(ticks) <= most
    assert all(low - room <= tick <= high + room for tick in ticks)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_labels_are_moved_apart_in_order(places):
    moved = spread(places, gap=11, low=0, high=100)
    order = sorted(range(len(places)), key=places.__getitem__)
    gaps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(gap >= 11 - 1e-6 for gap in gaps)
    assert min(moved) >= -1e-6
    assert max(moved) <= 100 + 1e-6


def test_a_scale_without_extent_has_a_middle():
    assert (scale(2, 2, 0, 10)(2), scale(0, 2, 0, 10)(1)) == (5, 5)


def test_all_fields_of_the_report_are_shown():
    """A field added to the record must be shown somewhere, or this list must say why not."""
    shown = {"suite", "description", "command", "created", "environment", "datasets", "encoders", "query_files"}
    shown |= {"systems", "results", "comparisons", "sweeps", "heatmaps", "notes"}
    assert {field.name for field in fields(Report)} == shown
