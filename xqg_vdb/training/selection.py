"""Which pairs are trained on: languages, English translations, and what dev must not share with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xqg_vdb.errors import DataError
from xqg_vdb.languages import normalize
from xqg_vdb.records import Rejects
from xqg_vdb.training.pair_files import Split, read_pairs
from xqg_vdb.training.pairs import TrainingPair, measure_leakage, translated, with_translations, without_leaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pairs are trained on.

    langs: question languages, () for all. english: the translated questions too, or only they (zero-shot training).
    drop_leaks: leave out pairs whose passage or question is in dev. max_errors: bad records to bear in each source.
    """

    langs: tuple[str, ...] = ()
    english: Literal["no", "also", "only"] = "no"
    drop_leaks: bool = False
    max_errors: int = 0


def read_training_pairs(
    sources: Sequence[str],
    dev_sources: Sequence[str],
    *,
    data_dir: Path | None = None,
    selection: Selection | None = None,
    report: Callable[[str], None],
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Read training and dev pairs, report what they share, and select. Dev keeps its own questions, untranslated.

    Raises DataError like `read_pairs`, and when nothing is left to train on.
    """
    selection = selection or Selection()
    train = _read(sources, "train", data_dir, selection)
    dev = _read(dev_sources, "dev", data_dir, selection)
    if dev:
        report(measure_leakage(train, dev).summary)
    if selection.drop_leaks:
        kept = without_leaks(train, dev)
        report(f"{len(train) - len(kept)} training pairs left out, because dev has their passage or question")
        train = kept
    if selection.english != "no":
        train = translated(train) if selection.english == "only" else with_translations(train)
    if not train:
        raise DataError("No training pair is left: check --pairs, --lang and --english.")
    return train, dev


def _read(sources: Sequence[str], split: Split, data_dir: Path | None, selection: Selection) -> list[TrainingPair]:
    langs = {normalize(lang) for lang in selection.langs}
    pairs = []
    for source in sources:
        pairs += read_pairs(source, split=split, data_dir=data_dir, rejects=Rejects(selection.max_errors))
    return [pair for pair in pairs if not langs or pair.lang in langs]
