"""Benchmarks by name, read in their publishers' own formats from --data-dir; `download.py` fetches some of them.

>>> sorted(DATASETS)[:3]
['afriqa', 'afriqa-dev-pool', 'afriqa-english']
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.evaluate.datasets.beir import read_beir
from xqg_vdb.evaluate.datasets.miracl import read_miracl, read_mr_tydi
from xqg_vdb.evaluate.datasets.parallel import XTREME_R, read_ntrex, read_tatoeba
from xqg_vdb.evaluate.datasets.task import RetrievalTask, with_corpus_notes
from xqg_vdb.evaluate.datasets.xor_tydi import read_xor_tydi
from xqg_vdb.evaluate.datasets.xquad import read_lareqa, read_xquad, read_xquad_pool

__all__ = ["DATASETS", "RetrievalTask", "data_folder", "is_dataset", "load_task"]

DATASETS: dict[str, Callable[..., RetrievalTask]] = {
    "afriqa": read_afriqa,
    "afriqa-dev-pool": partial(read_afriqa, pool_splits=("dev",)),
    "afriqa-english": partial(read_afriqa, translated=True),
    "afriqa-train": partial(read_afriqa, split="train"),
    "beir": read_beir,
    "miracl": read_miracl,
    "mlqa-r": partial(read_lareqa, name="mlqa-r"),
    "mr-tydi": read_mr_tydi,
    "ntrex": read_ntrex,
    "ntrex-en-xx": partial(read_ntrex, direction="en-xx"),
    "tatoeba": read_tatoeba,
    "tatoeba-41": partial(read_tatoeba, langs=tuple(XTREME_R)),
    "tatoeba-all": partial(read_tatoeba, langs=None),
    "tatoeba-en-xx": partial(read_tatoeba, direction="en-xx"),
    "xor-tydi": read_xor_tydi,
    "xquad": read_xquad,
    "xquad+afriqa": partial(read_xquad, distractors=True),
    "xquad-monolingual": partial(read_xquad_pool, split="", monolingual=True),
    "xquad-pool": read_xquad_pool,
    "xquad-r": partial(read_lareqa, name="xquad-r"),
    "xquad-r-sentences": partial(read_lareqa, name="xquad-r", context=False),
}
"""Name -> reader of a data folder; each reader's own module documents its options. `beir` reads that folder itself."""


def is_dataset(name: str) -> bool:
    """Tell whether `load_task` knows the name, of which `:SPLIT` may be the end."""
    base = name.partition(":")[0]
    return base in DATASETS or base.startswith("beir/")


def load_task(name: str, data_dir: str | Path | None = None) -> RetrievalTask:
    """Read the benchmark `name` of `DATASETS`, or `beir/FOLDER` for a BEIR folder below the data folder.

    `NAME:SPLIT`, such as `beir/msmarco:dev`, asks the questions of another split than the usual one.
    Raises DataError for an unknown name, when no data folder is given, for what the readers find missing, and when the
    corpus holds a relevant passage in a form that cannot be used.
    """
    base, _, split = name.partition(":")
    if not is_dataset(name):
        raise DataError(f"there is no dataset {name!r}; expected one of {', '.join(DATASETS)}, or beir/FOLDER.")
    folder, reader = data_folder(data_dir), DATASETS.get(base, read_beir)
    if base not in DATASETS:
        inner = base.removeprefix("beir/")
        folder = folder / "beir" / inner if (folder / "beir" / inner).is_dir() else folder / inner
    if split and "split" not in inspect.signature(reader).parameters:
        raise DataError(f"{base} has no splits; ask for {base} alone.")
    return with_corpus_notes(reader(folder, split=split) if split else reader(folder))


def data_folder(given: str | Path | None = None) -> Path:
    """Return the folder that holds the benchmarks: `given`, else XQG_DATA_DIR. DataError when there is none."""
    chosen = given or os.environ.get("XQG_DATA_DIR")
    if not chosen:
        raise DataError("benchmarks need their data: give --data-dir, or set XQG_DATA_DIR to a folder that holds them.")
    folder = Path(chosen)
    if not folder.is_dir():
        raise DataError(f"there is no data folder {folder}; give --data-dir, or set XQG_DATA_DIR.")
    return folder
