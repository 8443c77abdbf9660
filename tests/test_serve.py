"""`xqg-vdb serve`: the API, its limits and keys, what the page may do, and a real server that Ctrl-C ends."""

import base64
import hashlib
import json
import re
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import processes
import pytest
from cli_cases import command, environment, run_cli, write_lines
from tiny_model import write_tiny_encoder

from xqg_vdb import load
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.errors import ModelError
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from starlette.testclient import TestClient

from xqg_vdb.integrations.serve import Service, make_app

BAD = "<img src=x onerror=alert(1)>"
LOCAL = "http://127.0.0.1:8765"


def encoder(name="hash"):
    means = LanguageMeans({"sw": np.linspace(-1, 1, 32).astype(np.float32)}, {"sw": 30}, "bank")
    return HashEncoder(name=name, calibration=0.9, language_means=means)


def records(n=12):
    return [{"id": f"p{i}", "title": BAD, "text": f"mto {i} maji nile{i % 3}", "lang": "en"} for i in range(n)]


@pytest.fixture
def service(tmp_path):
    store = open_store(tmp_path / "s")
    load(records(), "wiki", encoder=encoder(), store=store)
    yield Service(store, lambda collection: encoder())
    store.close()


@pytest.fixture
def client(service):
    return TestClient(make_app(service), base_url=LOCAL)


def test_a_question_plain_and_calibrated_side_by_side(client):
    found = client.get("/search", params={"q": "mto nile1 maji", "lang": "swa", "k": 5, "compare": "true"}).json()
    assert (found["collection"], found["lang"], found["detected"], found["calibration"]) == ("wiki", "sw", False, 0.9)
    plain = [hit["id"] for hit in found["plain"]]
    assert len(plain) == len(found["hits"]) == 5 and plain != [hit["id"] for hit in found["hits"]]
    for hit in found["hits"]:
        assert hit["plain_rank"] == (plain.index(hit["id"]) + 1 if hit["id"] in plain else None)
        assert hit["lang"] == "en" and hit["title"] == BAD, "the page escapes, the API tells what is there"
    alone = client.get("/search", params={"q": "mto nile1 maji", "lang": "sw", "k": 5}).json()
    assert "plain" not in alone and [h["id"] for h in alone["hits"]] == [h["id"] for h in found["hits"]]
    assert client.get("/search", params={"q": "Mto Nile una urefu gani?"}).json()["detected"]
    assert client.get("/search", params={"q": "mto", "passage_lang": ["sw", "de"]}).json()["hits"] == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "A question of 1 to 2,000 characters is needed"),
        ({"q": "  "}, "A question of 1"),
        ({"q": "x" * 2001}, "1 to 2,000 characters"),
        ({"q": "x", "k": "0"}, "k must be a number from 1 to 100"),
        ({"q": "x", "k": "101"}, "k must be a number"),
        ({"q": "x", "k": "٣"}, "k must be a number"),
        ({"q": "x", "collection": "wikki"}, "There is no collection 'wikki': there are wiki."),
        ({"q": "x", "lang": "klingonese"}, "language"),
        ({"q": "x", "compare": "1"}, "compare must be true or false."),
        ({"q": "x", "top": "3"}, "There is no parameter 'top': give q, collection"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(client, given, reason):
    answer = client.get("/search", params=given)
    assert answer.status_code == 400 and reason in answer.json()["error"]


def test_a_fault_of_ours_is_json_too(client, service, monkeypatch, caplog):
    monkeypatch.setattr(service, "health", lambda: 1 / 0)
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (500, {"error": "This service cannot answer that; its log says why."})
    assert "ZeroDivisionError" in caplog.text


def test_what_there_is_and_what_was_done(client):
    assert client.get("/health").json()["status"] == "ok"
    (wiki,) = client.get("/collections").json()
    assert (wiki["name"], wiki["passages"], wiki["calibration"]) == ("wiki", 12, 0.9)
    client.get("/search", params={"q": "mto"})
    client.get("/search")
    client.get("/nowhere/<x>")
    told = client.get("/metrics").text
    assert 'xqg_vdb_requests_total{path="/search",status="200"} 1\n' in told
    assert 'xqg_vdb_requests_total{path="/search",status="400"} 1\n' in told
    assert 'path="other",status="404"' in told and "nowhere" not in told
    assert re.search(r'^xqg_vdb_request_seconds_total\{path="/search"\} 0\.\d+$', told, re.MULTILINE)
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/search", "/collections", "/health", "/metrics"}
    names = [parameter["name"] for parameter in described["paths"]["/search"]["get"]["parameters"]]
    assert names == ["q", "collection", "k", "lang", "passage_lang", "compare"]
    for path in described["paths"]:
        assert client.post(path).status_code == client.delete(path).status_code == 405, "read-only"


def test_a_collection_that_is_loaded_again_with_another_encoder_is_opened_again(tmp_path):
    with open_store(tmp_path / "s") as store:
        made = {one.facts.fingerprint: one for one in (encoder(), encoder("other"))}
        client = TestClient(make_app(Service(store, lambda c: made[c.card.encoder.fingerprint])), base_url=LOCAL)
        for name in ("hash", "other"):
            load(records(), "wiki", encoder=encoder(name), store=store)
            assert client.get("/search", params={"q": "mto", "compare": "true"}).status_code == 200
            assert client.get("/collections").json()[0]["encoder"] == name


def test_a_key_is_asked_for_and_names_of_other_sites_are_refused(service):
    client = TestClient(make_app(service, key="sesame", hosts=()), base_url="http://search.example")
    for path in ("/search?q=mto", "/collections", "/metrics", "/openapi.json"):
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer é".encode()}):
            assert client.get(path, headers=headers).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer sesame"}).status_code == 200
    assert client.get("/").status_code == client.get("/health").status_code == 200
    local = make_app(service)
    assert TestClient(local, base_url="http://rebound.example").get("/collections").status_code == 421
    assert TestClient(local, base_url="http://localhost:8765").get("/collections").status_code == 200


def test_the_page_runs_its_own_script_alone_and_makes_no_markup_of_texts(client):
    answer = client.get("/")
    policy, page = answer.headers["content-security-policy"], answer.text
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy and "unsafe" not in policy
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " on", "style=", "http"):
        assert unsafe not in re.sub(r"<title>.*?</title>|content=\S+", "", page).replace(" one", ""), unsafe
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_command_answers_and_ctrl_c_ends_it(tmp_path):
    write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    write_lines(tmp_path / "corpus.jsonl", [{"id": str(i), "text": f"w{i} w{i + 1}", "lang": "en"} for i in range(9)])
    where = ["--encoder", "tiny", "--path", "s"]
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki", *where).returncode == 0
    refused = run_cli(tmp_path, "serve", *where, "--host", "0.0.0.0")
    assert refused.returncode == 2 and "lets others in: set a key in XQG_VDB_SERVE_KEY first" in refused.stderr
    process = processes.start(
        command("serve", *where, "--port", "0"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    url = process.stderr.readline().split()[0]
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}search?q=w3&compare=true", timeout=20) as answer:
                found = json.load(answer)
            break
        except ConnectionError:
            assert time.monotonic() < until
    assert len(found["hits"]) == len(found["plain"]) == 9
    for other in ("serve", "mcp"):
        second = run_cli(tmp_path, other, *where, "--port", "0")
        assert second.returncode == 7 and "Traceback" not in second.stderr, "refused at its start, not at a question"
    port = re.search(r":(\d+)/", url)[1]
    taken = run_cli(tmp_path, "serve", "--path", "other", "--port", port)
    assert taken.returncode == 3 and "give another --port" in taken.stderr and "Traceback" not in taken.stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == "", said


def test_several_questions_at_once_are_answered_as_one_by_one(client):
    def hits(number):
        return client.get("/search", params={"q": f"mto {number} nile", "compare": "true"}).json()["hits"]

    one_by_one = [hits(number) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hits, range(16))) == one_by_one


def test_the_description_is_openapi_and_what_comes_is_as_described(client):
    for method, path in (("GET", "/nowhere"), ("POST", "/search")):
        answer = client.request(method, path)
        assert answer.status_code in (404, 405) and "GET /, /health" in answer.json()["error"]
    described = client.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        answer = client.get(path, params={"q": "mto"} if path == "/search" else {})
        (kind,) = operations["get"]["responses"]["200"]["content"]
        assert answer.headers["content-type"].startswith(kind)
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(described)


def test_names_of_the_machine_stay_in_the_log(service, caplog, monkeypatch):
    def fail(*_):
        raise ModelError("/srv/secret-place/model.json is damaged")

    monkeypatch.setattr(service, "_open_encoder", fail)
    answer = TestClient(make_app(service), base_url=LOCAL).get("/search", params={"q": "mto"})
    assert (answer.status_code, answer.json()) == (500, {"error": "This service cannot answer that; its log says why."})
    assert "secret-place" in caplog.text
