"""Weights of a checkpoint in transformers, one way wherever they are needed: float32, safetensors, no code run."""

from __future__ import annotations

from typing import Any

from xqg_vdb.checkpoints import Checkpoint
from xqg_vdb.errors import ModelError


def load_weights(kind: str, checkpoint: Checkpoint, *, attention: str | None = None) -> Any:
    """The model, in training mode. kind: a class of transformers, such as AutoModel. attention: None takes its default.

    Needs torch and transformers. Raises ModelError for what transformers cannot load.
    """
    import torch
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            str(checkpoint.path), dtype=torch.float32, attn_implementation=attention, use_safetensors=True,
            local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot load {checkpoint.source}: {str(error)[:300]}") from error
