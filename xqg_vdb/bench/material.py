"""What systems are made from: the vectors of one task under one encoder, and those of generated queries one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.bench.kept import kept_vectors
from xqg_vdb.calibration import CalibratedEncoder
from xqg_vdb.datasets import RetrievalTask
from xqg_vdb.errors import DataError
from xqg_vdb.progress import Progress, silent
from xqg_vdb.queries import QueryFile
from xqg_vdb.types import Passage, Vectors


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


@dataclass(frozen=True)
class Material:
    """One task under one encoder: rows of its passages (n, dim) and questions (q, dim), not calibrated."""

    task: RetrievalTask
    passages: tuple[Passage, ...]
    passage_vectors: Vectors
    question_vectors: Vectors


def prepare(task: RetrievalTask, *, encoder: CalibratedEncoder, folder: Path, progress: Progress = silent) -> Material:
    """Encode the task's passages and questions, or take them from `folder`."""
    passages = tuple(task.passages)
    facts = encoder.facts
    rows = kept_vectors(
        [passage.title_and_text for passage in passages], encode=encoder.encode_passages, encoder=facts,
        kind="passages", folder=folder, progress=progress, stage=f"passages of {task.name}",
    )  # fmt: skip
    asked = kept_vectors(
        [query.text for query in task.queries], encode=encoder.encode_queries, encoder=facts, kind="queries",
        folder=folder, progress=progress, stage=f"questions of {task.name}",
    )  # fmt: skip
    return Material(task, passages, rows, asked)


def prepare_queries(
    file: Path, passages: Iterable[Passage], *, encoder: CalibratedEncoder, folder: Path, progress: Progress = silent
) -> QueryVectors:
    """Encode the generated queries of these passages. DataError when the file has none for any of them."""
    texts, owner, index, lang = [], [], [], []
    with QueryFile([file]) as table:
        for row, passage in enumerate(passages):
            record = table.get(passage.id)
            for code, questions in sorted(record.queries.items()) if record else ():
                for i, text in enumerate(questions):
                    texts.append(text)
                    owner.append(row)
                    index.append(i)
                    lang.append(code)
        unused = table.unused_count
    if not texts:
        raise DataError(f"{file} holds no query for any passage of this dataset: are the ids the dataset's?")
    vectors = kept_vectors(
        texts, encode=encoder.encode_queries, encoder=encoder.facts, kind="queries", folder=folder, progress=progress,
        stage=f"queries of {file.name}",
    )  # fmt: skip
    return QueryVectors(vectors, np.array(owner), np.array(index), np.array(lang), unused)


def counts(queries: QueryVectors, *, passages: int) -> Mapping[str, object]:
    """What a report says of a query file on a dataset."""
    return {
        "queries": len(queries.owner),
        "passages with queries": len(set(queries.owner.tolist())),
        "passages": passages,
        "languages": {lang: int((queries.lang == lang).sum()) for lang in queries.langs},
        "records of other passages": queries.unused,
    }
