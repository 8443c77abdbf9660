"""Options that both `xqg-vdb train` commands have, and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_vdb.cli.options import F, remembered, remembered_option, say

if TYPE_CHECKING:
    from xqg_vdb.training.encoder import EncoderSettings
    from xqg_vdb.training.generator import GeneratorSettings
    from xqg_vdb.training.pairs import TrainingPair

S = TypeVar("S", "EncoderSettings", "GeneratorSettings")

_POSITIVE = click.IntRange(min=1)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)
_OPTIONS = [
    remembered_option(
        "--pairs", "sources", multiple=True, required=True, metavar="SOURCE",
        help="afriqa, or a .jsonl or SQuAD .json file; repeat it.",
    ),
    remembered_option("--dev", "dev_sources", multiple=True, metavar="SOURCE", help="Pairs to evaluate on."),
    remembered_option("--data-dir", type=click.Path(path_type=Path), help="For afriqa  [default: XQG_DATA_DIR]"),
    remembered_option("-l", "--lang", "langs", multiple=True, help="Question language; repeat it  [default: all]"),
    remembered_option(
        "--english", type=click.Choice(["no", "also", "only"]), default="no", show_default=True,
        help="The questions' human English translations.",
    ),
    remembered_option("--drop-leaks", is_flag=True, help="Leave out pairs whose passage or question is in --dev."),
    remembered_option("--max-errors", type=click.IntRange(min=0), default=0, help="Bad records to skip  [default: 0]"),
    remembered_option("--preset", type=click.Choice(["xqg"]), help="The paper's recipe; other options change it."),
    remembered_option("--epochs", type=_ABOVE_ZERO, help="[default: 3]"),
    remembered_option("--max-steps", type=_POSITIVE, help="Instead of --epochs."),
    remembered_option("--batch-size", type=_POSITIVE, help="Per step: pairs, or a decoder-only model's passages."),
    remembered_option("--micro-batch", type=_POSITIVE, help="As many in memory at a time  [default: all]"),
    remembered_option("--learning-rate", type=_ABOVE_ZERO),
    remembered_option("--warmup", type=click.FloatRange(0, 1), help="Share of the steps  [default: 0.1]"),
    remembered_option("--eval-every", type=click.IntRange(min=0), help="Steps; 0: before and after only."),
    remembered_option("--dev-limit", type=_POSITIVE, help="Dev examples, evenly spread."),
    remembered_option("--save-minutes", type=click.FloatRange(0), help="Between checkpoints  [default: 10]"),
    remembered_option("--seed", type=int, help="[default: 313]"),
    remembered_option("--threads", type=_POSITIVE, help="CPU threads  [default: all]"),
]  # fmt: skip


def training_options(command: F) -> F:
    """Which pairs, how long and how fast; read by `chosen_pairs` and `chosen_settings`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_pairs() -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training and dev pairs of the command that runs. Raises MissingExtra before minutes of reading, DataError."""
    from xqg_vdb.training.running import need_training_packages
    from xqg_vdb.training.selection import Selection, read_training_pairs

    need_training_packages()
    selection = Selection(**{one.name: remembered(one.name) for one in fields(Selection)})
    sources, dev_sources = remembered("sources"), remembered("dev_sources")
    return read_training_pairs(sources, dev_sources, data_dir=remembered("data_dir"), selection=selection, report=say)


def chosen_settings(plain: S, *, preset: S, own: Mapping[str, Any]) -> S:
    """The trainer's settings, or with --preset the paper's, with what the user said; None is what nobody said.

    own: options of this trainer alone. Epochs that were asked for are not cut by a preset's steps.
    """
    from xqg_vdb.training.schedule import Schedule

    start = preset if remembered("preset") else plain
    plan = given({one.name: remembered(one.name) for one in fields(Schedule)})
    schedule = replace(start.schedule, max_steps=None) if "epochs" in plan else start.schedule
    chosen = given({"dev_limit": remembered("dev_limit"), **own})
    return replace(start, schedule=replace(schedule, **plan), **chosen)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user said."""
    return {name: value for name, value in options.items() if value is not None}
