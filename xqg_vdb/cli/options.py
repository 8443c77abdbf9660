"""Options from records: a frozen dataclass says its defaults and its help once, and a command receives it whole."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import Field, asdict, dataclass, fields, is_dataclass
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from shutil import which
from textwrap import indent
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import orjson
from click.shell_completion import CompletionItem

from xqg_vdb.errors import XqgError, printable, redacted
from xqg_vdb.progress import QUIET
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.models.encoder import Encoder
    from xqg_vdb.search.retriever import Collection
    from xqg_vdb.store.layout import CollectionOptions
    from xqg_vdb.store.operations import Store
    from xqg_vdb.texts.records import Rejects
    from xqg_vdb.types import Card

F = TypeVar("F", bound=Callable[..., Any])
_JSON = "xqg_vdb.json"
_SAID = logging.getLogger("xqg_vdb.said")  # what standard error is told, for --log-file alone
_SAID.propagate = False
_SAID.setLevel(logging.INFO)
PATH = click.Path(path_type=Path)


class _Fields(click.Option):
    """Stands for the options of a record, which is imported when a command is run or asked for its help."""

    def __init__(self, names: Sequence[str], *, record: str, only: Sequence[str], changes: bool, title: str) -> None:
        super().__init__(names)
        self.title = title
        self.record, self.only, self.changes = record, only, changes
        self.made: list[_FieldOption] = []

    def options(self) -> list[_FieldOption]:
        if not self.made:
            module, _, name = self.record.rpartition(".")
            record = getattr(import_module(module), name)
            hints = get_type_hints(record)
            self.made = [
                _FieldOption(self, record, entry, hints[entry.name])
                for entry in fields(record)
                if "help" in entry.metadata and (not self.only or entry.name in self.only)
            ]
        return self.made


class _FieldOption(click.Option):
    """The option of one field."""

    def __init__(self, group: _Fields, record: type[Any], of: Field[Any], hint: Any) -> None:
        said = of.metadata
        default = of.default
        flags = said.get("flags") or ("--" + of.name.replace("_", "-"),)
        kind, several = _kind(hint, said)
        shown = default not in (None, (), "", False) and not said["varies"]
        settings: dict[str, Any] = {"help": said["help"], "metavar": said.get("metavar")}
        if kind is bool:
            long = flags[-1]
            flags = (*flags[:-1], long if default is False else f"{long}/--no-{long[2:]}")
            settings |= {"is_flag": True, "default": default}
        elif several:
            settings |= {"type": kind, "multiple": True}
        else:
            settings |= {"type": kind, "default": default, "show_default": shown}
        if "lang" in of.name:
            settings |= {"shell_complete": language_codes, "metavar": said.get("metavar") or "LANG"}
        super().__init__([f"{group.name}__{of.name}", *flags], **settings)
        self.group, self.record, self.field, self.empty = group, record, of.name, default


def _kind(hint: Any, said: Any) -> tuple[Any, bool]:
    """The type for click of an annotation, and whether the option may be repeated."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [kind for kind in get_args(hint) if kind is not NoneType]
    several = get_origin(hint) not in (None, Literal)
    kind = get_args(hint)[0] if several else hint
    least, most = said.get("least"), said.get("most")
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    elif said.get("metavar") == "DIR":
        kind = click.Path(file_okay=False)
    elif kind is Path:
        kind = PATH
    elif kind is int and (least, most) != (None, None):
        kind = click.IntRange(least, most)
    elif kind is float and (least, most) != (None, None):
        kind = click.FloatRange(least, most, min_open=said.get("open", False))
    return kind, several


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        QUIET.set()
        ctx.find_root().call_on_close(QUIET.clear)


def _without_keys(record: logging.LogRecord) -> bool:
    """Of all that other libraries log: no key of the environment shows in it."""
    said = record.getMessage()
    for key in (value for name, value in os.environ.items() if name.endswith(("_KEY", "_TOKEN"))):
        said = redacted(said, key)
    record.msg, record.args = said, ()
    return True


def _set_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_without_keys)


def _set_log_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    try:
        handler = logging.FileHandler(value, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise click.BadParameter(f"{value} cannot be written: {error.strerror}", ctx, param) from error
    handler.addFilter(_without_keys)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("xqg_vdb")
    logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    logger.addHandler(handler)
    _SAID.addHandler(handler)  # until the process ends: its last words come after the command
    _SAID.info("%s", shlex.join(["xqg-vdb", *sys.argv[1:]]))


def loudness(*, hidden: bool) -> list[click.Option]:
    """--quiet, --verbose and --log-file: of the program, and of every command without being listed there again."""
    flags = [
        click.Option([flag], is_flag=True, expose_value=False, hidden=hidden, callback=callback, help=told)
        for flag, callback, told in (
            ("--quiet", _set_quiet, "No progress and no notes, errors only."),
            ("--verbose", _set_verbose, "Also say what each part of the program does."),
        )
    ]
    file = click.Option(
        ["--log-file"], metavar="FILE", type=click.Path(dir_okay=False), expose_value=False, hidden=hidden,
        callback=_set_log_file, help="Append all messages to it, also after --quiet.",
    )  # fmt: skip
    return [*flags, file]


class _RecordCommand(click.Command):
    """A command whose `takes` records are made of what was typed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its options, those of the records in the place of their stand-ins."""
        params = [*super().get_params(ctx), *loudness(hidden=True)]
        return [option for param in params for option in (param.options() if isinstance(param, _Fields) else [param])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options in sections, in the order in which the commands name them."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            title = param.group.title if isinstance(param, _FieldOption) else "Options"
            if (row := param.get_help_record(ctx)) and row[1]:  # the usage line names the arguments
                sections.setdefault(title, []).append(row)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Make the records and run the command. Raises UsageError for values that a record refuses."""
        for group in [param for param in self.params if isinstance(param, _Fields)]:
            given = dict(self._given(ctx, group))
            try:
                ctx.params[str(group.name)] = given if group.changes else group.options()[0].record(**given)
            except ValueError as error:
                raise click.UsageError(str(error), ctx) from error
        return super().invoke(ctx)

    @staticmethod
    def _given(ctx: click.Context, group: _Fields) -> Iterator[tuple[str, Any]]:
        for field_option in group.options():
            value = ctx.params.pop(str(field_option.name))
            if field_option.multiple and not value:
                value = field_option.empty
            source = ctx.get_parameter_source(str(field_option.name))
            if not group.changes or source not in (None, click.core.ParameterSource.DEFAULT):
                yield field_option.field, value


def command(
    name: str | None = None, *, example: str, of: click.Group | None = None, json: bool = True
) -> Callable[[Callable[..., None]], _RecordCommand]:
    """`click.command` for functions that take records.

    example: lines that the help shows. of: the command above it. json: its result can be had as JSON (`show`).
    """

    def make(function: Callable[..., None]) -> _RecordCommand:
        told = f"{cleandoc(function.__doc__ or '')}\n\n\b\nExample:\n{indent(example, '  ')}"
        made = click.command(name, cls=_RecordCommand, help=told)(function)
        made.params += [_json_option] if json else []
        if of is not None:
            of.add_command(made)
        return made

    return make


def takes(
    into: str, record: str, *, only: Sequence[str] = (), changes: bool = False, title: str = "Options"
) -> Callable[[F], F]:
    """The options of a record (its dotted name) as the parameter `into`; of its fields those that have a help.

    title: of their section in the command's help.
    changes: the command gets a dict of what the user said, not a record: to change another one with.
    """
    return click.option(f"--{into}", cls=_Fields, record=record, only=only, changes=changes, title=title)


@dataclass(frozen=True)
class Place:
    """Where the data lives, and how to speak to a server."""

    path: str | None = option(None, "Embedded store  [default: XQG_VDB_PATH or ./xqg-data]", metavar="DIR")
    url: str | None = option(None, "Qdrant server (XQG_VDB_URL; API key from XQG_VDB_API_KEY).", metavar="URL")
    grpc: bool = option(False, "Speak gRPC (port after the url's, or XQG_VDB_GRPC_PORT).")
    timeout: int = option(60, "For one request to a server.", least=1, metavar="SECONDS")

    def __post_init__(self) -> None:
        if self.path and self.url:
            raise ValueError("give --path or --url, not both")

    def open(self, *, options: CollectionOptions | None = None, api_key: str | None = None) -> Store:
        """The store."""
        from xqg_vdb.store import open_store

        return open_store(
            self.path, url=self.url, api_key=api_key, timeout=self.timeout, grpc=self.grpc, options=options, knocks=True
        )

    def collection(self, name: str) -> Collection:
        """A collection of the store, which is closed with it."""
        from xqg_vdb.search.retriever import Collection

        return Collection(name, self.open())

    def typed(self) -> list[str]:
        """The words that lead another command to the same place."""
        return ["--path", self.path] if self.path else ["--url", self.url] if self.url else []


@dataclass(frozen=True)
class Model:
    """An encoder, and the threads of whatever computes."""

    encoder: str | None = option(
        None, "Folder, hub id or starter  [default: the collection's, else starter]", metavar="MODEL"
    )
    threads: int | None = option(None, "CPU threads  [default: all]", least=1)
    engine: Literal["onnxruntime", "openvino", "openvino-bf16"] = option("onnxruntime", "What runs the encoder.")

    @property
    def name(self) -> str:
        """What was asked for."""
        return self.encoder or "starter"

    def open(
        self, *, made: Card | None = None, collection: str = "", calibration: float | None = None, name: str = ""
    ) -> Encoder:
        """The encoder, exported first where it has a name and is not there: the one asked for, else the collection's.

        made: the card of that collection, where there is one; without it, the starter.
        """
        from xqg_vdb.models.encoder import Encoder
        from xqg_vdb.models.folder import encoder_folder, folder_of

        if made is None or self.encoder:
            folder = encoder_folder(name or self.name, say=say)
        else:
            folder = folder_of(made.encoder, collection=collection, say=say)
        return Encoder(folder, engine=self.engine, threads=self.threads, calibration=calibration)

    def typed(self) -> list[str]:
        """The words that make another command take the same encoder."""
        return [] if self.name == "starter" else ["--encoder", self.name]


@dataclass(frozen=True)
class Inputs:
    """Generated queries, and what becomes of lines that cannot be used."""

    queries: tuple[Path, ...] = option((), "Generated queries; repeatable.")
    max_rejects: int = option(0, "Bad lines to allow.", least=0)
    file: Path | None = option(None, "Write bad lines to this file.", flags=("--rejects",))

    def rejects(self) -> Rejects:
        """Counts them, and writes them to the file."""
        from xqg_vdb.texts.records import Rejects

        return Rejects(self.max_rejects, self.file)


place_options = takes("place", "xqg_vdb.cli.options.Place", title="Where the data lives")
model_options = takes("model", "xqg_vdb.cli.options.Model")
load_options = takes("options", "xqg_vdb.index.load.LoadOptions")
recipe_options = takes("recipe", "xqg_vdb.types.Recipe", title="Recipe: how queries are folded in")
layout_options = takes("layout", "xqg_vdb.store.layout.CollectionOptions", title="Layout of the collection")
methods_options = takes("methods", "xqg_vdb.search.Methods", title="Expansion and re-ranking")
input_options = takes("inputs", "xqg_vdb.cli.options.Inputs", title="Input")
_json_option = click.Option(
    ["--json"], is_flag=True, expose_value=False, help="Print JSON.",
    callback=lambda ctx, param, value: ctx.meta.update({_JSON: value}),
)  # fmt: skip
ray_option = click.option(
    "--ray", metavar="ADDRESS", help="Run the model on this Ray cluster: auto, local, host:port (--threads: workers)."
)
corpus_argument = click.argument("corpus", type=PATH)


def language_codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return codes for a shell to complete, with the languages' names where it shows them."""
    from xqg_vdb.texts.languages import english_name, question_bank

    codes = (code for code in sorted(question_bank()) if code.startswith(incomplete))
    return [CompletionItem(code, help=english_name(code)) for code in codes]


def collections(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names for a shell to complete: of the store where commands look, none where it cannot be opened."""
    with suppress(XqgError), closing(Place().open()) as store:
        return [name for name in store.names() if name.startswith(incomplete)]
    return []


collection_argument = click.argument("collection", shell_complete=collections)


def say(line: str) -> None:
    """A line, to stderr, however strange the texts in it; nothing after --quiet, but to the log file."""
    if QUIET.is_set():
        _SAID.info("%s", line)
    else:
        complain(line)


def as_typed(line: str) -> str:
    """The line with `xqg-vdb` and `pip` as they are typed here, where the environment's programs are not on PATH."""
    program = Path(sys.argv[0])
    if program.stem != "xqg-vdb" or which("xqg-vdb") or not program.is_file():
        return line
    here = os.path.join(program.parent, "")
    return re.sub(r"(?:(?<=`)|(?<=: )|(?<=  ))xqg-vdb (?=[a-z])|\bpip install ", lambda m: here + m[0], line)


def complain(line: str) -> None:
    """A line that even --quiet lets through; a stderr that cannot be written does not hide the exit code."""
    _SAID.info("%s", line := as_typed(line))
    with suppress(OSError):
        click.echo("\n".join(map(printable, line.split("\n"))), err=True)


_ACTING = re.compile(  # what turns, breaks or hides a terminal's line; JSON has escapes for it
    "[\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)


def show(record: Any, lines: Iterable[str], *, nothing: str = "") -> None:
    """The result of a command: one JSON document after --json, else the lines, which are asked for only then.

    nothing: said where there is no line.
    """
    if not click.get_current_context().meta[_JSON]:
        for line in lines:
            click.echo(line)
            nothing = ""
        if nothing:
            say(nothing)
        return
    value = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:  # a path that is not Unicode
        text = json.dumps(value, indent=2)
    click.echo(_ACTING.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), text))
