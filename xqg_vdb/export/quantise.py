"""Surgery: 8-bit weights for generators, 8-bit products for encoders, outputs in our order, tokenizers that compose.

A generator keeps float32 activations, and 32 of its weights share a scale (`MatMulNBits`): plain dynamic int8 turns
Gemma 270M into noise. An encoder's activations have 8 bits too, in fixed ranges. Whether the result may be used is
for `gate.py` to say.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.models.engine import cpu_has_vnni, open_session, runtime

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
        self.graph.initializer.append(numpy_helper.from_array(blocks, f"{name}.blocks"))
        self.graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))

    def _lookup(self, node: Any) -> list[Any]:
        import onnx
        from onnx import numpy_helper

        if node.op_type != "Gather" or node.input[0] not in self.packed:
            return [node]
        stem, ids, out = node.input[0], node.input[1], node.output[0]
        shape = np.array([0, 0, self.weights[stem].dims[1]])
        for name, value in (("zero", np.array(ZERO, np.float32)), ("axis", np.array([-1])), ("shape", shape)):
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


# Fixed ranges for 8-bit activations: a text's vector then depends on that text alone.

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Whatever of these an encoder's graph takes."""


@dataclass(frozen=True)
class _Range:
    """What samples gave for a tensor, by channel: least value, greatest (0 is in between), mean square."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    square: NDArray[np.float64]

    def without(self, channels: NDArray[np.int64]) -> _Range:
        """Of the other channels."""
        rest = np.delete(np.arange(len(self.low)), channels)
        return _Range(self.low[rest], self.high[rest], self.square[rest])

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Scale and zero point of 8 bits without sign, as DynamicQuantizeLinear computes them from a range."""
        low, high = float(self.low.min()), float(self.high.max())
        scale = np.float32((high - low) / 255.0)
        return np.array(scale, dtype=np.float32), np.array(np.clip(round(-low / scale), 0, 255), dtype=np.uint8)

    def noise(self, rest: _Range) -> float:
        """What rounding to 8 bits adds to the channels of `rest`, as a share of their values (root mean squares)."""
        return float(self.affine()[0] / np.sqrt(12 * rest.square.mean()))


def fix_ranges(graph: Path, ranges: Mapping[str, _Range]) -> None:
    """Replace, in place, the run-time ranges of an int8 graph by `ranges`; a tensor that is not there keeps its own."""
    import onnx
    from onnx import helper

    model = onnx.load(str(graph))
    for node in model.graph.node:
        if node.op_type != "DynamicQuantizeLinear" or node.input[0] not in ranges:
            continue
        quantized, scale_name, zero_name = node.output
        # the consumers keep reading scale and zero point by the names that the dynamic node gave them
        for value, name in zip(ranges[node.input[0]].affine(), (scale_name, zero_name), strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        node.CopyFrom(helper.make_node("QuantizeLinear", [node.input[0], scale_name, zero_name], [quantized]))
    onnx.save(model, str(graph))


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
            square = np.square(rows, dtype=np.float64).sum(axis=0) / tokens
            if name in found:
                before = found[name]
                low, high = np.minimum(low, before.low), np.maximum(high, before.high)
                square += before.square
            found[name] = _Range(low, high, square)
    return {name: given for name, given in found.items() if given.high.max() > given.low.min()}


# An encoder's graph, fused and in 8 bits.


def quantize_int8(
    fp32: Path, int8: Path, *, num_heads: int, hidden: int, samples: Sequence[NDArray[np.int64]], fuse: bool
) -> None:
    """Write `int8`, a quantised copy of the graph `fp32`: 8-bit weights per channel, 8-bit activations.

    samples: token ids (1, length) of sample texts, from which the activations' ranges are taken.
    fuse: attention and embeddings are fused first, which makes the int8 graph faster, not other; onnxruntime knows the
    pattern of traced BERTs only, and takes others' embeddings for theirs. Without VNNI, AVX2's 8-bit multiply adds
    pairs in saturating 16 bits, so weights keep 7 bits there.
    """
    try:
        import onnx

        runtime()
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model
    except ImportError as error:
        raise MissingExtra(f'int8 export needs {error.name}: pip install "xqg-vdb[export]".') from error
    with _quiet_root_logger(), tempfile.TemporaryDirectory(dir=int8.parent.parent) as scratch:
        ready = Path(scratch) / "ready.onnx"
        if fuse:
            model = optimize_model(
                str(fp32), model_type="bert", num_heads=num_heads, hidden_size=hidden, opt_level=0,
                optimization_options=FusionOptions("bert"),
            )  # fmt: skip
            model.save_model_to_file(str(ready), use_external_data_format=fp32.stat().st_size > 1 << 30)
        ranges = measure_ranges(ready if fuse else fp32, samples=samples)
        graph = onnx.load(str(ready if fuse else fp32))
        float32 = split_products(graph.graph, ranges)
        by_instance(graph.graph)
        save_graph(graph, ready)
        quantize_dynamic(
            str(ready),
            str(int8),
            per_channel=True,
            reduce_range=not cpu_has_vnni(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float32,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        fix_ranges(int8, ranges)


ASIDE = 4  # channels
NOISY, TOO_NOISY = 0.035, 0.05  # `_Range.noise`


def split_products(graph: Any, ranges: dict[str, _Range]) -> list[str]:
    """Take the `ASIDE` largest channels of noisy inputs into products of their own, in place, in `ranges` too.

    One channel of a layer's input is often so large (65 where the others end at 5, for E5-small) that one 8-bit scale
    for all drowns the rest. The 8-bit product clips it and has zeros for its weights. Returns the names of what stays
    float32: the small products, and those whose inputs are too noisy even so.
    """
    weights = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 2}
    readers = Counter(name for node in graph.node for name in node.input)
    products: dict[str, list[Any]] = {}
    fused, float32, added = set(), [], {}
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in weights:
            continue
        if node.op_type == "MatMul":
            products.setdefault(node.input[0], []).append(node)
        else:
            fused.add(node.input[0])
    for name, nodes in products.items():
        given = ranges.get(name)
        if given is None:
            continue
        largest = np.sort(np.argsort(np.maximum(-given.low, given.high), kind="stable")[-ASIDE:])
        rest = given.without(largest)
        if (noise := given.noise(rest)) <= NOISY:
            continue
        if rest.noise(rest) <= TOO_NOISY and name not in fused and all(readers[node.input[1]] == 1 for node in nodes):
            ranges[name] = rest
            for node in nodes:
                added[node.name] = _split(graph, node, weights[node.input[1]], largest)
                float32 += [new.name for new in added[node.name]]
        elif noise > TOO_NOISY:
            float32 += [node.name for node in nodes]
    nodes = [new for node in graph.node for new in (node, *added.get(node.name, ()))]
    del graph.node[:]
    graph.node.extend(nodes)
    return float32


def _split(graph: Any, node: Any, weight: Any, channels: NDArray[np.int64]) -> list[Any]:
    """The nodes that add what these channels of its input give to what the product gives without them."""
    from onnx import helper, numpy_helper

    matrix, out = numpy_helper.to_array(weight).copy(), node.output[0]
    few, places = f"{weight.name}.few", f"{weight.name}.channels"
    graph.initializer.append(numpy_helper.from_array(matrix[channels], few))
    graph.initializer.append(numpy_helper.from_array(channels, places))
    matrix[channels] = 0
    weight.CopyFrom(numpy_helper.from_array(matrix, weight.name))
    node.output[0] = f"{out}.many"
    return [
        helper.make_node("Gather", [node.input[0], places], [f"{out}.inputs"], f"{node.name}.gather", axis=-1),
        helper.make_node("MatMul", [f"{out}.inputs", few], [f"{out}.few"], f"{node.name}.few"),
        helper.make_node("Add", [f"{out}.many", f"{out}.few"], [out], f"{node.name}.add"),
    ]


def by_instance(graph: Any) -> None:
    """Let `InstanceNormalization` do what layer normalisation does, in place: it is vectorised, the other is not.

    Each token's row (n, 1, width) is an instance with one channel; weight and bias follow as products and sums of rows.
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        facts = {fact.name: helper.get_attribute_value(fact) for fact in node.attribute}
        skips = node.op_type == "SkipLayerNormalization"
        given = [*node.input, "", "", ""]
        addends, (scale, bias) = ([given[4], given[1]], given[2:4]) if skips else ([], given[1:3])
        usual = skips or (node.op_type == "LayerNormalization" and facts.get("axis", -1) == -1)
        if not usual or scale not in weights or len(weights[scale].dims) != 1 or any(node.output[1:]):
            nodes.append(node)
            continue
        rows, out = node.input[0], node.output[0]
        for at, addend in enumerate(filter(None, addends)):
            nodes.append(helper.make_node("Add", [rows, addend], [f"{out}.sum{at}"]))
            rows = nodes[-1].output[0]
        shape = numpy_helper.from_array(np.array([-1, 1, weights[scale].dims[0]]), f"{out}.rows")
        ends = [numpy_helper.from_array(np.full(1, value, np.float32), f"{out}.{value}") for value in (1, 0)]
        graph.initializer.extend([shape, *ends])
        made = [f"{out}.flat", f"{out}.normal", f"{out}.shape", f"{out}.folded", f"{out}.scaled" if bias else out]
        epsilon = facts.get("epsilon", 1e-12 if skips else 1e-5)
        nodes += [
            helper.make_node("Reshape", [rows, shape.name], made[:1]),
            helper.make_node(
                "InstanceNormalization", [made[0], *(end.name for end in ends)], made[1:2], epsilon=epsilon
            ),
            helper.make_node("Shape", [rows], made[2:3]),
            helper.make_node("Reshape", made[1:3], made[3:4]),
            helper.make_node("Mul", [made[3], scale], made[4:]),
            *([helper.make_node("Add", [made[4], bias], [out])] if bias else []),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Silence warnings: onnxruntime's quantiser gives advice on the root logger that does not apply here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def tokens_first(graph: Path) -> None:
    """Let a publisher's graph give its vectors of tokens first, in place.

    Raises ModelError where it has none, or wants an input that nobody can give.
    """
    session = open_session(graph, threads=1)
    unknown = sorted({node.name for node in session.get_inputs()} - set(INPUTS))
    if unknown:
        raise ModelError(f"The checkpoint's own graph wants {', '.join(unknown)}: delete its onnx folder.")
    outputs = session.get_outputs()
    tokens = [node.name for node in outputs if node.type == "tensor(float)" and len(node.shape) == 3]
    if not tokens:
        raise ModelError("The checkpoint's own graph gives no vectors of tokens: delete its onnx folder.")
    if outputs[0].name == tokens[0]:
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
    first = [{"type": "Lowercase"}] if lower else []
    record["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, *first, *steps]}
    target.write_bytes(orjson.dumps(record))
