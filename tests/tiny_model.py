"""A real, minute ONNX encoder folder (no torch): an embedding table, one mixing layer, a word tokenizer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from xqg_vdb.calibration import language_means, save_means
from xqg_vdb.models.folder import write_manifest

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "query", "passage", ":", *[f"w{i}" for i in range(40)], "nan", "zero"]
DIM = 12


def write_tiny_encoder(path, *, seed=0, dim=DIM, pooling="mean", normalize=True, max_length=16, calibration=0.0):
    """Write the model folder; word `nan` gives NaN, a text of `zero` alone (with CLS pooling) a zero row."""
    path.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(path / "tokenizer.json")
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((len(WORDS), dim)).astype(np.float32)
    table[WORDS.index("nan")] = np.nan
    if normalize is False:
        table[WORDS.index("<s>")] = 0.0
    onnx.save(_graph(table, rng.standard_normal((dim, dim)).astype(np.float32)), str(path / "model.onnx"))
    means = language_means({"sw": rng.standard_normal((3, dim)), "ar": rng.standard_normal((3, dim))}, source="tiny")
    (path / "calibration.npz").write_bytes(save_means(means))
    spec = {"dim": dim, "pooling": pooling, "normalize": normalize, "max_length": max_length}
    spec |= {"query_prefix": "query: ", "passage_prefix": "passage: "}
    manifest = {"kind": "encoder", "source": "tiny", "encoder": spec, "precision": "fp32"}
    write_manifest(path, {**manifest, "calibration": {"strength": calibration}})
    return path


def _write_tokenizer(path):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path))


def _graph(table, mix):
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "mix"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["last_hidden_state"]),
        helper.make_node("Identity", ["attention_mask"], ["unused"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(
        "last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "length", table.shape[1]]
    )
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(mix, "mix")]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
