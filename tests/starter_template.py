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

PRODUCT = re.compile(r"/model/encoder/layer\.(\d+)/(.*)/MatMul_output_0")
PRODUCTS = {f"attention/self/{name}": name[0] for name in ("query", "key", "value")}
PRODUCTS |= {"attention/output/dense": "ao", "intermediate/dense": "fi", "output/dense": "fo"}


def sources(graph: onnx.GraphProto, header: dict[str, int]) -> dict[str, str]:
    """The names in the weight file of every weight of the int8 graph, with what it is divided by."""
    tensors = {tensor.name for tensor in graph.initializer}
    found = {f"model.{name}": stored_as for name, stored_as, _ in tensor_names(header)}
    for node in graph.node:
        match = PRODUCT.fullmatch(node.output[0])
        if node.op_type == "MatMul" and match and match[2] in PRODUCTS:
            even = node.input[0].removesuffix(".rounded") + ".even"
            divided = f" / {even}" if even in tensors else ""
            found[f"{node.output[0]}.8"] = f"l{match[1]}.{PRODUCTS[match[2]]}.w{divided}"
        elif node.op_type == "Gather" and "word_embeddings" in node.input[0]:
            found[node.input[0]] = "emb.word"
    return found


def emptied(model: onnx.ModelProto, header: dict[str, int]) -> bytes:
    """The model without weights; each says in `doc_string` what it is made of."""
    known = sources(model.graph, header)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in tensors.keys() & known.keys():
        stem = name.removesuffix(".8")
        for one in (tensors[name], *(tensors[f"{stem}.{end}"] for end in ("scale", "zero") if name != stem)):
            one.ClearField("raw_data")
        tensors[name].doc_string = known[name]
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
