"""Write docs/cli.md from the commands' own help: `python docs/make_cli_reference.py`.

With --check, compare instead and exit 1 when the file is not what the commands say. Nothing here depends on the width
of a terminal, so that everybody's run makes the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from xqg_vdb.cli.commands import cli

OUT = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """# The commands

This page is the commands' own `--help`, written by `python docs/make_cli_reference.py`; a test compares the two.
Data goes to standard output (`--json` for machines), progress and hints to standard error. Exit codes: 0 done, 2 usage,
3 bad input, 4 fingerprint or configuration refused, 5 server away, 6 disk, 7 locked, 8 corrupt store, 130 Ctrl-C,
143 SIGTERM.
"""


def render() -> str:
    """The whole page."""
    settings = {**cli.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    program = click.Context(cli, info_name="xqg-vdb", **settings)
    pages = [HEAD, _block(program)]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, parent=program, info_name=name)
        pages += [f"## {name}\n", _block(context)]
        if isinstance(command, click.Group):
            inner = sorted(command.commands.items())
            pages += [_block(click.Context(own, parent=context, info_name=word)) for word, own in inner]
    return "\n".join(pages)


def _block(context: click.Context) -> str:
    lines = (line.rstrip() for line in context.get_help().splitlines())
    return "```\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    page = render()
    if "--check" not in sys.argv[1:]:
        OUT.write_text(page, encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != page:
        sys.exit(f"{OUT} is out of date: python docs/make_cli_reference.py")
