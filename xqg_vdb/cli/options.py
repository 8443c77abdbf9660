"""Options that several commands share, and small printing helpers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from xqg_vdb.collection import CollectionOptions
    from xqg_vdb.collection.admin import Store

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = 60
_KEY = "xqg_vdb.options."


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta[f"{_KEY}{parameter.name}"] = value


remembered_option = partial(click.option, expose_value=False, callback=_remember)
"""An option that several commands share: `remembered` reads it, so that commands need not hand it on."""


def remembered(name: str) -> Any:
    """What the command that runs was given for a `remembered_option`; None when it has no such option."""
    return click.get_current_context().meta.get(_KEY + name)


def store_options(command: F) -> F:
    """--path and --url: where the data lives; --grpc and --timeout: how to speak to a server."""
    for option in (
        remembered_option(
            "--timeout",
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help=f"For one request to a server  [default: {_TIMEOUT}]",
        ),
        remembered_option("--grpc", is_flag=True, help="Speak gRPC to the server (port 6334, or XQG_VDB_GRPC_PORT)."),
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


def chosen_store(
    path: str | None, url: str | None, *, options: CollectionOptions | None = None, api_key: str | None = None
) -> Store:
    """The store of --path or --url, spoken to as --grpc and --timeout say."""
    if path and url:
        raise click.UsageError("give --path or --url, not both")
    from xqg_vdb.collection import open_store

    timeout, grpc = remembered("timeout") or _TIMEOUT, bool(remembered("grpc"))
    return open_store(path, url=url, api_key=api_key, timeout=timeout, grpc=grpc, options=options)


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
