"""`xqg-vdb train encoder` and `xqg-vdb train generator`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from xqg_vdb.cli.options import json_option, print_json, say


@click.group()
def train() -> None:
    """Train a retriever or a query generator on question-passage pairs."""


@train.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--pairs", "sources", multiple=True, required=True, metavar="SOURCE", help="Training pairs; repeat it.")
@click.option("--dev", "dev_sources", multiple=True, metavar="SOURCE", help="Pairs to evaluate on.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the benchmarks  [default: XQG_DATA_DIR]")
@click.option("-l", "--lang", "langs", multiple=True, help="Question languages to train on  [default: all]")
@click.option("--english", type=click.Choice(["no", "also", "only"]), default="no", show_default=True,
              help="Human English translations of the questions, where there are any.")  # fmt: skip
@click.option("--drop-leaks", is_flag=True, help="Leave out training pairs whose passage or question is in --dev.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Instead of --epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Passages a step.")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Passages in memory at a time  [default: all]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True)
@click.option("--warmup", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of the steps.")
@click.option("--max-passage-tokens", type=click.IntRange(min=8), default=160, show_default=True)
@click.option("--freeze-embeddings", is_flag=True, help="Leave the token table as it is.")
@click.option("--lora", type=click.IntRange(min=0), default=0, show_default=True, help="Rank; 0 trains all weights.")
@click.option("--eval-every", type=click.IntRange(min=0), default=0, show_default=True, help="Steps; 0: at the end.")
@click.option("--dev-limit", type=click.IntRange(min=1), default=200, show_default=True, help="Dev passages read.")
@click.option("--save-minutes", type=click.FloatRange(0), default=10.0, show_default=True, help="Between checkpoints.")
@click.option("--seed", type=int, default=313, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def generator(
    checkpoint: str,
    out: Path,
    sources: tuple[str, ...],
    dev_sources: tuple[str, ...],
    data_dir: Path | None,
    langs: tuple[str, ...],
    english: Literal["no", "also", "only"],
    drop_leaks: bool,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    micro_batch: int | None,
    learning_rate: float,
    warmup: float,
    max_passage_tokens: int,
    freeze_embeddings: bool,
    lora: int,
    eval_every: int,
    dev_limit: int,
    save_minutes: float,
    seed: int,
    threads: int | None,
    accept_license: bool,
    as_json: bool,
) -> None:
    """Fine-tune the query generator CHECKPOINT on pairs, and leave a checkpoint in OUT for `xqg-vdb export --generator`.

    CHECKPOINT is a hub id, a folder or starter:generator. A run that was stopped goes on when the same command is run
    again.

    \b
    Example:
      xqg-vdb train generator starter:generator gemma-afriqa --accept-license --pairs afriqa --dev afriqa --drop-leaks
    """  # noqa: D301 - \b is click's
    from xqg_vdb.training.base import Base
    from xqg_vdb.training.generator import GeneratorSettings, train_generator
    from xqg_vdb.training.pair_files import Selection, read_training_pairs
    from xqg_vdb.training.schedule import Schedule

    chosen = Selection(langs=langs, english=english, drop_leaks=drop_leaks)
    pairs, dev = read_training_pairs(sources, dev_sources, data_dir=data_dir, selection=chosen, report=say)
    schedule = Schedule(
        epochs=epochs, max_steps=max_steps, batch_size=batch_size, micro_batch=micro_batch,
        learning_rate=learning_rate, warmup=warmup, seed=seed, eval_every=eval_every, save_minutes=save_minutes,
        threads=threads or 0,
    )  # fmt: skip
    settings = GeneratorSettings(
        schedule=schedule, max_passage_tokens=max_passage_tokens, freeze_embeddings=freeze_embeddings, lora=lora,
        dev_limit=dev_limit,
    )  # fmt: skip
    outcome = train_generator(
        Base(checkpoint, accept_license), out, pairs=pairs, dev=dev, settings=settings, report=say
    )
    if as_json:
        print_json({"path": str(outcome.folder), "steps": outcome.steps, "before": outcome.before, "after": outcome.after})
        return
    click.echo(f"{outcome.folder}  {outcome.steps} steps in {outcome.seconds:.0f} s")
