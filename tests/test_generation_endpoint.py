"""The endpoint generator against a real HTTP server on loopback that speaks the OpenAI protocol, well and badly."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cli_cases import run_cli, write_lines

from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.generate.endpoint import EndpointGenerator
from xqg_vdb.types import Passage

CANARY = "SECRET-CANARY-7f3a"
PASSAGES = [Passage(f"p{i}", f"Text number {i}.", title="T") for i in range(4)]


class Server:
    """A server whose next answers are taken from `script`: (status, headers, body), or None for the usual good one."""

    def __init__(self):
        self.script, self.requests, self.active, self.most = [], [], 0, 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    outer.active += 1
                    outer.most = max(outer.most, outer.active)
                    outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                    answer = outer.script.pop(0) if outer.script else None
                outer.pause.wait(0.02)  # so that others come meanwhile, if they may
                with lock:
                    outer.active -= 1  # before the answer: after it, the client may come again
                status, headers, text = answer or (200, {}, good(json.loads(body)))
                if status is None:  # the connection dies without an answer
                    self.close_connection = True
                else:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(text)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.pause = threading.Event()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()


def good(request):
    text = f'"Frage {request["seed"]} an {request["messages"][0]["content"][-40:]}?"'
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def ask(server, sleep=lambda s: None, n=2, langs=("de", "sw"), **options):
    options = {"concurrency": 3, "patience": 5.0, **options}
    with EndpointGenerator(server.url, "m", **options, sleep=sleep) as generator:
        return generator.generate_batch(PASSAGES, query_langs=list(langs), n=n), generator.counters()


def test_queries_come_back_in_order_with_totals_and_bounded_concurrency(server):
    records, counters = ask(server, price=(2.0, 4.0))
    assert [r.id for r in records] == ["p0", "p1", "p2", "p3"]
    assert all(len(texts) == 2 and len(set(texts)) == 2 for r in records for texts in r.queries.values())
    assert counters["requests"] == 16 and counters["tokens_read"] == 160 and counters["tokens_written"] == 80
    assert counters["cost"] == pytest.approx((160 * 2 + 80 * 4) / 1e6)
    assert server.most <= 3
    path, _, request = server.requests[0]
    message = request["messages"][0]["content"]
    assert path == "/v1/chat/completions" and request["model"] == "m" and message.startswith("Passage: T. Text number")
    assert message.endswith(("Write it in German.", "Write it in Swahili."))


def test_the_same_seed_asks_the_same_and_another_attempt_does_not(server):
    assert ask(server)[0] == ask(server)[0]
    with EndpointGenerator(server.url, "m") as generator:
        first = generator.generate_batch(PASSAGES[:1], query_langs=["de"], n=1)
        assert generator.generate_batch(PASSAGES[:1], query_langs=["de"], n=1, attempt=1) != first


def test_what_may_pass_is_tried_again_with_growing_pauses(server):
    server.script = [(429, {"Retry-After": "3"}, b""), (503, {}, b"busy"), (500, {}, b""), (None, {}, b"")]
    slept = []
    records, counters = ask(server, sleep=slept.append, concurrency=1, patience=60.0)
    assert counters["retries"] == 4 and all(len(r.queries["de"]) == 2 for r in records)
    assert slept[0] == 3.0 and all(0.1 <= pause <= 30 for pause in slept[1:])


@pytest.mark.parametrize("value", ["0", "-5", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "99999999"])
def test_odd_retry_after_headers_are_bounded(server, value):
    server.script = [(429, {"Retry-After": value}, b"")]
    slept = []
    ask(server, sleep=slept.append, concurrency=1, n=1, langs=["de"], patience=1000.0)
    assert len(slept) == 1 and 0.1 <= slept[0] <= 120


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "no; set XQG_VDB_GENERATOR_KEY to a valid key"), (404, "no; check the URL"), (400, "no")],
)
def test_a_refusal_is_not_repeated(server, status, hint):
    server.script = [(status, {}, b"no")] * 99
    with pytest.raises(ServerError, match=rf"refused the request with status {status}: {hint}"):
        ask(server, concurrency=1)
    assert len(server.requests) == 1


def test_a_server_that_stays_away_ends_the_run_with_a_sentence(server):
    server.script = [(503, {}, b"")] * 999
    with pytest.raises(ServerError, match=r"did not answer for 0 s \(status 503\); what was made is kept"):
        ask(server, concurrency=1, patience=0.05)


GARBAGE = [
    b"", b"not json", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff\xfe",
    b'{"choices": [{"message": {"content": "  "}}]}', b'{"choices": 5}', b'{"usage": 3}', b"[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_is_counted_and_asked_once_more(server, body):
    server.script = [(200, {}, body)]
    records, counters = ask(server, concurrency=1, n=1, langs=["de"])
    assert counters["useless_answers"] == 1 and all(len(r.queries["de"]) == 1 for r in records)


def test_garbage_for_ever_leaves_gaps_not_a_crash(server):
    server.script = [(200, {}, b"garbage")] * 999
    records, counters = ask(server, n=1, langs=["de"])
    assert [r.queries["de"] for r in records] == [()] * 4 and counters["useless_answers"] == 8


def test_the_key_goes_into_the_header_and_nowhere_else(server, monkeypatch, caplog, capfd):
    import logging

    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    with EndpointGenerator(server.url, "m") as generator:
        generator.generate_batch(PASSAGES[:1], query_langs=["de"], n=1)
        server.script = [(401, {}, b"bad key " + CANARY.encode())]
        with pytest.raises(ServerError) as refused:
            generator.generate_batch(PASSAGES[:1], query_langs=["de"], n=1)
        parts = (refused.value, repr(refused.value), generator, generator.settings, generator.counters(), caplog.text)
        seen = f"{parts} {capfd.readouterr()}"
    assert server.requests[0][1]["Authorization"] == f"Bearer {CANARY}"
    assert CANARY not in seen


def test_keys_and_urls_that_would_leak_are_refused(monkeypatch):
    with pytest.raises(DataError, match="Put no key into the URL of host"):
        EndpointGenerator(f"https://user:{CANARY}@host/v1", "m")
    with pytest.raises(DataError, match="An endpoint is a URL such as"):
        EndpointGenerator("localhost:8000", "m")
    monkeypatch.setenv("XQG_VDB_GENERATOR_KEY", CANARY)
    with pytest.raises(DataError, match=r"A key would go unencrypted to example.org: use https\."):
        EndpointGenerator("http://example.org/v1", "m")


def test_a_redirect_is_not_followed_with_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.script = [(307, {"Location": "http://127.0.0.1:9/v1"}, b"")]
    with pytest.raises(ServerError, match="status 307"):
        ask(server, concurrency=1)
    assert len(server.requests) == 1


def test_the_command_line_from_corpus_to_file(server, tmp_path):
    from click.testing import CliRunner
    from generation_cases import write_corpus

    from xqg_vdb.cli.generate import generate, merge

    corpus, out = write_corpus(tmp_path / "c.jsonl", 5), tmp_path / "q.jsonl"
    options = ["--endpoint", server.url, "-l", "de", "-l", "swa", "-n", "2"]
    half = CliRunner().invoke(generate, [str(corpus), str(out), *options, "--shard", "1/2", "--json"])
    assert half.exit_code == 0, half.output
    assert json.loads(half.stdout)["passages"] == 3
    unfinished = CliRunner().invoke(merge, [str(out)])
    assert "q.jsonl.shard-2-of-2 is missing" in str(unfinished.exception)
    assert CliRunner().invoke(generate, [str(corpus), str(out), *options, "--shard", "2/2"]).exit_code == 0
    merged = CliRunner().invoke(merge, [str(out)])
    assert merged.output == f"{out}  5 passages, 20 queries from 2 shards\n"
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["p0", "p1", "p2", "p3", "p4"]
    assert all(len(texts) == 2 for line in lines for texts in line["generated_queries"].values())
    wrong = CliRunner().invoke(generate, [str(corpus), str(out), "-l", "de"])
    assert wrong.exit_code == 2 and "give --generator or --endpoint, one of them" in wrong.output


def test_the_command_asks_only_about_what_has_changed(server, tmp_path):
    lines = [{"id": f"p{i}", "text": f"Text {i}."} for i in range(5)]
    write_lines(tmp_path / "october.jsonl", lines)
    write_lines(tmp_path / "november.jsonl", [*lines[3::-1], {"id": "p5", "text": "Text 5."}])
    settings = ["--endpoint", server.url, "-l", "de", "-n", "2", "--json"]
    assert run_cli(tmp_path, "generate", "october.jsonl", "october.q", *settings).returncode == 0
    server.requests.clear()
    done = run_cli(tmp_path, "generate", "november.jsonl", "november.q", "--reuse", "october.q", *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reused"] == {"october.q": 4} and len(server.requests) == 2
    old, new = [
        {line["id"]: line for line in map(json.loads, (tmp_path / f"{month}.q").read_text().splitlines())}
        for month in ("october", "november")
    ]
    assert list(new) == ["p3", "p2", "p1", "p0", "p5"] and all(new[i] == old[i] for i in new if i != "p5")
    done = run_cli(tmp_path, "generate", "november.jsonl", "x.q", "--reuse", "october.q", *settings, "--seed", "2")
    assert done.returncode == 4 and "(generator.seed was 313, is 2)" in done.stderr
