"""Small results of a generator, kept by key in an append-only log, which a stopped run need not compute again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xqg_vdb.files import disk_errors
from xqg_vdb.generation.record_log import RecordLog, rows


class KeptRows:
    """Rows with a `key` each, all in memory while the log is open; one process at a time.

    header: what they are and of which model. Raises LockedError, CorruptError, DiskError, and MismatchError when the
    log was begun with another header.
    """

    def __init__(self, path: Path, *, header: Mapping[str, Any]) -> None:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._log = RecordLog(path, header)
        self._written = self._log.committed.rows
        self._rows = {row["key"]: row for row in rows(path, self._log.committed)}

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The last row that was kept under `key`, None without one."""
        return self._rows.get(key)

    def add(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows; they are on the disk when this returns."""
        self._written += len(batch)
        self._log.commit(batch, rows=self._written, info={})
        self._rows.update({row["key"]: row for row in batch})

    def close(self) -> None:
        """Release the file and its lock."""
        self._log.__exit__(None, None, None)
