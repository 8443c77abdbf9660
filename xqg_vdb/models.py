"""Models by name: the exported folder of MODEL, exporting it into the cache the first time it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from xqg_vdb.checkpoints import STARTER_ENCODER
from xqg_vdb.errors import ModelError
from xqg_vdb.export import Precision, Report, export_encoder
from xqg_vdb.model_folder import MANIFEST, STARTER, cached_model, is_hub_id, locate_model
from xqg_vdb.types import Card


def ensure_encoder(model: str, *, report: Report, precision: Precision = "int8") -> Path:
    """The folder of an exported encoder; `starter` and hub ids are exported when they are not in the cache yet.

    Raises ModelError when there is no such model, and whatever `export_encoder` raises.
    """
    if not _has_a_name(model):
        return locate_model(model)
    try:
        return locate_model(model)
    except ModelError:
        return _exported(model, report=report, precision=precision)


def encoder_of(card: Card, *, collection: str, report: Report) -> Path:
    """The folder of the encoder that made a collection, exported like it when it is not in the cache.

    Raises ModelError when it has no name by which to find it, and whatever `export_encoder` raises.
    """
    made_by = card.encoder
    name = STARTER if made_by.source == STARTER_ENCODER else made_by.source
    precision = cast(Precision, made_by.precision)
    if not _has_a_name(name) or precision not in ("int8", "fp32"):
        raise ModelError(
            f"Collection {collection!r} was made by an encoder from {made_by.source!r} (fingerprint"
            f" {made_by.fingerprint}), which cannot be found by that name: give its model folder with --encoder."
        )
    return _exported(name, report=report, precision=precision)


def default_folder(checkpoint: str, *, precision: Precision) -> Path:
    """Where `export CHECKPOINT` without OUT goes: the cache, under the name by which other commands find it."""
    name = STARTER if checkpoint == STARTER_ENCODER else checkpoint
    if name != STARTER and not is_hub_id(name):
        raise ModelError(f"Say where to export the folder {checkpoint!r} to: xqg-vdb export {checkpoint} OUT")
    folder = cached_model(name, precision=precision)
    if (folder / MANIFEST).is_file():
        raise ModelError(f"{checkpoint} is exported already, in {folder}: remove that folder to export it again.")
    return folder


def _has_a_name(model: str) -> bool:
    return model == STARTER or (is_hub_id(model) and not Path(model).exists())


def _exported(name: str, *, report: Report, precision: Precision) -> Path:
    """The cached export of a named model, made now if it is not there."""
    folder = cached_model(name, precision=precision)
    if not (folder / MANIFEST).is_file():
        report(f"exporting {name} once, into {folder}")
        checkpoint = STARTER_ENCODER if name == STARTER else name
        export_encoder(checkpoint, folder, precision=precision, report=report)
    return folder
