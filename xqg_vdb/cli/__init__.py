"""The command line: each command parses, calls one library function and prints. Data to stdout, progress to stderr.

Exit codes: 0 done, 2 usage, 3 bad input, 4 configuration refused, 5 server away, 6 disk, 7 locked, 8 corrupt store,
130 interrupted. Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from typing import NoReturn

import click

from xqg_vdb import __version__
from xqg_vdb.cli.demo import demo
from xqg_vdb.cli.evaluate import audit, bench, bench_diff, tune
from xqg_vdb.cli.generate import filter_queries, generate, merge
from xqg_vdb.cli.index import augment, load, migrate, verify
from xqg_vdb.cli.models import export, train
from xqg_vdb.cli.operations import gc, rollback, snapshot, versions
from xqg_vdb.cli.search import info, search
from xqg_vdb.errors import XqgError
from xqg_vdb.files import disk_errors


class _Group(click.Group):
    """Commands whose reader may leave: with `| head` a closed output is the end, not an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`bench diff` is a command of its own, beside `bench DATASET`."""
        return super().parse_args(ctx, ["bench diff", *args[2:]] if args[:2] == ["bench", "diff"] else args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            ctx.exit(0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="xqg-vdb")
def cli() -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Start with `xqg-vdb demo`. A MODEL is a model folder, a hub id (owner/model), or `starter`.
    """


for _command in (
    demo, export, generate, merge, filter_queries, train, load, augment, search, tune, audit, bench, bench_diff, info,
):  # fmt: skip
    cli.add_command(_command)
for _command in (versions, rollback, gc, snapshot, migrate, verify):  # operations
    cli.add_command(_command)


def main() -> None:
    """Entry point of `xqg-vdb`: errors become one sentence on stderr and the exit code of their kind."""
    _speak_unicode()
    interrupts = _note_interrupts()
    try:
        sys.exit(cli(prog_name="xqg-vdb", standalone_mode=False))
    except (Exception, KeyboardInterrupt) as error:
        # an interrupted import of a native module, for one, ends in an ImportError
        if interrupts or isinstance(error, click.Abort | KeyboardInterrupt):
            click.echo("Interrupted; what was committed is kept: run the same command again to go on.", err=True)
            sys.exit(130)
        sys.exit(_explained(error))


def _explained(error: BaseException) -> int:
    """Say what happened, and return the exit code. An error that is nobody's but ours is raised again."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    said = _in_words(error) if isinstance(error, OSError) else error
    if not isinstance(said, XqgError):
        raise error
    click.echo(f"Error: {said}", err=True)
    return said.exit_code


def _in_words(error: OSError) -> XqgError:
    """What a file system refused outside the places that know what they were doing."""
    try:
        with disk_errors(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "A file"):
            raise error
    except XqgError as said:
        return said


def _note_interrupts() -> list[int]:
    """A list that is not empty any more after Ctrl-C, however the command then ends."""
    noted: list[int] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        noted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell had it ignored
        signal.signal(signal.SIGINT, interrupt)
    return noted


def _speak_unicode() -> None:
    """UTF-8 into pipes and files whatever the locale; a terminal that lacks a character shows its number instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
