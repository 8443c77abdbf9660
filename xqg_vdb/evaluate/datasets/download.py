"""Benchmark files from their publishers, checked against the checksums that this package ships.

`xqg_vdb/data/benchmarks.tsv` lists dataset, file below --data-dir, SHA-256, bytes and URL. A file that is there already
is left alone; one that does not match its checksum is not kept.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import httpx

from xqg_vdb.errors import DataError
from xqg_vdb.files import disk_errors, write_atomic
from xqg_vdb.progress import Progress, silent

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_NEEDS = {
    **dict.fromkeys(("xquad", "xquad-monolingual", "xquad-pool"), ("xquad-r",)),
    "xquad+afriqa": ("xquad-r", "afriqa"),
}
"""Datasets that are made from other datasets' files."""


class _BenchmarkFile(NamedTuple):
    """One file of a benchmark: its place below the data folder, what it must be, and where it comes from."""

    dataset: str
    path: str
    sha256: str
    size: int
    url: str


@cache
def benchmark_files() -> tuple[_BenchmarkFile, ...]:
    """Every file that can be downloaded."""
    text = (files("xqg_vdb") / "data" / "benchmarks.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(_BenchmarkFile(dataset, path, sha256, int(size), url) for dataset, path, sha256, size, url in rows)


def download(dataset: str, data_dir: Path, *, progress: Progress = silent) -> list[Path]:
    """Fetch what `dataset` lacks in `data_dir`; returns the files that were fetched.

    Raises DataError when the dataset has no listed files, a server does not answer, or a file is not the expected one;
    DiskError when it cannot be written.
    """
    missing = [file for file in _files_of(dataset.partition(":")[0]) if not (data_dir / file.path).exists()]
    fetched = []
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        for done, file in enumerate(missing):
            progress(f"downloading {dataset}", done, len(missing))
            target = data_dir / file.path
            data = _fetch(client, file)
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
            fetched.append(target)
    return fetched


def _files_of(dataset: str) -> list[_BenchmarkFile]:
    listed = sorted({file.dataset for file in benchmark_files()}, key=len, reverse=True)
    # afriqa-train, tatoeba-en-xx … are other readings of the same files
    base = next((name for name in listed if dataset == name or dataset.startswith(f"{name}-")), "")
    names = _NEEDS.get(dataset, (base,))
    wanted = [file for file in benchmark_files() if file.dataset in names]
    if not wanted:
        raise DataError(
            f"{dataset} cannot be downloaded by this command ({', '.join(sorted(listed))} can); run it with "
            "--data-dir, and the error says which files it wants and who publishes them."
        )
    return wanted


def _fetch(client: httpx.Client, file: _BenchmarkFile) -> bytes:
    """The file's bytes; never more than it should have are read."""
    by_hand = f"download it by hand into the data folder as {file.path}, or try again."
    data = bytearray()
    try:
        with client.stream("GET", file.url) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > file.size:
                    break
    except httpx.HTTPError as error:
        raise DataError(f"{file.url} cannot be fetched ({type(error).__name__}: {error}); {by_hand}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DataError(f"{file.url} is not the file that this version was tested with (SHA-256 differs); {by_hand}")
    return bytes(data)
