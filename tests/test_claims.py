"""`benchmarks/claims.py`: a study's claims, judged by recorded reports and by small ones."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import empty

from xqg_vdb.evaluate.records import Compared, Difference, Point, Sweep
from xqg_vdb.evaluate.suite import read_suite

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECORDED = [("xquad.toml", "claims"), ("afriqa-paper.toml", "afriqa-paper")]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("claims", BENCHMARKS / "claims.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    return module


def test_a_recorded_report_is_judged_as_when_it_was_made(script):
    """This report was made when `bench` judged claims itself, and holds its verdicts with their evidence."""
    path = BENCHMARKS / "reports" / "afriqa-paper" / "report.json"
    said = [
        f"[{one['verdict']}] {one['claim']}\n    {one['evidence']}" for one in json.loads(path.read_text())["claims"]
    ]
    assert list(script.lines(BENCHMARKS / "claims" / "afriqa-paper.toml", path)) == said


def test_the_verdicts_on_xquad_are_those_of_the_docs(script):
    path = BENCHMARKS / "reports" / "claims" / "report.json"
    lines = list(script.lines(BENCHMARKS / "claims" / "xquad.toml", path))
    found = [line[1 : line.index("]")] for line in lines]
    docs = (BENCHMARKS.parent / "docs" / "measurements.md").read_text("utf-8")
    table = re.findall(r"^\| \d\. [^|]+\| ([^|]+?) \|", docs.partition("The study's eight claims")[2], re.MULTILINE)
    assert found == [*table, "cannot be tested here"]
    assert "A + xQG 88.0 (+0.1 points, n = 13090, permutation p = 0.2868" in lines[6]


@pytest.mark.parametrize(("claims", "name"), RECORDED)
def test_the_suites_measure_what_the_claims_need(script, claims, name):
    suite = read_suite(BENCHMARKS / "suites" / f"{name}.toml")
    compared = {(one.baseline, system) for one in suite.comparisons for system in one.systems}
    swept = {(one.system, one.metric) for one in suite.sweeps if one.parameter == "n"}
    for claim in script.read_claims(BENCHMARKS / "claims" / claims):
        if claim.kind == "grows":
            assert (claim.system, claim.metric) in swept
        elif claim.kind != "untestable":
            assert (claim.baseline, claim.system) in compared
            assert claim.dataset in suite.datasets
            assert claim.metric in suite.metrics


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.1, 0.2, 0.3), "holds"),
        ((0.1, 0.3, 0.2), "does not hold"),
        ((0.3, 0.3), "does not hold"),
        ((0.3,), "cannot be tested here"),
    ],
)
def test_a_curve_grows_when_its_end_is_its_best(script, values, verdict):
    curve = Sweep("d", "R@1", "s", "n", [Point(i, value) for i, value in enumerate(values)])
    claim = script.Claim("more helps", "grows", "d", "R@1", system="s")
    assert script.judged(claim, replace(empty(), sweeps=[curve]))[0] == verdict


@pytest.mark.parametrize(
    ("falls", "holm", "verdict"),
    [(1, 0.5, "holds"), (1, 0.01, "does not hold"), (2, 0.5, "does not hold")],
)
def test_exceptions_are_few_and_not_sure(script, falls, holm, verdict):
    def difference(by):
        return Difference(9, 0.5, 0.5 + by, by, None, None, 0.5, 0.5, holm, holm)

    groups = {f"l{i}": difference(-0.1 if i < falls else 0.1) for i in range(4)}
    report = replace(empty(), comparisons=[Compared("d", "R@1", "a", "b", difference(0.1), groups)])
    claim = script.Claim("almost all gain", "exceptions", "d", "R@1", "a", "b")
    assert script.judged(claim, report)[0] == verdict
    assert script.judged(replace(claim, system="c"), report)[0] == "cannot be tested here"
