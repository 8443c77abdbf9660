"""Language calibration: subtract λ·μ_l, the mean query vector of the question's language, from the question's vector.

Passages that lie close to *every* question of a language lose their head start (a hub correction). It needs no labels
and no parallel data, only some thirty questions of the language, whatever they are about; it costs one subtraction a
question.
"""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import ModelError
from xqg_vdb.texts.corpus import read_corpus, read_questions, sample_corpus
from xqg_vdb.texts.languages import as_written, detect, question_bank
from xqg_vdb.types import UNKNOWN_LANGUAGE, Card, EncoderFacts, Vectors


@dataclass(frozen=True)
class LanguageMeans:
    """Mean query vector (dim,) per language, the number of questions behind each, and where they came from."""

    means: Mapping[str, Vectors] = field(default_factory=dict, repr=False)
    counts: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    def mean_of(self, lang: str | None) -> Vectors | None:
        """μ of `lang`, the mean over all languages when that is not in the table, None when the table is empty.

        A table that does not know a language's Latin letters takes the language for `hi-Latn`.
        """
        if not self.means:
            return None
        for known in () if lang is None else (lang, lang.removesuffix("-Latn")):
            if known in self.means:
                return self.means[known]
        mean: Vectors = np.mean(list(self.means.values()), axis=0, dtype=np.float32)
        return mean

    def refined(self, other: LanguageMeans, *, capped: bool = False) -> LanguageMeans:
        """Add `other`'s questions to the table: per language the mean over both sets, weighted by their counts.

        capped: what is here keeps at least half the weight. For generated queries: they are many, and their errors all
        go one way, so that their number says nothing about their worth (docs/measurements.md, "Whose mean").
        """
        means, counts = dict(self.means), dict(self.counts)
        for lang, theirs in other.means.items():
            n_mine, n_theirs = counts.get(lang, 0), other.counts[lang]
            if capped and n_mine:
                n_theirs = min(n_mine, n_theirs)
            mine = means.get(lang, np.zeros_like(theirs))
            means[lang] = ((n_mine * mine + n_theirs * theirs) / max(n_mine + n_theirs, 1)).astype(np.float32)
            counts[lang] = n_mine + n_theirs
        return LanguageMeans(means, counts, " + ".join(part for part in (self.source, other.source) if part))


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into float32 rows in input order, by one convention for queries and another for passages."""

    @property
    def facts(self) -> EncoderFacts:
        """The conventions and the fingerprint."""

    @property
    def language_means(self) -> LanguageMeans:
        """Mean query vectors that came with the encoder."""

    @property
    def calibration(self) -> float:
        """The λ to subtract them with unless told otherwise."""

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """Rows (n, dim) for questions, calibrated for their languages (None: detected) unless told otherwise."""

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) for passages."""


def language_means(vectors: Mapping[str, Vectors], *, source: str) -> LanguageMeans:
    """The table of rows (n_l, dim) per language; languages without rows are left out."""
    filled = {lang: rows for lang, rows in vectors.items() if len(rows)}
    means = {lang: rows.mean(axis=0, dtype=np.float64).astype(np.float32) for lang, rows in filled.items()}
    return LanguageMeans(means, {lang: len(rows) for lang, rows in filled.items()}, source)


def calibrate(
    queries: Vectors, *, langs: Sequence[str | None], table: LanguageMeans, strength: float, normalize: bool
) -> Vectors:
    """Rows q - λ·μ_lang(q), (n, dim) float32; `strength` is λ, 0 returns the rows unchanged.

    langs: one code per row; None, `und` and languages outside the table take the mean over all languages.
    normalize: give rows length 1 again (no influence on a ranking, but scores stay within [-1, 1] for cosine).
    """
    if len(langs) != len(queries):
        raise ValueError(f"{len(queries)} query rows but {len(langs)} languages")
    if strength == 0.0 or not table.means or not len(queries):
        return queries
    by_lang = {lang: table.mean_of(lang) for lang in set(langs)}
    offsets = np.stack([np.asarray(by_lang[lang]) for lang in langs])
    moved = (queries - np.float32(strength) * offsets).astype(np.float32)
    if normalize:
        moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-12))
    return moved


def calibrated(
    rows: Vectors, texts: Sequence[str], langs: Sequence[str | None] | None, *, table: LanguageMeans, strength: float,
    normalize: bool,
) -> Vectors:  # fmt: skip
    """`calibrate` for the rows of `texts`, whose languages are detected where none is given."""
    known = resolve_languages(texts, [None] * len(texts) if langs is None else langs)
    return calibrate(rows, langs=known, table=table, strength=strength, normalize=normalize)


def save_means(table: LanguageMeans) -> bytes:
    """The bytes of a `calibration.npz`: `langs` (L,) str, `means` (L, dim) float32, `counts` (L,) int64, `source`."""
    langs = sorted(table.means)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        langs=np.array(langs, dtype=np.str_),
        means=np.stack([table.means[lang] for lang in langs]) if langs else np.zeros((0, 0), np.float32),
        counts=np.array([table.counts[lang] for lang in langs], dtype=np.int64),
        source=np.array(table.source),
    )
    return buffer.getvalue()


@contextmanager
def model_arrays(path: Path, what: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays in a file of a model, while they are looked up; `what` they are, for the ModelError if not."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{path} holds no {what} ({error}); export the model again.") from error


def load_means(path: Path, *, dim: int) -> LanguageMeans:
    """The table in `path`. Raises ModelError when the file is not one, or is of another dimension."""
    with model_arrays(path, "calibration") as arrays:
        langs = [str(lang) for lang in arrays["langs"]]
        means, counts = np.asarray(arrays["means"], dtype=np.float32), arrays["counts"].tolist()
        source = str(arrays["source"])
    if langs and (means.shape != (len(langs), dim) or len(counts) != len(langs) or not np.isfinite(means).all()):
        raise ModelError(f"{path} holds means of shape {means.shape}, expected ({len(langs)}, {dim}); export again.")
    return LanguageMeans(dict(zip(langs, means, strict=True)), dict(zip(langs, counts, strict=True)), source)


def pack_means(table: LanguageMeans) -> dict[str, str]:
    """The table as text for a collection's card: language -> base64 of little-endian float16, 2·dim bytes each."""
    return {
        lang: base64.b64encode(mean.astype("<f2").tobytes()).decode("ascii")
        for lang, mean in sorted(table.means.items())
    }


def unpack_means(packed: Mapping[str, str], *, dim: int) -> LanguageMeans:
    """The table that `pack_means` wrote (counts are not kept: 1 each)."""
    means = {
        lang: np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float32) for lang, text in packed.items()
    }
    wrong = [lang for lang, mean in means.items() if mean.shape != (dim,)]
    if wrong:
        raise ModelError(f"the collection's query means for {', '.join(wrong)} do not have {dim} dimensions")
    return LanguageMeans(means, dict.fromkeys(means, 1), "collection")


def resolve_languages(texts: Sequence[str], langs: Sequence[str | None]) -> list[str]:
    """`langs` with every None replaced by the language detected in its text (`und` when unsure).

    Questions said to be in Hindi that are in Latin letters are in `hi-Latn`, and so on (`languages.as_written`).
    """
    if len(langs) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(langs)} languages")
    unknown = [i for i, lang in enumerate(langs) if lang is None]
    detected = dict(zip(unknown, detect([texts[i] for i in unknown]) if unknown else [], strict=True))
    return [detected[i] if lang is None else as_written(lang, texts[i]) for i, lang in enumerate(langs)]


# Passage-side calibration, for corpora of several languages: E(p) - λ·μ_lang(p), given length 1 again.

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
            of_lang = rows[names == lang]
            totals[lang] = totals.get(lang, np.zeros(rows.shape[1])) + of_lang.sum(axis=0, dtype=np.float64)
            counts[lang] += len(of_lang)
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
    strength, normalize = card.passage_calibration, card.has_unit_rows
    return calibrate_passages(rows, langs=langs, table=table, strength=strength, normalize=normalize)


# What calibration gains for an encoder, measured at export without any labels of the user's: which λ to recommend.

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WORTH_IT = 0.01
"""Smallest gain in MRR for which λ > 0 is recommended: about one standard error of a paired difference here."""
AS_GOOD = 0.01
"""Curves are flat at the top: of strengths this close to the best, the middle one is the safest elsewhere."""


def measure_calibration(encoder: TextEncoder) -> tuple[LanguageMeans, dict[str, Any]]:
    """The encoder's language means, and a record with the recommended `strength` and the measurements behind it."""
    table = language_means(
        {lang: encoder.encode_queries(lines, calibrate=False) for lang, lines in question_bank().items()},
        source="question bank",
    )
    sample = sample_corpus()
    passages = list(read_corpus(sample.corpus, detect=False))
    rows = {passage.id: row for row, passage in enumerate(passages)}
    questions = read_questions(sample.questions)
    answers = {r["id"]: rows[r["passage"]] for r in map(orjson.loads, sample.questions.read_bytes().splitlines())}
    vectors = encoder.encode_queries([question.text for question in questions], calibrate=False)
    curve = mrr_curve(
        vectors,
        encoder.encode_passages([passage.title_and_text for passage in passages]),
        langs=[question.lang for question in questions],
        answers=np.array([answers[question.id] for question in questions]),
        table=table,
        normalize=encoder.facts.normalize,
    )
    return table, {
        "strength": recommended_strength(curve),
        "mrr": {str(strength): round(value, 4) for strength, value in curve.items()},
        "measured_on": f"{len(questions)} questions, {len(passages)} passages of the sample corpus",
    }


def mrr_curve(
    queries: Vectors,
    passages: Vectors,
    *,
    langs: Sequence[str | None],
    answers: np.ndarray[Any, np.dtype[np.intp]],
    table: LanguageMeans,
    normalize: bool,
) -> dict[float, float]:
    """Mean reciprocal rank of row `answers[i]` of `passages` for question i, at each strength."""
    curve = {}
    for strength in STRENGTHS:
        moved = calibrate(queries, langs=langs, table=table, strength=strength, normalize=normalize)
        scores = moved @ passages.T
        own = scores[np.arange(len(answers)), answers]
        curve[strength] = float(np.mean(1.0 / (scores >= own[:, None]).sum(axis=1)))
    return curve


def recommended_strength(curve: dict[float, float]) -> float:
    """The middle of the strengths that are as good as the best; 0 when none is worth it."""
    best = max(curve.values())
    if best - curve[0.0] < WORTH_IT:
        return 0.0
    good = [strength for strength, value in sorted(curve.items()) if value >= best - AS_GOOD]
    return good[(len(good) - 1) // 2]
