"""What calibration gains for an encoder, measured at export without any labels of the user's: which λ to recommend.

The language means come from the question bank. The gain is measured on the sample corpus: 600 questions in ten
languages, each written for one of 60 passages, exact search, mean reciprocal rank. Both ship with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from xqg_vdb.calibration import LanguageMeans, calibrate, language_means
from xqg_vdb.corpus import read_corpus
from xqg_vdb.fusion import unit_rows
from xqg_vdb.questions import question_bank, read_questions, sample_corpus
from xqg_vdb.types import TextEncoder, Vectors

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WORTH_IT = 0.01
"""Smallest gain in MRR for which λ > 0 is recommended: about one standard error of a paired difference here."""
AS_GOOD = 0.01
"""Curves are flat at the top: of strengths this close to the best, the middle one is the safest elsewhere."""


def measure_calibration(encoder: TextEncoder) -> tuple[LanguageMeans, dict[str, Any]]:
    """The encoder's language means, and a record with the recommended `strength` and the measurements behind it."""
    table = language_means(
        {lang: encoder.encode_queries(lines) for lang, lines in question_bank().items()}, source="question bank"
    )
    sample = sample_corpus()
    passages = list(read_corpus(sample.corpus, detect=False))
    rows = {passage.id: row for row, passage in enumerate(passages)}
    questions = read_questions(sample.questions)
    answers = {r["id"]: rows[r["passage"]] for r in map(orjson.loads, sample.questions.read_bytes().splitlines())}
    vectors = encoder.encode_queries([question.text for question in questions])
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
        **_geometry(table, vectors),
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


def _geometry(table: LanguageMeans, questions: Vectors) -> dict[str, float]:
    """Length of the language means relative to a question's, and the mean cosine between two languages' means."""
    means = np.stack(list(table.means.values()))
    unit = unit_rows(means)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    length = np.linalg.norm(means, axis=1).mean() / np.linalg.norm(questions, axis=1).mean()
    return {"mean_length": round(float(length), 4), "mean_cosine": round(float(cosines.mean()), 4)}
