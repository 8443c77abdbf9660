"""8-bit products of encoders: ranges by numpy, large channels apart."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import write_tiny_encoder

onnx = pytest.importorskip("onnx")

from xqg_vdb.export.quantise import TOO_NOISY, _Range, by_instance, measure_ranges, split_products  # noqa: E402
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
    np.testing.assert_allclose(given.square, [np.mean([float(v) ** 2 for v in column]) for column in rows.T], rtol=1e-5)


def range_of(rows):
    return _Range(np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0), np.square(rows).mean(0))


def test_noise_is_what_rounding_adds():
    rows = RNG.standard_normal((4000, 16)).astype(np.float32)
    rows[:, 3] += 50
    given, rest = range_of(rows), range_of(np.delete(rows, 3, axis=1))
    scale, zero = given.affine()
    rounded = (np.clip(np.rint(rows / scale) + zero, 0, 255) - zero) * scale
    added, values = np.delete(rounded - rows, 3, axis=1), np.delete(rows, 3, axis=1)
    assert given.noise(rest) == pytest.approx(np.sqrt(np.square(added).mean() / np.square(values).mean()), rel=0.05)


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
    rows = RNG.standard_normal((300, 16)).astype(np.float32)
    rows[:, 5] *= 60
    hidden = np.maximum(rows @ weights["a"], 0)
    return weights, rows, {"x": range_of(rows), "hidden": range_of(hidden)}


def test_large_channels_come_apart_and_the_graph_computes_the_same():
    weights, rows, ranges = cases()
    model, before = products(weights), ranges["x"]
    expected = run(model, rows)
    kept = split_products(model.graph, ranges)
    for ours, theirs in zip(run(model, rows), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    assert {"first.few", "second.few", "first.gather"} <= set(kept) and not {"first", "second"} & set(kept)
    assert len(ranges["x"].low) == 12 and 5 not in np.flatnonzero(np.isin(before.high, ranges["x"].high))
    assert ranges["x"].noise(ranges["x"]) < TOO_NOISY < before.noise(ranges["x"])
    zeroed = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    assert not zeroed["a"][5].any() and not zeroed["b"][5].any()
    np.testing.assert_array_equal(zeroed["a.few"], weights["a"][zeroed["a.channels"]])


def test_what_stays_noisy_or_is_shared_stays_float32():
    weights, _, ranges = cases()
    model = products(weights, shared=True)
    assert set(split_products(model.graph, dict(ranges))) >= {"first", "second"}
    model, given = products(weights), ranges["x"]
    many = replace(given, high=np.full(16, 600, np.float32))  # no four channels explain it
    assert {"first", "second"} <= set(split_products(model.graph, {"x": many}))
    assert split_products(products(weights).graph, {}) == []  # nothing measured: ranges of the run


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
    weight, bias, more = (RNG.standard_normal(16).astype(np.float32) for _ in range(3))
    last = ["bias", "more"] if with_bias else []
    nodes = [
        helper.make_node("LayerNormalization", ["x", "weight", *last[:1]], ["inner"], epsilon=1e-3),
        helper.make_node(
            "SkipLayerNormalization", ["inner", "x", "weight", *last], ["y"], domain="com.microsoft", epsilon=1e-2
        ),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, ["b", "s", 16])] for name in "xy"]
    tensors = [numpy.from_array(w, name) for w, name in ((weight, "weight"), (bias, "bias"), (more, "more"))]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, tensors), opset_imports=opsets, ir_version=8)
    rows = (9 + 5 * RNG.standard_normal((3, 7, 16))).astype(np.float32)
    flat = rows.reshape(-1, 16)
    bias, more = (bias, more) if with_bias else (np.zeros(16), np.zeros(16))
    inner = normalised(flat, weight, bias, 1e-3)
    expected = normalised(inner + more + flat, weight, bias, 1e-2).reshape(rows.shape)
    by_instance(model.graph)
    assert "InstanceNormalization" in (kinds := [node.op_type for node in model.graph.node])
    assert not {"LayerNormalization", "SkipLayerNormalization"} & set(kinds)
    np.testing.assert_allclose(run(model, rows)[0], expected, rtol=1e-4, atol=1e-5)
