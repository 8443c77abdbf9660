"""`xqg-vdb train encoder` and `xqg-vdb train generator`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xqg_vdb.cli.options import json_option, print_json, say
from xqg_vdb.cli.train_options import data_options, schedule_options

if TYPE_CHECKING:
    from xqg_vdb.training.pairs import TrainingPair
    from xqg_vdb.training.running import Outcome
    from xqg_vdb.training.schedule import Schedule

English = Literal["no", "also", "only"]


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
@data_options
@schedule_options
@click.option("--max-passage-tokens", type=click.IntRange(min=16), help="[default: 160]")
@click.option("--freeze-embeddings", is_flag=True, help="Leave the token tables as they are.")
@click.option("--lora", type=click.IntRange(min=0), default=0, show_default=True, help="Rank; 0 trains all weights.")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def generator(
    checkpoint: str,
    out: Path,
    sources: tuple[str, ...],
    dev_sources: tuple[str, ...],
    data_dir: Path | None,
    langs: tuple[str, ...],
    english: English,
    drop_leaks: bool,
    max_errors: int,
    preset: str | None,
    epochs: float | None,
    max_steps: int | None,
    batch_size: int | None,
    micro_batch: int | None,
    learning_rate: float | None,
    warmup: float | None,
    eval_every: int | None,
    dev_limit: int | None,
    save_minutes: float | None,
    seed: int | None,
    threads: int | None,
    max_passage_tokens: int | None,
    freeze_embeddings: bool,
    lora: int,
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
    from xqg_vdb.training.base import Base
    from xqg_vdb.training.generator import XQG_PRESET, GeneratorSettings, train_generator

    pairs, dev = _pairs(sources, dev_sources, data_dir, langs, english, drop_leaks, max_errors)
    start = XQG_PRESET if preset else GeneratorSettings()
    plan = {
        "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "micro_batch": micro_batch,
        "learning_rate": learning_rate, "warmup": warmup, "eval_every": eval_every, "save_minutes": save_minutes,
        "seed": seed, "threads": threads,
    }  # fmt: skip
    schedule = _planned(start.schedule, plan)
    chosen = _given({"max_passage_tokens": max_passage_tokens, "dev_limit": dev_limit})
    settings = replace(start, schedule=schedule, freeze_embeddings=freeze_embeddings, lora=lora, **chosen)
    outcome = train_generator(
        Base(checkpoint, accept_license), out, pairs=pairs, dev=dev, settings=settings, report=say
    )
    _print(outcome, as_json=as_json)


@train.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@data_options
@schedule_options
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
    sources: tuple[str, ...],
    dev_sources: tuple[str, ...],
    data_dir: Path | None,
    langs: tuple[str, ...],
    english: English,
    drop_leaks: bool,
    max_errors: int,
    preset: str | None,
    epochs: float | None,
    max_steps: int | None,
    batch_size: int | None,
    micro_batch: int | None,
    learning_rate: float | None,
    warmup: float | None,
    eval_every: int | None,
    dev_limit: int | None,
    save_minutes: float | None,
    seed: int | None,
    threads: int | None,
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
    from xqg_vdb.export import Overrides
    from xqg_vdb.training.base import Base
    from xqg_vdb.training.encoder import XQG_PRESET, EncoderSettings, train_encoder

    pairs, dev = _pairs(sources, dev_sources, data_dir, langs, english, drop_leaks, max_errors)
    start = XQG_PRESET if preset else EncoderSettings()
    plan = {
        "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "micro_batch": micro_batch,
        "learning_rate": learning_rate, "warmup": warmup, "eval_every": eval_every, "save_minutes": save_minutes,
        "seed": seed, "threads": threads,
    }  # fmt: skip
    schedule = _planned(start.schedule, plan)
    said = Overrides(pooling, normalize, query_prefix, passage_prefix)
    overrides = replace(start.overrides, **_given(asdict(said)))
    chosen = _given({
        "negatives": negatives, "mine": mine, "skip": skip, "temperature": temperature, "query_tokens": query_tokens,
        "passage_tokens": passage_tokens, "dev_limit": dev_limit,
    })  # fmt: skip
    settings = replace(start, schedule=schedule, overrides=overrides, **chosen)
    outcome = train_encoder(Base(checkpoint), out, pairs=pairs, dev=dev, settings=settings, report=say)
    _print(outcome, as_json=as_json)


def _pairs(
    sources: tuple[str, ...],
    dev_sources: tuple[str, ...],
    data_dir: Path | None,
    langs: tuple[str, ...],
    english: English,
    drop_leaks: bool,
    max_errors: int,
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    from xqg_vdb.training.running import need_training_packages
    from xqg_vdb.training.selection import Selection, read_training_pairs

    need_training_packages()  # said before minutes of reading
    selection = Selection(langs=langs, english=english, drop_leaks=drop_leaks, max_errors=max_errors)
    return read_training_pairs(sources, dev_sources, data_dir=data_dir, selection=selection, report=say)


def _planned(start: Schedule, plan: dict[str, Any]) -> Schedule:
    """The preset's schedule with what the user said; epochs that were asked for are not cut by a preset's steps."""
    if plan["epochs"] is not None and plan["max_steps"] is None:
        start = replace(start, max_steps=None)
    return replace(start, **_given(plan))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


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
