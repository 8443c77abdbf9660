"""Where the real benchmark files lie, for the tests that count them: XQG_DATA_DIR, else ../shared/data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("XQG_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip with a reason when the folder `name` of the benchmark data is not on this machine."""
    return pytest.mark.skipif(not (FOLDER / name).is_dir(), reason=f"no {name} in {FOLDER}; set XQG_DATA_DIR")
