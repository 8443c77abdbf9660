"""Which version of a collection on a server a load fills: the unfinished one of an equal card, or a new one.

In: a name, a card. Out: a `ServerWriter`. Two loaders of one collection meet here, and only here.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import LockedError
from ..types import Card
from .layout import same_build
from .options import CollectionOptions
from .server_layout import create
from .server_lease import LOADER_KEY, Lease, holder
from .server_names import CARD_KEY, Names, version_number
from .server_writer import ServerWriter


def open_writer(names: Names, name: str, *, card: Card, options: CollectionOptions, is_local: bool) -> ServerWriter:
    """Continue the newest unfinished version if it has a commit of the same build, else begin a new one.

    Finished versions stay as they are. Raises LockedError when somebody loads another build into the collection; who
    loads an equal one is joined. MismatchError when a collection, not an alias, has that name.
    """
    names.refuse_plain(name)
    card = replace(card, storage=options.layout())
    current = version_number(name, names.target(name) or "") or 0
    kept, highest = None, current
    for version in reversed(names.versions(name)):
        number = version_number(name, version) or 0
        highest = max(highest, number)
        if number <= current:
            continue
        stored = names.card(version)
        equal = kept is None and stored is not None and same_build(stored, card)
        if equal and (names.cursor(version) > 0 or holder(names, version)):
            kept = version
        elif stored is None or not stored.created:
            _remove_abandoned(names, name, version)
    version = kept or f"{name}__v{highest + 1:04d}"
    lease = Lease(names)
    if kept is None:
        _begin_version(names, name, version, card=card, options=options, is_local=is_local, lease=lease)
    else:
        lease.write(version)
    return ServerWriter(names, name, version, card=card, options=options, lease=lease, is_local=is_local)


def _remove_abandoned(names: Names, name: str, version: str) -> None:
    by = holder(names, version)
    if by is not None:
        raise _busy(names, name, by)
    names.remove(version)


def _begin_version(
    names: Names, name: str, version: str, *, card: Card, options: CollectionOptions, is_local: bool, lease: Lease
) -> None:
    """Create the version; of two loaders that do so at once, the server lets one, and the other finds its record."""
    wanted = replace(card, version=version.rpartition("__")[2], count=0, digest="", created="")
    metadata = {CARD_KEY: wanted.to_json(), LOADER_KEY: lease.record()}
    names.server.call(
        lambda: create(names.client, version, card=card, options=options, metadata=metadata, is_local=is_local)
    )
    found = names.metadata(version).get(LOADER_KEY) or {}
    stored = names.card(version)
    if found.get("id") != lease.id and (stored is None or not same_build(stored, card)):
        raise _busy(names, name, f"process {found.get('pid')} on {found.get('host')}")


def _busy(names: Names, name: str, by: str) -> LockedError:
    return LockedError(
        f"Collection {name!r} on {names.server.where} is being loaded by {by}, from another corpus or with other"
        " options; wait until that load has ended."
    )
