"""How long work tells how far it is: a callback (stage, done, total), and the bar that the command line shows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name, how many items are done, and how many there will be (None when nobody knows)."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report; called often, so it must be quick."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing: the default of library calls."""


@contextmanager
def bars(*, unit: str) -> Iterator[Progress]:
    """Bars of tqdm on standard error, one per stage, with rate and ETA; nothing where standard error is no terminal.

    Items that an earlier run had done already count as done, but not towards the rate, so that the ETA of a resumed run
    is honest.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from tqdm import tqdm

    current: list[tuple[str, tqdm]] = []

    def show(stage: str, done: int, total: int | None) -> None:
        if not current or current[-1][0] != stage:
            close()
            bar = tqdm(desc=stage, total=total, initial=done, unit=unit, file=sys.stderr, leave=False)
            current.append((stage, bar))
        bar = current[-1][1]
        bar.update(done - bar.n)
        if done == total:
            bar.refresh()  # however quick it was

    def close() -> None:
        while current:
            current.pop()[1].close()

    try:
        yield show
    finally:
        close()
