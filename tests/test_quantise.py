"""8-bit products of encoders: ranges by numpy, loud channels turned down."""

from collections import Counter

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

onnx = pytest.importorskip("onnx")

from xqg_vdb.export.quantise import (  # noqa: E402
    SMALLEST,
    _Range,
    by_instance,
    measure_ranges,
    quantise_graph,
    quantise_products,
)
from xqg_vdb.models.engine import runtime  # noqa: E402

RNG = np.random.default_rng(11)


def test_ranges_are_what_the_samples_give(tmp_path):
    """Against the tiny graph computed with numpy: embedded = table[ids], mixed = embedded @ mix."""
    graph = write_tiny_encoder(tmp_path / "tiny") / "model.onnx"
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in onnx.load(str(graph)).graph.initializer}
    samples = [np.array([ids], dtype=np.int64) for ids in ([0, 7, 2], [0, 9, 9, 12, 2], [0, 2])]
    found = measure_ranges(graph, samples=samples)
    rows = np.concatenate([weights["table"][ids[0]] for ids in samples])
    assert set(found) == {"embedded"}
    given = found["embedded"]
    np.testing.assert_allclose(given.low, np.minimum(rows.min(0), 0), rtol=1e-5)
    np.testing.assert_allclose(given.high, np.maximum(rows.max(0), 0), rtol=1e-5)
    np.testing.assert_allclose(given.mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(given.square, [np.mean([float(v) ** 2 for v in column]) for column in rows.T], rtol=1e-5)


def range_of(rows):
    return _Range(np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0), rows.mean(0), np.square(rows).mean(0))


def eight_bits(rows, weights, even):
    """The product with both sides rounded, by hand in float64."""
    scale, zero = (float(end) for end in range_of(rows).affine(even))
    inputs = (np.clip(np.rint(rows * even / scale) + zero, 0, 255) - zero) * scale
    uneven = weights / even[:, None]
    steps = np.abs(uneven).max(0) / 127
    return inputs @ (np.rint(uneven / steps) * steps)


def test_noise_is_what_rounding_adds_and_loud_channels_are_turned_down():
    rows, weights = RNG.standard_normal((4000, 64)), RNG.standard_normal((64, 48))
    rows[:, 3] += 50
    rows, weights = rows.astype(np.float32), (weights / 9).astype(np.float32)
    weights[3] /= 40
    given = range_of(rows)
    even = given.evened(weights, 127)
    assert 0.01 < even[3] < 0.2 and (np.delete(even, 3) > 0.7).all()
    for by in (np.ones(64, np.float32), even):
        added = eight_bits(rows, weights, by) - rows @ weights
        share = np.sqrt(np.square(added).mean() / (rows @ weights).var(axis=0).mean())
        assert given.noise(weights, by, 127) == pytest.approx(share, rel=0.2)
    assert given.noise(weights, even, 127) < given.noise(weights, np.ones(64, np.float32), 127) / 4


def products(weights, *, shared=False):
    """A graph of products of one input x (n, 16), and of their ReLU: the first two read x, the third the first."""
    helper, numpy = onnx.helper, onnx.numpy_helper
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["first"], "first"),
        helper.make_node("MatMul", ["x", "a" if shared else "b"], ["second"], "second"),
        helper.make_node("Relu", ["first"], ["hidden"], "relu"),
        helper.make_node("MatMul", ["hidden", "c"], ["third"], "third"),
    ]
    floats = [helper.make_tensor_value_info(name, 1, ["n", 16]) for name in ("x", "second", "third")]
    graph = helper.make_graph(
        nodes, "g", floats[:1], floats[1:], [numpy.from_array(w, name) for name, w in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, rows):
    session = runtime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})


def cases():
    weights = {name: RNG.standard_normal((16, 16)).astype(np.float32) for name in "abc"}
    weights["a"][5] /= 30
    weights["b"][5] /= 30
    rows = RNG.standard_normal((300, 16)).astype(np.float32)
    rows[:, 5] += 60
    hidden = np.maximum(rows @ weights["a"], 0)
    return weights, rows, {"x": range_of(rows), "hidden": range_of(hidden)}


def test_the_graph_computes_what_8_bits_give():
    weights, rows, ranges = cases()
    model, expected = products(weights), run(products(weights), rows)
    quantise_products(model.graph, ranges, seven_bits=False)
    onnx.checker.check_model(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"], kinds["MatMul"]) == (2, 2 + 3, 3)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert not set("abc") & set(stored) and stored["second.8"].data_type == onnx.TensorProto.INT8
    even = onnx.numpy_helper.to_array(stored["x.even"])
    assert even[5] < 0.2
    second, third = run(model, rows)
    np.testing.assert_allclose(second, eight_bits(rows, weights["b"], even), rtol=1e-3, atol=0.02)
    for ours, theirs in zip((second, third), expected, strict=True):
        assert np.square(ours - theirs).mean() < 0.03**2 * np.square(theirs).mean()


def test_seven_bits_where_products_would_overflow():
    weights, _, ranges = cases()
    model = products(weights)
    quantise_products(model.graph, ranges, seven_bits=True)
    levels = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("d.8")]
    assert len(levels) == 2 and all(np.abs(level).max() <= 64 for level in levels)


def test_what_stays_noisy_stays_float32():
    weights, _, ranges = cases()
    model = products(weights, shared=True)  # channels of shared weights cannot be turned down
    quantise_products(model.graph, {"x": ranges["x"]}, seven_bits=False)
    assert {node.op_type for node in model.graph.node} == {"MatMul", "Relu"}
    model = products(weights, shared=True)
    quantise_products(model.graph, {"hidden": ranges["hidden"]}, seven_bits=False)  # nothing is known of x
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    assert {"a", "c"} & {tensor.name for tensor in model.graph.initializer} == {"a"}


def test_a_table_of_words_has_8_bits():
    helper, numpy = onnx.helper, onnx.numpy_helper
    table = RNG.standard_normal((SMALLEST, 4)).astype(np.float32)
    ends = [helper.make_tensor_value_info("ids", 7, ["n"])], [helper.make_tensor_value_info("y", 1, ["n", 4])]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])], "g", *ends, [numpy.from_array(table, "table")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    quantise_products(model.graph, {}, seven_bits=False)
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer}["y.8"] == onnx.TensorProto.UINT8
    session = runtime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = session.run(None, {"ids": np.arange(SMALLEST)})[0]
    np.testing.assert_allclose(rows, table, atol=(table.max() - table.min()) / 255 / 2 * 1.01)


def normalised(rows, weight, bias, epsilon):
    """Layer normalisation, a row at a time in float64."""
    made = []
    for row in rows.astype(np.float64):
        spread = np.sqrt(np.mean([(value - row.mean()) ** 2 for value in row]) + epsilon)
        made.append((row - row.mean()) / spread * weight + bias)
    return np.array(made)


@pytest.mark.parametrize("with_bias", [True, False])
def test_instances_are_normalised_as_layers_are(with_bias):
    helper, numpy = onnx.helper, onnx.numpy_helper
    weight, bias = (RNG.standard_normal(16).astype(np.float32) for _ in range(2))
    last = ["bias"] if with_bias else []
    nodes = [
        helper.make_node("LayerNormalization", ["x", "weight", *last], ["inner"], epsilon=1e-3),
        helper.make_node("LayerNormalization", ["inner", "weight", *last], ["y"], axis=-1, epsilon=1e-2),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, ["b", "s", 16])] for name in "xy"]
    tensors = [numpy.from_array(w, name) for w, name in ((weight, "weight"), (bias, "bias"))]
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, tensors), opset_imports=opsets, ir_version=8)
    rows = (9 + 5 * RNG.standard_normal((3, 7, 16))).astype(np.float32)
    flat = rows.reshape(-1, 16)
    bias = bias if with_bias else np.zeros(16)
    expected = normalised(normalised(flat, weight, bias, 1e-3), weight, bias, 1e-2).reshape(rows.shape)
    by_instance(model.graph)
    assert "InstanceNormalization" in (kinds := [node.op_type for node in model.graph.node])
    assert "LayerNormalization" not in kinds
    np.testing.assert_allclose(run(model, rows)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_generators_table_of_words_has_8_bits_though_nothing_else_reads_it(tmp_path):
    """mT5's encoder has a table of its own, beside an output layer of its own: 770 MB in float32."""
    helper, numpy = onnx.helper, onnx.numpy_helper
    tables = {"words": SMALLEST, "places": 50}
    weights = {name: RNG.standard_normal((rows, 64)).astype(np.float32) for name, rows in tables.items()}
    nodes = [helper.make_node("Gather", [name, f"{name}.ids"], [f"{name}.rows"]) for name in tables]
    shapes = {"words": ["b", "t"], "places": ["t"]}
    inputs = [helper.make_tensor_value_info(f"{name}.ids", 7, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(f"{name}.rows", 1, [*shape, 64]) for name, shape in shapes.items()]
    constants = [numpy.from_array(table, name) for name, table in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    quantise_graph(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 0.3 * (tmp_path / "a.onnx").stat().st_size
    session = runtime().InferenceSession(str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"])
    ids = np.arange(SMALLEST).reshape(2, -1)
    words, places = session.run(None, {"words.ids": ids, "places.ids": np.arange(50)})
    most = np.abs(weights["words"].reshape(SMALLEST, 2, 32)).max(axis=2, keepdims=True) / 127  # a step of each block
    assert (np.abs(words.reshape(SMALLEST, 2, 32) - weights["words"].reshape(SMALLEST, 2, 32)) <= 0.51 * most).all()
    assert (places == weights["places"]).all()
