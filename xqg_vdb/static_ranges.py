"""Fixed ranges for 8-bit activations: a text's vector then depends on that text alone.

A dynamically quantised graph takes each tensor's range from the batch at hand, so that a question asked alone and the
same question in a batch of others get different vectors. Here the ranges are
measured once, on sample texts through the fp32 graph, and written into the int8 graph. Needs onnx (extra `export`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]


def fix_ranges(fp32: Path, int8: Path, *, samples: Sequence[NDArray[np.int64]]) -> int:
    """Replace, in place, the run-time ranges of the graph `int8` by those that `samples` have in the graph `fp32`.

    samples: token ids (1, length), each run alone. Returns how many tensors have a fixed range now; a tensor that the
    fp32 graph does not name keeps its run-time range.
    """
    import onnx
    from onnx import helper

    model = onnx.load(str(int8))
    dynamic = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"]
    ranges = measure_ranges(fp32, [node.input[0] for node in dynamic], samples=samples)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "DynamicQuantizeLinear" or node.input[0] not in ranges:
            nodes.append(node)
            continue
        scale, zero = _affine(ranges[node.input[0]])
        quantized, scale_name, zero_name = node.output
        # the consumers keep reading scale and zero point by the names that the dynamic node gave them
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, scale_name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(zero, zero_name))
        nodes.append(helper.make_node("QuantizeLinear", [node.input[0], scale_name, zero_name], [quantized]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(int8))
    return len(ranges)


def measure_ranges(fp32: Path, tensors: Iterable[str], *, samples: Sequence[NDArray[np.int64]]) -> dict[str, Range]:
    """The least and the greatest value of each tensor over all samples, for those that the graph has."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    model = onnx.load(str(fp32))
    made = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys(tensors) if name in made]
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted if name not in present
    )
    watched = fp32.with_name("watched.onnx")
    onnx.save(model, str(watched), save_as_external_data=fp32.stat().st_size > 1 << 30)
    session = ort.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}
    low, high = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0)  # zero stays exact, so it is in every range
    for ids in samples:
        for name, values in zip(wanted, session.run(wanted, _feed(ids, inputs)), strict=True):
            low[name], high[name] = min(low[name], float(values.min())), max(high[name], float(values.max()))
    return {name: (low[name], high[name]) for name in wanted if high[name] > low[name]}


def _feed(ids: NDArray[np.int64], inputs: set[str]) -> Mapping[str, Any]:
    zeros = np.zeros_like(ids)
    known = {"input_ids": ids, "attention_mask": zeros + 1, "token_type_ids": zeros}
    known["position_ids"] = np.arange(ids.shape[1], dtype=np.int64)[None, :]
    return {name: values for name, values in known.items() if name in inputs}


def _affine(ends: Range) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scale and zero point of 8 bits without sign, as DynamicQuantizeLinear computes them from a range."""
    scale = np.float32((ends[1] - ends[0]) / 255.0)
    return np.array(scale, dtype=np.float32), np.array(np.clip(round(-ends[0] / scale), 0, 255), dtype=np.uint8)
