"""Models by name: the exported folder of MODEL, exporting it into the cache the first time it is asked for."""

from __future__ import annotations

from pathlib import Path

from xqg_vdb.checkpoints import STARTER_ENCODER
from xqg_vdb.errors import ModelError
from xqg_vdb.export import Precision, Report, export_encoder
from xqg_vdb.model_folder import MANIFEST, STARTER, cached_model, is_hub_id, locate_model


def ensure_encoder(model: str, *, report: Report, precision: Precision = "int8") -> Path:
    """The folder of an exported encoder; `starter` and hub ids are exported when they are not in the cache yet.

    Raises ModelError when there is no such model, and whatever `export_encoder` raises.
    """
    by_name = model == STARTER or (is_hub_id(model) and not Path(model).exists())
    if not by_name:
        return locate_model(model)
    try:
        return locate_model(model)
    except ModelError:
        folder = cached_model(model, precision=precision)
        report(f"exporting {model} once, into {folder}")
        export_encoder(STARTER_ENCODER if model == STARTER else model, folder, precision=precision, report=report)
        return folder


def default_folder(checkpoint: str, *, precision: Precision) -> Path:
    """Where `export CHECKPOINT` without OUT goes: the cache, under the name by which other commands find it."""
    name = STARTER if checkpoint == STARTER_ENCODER else checkpoint
    if name != STARTER and not is_hub_id(name):
        raise ModelError(f"Say where to export the folder {checkpoint!r} to: xqg-vdb export {checkpoint} OUT")
    folder = cached_model(name, precision=precision)
    if (folder / MANIFEST).is_file():
        raise ModelError(f"{checkpoint} is exported already, in {folder}: remove that folder to export it again.")
    return folder
