"""Downloads against a real loopback server: checksums, sizes, what is there already, and what goes wrong."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from benchmark_data import FOLDER, needs

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets import download as module
from xqg_vdb.evaluate.datasets.download import _BenchmarkFile, benchmark_files, download

CONTENT = b"one line\n" * 50


class _Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
        elif self.path in ("/file", "/long"):
            body = CONTENT * (1 if self.path == "/file" else 1000)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A loopback server; `serve(paths)` makes one listed file of the dataset `tiny` of each path."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    _Handler.asked = []
    right = hashlib.sha256(CONTENT).hexdigest()

    def serve(*paths, sha256=right):
        address = f"http://127.0.0.1:{http.server_port}"
        listed = [_BenchmarkFile("tiny", f"tiny/{i}", sha256, len(CONTENT), address + p) for i, p in enumerate(paths)]
        monkeypatch.setattr(module, "benchmark_files", lambda: tuple(listed))

    yield serve
    http.shutdown()
    http.server_close()


def test_files_are_fetched_once_and_checked(server, tmp_path):
    server("/file", "/moved")
    stages = []
    fetched = download("tiny-train", tmp_path, progress=lambda *now: stages.append(now))
    assert [path.read_bytes() for path in fetched] == [CONTENT, CONTENT]
    assert stages == [("downloading tiny-train", 0, 2), ("downloading tiny-train", 1, 2)]
    assert download("tiny", tmp_path) == []
    assert _Handler.asked == ["/file", "/moved", "/file"]


@pytest.mark.parametrize(("path", "says"), [("/long", "SHA-256 differs"), ("/absent", "404"), ("/file", "SHA-256")])
def test_what_is_not_the_file_is_not_kept(server, tmp_path, path, says):
    server(path, sha256="0" * 64 if path == "/file" else hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(DataError, match=says) as error:
        download("tiny", tmp_path)
    assert "tiny/0" in str(error.value)
    assert list(tmp_path.rglob("*")) == []


def test_a_server_that_is_away(server, tmp_path, monkeypatch):
    gone = benchmark_files()[0]._replace(dataset="tiny", url="http://127.0.0.1:9/x")
    monkeypatch.setattr(module, "benchmark_files", lambda: (gone,))
    with pytest.raises(DataError, match="cannot be fetched"):
        download("tiny", tmp_path)


def test_unlisted_datasets_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="miracl cannot be downloaded by this command"):
        download("miracl", tmp_path)


def test_derived_datasets_need_their_parts():
    names = {file.dataset for file in module._files_of("xquad+afriqa")}
    assert names == {"xquad-r", "afriqa"}
    for name in ("xquad", "xquad-monolingual", "xquad-pool"):
        assert {file.dataset for file in module._files_of(name)} == {"xquad-r"}
    assert {file.dataset for file in module._files_of("tatoeba-en-xx")} == {"tatoeba"}


@needs("xquad-r")
def test_the_listed_checksums_are_those_of_the_real_files():
    there = [file for file in benchmark_files() if (FOLDER / file.path).exists()]
    assert len(there) > 10
    for file in there:
        data = (FOLDER / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256), file.path
