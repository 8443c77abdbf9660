"""Options that both `xqg-vdb train` commands have."""

from __future__ import annotations

from pathlib import Path

import click

from xqg_vdb.cli.options import F

_POSITIVE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def data_options(command: F) -> F:
    """--pairs, --dev and what is taken of them."""
    for option in (
        click.option("--max-errors", type=click.IntRange(min=0), default=0, help="Bad records to skip  [default: 0]"),
        click.option("--drop-leaks", is_flag=True, help="Leave out pairs whose passage or question is in --dev."),
        click.option(
            "--english", type=click.Choice(["no", "also", "only"]), default="no", show_default=True,
            help="The questions' human English translations.",
        ),
        click.option("-l", "--lang", "langs", multiple=True, help="Question language; repeat it  [default: all]"),
        click.option("--data-dir", type=click.Path(path_type=Path), help="For afriqa  [default: XQG_DATA_DIR]"),
        click.option("--dev", "dev_sources", multiple=True, metavar="SOURCE", help="Pairs to evaluate on."),
        click.option(
            "--pairs", "sources", multiple=True, required=True, metavar="SOURCE",
            help="afriqa, or a .jsonl or SQuAD .json file; repeat it.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def schedule_options(command: F) -> F:
    """How long and how fast; defaults are those of the trainer or the preset."""
    for option in (
        click.option("--threads", type=_POSITIVE, help="CPU threads  [default: all]"),
        click.option("--seed", type=int, help="[default: 313]"),
        click.option("--save-minutes", type=click.FloatRange(0), help="Between checkpoints  [default: 10]"),
        click.option("--dev-limit", type=_POSITIVE, help="Dev examples, evenly spread."),
        click.option("--eval-every", type=click.IntRange(min=0), help="Steps; 0: before and after only."),
        click.option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps  [default: 0.1]"),
        click.option("--learning-rate", type=_ABOVE_ZERO),
        click.option("--micro-batch", type=_POSITIVE, help="As many in memory at a time  [default: all]"),
        click.option("--batch-size", type=_POSITIVE, help="Per step: pairs, or a decoder-only model's passages."),
        click.option("--max-steps", type=_POSITIVE, help="Instead of --epochs."),
        click.option("--epochs", type=_ABOVE_ZERO, help="[default: 3]"),
        click.option("--preset", type=click.Choice(["xqg"]), help="The paper's recipe; other options change it."),
    ):
        command = option(command)
    return command
