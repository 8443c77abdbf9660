"""The names of collections on a server: an alias per collection, a numbered version behind it, records in its metadata.

In: a client. Out: names, cards, cursors. This file refuses to know points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qdrant_client import QdrantClient, models

from ..errors import MismatchError
from ..types import Card
from .retry import Server

CARD_KEY = "xqg_card"
CURSOR_KEY = "xqg_cursor"
READ_DEADLINE = 30.0
"""Seconds after which reading is given up: somebody waits for it."""


class Names:
    """Which versions a server has of a name, and which one its alias points to."""

    def __init__(self, client: QdrantClient, server: Server) -> None:
        self.client = client
        self.server = server

    def published(self) -> list[str]:
        """Aliases that point to a version of their own name, sorted; a wrong address is found out in seconds."""
        deadline = min(READ_DEADLINE, self.server.deadline)
        aliases = self.server.call(self.client.get_aliases, deadline=deadline).aliases
        return sorted(
            one.alias_name for one in aliases if version_number(one.alias_name, one.collection_name) is not None
        )

    def target(self, name: str) -> str | None:
        """The collection behind the alias `name`, None when there is no such alias."""
        aliases = self.server.call(self.client.get_aliases).aliases
        return next((one.collection_name for one in aliases if one.alias_name == name), None)

    def versions(self, name: str) -> list[str]:
        """Its versioned collections, oldest first."""
        found = self.server.call(self.client.get_collections).collections
        numbered = [(version_number(name, one.name), one.name) for one in found]
        return [full for number, full in sorted((n, full) for n, full in numbered if n is not None)]

    def finished(self, name: str) -> list[str]:
        """Those of its versions that were published once, oldest first."""
        cards = {version: self.card(version) for version in self.versions(name)}
        return [version for version, card in cards.items() if card is not None and card.created]

    def refuse_plain(self, name: str) -> None:
        """Raise MismatchError when `name` is a collection itself: an alias of that name cannot be made beside it."""
        found = self.server.call(self.client.get_collections).collections
        if any(one.name == name for one in found):
            raise MismatchError(
                f"{self.server.where} has a collection {name!r} that xqg-vdb did not make (its own are aliases); choose"
                " another name, or delete that collection first."
            )

    def card(self, version: str) -> Card | None:
        """The card of a version, None when it has none."""
        record = self.metadata(version).get(CARD_KEY)
        try:
            return Card.from_json(record) if record else None
        except (KeyError, TypeError):
            return None

    def cursor(self, version: str) -> int:
        """Rows that are durable in a version."""
        record = self.metadata(version).get(CURSOR_KEY)
        return int(record["rows"]) if record else 0

    def write_metadata(self, version: str, record: Mapping[str, Any], *, deadline: float | None = None) -> None:
        """Add or replace entries of a version's metadata."""
        self.server.call(lambda: self.client.update_collection(version, metadata=dict(record)), deadline=deadline)

    def switch(self, name: str, version: str) -> None:
        """Point the alias at a version in one request."""
        self.server.call(lambda: self._switch(name, version))

    def _switch(self, name: str, version: str) -> None:
        """Looks again each time, so that a repeated attempt is right as well."""
        here = models.CreateAlias(collection_name=version, alias_name=name)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=here)]
        aliases = self.client.get_aliases().aliases
        if any(one.alias_name == name for one in aliases):
            gone = models.DeleteAlias(alias_name=name)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        self.client.update_collection_aliases(operations)

    def remove(self, version: str) -> None:
        """Delete a version; one that is gone already is fine."""
        self.server.call(lambda: self.client.delete_collection(version))

    def drop(self, name: str) -> None:
        """Delete the alias and all versions."""
        if self.target(name) is not None:
            operation = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
            self.server.call(lambda: self.client.update_collection_aliases([operation]))
        for version in self.versions(name):
            self.remove(version)

    def metadata(self, version: str) -> Mapping[str, Any]:
        """All entries of a version's metadata."""
        return self.server.call(lambda: self.client.get_collection(version)).config.metadata or {}


def version_number(name: str, version: str) -> int | None:
    """4 for name__v0004; None when it is no version of `name`."""
    found = re.fullmatch(re.escape(name) + r"__v(\d{4,})", version)
    return int(found[1]) if found else None
