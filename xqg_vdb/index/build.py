"""The build folder: passage vectors and per-language query sums, kept so that a new recipe needs no new encoding.

    manifest.json  000000.npz  000001.npz  000002.npz …

A window holds 512 rows of everything and never changes: it is written aside and renamed. To continue is to list the
folder; a window that is lost or damaged can be deleted and is encoded anew. `np.load` reads them, too.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import atomic_file, disk_errors, lock_folder, write_atomic
from xqg_vdb.fusion import Counts, Sums
from xqg_vdb.progress import in_order, ticks, windows
from xqg_vdb.types import Stored, Vectors

WINDOW = 512
"""Rows of a window: what a killed run encodes again, at most. Windows always start at multiples of it, so that a
resumed run forms the batches of an unbroken one (an int8 model's activations are scaled per batch)."""

LANGUAGE = re.compile(r"[a-z]{2,8}")
Item = TypeVar("Item")

_SCHEMA = 2
_MANIFEST = "manifest.json"
_FILE = re.compile(r"(\d{6,})\.npz")
_ANEW = "run the same load again, which encodes its passages anew."
_DAMAGE = OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError, RuntimeError, OverflowError, struct.error
"""All that a zip with a flipped bit may raise."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Rows in memory: row i of everything belongs to `ids[i]`.

    digests (n,) uint64, `row_digest`; passages (n, dim) float32; sums by language, without those that no row has.
    """

    ids: Sequence[str]
    digests: NDArray[np.uint64]
    passages: Vectors
    sums: Sums

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self, langs: Iterable[str]) -> NDArray[np.int64]:
        """How many queries each row has in these languages, (n,)."""
        total = np.zeros(len(self), np.int64)
        for lang in set(langs) & set(self.sums):
            total += self.sums[lang][1]
        return total


@dataclass(frozen=True, slots=True)
class _Manifest(Stored):
    """Which encoder made a build, the rows of a window, and how many rows there are; None until the corpus's end."""

    fingerprint: str
    dim: int
    window: int
    rows: int | None = None

    def write(self, folder: Path) -> None:
        record = {"schema": _SCHEMA, **self.to_json()}
        write_atomic(folder / _MANIFEST, orjson.dumps({**record, "check": _check(record)}))

    @classmethod
    def read(cls, folder: Path) -> _Manifest:
        path = folder / _MANIFEST
        if not path.exists():
            raise DataError(f"{folder} holds no vectors; `xqg-vdb load … --build {folder}` makes them.")
        with disk_errors(path):
            data = path.read_bytes()
        try:
            record = orjson.loads(data)
            if record.pop("check") != _check(record):
                raise ValueError("wrong checksum")
            if record["schema"] != _SCHEMA:
                raise MismatchError(
                    f"The vectors in {folder} were written by another version of xqg-vdb (schema {record['schema']}),"
                    " which this one does not read: give another --build folder, without --reuse of this one, and"
                    " delete it."
                )
            return cls.from_json(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptError(f"{path} is damaged ({error}); delete {folder} and build it again.") from error


def _check(record: Mapping[str, Any]) -> str:
    return hashlib.blake2b(orjson.dumps(record, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Build:
    """The windows of a build folder, read when they are asked for.

    complete: whether the run that made them reached the end of its corpus. starts: the first row of each file, and the
    number of rows.
    """

    path: Path
    fingerprint: str
    dim: int
    complete: bool
    files: tuple[Path, ...]
    starts: tuple[int, ...]

    @classmethod
    def open(cls, path: str | Path) -> Build:
        """List what is there, even while somebody writes. Raises DataError (no build), MismatchError, CorruptError."""
        path = Path(path)
        manifest, listed = _Manifest.read(path), _listed(path)
        size, rows = manifest.window, manifest.rows
        if rows is None:
            rows = (len(listed) - 1) * size + len(_read(listed[max(listed)], "digests")["digests"]) if listed else 0
        elif lost := sorted(set(range(-(-rows // size))) - set(listed)):
            raise CorruptError(f"{path} has lost its file {lost[0]:06}.npz; {_ANEW}")
        files = tuple(listed[number] for number in sorted(listed))
        starts = *(number * size for number in range(len(files))), rows
        return cls(path, manifest.fingerprint, manifest.dim, manifest.rows is not None, files, starts)

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.starts[-1]

    def joined(self, other: Build) -> Build:
        """The rows of this one, then those of the other."""
        starts = *self.starts[:-1], *(self.rows + start for start in other.starts)
        return replace(self, files=self.files + other.files, starts=starts)

    def windows(self) -> Iterator[Window]:
        """Every window, one in memory at a time. Raises CorruptError for one that is not as it was written."""
        return map(_window, self.files)

    def sums(self) -> Iterator[Sums]:
        """The query sums of every window, without reading its passages."""
        return map(_sums, self.files)

    def digests(self) -> NDArray[np.uint64]:
        """The digests (rows,) of all rows."""
        return np.concatenate([np.zeros(0, np.uint64), *(_read(file, "digests")["digests"] for file in self.files)])

    def ids(self) -> Iterator[str]:
        """The ids of all rows."""
        for file in self.files:
            yield from _ids(_read(file, "ids")["ids"])

    def take(self, rows: NDArray[np.int64]) -> Window:
        """These rows, in this order; every window that has some is read once."""
        n = len(rows)
        ids, digests, passages = [""] * n, np.zeros(n, np.uint64), np.zeros((n, self.dim), np.float32)
        sums: dict[str, tuple[Vectors, Counts]] = {}
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            window, inside = _window(self.files[number]), rows[places] - self.starts[number]
            for place, row in zip(places.tolist(), inside.tolist(), strict=True):
                ids[place] = window.ids[row]
            digests[places], passages[places] = window.digests[inside], window.passages[inside]
            for lang, (total, counts) in window.sums.items():
                if counts[inside].any():
                    both = sums.setdefault(lang, (np.zeros_like(passages), np.zeros(n, np.int32)))
                    both[0][places], both[1][places] = total[inside], counts[inside]
        return Window(ids, digests, passages, sums)

    def passages(self) -> Vectors:
        """All passage vectors (rows, dim) in memory."""
        parts = [_read(file, "passages")["passages"] for file in self.files]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *parts])


def fill_build(
    path: str | Path,
    items: Iterable[Item],
    *,
    dim: int,
    fingerprint: str,
    digests: Callable[[Sequence[Item]], NDArray[np.uint64]],
    encode: Callable[[Sequence[Item], NDArray[np.uint64]], Window],
    say: Callable[[int], None],
    texts: Callable[[Item], int] = lambda item: 1,
    at_once: int = 1,
) -> Build:
    """Encode every window of `items` that is not there yet, and see that the others are of the same items.

    say: told how many items are in, and within a window, by the batches of the encoder, how many are as good as in.
    texts: that an item has to encode at most. at_once: windows that are encoded at a time, on threads of their own.
    Raises LockedError when another process writes there, MismatchError for other items
    and when the build was made with another encoder or dimension, CorruptError when it is damaged, DataError when the
    folder holds something else, DiskError.
    """
    path = Path(path)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with lock_folder(path):
        manifest = _read_or_start(path, _Manifest(fingerprint, dim, WINDOW))
        with disk_errors(path):
            for leftover in path.glob(".*.tmp-*"):  # of a run that died
                leftover.unlink()
        files, rows, done = _listed(path), manifest.rows, 0
        missing = partial(_missing, manifest, path=path, known=dict(files), digests=digests)

        def encoded(job: tuple[int, list[Item], NDArray[np.uint64] | None]) -> Window | None:
            number, part, expected = job
            if expected is None:
                return None
            with ticks(_within(number * manifest.window, len(part), sum(map(texts, part)), say)):
                return encode(part, expected)

        say(done)
        try:
            for (number, part, _), window in in_order(encoded, missing(items), at_once=at_once):
                if window is not None:
                    files[number] = path / f"{number:06}.npz"
                    _write(files[number], window, dim=dim)
                done += len(part)
                say(done)
        except KeyboardInterrupt:
            kept = (
                f"the first {done:,} are encoded and kept" if done else "nothing was finished yet, so nothing is kept"
            )
            raise KeyboardInterrupt(kept) from None
        if rows not in (None, done) or len(files) != -(-done // manifest.window):
            raise changed_input(path, done)
        if rows is None:
            replace(manifest, rows=done).write(path)
    return Build.open(path)


def _missing(
    manifest: _Manifest, items: Iterable[Item], *, path: Path, known: Mapping[int, Path],
    digests: Callable[[Sequence[Item]], NDArray[np.uint64]],
) -> Iterator[tuple[int, list[Item], NDArray[np.uint64] | None]]:  # fmt: skip
    """Every window's number and items, with their digests if it is to be encoded. Raises MismatchError."""
    for number, part in enumerate(windows(items, manifest.window)):
        expected, first = digests(part), number * manifest.window
        if number in known:
            _compare(known[number], expected, first=first)
        elif manifest.rows is not None and first >= manifest.rows:
            raise changed_input(path, first)
        yield number, part, None if number in known else expected


def _within(done: int, items: int, texts: int, say: Callable[[int], None]) -> Callable[[int], None]:
    """Tells `say` how far a window of so many items and texts is; its end is told when it is written."""
    seen = 0

    def tell(encoded: int) -> None:
        nonlocal seen
        seen += encoded
        say(done + min(items - 1, items * seen // texts))

    return tell


def _compare(path: Path, expected: NDArray[np.uint64], *, first: int) -> None:
    known = _read(path, "digests")["digests"]
    if not np.array_equal(known, expected):
        both = min(len(known), len(expected))
        differ = np.flatnonzero(known[:both] != expected[:both])
        raise changed_input(path.parent, first + (int(differ[0]) if len(differ) else both))


def _write(path: Path, window: Window, *, dim: int) -> None:
    _check_rows(window, dim=dim)
    arrays: dict[str, NDArray[Any]] = {"digests": window.digests, "passages": window.passages}
    try:
        arrays["ids"] = np.frombuffer(orjson.dumps(list(window.ids)), np.uint8)
    except orjson.JSONEncodeError as error:
        raise DataError(f"An id cannot be written as UTF-8 ({error}).") from None
    sums = {lang: both for lang, both in sorted(window.sums.items()) if both[1].any()}
    arrays["langs"] = np.array(list(sums), dtype="<U8")  # a zip may lose whole members without its noticing
    for lang, (total, counts) in sums.items():
        arrays |= {f"sum.{lang}": total, f"count.{lang}": counts}
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def changed_input(path: Path, row: int) -> MismatchError:
    """The error for a build folder whose corpus or queries are not those that it was made from."""
    return MismatchError(
        f"The corpus or the queries changed since the vectors in {path} were made (first at passage {row + 1}): "
        f"use another --build folder, with --reuse {path} to encode only what changed, or remove that one."
    )


def _read_or_start(folder: Path, wanted: _Manifest) -> _Manifest:
    if not (folder / _MANIFEST).exists():
        strange = sorted(p.name for p in folder.iterdir() if p.name != "lock" and not p.name.startswith("."))
        if strange:
            raise DataError(f"{folder} holds {', '.join(strange[:3])} but no {_MANIFEST}; give a new or empty folder.")
        wanted.write(folder)
        return wanted
    known = _Manifest.read(folder)
    if (known.fingerprint, known.dim) != (wanted.fingerprint, wanted.dim):
        raise MismatchError(
            f"{folder} was built by encoder {known.fingerprint} ({known.dim} dimensions), this one is "
            f"{wanted.fingerprint} ({wanted.dim}); use the first encoder, or give another folder."
        )
    return known


def _listed(folder: Path) -> dict[int, Path]:
    with disk_errors(folder):
        return {int(match[1]): path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}


def _window(path: Path) -> Window:
    arrays = _read(path, "ids", "digests", "passages")
    return Window(_ids(arrays["ids"]), arrays["digests"], arrays["passages"], _sums(path))


def _sums(path: Path) -> Sums:
    langs = _read(path, "langs")["langs"].tolist()
    both = _read(path, *(f"{kind}.{lang}" for lang in langs for kind in ("sum", "count")))
    return {lang: (both[f"sum.{lang}"], both[f"count.{lang}"]) for lang in langs}


def _read(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """These arrays of a window; the zip's checksums are compared before a byte of an array is looked at."""
    with disk_errors(path):
        file = open(path, "rb")  # noqa: SIM115 - what is wrong inside is no error of the disk
    try:
        with file, zipfile.ZipFile(file) as archive:
            files = {name: io.BytesIO(archive.read(f"{name}.npy")) for name in names}
            return {name: np.lib.format.read_array(file, allow_pickle=False) for name, file in files.items()}
    except _DAMAGE as error:
        raise CorruptError(f"{path} is damaged ({error}); delete that file and {_ANEW}") from error


def _ids(spelled: NDArray[np.uint8]) -> list[str]:
    return list(orjson.loads(spelled.tobytes()))


def _check_rows(window: Window, *, dim: int) -> None:
    """Raise DataError, before anything is written, for wrong shapes or types and for values that are not finite."""
    n = len(window)
    _check_array("digests", window.digests, np.dtype(np.uint64), (n,))
    _check_array("passages", window.passages, np.dtype(np.float32), (n, dim))
    for lang, (total, counts) in window.sums.items():
        if not LANGUAGE.fullmatch(lang):
            raise DataError(f"{lang!r} is not a normalised language code such as sw.")
        _check_array(f"query sums of {lang}", total, np.dtype(np.float32), (n, dim))
        _check_array(f"query counts of {lang}", counts, np.dtype(np.int32), (n,))


def _check_array(what: str, values: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        raise DataError(f"{what}: expected {dtype} {shape}, got {values.dtype} {values.shape}.")
    if dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{what}: row {row} is not finite; the encoder is damaged or its precision too low.")
