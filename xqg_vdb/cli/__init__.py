"""The entry of `xqg-vdb`: what ends a process is heard before anything heavy is imported. `commands` is the rest."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xqg_vdb.cli.commands import cli as cli


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


def __getattr__(name: str) -> object:
    if name != "cli":
        raise AttributeError(name)
    return import_module("xqg_vdb.cli.commands").cli
