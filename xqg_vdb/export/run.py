"""`xqg_vdb.export`: a checkpoint of either kind into a model folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from xqg_vdb.export.checkpoints import Overrides
from xqg_vdb.export.encoder import default_folder, export_encoder
from xqg_vdb.export.generator import export_generator
from xqg_vdb.models.folder import ModelFolder, cached_model


def export(
    checkpoint: str,
    out: str | Path | None = None,
    *,
    precision: Literal["int8", "fp32"] = "int8",
    overrides: Overrides | None = None,
    generator: bool = False,
    accept_license: bool = False,
    report: Callable[[str], None] | None = None,
) -> ModelFolder:
    """Export a hub id, a checkpoint folder, `starter:encoder` or `starter:generator`, checked against the original.

    out: a new folder; without one, hub ids and starters go to the cache, where they are found by name. overrides: an
    encoder's conventions. generator: the checkpoint writes queries. report: told each step, by default the log.
    Raises ModelError, MismatchError when the export does not compute what the original does, MissingExtra.
    """
    say = report or logging.getLogger("xqg_vdb").info
    if generator or checkpoint == "starter:generator":
        target = Path(out) if out is not None else cached_model(checkpoint, precision=precision)
        return export_generator(checkpoint, target, precision=precision, accept_license=accept_license, report=say)
    target = Path(out) if out is not None else default_folder(checkpoint, precision=precision)
    return export_encoder(checkpoint, target, precision=precision, overrides=overrides, report=say)
