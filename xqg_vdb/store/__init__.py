"""Where passages and their vectors live: one interface, two stores, chosen by an address.

Neither engine is imported before it is used.
"""

from __future__ import annotations

import os

from xqg_vdb.store.layout import CollectionOptions
from xqg_vdb.store.operations import Store
from xqg_vdb.texts.records import expect

DEFAULT_PATH = "./xqg-data"

__all__ = ["DEFAULT_PATH", "CollectionOptions", "open_store"]


def open_store(
    path: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    api_key: str | None = None,
    timeout: int = 60,
    grpc: bool = False,
    options: CollectionOptions | None = None,
    knocks: bool = False,
) -> Store:
    """The store on the server at `url`, else in the folder `path`; what is not given comes from the environment.

    XQG_VDB_URL, XQG_VDB_PATH and XQG_VDB_API_KEY are read in this order when neither is given; without them the folder
    is ./xqg-data. With XQG_VDB_INSECURE=1 the key may travel unencrypted to another machine.
    options: of the collections that it makes.
    timeout: seconds for one request to a server. grpc: speak gRPC instead of REST, on the port after that of `url` or
    on XQG_VDB_GRPC_PORT; a url may also be grpc://host:port.
    knocks: raise ServerError at once where nobody listens; without it nothing is sent before it must be.
    Raises ValueError when both are given.
    """
    if path is not None and url is not None:
        raise ValueError("give path or url, not both")
    expect("path", path or "", (str, os.PathLike), "text")
    if path is not None and "://" in str(path):
        path, url = None, str(path)
    if path is None and url is None:
        url, path = os.environ.get("XQG_VDB_URL") or None, os.environ.get("XQG_VDB_PATH") or DEFAULT_PATH
    if url is not None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # the client may import onnxruntime; see `engine.runtime`
        from xqg_vdb.store.server import knock, port_number

        key, port = api_key or os.environ.get("XQG_VDB_API_KEY") or None, os.environ.get("XQG_VDB_GRPC_PORT")
        grpc_port = port_number(port, of="XQG_VDB_GRPC_PORT") if grpc and port else None
        if knocks and url != ":memory:":
            knock(url, grpc=grpc, grpc_port=grpc_port)
        from xqg_vdb.store.server.store import ServerStore

        return ServerStore.connect(
            url,
            api_key=key,
            timeout=timeout,
            grpc=grpc,
            grpc_port=grpc_port,
            options=options,
            insecure=os.environ.get("XQG_VDB_INSECURE") == "1",
        )
    from xqg_vdb.store.embedded.store import EmbeddedStore

    return EmbeddedStore(path or DEFAULT_PATH, options=options)
