"""Surgery: 8-bit weights for generators, 8-bit products for encoders, outputs in our order, tokenizers that compose.

A generator keeps float32 activations, and 32 of its weights share a scale (`MatMulNBits`): plain dynamic int8 turns
Gemma 270M into noise. An encoder's activations have 8 bits too, in fixed ranges. Whether the result may be used is
for `gate.py` to say.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.models.engine import cpu_has_vnni, open_session

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


def quantise_graph(source: Path, target: Path) -> None:
    """Write `source` to `target` with 8-bit weights."""
    import onnx

    model = onnx.load(str(source))
    _Converter(model.graph).convert()
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    save_graph(model, target)


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
    """One pass over a graph; `packed` has the names of the weights that were converted.

    An embedding table that is tied to the output layer keeps one copy, which the lookup reads from the same blocks.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.turned = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Transpose" and node.input[0] in self.weights
        }
        self.packed: set[str] = set()

    def convert(self) -> None:
        """Rewrite every product with a weight, then every lookup in a table that was packed on the way or is large."""
        nodes = [self._product(node) for node in self.graph.node]
        nodes = [new for node in nodes for new in self._lookup(node)]
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in used]
        _put(self.graph, nodes)

    def _product(self, node: Any) -> Any:
        import onnx

        # the output layer is a Gemm with the weights as they are, (out, in), and without a bias
        gemm = (
            node.op_type == "Gemm" and len(node.input) == 2 and any(a.name == "transB" and a.i for a in node.attribute)
        )
        if node.op_type != "MatMul" and not gemm:
            return node
        name = self.turned.get(node.input[1], node.input[1])
        tensor = self.weights.get(name)
        if tensor is None or len(tensor.dims) != 2 or int(np.prod(tensor.dims)) < SMALLEST:
            return node
        rows_first = gemm or node.input[1] in self.turned  # (out, in), as torch stores a Linear
        columns = tensor.dims[1] if rows_first else tensor.dims[0]
        if columns % BLOCK:
            return node
        self._pack(name, rows_first=rows_first)
        # accuracy_level 4: activations are rounded to 8 bits per block of 32 inside the product, about twice as fast
        return onnx.helper.make_node(
            "MatMulNBits", [node.input[0], f"{name}.blocks", f"{name}.scales"], list(node.output), name=node.name,
            domain="com.microsoft", K=columns, N=tensor.dims[0] if rows_first else tensor.dims[1], bits=8,
            block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip

    def _pack(self, name: str, *, rows_first: bool) -> None:
        from onnx import numpy_helper

        if name in self.packed:
            return
        self.packed.add(name)
        matrix = numpy_helper.to_array(self.weights[name]).astype(np.float32, copy=False)
        blocks, scales = pack(np.ascontiguousarray(matrix if rows_first else matrix.T))
        _keep(self.graph, f"{name}.blocks", blocks)
        _keep(self.graph, f"{name}.scales", scales)

    def _lookup(self, node: Any) -> list[Any]:
        import onnx
        from onnx import numpy_helper

        table = self.weights.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[1] % BLOCK:
            return [node]
        stem, ids, out = table.name, node.input[1], node.output[0]
        if stem not in self.packed and table.dims[0] < SMALLEST:
            return [node]
        self._pack(stem, rows_first=True)
        dim = np.array([table.dims[1]])
        for name, value in (("zero", np.array(ZERO, np.float32)), ("axis", np.array([-1])), ("dim", dim)):
            self.graph.initializer.append(numpy_helper.from_array(value, f"{out}.{name}"))
        make = onnx.helper.make_node
        return [
            make("Shape", [ids], [f"{out}.ids"]),
            make("Concat", [f"{out}.ids", f"{out}.dim"], [f"{out}.shape"], axis=0),
            make("Gather", [f"{stem}.blocks", ids], [f"{out}.bytes"]),
            make("Gather", [f"{stem}.scales", ids], [f"{out}.scale"]),
            make("Cast", [f"{out}.bytes"], [f"{out}.float"], to=onnx.TensorProto.FLOAT),
            make("Sub", [f"{out}.float", f"{out}.zero"], [f"{out}.steps"]),
            make("Unsqueeze", [f"{out}.scale", f"{out}.axis"], [f"{out}.scale3"]),
            make("Mul", [f"{out}.steps", f"{out}.scale3"], [f"{out}.blocks4"]),
            make("Reshape", [f"{out}.blocks4", f"{out}.shape"], [out]),
        ]


# An encoder's products in 8 bits, as standard operators around them (QDQ) that every engine knows.

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Whatever of these an encoder's graph takes."""

TOO_NOISY = 0.05
"""A product that 8 bits change by more than this share of its spread stays float32."""


def quantize_int8(fp32: Path, int8: Path, *, samples: Sequence[NDArray[np.int64]]) -> None:
    """Write `int8`, a copy of the graph `fp32`: 8-bit weights by column, 8-bit inputs in fixed ranges.

    samples: token ids (1, length) of sample texts, from which the ranges are taken; a text's vector then depends on
    that text alone. Without VNNI, AVX2's 8-bit multiply adds pairs in saturating 16 bits, so weights keep 7 bits there.
    Raises MissingExtra.
    """
    try:
        import onnx
        from onnx.version_converter import convert_version
    except ImportError as error:
        raise MissingExtra(f'int8 export needs {error.name}: pip install "xqg-vdb[export]".') from error
    model = onnx.load(str(fp32))
    if next(opset.version for opset in model.opset_import if not opset.domain) < OLDEST_OPSET:
        model = convert_version(model, OLDEST_OPSET)
    quantise_products(model.graph, measure_ranges(fp32, samples=samples), seven_bits=not cpu_has_vnni())
    by_instance(model.graph)
    save_graph(model, int8)


OLDEST_OPSET = 13  # scales by column


@dataclass(frozen=True)
class _Range:
    """What samples gave for a tensor, by channel: least value, greatest (0 is in between), mean, mean square."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]

    def affine(self, even: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Scale and zero point of 8 bits without sign, for the channels times `even`."""
        low, high = float((self.low * even).min()), float((self.high * even).max())
        scale = np.float32((high - low) / 255.0)
        return np.array(scale, dtype=np.float32), np.array(np.clip(round(-low / scale), 0, 255), dtype=np.uint8)

    def noise(self, weights: NDArray[np.float32], even: NDArray[np.float32], levels: int) -> float:
        """What 8 bits add to the product of the channels times `even` and `weights` / `even`, as a share of its spread.

        Rounding to steps of d adds d²/12; channels, their rounding and that of weights are taken for independent.
        """
        uneven = weights / even[:, None]
        steps = np.abs(uneven).max(axis=0) / levels
        of_inputs = float(self.affine(even)[0]) ** 2 * float(np.square(uneven).sum())
        of_weights = float(np.square(steps).sum()) * float((self.square * even**2).sum())
        spread = float(np.square(weights).sum(axis=1) @ (self.square - self.mean**2))
        return float(np.sqrt((of_inputs + of_weights) / 12 / spread)) if spread > 0 else 0.0

    def evened(self, weights: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
        """By what to multiply each channel so that 8 bits add least noise: loud ones are turned down.

        One channel of a layer's input is often so large (65 where the others end at 5, for E5-small) that one scale for
        all drowns the rest. Its weights grow by as much, and coarsen all others of their column: so the search.
        """
        largest = np.maximum(-self.low, self.high)
        ranked = np.sort(largest)[::-1]
        tried = [np.ones_like(largest)]
        for place in 2 ** np.arange(int(np.log2(max(1, len(ranked) // 8))) + 1):
            with np.errstate(divide="ignore"):
                tried += [np.minimum(1, ranked[place] / largest) ** np.float32(power) for power in (0.5, 0.75, 1)]
        return min((even for even in tried if even.all()), key=lambda even: self.noise(weights, even, levels))


def measure_ranges(fp32: Path, *, samples: Sequence[NDArray[np.int64]]) -> dict[str, _Range]:
    """The range of each input of a product with weights, over `samples`: token ids (1, length), each run alone."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(fp32))
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    made = {name for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if len(node.input) > 1 and node.input[1] in weights]
    wanted = [name for name in dict.fromkeys(node.input[0] for node in products) if name in made]
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted if name not in present
    )
    watched = fp32.with_name("watched.onnx")
    save_graph(model, watched)
    session = open_session(watched, threads=0)
    inputs = {node.name for node in session.get_inputs()}
    found: dict[str, _Range] = {}
    tokens = sum(ids.size for ids in samples)
    for ids in samples:
        zeros = np.zeros_like(ids)
        known = dict(zip(INPUTS, (ids, zeros + 1, zeros, np.arange(ids.shape[1])[None, :]), strict=True))
        feeds = {name: values for name, values in known.items() if name in inputs}
        for name, values in zip(wanted, session.run(wanted, feeds), strict=True):
            rows = values.reshape(-1, values.shape[-1])
            low, high = rows.min(axis=0, initial=0.0), rows.max(axis=0, initial=0.0)  # zero stays exact
            mean, square = (np.power(rows, n, dtype=np.float64).sum(axis=0) / tokens for n in (1, 2))
            if name in found:
                before = found[name]
                low, high = np.minimum(low, before.low), np.maximum(high, before.high)
                mean, square = mean + before.mean, square + before.square
            found[name] = _Range(low, high, mean, square)
    return {name: given for name, given in found.items() if given.high.max() > given.low.min()}


def quantise_products(graph: Any, ranges: Mapping[str, _Range], *, seven_bits: bool) -> None:
    """Give products of what is in `ranges` 8-bit inputs and weights, and tables of words 8 bits, in place.

    Loud channels are turned down before, and their weights up (SmoothQuant, Xiao et al. 2023).
    """
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    uses = Counter(name for node in graph.node for name in node.input)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and node.input[0] in ranges:
            readers.setdefault(node.input[0], []).append(node)
    before: dict[str, list[Any]] = {}
    for name, nodes in readers.items():
        own = all(uses[node.input[1]] == 1 for node in nodes)  # a layer that is used again has one set of weights
        before |= _eight_bits(graph, ranges[name], nodes, weights, even=own, seven_bits=seven_bits)
    nodes = []
    for node in graph.node:
        nodes += [*before.get(node.output[0], ()), node]
        if node.op_type == "Gather" and node.input[0] in weights and weights[node.input[0]].dims[0] >= SMALLEST:
            nodes.append(_table(graph, node, weights[node.input[0]], seven_bits=seven_bits))
    _put(graph, nodes)


def _put(graph: Any, nodes: Sequence[Any]) -> None:
    """Let the graph consist of `nodes`, and of the weights that they use."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _eight_bits(
    graph: Any, given: _Range, products: Sequence[Any], weights: Mapping[str, Any], *, even: bool, seven_bits: bool
) -> dict[str, list[Any]]:
    """The nodes to put before each of the products of one input, by the product's output; none where it is too noisy.

    even: loud channels are turned down.
    """
    from onnx import helper, numpy_helper

    name, levels = products[0].input[0], 63 if seven_bits else 127
    matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in products]
    together = np.concatenate(matrices, axis=1)
    by = given.evened(together, levels) if even else np.ones_like(given.low)
    if given.noise(together, by, levels) > TOO_NOISY:
        return {}
    first, source = [], name
    if not (by == 1).all():
        source = f"{name}.evened"
        first.append(helper.make_node("Mul", [name, _keep(graph, f"{name}.even", by)], [source]))
    ends = [_keep(graph, f"{name}.{end}", part) for end, part in zip(ENDS[1:], given.affine(by), strict=True)]
    first.append(helper.make_node("QuantizeLinear", [source, *ends], [f"{name}.8"]))
    first.append(helper.make_node("DequantizeLinear", [f"{name}.8", *ends], [f"{name}.rounded"]))
    before = {}
    for node, matrix in zip(products, matrices, strict=True):
        out, parts = node.output[0], per_column(matrix / by[:, None], seven_bits=seven_bits)
        stored = [_keep(graph, f"{out}.{end}", part) for end, part in zip(ENDS, parts, strict=True)]
        before[out] = [*first, helper.make_node("DequantizeLinear", stored, [f"{out}.weight"], axis=1)]
        node.input[:], first = [f"{name}.rounded", f"{out}.weight"], []
    return before


ENDS = ("8", "scale", "zero")
"""What the tensors of 8-bit values are called, after what they are the values of."""


def _table(graph: Any, lookup: Any, table: Any, *, seven_bits: bool) -> Any:
    """The node that makes numbers of what the lookup, changed in place, finds in the table of 8 bits."""
    from onnx import helper, numpy_helper

    out, parts = lookup.output[0], per_tensor(numpy_helper.to_array(table), seven_bits=seven_bits)
    stored = [_keep(graph, f"{out}.{end}", part) for end, part in zip(ENDS, parts, strict=True)]
    lookup.input[0], lookup.output[0] = stored[0], f"{out}.levels"
    return helper.make_node("DequantizeLinear", [f"{out}.levels", *stored[1:]], [out])


def _keep(graph: Any, name: str, values: NDArray[Any]) -> str:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def per_column(values: NDArray[np.float32], *, seven_bits: bool) -> tuple[NDArray[Any], ...]:
    """A matrix in signed levels with a scale for each column, and the zero points (all 0)."""
    largest = np.abs(values).max(axis=0).astype(np.float64)
    scale = np.where(largest > 0, 2 * largest / (128 if seven_bits else 254), 1.0).astype(np.float32)
    levels = np.rint(values / scale).clip(-128, 127).astype(np.int8)
    return levels, scale, np.zeros(len(scale), np.int8)


def per_tensor(values: NDArray[np.float32], *, seven_bits: bool) -> tuple[NDArray[Any], ...]:
    """A table in unsigned levels with one scale and one zero point."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    wide = (np.float64(high) - np.float64(low)) / (127 if seven_bits else 255)
    scale, zero = np.asarray(wide, np.float32), np.rint(-low / wide)
    levels = values / scale  # in place from here: the table of words has 96 million values
    np.rint(levels, out=levels)
    levels += np.float32(zero)
    levels.clip(0, 255, out=levels)
    return levels.astype(np.uint8), scale, np.asarray(zero, np.uint8)


def by_instance(graph: Any) -> None:
    """Let `InstanceNormalization` do what layer normalisation does, in place: onnxruntime vectorises it.

    Each token's row (n, 1, width) is an instance with one channel; weight and bias follow as products and sums of rows.
    """
    from onnx import helper

    weights = {weight.name: weight for weight in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        facts = {fact.name: helper.get_attribute_value(fact) for fact in node.attribute}
        rows, scale, bias = [*node.input, "", "", ""][:3]
        usual = node.op_type == "LayerNormalization" and facts.get("axis", -1) == -1 and not any(node.output[1:])
        if not usual or scale not in weights or len(weights[scale].dims) != 1:
            nodes.append(node)
            continue
        out = node.output[0]
        shape = _keep(graph, f"{out}.rows", np.array([-1, 1, weights[scale].dims[0]]))
        ends = [_keep(graph, f"{out}.{value}", np.full(1, value, np.float32)) for value in (1, 0)]
        made = [f"{out}.flat", f"{out}.normal", f"{out}.shape", f"{out}.folded", f"{out}.scaled" if bias else out]
        nodes += [
            helper.make_node("Reshape", [rows, shape], made[:1]),
            helper.make_node("InstanceNormalization", [made[0], *ends], made[1:2], epsilon=facts.get("epsilon", 1e-5)),
            helper.make_node("Shape", [rows], made[2:3]),
            helper.make_node("Reshape", made[1:3], made[3:4]),
            helper.make_node("Mul", [made[3], scale], made[4:]),
            *([helper.make_node("Add", [made[4], bias], [out])] if bias else []),
        ]
    _put(graph, nodes)


def tokens_first(graph: Path) -> None:
    """Let a publisher's graph give its vectors of tokens first, in place. Raises ModelError where that cannot be."""
    session = open_session(graph, threads=1)
    inputs, outputs = ({node.name: node for node in nodes} for nodes in (session.get_inputs(), session.get_outputs()))
    wrong = [f"{n.name} ({n.type}, {n.shape})" for n in inputs.values() if n.name not in INPUTS or "int64" not in n.type
             or any(isinstance(size, int) for size in n.shape)]  # fmt: skip
    wrong += [] if "attention_mask" in inputs else ["no attention_mask"]
    if wrong:
        raise ModelError(f"The checkpoint's own graph wants {', '.join(wrong)}: delete its onnx folder.")
    tokens = [node.name for node in outputs.values() if node.type == "tensor(float)" and len(node.shape) == 3]
    if not tokens:
        gives = ", ".join(f"{node.name} ({node.type})" for node in outputs.values())
        raise ModelError(f"The checkpoint's own graph gives {gives}, no vectors of tokens: delete its onnx folder.")
    if next(iter(outputs)) == tokens[0]:
        return
    import onnx

    model = onnx.load(str(graph))
    first = next(node for node in model.graph.output if node.name == tokens[0])
    del model.graph.output[:]
    model.graph.output.append(first)
    onnx.save_model(model, str(graph), save_as_external_data=graph.stat().st_size > 1 << 30)


# A tokenizer, with Unicode composition (NFC) in front.


def write_composing(source: Path, target: Path, *, lower: bool = False) -> None:
    """Write the tokenizer of `source` with NFC before its own normaliser; as it is where that begins by composing.

    lower: lower-case in front, as sentence-transformers does before tokenizing where `do_lower_case` says so.
    Raises ModelError for a file that is no tokenizer.
    """
    try:
        record = orjson.loads(source.read_bytes())
        own = record["normalizer"] or {"type": "Sequence", "normalizers": []}
        steps = own["normalizers"] if own["type"] == "Sequence" else [own]
        composes = bool(steps) and steps[0]["type"] in ("NFC", "NFKC") and not lower
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source} is not a tokenizer ({error!r}): save the checkpoint's again.") from error
    if composes:
        shutil.copyfile(source, target)
        return
    first = [{"type": "NFC"}, *([{"type": "Lowercase"}] if lower else [])]
    record["normalizer"] = {"type": "Sequence", "normalizers": first + steps}
    target.write_bytes(orjson.dumps(record))
