"""Published claims as questions to a suite's own results: holds, does not hold, cannot be tested here."""

from __future__ import annotations

from collections.abc import Sequence

from xqg_vdb.bench.records import Claim, Compared, Sweep
from xqg_vdb.bench.suite import ClaimPlan


def judge_claim(plan: ClaimPlan, *, comparisons: Sequence[Compared], sweeps: Sequence[Sweep]) -> Claim:
    """The verdict on one claim, with the numbers that it rests on; the harness made the comparison it needs."""
    if plan.kind == "untestable":
        return Claim(plan.claim, "cannot be tested here", plan.reason)
    if plan.kind == "grows":
        return _grows(plan, sweeps)
    found = next(
        (
            one for one in comparisons
            if (one.dataset, one.metric, one.baseline, one.system)
            == (plan.dataset, plan.metric, plan.baseline, plan.system)
        ),
        None,
    )  # fmt: skip
    if found is None:
        return Claim(plan.claim, "cannot be tested here", "the suite did not measure this pair of systems.")
    return _improves(plan, found) if plan.kind == "improves" else _exceptions(plan, found)


def _improves(plan: ClaimPlan, found: Compared) -> Claim:
    macro = found.macro
    holds = macro.difference > 0 and macro.p_permutation < plan.p
    return Claim(
        plan.claim,
        "holds" if holds else "does not hold",
        f"{plan.metric} on {plan.dataset}: {plan.baseline} {100 * macro.baseline:.1f}, {plan.system} "
        f"{100 * macro.system:.1f} ({100 * macro.difference:+.1f} points, n = {macro.n}, permutation "
        f"p = {macro.p_permutation:.4f}; asked for p < {plan.p:g}).",
    )


def _exceptions(plan: ClaimPlan, found: Compared) -> Claim:
    """Holds when the system gains in most groups and no group's loss is significant after Holm's correction."""
    falls = {name: d for name, d in found.groups.items() if d.difference < 0}
    sure = [name for name, d in falls.items() if d.holm_permutation is not None and d.holm_permutation < plan.p]
    named = ", ".join(f"{name} {100 * d.difference:+.1f}" for name, d in falls.items()) or "none"
    return Claim(
        plan.claim,
        "holds" if len(falls) * 2 < len(found.groups) and not sure else "does not hold",
        f"{plan.metric} on {plan.dataset}: {len(found.groups) - len(falls)} of {len(found.groups)} languages do not "
        f"fall; falling: {named}; significantly (Holm): {', '.join(sure) or 'none'}.",
    )


def _grows(plan: ClaimPlan, sweeps: Sequence[Sweep]) -> Claim:
    """Holds when the last point of the sweep is its best and above the first."""
    found = next(
        (
            one for one in sweeps
            if (one.dataset, one.system, one.metric, one.parameter) == (plan.dataset, plan.system, plan.metric, "n")
        ),
        None,
    )  # fmt: skip
    if found is None or len(found.points) < 2:
        return Claim(plan.claim, "cannot be tested here", "the suite has no sweep over the number of queries.")
    values = [point.value for point in found.points]
    curve = ", ".join(f"{point.x:g}: {100 * point.value:.1f}" for point in found.points if not isinstance(point.x, str))
    holds = values[-1] == max(values) and values[-1] > values[0]
    return Claim(
        plan.claim,
        "holds" if holds else "does not hold",
        f"{plan.metric} on {plan.dataset} by queries a language: {curve}.",
    )
