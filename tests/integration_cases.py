"""A collection written by `xqg-vdb load` on a server, for the tests of what reads it.

The server is `fake_qdrant`, real HTTP with the answers of qdrant-client's in-memory mode, and the real one at
XQG_TEST_QDRANT_URL when that is set, over REST or gRPC.
"""

import contextlib
import os
import random
import uuid
from dataclasses import dataclass

import pytest
from cli_cases import run_cli, sentence, write_inputs
from fake_qdrant import FakeQdrant
from tiny_model import write_tiny_encoder

from xqg_vdb import Collection, Encoder, Retriever
from xqg_vdb.store import open_store

SERVER = os.environ.get("XQG_TEST_QDRANT_URL")
KEY = os.environ.get("XQG_TEST_QDRANT_API_KEY")


@dataclass
class Loaded:
    """Where a loaded collection is, and a retriever on it."""

    url: str
    key: str | None
    model: str
    retriever: Retriever

    @property
    def name(self):
        return self.retriever.collection.name

    @property
    def encoder(self):
        return self.retriever.encoder

    @property
    def collection(self):
        return self.retriever.collection


@contextlib.contextmanager
def loaded_on(kind, folder, *, passages=90, more=()):
    """`kind`: http or server. 90 passages in en and de, with queries in sw and ar, by a tiny calibrated encoder.

    more: options of the load.
    """
    if kind == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    with contextlib.ExitStack() as stack:
        url, key = (SERVER, KEY) if kind == "server" else (stack.enter_context(FakeQdrant()).url, None)
        model, name = write_tiny_encoder(folder / "tiny", calibration=0.5), f"test-{uuid.uuid4().hex[:12]}"
        write_inputs(folder, passages)
        arguments = [
            "load",
            "corpus.jsonl",
            name,
            "--queries",
            "queries.jsonl",
            "--encoder",
            model,
            "--url",
            url,
            *more,
        ]
        done = run_cli(folder, *arguments, more={"XQG_VDB_API_KEY": key} if key else None)
        assert done.returncode == 0, done.stderr
        store = stack.enter_context(open_store(url=url, api_key=key))
        stack.callback(store.delete, name)
        encoder = stack.enter_context(Encoder(model, threads=2))
        yield Loaded(url, key, str(model), Retriever(encoder, Collection(name, store)))


def questions(n, *, seed=5):
    """n questions in words that the tiny encoder knows."""
    rng = random.Random(seed)
    return [sentence(rng, rng.randrange(2, 9)) for _ in range(n)]
