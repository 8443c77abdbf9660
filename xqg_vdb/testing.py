"""Deterministic stand-ins that implement the public protocols: for this project's tests and for its users' tests.

No model, no file, no network: vectors come from hashed words, so that texts which share words are near each other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from xqg_vdb.calibration import LanguageMeans, calibrated
from xqg_vdb.texts.records import listed
from xqg_vdb.types import EncoderFacts, Vectors


class HashEncoder:
    """A TextEncoder whose rows are unit-length bags of hashed words; equal texts give equal rows on every machine.

    texts_seen counts what was encoded, so that a test can show that nothing was encoded twice.
    """

    def __init__(
        self,
        *,
        dim: int = 32,
        name: str = "hash",
        calibration: float = 0.0,
        language_means: LanguageMeans | None = None,
    ) -> None:
        self.facts = EncoderFacts(
            fingerprint=hashlib.sha256(f"{name}/{dim}".encode()).hexdigest()[:16],
            source=name,
            dim=dim,
            pooling="mean",
            normalize=True,
            query_prefix="",
            passage_prefix="",
            max_length=512,
            precision="fp32",
        )
        self.calibration = calibration
        self.language_means = language_means or LanguageMeans()
        self.texts_seen = 0

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) float32."""
        return self._encode(list(texts))

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """Rows (n, dim) float32, calibrated unless told otherwise."""
        texts = listed(texts)
        rows = self._encode(texts)
        if not calibrate or not self.calibration or not self.language_means.means:
            return rows
        return calibrated(
            rows, texts, question_langs, table=self.language_means, strength=self.calibration, normalize=True
        )

    def _encode(self, texts: Sequence[str]) -> Vectors:
        self.texts_seen += len(texts)
        rows = np.zeros((len(texts), self.facts.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()) or [text]:
                seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
                rows[i] += np.random.default_rng(seed).standard_normal(self.facts.dim, dtype=np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)
