"""`xqg_vdb.export`: a checkpoint of either kind, or an encoder that runs elsewhere, into a model folder."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from xqg_vdb.errors import DataError, ModelError, XqgError
from xqg_vdb.export.checkpoints import (
    Checkpoint,
    Overrides,
    conventions,
    fetch_checkpoint,
    lower_cases,
    modules_of,
    read_dense,
)
from xqg_vdb.export.encoder import default_folder, export_encoder, export_remote, sentence_transformer
from xqg_vdb.export.generator import export_generator
from xqg_vdb.models.folder import TOKENIZER, ModelFolder, cached_model
from xqg_vdb.models.remote import Embed


def export(
    checkpoint: str | Embed,
    out: str | Path | None = None,
    *,
    precision: Literal["int8", "fp32"] = "int8",
    overrides: Overrides | None = None,
    generator: bool = False,
    accept_license: bool = False,
    model: str | None = None,
    say: Callable[[str], None] | None = None,
) -> ModelFolder:
    """Export a hub id, a checkpoint folder, `starter:encoder` or `starter:generator`, checked against the original.

    Or a server's URL (OpenAI-compatible, up to `/v1`), or a callable from texts to rows: the folder then says what runs
    there, `model`, and how it is calibrated. out: a new folder; without one, hub ids and starters go to the cache,
    where they are found by name. overrides: an encoder's conventions. generator: the checkpoint writes queries. say:
    told each step, by default the log. Raises ModelError, MismatchError when the export does not compute what the
    original does, MissingExtra, ServerError.
    """
    tell = say or logging.getLogger("xqg_vdb").info
    if not isinstance(checkpoint, str) or checkpoint.startswith(("http://", "https://")):
        if out is None or not model:
            raise DataError("An encoder that runs elsewhere needs the folder OUT and --model NAME.")
        return export_remote(checkpoint, model, Path(out), overrides=overrides, say=tell)
    if generator or checkpoint == "starter:generator":
        target = Path(out) if out is not None else cached_model(checkpoint, precision=precision)
        return export_generator(checkpoint, target, precision=precision, accept_license=accept_license, say=tell)
    target = Path(out) if out is not None else default_folder(checkpoint, precision=precision)
    return export_encoder(checkpoint, target, precision=precision, overrides=overrides, say=tell)


# What a checkpoint is, before anything is exported.


def explain(checkpoint: str, overrides: Overrides | None = None) -> dict[str, Any]:
    """What an encoder's checkpoint is: `facts` by name, each (the original software's, the export's), and `refused`."""
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        source = fetch_checkpoint(checkpoint, into=Path(scratch) / "checkpoint")
        ours: dict[str, Any] = {}
        try:
            ours = _ours(source, overrides or Overrides())
        except ModelError as error:
            refused.append(str(error))
        software, theirs = _theirs(source)
    names = dict.fromkeys([*theirs, *ours])
    facts = {name: (theirs.get(name), ours.get(name)) for name in names}
    return {**source.origin, "software": software, "facts": facts, "refused": refused}


def _ours(source: Checkpoint, overrides: Overrides) -> dict[str, Any]:
    spec, told = conventions(source, overrides)
    return {
        "modules": ", ".join(kind for kind, _ in modules_of(source.path)) or "Transformer, Pooling",
        "pooling": spec.pooling,
        "prompt is pooled": spec.pool_prompt,
        "query prompt": spec.query_prefix,
        "passage prompt": spec.passage_prefix,
        "longest text": spec.max_length,
        "normalised": spec.normalize,
        "dimensions": spec.dim,
        "projections": [f"{w.shape[0]} to {w.shape[1]}, {name}" for w, _, name in map(read_dense, source.dense)],
        "lower-cased": lower_cases(source),
        "tokenizer": TOKENIZER if (source.path / TOKENIZER).is_file() else "made by transformers",
        "graph": "the checkpoint's own" if source.onnx else "made by torch",
        "told by": told,
    }


def _theirs(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Name and version of the original software, and what it would do; nothing where it cannot load the checkpoint."""
    if not (source.path / "modules.json").is_file():
        return "transformers, which pools nothing", {"modules": "Transformer"}
    try:
        model = sentence_transformer(source)
    except XqgError as error:
        return f"sentence-transformers, not asked ({error})", {}
    prompts = {name: prompt for name, prompt in (model.prompts or {}).items() if prompt}
    usual = prompts.get(model.default_prompt_name, "")
    parts = {type(module).__name__: module for module in model}
    pooling = parts.get("Pooling")
    dense = [module for module in model if type(module).__name__ == "Dense"]
    return f"sentence-transformers {version('sentence-transformers')}", {
        "modules": ", ".join(type(module).__name__ for module in model),
        "pooling": getattr(pooling, "pooling_mode", None) or (pooling and pooling.get_pooling_mode_str()),
        "prompt is pooled": bool(pooling and pooling.include_prompt),
        "query prompt": prompts.get("query", usual),
        "passage prompt": prompts.get("passage") or prompts.get("document", usual),
        "longest text": model.max_seq_length,
        "normalised": "Normalize" in parts,
        "dimensions": parts["Dense"].out_features if dense else model[0].get_embedding_dimension(),
        "projections": [f"{d.in_features} to {d.out_features}, {type(d.activation_function).__name__}" for d in dense],
        "lower-cased": bool(getattr(model[0], "do_lower_case", False)),
        "tokenizer": type(model.tokenizer).__name__,
    }
