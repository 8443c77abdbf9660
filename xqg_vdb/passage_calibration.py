"""Passage-side calibration, for corpora of several languages: E(p) - λ·μ_lang(p), given length 1 again.

Encoders give all passages of a language a common direction too, and questions in that language rank them first. With
each language's own mean passage vector subtracted, what is left of a passage is what tells it from its language.

    μ_l = (Σ_{p in l} E(p) + k·μ) / (n_l + k)      μ = mean over all passages, k = `PRIOR`

A language of few passages leans on μ: its own mean would be those few passages themselves. Passages of unknown language
and of languages that were not measured take μ: left as they are among calibrated ones, they would be lost.

In: passage rows and their languages. Out: a `LanguageMeans` table, and rows. This file knows no file and no store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans, calibrate, unpack_means
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, Vectors

PRIOR = 5.0
"""k: how many passages at the mean over all languages every language is given."""

ENOUGH_PASSAGES = 30
"""A language with as many counts as one that the corpus is in; fewer may be mistakes of detection."""


def passage_means(batches: Iterable[tuple[Vectors, Sequence[str]]]) -> LanguageMeans:
    """μ_l of every language and, under `und`, μ; from rows (n, dim), not calibrated, with their languages."""
    totals: dict[str, NDArray[np.float64]] = {}
    counts: Counter[str] = Counter()
    for rows, langs in batches:
        names = np.array(langs, dtype=np.str_)
        for lang in sorted(set(langs)):
            own = rows[names == lang]
            totals[lang] = totals.get(lang, np.zeros(rows.shape[1])) + own.sum(axis=0, dtype=np.float64)
            counts[lang] += len(own)
    if not totals:
        return LanguageMeans(source="passages")
    everywhere = np.add.reduce(list(totals.values())) / counts.total()
    means = {
        lang: ((total + PRIOR * everywhere) / (counts[lang] + PRIOR)).astype(np.float32)
        for lang, total in sorted(totals.items())
    }
    means[UNKNOWN_LANGUAGE] = everywhere.astype(np.float32)
    return LanguageMeans(means, dict(counts), "passages")


def main_languages(counts: Mapping[str, int]) -> list[str]:
    """The languages that a corpus is in, sorted: those with enough passages (`ENOUGH_PASSAGES`)."""
    return sorted(lang for lang, n in counts.items() if n >= ENOUGH_PASSAGES and lang != UNKNOWN_LANGUAGE)


def calibrate_passages(
    rows: Vectors, *, langs: Sequence[str], table: LanguageMeans, strength: float, normalize: bool
) -> Vectors:
    """Rows E - λ·μ_lang, (n, dim) float32; table: from `passage_means`; `strength` is λ, 0 returns the rows unchanged.

    normalize: give rows length 1 again, for cosine collections and normalising encoders.
    """
    known = [lang if lang in table.means else UNKNOWN_LANGUAGE for lang in langs]
    return calibrate(rows, langs=known, table=table, strength=strength, normalize=normalize)


def rows_of_card(rows: Vectors, *, langs: Sequence[str], card: Card) -> Vectors:
    """Passage rows as the collection of this card has them before queries are folded in, (n, dim) float32."""
    if not card.passage_calibration:
        return rows
    table = unpack_means(card.passage_means, dim=card.encoder.dim)
    normalize = card.distance == "cosine"
    return calibrate_passages(rows, langs=langs, table=table, strength=card.passage_calibration, normalize=normalize)
