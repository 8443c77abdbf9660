"""The options of `load` and `migrate` that say how a collection is laid out and filled."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import click

from xqg_vdb.cli.options import F, remembered, remembered_option

if TYPE_CHECKING:
    from xqg_vdb.collection import CollectionOptions

_COUNT = click.IntRange(min=1)


def layout_options(command: F) -> F:
    """Versions to keep, quantisation, graph, disk, and what only a server has; read by `chosen_layout`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_layout() -> CollectionOptions:
    """The options of the command that runs."""
    from xqg_vdb.collection import CollectionOptions

    given = {one.name: remembered(one.name) for one in fields(CollectionOptions)}
    return CollectionOptions(**{name: value for name, value in given.items() if value is not None})


_OPTIONS = [
    remembered_option(
        "--keep", metavar="N", type=_COUNT, help="Finished versions to keep, for `rollback`  [default: 1]"
    ),
    remembered_option(
        "--quantization",
        type=click.Choice(["scalar", "binary", "product", "turbo"]),
        help="Search small copies of the vectors, and compare the best candidates again with the full ones.",
    ),
    remembered_option("--hnsw-m", metavar="N", type=_COUNT, help="Edges per node of the graph."),
    remembered_option(
        "--hnsw-ef-construct", metavar="N", type=click.IntRange(min=4), help="Candidates while it is built."
    ),
    remembered_option("--on-disk-vectors", is_flag=True, default=None, help="Leave the full vectors on disk."),
    remembered_option("--on-disk-payload", is_flag=True, default=None, help="Leave the texts on disk."),
    remembered_option("--shards", metavar="N", type=_COUNT, help="Shards (server)."),
    remembered_option("--replication-factor", metavar="N", type=_COUNT, help="Copies of each shard (server)."),
    remembered_option(
        "--write-consistency", metavar="N", type=_COUNT, help="Copies that must confirm a write (server)."
    ),
    remembered_option(
        "--parallel", metavar="N", type=click.IntRange(1, 64), help="Connections that write at once (server)."
    ),
    remembered_option("--bulk/--no-bulk", default=None, help="Index after the last point (server)  [default: --bulk]"),
]
