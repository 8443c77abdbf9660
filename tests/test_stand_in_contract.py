"""The stand-in answers as a real Qdrant 1.19.0 did: status, keys, types, values and words of every recorded exchange.

`qdrant-1.19.0.jsonl` is what that server answered to the requests in it, one after the other. Where XQG_TEST_QDRANT_URL
is set, they are sent there too: it makes and deletes collections named cf-*. Not compared are times, sizes,
sums, operation numbers and points' versions, the order of equal scores, rough counts, and vectors that are added to,
dropped from or updated in a collection that exists: nothing here asks for those.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx
import pytest
from fake_qdrant import FakeQdrant

EXCHANGES = [json.loads(line) for line in (Path(__file__).parent / "qdrant-1.19.0.jsonl").read_text().splitlines()]
SERVER = os.environ.get("XQG_TEST_QDRANT_URL")
VOLATILE = {"time", "creation_time", "checksum", "size", "operation_id", "version", "peer_id"}
# a real server counts sparse vectors as indexed, and points roughly; nothing here reads those counts exactly
ROUGH = {"indexed_vectors_count", "points_count", "segments_count", "points"}
BOUNDARY = "xxBOUNDARYxx"


def uploaded(content):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="snapshot"; filename="s.snapshot"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def replay(url):
    """(exchange, status, answer) of each; a snapshot that is asked for is the one that was made before."""
    shot = b""
    with httpx.Client(base_url=url, timeout=60) as client:
        for collection in client.get("/collections").json()["result"]["collections"]:
            if collection["name"].startswith("cf-"):
                client.delete(f"/collections/{collection['name']}")
        for exchange in EXCHANGES:
            method, body = exchange["method"], exchange["request"]
            if exchange["label"] == "delete v1":  # snapshots outlive their collection
                shots = client.get(f"{exchange['path']}/snapshots").json()["result"]
                for one in shots:
                    client.delete(f"{exchange['path']}/snapshots/{one['name']}").raise_for_status()
            headers, content = {"Content-Type": "application/json"}, None
            if method == "UPLOAD":
                method, content = "POST", uploaded(shot if body is None else body.encode())
                headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            elif body is not None:
                content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            answer = client.request(method, exchange["path"], content=content, headers=headers)
            try:
                found = answer.json()
            except ValueError:
                found = answer.text
            if exchange["label"] == "snapshot create":
                path = exchange["path"].partition("?")[0]
                shot = client.get(f"{path}/{found['result']['name']}").content
            yield exchange, answer.status_code, found


def comparable(value, key=""):
    """What the code can see of an answer: shapes and values, but for times, sums and counts that are rough."""
    if isinstance(value, dict) and "score" in value:  # equal scores come in any order, and any of them are cut off
        return [sorted(value), round(value["score"], 4)]
    if isinstance(value, dict):
        return {name: comparable(inner, name) for name, inner in sorted(value.items()) if name not in VOLATILE}
    if isinstance(value, list):
        for named in ("name", "alias_name"):  # of collections, and of aliases: what others have there is not compared
            if all(isinstance(inner, dict) and named in inner for inner in value):
                value = [one for one in value if one[named].startswith("cf-")]
        return [comparable(inner) for inner in value]
    if key in ROUGH:
        return type(value).__name__
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, str):  # names of snapshots, and places in a body
        return re.sub(r"-\d[\d-]*\.snapshot", "-N.snapshot", re.sub(r"line 1 column \d+", "column N", value))
    return value


@pytest.mark.parametrize("kind", ["stand-in", "server"])
def test_every_recorded_exchange_comes_out_alike(kind):
    if kind == "server" and not SERVER:
        pytest.skip("XQG_TEST_QDRANT_URL is not set")
    differing = []
    with FakeQdrant() as fake:
        for exchange, status, found in replay(fake.url if kind == "stand-in" else SERVER):
            expected = exchange["response"]
            if (status, comparable(found)) != (exchange["status"], comparable(expected)):
                differing.append(
                    (exchange["label"], status, comparable(found), exchange["status"], comparable(expected))
                )
    assert len(EXCHANGES) > 90
    assert differing == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/collections/cf-wiki/vectors/text-dense-plain"),
        ("DELETE", "/collections/cf-wiki/vectors/text-dense-plain"),
        ("PUT", "/collections/cf-wiki/points/vectors"),
    ],
)
def test_what_the_stand_in_lacks_is_not_found(method, path):
    """A real server adds, drops and updates vectors there. Nothing here asks for that, and what did would fail."""
    with FakeQdrant() as fake:
        body = {"vectors": {"text-dense": {"size": 4, "distance": "Dot"}}}
        assert httpx.put(f"{fake.url}/collections/cf-wiki", json=body).status_code == httpx.codes.OK
        answer = httpx.request(
            method, f"{fake.url}{path}", json={"points": []} if path.endswith("points/vectors") else {}
        )
        assert answer.status_code == httpx.codes.NOT_FOUND
