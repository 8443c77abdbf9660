"""Collections on a Qdrant server, and its address: checked before anything is sent there, an API key least of all."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies

from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.models.remote import is_loopback

_SCHEMES = {
    "http": ("http", False), "https": ("https", False), "grpc": ("http", True), "grpcs": ("https", True),
}  # fmt: skip
_LIKE_ONE = "The address of a Qdrant server looks like http://localhost:6333 or https://host:6333."


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. url: of the REST interface. where: host and port for messages. grpc_port: None for REST."""

    url: str
    where: str
    grpc_port: int | None


def checked_address(
    url: str, *, api_key: str | None, insecure: bool, grpc: bool = False, grpc_port: int | None = None
) -> Address:
    """Where to speak to: gRPC has the port after REST's, unless `grpc_port` or a grpc:// address names another.

    Raises DataError for a URL without a valid host and port, or with a password, several hosts, a query or a fragment
    in it, ServerError for a key that would be readable on the way.
    """
    url = url.strip()
    if re.search(r"[\s,\x00-\x1f]", url):
        raise DataError(
            "One address is wanted, several were given, or one with a space in it: name one node, or a load balancer"
            " before all of them."
        )
    try:
        parts = urlsplit(url if re.match(r"(?i)(https?|grpcs?)://", url) else f"//{url}")
        host = parts.hostname or ""
        host.encode("idna")  # as it will be looked up
    except ValueError:
        raise DataError(_LIKE_ONE) from None
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise DataError(f"The address of {parts.hostname} has no valid port: 1 to 65535, usually 6333.")
    if parts.scheme not in _SCHEMES or parts.query or parts.fragment or not re.fullmatch(r"[\w.-]+|.*:.*", host):
        raise DataError(_LIKE_ONE)
    if parts.username or parts.password:
        raise DataError(f"The address of {parts.hostname} holds a password; take it out and set XQG_VDB_API_KEY.")
    scheme, is_grpc = _SCHEMES[parts.scheme]
    if is_grpc:
        grpc_port = grpc_port or port or 6334
        rest = grpc_port - 1
    else:
        rest = port or 6333
        grpc_port = grpc_port or (rest + 1 if grpc else None)
    if not 0 < rest < 65536 or not 0 < (grpc_port or 1) < 65536:  # of the pair, one lies beyond the end
        raise DataError(f"The address of {parts.hostname} leaves no port for the other of REST and gRPC, beside it.")
    where = f"{parts.hostname}:{grpc_port if is_grpc else rest}"
    if api_key and scheme == "http" and not insecure and not is_loopback(parts.hostname):
        raise ServerError(
            f"The API key would travel unencrypted to {where}; use https, or XQG_VDB_INSECURE=1 (insecure=True) if you"
            " must."
        )
    host = f"[{host}]" if ":" in host else host
    path = "" if is_grpc else parts.path.rstrip("/")
    return Address(f"{scheme}://{host}:{rest}{path}", where, grpc_port)


def checked_key(key: str | None) -> str | None:
    """A key as it travels in a header, the white space around it taken off. Raises DataError for what cannot."""
    key = (key or "").strip()
    if found := re.search(r"[^\x21-\x7e]", key):
        raise DataError(
            f"The API key cannot be sent: its character {found.start() + 1} is no plain letter, digit or sign; copy the"
            " key again into XQG_VDB_API_KEY."
        )
    return key or None


def port_number(text: str, *, of: str) -> int:
    """A port as it stands in the environment variable `of`. Raises DataError for anything else."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DataError(f"{of} must be a port from 1 to 65535, usually 6334; found {text!r}.")
    return int(text)


def knock(url: str, *, grpc: bool, grpc_port: int | None) -> None:
    """Raise ServerError where nobody listens at `url`, before a second is spent on importing the client."""
    address = checked_address(url, api_key=None, insecure=False, grpc=grpc, grpc_port=grpc_port)
    parts = urlsplit(address.url)
    if getproxies() and not is_loopback(parts.hostname):
        return
    to = parts.hostname or "", address.grpc_port or parts.port or 0  # REST's may be closed to who speaks gRPC
    for last in (False, True):
        try:
            return socket.create_connection(to, timeout=1).close()
        except ConnectionRefusedError as error:
            if last:
                again = "check that it runs, then run the same command again"
                raise ServerError(f"{address.where} is away ({error}); {again}.") from None
            time.sleep(0.3)  # it may be starting again
        except OSError:
            return  # the client says it better
