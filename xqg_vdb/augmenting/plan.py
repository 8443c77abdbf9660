"""What is to be done to which vector of a collection, and where its originals go; wrong plans are refused here.

In: a collection and a user's wishes. Out: a `Plan`, and the record that is noted in the collection. Nothing is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from xqg_vdb.augmenting.keeping import Place
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.files import sha256_of
from xqg_vdb.model_folder import cache_folder
from xqg_vdb.types import Distance, EncoderFacts, Recipe

if TYPE_CHECKING:
    from xqg_vdb.collection.foreign import ForeignCollection, ForeignPoint

Mode = Literal["copy", "overwrite", "add"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a collection is to be augmented.

    to: name of the copy, by default the collection's with `-xqg`. in_place: change the points themselves instead.
    add: with in_place, write the fused vector under this new name instead of over the searched one.
    backup: with in_place, keep the originals in this folder instead of in a vector of the collection.
    vector, text_key, id_key: where the searched vector, the text and the queries' id are; recognised when None.
    Raises ValueError for wishes that exclude each other.
    """

    to: str | None = None
    in_place: bool = False
    add: str | None = None
    backup: Path | None = None
    vector: str | None = None
    text_key: str | None = None
    id_key: str | None = None

    def __post_init__(self) -> None:
        if not self.in_place and (self.add is not None or self.backup is not None):
            raise ValueError("a new vector's name (--as) and a --backup are for --in-place")
        if self.in_place and self.to is not None:
            raise ValueError("--in-place makes no new collection: leave out --to, or --in-place")
        if self.add is not None and self.backup is not None:
            raise ValueError("--as leaves the searched vector as it is: leave out --backup")

    @property
    def mode(self) -> Mode:
        """In one word."""
        return "copy" if not self.in_place else "add" if self.add is not None else "overwrite"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done. sample: the first points. name: of the copy, or of the collection itself.

    into: the vector that gets the fused rows. keep_in: the one that gets the originals, None for none.
    folder: of the first pass. run: hash of all that the outcome depends on.
    """

    mode: Mode
    name: str
    place: Place
    distance: Distance
    into: str
    keep_in: str | None
    folder: Path
    run: str
    sample: list[ForeignPoint]

    def record(self, source: ForeignCollection, *, previous: str | None) -> dict[str, Any]:
        """What is noted in the collection that is written to. card: the one to put back, {} for none."""
        card = source.card
        return {
            "mode": self.mode,
            "source": source.physical,
            "vector": self.place.vector,
            "kept": self.keep_in,
            "added": self.into if self.mode == "add" else None,
            "backup": str(self.folder.absolute()) if self.mode == "overwrite" and self.keep_in is None else None,
            "previous": previous,
            "run": self.run,
            "finished": False,
            "card": source.record.get("card", {} if card is None else card.to_json()),
        }


def planned(
    source: ForeignCollection, wishes: Wishes, *, facts: EncoderFacts, recipe: Recipe, queries: Sequence[Path]
) -> Plan:
    """The plan. Raises DataError and MismatchError for what is unknown, unfit, or augmented in another way already."""
    from xqg_vdb.collection.foreign import chosen_vector, distance_of
    from xqg_vdb.collection.foreign_payloads import recognised
    from xqg_vdb.collection.layout import check_name

    record = source.record
    _check_record(source, record, wishes)
    vectors = source.dense_vectors()
    own = {name: params for name, params in vectors.items() if name not in (record.get("kept"), record.get("added"))}
    vector = chosen_vector(own, record.get("vector", wishes.vector), name=source.name)
    if own[vector].size != facts.dim:
        raise MismatchError(
            f"Vector {vector!r} of {source.name!r} has {own[vector].size} dimensions, those of {facts.source}"
            f" {facts.dim}: give the encoder that made it (--encoder)."
        )
    keep_in = _keeper(source, wishes, vector, taken=own)
    if wishes.add is not None and wishes.add in own:
        raise MismatchError(f"{source.name!r} has a vector {wishes.add!r} already: choose another name (--as).")
    original = record["kept"] if record.get("kept") in vectors else None
    sample = next(source.pages(vectors=[vector, *([original] if original else [])], payloads=True))
    if not sample:
        raise DataError(f"Collection {source.name!r} holds no points.")
    layout = recognised([one.payload for one in sample], text_key=wishes.text_key, id_key=wishes.id_key)
    inputs = _hash(source.server.where, source.physical, vector, layout.id_key, facts.fingerprint,
                   *[sha256_of(file) for file in queries])  # fmt: skip
    base = wishes.backup if wishes.backup is not None else cache_folder() / "augment"
    return Plan(
        mode=wishes.mode,
        name=check_name(wishes.to or f"{source.name}-xqg") if wishes.mode == "copy" else source.name,
        place=Place(vector, original, layout),
        distance=distance_of(own[vector]),
        into=wishes.add if wishes.add is not None else vector,
        keep_in=keep_in,
        folder=base / f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.physical)}-{inputs}",
        run=_hash(inputs, recipe.to_json(), wishes.mode, wishes.add),
        sample=sample,
    )


def _check_record(source: ForeignCollection, record: dict[str, Any], wishes: Wishes) -> None:
    """Refuse a second way beside the first, and collections whose vectors are fused by other means."""
    card = source.card
    if not record and card is not None and card.query_langs:
        raise MismatchError(
            f"The vectors of {source.name!r} have generated queries in them, by `xqg-vdb load`: load again with the new"
            " queries (with --build nothing is encoded twice)."
        )
    undo = f"undo that first: xqg-vdb augment {source.name} --undo"
    if record and (record.get("mode"), record.get("added")) != (wishes.mode, wishes.add):
        raise MismatchError(f"{source.name!r} is augmented already (in place); {undo}")
    if record and record.get("vector") != (wishes.vector if wishes.vector is not None else record.get("vector")):
        raise MismatchError(f"{source.name!r} is augmented already, its vector {record['vector']!r}; {undo}")
    if record and (record.get("backup") is None) != (wishes.backup is None) and wishes.mode == "overwrite":
        kept = record.get("backup") or f"the vector {record.get('kept')!r}"
        raise MismatchError(f"{source.name!r} is augmented already, its originals are in {kept}; {undo}")


def _keeper(
    source: ForeignCollection, wishes: Wishes, vector: str, *, taken: Sequence[str] | dict[str, Any]
) -> str | None:
    """The vector that keeps the originals when the searched one is overwritten and there is no backup folder."""
    if wishes.mode != "overwrite" or wishes.backup is not None:
        return None
    if vector == "":
        raise MismatchError(
            f"The vector of {source.name!r} has no name; a second, named one beside it would make it a collection of"
            " another kind to those who read it. Keep the originals in a folder (--backup DIR), or leave out"
            " --in-place: then a new collection is made."
        )
    keeper = f"{vector}-plain"
    if keeper in taken:
        raise MismatchError(
            f"{source.name!r} has a vector {keeper!r} already; keep the originals in a folder (--backup DIR)."
        )
    return keeper


def _hash(*parts: object) -> str:
    return hashlib.blake2b(orjson.dumps(parts), digest_size=8).hexdigest()
