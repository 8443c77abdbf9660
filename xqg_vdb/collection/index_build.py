"""Build the index of a closed shard in a process of its own.

The engine holds Python's GIL for as long as it builds, so in the caller's process no thread, no Ctrl-C and no progress
bar would get a turn; and a full disk kills the process that writes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import CorruptError, DiskError, LockedError, XqgError

_CHILD = Path(__file__).with_name("optimize.py")


def build_index(shard: Path) -> None:
    """Merge and index the segments of a closed shard; a stopped build loses nothing and can be repeated.

    Raises DiskError, LockedError, CorruptError or XqgError, saying how the child ended.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(  # noqa: S603 - our own file
        [sys.executable, "-P", str(_CHILD), str(shard), str(os.getpid())],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C goes to the caller, which then ends the child
        check=False,
    )
    if done.returncode:
        raise _failure(done.returncode, done.stderr.decode("utf-8", "replace"), shard)


def clear_leftovers(shard: Path) -> None:
    """Delete what a killed engine left: half-built segments, half-written files. Nothing may have the shard open."""
    for path in [*(shard / "temp_segments").glob("*"), *shard.rglob(".atomicwrite*")]:
        shutil.rmtree(path, ignore_errors=True)


def _failure(code: int, stderr: str, shard: Path) -> XqgError:
    again = "run the same command again: nothing was lost"
    if code == -signal.SIGBUS:
        return DiskError(f"Building the index of {shard} met a full disk; free some space and {again}.")
    if code < 0:
        return XqgError(f"Building the index of {shard} was killed (signal {-code}; out of memory?); {again}.")
    last = stderr.strip().rpartition("\n")[2]
    if "WouldBlock" in last:
        return LockedError(f"{shard} is still being indexed by a load that was stopped; wait a moment, then {again}.")
    return CorruptError(f"Building the index of {shard} failed ({last}); {again}.")
