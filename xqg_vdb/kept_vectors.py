"""Vectors of texts, kept on disk under a name made of the texts and the encoder: encoded once, whatever asks for them.

A build folder (`vectors.py`) per list of texts; a killed run goes on at its last commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from xqg_vdb.progress import Progress, silent
from xqg_vdb.types import EncoderFacts, Vectors
from xqg_vdb.vectors import Build

WINDOW = 512
"""Texts per commit. Windows start at multiples of it, so that a resumed run forms the batches of an unbroken one."""


def kept_vectors(
    texts: Sequence[str],
    *,
    encode: Callable[[Sequence[str]], Vectors],
    encoder: EncoderFacts,
    kind: str,
    folder: Path,
    progress: Progress = silent,
    stage: str = "encoding",
) -> Vectors:
    """Rows (len(texts), dim) float32, memory-mapped; encoded now where `folder` does not hold them yet.

    kind: `queries` or `passages`, which have different prefixes. Raises LockedError, DiskError,
    CorruptError, DataError.
    """
    place = folder / f"{kind}-{encoder.fingerprint}-{digest_of(texts)}"
    with Build.create_or_resume(place, dim=encoder.dim, fingerprint=encoder.fingerprint) as writer:
        for start in range(writer.rows, len(texts), WINDOW):
            progress(stage, start, len(texts))
            part = texts[start : start + WINDOW]
            digests = np.array([_text_digest(text) for text in part], dtype=np.uint64)
            writer.append([str(start + i) for i in range(len(part))], digests, encode(part))
            writer.commit(complete=start + WINDOW >= len(texts))
        progress(stage, len(texts), len(texts))
    return Build.open(place).passages


def digest_of(texts: Sequence[str]) -> str:
    """16 hexadecimal digits for a list of texts, order included."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _text_digest(text: str) -> int:
    """Hash a text to 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
