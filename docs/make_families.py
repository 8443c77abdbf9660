"""Write docs/families.md: families of encoders as minute checkpoints, exported and compared with their own software.

`python docs/make_families.py [NAME…]` wants the extra `export` with transformers 5 (some families are its alone) and
takes a minute a family. Each checkpoint has the configuration, the modules, the prompts and the files of the published
one, and random weights: what is tried is what export reads, not how good a model is.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from xqg_vdb.errors import XqgError
from xqg_vdb.export import graphs
from xqg_vdb.export.encoder import export
from xqg_vdb.export.gate import parity_texts
from xqg_vdb.models.encoder import Encoder

OUT = Path(__file__).with_name("families.md")
MARKS = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = [chr(code) for code in (*range(33, 127), *range(0x391, 0x3CA), *range(0x410, 0x450), *range(0x620, 0x64B))]
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SIZES: dict[str, Any] = {
    "vocab_size": len(MARKS) + len(LETTERS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 130, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
E5 = {"query": "query: ", "document": "passage: "}
INSTRUCT = {"query": "Instruct: Given a question, find passages that answer it\nQuery:", "document": ""}
GEMMA = {"query": "task: search result | query: ", "document": "title: none | text: "}
FAMILIES: dict[str, dict[str, Any]] = {
    "multilingual E5": {"of": "XLMRoberta", "prompts": E5},
    "multilingual E5 instruct": {"of": "XLMRoberta", "prompts": INSTRUCT},
    "BGE-M3": {"of": "XLMRoberta", "pool": "cls"},
    "arctic-embed 2": {"of": "XLMRoberta", "pool": "cls", "prompts": {"query": "query: ", "document": ""}},
    "LaBSE": {"of": "Bert", "pool": "cls", "dense": [(32, "activation.Tanh")]},
    "paraphrase-multilingual MiniLM": {"of": "Bert", "normalize": False},
    "paraphrase-multilingual mpnet": {"of": "XLMRoberta", "normalize": False},
    "distiluse": {
        "of": "DistilBert", "dense": [(16, "activation.Tanh")], "normalize": False,
        "sizes": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    },
    "Instructor (prompt not pooled)": {"of": "XLMRoberta", "prompts": INSTRUCT, "include_prompt": False},
    "sentence-T5, GTR": {
        "of": "T5", "model": "T5EncoderModel", "dense": [(24, "linear.Identity")],
        "sizes": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    },
    "ModernBERT, mmBERT": {"of": "ModernBert", "sizes": {"local_attention": 16}},
    "granite R2": {"of": "ModernBert", "pool": "cls", "sizes": {"local_attention": 16}},
    "Nomic": {"of": "NomicBert", "prompts": {"query": "search_query: ", "document": "search_document: "}},
    "Jina v3": {"of": "JinaEmbeddingsV3"},
    "EuroBERT": {"of": "EuroBert", "sizes": {"num_key_value_heads": 2}},
    "Qwen3-Embedding": {
        "of": "Qwen3", "pool": "lasttoken", "prompts": INSTRUCT, "sizes": {"num_key_value_heads": 2, "head_dim": 8},
    },
    "EmbeddingGemma": {
        "of": "Gemma3Text", "prompts": GEMMA, "dense": [(48, "linear.Identity"), (32, "linear.Identity")],
        "sizes": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16, "use_bidirectional_attention": True},
    },
    "E5-Mistral": {
        "of": "Mistral", "pool": "lasttoken", "prompts": INSTRUCT,
        "sizes": {"num_key_value_heads": 2, "sliding_window": 16},
    },
    "Qwen3 with experts": {
        "of": "Qwen3Moe", "pool": "lasttoken", "prompts": INSTRUCT,
        "sizes": {
            "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "norm_topk_prob": True,
        },
    },
    "gte-multilingual": {"of": "Gte", "pool": "cls"},
    "gte-multilingual with code of its own": {
        "of": "Bert", "config": {"model_type": "new", "auto_map": {"AutoModel": "modeling.NewModel"}},
    },
    "gte-Qwen2 with code of its own": {
        "of": "Qwen2", "pool": "lasttoken", "prompts": INSTRUCT, "sizes": {"num_key_value_heads": 2},
        "config": {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}},
    },
    "Nomic v2 (experts, code of its own)": {
        "of": "NomicBert",
        "config": {
            "num_experts": 8, "auto_map": {"AutoConfig": "x.NomicBertConfig", "AutoModel": "x.NomicBertModel"},
        },
        "without": "layers.1.",
    },
    "sums by the root of the length": {"of": "Bert", "pool": "mean_sqrt_len_tokens"},
    "LayerNorm after pooling": {"of": "Bert", "more": ["LayerNorm"]},
}  # fmt: skip
TEXTS = ["how long is the Nile?", "WHERE Is It?", "Где находится Нил?", "كم طول النيل", "x", "the river runs on " * 60]


def write_checkpoint(
    folder: Path, *, of: str, pool: str = "mean", prompts: dict[str, str] | None = None, dense: Any = (),
    normalize: bool = True, include_prompt: bool = True, sizes: dict[str, Any] | None = None, model: str | None = None,
    more: Any = (), config: dict[str, Any] | None = None, without: str = "",
) -> None:  # fmt: skip
    """A checkpoint in the format of sentence-transformers 5.4 and later, its weights random."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{of}Config")(**SIZES | (sizes or {}))
    whole = getattr(transformers, model or f"{of}Model")(made).eval()
    whole.save_pretrained(folder)
    if config is not None:
        _write(folder / "config.json", orjson.loads((folder / "config.json").read_bytes()) | config)
    if without:  # as when the publisher's own class has other layers
        kept = {name: weights for name, weights in whole.state_dict().items() if without not in name}
        save_file(kept, str(folder / "model.safetensors"), metadata={"format": "pt"})
    vocabulary = {text: i for i, text in enumerate([*MARKS, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **SPECIAL
    )
    fast.save_pretrained(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", f"{i + 2}_Dense") for i in range(len(dense))] + [(kind, f"9_{kind}") for kind in more]
    modules += [("Normalize", "10_Normalize")] if normalize else []
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    pooling = {"embedding_dimension": 32, "pooling_mode": pool, "include_prompt": include_prompt}
    _write(folder / "modules.json", listed)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "similarity_fn_name": "cosine"})
    width = 32
    for i, (out, activation) in enumerate(dense):
        place = folder / f"{i + 2}_Dense"
        named = f"torch.nn.modules.{activation}"
        _write(
            place / "config.json",
            {"in_features": width, "out_features": out, "bias": False, "activation_function": named},
        )
        save_file({"linear.weight": torch.randn(out, width) / 6}, str(place / "model.safetensors"))
        width = out


def _write(path: Path, record: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(record))


def lowest_cosine(checkpoint: Path, exported: Path) -> float:
    """Of questions and passages, each with its own prompt, to sentence-transformers."""
    original = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    theirs = np.concatenate([original.encode_query(TEXTS), original.encode_document(TEXTS)])
    with Encoder(exported, calibration=0.0) as encoder:
        ours = np.concatenate([encoder.encode_queries(TEXTS, calibrate=False), encoder.encode_passages(TEXTS)])
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((np.einsum("ij,ij->i", ours, theirs) / lengths).min())


def silent(line: str) -> None:
    """Say nothing."""


def traced_once(write: Callable[..., None]) -> Callable[..., None]:
    """`write_encoder` that keeps the last graph of a checkpoint: int8 begins with the graph of fp32."""
    kept: dict[str, bytes] = {}

    def written(checkpoint: Any, target: Path, **more: Any) -> None:
        if checkpoint.source not in kept:
            write(checkpoint, target, **more)
            kept.clear()
            kept[checkpoint.source] = target.read_bytes()
        target.write_bytes(kept[checkpoint.source])

    return written


def row(name: str, scratch: Path) -> str:
    """The line of a family."""
    of = FAMILIES[name]
    read = [of.get("pool", "mean"), *(["prompts"] if of.get("prompts") else [])]
    read += [f"{len(of['dense'])} projection(s)"] if of.get("dense") else []
    cells = [name, f"`{of['of']}`", ", ".join(read)]
    try:
        write_checkpoint(scratch / "checkpoint", **of)
        for precision in ("fp32", "int8"):
            made = export(str(scratch / "checkpoint"), scratch / precision, precision=precision, say=silent)
            cells.append(f"{lowest_cosine(scratch / 'checkpoint', scratch / precision):.5f}")
        cells.append(f"{made.manifest['parity']['same_hits']:.1%}")
    except XqgError as error:
        cells.append("refused: " + str(error).replace(str(scratch / "checkpoint"), "it"))
    return "| " + " | ".join(cells + [""] * (6 - len(cells))) + " |"


HEAD = f"""# Families of encoders

Written by `python docs/make_families.py` with transformers {version("transformers")}, sentence-transformers
{version("sentence-transformers")} and onnxruntime {version("onnxruntime")}: minute checkpoints with the configuration,
modules, prompts and files of the published ones, and random weights. The numbers are the lowest cosine to
sentence-transformers over questions and passages: short, long (cut at 64 tokens), upper-case, of several scripts.
The last column is what int8 does to ranking: of the ten passages that the original ranks first for a question (the
export's own texts, a question in each of {len(parity_texts()[0])} languages, {len(parity_texts()[1])} passages), how
many the int8 export ranks there too. Random weights put all texts close together, the hard case. With trained weights
(multilingual E5 small, AfriQA, R@10): .692 in fp32 and .700 in int8, calibrated .767 and .762
([performance.md](performance.md#what-is-found)).
`xqg-vdb export --explain CHECKPOINT` says of your checkpoint what is read and what is refused.

| Family | Class of transformers | What is read | fp32 | int8 | int8: same ten hits |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Write the page, or print the rows of the families that are named."""
    graphs.write_encoder = traced_once(graphs.write_encoder)
    names = sys.argv[1:] or list(FAMILIES)
    lines = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            lines.append(row(name, Path(scratch)))
        click.echo(lines[-1])
    if not sys.argv[1:]:
        OUT.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
