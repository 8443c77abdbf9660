"""Options that several commands share, and small printing helpers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from xqg_vdb.collection import CollectionOptions
    from xqg_vdb.collection.admin import Store

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = 60
_KEY = "xqg_vdb.store."


def store_options(command: F) -> F:
    """--path and --url: where the data lives; --grpc and --timeout: how to speak to a server."""
    for option in (
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help=f"For one request to a server  [default: {_TIMEOUT}]",
            expose_value=False,
            callback=_remember,
        ),
        click.option(
            "--grpc",
            is_flag=True,
            help="Speak gRPC to the server (port 6334, or XQG_VDB_GRPC_PORT).",
            expose_value=False,
            callback=_remember,
        ),
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

    said = click.get_current_context().meta
    timeout, grpc = said.get(_KEY + "timeout"), said.get(_KEY + "grpc")
    return open_store(path, url=url, api_key=api_key, timeout=timeout or _TIMEOUT, grpc=bool(grpc), options=options)


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Keep what `chosen_store` needs, so that commands need not hand it on."""
    context.meta[f"{_KEY}{parameter.name}"] = value


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
