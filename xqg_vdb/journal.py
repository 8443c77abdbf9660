"""An append-only log of records that survives `kill -9` and power cuts: one batch is in it whole or not at all.

Every line is a CRC-32 (8 hex digits), a blank and a JSON object. The first one is the header; a batch is its rows and a
commit, written at once and synced. On opening, what follows the last commit is cut away (it was never promised); damage
before it is an error, never a silent skip.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from xqg_vdb.errors import CorruptError, LockedError, MismatchError
from xqg_vdb.files import disk_errors, sync_folder, try_flock


def encode_line(record: Mapping[str, Any]) -> bytes:
    """A record as it stands in the log."""
    body = orjson.dumps(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line, None when it is damaged or cut."""
    body = line[9:-1]
    if line == b"%08x %s\n" % (zlib.crc32(body), body):
        with suppress(ValueError, TypeError):  # another program's
            return dict(orjson.loads(body))
    return None


@dataclass(frozen=True)
class Committed:
    """What a log promises: its header, how many rows, its commits, the end record if it is finished.

    size: bytes up to there. cut: bytes after it, which do not count.
    """

    header: dict[str, Any]
    rows: int
    commits: tuple[dict[str, Any], ...]
    end: dict[str, Any] | None
    size: int
    cut: int


def scan(path: Path) -> Committed | None:
    """Check a log from end to end; None when it is empty or only its header was begun.

    Raises CorruptError, with the byte offset, when something before the last commit is damaged.
    """
    header: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    commits: list[dict[str, Any]] = []
    bad: int | None = None
    at, safe, line = 0, 0, b""
    with disk_errors(path), path.open("rb") as file:
        for line in file:
            record = decode_line(line)
            if record is None:
                bad = at if bad is None else bad
            elif {"header", "commit", "end"} & record.keys():
                if bad is not None:
                    raise _damaged(path, bad)
                header = record.get("header", header)
                commits += [record["commit"]] if "commit" in record else []
                end = record.get("end", end)
                safe = at + len(line)
            at += len(line)
    if header is None:
        if at > len(line) or line.endswith(b"\n"):
            raise _damaged(path, 0)
        return None
    return Committed(header, commits[-1]["rows"] if commits else 0, tuple(commits), end, safe, at - safe)


def rows(path: Path, committed: Committed) -> Iterator[dict[str, Any]]:
    """The committed rows in order, checked again on the way."""
    at = 0
    with disk_errors(path), path.open("rb") as file:
        while at < committed.size:
            line = file.readline()
            record = decode_line(line)
            if record is None:
                raise _damaged(path, at)
            at += len(line)
            if "row" in record:
                yield record["row"]


def _damaged(path: Path, at: int) -> CorruptError:
    return CorruptError(
        f"{path} is damaged at byte {at}, before its last commit: restore it from a copy, or delete it to start again."
    )


class RecordLog(AbstractContextManager["RecordLog"]):
    """A log open for appending, by one process at a time."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open or resume. Raises LockedError, CorruptError, and MismatchError when its header says something else."""
        with disk_errors(path):
            self._file: IO[bytes] = path.open("ab")
        try:
            if not try_flock(self._file.fileno()):
                raise LockedError(f"{path} is being written by {_writer(path)}; wait for it, or use another OUT.")
            found = scan(path)
            if found is None or (found.header != header and not found.rows and not found.end):  # nothing is lost
                self._truncate(0)
                self._append(encode_line({"header": header}))
                sync_folder(path.parent)
                found = Committed(dict(header), 0, (), None, 0, 0)
            elif found.header != header:
                changed = "; ".join(differences(found.header, header))
                raise MismatchError(
                    f"{path} was begun with other settings ({changed}): use the same ones, or another OUT."
                )
            elif found.cut:
                self._truncate(found.size)
        except BaseException:
            self._file.close()
            raise
        self.path, self.committed = path, found

    def commit(self, batch: Sequence[Mapping[str, Any]], *, rows: int, info: Mapping[str, Any]) -> None:
        """Append rows and their commit in one write, on the disk when this returns. rows: how many there are now."""
        lines = [encode_line({"row": record}) for record in batch]
        self._append(*lines, encode_line({"commit": {"rows": rows, **info}}))

    def finish(self, info: Mapping[str, Any]) -> None:
        """Append the end record."""
        self._append(encode_line({"end": info}))

    def _append(self, *lines: bytes) -> None:
        with disk_errors(self._file.name):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())

    def _truncate(self, size: int) -> None:
        with disk_errors(self._file.name):
            self._file.truncate(size)
        self._append()

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _writer(path: Path) -> str:
    """Who holds the lock of a log, where the kernel tells."""
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            _, _, _, _, pid, where, *_ = line.replace("-> ", "").split()
            if where.endswith(f":{path.stat().st_ino}"):
                return f"process {pid}"
    return "another process"


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two records, one phrase per (nested) key: `decoding.seed was 1, is 2`."""
    old, new = _flat(found), _flat(wanted)
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, Mapping):
        return {prefix.rstrip("."): record}
    return {key: value for name, inner in record.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


class Memo:
    """Small results of a generator by key, kept in a log, which a stopped run need not compute again.

    All are in memory while the log is open, by one process at a time. field: the result's name in the log.
    fresh, reused: how many were computed, and how many were there; the caller resets them. Raises LockedError,
    CorruptError, DiskError, and MismatchError when the log has another header.
    """

    def __init__(self, path: Path, *, header: Mapping[str, Any], field: str) -> None:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._field = RecordLog(path, header), field
        self._rows = {row["key"]: row for row in rows(path, self._log.committed)}
        self._written = self._log.committed.rows
        self.fresh, self.reused = 0, 0
        self._took: list[float | None] | None = None

    @contextmanager
    def timed(self) -> Iterator[list[float | None]]:
        """What is computed inside is timed: the seconds of every result that is asked for, None where nobody did."""
        self._took = took = list[float | None]()
        try:
            yield took
        finally:
            self._took = None

    def has(self, keys: Sequence[str]) -> bool:
        """Whether nothing needs to be computed."""
        return all(key in self._rows for key in keys)

    def recall(self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """The result of every key; `compute` makes those at the given places, which are on the disk on return.

        An empty text is a failure, and is not kept.
        """
        new = {key: place for place, key in enumerate(keys) if key not in self._rows}
        started = time.perf_counter()
        results = compute(list(new.values())) if new else ()
        timed = {} if self._took is None else {"seconds": time.perf_counter() - started}
        made = {key: {"key": key, self._field: result, **timed} for key, result in zip(new, results, strict=True)}
        if batch := [row for row in made.values() if row[self._field] != ""]:
            self._written += len(batch)
            self._log.commit(batch, rows=self._written, info={})
        answers = [self._rows.get(key) or made[key] for key in keys]
        self._rows.update({row["key"]: row for row in batch})
        if self._took is not None:
            self._took += [row.get("seconds") for row in answers]
        self.fresh, self.reused = self.fresh + len(new), self.reused + len(keys) - len(new)
        return [row[self._field] for row in answers]

    def close(self) -> None:
        """Release the file and its lock."""
        self._log.__exit__()
