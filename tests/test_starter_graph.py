"""The starter's graph filled without torch: onnxruntime's arithmetic, and the graph that torch exports."""

import sys
from collections import Counter

import numpy as np
import pytest

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.export.checkpoints import Overrides, conventions, fetch_checkpoint
from xqg_vdb.export.encoder import _sample_ids, _write_graphs
from xqg_vdb.export.gate import parity_texts
from xqg_vdb.export.quantise import per_column, per_tensor
from xqg_vdb.export.starter_encoder import TEMPLATE, fill_template, locate_weights, read_weights, stored_rows
from xqg_vdb.fusion import unit_rows
from xqg_vdb.models.engine import cpu_has_vnni, open_session


@pytest.mark.parametrize("seven_bits", [False, True])
def test_levels_are_those_of_onnxruntime(seven_bits):
    onnx, quantization = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime.quantization.quant_utils")
    random = np.random.default_rng(3)
    values = random.standard_normal((40, 24)).astype(np.float32) * np.geomspace(1e-4, 9, 24, dtype=np.float32)
    levels, scale, zero = per_column(values, seven_bits=seven_bits)
    for at, column in enumerate(values.T):
        expected = quantization.quantize_data(column, onnx.TensorProto.INT8, True, reduce_range=seven_bits)
        np.testing.assert_allclose((zero[at], scale[at]), expected[:2], rtol=1e-6)  # another order of sums
        np.testing.assert_array_equal(levels[:, at], expected[2])
    for table in (values, np.abs(values), -np.abs(values)):
        levels, scale, zero = per_tensor(table, seven_bits=seven_bits)
        expected = quantization.quantize_data(table, onnx.TensorProto.UINT8, False, reduce_range=seven_bits)
        np.testing.assert_allclose((zero, scale), expected[:2], rtol=1e-6)
        np.testing.assert_array_equal(levels, expected[2])


def test_a_column_of_zeros_stays_zeros():
    levels, scale, _ = per_column(np.zeros((4, 2), np.float32), seven_bits=False)
    assert not levels.any() and (scale == 1).all()


def test_the_template_is_small_and_knows_the_texts_of_the_gate():
    assert TEMPLATE.stat().st_size <= 100_000
    questions, passages = parity_texts()
    shapes = [rows.shape for rows in stored_rows()]
    assert shapes == [(len(questions), 384), (len(passages), 384)], "other texts: run tests/starter_template.py"


def test_without_onnx_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r'needs the onnx package: pip install "xqg-vdb\[starter\]"'):
        fill_template(None, tmp_path / "model.onnx", seven_bits=False)
    assert not list(tmp_path.iterdir())


def shapes_of(model):
    """How often each type and shape of an 8-bit weight occurs."""
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type in (2, 3) and len(tensor.dims) == 2]
    return Counter((tensor.data_type, tuple(tensor.dims)) for tensor in weights)


def rows_of(graph, samples):
    """The mean vector of each text, of unit length."""
    session = open_session(graph, threads=2)
    names = [node.name for node in session.get_inputs()]
    given = [{"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0} for ids in samples]
    hidden = [session.run(None, {name: known[name] for name in names})[0] for known in given]
    return unit_rows(np.stack([tokens[0].mean(axis=0) for tokens in hidden]))


def test_the_filled_graph_is_the_one_that_torch_exports(tmp_path):
    onnx = pytest.importorskip("onnx")
    for name in ("torch", "transformers"):
        pytest.importorskip(name)
    try:
        weights = read_weights(locate_weights())
    except MissingExtra as error:
        pytest.skip(str(error))
    source = fetch_checkpoint("starter:encoder", into=tmp_path / "checkpoint")
    exported = tmp_path / "exported"
    exported.mkdir()
    _write_graphs(source, exported, conventions(source)[0], precision="int8", say=lambda line: None)
    fill_template(weights, tmp_path / "filled.onnx", seven_bits=not cpu_has_vnni())
    if (tmp_path / "filled.onnx").read_bytes() == (exported / "model.onnx").read_bytes():
        return
    # another torch names and shapes a few things otherwise, another onnxruntime measures ranges that differ in last
    # bits, and these decide how loud channels are turned down: what computes, and what comes out, are still the same
    ours, theirs = onnx.load(str(tmp_path / "filled.onnx")), onnx.load(str(exported / "model.onnx"))
    assert shapes_of(ours) == shapes_of(theirs)
    samples = _sample_ids(exported / "tokenizer.json", conventions(source)[0])[::9]
    rows = [rows_of(graph, samples) for graph in (tmp_path / "filled.onnx", exported / "model.onnx")]
    assert (rows[0] * rows[1]).sum(axis=1).min() > 0.998
    computing = ("MatMul", "QuantizeLinear", "DequantizeLinear", "Softmax", "Erf", "InstanceNormalization")
    kinds = [Counter(node.op_type for node in model.graph.node) for model in (ours, theirs)]
    assert [[kind[name] for name in computing] for kind in kinds] == [[kinds[0][name] for name in computing]] * 2
    assert kinds[0]["QuantizeLinear"] == 48


@pytest.mark.parametrize(
    ("asked", "filled"), [({}, True), ({"precision": "fp32"}, False), ({"overrides": Overrides(pooling="cls")}, False)]
)
def test_a_user_who_overrides_something_gets_the_export_through_torch(tmp_path, monkeypatch, asked, filled):
    from xqg_vdb.export import encoder

    def fetch(name, into, filled):
        raise ModelError(f"filled: {filled}")

    monkeypatch.setattr(encoder, "fetch_checkpoint", fetch)
    with pytest.raises(ModelError, match=f"filled: {filled}"):
        encoder.export("starter:encoder", tmp_path / "out", **asked)
