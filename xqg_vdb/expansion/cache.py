"""Expansions kept on disk, one small JSON file each, so that a question costs the model once.

A file is found by a digest of the question, its language, the plan and the model's fingerprint, and holds the question
as well: delete the folder to forget what was asked. A damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DiskError
from xqg_vdb.files import write_atomic
from xqg_vdb.model_folder import cache_folder

LARGEST = 1_000_000  # bytes; ours are far smaller


class ExpansionCache:
    """folder: `expansions` in the package's cache unless told otherwise."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "expansions" if folder is None else folder

    def get(self, key: str) -> str | None:
        """The expansion under `key`, None when there is none."""
        path = self._path(key)
        try:
            if path.stat().st_size > LARGEST:
                return None
            record = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        text = record.get("expansion") if isinstance(record, dict) and record.get("key") == key else None
        return text if isinstance(text, str) and text else None

    def put(self, key: str, *, question: str, expansion: str) -> None:
        """Keep an expansion; a disk that is full or read-only must not stop a search, so that is passed over."""
        try:
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            record = {"key": key, "question": question, "expansion": expansion}
            write_atomic(self._path(key), orjson.dumps(record) + b"\n")
        except (OSError, DiskError):
            return

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def cache_key(question: str, *, lang: str, plan: Mapping[str, Any], writer: Mapping[str, Any]) -> str:
    """64 hex digits that differ in any of the arguments."""
    blob = orjson.dumps([question, lang, plan, writer], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(blob).hexdigest()
