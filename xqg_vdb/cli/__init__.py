"""The command line: each command parses, calls one library function and prints. Data to stdout, progress to stderr.

Exit codes: 0 done, 2 usage, 3 bad input, 4 configuration refused, 5 server away, 6 disk, 7 locked, 8 corrupt store,
130 interrupted. Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys

import click

from xqg_vdb import __version__
from xqg_vdb.cli.demo import demo
from xqg_vdb.cli.export import export
from xqg_vdb.cli.info import info
from xqg_vdb.cli.load import load
from xqg_vdb.cli.search import search
from xqg_vdb.errors import XqgError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="xqg-vdb")
def cli() -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Start with `xqg-vdb demo`. A MODEL is a model folder, a hub id (owner/model), or `starter`.
    """


for _command in (demo, export, load, search, info):
    cli.add_command(_command)


def main() -> None:
    """Entry point of `xqg-vdb`: errors become one sentence on stderr and the exit code of their kind."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what was committed is kept: run the same command again to go on.", err=True)
        sys.exit(130)
    except XqgError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `| head` closed our output; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
