"""Claims of a study, judged by the report of a suite: holds, does not hold, cannot be tested here.

A claims file has `[[claims]]` tables with `claim`, the sentence, and `kind`:

- improves: `system` beats `baseline` by `metric` on `dataset`, macro, with a permutation p below `p` (.05 by default).
- exceptions: the same pair falls in less than half of the languages, and in none significantly (Holm).
- grows: the sweep of `system` over n ends at its best point, and above the first.
- untestable: `reason` says why.

    python benchmarks/claims.py benchmarks/claims/xquad.toml benchmarks/reports/claims/report.json
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xqg_vdb.evaluate.records import Compared, Report
from xqg_vdb.evaluate.report import read_report

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be tested here"


@dataclass(frozen=True)
class Claim:
    """One claim, as a claims file has it."""

    claim: str
    kind: Literal["improves", "grows", "exceptions", "untestable"]
    dataset: str = ""
    metric: str = ""
    baseline: str = ""
    system: str = ""
    p: float = 0.05
    reason: str = ""


def read_claims(path: Path) -> list[Claim]:
    return [Claim(**table) for table in tomllib.loads(path.read_text("utf-8"))["claims"]]


def judged(claim: Claim, report: Report) -> tuple[str, str]:
    """Verdict and evidence."""
    if claim.kind == "untestable":
        return OPEN, claim.reason
    if claim.kind == "grows":
        return grows(claim, report)
    wanted = (claim.dataset, claim.metric, claim.baseline, claim.system)
    for found in report.comparisons:
        if (found.dataset, found.metric, found.baseline, found.system) == wanted:
            return {"improves": improves, "exceptions": exceptions}[claim.kind](claim, found)
    return OPEN, f"the report does not compare {claim.system} with {claim.baseline} by {claim.metric}."


def improves(claim: Claim, found: Compared) -> tuple[str, str]:
    macro = found.macro
    holds = macro.difference > 0 and macro.p_permutation < claim.p
    return HOLDS if holds else FAILS, (
        f"{claim.metric} on {claim.dataset}: {claim.baseline} {100 * macro.baseline:.1f}, {claim.system} "
        f"{100 * macro.system:.1f} ({100 * macro.difference:+.1f} points, n = {macro.n}, permutation "
        f"p = {macro.p_permutation:.4f}; asked for p < {claim.p:g})."
    )


def exceptions(claim: Claim, found: Compared) -> tuple[str, str]:
    falls = {name: d for name, d in found.groups.items() if d.difference < 0}
    sure = [name for name, d in falls.items() if d.holm_permutation is not None and d.holm_permutation < claim.p]
    named = ", ".join(f"{name} {100 * d.difference:+.1f}" for name, d in falls.items()) or "none"
    return HOLDS if len(falls) * 2 < len(found.groups) and not sure else FAILS, (
        f"{claim.metric} on {claim.dataset}: {len(found.groups) - len(falls)} of {len(found.groups)} languages do not "
        f"fall; falling: {named}; significantly (Holm): {', '.join(sure) or 'none'}."
    )


def grows(claim: Claim, report: Report) -> tuple[str, str]:
    wanted = (claim.dataset, claim.metric, claim.system, "n")
    points = next(
        (s.points for s in report.sweeps if (s.dataset, s.metric, s.system, s.parameter) == wanted), []
    )  # fmt: skip
    if len(points) < 2:
        return OPEN, "the report has no sweep over the number of queries."
    values = [point.value for point in points]
    curve = ", ".join(f"{point.x}: {100 * point.value:.1f}" for point in points)
    holds = values[-1] == max(values) and values[-1] > values[0]
    return HOLDS if holds else FAILS, f"{claim.metric} on {claim.dataset} by queries a language: {curve}."


def lines(claims: Path, report: Path) -> Iterator[str]:
    found = read_report(report)
    for claim in read_claims(claims):
        verdict, evidence = judged(claim, found)
        yield f"[{verdict}] {claim.claim}\n    {evidence}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", type=Path, help="TOML")
    parser.add_argument("report", type=Path, help="report.json of `xqg-vdb bench`")
    options = parser.parse_args()
    for line in lines(options.claims, options.report):
        print(line)


if __name__ == "__main__":
    main()
