"""The address of a Qdrant server, checked before anything is sent there, an API key least of all."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from ..errors import DataError, ServerError


def checked_address(url: str, *, api_key: str | None, insecure: bool) -> str:
    """Host and port for messages.

    Raises DataError for a URL without host or with a password in it, ServerError for a key that would be readable on
    the way.
    """
    parts = urlsplit(url if re.match(r"https?://", url) else f"//{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError("The address of a Qdrant server looks like http://localhost:6333 or https://host:6333.")
    if parts.username or parts.password:
        raise DataError(f"The address of {parts.hostname} holds a password; take it out and set XQG_VDB_API_KEY.")
    where = f"{parts.hostname}:{parts.port or 6333}"
    if api_key and parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise ServerError(
            f"The API key would travel unencrypted to {where}; use https, or XQG_VDB_INSECURE=1 (insecure=True) if you"
            " must."
        )
    return where


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
