"""Surgery on exported graphs: fusing, int8 quantisation, a projection after pooling. Needs onnx (extra `export`)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.static_ranges import fix_ranges

_ACTIVATIONS = {"Tanh": "Tanh", "Identity": None, "GELU": "Gelu"}


@cache
def cpu_has_vnni() -> bool:
    """True when the CPU multiplies 8-bit numbers without saturating 16-bit sums (VNNI, or 64-bit Arm)."""
    import platform

    if platform.machine() in ("aarch64", "arm64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def quantize_int8(
    fp32: Path, int8: Path, *, num_heads: int, hidden: int, samples: Sequence[NDArray[np.int64]] = ()
) -> None:
    """Write `int8`, a quantised copy of the graph `fp32`: 8-bit weights per channel, 8-bit activations.

    samples: token ids (1, length) of sample texts, from which the activations' ranges are taken (`static_ranges.py`);
    without any they are taken from each batch at run time.
    Attention, GELU and layer norms are fused first, which makes the int8 graph faster, not other. Without VNNI, AVX2's
    8-bit multiply adds pairs in saturating 16 bits, so weights keep 7 bits there. The feed-forward's second product
    stays fp32: a few of its inputs are so large that one 8-bit scale for all drowns the rest (for E5-small
    `export` prints a mean cosine of 0.9987 with it in fp32, 0.9962 otherwise).
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model
    except ImportError as error:
        raise MissingExtra(f'int8 export needs {error.name}: pip install "xqg-vdb[export]".') from error
    with _quiet_root_logger(), tempfile.TemporaryDirectory(dir=int8.parent.parent) as scratch:
        fused = Path(scratch) / "fused.onnx"
        model = optimize_model(
            str(fp32), model_type="bert", num_heads=num_heads, hidden_size=hidden, opt_level=0,
            optimization_options=FusionOptions("bert"),
        )  # fmt: skip
        model.save_model_to_file(str(fused), use_external_data_format=fp32.stat().st_size > 1 << 30)
        quantize_dynamic(
            str(fused),
            str(int8),
            per_channel=True,
            reduce_range=not cpu_has_vnni(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_narrowing_products(model.model),
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        if samples:
            fix_ranges(fused, int8, samples=samples)


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Silence warnings: onnxruntime's quantiser gives advice on the root logger that does not apply here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _narrowing_products(model: Any) -> list[str]:
    """Names of the products that narrow their input: the feed-forward's way back to the model's width."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2
    ]
    return [node.name for node in products if shapes[node.input[1]][0] > shapes[node.input[1]][1]]


def append_dense(graph: Path, dense: Path) -> None:
    """Append the projection of a sentence-transformers `Dense` module (LaBSE) to every token's vector, in place.

    CLS pooling commutes with any projection of single tokens; so does mean pooling with a linear one. For mean
    pooling with a non-linear activation the folder would be wrong, so that is refused. Raises ModelError.
    """
    import onnx
    import orjson
    from onnx import helper, numpy_helper
    from safetensors.numpy import load_file

    config = orjson.loads((dense / "config.json").read_bytes())
    activation = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    pooling = orjson.loads((dense.parent / "1_Pooling" / "config.json").read_bytes())
    if activation not in _ACTIVATIONS or (_ACTIVATIONS[activation] and not pooling.get("pooling_mode_cls_token")):
        raise ModelError(f"The checkpoint's Dense module ({activation} after pooling) is not supported.")
    weights = load_file(dense / "model.safetensors")
    model = onnx.load(str(graph))
    output = model.graph.output[0].name
    matrix = numpy_helper.from_array(weights["linear.weight"].T.astype("float32").copy(), "dense.weight")
    nodes = [helper.make_node("MatMul", [output, "dense.weight"], ["dense.product"])]
    model.graph.initializer.append(matrix)
    last = "dense.product"
    if "linear.bias" in weights:
        model.graph.initializer.append(numpy_helper.from_array(weights["linear.bias"].astype("float32"), "dense.bias"))
        nodes.append(helper.make_node("Add", [last, "dense.bias"], ["dense.sum"]))
        last = "dense.sum"
    if _ACTIVATIONS[activation]:
        nodes.append(helper.make_node(_ACTIVATIONS[activation], [last], ["dense.activated"]))
        last = "dense.activated"
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    shape = ["batch_size", "sequence_length", int(config["out_features"])]
    model.graph.output.append(helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, shape))
    onnx.save_model(model, str(graph), save_as_external_data=graph.stat().st_size > 1 << 30)
