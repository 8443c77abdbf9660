"""Checkpoints to folders of generators and cross-encoders: torch's export, and a gate before anything is accepted.

In: a hub id, a local checkpoint folder or `starter:generator`. Out: a model folder of kind `causal-generator`,
`seq2seq-generator` or `cross-encoder`. torch, transformers and onnx are needed here only (extra `export`).
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from xqg_vdb.errors import MismatchError, ModelError
from xqg_vdb.export.checkpoints import (
    T5,
    Base,
    Checkpoint,
    fetch_checkpoint,
    load_weights,
    longest_text,
    need_torch,
    read_json,
    save_tokenizer,
)
from xqg_vdb.export.gate import LARGEST_DIFFERENCE, measure_agreement, measure_logits, measure_pairs
from xqg_vdb.export.quantise import quantise_graph
from xqg_vdb.files import new_folder
from xqg_vdb.generate.local import ENCODER_GRAPH
from xqg_vdb.generate.output import versions
from xqg_vdb.models.encoder import ACTIVATIONS
from xqg_vdb.models.folder import (
    CROSS,
    GRAPH,
    TOKENIZER,
    ModelFolder,
    Precision,
    finished,
    open_model_folder,
    write_manifest,
)

FINETUNED_KEY = "xqg_vdb_finetuned"
"""In a checkpoint's config.json: what `train generator` trained it on, `{"max_passage_tokens": int}`."""


def export_generator(
    checkpoint: str,
    out: Path,
    *,
    precision: Precision = "int8",
    accept_license: bool = False,
    say: Callable[[str], None] = print,
) -> ModelFolder:
    """Export `checkpoint` into the new folder `out`, which appears only when everything was accepted.

    say: called with one line per step. Raises ModelError for what cannot be exported (also when the starter's
    licence was not accepted), MismatchError when 8-bit weights change what the model writes too much, MissingExtra
    without torch.
    """
    asked = {"checkpoint": checkpoint, "precision": precision}
    if done := finished(out, asked, say=say):
        return done
    with new_folder(out, result="model") as scratch:
        say(f"reading {checkpoint}")
        source = Base(checkpoint, accept_license).fetch(scratch / "checkpoint")
        plain = _fp32_folder(source, scratch / "fp32", say=say)
        folder = plain if precision == "fp32" else _int8_folder(plain, scratch / "int8", say=say)
        manifest = write_manifest(folder.path, {**folder.manifest, "asked": asked}).manifest
        folder.path.rename(scratch / "model")
    return ModelFolder(out, manifest)


CROSS_PARITY = 1e-4
"""Most that a score of a cross-encoder's export may be off the original's."""


def export_cross(checkpoint: str, out: Path, *, say: Callable[[str], None] = print) -> ModelFolder:
    """Export a cross-encoder (a classifier of text pairs with one logit) into the new folder `out`, in fp32.

    Raises ModelError for what is none, MismatchError when the graph does not score as the original, MissingExtra.
    """
    asked = {"checkpoint": CROSS + checkpoint}
    if done := finished(out, asked, say=say):
        return done
    with new_folder(out, result="model") as scratch:
        say(f"reading {checkpoint}")
        source, folder = fetch_checkpoint(checkpoint, into=scratch / "checkpoint"), scratch / "model"
        folder.mkdir()
        kind, labels = source.origin["architecture"], len(source.config.get("id2label") or "01")
        if not kind.endswith("ForSequenceClassification") or labels != 1:
            raise ModelError(
                f"{checkpoint} is {kind} with {labels} labels; a cross-encoder is a model ForSequenceClassification"
                " with one."
            )
        record = {"activation": _activation(source), "max_length": longest_text(source, default=512)}
        if source.onnx is not None:
            say(f"using the ONNX graph that {source.source} ships")
            for file in source.path.glob(source.onnx.name + "*"):
                shutil.copyfile(file, folder / (GRAPH if file.name == source.onnx.name else file.name))
        else:
            need_torch()
            from xqg_vdb.export.graphs import write_encoder

            say("exporting to ONNX (about a minute)")
            write_encoder(source, folder / GRAPH, kind="AutoModelForSequenceClassification", output="logits")
        save_tokenizer(source.path, folder)
        manifest = {"kind": "cross-encoder", **source.origin, "cross": record, "precision": "fp32", "asked": asked}
        made = write_manifest(folder, {**manifest, "made_with": versions(("xqg-vdb", "torch", "transformers"))})
        if source.onnx is None:
            off = measure_pairs(source, made)
            say(f"scores of pairs compared with the original: {off:.1e} apart at most")
            if not off <= CROSS_PARITY:
                raise MismatchError(f"The graph's scores are {off:.1e} off those of {checkpoint}; nothing was written.")
            write_manifest(folder, {**made.manifest, "parity": {"difference_max": off}})
    return open_model_folder(out)


def _activation(source: Checkpoint) -> str:
    """What is done to a logit, by the files of sentence-transformers. Raises ModelError for what is not known."""
    own = read_json(source.path / "config_sentence_transformers.json", default={}).get("activation_fn")
    theirs = (source.config.get("sentence_transformers") or {}).get("activation_fn")
    told = own or theirs or source.config.get("sbert_ce_default_activation_function") or "Sigmoid"
    name = str(told).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ModelError(f"{source.source} puts {told} on its logits; supported: {', '.join(ACTIVATIONS)}.")
    return name


def _fp32_folder(source: Checkpoint, folder: Path, *, say: Callable[[str], None]) -> ModelFolder:
    need_torch()
    folder.mkdir()
    save_tokenizer(source.path, folder)
    say("exporting to ONNX (a minute or two)")
    seq2seq = source.config["model_type"] in T5
    if source.config.get("is_encoder_decoder") and not seq2seq:
        raise ModelError(
            f"{source.source} is an encoder-decoder of the type {source.config['model_type']}: of these, only"
            f" {', '.join(T5)} can be exported."
        )
    model = load_weights("AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM", source, attention="eager")
    record = (_write_seq2seq if seq2seq else _write_causal)(source, model.eval(), folder)
    made_with = versions(("xqg-vdb", "torch", "transformers", "onnx", "onnxruntime", "tokenizers"))
    kind = "seq2seq-generator" if seq2seq else "causal-generator"
    facts = {"kind": kind, "generator": record, "precision": "fp32", "made_with": made_with}
    plain = write_manifest(folder, {**facts, **source.origin, "machine": platform.machine()})
    say("comparing with the original")
    parity = measure_logits(model, plain)
    say(f"logits differ by {parity['logits_differ']:.1e} over {parity['tokens']} tokens")
    if not parity["logits_differ"] <= LARGEST_DIFFERENCE:
        raise MismatchError(
            f"The export of {source.source} ({source.config['model_type']}) is not the model it was made from: logits"
            f" differ by {parity['logits_differ']:.1e}, allowed are {LARGEST_DIFFERENCE}; nothing was written."
        )
    return write_manifest(folder, {**plain.manifest, "parity": parity})


def _int8_folder(plain: ModelFolder, folder: Path, *, say: Callable[[str], None]) -> ModelFolder:
    say("packing weights to 8 bits in blocks of 32")
    folder.mkdir()
    shutil.copyfile(plain.path / TOKENIZER, folder / TOKENIZER)
    for graph in plain.path.glob("*.onnx"):
        quantise_graph(graph, folder / graph.name)
    packed = write_manifest(folder, {**plain.manifest, "precision": "int8"})
    say("comparing what both write")
    agreement, summary, accepted = measure_agreement(plain, packed)
    say(summary)
    if not accepted:
        raise MismatchError(
            f"8-bit weights change this model too much: {summary}; nothing was written. Use --precision fp32."
        )
    return write_manifest(folder, {**packed.manifest, "parity": {**plain.manifest["parity"], **agreement}})


def _write_causal(source: Checkpoint, model: Any, folder: Path) -> dict[str, Any]:
    from xqg_vdb.export import graphs

    if not hasattr(model, "lm_head") or not hasattr(model, "model"):
        raise ModelError(f"{source.source} ({source.config['model_type']}) is no decoder-only model of a known shape.")
    graphs.write_causal(model, folder / GRAPH, source.source)
    length = int(source.config.get("max_position_embeddings") or 2048)
    return {
        "max_length": min(length, 8192),
        "bos": start_token(source, folder),
        "eos": end_tokens(source, folder),
        "chat": _chat_parts(source.path),
        "finetuned": source.config.get(FINETUNED_KEY),
    }


def _write_seq2seq(source: Checkpoint, model: Any, folder: Path) -> dict[str, Any]:
    from xqg_vdb.export import graphs

    graphs.write_seq2seq(model, folder / ENCODER_GRAPH, folder / GRAPH, source.source)
    start = source.config.get("decoder_start_token_id")
    start = source.config.get("pad_token_id", 0) if start is None else start
    return {"eos": end_tokens(source, folder), "start": start}


def end_tokens(source: Checkpoint, folder: Path) -> list[int]:
    """End tokens: the checkpoint's own and, for chat models, the end of a turn."""
    found: set[int] = set()
    for config in (source.config, read_json(source.path / "generation_config.json", default={})):
        value = config.get("eos_token_id")
        found |= set(value if isinstance(value, list) else [] if value is None else [value])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    turns = (tokenizer.token_to_id(token) for token in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>"))
    return sorted(found | {token for token in turns if token is not None})


def start_token(source: Checkpoint, folder: Path) -> int | None:
    """The start token, if this tokenizer puts one in front of a text."""
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
