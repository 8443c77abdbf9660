"""The build folder: passage vectors and per-language query sums, kept so that a new recipe needs no new encoding.

    manifest.json  ids  digests.npy  passages.npy  queries.<lang>.npy  counts.<lang>.npy

The `.npy` files are ordinary (float32, int32, uint64; row i belongs to line i of `ids`) and grow in place. The manifest
is the authority: it is replaced only when all that it speaks of is on disk, and what comes after it is cut off at the
next start.
This file refuses to know encoders, recipes and corpus files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import disk_errors, lock_folder, sync_folder
from xqg_vdb.manifest import LANGUAGE, LANGUAGE_FILE, Manifest, read_or_start, remove_leftovers
from xqg_vdb.row_files import ArrayFile, IdFile, Ids, checksum, id_lines, map_array
from xqg_vdb.types import GeneratedQueries, Passage, Vectors

Counts = NDArray[np.int32]
QuerySums = Mapping[str, tuple[Vectors, Counts]]
"""Language -> (sum over each row's query vectors (n, dim) float32, how many queries there were (n,) int32)."""


def row_digest(passage: Passage, queries: GeneratedQueries | None) -> int:
    """Hash what a row is computed from (id, title, text, queries by language) to 64 bits."""
    texts = {} if queries is None else {lang: list(questions) for lang, questions in queries.queries.items()}
    data = orjson.dumps([passage.id, passage.title, passage.text, texts], option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Build:
    """Committed rows of a build folder, memory-mapped and read-only; row i of everything belongs to `ids[i]`.

    passages (rows, dim) float32; digests (rows,) uint64, `row_digest`; sums and counts by language, see `QuerySums`.
    complete: whether the run that made them reached the end of its corpus.
    """

    path: Path
    fingerprint: str
    dim: int
    rows: int
    complete: bool
    ids: Sequence[str]
    digests: NDArray[np.uint64]
    passages: Vectors
    sums: Mapping[str, Vectors]
    counts: Mapping[str, Counts]

    @classmethod
    def open(cls, path: str | Path) -> Build:
        """Map what is committed, even while a writer goes on. Raises DataError (no build) or CorruptError (damaged)."""
        path = Path(path)
        manifest = Manifest.read(path)
        manifest.require_files(path)
        arrays = {
            name: map_array(path / name, dtype=dtype, shape=(manifest.rows, *row))
            for name, (dtype, row) in manifest.arrays().items()
        }
        ids = Ids(path / "ids", rows=manifest.rows, size=manifest.ids_bytes)
        return cls(
            path,
            manifest.fingerprint,
            manifest.dim,
            manifest.rows,
            manifest.complete,
            ids,
            arrays["digests.npy"],
            arrays["passages.npy"],
            {lang: arrays[f"queries.{lang}.npy"] for lang in manifest.langs},
            {lang: arrays[f"counts.{lang}.npy"] for lang in manifest.langs},
        )

    @staticmethod
    def create_or_resume(path: str | Path, *, dim: int, fingerprint: str) -> BuildWriter:
        """Open a new or existing folder for appending; see `BuildWriter`."""
        return BuildWriter(path, dim=dim, fingerprint=fingerprint)

    def verify(self) -> None:
        """Read everything and compare with the checksums of the last commit. Raises CorruptError naming the file."""
        manifest = Manifest.read(self.path)
        if manifest.rows != self.rows:
            raise MismatchError(f"{self.path} grew since it was opened; open it again to verify it.")
        found = {"ids": cast(Ids, self.ids).checksum(), "digests.npy": checksum(self.digests)}
        found["passages.npy"] = checksum(self.passages)
        for lang in self.sums:
            found[f"queries.{lang}.npy"] = checksum(self.sums[lang])
            found[f"counts.{lang}.npy"] = checksum(self.counts[lang])
        for name, crc in found.items():
            if manifest.crcs.get(name, 0) != crc:
                raise CorruptError(
                    f"{self.path / name} is not as it was written; delete {self.path} and build it again."
                )


class BuildWriter:
    """Appends to a build folder that it holds exclusively; a context manager that closes without committing.

    A new or empty folder starts a build; an existing build goes on after its last committed row.
    Raises LockedError when another process writes there, MismatchError when the build was made with another encoder or
    dimension, CorruptError when it is damaged, and DataError when the folder holds something else.

    rows: how many rows are committed. complete: whether the last commit said so.
    """

    def __init__(self, path: str | Path, *, dim: int, fingerprint: str) -> None:
        self.path, self.dim = Path(path), dim
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self._stack.enter_context(lock_folder(self.path))
        try:
            self._manifest = read_or_start(self.path, Manifest(fingerprint, dim))
            remove_leftovers(self.path, self._manifest)
            self._arrays = {name: self._array(name, self._manifest) for name in self._manifest.arrays()}
            crc = self._manifest.crcs.get("ids", 0)
            self._ids = IdFile(self.path / "ids", size=self._manifest.ids_bytes, crc=crc)
            self._stack.callback(self._ids.close)
        except BaseException:
            self._stack.close()
            raise

    @property
    def rows(self) -> int:
        """Number of committed rows."""
        return self._manifest.rows

    @property
    def complete(self) -> bool:
        """Whether the last commit ended the build."""
        return self._manifest.complete

    def digest_prefix(self) -> NDArray[np.uint64]:
        """Digests (rows,) uint64 of the committed rows, for checking that the input is still the same."""
        return map_array(self.path / "digests.npy", dtype="<u8", shape=(self.rows,))

    def ids_prefix(self) -> Sequence[str]:
        """Ids of the committed rows."""
        return Ids(self.path / "ids", rows=self.rows, size=self._manifest.ids_bytes)

    def append(
        self, ids: Sequence[str], digests: NDArray[np.uint64], passages: Vectors, query_sums: QuerySums | None = None
    ) -> None:
        """Add n rows: passages (n, dim) float32, digests (n,) uint64, sums and counts of the languages that have any.

        Nothing counts before `commit`. Raises DataError, before anything is written, for wrong shapes or types and for
        values that are not finite; after a DiskError the writer is closed, and a new one goes on from the last commit.
        """
        sums = dict(query_sums or {})
        _check_rows(len(ids), self.dim, digests, passages, sums)
        lines = id_lines(ids)
        try:
            self._ids.append(lines)
            done = self._arrays["digests.npy"].rows
            self._arrays["digests.npy"].append(digests)
            self._arrays["passages.npy"].append(passages)
            for lang, (vectors, counts) in sums.items():
                for name, values in ((f"queries.{lang}.npy", vectors), (f"counts.{lang}.npy", counts)):
                    array = self._arrays.get(name) or self._new_array(name)
                    array.extend(done)
                    array.append(values)
        except BaseException:
            self.close()  # files of different lengths: only the last commit is worth anything now
            raise

    def commit(self, *, complete: bool = False) -> None:
        """Make all appended rows durable and count them; `complete` says that the corpus has no more."""
        rows = self._arrays["digests.npy"].rows
        try:
            for array in self._arrays.values():
                array.extend(rows)
                array.flush()
            self._ids.flush()
            with disk_errors(self.path):
                sync_folder(self.path)  # the names of new files, before the manifest tells of them
            self._manifest = replace(
                self._manifest,
                rows=rows,
                ids_bytes=self._ids.size,
                langs=tuple(sorted({m[1] for name in self._arrays if (m := LANGUAGE_FILE.fullmatch(name))})),
                complete=complete,
                crcs={"ids": self._ids.crc, **{name: array.crc for name, array in sorted(self._arrays.items())}},
            )
            self._manifest.write(self.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files and the lock; rows that were not committed are dropped at the next start."""
        self._stack.close()

    def __enter__(self) -> BuildWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _array(self, name: str, manifest: Manifest) -> ArrayFile:
        dtype, row_shape = manifest.arrays(name)[name]
        crc = manifest.crcs.get(name, 0)
        array = ArrayFile(self.path / name, dtype=dtype, row_shape=row_shape, rows=manifest.rows, crc=crc)
        self._stack.callback(array.close)
        return array

    def _new_array(self, name: str) -> ArrayFile:
        self._arrays[name] = self._array(name, Manifest("", self.dim))
        return self._arrays[name]


def _check_rows(
    n: int, dim: int, digests: NDArray[np.uint64], passages: Vectors, sums: Mapping[str, tuple[Vectors, Counts]]
) -> None:
    _check_array("digests", digests, np.dtype(np.uint64), (n,))
    _check_array("passages", passages, np.dtype(np.float32), (n, dim))
    for lang, (vectors, counts) in sums.items():
        if not LANGUAGE.fullmatch(lang):
            raise DataError(f"{lang!r} is not a normalised language code such as sw.")
        _check_array(f"query sums of {lang}", vectors, np.dtype(np.float32), (n, dim))
        _check_array(f"query counts of {lang}", counts, np.dtype(np.int32), (n,))


def _check_array(what: str, values: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        raise DataError(f"{what}: expected {dtype} {shape}, got {values.dtype} {values.shape}.")
    if dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{what}: row {row} is not finite; the encoder is damaged or its precision too low.")
