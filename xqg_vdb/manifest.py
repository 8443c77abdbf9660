"""The manifest of a build folder: which encoder made it, how many rows are committed, and the checksums of its files.

Written atomically and guarded by its own checksum. This file refuses to know what is in the other files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import CorruptError, DataError, MismatchError
from xqg_vdb.files import disk_errors, write_atomic

LANGUAGE = re.compile(r"[a-z]{2,8}")
LANGUAGE_FILE = re.compile(r"(?:queries|counts)\.([a-z]{2,8})\.npy")

_NAME = "manifest.json"
_TEMPORARY = f".{_NAME}.tmp"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is committed. crcs: CRC-32 of the committed rows by file."""

    fingerprint: str
    dim: int
    rows: int = 0
    ids_bytes: int = 0
    langs: tuple[str, ...] = ()
    complete: bool = False
    crcs: Mapping[str, int] = field(default_factory=dict)

    def arrays(self, *more: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and row shape of the array files, by name; `more` names files of languages that are not committed."""
        names = ["digests.npy", "passages.npy", *more]
        names += [f"{kind}.{lang}.npy" for lang in self.langs for kind in ("queries", "counts")]
        kinds = {"digests": ("<u8", ()), "counts": ("<i4", ())}
        return {name: kinds.get(name.split(".", 1)[0], ("<f4", (self.dim,))) for name in names}

    def require_files(self, folder: Path) -> None:
        """Raise CorruptError when a file that holds committed rows is gone."""
        for name in ("ids", *self.arrays()) if self.rows else ():
            if not (folder / name).is_file():
                raise CorruptError(f"{folder} has lost its file {name}; delete the folder and build it again.")

    def write(self, folder: Path) -> None:
        """Replace the manifest of `folder`, atomically and durably."""
        record = {"schema": 1, **asdict(self)}
        check = hashlib.blake2b(_canonical(record), digest_size=8).hexdigest()
        write_atomic(folder / _NAME, orjson.dumps({**record, "check": check}, option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder`. Raises DataError (there is none), MismatchError (schema), CorruptError."""
        path = folder / _NAME
        if not path.exists():
            raise DataError(f"{folder} holds no kept vectors; `xqg-vdb load … --build {folder}` makes them.")
        with disk_errors(path):
            data = path.read_bytes()
        try:
            record = orjson.loads(data)
            check = record.pop("check")
            if check != hashlib.blake2b(_canonical(record), digest_size=8).hexdigest():
                raise ValueError("wrong checksum")
            if record["schema"] != 1:
                raise MismatchError(
                    f"{path} was written by another version (schema {record['schema']}); build it again."
                )
            known = {f.name: record[f.name] for f in fields(cls)}
            if not all(type(known[name]) is int and known[name] >= 0 for name in ("dim", "rows", "ids_bytes")):
                raise ValueError("a count is no whole number")
            return cls(**{**known, "langs": tuple(_checked_language(lang) for lang in known["langs"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptError(f"{path} is damaged ({error}); delete {folder} and build it again.") from error


def _canonical(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def _checked_language(lang: str) -> str:
    if not LANGUAGE.fullmatch(lang):  # it becomes part of a file name
        raise ValueError(f"{lang!r} is not a language code")
    return lang


def read_or_start(folder: Path, wanted: Manifest) -> Manifest:
    """Return the manifest of an existing build, or write that of a new one.

    Raises DataError when the folder holds something else, MismatchError when the build has another encoder or
    dimension, CorruptError when it is damaged.
    """
    if not (folder / _NAME).exists():
        strange = sorted(p.name for p in folder.iterdir() if p.name != "lock" and not p.name.startswith(_TEMPORARY))
        if strange:
            raise DataError(
                f"{folder} holds {', '.join(strange[:3])} but no manifest.json; give a new or empty folder."
            )
        wanted.write(folder)
        return wanted
    found = Manifest.read(folder)
    if (found.fingerprint, found.dim) != (wanted.fingerprint, wanted.dim):
        raise MismatchError(
            f"{folder} was built by encoder {found.fingerprint} ({found.dim} dimensions), this one is "
            f"{wanted.fingerprint} ({wanted.dim}); use the first encoder, or give another folder."
        )
    found.require_files(folder)
    return found


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Delete what a run that died left behind: files of languages never committed, half-written manifests."""
    with disk_errors(folder):
        for path in folder.iterdir():
            match = LANGUAGE_FILE.fullmatch(path.name)
            if (match and match[1] not in manifest.langs) or path.name.startswith(_TEMPORARY):
                path.unlink()
