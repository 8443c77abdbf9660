"""Options that several commands share, and small printing helpers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from xqg_vdb.types import VectorStore

F = TypeVar("F", bound=Callable[..., Any])


def store_options(command: F) -> F:
    """--path and --url: where the data lives."""
    for option in (
        click.option("--url", metavar="URL", help="Qdrant server (XQG_VDB_URL; API key from XQG_VDB_API_KEY)."),
        click.option(
            "--path",
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="Embedded store  [default: XQG_VDB_PATH or ./xqg-data]",
        ),
    ):
        command = option(command)
    return command


def encoder_options(command: F) -> F:
    """--encoder and --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all]"),
        click.option(
            "--encoder",
            "model",
            metavar="MODEL",
            default="starter",
            show_default=True,
            help="Folder, hub id or starter.",
        ),
    ):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """--json: machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def chosen_store(path: str | None, url: str | None) -> VectorStore:
    """The store of --path or --url."""
    if path and url:
        raise click.UsageError("give --path or --url, not both")
    from xqg_vdb.collection import open_store

    return open_store(path, url=url)


def say(line: str) -> None:
    """One line of progress, to stderr."""
    click.echo(line, err=True)


def print_json(value: object) -> None:
    """One JSON document to stdout."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:  # a path that is not Unicode
        text = json.dumps(value, indent=2)
    click.echo(text)
