"""The encoder as it stands during training, behind the same protocol as an exported one: for mining and dev figures.

Torch is needed to import this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from xqg_vdb.batching import windows
from xqg_vdb.model_folder import EncoderSpec
from xqg_vdb.training.contrastive import Scoring, embed
from xqg_vdb.types import EncoderFacts, Vectors

_ROWS = 64
_WINDOW = 4096


class TorchEncoder:
    """A `TextEncoder` over a transformers model; longest texts first, so that a batch is padded little."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: EncoderSpec, *, query_tokens: int, passage_tokens: int
    ) -> None:
        self._model, self._tokenizer, self._spec = model, tokenizer, spec
        self._lengths = {"query": query_tokens, "passage": passage_tokens}
        self._scoring = Scoring(spec.pooling, spec.normalize, 1.0)

    @property
    def facts(self) -> EncoderFacts:
        """The conventions; weights in training have no fingerprint."""
        spec = self._spec
        return EncoderFacts(
            "in training", "in training", spec.dim, spec.pooling, spec.normalize, spec.query_prefix,
            spec.passage_prefix, spec.max_length, "fp32",
        )  # fmt: skip

    def encode_queries(self, texts: Iterable[str], *, langs: Sequence[str | None] | None = None) -> Vectors:
        """Rows (n, dim) float32 for questions; never calibrated, whatever `langs` says."""
        return self._encode([self._spec.query_prefix + text for text in texts], self._lengths["query"])

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) float32 for passages."""
        return self._encode([self._spec.passage_prefix + text for text in texts], self._lengths["passage"])

    def _encode(self, texts: list[str], length: int) -> Vectors:
        rows = np.zeros((len(texts), self._spec.dim), np.float32)
        was_training = self._model.training
        self._model.eval()
        device = next(self._model.parameters()).device
        with torch.no_grad():
            for window in windows(range(len(texts)), _WINDOW):
                order = sorted(window, key=lambda i: -len(texts[i]))
                for batch in windows(order, _ROWS):
                    tokens = self._tokenizer(
                        [texts[i] for i in batch], padding=True, truncation=True, max_length=length, return_tensors="pt"
                    )
                    part = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")}
                    rows[list(batch)] = embed(self._model, part, self._scoring).cpu().numpy()
        self._model.train(was_training)
        return rows
