"""The command line: each command parses, calls one library function and prints. Data to stdout, progress to stderr.

Exit codes: 0 done, 2 usage, 3 bad input, 4 configuration refused, 5 server away, 6 disk, 7 locked, 8 corrupt store,
130 Ctrl-C, 143 SIGTERM. Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from itertools import chain
from typing import NoReturn

import click

from xqg_vdb import __version__
from xqg_vdb.cli.demo import demo
from xqg_vdb.cli.evaluate import audit, bench, bench_diff, tune
from xqg_vdb.cli.generate import filter_queries, generate, merge
from xqg_vdb.cli.index import add, augment, delete, load, migrate, verify
from xqg_vdb.cli.models import export, train
from xqg_vdb.cli.operations import gc, list_collections, rollback, snapshot, versions
from xqg_vdb.cli.options import complain, loudness
from xqg_vdb.cli.search import info, mcp, search, serve
from xqg_vdb.errors import XqgError, no_room
from xqg_vdb.files import disk_errors
from xqg_vdb.progress import STOPS, may_break

GRACE = 4.0  # seconds from a signal to the end, whatever the work is at


class _Group(click.Group):
    """Commands whose reader may leave: with `| head` a closed output is the end, not an error."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """`bench diff` is a command of its own, beside `bench DATASET`."""
        return super().resolve_command(ctx, ["bench diff", *args[2:]] if args[:2] == ["bench", "diff"] else args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            ctx.exit(0)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands in the order in which one needs them."""
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), command.get_short_help_str(200)) for command in commands])


_SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Collections": (demo, load, add, delete, search, serve, mcp, info, augment),
    "Queries": (generate, filter_queries, merge),
    "Models": (export, train),
    "Measuring": (tune, audit, bench, bench_diff),
    "Operations": (list_collections, versions, rollback, gc, snapshot, migrate, verify),
}


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="xqg-vdb")
def cli() -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Start with `xqg-vdb demo`. A MODEL is a model folder, a hub id (owner/model), or `starter`.
    """


cli.params += loudness(hidden=False)
for _command in chain.from_iterable(_SECTIONS.values()):
    cli.add_command(_command)


def run() -> None:
    """Run a command to the end of the process: errors become one sentence on stderr and the exit code of their kind."""
    _speak_unicode()
    logging.getLogger("xqg_vdb").handlers.clear()  # warnings go to stderr
    with _signals_heard():
        try:
            sys.exit(cli(prog_name="xqg-vdb", standalone_mode=False))
        except (Exception, KeyboardInterrupt) as error:
            # an interrupted import of a native module, for one, ends in an ImportError
            if STOPS or isinstance(error, click.Abort | KeyboardInterrupt):
                said = str(error.__cause__ if isinstance(error, click.Abort) else error)
                kept = said if "kept" in said else "what was committed is kept"
                complain(f"Interrupted; {kept}: run the same command again to continue.")
                sys.exit(128 + next(iter(STOPS), signal.SIGINT))
            sys.exit(_explained(error))


def _explained(error: BaseException) -> int:
    """Say what happened, and return the exit code. An error that is nobody's but ours is raised again."""
    if isinstance(error, click.ClickException):
        error.show(said := StringIO())
        complain(said.getvalue().rstrip("\n"))
        return error.exit_code
    error = no_room(error) or error
    if isinstance(error, OSError):  # outside the places that know what they were doing
        try:
            with disk_errors(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "A file"):
                raise error
        except XqgError as told:
            error = told
    if not isinstance(error, XqgError):
        raise error
    complain(f"Error: {error}")
    return error.exit_code


@contextmanager
def _signals_heard() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work: the first when a batch is committed, or `GRACE` later; the second at once.

    A thread hears them, too: a native library may keep Python's own handlers waiting for minutes.
    """

    def hear(number: int, frame: object) -> None:
        STOPS.append(number)
        if may_break():
            raise KeyboardInterrupt
        complain("Stopping when this batch is committed; once more stops at once.")

    heard, write = os.pipe()
    os.set_blocking(write, False)
    # not where a shell had it ignored
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in numbers}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        for number, handler in before.items():
            signal.signal(number, handler)
        STOPS.clear()


def _watch(heard: int) -> None:
    first = 0
    with os.fdopen(heard, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                if first:
                    _stop_at_once(number[0])
                first = number[0]
                timer = threading.Timer(GRACE, _stop_at_once, [first])
                timer.daemon = True
                with suppress(RuntimeError):  # no thread can be started: the second signal is heard still
                    timer.start()


def _stop_at_once(number: int) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"Stopped at once; what was committed is kept: run the same command again to continue.\n")
    os._exit(128 + number)


def _speak_unicode() -> None:
    """UTF-8 into pipes and files whatever the locale; a terminal that lacks a character shows its number instead.

    A closed standard stream is the null device: else the next file that is opened would take its place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 -- until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
