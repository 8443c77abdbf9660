"""The options of `load` and `augment` that say how queries are folded into a passage's vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import F, remembered, remembered_option

if TYPE_CHECKING:
    from xqg_vdb.types import Recipe

_OPTIONS = [
    remembered_option(
        "--alpha", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Weight of the queries."
    ),
    remembered_option(
        "--pool",
        type=click.Choice(["shrunk", "mean", "sum"]),
        default="shrunk",
        show_default=True,
        help="How queries are pooled; sum is the paper's.",
    ),
    remembered_option(
        "--shrink", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Strength of pool shrunk."
    ),
    remembered_option("--no-center", is_flag=True, help="Fold in the queries' language too, not only their content."),
    remembered_option("-l", "--lang", "langs", multiple=True, help="Fold in these query languages only; repeatable."),
]


def recipe_options(command: F) -> F:
    """Weight, pooling and languages; read by `chosen_recipe`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_recipe() -> Recipe:
    """The recipe of the command that runs. Raises UsageError for what cannot be one, such as an alpha of nan."""
    from xqg_vdb.languages import normalize
    from xqg_vdb.types import Recipe

    try:
        langs = tuple(sorted({normalize(code) for code in remembered("langs")})) or None
        return Recipe(
            alpha=remembered("alpha"),
            pool=remembered("pool"),
            shrink=remembered("shrink"),
            center=not remembered("no_center"),
            langs=langs,
        )
    except ValueError as error:  # nan is within every range
        raise click.UsageError(str(error)) from error
