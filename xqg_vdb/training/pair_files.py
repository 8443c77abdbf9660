"""Where pairs come from: the benchmarks' own files (`afriqa`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xqg_vdb.datasets import afriqa, data_folder
from xqg_vdb.errors import DataError
from xqg_vdb.languages import normalize
from xqg_vdb.training.pairs import (
    TrainingPair,
    measure_leakage,
    translated,
    with_translations,
    without_leaks,
)

Split = Literal["train", "dev"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pairs are trained on.

    langs: question languages, () for all. english: the translated questions too, or only they. drop_leaks: leave out
    pairs whose passage or question is in dev.
    """

    langs: tuple[str, ...] = ()
    english: Literal["no", "also", "only"] = "no"
    drop_leaks: bool = False


def read_training_pairs(
    sources: Sequence[str],
    dev_sources: Sequence[str],
    *,
    data_dir: Path | None,
    selection: Selection,
    report: Callable[[str], None],
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Read and select training and dev pairs. Raises DataError when nothing is left to train on."""
    langs = {normalize(lang) for lang in selection.langs}
    train, dev = (
        [p for source in part for p in read_pairs(source, split=split, data_dir=data_dir) if not langs or p.lang in langs]
        for part, split in ((sources, "train"), (dev_sources, "dev"))
    )
    if dev:
        report(measure_leakage(train, dev).summary)
    if selection.drop_leaks:
        before = len(train)
        train = without_leaks(train, dev)
        report(f"{before - len(train)} training pairs left out")
    if selection.english != "no":
        train = translated(train) if selection.english == "only" else with_translations(train)
    if not train:
        raise DataError("No training pair is left: check --pairs, --lang and --english.")
    return train, dev


def read_pairs(source: str, *, split: Split, data_dir: Path | None = None) -> list[TrainingPair]:
    """Read one source."""
    if source == "afriqa":
        return afriqa_pairs(data_folder(data_dir), split=split)
    raise DataError(f"There are no pairs {source!r}.")


def afriqa_pairs(data_dir: Path, *, split: Split) -> list[TrainingPair]:
    """AfriQA's questions of one split with their gold passages and English translations."""
    task = afriqa.load(data_dir, split=split, pool_splits=(split,))
    english = afriqa.load(data_dir, split=split, translated=True, pool_splits=(split,))
    translations = {query.id: query.text for query in english.queries}
    passages = {passage.id: passage for passage in task.passages}
    return [
        TrainingPair(
            query.id,
            query.text,
            query.lang or "und",
            passages[next(iter(task.qrels[query.id]))],
            translation=translations[query.id],
        )
        for query in task.queries
    ]
