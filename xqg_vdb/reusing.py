"""Rows of earlier build folders for a changed corpus: only what is new or changed is encoded.

A row is known by its digest (`vectors.row_digest`: id, title, text, generated queries). A passage that had no queries
then and has some now keeps its passage vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import MismatchError
from xqg_vdb.types import EncoderFacts, Vectors
from xqg_vdb.vectors import Build, QuerySums


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Digests (n,) uint64 in ascending order of all rows of `builds`, and which build and row each belongs to."""

    builds: tuple[Build, ...]
    digests: NDArray[np.uint64]
    owners: NDArray[np.int32]
    rows: NDArray[np.int64]

    @classmethod
    def open(cls, folders: Sequence[str | Path], *, encoder: EncoderFacts) -> KnownRows:
        """Read the digests of build folders. Raises MismatchError for another encoder's, DataError, CorruptError."""
        builds = tuple(Build.open(folder) for folder in folders)
        for build in builds:
            if build.fingerprint != encoder.fingerprint:
                raise MismatchError(
                    f"The vectors in {build.path} were made with another encoder ({build.fingerprint}, this is "
                    f"{encoder.fingerprint}): leave out --reuse {build.path}."
                )
        digests = np.concatenate([np.zeros(0, np.uint64), *(build.digests for build in builds)])
        order = np.argsort(digests, kind="stable")
        owners = np.repeat(np.arange(len(builds), dtype=np.int32), [build.rows for build in builds])
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(build.rows) for build in builds)])
        return cls(builds, digests[order], owners[order], rows[order])

    def find(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each of `digests` (m,) lies: its position for `passages` and `sums`, -1 for none; (m,) int64."""
        if not len(self.digests):
            return np.full(len(digests), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)

    def passages(self, positions: NDArray[np.int64]) -> Vectors:
        """Passage vectors (m, dim) float32 of the rows at `positions`, none of them -1."""
        found = np.empty((len(positions), self.builds[0].dim), dtype=np.float32)
        for build, chosen, rows in self._by_build(positions):
            found[chosen] = build.passages[rows]
        return found

    def sums(self, positions: NDArray[np.int64]) -> QuerySums:
        """Query sums (m, dim) and counts (m,) of the rows at `positions`, for languages that have any."""
        found: dict[str, tuple[Vectors, NDArray[np.int32]]] = {}
        for build, chosen, rows in self._by_build(positions):
            for lang, counts in build.counts.items():
                if not counts[rows].any():
                    continue
                if lang not in found:
                    found[lang] = (
                        np.zeros((len(positions), build.dim), dtype=np.float32),
                        np.zeros(len(positions), dtype=np.int32),
                    )
                found[lang][0][chosen] = build.sums[lang][rows]
                found[lang][1][chosen] = counts[rows]
        return found

    def _by_build(self, positions: NDArray[np.int64]) -> list[tuple[Build, NDArray[np.bool_], NDArray[np.int64]]]:
        """Per build the mask over `positions` that is its own, and its rows for them."""
        owners, rows = self.owners[positions], self.rows[positions]
        return [(build, owners == i, rows[owners == i]) for i, build in enumerate(self.builds) if (owners == i).any()]
