"""What a load is asked for, checked before a model is opened.

In: paths and options as users give them. Out: errors that come at once. This file encodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from os import PathLike
from pathlib import Path

from xqg_vdb.collection.layout import check_name
from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors, open_lines
from xqg_vdb.records import Rejects
from xqg_vdb.types import Hybrid


def check_inputs(
    corpus: str | PathLike[str],
    name: str,
    *,
    queries: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    questions: str | PathLike[str] | None = None,
) -> list[Path]:
    """Refuse wrong names at once, before a model is opened or exported; the query files as a list.

    Raises DataError for a name that cannot be a collection's, and for files that are missing or of an unknown kind.
    """
    check_name(name)
    corpus = Path(corpus)
    with disk_errors(corpus):
        is_pipe = corpus.is_fifo()
    if is_pipe:
        raise DataError(f"{corpus} is a pipe, and a load reads the corpus twice: write it to a file first.")
    read_corpus(corpus)
    given = [queries] if isinstance(queries, str | PathLike) else queries or []
    files = [Path(file) for file in given]
    for file in [*files, *([] if questions is None else [Path(questions)])]:
        open_lines(file)
    return files


def check_options(*, passage_calibration: float, hybrid: Hybrid | None) -> None:
    """Raise DataError for what no corpus could be loaded with."""
    if not (isfinite(passage_calibration) and passage_calibration >= 0.0):
        raise DataError(f"passage_calibration must be a number from 0 up, got {passage_calibration}.")
    if hybrid is not None and hybrid.lang is not None:
        from xqg_vdb.collection.bm25 import check_language  # brings the embedded engine

        check_language(hybrid.lang)


def rejects_of(what: str, *, like: Rejects) -> Rejects:
    """Rejects for another input: as many are borne, and they are kept in a file beside the first."""
    path = None if like.path is None else like.path.with_name(f"{like.path.stem}.{what}{like.path.suffix}")
    return Rejects(like.max_rejects, path)
