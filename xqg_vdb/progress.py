"""Long work: in windows, telling how far it is (a callback, and the command line's bar), stopped between batches.

And what is seen of work from outside: spans, seconds and lines of the log.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from itertools import islice
from threading import Event
from time import monotonic
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

QUIET = Event()  # set by --quiet
LINE_SECONDS = 30.0  # between lines of progress where standard error is no terminal


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items (the last one shorter); reads no further ahead than one window."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def in_order(call: Callable[[T], R], items: Iterable[T], *, at_once: int = 1) -> Iterator[tuple[T, R]]:
    """Each item with what `call` returns for it; `at_once` of them at a time, on threads if that is more than one."""
    if at_once == 1:
        for item in items:
            yield item, call(item)
        return
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="xqg-ahead")
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) == at_once:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made on a thread while the one before it is worked on; none is being made when it is closed."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="xqg-ahead") as pool:
        coming: Future[T | object] = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield cast("T", item)


def per_process(make: Callable[[], T]) -> Callable[[], T]:
    """Gives what `make` makes, made when it is first asked for: after a fork anew, as threads and connections stay."""
    made: dict[int, T] = {}

    def here() -> T:
        if os.getpid() not in made:
            made.setdefault(os.getpid(), make())
        return made[os.getpid()]

    return here


class Progress(Protocol):
    """Called with a stage's name, how many items are done, and how many there will be (None when nobody knows)."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report; called often, so it must be quick."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing: the default of library calls."""


@contextmanager
def bars(*, unit: str) -> Iterator[Progress]:
    """Bars of tqdm on standard error, one per stage, with rate and ETA; a line every 30 s where it is no terminal.

    Items that an earlier run had done already count as done, but not towards the rate, so that the ETA of a resumed run
    is honest.
    """
    if QUIET.is_set():
        yield silent
        return
    if not sys.stderr.isatty():
        yield _lines(unit)
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


def _lines(unit: str) -> Progress:
    """Progress as lines, one when the last is old enough: how far a stage is, how fast, and for how long."""
    stage_now, start, first, told = "", 0.0, 0, monotonic()

    def show(stage: str, done: int, total: int | None) -> None:
        nonlocal stage_now, start, first, told
        now = monotonic()
        if stage != stage_now:
            stage_now, start, first = stage, now, done
        if now - told < LINE_SECONDS:
            return
        told = now
        rate = (done - first) / max(now - start, 1e-9)
        left = f", {timedelta(seconds=round((total - done) / rate))} to go" if total and rate else ""
        of = f" of {total:,}" if total else ""
        sys.stderr.write(f"{stage}: {done:,}{of}{unit}, {rate:,.1f} a second{left}\n")

    return show


# An encoder is asked for hundreds of texts at once: it tells whoever waits in its thread how many are done, by batches.

_tell: ContextVar[Callable[[int], None]] = ContextVar("_tell", default=lambda texts: None)


@contextmanager
def ticks(tell: Callable[[int], None]) -> Iterator[None]:
    """Inside, `tell` is called with the number of texts of every batch that an encoder has done."""
    before = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(before)


def tick(texts: int) -> None:
    """A batch of so many texts is encoded."""
    _tell.get()(texts)


# Ctrl-C and SIGTERM: the command line hears them, and work that commits in batches says where it may end.

STOPS: list[int] = []
"""The signals that have asked this process to end."""
_unbroken: list[None] = []


def may_break() -> bool:
    """Whether nobody is amid a batch that should be committed first."""
    return not _unbroken


@contextmanager
def unbroken() -> Iterator[Callable[[str], None]]:
    """Inside, the first signal waits for the call of what is yielded, with what is kept: it raises KeyboardInterrupt.

    Without the command line's handlers, Ctrl-C raises it wherever it comes, as always.
    """

    def pause(kept: str) -> None:
        if STOPS:
            raise KeyboardInterrupt(kept)

    _unbroken.append(None)
    try:
        yield pause
    finally:
        _unbroken.pop()


@contextmanager
def traced(what: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A span `xqg_vdb.WHAT` and its seconds where the program has loaded OpenTelemetry; a DEBUG line of the log.

    facts: its attributes, and what is put into the dict meanwhile; never a text of a user's or a passage's.
    """
    noted, began = dict(facts), monotonic()
    with _spans(f"xqg_vdb.{what}", noted):
        yield noted
    seconds = monotonic() - began
    logging.getLogger("xqg_vdb").debug(
        "%s %s %.4f s", what, noted, seconds, extra={**_named(noted), "seconds": seconds}
    )


@contextmanager
def _spans(name: str, noted: dict[str, Any]) -> Iterator[None]:
    if "opentelemetry.trace" not in sys.modules:  # nobody has configured it
        yield
        return
    from opentelemetry import trace

    began, tracer = monotonic(), trace.get_tracer("xqg_vdb")
    # an exception's message may hold a text
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield
        except BaseException as error:
            noted["error"] = type(error).__name__
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.set_attributes(_named(noted))
            kinds = {key: value for key, value in noted.items() if not isinstance(value, int)}  # each makes a series
            _histogram(name).record(monotonic() - began, _named(kinds))


def _named(noted: Mapping[str, Any]) -> dict[str, Any]:
    return {f"xqg_vdb.{key}": value for key, value in noted.items()}


@cache
def _histogram(name: str) -> Any:
    from opentelemetry import metrics

    return metrics.get_meter("xqg_vdb").create_histogram(f"{name}.duration", unit="s")
