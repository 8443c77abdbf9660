"""Serves an exported encoder as an OpenAI-compatible `/v1/embeddings` on loopback, without prefixes, until Ctrl-C.

    python benchmarks/serve_encoder.py --encoder starter --port 8900 &
    xqg-vdb export http://127.0.0.1:8900/v1 models/served --model starter --query-prefix 'query: ' \
        --passage-prefix 'passage: '
    python examples/afriqa.py --encoder models/served

That prints the table of `python examples/afriqa.py` to the third decimal.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import numpy as np

from xqg_vdb import Encoder
from xqg_vdb.models.folder import encoder_folder


@click.command()
@click.option("--encoder", "model", default="starter", show_default=True)
@click.option("--port", type=int, default=8900, show_default=True)
@click.option("--threads", type=int)
def main(model: str, port: int, threads: int | None) -> None:
    """Answer until Ctrl-C."""
    with Encoder(encoder_folder(model), threads=threads, calibration=0.0) as encoder:

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                rows = np.asarray(encoder._rows.rows(body["input"], prefix=""), np.float32)
                data = [{"index": i, "embedding": row} for i, row in enumerate(rows.tolist())]
                raw = json.dumps({"data": data, "model": model}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments: object) -> None:
                pass

        ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
