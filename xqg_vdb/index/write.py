"""Build rows into a collection: each window fused by the card, written, committed; nothing is encoded here.

`vectors_of` is the only place where rows, query sums, a recipe and language means become vectors: loads, `verify`,
`augment` and the benchmark all call it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from xqg_vdb.calibration import LanguageMeans, passage_means, rows_of_card, unpack_means
from xqg_vdb.fusion import fuse, unit_rows
from xqg_vdb.index.build import Build, Window, changed_input
from xqg_vdb.index.encode import Row, digests_of
from xqg_vdb.progress import Progress
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_DENSE_PLAIN, Digest
from xqg_vdb.types import Card, CollectionWriter, Passage, PointBatch, Recipe, Vectors

COMMIT_EVERY = 8192
"""Passages between two flushes of the store: one costs about 0.1 s on a disk."""


def vectors_of(window: Window, *, langs: Sequence[str], card: Card) -> dict[str, Vectors]:
    """Every dense vector that a collection of this card keeps of these rows, (n, dim) float32; langs: the passages'."""
    normalize = card.has_unit_rows
    none = np.zeros_like(window.passages), np.zeros(len(window), np.int32)
    recipe = replace(card.recipe, query_langs=card.query_langs) if card.query_langs else Recipe(alpha=0.0)
    vectors = {
        TEXT_DENSE: fuse(
            rows_of_card(window.passages, langs=langs, card=card),
            {lang: window.sums.get(lang, none) for lang in card.query_langs},
            recipe=recipe,
            means=unpack_means(card.query_means, dim=card.encoder.dim).means,
            normalize=normalize,
        )
    }
    if TEXT_DENSE_PLAIN in card.vectors:
        vectors[TEXT_DENSE_PLAIN] = unit_rows(window.passages) if normalize else window.passages
    return vectors


def points(rows: Iterable[tuple[Window, Sequence[Passage]]], card: Card) -> Iterator[PointBatch]:
    """The points that a collection of this card has of these windows and their passages."""
    words = None
    if card.bm25 is not None:
        from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

        words = WordWriter(card.bm25)
    for window, passages in rows:
        yield PointBatch(
            passages=passages,
            vectors=vectors_of(window, langs=[passage.lang for passage in passages], card=card),
            query_langs=folded_langs(window, card),
            sparse=None if words is None else [words.document(passage) for passage in passages],
            rows=[f"{digest:016x}" for digest in window.digests.tolist()],
        )


def folded_langs(window: Window, card: Card) -> list[list[str]]:
    """Per row the languages whose queries are in its fused vector."""
    counts = {lang: window.sums[lang][1].tolist() for lang in sorted(card.query_langs) if lang in window.sums}
    return [[lang for lang, n in counts.items() if n[row]] for row in range(len(window))]


def measure_passages(passages: Iterable[Passage], build: Build, *, progress: Progress) -> LanguageMeans:
    """The means that passage-side calibration subtracts, over a whole build, with the languages' counts.

    Raises MismatchError when the passages are not as many as the vectors.
    """
    rest = iter(passages)

    def batches() -> Iterator[tuple[Vectors, list[str]]]:
        done = 0
        for window in build.windows():
            langs = [passage.lang for passage in islice(rest, len(window))]
            done += len(langs)
            if len(langs) < len(window):
                raise changed_input(build.path, done)
            yield window.passages, langs
            progress("measuring", done, build.rows)

    means = passage_means(batches())
    if next(rest, None) is not None:
        raise changed_input(build.path, build.rows)
    return means


@dataclass(frozen=True, slots=True)
class Written:
    """All rows of a collection: their digest, and how many passages there are in each language."""

    digest: str
    languages: Counter[str]


def write_collection(
    rows: Iterable[Row], build: Build, writer: CollectionWriter, *, card: Card, progress: Progress
) -> Written:
    """Write every row that the writer does not have yet.

    Raises MismatchError when `rows` are not those that the vectors were made from.
    """
    digest, languages, first = Digest(), Counter[str](), writer.committed
    done = 0

    def missing() -> Iterator[tuple[Window, list[Passage]]]:
        nonlocal done
        for window, passages in _matched(rows, build):
            for passage in passages:
                digest.add(passage.id, passage.text)
                languages[passage.lang] += 1
            done += len(window)
            if done > first:
                yield window, passages

    progress("writing", first, build.rows)
    for batch in points(missing(), card):
        writer.upsert(batch)
        if done // COMMIT_EVERY > (done - len(batch.passages)) // COMMIT_EVERY:
            writer.commit(done)
        progress("writing", done, build.rows)
    writer.commit(done)
    return Written(digest.hexdigest(), languages)


def _matched(rows: Iterable[Row], build: Build) -> Iterator[tuple[Window, list[Passage]]]:
    """Every window with its passages. Raises MismatchError when they are not those that it was made from."""
    rest, done = iter(rows), 0
    for window in build.windows():
        part = list(islice(rest, len(window)))
        same = digests_of(part) == window.digests[: len(part)]
        if len(part) < len(window) or not same.all():
            raise changed_input(build.path, done + (len(part) if same.all() else int(np.argmin(same))))
        done += len(window)
        yield window, [passage for passage, _ in part]
    if next(rest, None) is not None:
        raise changed_input(build.path, done)
