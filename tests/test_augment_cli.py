"""`xqg-vdb augment` with a real, minute ONNX encoder: killed as a process, gone on with, undone; what it reads."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from augment_cases import client_of
from cli_cases import run_cli, run_here, write_inputs, write_lines
from fake_qdrant import FakeQdrant
from qdrant_client import models
from tiny_model import DIM, write_tiny_encoder

from xqg_vdb import Encoder
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.index.augment import check_encoder
from xqg_vdb.store import open_store
from xqg_vdb.store.server.foreign import PayloadLayout, recognised
from xqg_vdb.testing import HashEncoder

KILL_IN_COPY = """
import os, xqg_vdb.store.server.foreign as f, xqg_vdb.index.augment as w
f.PAGE, w._COMMIT_PAGES, calls = 20, 1, []
def killing(call):
    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), 9)
        return call(*arguments, **options)
    return counted
from xqg_vdb.store.server.foreign import ForeignCopy as c
c.upsert = killing(c.upsert)
"""


def run(*arguments):
    return run_here(Path.cwd(), *arguments)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A server, a tiny encoder, and the collection `wiki` of 90 passages, loaded without queries."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, 90)
    write_tiny_encoder(tmp_path / "tiny", calibration=0.5)
    with FakeQdrant() as fake:
        done = run("load", "corpus.jsonl", "wiki", "--encoder", "tiny", "--url", fake.url)
        assert done.returncode == 0, done.stderr
        yield tmp_path, fake.url


def rows_of(url, name, vector="text-dense"):
    client = client_of(url)
    points = client.scroll(name, limit=1000, with_vectors=True)[0]
    client.close()
    return np.array([one.vector[vector] for one in points], dtype=np.float32), [one.payload for one in points]


def test_augmenting_a_plain_collection_equals_loading_with_queries(desk):
    """Our own layout: info, verify and search take the copy for what `load --queries` makes."""
    _, url = desk
    options = ("--queries", "queries.jsonl", "--encoder", "tiny", "--url", url)
    done = run("augment", "wiki", "--to", "fused", "--json", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["layout"], report["vector"], report["queries"]) == ("haystack", "text-dense", {"ar": 90, "sw": 90})
    assert report["cosine"] > 0.9999
    assert run("load", "corpus.jsonl", "loaded", *options).returncode == 0
    (augmented, theirs), (loaded, ours) = rows_of(url, "fused"), rows_of(url, "loaded")
    np.testing.assert_allclose(augmented, loaded, atol=1e-6)
    assert theirs == [{key: value for key, value in one.items() if key != "row"} for one in ours]
    with open_store(url=url) as store:
        cards = [store.card(name) for name in ("fused", "loaded")]
    assert cards[0].query_means.keys() == cards[1].query_means.keys()
    assert (cards[0].count, cards[0].digest, cards[0].recipe) == (90, cards[1].digest, cards[1].recipe)
    for command in ("info", "verify"):
        assert run(command, "fused", "--url", url).returncode == 0
    found = [
        run("search", name, "w1 w2 w3", "--json", "--encoder", "tiny", "--url", url).stdout
        for name in ("fused", "loaded")
    ]
    ids = [re.findall(r'"id": "(p\d+)"', one) for one in found]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 10


def test_killed_and_gone_on_with(desk):
    folder, url = desk
    plain = rows_of(url, "wiki")[0]
    options = ("--queries", "queries.jsonl", "--encoder", "tiny", "--url", url)
    arguments = ("augment", "wiki", "--to", "fused", *options)
    assert run_cli(folder, *arguments, before=KILL_IN_COPY).returncode == -signal.SIGKILL
    assert run("info", "fused", "--url", url).returncode == 3  # nobody sees it
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "90 points" in done.stdout
    assert run("load", "corpus.jsonl", "loaded", *options).returncode == 0
    np.testing.assert_allclose(rows_of(url, "fused")[0], rows_of(url, "loaded")[0], atol=1e-6)
    done = run("augment", "wiki", "--to", "fused", "--undo", "--url", url)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(rows_of(url, "wiki")[0], plain)
    with open_store(url=url) as store:
        assert store.names() == ["loaded", "wiki"]
    assert not list((folder / "cache" / "augment").iterdir())


def test_what_the_command_refuses(desk):
    _, url = desk
    base = ("augment", "wiki", "--encoder", "tiny")
    for arguments, code, said in (
        ((*base, "--url", url), 2, "--queries, --new, or --undo"),
        ((*base, "--queries", "queries.jsonl", "--path", "data"), 3, "--url"),
        (("augment", "wikki", "--queries", "queries.jsonl", "--url", url), 3, "no collection 'wikki'"),
        ((*base, "--queries", "queries.jsonl", "--to", "wiki__v0001", "--url", url), 3, "cannot name"),
    ):
        done = run(*arguments)
        assert (done.returncode, said in done.stderr) == (code, True), (arguments, done.stderr)


def test_vectors_that_were_fused_by_a_load_are_refused(desk):
    _, url = desk
    options = ("--queries", "queries.jsonl", "--encoder", "tiny", "--url", url)
    assert run("load", "corpus.jsonl", "fused", *options).returncode == 0
    done = run("augment", "fused", *options)
    assert done.returncode == 4
    assert "load again" in done.stderr


NODE = {
    "text": "the text", "metadata": {"page": 3, "hidden": 1}, "excluded_embed_metadata_keys": ["hidden"],
    "metadata_template": "{key}={value}", "metadata_separator": "; ", "text_template": "[{metadata_str}] {content}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "layout", "wordings", "key"),
    [
        ({"page_content": "a", "metadata": {"id": 7}}, "langchain", ("a",), "5"),
        ({"_node_content": json.dumps(NODE), "page": 3}, "llama-index", ("[page=3] the text", "the text"), "5"),
        ({"_node_content": "{broken", "text": "kept"}, "llama-index", ("kept",), "5"),
        ({"_node_content": json.dumps([1]), "text": " "}, "llama-index", (), "5"),
        ({"id": "x", "content": "a", "meta": {"title": "T"}}, "haystack", ("T a", "a"), "x"),
        ({"id": "x", "content": None, "meta": {}}, "haystack", (), "x"),
        ({"text": "a"}, "text", ("a",), "5"),
    ],
)
def test_layouts(payload, layout, wordings, key):
    found = recognised([payload])
    assert (found.name, found.wordings(payload), found.key(5, payload)) == (layout, wordings, key)


def test_templates_of_a_node_are_not_formatted():
    node = {**NODE, "text_template": "{content.__class__} {content}"}
    payload = {"_node_content": json.dumps(node)}
    assert recognised([payload]).wordings(payload)[0] == "{content.__class__} the text"


def test_keys_lead_inwards():
    layout = PayloadLayout("given", "a.b", "m.id")
    assert layout.wordings({"a": {"b": "text"}}) == ("text",)
    assert layout.wordings({"a.b": "flat"}) == ("flat",)
    assert layout.key(1, {"m": {"id": 3}}) == "3"
    assert layout.key(1, {"m": [3]}) is None
    assert recognised([{"a": {"b": "x"}}], text_key="a.b", id_key="m.id") == layout
    with pytest.raises(DataError, match=r"'a\.c'; the payloads have a"):
        recognised([{"a": {"b": "x"}}], text_key="a.c")


def test_the_encoder_check_says_what_would_explain_it(tmp_path):
    with Encoder(write_tiny_encoder(tmp_path / "a"), threads=1) as encoder:
        texts = [(f"w{i} w{i + 1}",) for i in range(8)]
        rows = encoder.encode_passages([own[0] for own in texts])
        assert check_encoder(encoder, texts, rows, distance="cosine", name="c") == pytest.approx(1.0, abs=1e-6)
        noise = np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
        near = rows + np.float32(0.3 / DIM**0.5) * noise
        with pytest.raises(MismatchError, match=r"median cosine of 0\.9\d\d .* 0\.99 is wanted\. That is near.*int8"):
            check_encoder(encoder, texts, near, distance="cosine", name="c")
        with pytest.raises(MismatchError, match=r"2\.00 times as long"):
            check_encoder(encoder, texts, 2 * rows, distance="dot", name="c")
        assert check_encoder(encoder, texts, 2 * rows, distance="cosine", name="c") > 0.999
        with pytest.raises(MismatchError, match="dimensions"):
            check_encoder(encoder, texts, rows[:, :5], distance="cosine", name="c")
    unscaled = write_tiny_encoder(tmp_path / "b", normalize=False)
    with Encoder(unscaled, threads=1) as encoder, pytest.raises(MismatchError, match="length 1"):
        check_encoder(encoder, texts, rows, distance="cosine", name="c")
    with pytest.raises(DataError, match="--text-key"):
        check_encoder(HashEncoder(), [], rows, distance="cosine", name="c")


def test_multivectors_and_coarse_numbers_are_refused(desk):
    folder, url = desk
    client = client_of(url)
    for name, vectors in (
        ("multi", {"a": models.VectorParams(
            size=DIM, distance="Cosine", multivector_config=models.MultiVectorConfig(comparator="max_sim"))}),
        ("coarse", models.VectorParams(size=DIM, distance="Cosine", datatype="uint8")),
        ("two", {"a": models.VectorParams(size=DIM, distance="Cosine"),
                 "b": models.VectorParams(size=DIM, distance="Cosine")}),
    ):  # fmt: skip
        client.create_collection(name, vectors_config=vectors)
    client.close()
    write_lines(folder / "q.jsonl", [{"id": "1", "generated_queries": {"sw": ["w1"]}}])
    for name, said in (("multi", "dense vectors none"), ("coarse", "stored as uint8"), ("two", "'a', 'b'.*--vector")):
        done = run("augment", name, "--queries", "q.jsonl", "--encoder", "tiny", "--url", url)
        assert done.returncode in (3, 4)
        assert re.search(said, done.stderr), done.stderr
