"""--expand and --rerank: the two neighbouring methods, for commands that search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_vdb.cli.options import say

if TYPE_CHECKING:
    from xqg_vdb.expansion import Expander
    from xqg_vdb.expansion.prompts import Combine, Kind, Order
    from xqg_vdb.rerank import Reranker

F = TypeVar("F", bound=Callable[..., Any])

_KINDS = ["pseudo-document", "keywords", "translation"]
_COMBINE = ["concat", "mean", "only"]
_ORDERS = ["direct", "expand-translate", "translate-expand"]


def rerank_options(command: F) -> F:
    """--rerank and what belongs to it."""
    for option in (
        click.option(
            "--rerank-weight",
            type=click.FloatRange(0, 1),
            default=0.25,
            show_default=True,
            help="Weight of UPR against the first score; 1 is UPR alone.",
        ),
        click.option(
            "--rerank-depth",
            type=click.IntRange(1, 10_000),
            default=100,
            show_default=True,
            help="Passages that are ranked again.",
        ),
        click.option("--rerank", metavar="upr:MODEL", help="Rank again by how likely a generator finds the question."),
    ):
        command = option(command)
    return command


def expand_options(command: F) -> F:
    """--expand and what belongs to it."""
    for option in (
        click.option(
            "--expand-max-tokens",
            type=click.IntRange(1, 1024),
            default=96,
            show_default=True,
            help="Longest answer of the model.",
        ),
        click.option(
            "--expand-model", metavar="NAME", default="default", show_default=True, help="Model name at an endpoint."
        ),
        click.option("--expand-lang", metavar="CODE", help="Language of the expansion  [default: the question's]"),
        click.option(
            "--expand-order",
            type=click.Choice(_ORDERS),
            default="direct",
            show_default=True,
            help="Expand and translate, in which order.",
        ),
        click.option(
            "--expand-combine",
            type=click.Choice(_COMBINE),
            default="concat",
            show_default=True,
            help="Question and expansion: joined, mean of vectors, or the latter alone.",
        ),
        click.option(
            "--expand-kind",
            type=click.Choice(_KINDS),
            default="pseudo-document",
            show_default=True,
            help="What to write.",
        ),
        click.option(
            "--expand",
            metavar="STRATEGY:MODEL",
            help="Search with what a generator (or an endpoint's URL) adds to the question; zero-shot, few-shot, "
            "chain-of-thought or rephrase-and-respond.",
        ),
    ):
        command = option(command)
    return command


def chosen_reranker(spec: str | None, *, depth: int, weight: float, threads: int | None) -> Reranker | None:
    """The reranker of --rerank, None without."""
    if spec is None:
        return None
    from xqg_vdb.rerank import open_reranker

    return open_reranker(spec, depth=depth, weight=weight, threads=threads or 0)


def chosen_expander(
    spec: str | None,
    *,
    kind: Kind,
    combine: Combine,
    order: Order,
    lang: str | None,
    max_tokens: int,
    endpoint_model: str,
    cached: bool,
    threads: int | None,
) -> Expander | None:
    """The expander of --expand, None without."""
    if spec is None:
        return None
    from xqg_vdb.expansion import ExpansionCache, Plan, open_expander

    try:
        plan = Plan(kind=kind, combine=combine, order=order, lang=lang, max_tokens=max_tokens)
    except ValueError as error:
        raise click.UsageError(f"{error} (--expand-lang)") from error
    cache = ExpansionCache() if cached else None
    return open_expander(spec, plan=plan, cache=cache, endpoint_model=endpoint_model, threads=threads or 0)


def report_methods(expander: Expander | None, reranker: Reranker | None) -> dict[str, float]:
    """Say on stderr what the methods did; returns mean seconds a question, for JSON."""
    seconds: dict[str, float] = {}
    if expander is not None:
        counts = expander.counters()
        seconds["expand"] = _per_question(counts)
        say(
            f"Expanded {counts['questions']:.0f} questions, {seconds['expand']:.2f} s each "
            f"({counts['cached']:.0f} from the cache; {counts['fallbacks']:.0f} searched as they are)."
        )
        if expander.failure:
            say(expander.failure)
    if reranker is not None:
        counts = reranker.counters()
        seconds["rerank"] = _per_question(counts)
        say(
            f"Ranked {counts['passages']:.0f} passages again, {seconds['rerank']:.2f} s a question "
            f"({counts['passages_cut']:.0f} passages cut)."
        )
    return seconds


def _per_question(counts: Mapping[str, float]) -> float:
    return round(counts["seconds"] / max(counts["questions"], 1), 4)
