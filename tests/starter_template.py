"""The template of the starter's int8 graph, made of an export through torch.

    PYTHONPATH=. python tests/starter_template.py

exports the starter through torch and writes xqg_vdb/data/starter.npz; only a new graph or new parity texts need it.
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from xqg_vdb.export.starter_encoder import tensor_names

PRODUCT = re.compile(r"/model/encoder/layer\.(\d+)/(attention/output/dense|intermediate/dense|output/dense)/MatMul")
PRODUCTS = {"attention/output/dense": "ao", "intermediate/dense": "fi", "output/dense": "fo"}


def sources(graph: onnx.GraphProto, header: dict[str, int]) -> dict[str, str]:
    """The names in the weight file, of every weight of the int8 graph without `_quantized`."""
    found = {f"model.{name}": stored_as for name, stored_as, _ in tensor_names(header)}
    for node in graph.node:
        if match := PRODUCT.match(node.output[0]):
            if node.op_type in ("MatMul", "MatMulInteger"):
                found[node.input[1].removesuffix("_quantized")] = f"l{match[1]}.{PRODUCTS[match[2]]}.w"
        elif node.op_type == "QAttention":
            layer = re.search(r"Attention_(\d+)_qkv", node.input[1])[1]
            for end, suffix in (("weight", "w"), ("bias", "b")):
                found[f"Attention_{layer}_qkv_{end}"] = " ".join(f"l{layer}.{part}.{suffix}" for part in "qkv")
    return found


def emptied(model: onnx.ModelProto, header: dict[str, int]) -> bytes:
    """The model without weights; each says in `doc_string` what it is made of."""
    known = sources(model.graph, header)
    known |= {f"{stem}.few": stored_as for stem, stored_as in known.items()}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in tensors.items():
        stem = name.removesuffix("_quantized")
        if stem not in known:
            continue
        companions = [tensors[stem + end] for end in ("_scale", "_zero_point")] if name != stem else []
        for one in (tensor, *companions):
            for field in ("raw_data", "float_data", "int32_data"):
                one.ClearField(field)
        tensor.doc_string = known[stem]
    return model.SerializeToString(deterministic=True)


def main() -> None:
    from xqg_vdb.export.checkpoints import conventions, fetch_checkpoint
    from xqg_vdb.export.encoder import _write_graphs
    from xqg_vdb.export.gate import torch_vectors
    from xqg_vdb.export.starter_encoder import TEMPLATE, locate_weights, read_weights

    with tempfile.TemporaryDirectory() as scratch:
        source = fetch_checkpoint("starter:encoder", into=Path(scratch) / "checkpoint")
        spec, _ = conventions(source)
        folder = Path(sys.argv[1]) if sys.argv[1:] else Path(scratch) / "model"
        if not sys.argv[1:]:
            folder.mkdir()
            _write_graphs(source, folder, spec, precision="int8", say=print)
        graph = emptied(onnx.load(str(folder / "model.onnx")), read_weights(locate_weights()).header)
        rows = np.concatenate(torch_vectors(source, spec))
    rows = np.rint(rows / np.abs(rows).max(axis=1, keepdims=True) * 127).astype(np.int8)
    np.savez_compressed(TEMPLATE, graph=np.frombuffer(graph, np.uint8), rows=rows)
    print(TEMPLATE, TEMPLATE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
