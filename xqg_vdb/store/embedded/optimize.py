"""The child that merges and indexes a shard: `python optimize.py SHARD PARENT_PID`; `index_build` starts it.

It imports the engine and nothing else of ours, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(shard: str, parent: int) -> None:
    """Optimize, then close. Ends with its parent where the system can arrange that (Linux)."""
    _end_with(parent)
    import qdrant_edge

    opened = qdrant_edge.EdgeShard.load(shard)
    opened.optimize()
    opened.close()


def _end_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; a Python thread could not: `optimize` holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit("the loading process has ended")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
