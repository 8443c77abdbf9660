"""`xqg-vdb mcp`: the collections as tools of assistants (Model Context Protocol). Needs the extra `mcp`.

A question in the user's own language finds passages in any other. Read-only unless asked. What goes wrong is the
tool's error, one sentence; texts come without what would act on a terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson

from xqg_vdb.errors import DataError, MissingExtra, printable
from xqg_vdb.generate.output import versions
from xqg_vdb.integrations.serve import LOOPBACK, Service, explained, guarded

if TYPE_CHECKING:
    from mcp.server import Server


_WRITING = ("add", "delete")


def make_server(service: Service, *, write: bool = False) -> Server:
    """The tools over a service's collections; write: `add` and `delete`, too. Raises MissingExtra."""
    try:
        import mcp_types
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from mcp.server import Server
    except ImportError as error:
        raise MissingExtra(f'Tools for assistants need {error.name}: pip install "xqg-vdb[mcp]".') from error

    calls: dict[str, Callable[..., dict[str, Any]]] = {
        "search": service.search,
        "collections": lambda: {"collections": service.collections()},
        "audit": lambda collection="": service.audit(collection),
        "add": lambda passages, collection="": asdict(service.collection(collection).add(passages)),
        "delete": lambda ids, collection="": asdict(service.collection(collection).delete(ids)),
    }
    described = orjson.loads(files(__package__).joinpath("mcp.tools.json").read_bytes())
    offered = {name: tool for name, tool in described.items() if write or name not in _WRITING}
    schemas = {name: tool["input_schema"] for name, tool in offered.items()}
    hints = {name: {"read_only_hint": name not in _WRITING, "open_world_hint": False} for name in offered}
    tools = [mcp_types.Tool(name=name, **tool, annotations=hints[name]) for name, tool in offered.items()]

    def answer(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if name not in schemas:
            raise DataError(f"There is no tool {name!r}: there are {', '.join(schemas)}.")
        if (wrong := best_match(Draft202012Validator(schemas[name]).iter_errors(arguments))) is not None:
            where = ".".join(map(str, wrong.absolute_path)) or name
            raise DataError(f"{where}: {wrong.message:.200}.")
        return calls[name](**arguments)

    async def list_tools(context: Any, parameters: Any) -> Any:
        return mcp_types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, parameters: Any) -> Any:
        try:
            found = _clean(await asyncio.to_thread(answer, parameters.name, parameters.arguments or {}))
        except Exception as error:
            told = mcp_types.TextContent(type="text", text=explained(error)[1])
            return mcp_types.CallToolResult(content=[told], is_error=True)
        text = mcp_types.TextContent(type="text", text=orjson.dumps(found).decode())
        return mcp_types.CallToolResult(content=[text], structured_content=found)

    return Server(
        "xqg-vdb",
        version=versions(("xqg-vdb",))["xqg-vdb"],
        instructions="Ask questions as they are, in the user's language: passages in other languages are found.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def serve_stdio(server: Server) -> None:
    """Answer one client on standard input and output, until it ends."""
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def make_mcp_app(server: Server, *, key: str = "", hosts: Sequence[str] = LOOPBACK) -> Any:
    """The ASGI application that answers at /mcp (streamable HTTP, no sessions); key and hosts: see `guarded`."""
    from mcp.server.transport_security import TransportSecuritySettings

    names = [f"{host}:*" for host in hosts]
    checks = TransportSecuritySettings(
        enable_dns_rebinding_protection=bool(hosts),
        allowed_hosts=names,
        allowed_origins=[f"http://{name}" for name in names],
    )
    app = server.streamable_http_app(json_response=True, stateless_http=True, transport_security=checks)
    return guarded(app, key=key, hosts=hosts)


def _clean(value: Any) -> Any:
    """A JSON value whose texts do nothing to a terminal; their lines stay."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, Mapping):
        return {printable(str(key)): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list | tuple) else value
