"""What both trainers do round their training: identity, run folder, base checkpoint, finished folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.checkpoints import Checkpoint
from xqg_vdb.training.base import Base, copy_tokenizer
from xqg_vdb.training.model_card import write_card
from xqg_vdb.training.pairs import TrainingPair, describe_pairs, measure_leakage
from xqg_vdb.training.running import Outcome, finish, hold, new_finished, open_run

if TYPE_CHECKING:
    from xqg_vdb.training.encoder import EncoderSettings
    from xqg_vdb.training.generator import GeneratorSettings

Save = Callable[[Path], None]
Train = Callable[[Checkpoint, Path], tuple[Outcome, Save]]
"""Trains the checkpoint in the run folder; returns what became of it, and what writes the weights into a folder."""


def identity_of(
    kind: str,
    base: Base,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair],
    settings: EncoderSettings | GeneratorSettings,
) -> dict[str, Any]:
    """What a run depends on: a run folder with another identity is refused, and the model card tells it."""
    return {
        "kind": kind,
        "base": base.name,
        "pairs": describe_pairs(pairs),
        "dev": describe_pairs(dev),
        "leakage": measure_leakage(pairs, dev).summary,
        "settings": {**asdict(settings), "schedule": settings.schedule.to_json()},
    }


def carry_out(base: Base, out: Path, *, identity: Mapping[str, Any], train: Train) -> Outcome:
    """Train `base` into the folder `out`, where tokenizer and model card join what `train` saves; goes on after a stop.

    Raises ModelError when `out` holds something else or the base cannot be read, MismatchError for an unfinished run of
    another identity, LockedError when another process is at it.
    """
    run = open_run(out, identity)
    with hold(run):
        checkpoint = base.fetch(run / "base")
        outcome, save = train(checkpoint, run)
        finished = new_finished(run)
        save(finished)
        copy_tokenizer(checkpoint, finished)
        write_card(finished, identity=identity, outcome=outcome, licence=base.licence(checkpoint))
        finish(run, finished)
    return outcome


def spread(examples: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, evenly spread."""
    return list(examples[:: max(1, len(examples) // limit)][:limit])
