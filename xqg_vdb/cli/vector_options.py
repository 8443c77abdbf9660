"""The options of `load` that say which vectors a point has beside the fused one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import F, remembered, remembered_option

if TYPE_CHECKING:
    from xqg_vdb.types import Hybrid


def vector_options(command: F) -> F:
    """Plain vectors, and words; the latter are read by `chosen_hybrid`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_hybrid() -> Hybrid | None:
    """What the sparse vectors are to be made from; None for none."""
    from xqg_vdb.types import Hybrid

    lang = remembered("hybrid_lang")
    if remembered("hybrid"):
        return Hybrid(lang=lang)
    if lang is not None:
        raise click.UsageError("--hybrid-lang says how: give --hybrid with it")
    return None


_OPTIONS = [
    remembered_option("--keep-plain", is_flag=True, help="Also the passages' own vectors, text-dense-plain."),
    remembered_option("--hybrid", is_flag=True, help="Also vectors of the words (BM25), for search --hybrid."),
    remembered_option(
        "--hybrid-lang", metavar="LANG", help="Whose stemmer and stop words, or none  [default: the passages']"
    ),
]
