"""The options of `load` and `migrate` that say how a collection is laid out and filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from xqg_vdb.collection import CollectionOptions

F = TypeVar("F", bound=Callable[..., Any])

_KEY = "xqg_vdb.layout."
_COUNT = click.IntRange(min=1)


def layout_options(command: F) -> F:
    """Versions to keep, quantisation, graph, disk, and what only a server has; read by `chosen_layout`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_layout() -> CollectionOptions:
    """The options of the command that runs."""
    from xqg_vdb.collection import CollectionOptions

    said = click.get_current_context().meta
    given = {one.name: said.get(_KEY + one.name) for one in fields(CollectionOptions)}
    return CollectionOptions(**{name: value for name, value in given.items() if value is not None})


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta[f"{_KEY}{parameter.name}"] = value


_option = partial(click.option, expose_value=False, callback=_remember)
_OPTIONS = [
    _option("--keep", metavar="N", type=_COUNT, help="Finished versions to keep, for `rollback`  [default: 1]"),
    _option(
        "--quantization",
        type=click.Choice(["scalar", "binary", "product", "turbo"]),
        help="Search small copies of the vectors, and compare the best candidates again with the full ones.",
    ),
    _option("--hnsw-m", metavar="N", type=_COUNT, help="Edges per node of the graph."),
    _option("--hnsw-ef-construct", metavar="N", type=click.IntRange(min=4), help="Candidates while it is built."),
    _option("--on-disk-vectors", is_flag=True, default=None, help="Leave the full vectors on disk."),
    _option("--on-disk-payload", is_flag=True, default=None, help="Leave the texts on disk."),
    _option("--shards", metavar="N", type=_COUNT, help="Shards (server)."),
    _option("--replication-factor", metavar="N", type=_COUNT, help="Copies of each shard (server)."),
    _option("--write-consistency", metavar="N", type=_COUNT, help="Copies that must confirm a write (server)."),
    _option("--parallel", metavar="N", type=click.IntRange(1, 64), help="Connections that write at once (server)."),
    _option("--bulk/--no-bulk", default=None, help="Index after the last point (server)  [default: --bulk]"),
]
