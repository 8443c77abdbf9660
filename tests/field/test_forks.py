"""A service that loads everything, answers once, and then forks its workers: none of them hangs or mixes answers up."""

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_qdrant import FakeQdrant
from qdrant_processes import COMMAND, NO_COMMAND, running

from xqg_vdb import Collection, Retriever, load
from xqg_vdb.errors import DataError
from xqg_vdb.generate.endpoint import EndpointGenerator
from xqg_vdb.models.remote import ask_endpoint
from xqg_vdb.search.expand import Expander
from xqg_vdb.search.retriever import AsyncRetriever
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Question

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Handler(BaseHTTPRequestHandler):
    """Rows and answers that show what was asked for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "input" in body:
            said = {"data": [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(body["input"])]}
        else:
            said = {"choices": [{"message": {"content": body["messages"][0]["content"][-40:]}}]}
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


def same_in_children(work):
    """`work` gives the same in two children of a process that has done it, and in their parent at the same time."""
    wanted, children = work(), []
    for _ in range(2):
        if (child := os.fork()) == 0:
            signal.alarm(20)  # what hangs is killed
            code = 1
            try:
                code = int(any(work() != wanted for _ in range(3)))
            finally:
                os._exit(code)
        children.append(child)
    assert all(work() == wanted for _ in range(6))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_what_asks_an_endpoint(url):
    remote, texts = ask_endpoint(url, "m", concurrency=2), ["x" * i for i in range(1, 200)]
    generator, expander = EndpointGenerator(url, "m", concurrency=2), Expander(url, lang="en")
    same_in_children(lambda: remote.rows(texts).tolist())
    same_in_children(lambda: generator.complete(["Why?", "When?"]))
    same_in_children(lambda: expander.expansions([Question("1", "Wie lang ist der Nil?", "de")]))
    for one in (remote, generator, expander):
        one.close()


def test_what_asks_a_server():
    encoder = HashEncoder(dim=16)
    with FakeQdrant() as fake, open_store(fake.url) as store:  # an address is one, wherever it is given
        load(
            [{"id": f"p{i}", "text": f"w{i} w{i % 7}", "lang": "en"} for i in range(9)],
            "w",
            encoder=encoder,
            store=store,
        )
        retriever = Retriever(encoder, Collection("w", store, encoder=encoder))
        same_in_children(lambda: [hit.id for hit in retriever.search("w3 w4")])
        waiting = AsyncRetriever(retriever, threads=2)
        same_in_children(lambda: [hit.id for hit in asyncio.run(waiting.search("w3 w4"))])
        asyncio.run(waiting.aclose())


@pytest.mark.skipif(not COMMAND, reason=NO_COMMAND)
def test_coroutines_that_ask_a_server_over_grpc(tmp_path):  # whose library does not survive a fork
    encoder = HashEncoder(dim=16)
    with running(tmp_path) as (node,), open_store(f"grpc://127.0.0.1:{node.grpc_port}") as store:
        load([{"id": f"p{i}", "text": f"w{i} w{i % 7}"} for i in range(9)], "w", encoder=encoder, store=store)
        waiting = AsyncRetriever(Retriever(encoder, Collection("w", store, encoder=encoder)), threads=1)
        same_in_children(lambda: [hit.id for hit in asyncio.run(waiting.search("w3 w4", question_lang="en"))])


def test_a_store_says_that_it_cannot_be_pickled(tmp_path):
    with open_store(tmp_path / "store") as store, pytest.raises(DataError, match="Open it anew in each process"):
        pickle.dumps(store)
