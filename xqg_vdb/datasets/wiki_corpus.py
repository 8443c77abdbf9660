"""Large passage files of benchmarks (Wikipedia and the like), streamed; `corpus.read_corpus` does the reading."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from xqg_vdb.corpus import read_corpus
from xqg_vdb.datasets.task import POOL
from xqg_vdb.records import Rejects
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage

ENGLISH_WIKIPEDIA = ("enwiki_20190201_w100.tsv", "psgs_w100.tsv", "corpus.tsv", "corpus.jsonl")
"""Names under which an English passage collection is looked for: XOR-TyDi's, DPR's, and plain ones."""


class CorpusFiles:
    """The passages of corpus files in order, read anew each time it is iterated.

    lang: language of passages that name none. pool: makes it the files of one pool: ids become `{pool}:{id}`, because
    publishers count from zero in every language, and `meta["pool"]` is set.
    skipped: records that the last pass could not use, such as blank texts; 0 before the first.
    """

    def __init__(self, paths: Sequence[Path], *, lang: str = UNKNOWN_LANGUAGE, pool: str | None = None) -> None:
        self._paths, self._lang, self._pool = tuple(paths), lang, pool
        self.skipped = 0

    def __iter__(self) -> Iterator[Passage]:
        rejects = Rejects(max_rejects=sys.maxsize)
        for path in self._paths:
            for passage in read_corpus(path, rejects=rejects, default_lang=self._lang, detect=False):
                yield passage if self._pool is None else _in_pool(passage, self._pool)
        self.skipped = rejects.rejected


def _in_pool(passage: Passage, pool: str) -> Passage:
    return replace(passage, id=f"{pool}:{passage.id}", meta={**passage.meta, POOL: pool})
