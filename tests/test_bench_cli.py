"""`xqg-vdb bench` as a process: reports on disk, JSON on stdout, one sentence for mistakes, and SIGKILL."""

import json
import signal

import killing
import pytest
from bench_cases import write_afriqa, write_queries
from cli_cases import environment, run_cli, write_starter

from xqg_vdb.evaluate.datasets import load_task

SUITE = """
name = "mini"
datasets = ["afriqa"]
[queries]
mine = "queries.jsonl"
[[systems]]
name = "plain"
calibration = 0
[[systems]]
name = "xqg"
queries = "mine"
[[comparisons]]
baseline = "plain"
systems = ["xqg"]
"""


@pytest.fixture
def desk(tmp_path):
    """A folder with a tiny starter, miniature AfriQA, its queries and a suite."""
    write_starter(tmp_path / "cache")
    write_afriqa(tmp_path / "data")
    write_queries(tmp_path / "queries.jsonl", load_task("afriqa", tmp_path / "data"))
    (tmp_path / "suite.toml").write_text(SUITE)
    return tmp_path


def test_a_dataset_by_name(desk):
    done = run_cli(desk, "bench", "afriqa", "--data-dir", "data", "--out", "reports", "--queries", "queries.jsonl")
    assert done.returncode == 0, done.stderr
    assert "calibrated + xQG" in done.stdout
    assert {path.name for path in (desk / "reports").iterdir()} >= {"report.json", "report.md", "report.html", "runs"}
    kept = json.loads((desk / "reports" / "report.json").read_text())
    assert kept["command"] == "xqg-vdb bench afriqa --data-dir data --out reports --queries queries.jsonl"
    assert {result["system"] for result in kept["results"]} >= {"plain", "calibrated", "shuffled queries"}
    assert {sweep["parameter"] for sweep in kept["sweeps"]} == {"alpha", "lambda", "n", "without"}


def test_a_suite_in_memory_and_in_a_store_of_ones_own(desk):
    memory = run_cli(desk, "bench", "suite.toml", "--data-dir", "data", "--out", "a", "--search", "memory", "--json")
    assert memory.returncode == 0, memory.stderr
    store = run_cli(desk, "bench", "suite.toml", "--data-dir", "data", "--out", "b", "--path", "store", "--json")
    assert store.returncode == 0, store.stderr
    ours, theirs = (json.loads(done.stdout)["results"] for done in (memory, store))
    assert [(r["system"], r["headline"]) for r in ours] == [(r["system"], r["headline"]) for r in theirs]
    listed = run_cli(desk, "list", "--path", "store", "--json")
    assert "xqg-bench" not in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["afrika", "--data-dir", "data"], 3, "afriqa"),
        (["afriqa"], 3, "--data-dir"),
        (["afriqa", "--data-dir", "absent"], 3, "no data folder"),
        (["suite.toml", "--data-dir", "data", "--queries", "queries.jsonl"], 2, "names its own query files"),
        (["afriqa", "--data-dir", "data", "--ef", "64"], 3, "is for graph search (--search graph), not exact"),
        (["absent.toml", "--data-dir", "data"], 3, "absent.toml"),
        (["xquad", "--data-dir", "data"], 3, "xquad-r/en.json"),
        (["afriqa", "--data-dir", "data", "--queries", "absent.jsonl"], 3, "absent.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_sentence(desk, arguments, code, says):
    done = run_cli(desk, "bench", *arguments, "--out", "reports")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


WORK = """
import os, sys
from xqg_vdb.cli import main

def work(folder, *arguments):
    os.chdir(folder)
    sys.argv = ["xqg-vdb", *arguments]
    main()
"""


def test_killed_at_every_point_it_goes_on(desk):
    """The values after a kill before every file that a run keeps are those of an unbroken run."""
    arguments, trace = [desk, "bench", "suite.toml", "--data-dir", "data", "--out"], desk / "trace"
    with killing.Workers(WORK, desk / "said", environment(desk)) as workers:
        assert workers.run(*arguments, desk / "whole", env=killing.traced(trace)) == 0, workers.said.read_text()
        points = [one.replace("*/whole/", "*/killed/") for one in killing.points(trace, desk) if one.endswith(" 1")]
        kept = [one for one in points if one.startswith("os.rename */killed/")]
        assert len(kept) >= 4 and kept[-1].startswith("os.rename */killed/report."), points
        for point in kept:
            assert workers.run(*arguments, desk / "killed", env=killing.at(point)) == -signal.SIGKILL, (point, points)
        assert workers.run(*arguments, desk / "killed") == 0, workers.said.read_text()
    whole, resumed = (json.loads((desk / name / "report.json").read_bytes()) for name in ("whole", "killed"))
    assert [r["headline"] for r in resumed["results"]] == [r["headline"] for r in whole["results"]]
    assert resumed["comparisons"] == whole["comparisons"]
