"""Did this encoder make these vectors? A sample of the texts is encoded again and compared with what is stored.

In: wordings of each text and stored rows. Out: the median cosine, or a refusal that says what would explain it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.types import Distance, TextEncoder, Vectors

LEAST_COSINE = 0.99
"""Equal models of equal precision are above it, batches of an int8 model included; other models are far below."""
_NEAR = 0.9
_LENGTHS = (0.9, 1.1)


def check_encoder(
    encoder: TextEncoder, wordings: Sequence[Sequence[str]], stored: Vectors, *, distance: Distance, name: str
) -> float:
    """The median cosine of stored rows (n, dim) to the rows that `encoder` makes of the same texts.

    wordings: per row what may have been encoded, the likeliest first; the kind of wording that fits best counts.
    Raises MismatchError, with what was found and what is wanted, for another encoder; DataError without texts.
    """
    if not wordings:
        raise DataError(f"None of the first points of {name!r} has a text: name its key with --text-key.")
    facts = encoder.facts
    if stored.shape[1] != facts.dim:
        raise MismatchError(
            f"The vectors of {name!r} have {stored.shape[1]} dimensions, those of {facts.source} {facts.dim}: give the"
            " encoder that made them (--encoder)."
        )
    if distance == "cosine" and not facts.normalize:
        raise MismatchError(
            f"{name!r} keeps its vectors at length 1, and {facts.source} makes others: how long the passages' vectors"
            " were is lost, so that queries cannot be weighed against them. Load the texts with `xqg-vdb load`."
        )
    kinds = range(max(map(len, wordings)))
    texts = [[own[min(kind, len(own) - 1)] for own in wordings] for kind in kinds]
    rows = [encoder.encode_passages(one) for one in texts]
    found = [_median_cosine(stored, own) for own in rows]
    best = int(np.argmax(found))
    if found[best] < LEAST_COSINE:
        as_queries = max(_median_cosine(stored, encoder.encode_queries(one)) for one in texts)
        raise MismatchError(_refusal(encoder, found[best], as_queries, name=name))
    if distance == "dot":
        _check_lengths(stored, rows[best], name=name, source=facts.source)
    return found[best]


def _median_cosine(stored: Vectors, made: Vectors) -> float:
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(made, axis=1)
    return float(np.median(np.sum(stored * made, axis=1) / np.maximum(lengths, 1e-12)))


def _refusal(encoder: TextEncoder, passages: float, queries: float, *, name: str) -> str:
    facts = encoder.facts
    said = (
        f"{facts.source} ({facts.precision}) did not make the vectors of {name!r}: encoded again, a sample of its texts"
        f" has a median cosine of {passages:.3f} to what is stored, at least {LEAST_COSINE} is wanted."
    )
    if queries >= LEAST_COSINE:
        return (
            f"{said} Encoded as queries it has {queries:.3f}: the passages were given the prefix"
            f" {facts.query_prefix!r}. Export the encoder with that as --passage-prefix."
        )
    if passages >= _NEAR:
        other = "fp32" if facts.precision == "int8" else "int8"
        return (
            f"{said} That is near: another precision (`xqg-vdb export --precision {other}`), another prefix before the"
            f" passages (this encoder's is {facts.passage_prefix!r}), or a title or metadata before the text."
        )
    return f"{said} Give the encoder that made them (--encoder), or the key of the text that was encoded (--text-key)."


def _check_lengths(stored: Vectors, made: Vectors, *, name: str, source: str) -> None:
    ratio = float(np.median(np.linalg.norm(stored, axis=1) / np.maximum(np.linalg.norm(made, axis=1), 1e-12)))
    if not _LENGTHS[0] <= ratio <= _LENGTHS[1]:
        raise MismatchError(
            f"The vectors of {name!r} are {ratio:.2f} times as long as those that {source} makes: they were scaled, or"
            " normalised, by other means. Load the texts with `xqg-vdb load`."
        )
