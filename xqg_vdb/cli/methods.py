"""--expand and --rerank: the two neighbouring methods, for commands that search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_vdb.cli.options import say

if TYPE_CHECKING:
    from xqg_vdb.expansion import Expander
    from xqg_vdb.rerank import Reranker

F = TypeVar("F", bound=Callable[..., Any])


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
            "--expand-model", metavar="NAME", default="default", show_default=True, help="Model name at an endpoint."
        ),
        click.option("--expand-lang", metavar="CODE", help="Language of the expansion  [default: the question's]"),
        click.option(
            "--expand",
            metavar="METHOD:MODEL",
            help="Search also with a generator's (or an endpoint URL's) translation of the question, or with a passage "
            "that it writes: translation or pseudo-document.",
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


def chosen_expander(spec: str | None, *, lang: str | None, endpoint_model: str, threads: int | None) -> Expander | None:
    """The expander of --expand, None without."""
    if spec is None:
        return None
    from xqg_vdb.expansion.expander import Expander, expansion_spec

    method, model = expansion_spec(spec)
    return Expander(model, method=method, lang=lang, endpoint_model=endpoint_model, threads=threads or 0)


def report_methods(expander: Expander | None, reranker: Reranker | None) -> dict[str, float]:
    """Say on stderr what the methods did; returns mean seconds a question, for JSON."""
    seconds: dict[str, float] = {}
    if expander is not None:
        counts = expander.counters()
        seconds["expand"] = _per_question(counts)
        say(
            f"Expanded {counts['questions']:.0f} questions, {seconds['expand']:.2f} s each "
            f"({counts['fallbacks']:.0f} searched as they are)."
        )
        if expander.writer.failure:
            say(expander.writer.failure)
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
