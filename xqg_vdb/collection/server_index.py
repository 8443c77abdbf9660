"""Build the index of a filled version on a server, and wait until it is done.

In: a version. Out: nothing, once the server calls the collection green. This file refuses to know what is in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qdrant_client import models

from ..errors import ServerError
from .server_layout import BULK_KEY
from .server_names import Names

POLL = 0.5
GREY_PATIENCE = 30.0
"""Seconds that a server may take to start what it says is to be done."""

_log = logging.getLogger(__name__)


def build_index(
    names: Names,
    version: str,
    *,
    indexed: Callable[[int], None] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """End the bulk mode, then wait until the optimizers rest.

    indexed: told how many vectors are indexed so far. meanwhile: called at every look.
    It goes on without the index, with a warning, when the server's deadline passes without a vector indexed: a search
    before that is right, but slow. Raises ServerError when the server says that it cannot.
    """
    server, client = names.server, names.client
    _end_bulk(names, version)
    changed, seen = clock(), (-1, -1)
    while True:
        info = server.call(lambda: client.get_collection(version))
        count = info.indexed_vectors_count or 0
        if indexed is not None:
            indexed(count)
        if info.status == models.CollectionStatus.RED:
            raise ServerError(f"{server.where} cannot build the index of {version}; see its log.")
        if info.status == models.CollectionStatus.GREEN:
            return
        meanwhile()
        if (count, info.segments_count) != seen:
            changed, seen = clock(), (count, info.segments_count)
        patience = GREY_PATIENCE if info.status == models.CollectionStatus.GREY else server.deadline
        if clock() - changed > min(patience, server.deadline):
            _log.warning("%s: the index of %s is still %s; going on", server.where, version, info.status.value)
            return
        server.pause(POLL)


def _end_bulk(names: Names, version: str) -> None:
    """Give the collection the threshold back that it had before; the server then starts to index."""
    noted = names.metadata(version).get(BULK_KEY)
    if noted:
        usual = models.OptimizersConfigDiff(indexing_threshold=int(noted["indexing_threshold"]))
        names.server.call(lambda: names.client.update_collection(version, optimizers_config=usual))
