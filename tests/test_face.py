"""The names that `xqg_vdb` itself has, three of which are folders as well."""

import json

import pytest
from generation_cases import tiny_checkpoint

import xqg_vdb
import xqg_vdb.generate.run as run  # the folder stays a folder
from xqg_vdb import export, generate, tune
from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.models.decoder import Decoding
from xqg_vdb.types import Passage


def test_ten_names():
    assert set(xqg_vdb.__all__) - {"__version__"} == {
        "AsyncRetriever", "Collection", "Encoder", "Hit", "Recipe", "Retriever", "export", "generate", "load", "tune",
    }  # fmt: skip


def test_three_folders_can_be_called():
    assert xqg_vdb.generate is generate and generate.run is run
    assert all(callable(folder) for folder in (export, generate, tune))
    with pytest.raises(ModelError, match="Say where to export the folder"):
        export("some/folder/of/mine")
    with pytest.raises(DataError, match=r"no-questions\.jsonl"):
        tune("c.jsonl", queries=[], questions="no-questions.jsonl", qrels="qrels.txt")


def test_queries_are_written_for_what_is_in_memory_as_for_a_file(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint")
    model = export(str(checkpoint), tmp_path / "model", generator=True, precision="fp32").path
    rows = [{"id": "a", "title": "T", "text": "w1 w2 w3"}, {"id": "b", "text": "w4 w5"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "query_langs": ["de", "sw"],
        "n": 2,
        "generator": model,
        "decoding": Decoding(max_tokens=6),
        "threads": 1,
    }
    made = list(generate(tmp_path / "corpus.jsonl", **options))
    assert [(record.id, sorted(record.queries)) for record in made] == [("a", ["de", "sw"]), ("b", ["de", "sw"])]
    assert list(generate(rows, **options)) == made
    assert list(generate([Passage("a", "w1 w2 w3", "T"), Passage("b", "w4 w5")], **options)) == made
    with pytest.raises(DataError, match=r"\{'id': 'c'\} is no passage"):
        list(generate([{"id": "c"}], **options))
