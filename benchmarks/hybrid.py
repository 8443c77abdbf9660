"""What a hybrid search costs beside a dense one on a Qdrant server: milliseconds a question, and bytes of its answers.

Made-up passages of 60 to 140 words whose frequencies fall like those of a language; both kinds of search ask the same
questions in turn. Without --encoder a question's vector costs next to nothing, so that the look-ups alone are compared.
`bare` sends the same requests over REST with nothing but a socket and a JSON parser: what no client can go below;
`fusion` lets the server fuse, which spares a request, and reads the payloads of both rankings on its side;
`server` is the time that the server's answers to these name as its own.

    python benchmarks/hybrid.py --url http://localhost:6333 --passages 10000
    python benchmarks/hybrid.py --url grpc://localhost:6334 --encoder starter --passages 1000

Makes the collection `hybrid-benchmark` there, and removes it again.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from xqg_vdb import Collection, Encoder, Retriever, load
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.store.bm25 import WordWriter
from xqg_vdb.store.layout import CONSTANT, DEPTH, TEXT_DENSE, TEXT_SPARSE, check_hybrid
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Hybrid, Search

NAME = "hybrid-benchmark"
WORDS = [f"w{i}" for i in range(20_000)]
SHARES = [1 / (i + 1) for i in range(20_000)]
PARAMS = {"hnsw_ef": Search().ef}


class Meter:
    """A port of this machine that passes everything on to a server, and counts the bytes that come back."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = (parts.hostname or "localhost", parts.port or 6333)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self.listening.getsockname()[1]}"
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self.listening.accept()
            theirs = socket.create_connection(self.target)
            for source, sink, counts in ((ours, theirs, False), (theirs, ours, True)):
                threading.Thread(target=self._pass, args=(source, sink, counts), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        while block := source.recv(1 << 16):
            self.received += len(block) if counts else 0
            sink.sendall(block)


class Bare:
    """The requests of a dense and of a hybrid search, and their answers as JSON."""

    def __init__(self, url: str, collection: Collection, encoder: Encoder | HashEncoder) -> None:
        parts = urlsplit(url)
        port = (parts.port or 6333) - (1 if parts.scheme.startswith("grpc") else 0)
        self.connection = http.client.HTTPConnection(parts.hostname or "localhost", port)
        self.points = f"/collections/{NAME}__{collection.version}/points"
        self.encoder, self.words = encoder, WordWriter(check_hybrid(collection.card, name=NAME))
        self.served = 0.0  # seconds, by the server's own clock

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The result of one request."""
        head = {"Content-Type": "application/json"}
        self.connection.request(method, path, None if body is None else orjson.dumps(body), head)
        answer = orjson.loads(self.connection.getresponse().read())
        self.served += answer["time"]
        return answer["result"]

    def dense(self, text: str) -> None:
        """Which version, then its ten passages."""
        self.ask("GET", "/aliases")
        row = self.encoder.encode_queries([text], calibrate=False)[0].tolist()
        query = {"query": row, "using": TEXT_DENSE, "limit": 11, "with_payload": True, "params": PARAMS}
        self.ask("POST", f"{self.points}/query/batch", {"searches": [query]})

    def hybrid(self, text: str) -> None:
        """Which version, both rankings, then ten passages."""
        both = [{**one, "limit": DEPTH + 1, "with_payload": False} for one in self.both(text)]
        found = self.ask("POST", f"{self.points}/query/batch", {"searches": both})
        winners = [point["id"] for ranking in found for point in ranking["points"][:5]]
        self.ask("POST", self.points, {"ids": winners, "with_payload": True})

    def fusion(self, text: str) -> None:
        """Which version, then the passages that the server itself fuses from both rankings, by the same formula."""
        both = [{**one, "limit": DEPTH} for one in self.both(text)]
        fused = {"prefetch": both, "query": {"rrf": {"k": CONSTANT + 1}}, "limit": 11, "with_payload": True}
        self.ask("POST", f"{self.points}/query/batch", {"searches": [fused]})

    def both(self, text: str) -> list[dict[str, Any]]:
        """Which version, then the two searches of a question."""
        self.ask("GET", "/aliases")
        row = self.encoder.encode_queries([text], calibrate=False)[0].tolist()
        words = self.words.question(text)
        sparse = {"indices": words.indices.tolist(), "values": words.values.tolist()}
        return [
            {"query": query, "using": using, "params": PARAMS}
            for query, using in ((row, TEXT_DENSE), (sparse, TEXT_SPARSE))
        ]


def retrievers(encoder: Encoder | HashEncoder, collection: Collection) -> dict[str, Retriever]:
    return {"dense": Retriever(encoder, collection), "hybrid": Retriever(encoder, collection, hybrid=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="a Qdrant server, over http:// or grpc://")
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--encoder", help="folder or name; hashed words by default")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, SHARES, k=rng.randint(60, 140))) for _ in range(options.passages)]
    rows = [{"id": f"p{i}", "title": f"t {i}", "text": text, "lang": "en"} for i, text in enumerate(texts)]
    asked = [" ".join(rng.choices(WORDS, SHARES, k=8)) for _ in range(options.questions)]
    encoder = Encoder(options.encoder) if options.encoder else HashEncoder(dim=384)
    with open_store(url=options.url) as store:
        made = load(rows, NAME, encoder=encoder, store=store, options=LoadOptions(hybrid=Hybrid())).collection
        bare = Bare(options.url, made, encoder)
        search: dict[str, Callable[[str], object]] = {
            **{name: retriever.search for name, retriever in retrievers(encoder, made).items()},
            "bare dense": bare.dense,
            "bare hybrid": bare.hybrid,
            "bare fusion": bare.fusion,
        }
        took: dict[str, list[float]] = {
            name: [] for name in [*search, "server dense", "server hybrid", "server fusion"]
        }
        for text in [asked[0], *asked]:
            for name, run in search.items():
                begin, bare.served = time.perf_counter(), 0.0
                run(text)
                took[name].append(time.perf_counter() - begin)
                if bare.served:
                    took[name.replace("bare", "server")].append(bare.served)
        meter, received = Meter(options.url), {}
        with open_store(url=meter.url) as counted:
            for name, retriever in retrievers(encoder, Collection(NAME, counted)).items():
                retriever.search(asked[0])
                before = meter.received
                for text in asked:
                    retriever.search(text)
                received[name] = round((meter.received - before) / len(asked))
        store.delete(NAME)
    times = {name: round(1000 * statistics.median(seconds[1:]), 2) for name, seconds in took.items()}

    def ratio(kind: str, which: str = "hybrid") -> float:
        pairs = zip(took[f"{kind}dense"][1:], took[f"{kind}{which}"][1:], strict=True)
        return round(statistics.median(other / dense for dense, other in pairs), 2)

    if options.json:
        ratios = {"ratio": ratio(""), "bare ratio": ratio("bare "), "server ratio": ratio("server ")}
        fusion = {"fusion ratio": ratio("bare ", "fusion")}
        print(json.dumps({"ms": times, "bytes": received, **ratios, **fusion, "passages": options.passages}))
        return
    for name in took:
        counted_bytes = f"{received[name]:>10,} bytes received a question" if name in received else ""
        print(f"{name:14}{times[name]:>8.2f} ms{counted_bytes}")
    print(f"hybrid: {ratio('')} × the time, {received['hybrid'] / received['dense']:.1f} × the bytes")
    print(f"bare requests: {ratio('bare ')} × the time; the server alone: {ratio('server ')} ×")
    alone = ratio("server ", "fusion")
    print(f"fused by the server: {ratio('bare ', 'fusion')} × the time; the server alone: {alone} ×")


if __name__ == "__main__":
    main()
