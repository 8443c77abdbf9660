"""`xqg_vdb.generate`: queries for passages in memory or in a file, without a log; `run.generate_file` has one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from xqg_vdb.generate.local import open_generator
from xqg_vdb.models.decode import Decoding
from xqg_vdb.texts.corpus import as_passage, read_corpus
from xqg_vdb.types import GeneratedQueries, Passage


def generate(
    corpus: str | PathLike[str] | Iterable[Passage | Mapping[str, Any]],
    *,
    query_langs: Sequence[str],
    n: int = 5,
    generator: str | Path = "starter:generator",
    decoding: Decoding | None = None,
    threads: int = 0,
) -> Iterator[GeneratedQueries]:
    """One record per passage, in the corpus's order, with `n` queries in each language; `write_queries` keeps them.

    corpus: a file or folder as `load` takes it, or passages, or dicts with `id` and `text`.
    generator: a model folder, or the name of one exported before. Raises ModelError, DataError.
    """
    ready = open_generator(generator, query_langs=query_langs, decoding=decoding, threads=threads)
    if isinstance(corpus, str | PathLike):
        return ready.generate(read_corpus(Path(corpus), detect=False), query_langs=query_langs, n=n)
    return ready.generate(map(as_passage, corpus), query_langs=query_langs, n=n)
