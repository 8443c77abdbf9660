"""Generated queries as vectors one by one, where a build folder has only their sums: for experiments and for tuning.

In: query files and passage ids. Out: rows in memory, kept on disk by what was encoded. This file knows no recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import DataError
from xqg_vdb.kept_vectors import kept_vectors
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.types import TextEncoder, Vectors


@dataclass(frozen=True)
class QueryVectors:
    """Generated queries of one task, flat: query i belongs to passage row owner[i] and is the index[i]-th of lang[i].

    vectors (m, dim) float32; owner, index (m,) int64; lang (m,) str. unused: records that belong to no passage.
    """

    vectors: Vectors
    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    lang: NDArray[np.str_]
    unused: int

    @property
    def langs(self) -> list[str]:
        """The languages, sorted."""
        return sorted(set(self.lang.tolist()))

    def sums(
        self, *, passages: int, n: int | None = None, langs: Sequence[str] | None = None
    ) -> dict[str, tuple[Vectors, NDArray[np.int32]]]:
        """Per language the sum over each passage's first n query vectors (passages, dim), and how many (passages,)."""
        found: dict[str, tuple[Vectors, NDArray[np.int32]]] = {}
        for lang in self.langs if langs is None else langs:
            chosen = self.lang == lang
            if n is not None:
                chosen &= self.index < n
            total = np.zeros((passages, self.vectors.shape[1]), dtype=np.float32)
            np.add.at(total, self.owner[chosen], self.vectors[chosen])
            found[lang] = (total, np.bincount(self.owner[chosen], minlength=passages).astype(np.int32))
        return found

    def means(self) -> tuple[dict[str, Vectors], dict[str, int]]:
        """The mean query vector of each language, and of how many queries."""
        own = {lang: self.vectors[self.lang == lang] for lang in self.langs}
        return {lang: rows.mean(axis=0, dtype=np.float64).astype(np.float32) for lang, rows in own.items()}, {
            lang: len(rows) for lang, rows in own.items()
        }


def encode_query_files(
    files: Sequence[Path],
    ids: Iterable[str],
    *,
    encoder: TextEncoder,
    folder: Path,
    langs: Sequence[str] | None = None,
    progress: Progress = silent,
) -> QueryVectors:
    """Encode the generated queries of the passages `ids` in that order, or take them from `folder`.

    langs: only these. Raises DataError when the files have none for any of them.
    """
    texts, owner, index, lang = [], [], [], []
    with QueryFile(files) as table:
        for row, passage in enumerate(ids):
            record = table.get(passage)
            for code, questions in sorted(record.queries.items()) if record else ():
                for i, text in enumerate(questions if langs is None or code in langs else ()):
                    texts.append(text)
                    owner.append(row)
                    index.append(i)
                    lang.append(code)
        unused = table.unused_count
    if not texts:
        raise DataError(
            f"{', '.join(map(str, files))}: no query belongs to any of these passages; are the ids the corpus's own?"
        )
    vectors = kept_vectors(
        texts, encode=encoder.encode_queries, encoder=encoder.facts, kind="queries", folder=folder, progress=progress,
        stage=f"queries of {files[0].name}",
    )  # fmt: skip
    return QueryVectors(vectors, np.array(owner), np.array(index), np.array(lang), unused)
