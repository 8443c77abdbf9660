"""The entry of `xqg-vdb`: what ends a process is heard before anything heavy is imported. `commands` is the rest."""

from __future__ import annotations

import os
import signal
from importlib import import_module


def main() -> None:
    """Run the command line; a signal amid its imports ends the process without a word."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        if before[number] != signal.SIG_IGN:  # as a shell sets it for what runs in the background
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    try:
        import_module("xqg_vdb.cli.commands").run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
