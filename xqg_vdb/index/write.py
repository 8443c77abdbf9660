"""Kept vectors into a collection: fuse each window of rows by the card's recipe, write, commit.

In: rows of the corpus, their build folder, a card. Out: points in an unpublished version. This file encodes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xqg_vdb.batching import windows
from xqg_vdb.calibration import LanguageMeans, passage_means, rows_of_card
from xqg_vdb.fusion import fuse, unit_rows
from xqg_vdb.index.build import Build
from xqg_vdb.index.encode import Row, changed_input
from xqg_vdb.progress import Progress
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_DENSE_PLAIN, Digest
from xqg_vdb.texts.queries import row_digest
from xqg_vdb.types import Card, CollectionWriter, PointBatch, Recipe, Vectors

if TYPE_CHECKING:
    from xqg_vdb.store.bm25 import WordWriter


WRITE_WINDOW = 512
COMMIT_EVERY = 8192
"""Passages between two flushes of the store: one costs about 0.1 s on a disk."""

_PLAIN = Recipe(alpha=0.0)


@dataclass(frozen=True, slots=True)
class Written:
    """All rows of a collection: their digest, and how many passages there are in each language."""

    digest: str
    languages: Counter[str]


def measure_passages(rows: Iterable[Row], kept: Build, *, progress: Progress) -> LanguageMeans:
    """The means that passage-side calibration subtracts, over a whole build, with the languages' counts.

    Raises MismatchError when `rows` are not as many as the vectors.
    """

    def batches() -> Iterator[tuple[Vectors, list[str]]]:
        done = 0
        for window in windows(rows, WRITE_WINDOW):
            langs, done = [passage.lang for passage, _ in window], done + len(window)
            if done > kept.rows:
                raise changed_input(kept.path, kept.rows)
            yield kept.passages[done - len(window) : done], langs
            progress("measuring", done, kept.rows)

    return passage_means(batches())


def write_collection(
    rows: Iterable[Row],
    kept: Build,
    writer: CollectionWriter,
    *,
    card: Card,
    means: LanguageMeans,
    progress: Progress,
) -> Written:
    """Fuse and write every row that the writer does not have yet.

    Raises MismatchError when `rows` are not those that the vectors were made from.
    """
    source = _Source(kept, card, means)
    digest, languages, done = Digest(), Counter[str](), 0
    first = writer.committed
    progress("writing", first, kept.rows)
    for window in windows(rows, WRITE_WINDOW):
        _check_rows(window, kept, start=done)
        for passage, _ in window:
            digest.add(passage.id, passage.text)
            languages[passage.lang] += 1
        stop = done + len(window)
        if stop > first:
            writer.upsert(source.batch(window, slice(done, stop)))
            if stop // COMMIT_EVERY > done // COMMIT_EVERY:
                writer.commit(stop)
            progress("writing", stop, kept.rows)
        done = stop
    if done != kept.rows:
        raise changed_input(kept.path, done)
    writer.commit(done)
    return Written(digest.hexdigest(), languages)


class _Source:
    """What the batches of one load are made from."""

    def __init__(self, kept: Build, card: Card, means: LanguageMeans) -> None:
        self._kept, self._card, self._means = kept, card, means
        self._words: WordWriter | None = None
        if card.bm25 is not None:
            from xqg_vdb.store.bm25 import WordWriter  # brings the embedded engine

            self._words = WordWriter(card.bm25)

    def batch(self, window: Sequence[Row], rows: slice) -> PointBatch:
        """The points of these rows of the build."""
        kept, card = self._kept, self._card
        langs = [passage.lang for passage, _ in window]
        folded = set(card.query_langs)
        return PointBatch(
            passages=[passage for passage, _ in window],
            vectors=fused_vectors(kept, rows, langs=langs, card=card, means=self._means),
            query_langs=[sorted(set(queries.queries) & folded) if queries else [] for _, queries in window],
            sparse=None if self._words is None else [self._words.document(passage) for passage, _ in window],
        )


def fused_vectors(
    kept: Build, rows: slice, *, langs: Sequence[str], card: Card, means: LanguageMeans
) -> dict[str, Vectors]:
    """Every vector that is made now, for these rows of the build, each (rows, dim) float32.

    langs: the passages' own.
    """
    passages = rows_of_card(kept.passages[rows], langs=langs, card=card)
    sums = {lang: (kept.sums[lang][rows], kept.counts[lang][rows]) for lang in card.query_langs}
    normalize = card.distance == "cosine"
    recipe = replace(card.recipe, query_langs=card.query_langs) if card.query_langs else _PLAIN
    vectors = {TEXT_DENSE: fuse(passages, sums, recipe=recipe, means=means.means, normalize=normalize)}
    if TEXT_DENSE_PLAIN in card.vectors:
        vectors[TEXT_DENSE_PLAIN] = unit_rows(kept.passages[rows]) if normalize else kept.passages[rows]
    return vectors


def _check_rows(window: Sequence[Row], kept: Build, *, start: int) -> None:
    expected = kept.digests[start : start + len(window)].tolist()
    for i, row in enumerate(window):
        if i >= len(expected) or row_digest(*row) != expected[i]:
            raise changed_input(kept.path, start + i)
