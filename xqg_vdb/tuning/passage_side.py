"""Tuning for a collection whose passages will be calibrated: `load --passage-calibration` before everything else.

In: material, the corpus that it came from. Out: material with the passages' rows that such a load would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from xqg_vdb.building import Row, read_rows
from xqg_vdb.passage_calibration import calibrate_passages, main_languages, passage_means
from xqg_vdb.progress import Progress, silent
from xqg_vdb.tuning.material import Material
from xqg_vdb.types import UNKNOWN_LANGUAGE
from xqg_vdb.vectors import Build
from xqg_vdb.writing import measure_passages


def with_calibrated_passages(
    material: Material, corpus: Path, *, strength: float, build: Path | None = None, progress: Progress = silent
) -> Material:
    """`material` with its passages calibrated by λ = `strength`; as it was, with a note, for a corpus in one language.

    The means are those of the whole build where there is one, else those of the pool that is tuned on.
    Raises DataError for a bad corpus, MismatchError when it is not the build's.
    """
    if not strength:
        return material
    pool = material.pool
    place = {docid: row for row, docid in enumerate(pool.ids)}
    langs = [UNKNOWN_LANGUAGE] * len(place)

    def rows() -> Iterator[Row]:
        for passage, queries in read_rows(corpus, queries=None):
            if passage.id in place:
                langs[place[passage.id]] = passage.lang
            yield passage, queries

    if build is not None:
        table = measure_passages(rows(), Build.open(build), progress=progress)
    else:
        for _ in rows():
            pass
        table = passage_means([(pool.passages, langs)])
    if len(main_languages(table.counts)) < 2:
        return replace(material, notes=(*material.notes, "the corpus is in one language: passages stay as they are"))
    normalize = material.encoder.facts.normalize
    passages = calibrate_passages(pool.passages, langs=langs, table=table, strength=strength, normalize=normalize)
    return replace(material, pool=replace(pool, passages=passages))
