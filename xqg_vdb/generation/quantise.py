"""Block-wise 8-bit weights for generator graphs: `MatMulNBits` (32 weights share a scale), activations stay float32.

Plain dynamic int8 (one scale per tensor, activations too) turns Gemma 270M into noise; one scale per 32 weights does
not. An embedding table that is tied to the output layer keeps one copy, which the lookup reads from the same blocks.

In: an ONNX file. Out: another one. This file knows nothing about text; whether the result may be used is `gate`'s
business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
ZERO = 128  # an 8-bit weight is (byte - 128) * scale
SMALLEST = 4096  # tensors with fewer weights are left alone


def pack(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks (rows, columns / 32, 32) uint8 and scales (rows, columns / 32) float32 of a matrix (rows, columns).

    The scale of a block is its largest absolute value / 127. Raises ValueError when columns is not a multiple of 32.
    """
    rows, columns = weights.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns do not divide into blocks of {BLOCK}")
    blocks = weights.reshape(rows, columns // BLOCK, BLOCK)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    steps = np.rint(blocks / np.maximum(scales, np.float32(1e-30))[:, :, None])
    return (steps + ZERO).astype(np.uint8), scales.astype(np.float32)


def unpack(blocks: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix that `pack` stored."""
    return ((blocks.astype(np.float32) - ZERO) * scales[:, :, None]).reshape(blocks.shape[0], -1)


def quantise_graph(source: Path, target: Path, *, accuracy_level: int = 4) -> int:
    """Write `source` to `target` with 8-bit weights; returns how many weight matrices were converted.

    accuracy_level: of `MatMulNBits`; 4 lets onnxruntime round activations to 8 bits per block of 32 inside the product
        (about twice as fast), 0 keeps them float32.
    """
    import onnx

    model = onnx.load(str(source))
    converter = _Converter(model, accuracy_level)
    converter.convert()
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    save_graph(model, target)
    return len(converter.packed)


def save_graph(model: Any, target: Path) -> None:
    """Write an ONNX model, with its weights in `<name>.data` beside it when they do not fit into one protobuf."""
    import onnx

    data = target.with_name(target.name + ".data")
    data.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    if model.ByteSize() < 1_900_000_000:
        onnx.save_model(model, str(target))
    else:
        onnx.save_model(model, str(target), save_as_external_data=True, location=data.name, size_threshold=1024)


class _Converter:
    """One pass over a graph; `packed` maps the name of a converted weight to the stem of its new tensors."""

    def __init__(self, model: Any, accuracy_level: int) -> None:
        self.graph, self.accuracy_level = model.graph, accuracy_level
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.turned = {
            node.output[0]: node.input[0]
            for node in self.graph.node
            if node.op_type == "Transpose" and node.input[0] in self.weights
        }
        self.packed: dict[str, str] = {}

    def convert(self) -> None:
        """Rewrite every product with a weight, then every lookup in a table that was packed on the way."""
        nodes = [self._product(node) for node in self.graph.node]
        nodes = [new for node in nodes for new in self._lookup(node)]
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in used]
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _product(self, node: Any) -> Any:
        import onnx

        if node.op_type != "MatMul":
            return node
        name = self.turned.get(node.input[1], node.input[1])
        tensor = self.weights.get(name)
        if tensor is None or len(tensor.dims) != 2 or int(np.prod(tensor.dims)) < SMALLEST:
            return node
        rows_first = node.input[1] in self.turned  # (out, in), as torch stores a Linear
        columns = tensor.dims[1] if rows_first else tensor.dims[0]
        if columns % BLOCK:
            return node
        stem = self._pack(name, rows_first=rows_first)
        return onnx.helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{stem}.blocks", f"{stem}.scales"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=columns,
            N=tensor.dims[0] if rows_first else tensor.dims[1],
            bits=8,
            block_size=BLOCK,
            accuracy_level=self.accuracy_level,
        )

    def _pack(self, name: str, *, rows_first: bool) -> str:
        from onnx import numpy_helper

        if name not in self.packed:
            matrix = numpy_helper.to_array(self.weights[name]).astype(np.float32, copy=False)
            blocks, scales = pack(np.ascontiguousarray(matrix if rows_first else matrix.T))
            self.packed[name] = name
            self.graph.initializer.append(numpy_helper.from_array(blocks, f"{name}.blocks"))
            self.graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
        return self.packed[name]

    def _lookup(self, node: Any) -> list[Any]:
        import onnx
        from onnx import numpy_helper

        if node.op_type != "Gather" or node.input[0] not in self.packed:
            return [node]
        stem, ids, out = self.packed[node.input[0]], node.input[1], node.output[0]
        width = self.weights[node.input[0]].dims[1]
        for name, value in (
            ("zero", np.array(ZERO, np.float32)),
            ("axis", np.array([-1])),
            ("shape", np.array([0, 0, width])),
        ):
            if f"{out}.{name}" not in {tensor.name for tensor in self.graph.initializer}:
                self.graph.initializer.append(numpy_helper.from_array(value, f"{out}.{name}"))
        make = onnx.helper.make_node
        return [
            make("Gather", [f"{stem}.blocks", ids], [f"{out}.bytes"]),
            make("Gather", [f"{stem}.scales", ids], [f"{out}.scale"]),
            make("Cast", [f"{out}.bytes"], [f"{out}.float"], to=onnx.TensorProto.FLOAT),
            make("Sub", [f"{out}.float", f"{out}.zero"], [f"{out}.steps"]),
            make("Unsqueeze", [f"{out}.scale", f"{out}.axis"], [f"{out}.scale3"]),
            make("Mul", [f"{out}.steps", f"{out}.scale3"], [f"{out}.blocks4"]),
            make("Reshape", [f"{out}.blocks4", f"{out}.shape"], [out]),
        ]
