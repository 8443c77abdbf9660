"""Benchmarks by name, read in their publishers' own formats from --data-dir; `download.py` fetches some of them.

>>> sorted(DATASETS)[:3]
['afriqa', 'afriqa-dev-pool', 'afriqa-english']
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import (
    afriqa,
    beir,
    bucc,
    lareqa,
    mewsli_x,
    miracl,
    mkqa,
    mr_tydi,
    tatoeba,
    xor_tydi,
    xquad,
)
from xqg_vdb.evaluate.datasets.task import RetrievalTask

__all__ = ["DATASETS", "RetrievalTask", "data_folder", "load_task"]

DATASETS: dict[str, Callable[[Path], RetrievalTask]] = {
    "afriqa": afriqa.load,
    "afriqa-dev-pool": partial(afriqa.load, pool_splits=("dev",)),
    "afriqa-english": partial(afriqa.load, translated=True),
    "afriqa-train": partial(afriqa.load, split="train"),
    "beir": beir.load,
    "bucc2018": partial(bucc.load, split="test"),
    "bucc2018-dev": bucc.load,
    "mewsli-x": mewsli_x.load,
    "miracl": miracl.load,
    "mkqa": mkqa.load,
    "mlqa-r": lareqa.mlqa_r,
    "mr-tydi": mr_tydi.load,
    "tatoeba": tatoeba.load,
    "tatoeba-41": partial(tatoeba.load, langs=tuple(tatoeba.XTREME_R)),
    "tatoeba-en-xx": partial(tatoeba.load, direction="en-xx"),
    "xor-tydi": xor_tydi.load,
    "xquad": xquad.load,
    "xquad+afriqa": partial(xquad.load, distractors=True),
    "xquad-r": lareqa.xquad_r,
    "xquad-r-sentences": partial(lareqa.xquad_r, context=False),
}
"""Name -> reader of a data folder; each reader's own module documents its options. `beir` reads that folder itself."""


def load_task(name: str, data_dir: str | Path | None = None) -> RetrievalTask:
    """Read the benchmark `name` of `DATASETS`, or `beir/FOLDER` for a BEIR folder below the data folder.

    Raises DataError for an unknown name, when no data folder is given, and for what the readers find missing.
    """
    if name not in DATASETS and not name.startswith("beir/"):
        raise DataError(f"there is no dataset {name!r}; expected one of {', '.join(DATASETS)}, or beir/FOLDER.")
    folder = data_folder(data_dir)
    if name in DATASETS:
        return DATASETS[name](folder)
    inner = name.removeprefix("beir/")
    return beir.load(folder / "beir" / inner if (folder / "beir" / inner).is_dir() else folder / inner)


def data_folder(given: str | Path | None = None) -> Path:
    """Return the folder that holds the benchmarks: `given`, else XQG_DATA_DIR. DataError when there is none."""
    chosen = given or os.environ.get("XQG_DATA_DIR")
    if not chosen:
        raise DataError("benchmarks need their data: give --data-dir, or set XQG_DATA_DIR to a folder that holds them.")
    folder = Path(chosen)
    if not folder.is_dir():
        raise DataError(f"there is no data folder {folder}; give --data-dir, or set XQG_DATA_DIR.")
    return folder
