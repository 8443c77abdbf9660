"""The examples are run as their readers run them, with a tiny encoder in the starter's place.

`examples/afriqa.py` needs the benchmark's data and minutes; its parts are tested elsewhere.
"""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import processes
import pytest
from cli_cases import environment, run_cli, write_lines, write_starter
from fake_qdrant import FakeQdrant

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"langchain_rag": "langchain_core", "llama_index_rag": "llama_index", "haystack_rag": "haystack"}


def run(name, folder, *arguments):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    write_starter(folder / "cache")
    argv, env = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments], environment(folder)
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_rag_shows_three_english_passages_and_the_question(name, tmp_path):
    out = run(name, tmp_path, "Welcher Fluss ist das?")
    assert "Welcher Fluss ist das?" in out
    assert (out.count("[") == 3) or out.count(",", out.rindex("from:")) == 2


def test_own_corpus(tmp_path):
    lines = run("own_corpus", tmp_path).splitlines()
    assert sorted(line.split(" ", 1)[1].split(":")[0] for line in lines) == ["Amazon", "Nile"]


def test_augment_collection(tmp_path):
    pytest.importorskip("langchain_qdrant", reason="needs langchain-qdrant")
    before, folded, after = run("augment_collection", tmp_path, "Welcher Fluss ist das?").splitlines()
    assert folded == "docs-xqg: 1200 queries in 10 languages folded in"
    assert (before.count(","), after.count(",")) == (2, 2)


def test_choosing_alpha(tmp_path):
    out = run("choosing_alpha", tmp_path).splitlines()
    assert out[0].startswith("α = 0.00  MRR@10 0.") and out[-1].startswith("60 passages in")
    assert out[-2].startswith("chosen: Recipe(")


@pytest.fixture
def start_service(tmp_path):
    """A function that starts the service, and gives its process and port when it answers."""
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    write_starter(tmp_path / "cache")

    def start(**more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        service = processes.start(
            [sys.executable, str(EXAMPLES / "fastapi_service.py")],
            cwd=tmp_path, env=environment(tmp_path, PORT=port, **more), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while "Uvicorn running" not in (line := service.stderr.readline()):
            assert line, "it did not start"
        return service, port

    return start


def test_fastapi_services_that_get_the_first_passages_together_make_one_collection(start_service):
    with FakeQdrant() as fake:
        ports = [start_service(XQG_VDB_URL=fake.url)[1] for _ in range(2)]

        def post(number):
            passages = [{"id": f"{number}-{n}", "text": f"w{n} w{number}", "lang": "en"} for n in range(3)]
            url = f"http://127.0.0.1:{ports[number % 2]}/passages"
            return httpx.post(url, json=passages, timeout=60).json()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(post, range(4))) == [{"added": 3, "replaced": 0, "unchanged": 0}] * 4
        for port in ports:
            found = httpx.get(f"http://127.0.0.1:{port}/search", params={"q": "w1", "k": 20}, timeout=60).json()
            assert len(found) == 12


def test_fastapi_service_adds_searches_deletes_and_stops_gracefully(tmp_path, start_service):
    service, port = start_service()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert "POST some to /passages" in client.get("/search", params={"q": "w1"}).json()["detail"]
        passages = [{"id": f"p{i}", "text": f"w{i} w{i + 1}", "lang": "en", "meta": {"n": i}} for i in range(9)]
        assert client.post("/passages", json=passages).json()["added"] == 9
        again = client.post("/passages", json=[*passages[:2], {"id": "new", "text": "w30", "lang": "sw"}]).json()
        assert again == {"added": 1, "replaced": 0, "unchanged": 2}

        def ask(number):
            return [hit["id"] for hit in client.get("/search", params={"q": f"w{number}", "k": 10}).json()]

        with ThreadPoolExecutor(4) as pool:
            assert all(sorted(ids) == ["new", *(f"p{i}" for i in range(9))] for ids in pool.map(ask, range(8)))
        assert client.get("/search", params={"q": "w1", "passage_lang": "sw"}).json()[0]["id"] == "new"
        assert client.get("/search", params={"q": "w1", "lang": "klingonese"}).status_code == 400
        assert client.delete("/passages/p3").json() == {"deleted": 1}
        assert client.delete("/passages/p3").status_code == 404 and "p3" not in ask(3)
    second = [sys.executable, str(EXAMPLES / "fastapi_service.py")]
    refused = subprocess.run(second, cwd=tmp_path, env=environment(tmp_path, PORT=0), capture_output=True, text=True)
    assert refused.returncode and f"is in use by process {service.pid}" in refused.stderr
    service.send_signal(signal.SIGTERM)
    said = service.communicate(timeout=60)[1]
    assert "Application shutdown complete" in said and "Traceback" not in said
    reopened = run_cli(tmp_path, "search", "service", "w3", "--json")
    assert reopened.returncode == 0, reopened.stderr


@pytest.mark.parametrize("by", ["script", "model"])
def test_mcp_agent_lists_tools_and_searches(by, tmp_path, monkeypatch):
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    write_starter(tmp_path / "cache")
    lines = [{"id": str(i), "title": f"t{i}", "text": f"w{i} w{i + 1}", "lang": "en"} for i in range(9)]
    write_lines(tmp_path / "corpus.jsonl", lines)
    loaded = run_cli(tmp_path, "load", "corpus.jsonl", "demo", "--path", "s")
    assert loaded.returncode == 0, loaded.stderr
    if by == "script":
        out = run("mcp_agent", tmp_path, "w3 w4", "--path", "s").splitlines()
        assert out[0] == "tools: search, collections, audit"
        assert out[1] == 'calls search({"question": "w3 w4", "k": 3, "collection": "demo"})'
        assert len(out) == 5 and all(line.startswith("[t") for line in out[2:])
        return
    call = {"id": "c1", "type": "function", "function": {"name": "collections", "arguments": "{}"}}
    says = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "One: demo."},
    ]
    asked = []

    class Model(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = json.dumps({"choices": [{"message": says[len(asked) - 1]}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_MODEL", "any")
        out = run("mcp_agent", tmp_path, "What is there?", "--path", "s").splitlines()
        server.shutdown()
    assert out[1:] == ["calls collections({})", "One: demo."]
    assert [tool["function"]["name"] for tool in asked[0]["tools"]] == ["search", "collections", "audit"]
    assert json.loads(asked[1]["messages"][-1]["content"])["collections"][0]["name"] == "demo"
