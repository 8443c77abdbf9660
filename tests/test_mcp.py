"""`xqg-vdb mcp` asked by the SDK's own client: on standard input and output, over HTTP, and what it refuses."""

import json
import signal
import subprocess
import sys

import processes
import pytest
from cli_cases import MAIN, environment, run_cli, write_lines
from tiny_model import write_tiny_encoder

pytest.importorskip("mcp", reason="the extra mcp is not installed")
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from xqg_vdb import load
from xqg_vdb.errors import LockedError, ModelError, ServerError
from xqg_vdb.integrations.mcp import make_server
from xqg_vdb.integrations.serve import Service
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder

ESCAPE = "red \x1b[31m text\u202e\nsecond line"
RECORDS = [{"id": f"p{i}", "title": f"t{i}\x07", "text": f"w{i} {ESCAPE}", "lang": "en"} for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    write_lines(tmp_path / "corpus.jsonl", RECORDS)
    assert run_cli(tmp_path, "load", "corpus.jsonl", "wiki", "--encoder", "tiny", "--path", "s").returncode == 0
    return tmp_path


def stdio(folder, *arguments):
    argv = ["-c", MAIN, "mcp", "--encoder", "tiny", "--path", "s", *arguments]
    return stdio_client(StdioServerParameters(command=sys.executable, args=argv, env=environment(folder), cwd=folder))


async def asked(client):
    """What every transport must answer."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    schema = tools["search"].input_schema["properties"]
    assert {"question", "question_lang", "passage_langs", "k"} <= set(schema)
    found = await client.call_tool("search", {"question": "w3 w4", "question_lang": "sw", "k": 2})
    assert not found.is_error and found.structured_content == json.loads(found.content[0].text)
    hits = found.structured_content["hits"]
    assert len(hits) == 2 and (found.structured_content["lang"], hits[0]["lang"]) == ("sw", "en")
    assert hits[0]["text"].endswith("red  [31m text\nsecond line") and "\x07" not in hits[0]["title"]
    (wiki,) = (await client.call_tool("collections", {})).structured_content["collections"]
    assert (wiki["name"], wiki["passages"]) == ("wiki", 6)
    told = (await client.call_tool("audit", {"collection": "wiki"})).structured_content
    assert told["passages"] == {"en": 6} and told["calibration"] == 0.5 and told["calibrated_questions"]
    refused = await client.call_tool("search", {"question": "w3", "collection": "wikki"})
    assert refused.is_error and refused.content[0].text == "There is no collection 'wikki': there are wiki."
    return set(tools)


async def test_over_standard_input_and_output(folder):
    async with Client(stdio(folder)) as client:
        assert await asked(client) == {"search", "collections", "audit"}, "read-only unless asked"


async def test_over_http_behind_a_key(folder):
    env = environment(folder, XQG_VDB_SERVE_KEY="sesame")
    argv = [sys.executable, "-c", MAIN, "mcp", "--http", "--port", "0", "--encoder", "tiny", "--path", "s"]
    process = processes.start(argv, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
    url = process.stderr.readline().split()[0]
    assert url.endswith("/mcp")
    async with httpx2.AsyncClient(headers={"Authorization": "Bearer sesame"}) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            assert await asked(client) == {"search", "collections", "audit"}
        ping = {"json": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}}
        assert (await http.post(url, headers={"Authorization": "Bearer sesam"}, **ping)).status_code == 401
        assert (await http.post(url, headers={"Host": "rebound.example"}, **ping)).status_code == 421
        assert (await http.post(url, headers={"Origin": "http://evil.example"}, **ping)).status_code == 403
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said in ("", "Invalid Origin header: http://evil.example\n"), said


def test_others_need_a_key(folder):
    refused = run_cli(folder, "mcp", "--http", "--host", "0.0.0.0", "--path", "s")
    assert refused.returncode == 2 and "lets others in: set a key in XQG_VDB_SERVE_KEY first" in refused.stderr


def test_ctrl_c_ends_a_server_that_nobody_asks(folder):
    argv = [sys.executable, "-c", MAIN, "mcp", "--path", "s"]
    process = processes.start(
        argv, cwd=folder, env=environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    said = process.communicate()[1]
    assert process.returncode == 130 and b"Traceback" not in said, said


async def test_passages_are_added_and_deleted_only_when_asked(folder):
    async with Client(stdio(folder, "--write")) as client:
        assert {"add", "delete"} <= {tool.name for tool in (await client.list_tools()).tools}
        new = [{"id": "n1", "text": "zebra w9", "lang": "en"}]
        assert (await client.call_tool("add", {"passages": new})).structured_content["added"] == 1
        found = (await client.call_tool("search", {"question": "zebra w9", "k": 6})).structured_content["hits"]
        assert "n1" in [hit["id"] for hit in found]
        done = (await client.call_tool("delete", {"ids": ["n1", "nobody"]})).structured_content
        assert (done["deleted"], done["missing"]) == (1, ["nobody"])


@pytest.fixture
def service(tmp_path):
    with open_store(tmp_path / "secret-place") as store:
        load(RECORDS, "wiki", encoder=HashEncoder(), store=store)
        yield Service(store, lambda collection: HashEncoder())


@pytest.mark.parametrize(
    ("tool", "given", "reason"),
    [
        ("search", {}, "search: 'question' is a required property."),
        ("search", {"question": " "}, "A question of 1 to 2,000 characters is needed."),
        ("search", {"question": 7}, "question: 7 is not of type 'string'."),
        ("search", {"question": "w1", "k": 0}, "k: 0 is less than the minimum of 1."),
        ("search", {"question": "w1", "k": True}, "k: True is not of type 'integer'."),
        ("search", {"question": "w1", "passage_langs": []}, "passage_langs: [] should be non-empty."),
        ("search", {"question": "w1", "top": 3}, "'top' was unexpected"),
        ("search", {"question": "w1", "question_lang": "klingonese"}, "language"),
        ("audit", {"collection": "\x1b[2J"}, "There is no collection '\\x1b[2J'"),
        ("add", {"passages": [{"id": "x", "text": "y"}]}, "There is no tool 'add': there are search"),
        ("forget", {}, "There is no tool 'forget'"),
    ],
)
async def test_what_cannot_be_used_is_the_tools_error_in_one_sentence(service, tool, given, reason):
    async with Client(make_server(service)) as client:
        answer = await client.call_tool(tool, given)
    (told,) = answer.content
    assert answer.is_error and reason in told.text and "\n" not in told.text and "\x1b" not in told.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ServerError("http://qdrant.internal:6333 refused the key sesame"), "The store does not answer"),
        (LockedError("/srv/secret-place is used by process 7"), "Another process uses the store"),
        (ModelError("/srv/secret-place/model.json is damaged"), "its log says why"),
        (ZeroDivisionError("secret-place"), "its log says why"),
    ],
)
async def test_names_of_the_machine_stay_in_the_log(service, monkeypatch, caplog, error, told):
    def fail(*_):
        raise error

    monkeypatch.setattr(service, "_open_encoder", fail)
    async with Client(make_server(service)) as client:
        answer = await client.call_tool("search", {"question": "w1"})
    assert answer.is_error and told in answer.content[0].text
    assert not any(secret in answer.content[0].text for secret in ("secret-place", "sesame", "internal"))
    assert [str(error) in record.getMessage() for record in caplog.records if record.name == "xqg_vdb.serve"] == [True]
