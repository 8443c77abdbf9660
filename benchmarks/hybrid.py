"""What a hybrid search costs beside a dense one on a Qdrant server: milliseconds a question, and bytes of its answers.

Made-up passages of 60 to 140 words whose frequencies fall like those of a language; both kinds of search ask the same
questions in turn. Without --encoder a question's vector costs next to nothing, so that the look-ups alone are compared.

    python benchmarks/hybrid.py --url http://localhost:6333 --passages 10000
    python benchmarks/hybrid.py --url grpc://localhost:6334 --encoder starter --passages 1000

Makes the collection `hybrid-benchmark` there, and removes it again.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import threading
import time
from urllib.parse import urlsplit

from xqg_vdb import Collection, Encoder, Retriever, load
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder
from xqg_vdb.types import Hybrid

NAME = "hybrid-benchmark"
WORDS = [f"w{i}" for i in range(20_000)]
SHARES = [1 / (i + 1) for i in range(20_000)]


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
        took: dict[str, list[float]] = {"dense": [], "hybrid": []}
        both = retrievers(encoder, made)
        for retriever in both.values():
            retriever.search(asked[0])
        for text in asked:
            for name, retriever in both.items():
                begin = time.perf_counter()
                retriever.search(text)
                took[name].append(time.perf_counter() - begin)
        meter, received = Meter(options.url), {}
        with open_store(url=meter.url) as counted:
            for name, retriever in retrievers(encoder, Collection(NAME, counted)).items():
                retriever.search(asked[0])
                before = meter.received
                for text in asked:
                    retriever.search(text)
                received[name] = round((meter.received - before) / len(asked))
        store.delete(NAME)
    times = {name: round(1000 * statistics.median(seconds), 2) for name, seconds in took.items()}
    ratio = statistics.median(h / d for d, h in zip(took["dense"], took["hybrid"], strict=True))
    if options.json:
        print(json.dumps({"ms": times, "bytes": received, "ratio": round(ratio, 2), "passages": options.passages}))
        return
    for name in took:
        print(f"{name:8}{times[name]:>8.2f} ms{received[name]:>10,} bytes received a question")
    print(f"hybrid: {ratio:.2f} × the time, {received['hybrid'] / received['dense']:.1f} × the bytes")


if __name__ == "__main__":
    main()
