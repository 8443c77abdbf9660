"""What a finished benchmark says: the records that `report.json` holds and every other report is made from.

The harness fills them, `report/` prints them; neither knows how the other works. All of it is plain numbers and
strings, so that a report can be made again years later from `report.json` alone (`Report.from_json`).
Shares are in 0..1; differences are system minus baseline; intervals are bootstrap intervals at 95 %.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xqg_vdb.types import Stored

Ends = tuple[float, float] | None
"""Low and high end of an interval; None when one question or none leaves nothing to resample."""


@dataclass(frozen=True, slots=True)
class Value:
    """A mean over n questions, with its interval."""

    n: int
    value: float
    interval: Ends = None


@dataclass(frozen=True, slots=True)
class Result:
    """One system on one dataset by one metric.

    headline: by the publisher's average (over questions or over groups). groups: usually language -> value.
    cost: bytes of vectors a passage and milliseconds a look-up, where real collections were asked.
    """

    dataset: str
    system: str
    metric: str
    headline: Value
    groups: Mapping[str, Value]
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """System minus baseline on n shared questions; see `significance.Comparison`. holm_*: corrected for the groups.

    None stands for what is undefined with so few questions.
    """

    n: int
    baseline: float
    system: float
    difference: float
    interval: Ends
    d_z: float | None
    p_t: float
    p_permutation: float
    holm_t: float | None = None
    holm_permutation: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A question whose value differs: what was asked, what answers it, and what either system found first."""

    question: str
    group: str
    text: str
    relevant: str
    before: float
    after: float
    found_before: str
    found_after: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One system against one baseline on one dataset by one metric, over all groups (macro) and in each.

    won, lost: questions that changed, or examples of them; counts: how many were won and lost in all.
    """

    dataset: str
    metric: str
    baseline: str
    system: str
    macro: Difference
    groups: Mapping[str, Difference]
    won: tuple[Change, ...] = ()
    lost: tuple[Change, ...] = ()
    counts: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a sweep: x is a number, or a word (`without sw`)."""

    x: int | float | str
    value: float
    groups: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A metric over settings of one parameter of a system: `alpha`, `lambda`, `n` (queries a language) or `without`."""

    dataset: str
    metric: str
    system: str
    parameter: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """values[i][j] for query language rows[i] and passage language columns[j], such as the share of the top 20."""

    dataset: str
    system: str
    what: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Report(Stored):
    """Everything that one run of a suite found.

    environment: versions, commit, machine, threads, tokeniser. datasets, systems, encoders, query_files: name -> facts
    as the report prints them (sizes, hashes, recipe, fingerprint, counts). command: makes this report again.
    """

    suite: str
    description: str
    command: str
    created: str
    environment: Mapping[str, Any]
    datasets: Mapping[str, Mapping[str, Any]]
    encoders: Mapping[str, Mapping[str, Any]]
    query_files: Mapping[str, Mapping[str, Any]]
    systems: Mapping[str, Mapping[str, Any]]
    results: Sequence[Result] = ()
    comparisons: Sequence[Compared] = ()
    sweeps: Sequence[Sweep] = ()
    heatmaps: Sequence[HeatMap] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict from which `from_json` makes an equal report."""
        return {"schema": 1, **super(Report, self).to_json()}


# What a number depends on besides the data: versions, commit, machine, threads.

_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "qdrant-edge-py", "qdrant-client", "scipy", "nltk")


def environment(*, threads: int) -> dict[str, Any]:
    """Versions of what computes the numbers, the commit of a checkout, processor, cores, memory, threads."""
    return {
        "xqg-vdb": _version("xqg-vdb"),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
    }


def commit() -> str:
    """The commit of the checkout that this package runs from, marked when files differ from it; "" outside of one."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - the user's own git
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py") == "":
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
