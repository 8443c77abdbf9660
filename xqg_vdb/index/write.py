"""An encoded build into a collection: its card with the language means that fusion subtracts, then its points.

Each window is fused by the card, written and committed; nothing is encoded here. `vectors_of` is the only place where
rows, query sums, a recipe and language means become vectors: loads, `verify`, `augment` and the benchmark all call it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import (
    LanguageMeans,
    TextEncoder,
    language_means,
    main_languages,
    pack_means,
    passage_means,
    resolve_languages,
    rows_of_card,
    unpack_means,
)
from xqg_vdb.errors import DataError
from xqg_vdb.fusion import Sums, fuse, recipe_languages, refuse_unequal_counts, unit_rows
from xqg_vdb.index.build import Build, Window, changed_input
from xqg_vdb.index.encode import Row, digests_of
from xqg_vdb.progress import Progress, ahead
from xqg_vdb.store.layout import TEXT_DENSE, TEXT_DENSE_PLAIN, content_hash, digest_of
from xqg_vdb.texts.corpus import read_questions
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import Card, CollectionWriter, Distance, Hybrid, Passage, PointBatch, Recipe, Vectors

COMMIT_EVERY = 8192
"""Passages between two flushes of the store: one costs about 0.1 s on a disk."""

_ENOUGH_QUESTIONS = 30


def card_of(
    encoder: TextEncoder, *, rows_digest: str, recipe: Recipe, distance: Distance, generated: LanguageMeans,
    asked: LanguageMeans | None = None, keep_plain: bool = False, chunk: str = "",
) -> Card:  # fmt: skip
    """The card of the collection to be.

    generated: `generated_means` of the build. asked: the means of users' questions.
    Raises DataError when the recipe wants a language without queries.
    """
    langs = recipe_languages(generated.counts, recipe) if recipe.alpha > 0.0 else []
    folded = LanguageMeans({lang: generated.means[lang] for lang in langs}, generated.counts)
    refined = encoder.language_means.refined(folded, capped=True).means
    # what users really ask beats what a model generated, which beats the bank
    means = {**{lang: refined[lang] for lang in langs}, **(asked.means if asked is not None else {})}
    return Card(
        encoder=encoder.facts,
        distance=distance,
        recipe=recipe,
        calibration=encoder.calibration,
        query_langs=tuple(langs),
        query_means=pack_means(LanguageMeans(means)),
        rows_digest=rows_digest,
        vectors=(TEXT_DENSE, TEXT_DENSE_PLAIN) if keep_plain else (TEXT_DENSE,),
        chunk=chunk,
    )


def check_counts(build: Build, card: Card) -> None:
    """Raise MismatchError, before anything is written, where pool `sum` meets passages of unequally many queries."""
    if card.query_langs and card.recipe.pool == "sum":
        refuse_unequal_counts(np.concatenate([window.counts(card.query_langs) for window in build.windows()]))


def generated_means(windows: Iterable[Sums]) -> LanguageMeans:
    """The mean generated-query vector of each language over a whole build, with how many queries there are."""
    return means_of(map(query_totals, windows))


def query_totals(sums: Sums) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Per language the sum (dim,) of all its query vectors, and their number; sums: those of a window."""
    return {lang: (rows.sum(axis=0, dtype=np.float64), int(n.sum())) for lang, (rows, n) in sums.items()}


def means_of(parts: Iterable[Mapping[str, tuple[NDArray[np.float64], int]]]) -> LanguageMeans:
    """The means of what `query_totals` says of each window."""
    totals: dict[str, NDArray[np.float64]] = {}
    counts: Counter[str] = Counter()
    for lang, (total, n) in ((lang, both) for part in parts for lang, both in part.items()):
        totals[lang] = totals.get(lang, 0.0) + total
        counts[lang] += n
    means = {lang: (total / counts[lang]).astype(np.float32) for lang, total in sorted(totals.items())}
    return LanguageMeans(means, {lang: counts[lang] for lang in means}, "generated queries")


def question_means(encoder: TextEncoder, questions: str | PathLike[str] | None, *, rejects: Rejects) -> LanguageMeans:
    """The means of users' questions, empty without a file. Few lean on the bank, thirty speak for themselves."""
    if questions is None:
        return LanguageMeans()
    asked = read_questions(Path(questions), rejects=rejects)
    texts = [question.text for question in asked]
    langs = resolve_languages(texts, [question.lang for question in asked])
    vectors = encoder.encode_queries(texts, calibrate=False)
    rows = {
        lang: vectors[[i for i, known in enumerate(langs) if known == lang]] for lang in sorted(set(langs) - {"und"})
    }
    if not rows:
        raise DataError(f"None of the questions in {questions} has a language: give each a `lang` field.")
    bank = encoder.language_means
    table = language_means(rows, source="questions")
    few = {lang for lang, n in table.counts.items() if n < _ENOUGH_QUESTIONS and lang in bank.means}
    blended = LanguageMeans({lang: bank.means[lang] for lang in few}, {lang: bank.counts[lang] for lang in few})
    return blended.refined(table)


def with_passage_means(card: Card, strength: float, table: LanguageMeans) -> Card:
    """`card` with the means of passage-side calibration; as it was for a corpus that is in one language."""
    if len(main_languages(table.counts)) < 2:
        return card
    return replace(card, passage_calibration=strength, passage_means=pack_means(table))


def with_words(card: Card, hybrid: Hybrid, rows: Iterable[Row]) -> Card:
    """The card with the settings of its sparse vectors, which the first passages of the corpus decide."""
    from xqg_vdb.store.bm25 import SAMPLE, settings_of  # brings the embedded engine

    return replace(card, bm25=settings_of([passage for passage, _ in islice(rows, SAMPLE)], hybrid))


def finished(card: Card, *, count: int, digest: str) -> Card:
    """The card to publish with so many points, as of now."""
    return replace(card, count=count, digest=digest, created=datetime.now(UTC).isoformat(timespec="seconds"))


def measure_passages(rows: Iterable[Row], build: Build, *, progress: Progress) -> LanguageMeans:
    """The means that passage-side calibration subtracts, over a whole build, with the languages' counts.

    Raises MismatchError when the passages are not as many as the vectors.
    """

    def batches() -> Iterator[tuple[Vectors, list[str]]]:
        done = 0
        for window, passages in _matched(rows, build, compare=False):
            done += len(passages)
            yield window.passages, [passage.lang for passage in passages]
            progress("measuring", done, build.rows)

    return passage_means(batches())


# Points by the card.


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


def write_collection(
    rows: Iterable[Row], build: Build, writer: CollectionWriter, *, card: Card, progress: Progress
) -> tuple[str, Counter[str]]:
    """Write every row that the writer does not have yet; the digest of all rows, and the passages by language.

    Raises MismatchError when `rows` are not those that the vectors were made from.
    """
    total, languages = 0, Counter[str]()
    done = first = build.starts[bisect_right(build.starts, writer.committed) - 1]

    def missing() -> Iterator[tuple[Window, list[Passage]]]:
        nonlocal total
        at = 0
        for window, passages in _matched(rows, build):
            for passage in passages:
                total += content_hash(passage.id, passage.text)
                languages[passage.lang] += 1
            if at >= first:
                yield window, passages
            at += len(window)

    progress("writing", done, build.rows)
    for batch in ahead(points(missing(), card)):
        writer.upsert(batch)
        done += len(batch.passages)
        if done % COMMIT_EVERY < len(batch.passages):
            writer.commit(done)
        progress("writing", done, build.rows)
    writer.commit(done)
    return digest_of(total), languages


def _matched(rows: Iterable[Row], build: Build, *, compare: bool = True) -> Iterator[tuple[Window, list[Passage]]]:
    """Every window with its passages. Raises MismatchError when they are others, or other queries with `compare`."""
    rest, done = iter(rows), 0
    for window in build.windows():
        part = list(islice(rest, len(window)))
        same = digests_of(part) == window.digests[: len(part)] if compare else np.ones(len(part), np.bool_)
        if len(part) < len(window) or not same.all():
            raise changed_input(build.path, done + (len(part) if same.all() else int(np.argmin(same))))
        done += len(window)
        yield window, [passage for passage, _ in part]
    if next(rest, None) is not None:
        raise changed_input(build.path, done)
