"""The birth certificate of generated queries: everything that one needs to make the same file again."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of every package, `source` for one that runs from a checkout."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def environment() -> dict[str, object]:
    """Versions and machine of a run."""
    return {
        "versions": versions(("xqg-vdb", "onnxruntime", "tokenizers", "numpy")),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
