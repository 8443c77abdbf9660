"""The dual encoder's loss and its gradient, in one piece or through the gradient cache.

In: a transformers encoder and tokenised texts. Out: a loss for `backward`. Torch is needed to import this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from xqg_vdb.types import Pooling

Tokens = Mapping[str, Tensor]
"""input_ids, attention_mask: int64 (n, length)."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """pooling: of the last layer. normalize: unit rows, so that the product is the cosine. temperature: divides it."""

    pooling: Pooling
    normalize: bool
    temperature: float


def embed(model: Any, tokens: Tokens, scoring: Scoring) -> Tensor:
    """Rows (n, dim) float32: CLS, or the mean over real tokens, of unit length if `scoring.normalize`."""
    hidden = model(**tokens).last_hidden_state.float()
    if scoring.pooling == "cls":
        rows = hidden[:, 0]
    else:
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        rows = (hidden * mask).sum(1) / mask.sum(1)
    return normalize(rows, dim=-1) if scoring.normalize else rows


def contrastive_loss(queries: Tensor, passages: Tensor, *, targets: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of −log softmax(q·p / temperature) at the question's own passage (Karpukhin et al. 2020).

    queries: (n, dim). passages: (m, dim), every question's positive and negatives, all of which are negatives of the
    other questions. targets: int64 (n,), row of each question's positive. same: bool (n, m), passages that are another
    copy of the question's positive; they are no negatives and are left out.
    """
    with torch.autocast(queries.device.type, enabled=False):  # the rows may come from bf16, the products must not
        scores = (queries @ passages.T / temperature).masked_fill(same, float("-inf"))
        return cross_entropy(scores, targets)


def cached_loss(
    model: Any, queries: Tokens, passages: Tokens, *, scoring: Scoring, targets: Tensor, same: Tensor, chunk: int
) -> Tensor:
    """The same loss with the memory of `chunk` texts: gradient caching (Gao et al. 2021, arXiv 2101.06983).

    The rows are computed without a graph; the loss gives their gradients; `backward` then computes the rows again,
    chunk by chunk, and passes those gradients on. Dropout draws the same numbers both times.
    """
    parts = [*_chunks(queries, chunk), *_chunks(passages, chunk)]
    states, rows = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            rows.append(embed(model, part, scoring))
    leaf = torch.cat(rows).requires_grad_()
    n = len(targets)
    with torch.enable_grad():
        loss = contrastive_loss(leaf[:n], leaf[n:], targets=targets, same=same, temperature=scoring.temperature)
        (gradient,) = torch.autograd.grad(loss, leaf)
    result = loss.detach().requires_grad_()
    result.register_hook(partial(_second_pass, model, parts, states, gradient.split([len(r) for r in rows]), scoring))
    return result


def _second_pass(
    model: Any,
    parts: list[Tokens],
    states: list[list[Tensor]],
    gradients: tuple[Tensor, ...],
    scoring: Scoring,
    scale: Tensor,
) -> None:
    """scale: gradient that arrives at the loss."""
    now = _random_state()
    with torch.enable_grad():
        for part, state, gradient in zip(parts, states, gradients, strict=True):
            _restore(state)
            rows = embed(model, part, scoring)
            torch.autograd.backward(rows, gradient * scale)
    _restore(now)


def _chunks(tokens: Tokens, size: int) -> list[Tokens]:
    pieces = {key: value.split(size) for key, value in tokens.items()}
    count = len(next(iter(pieces.values())))
    return [{key: value[i] for key, value in pieces.items()} for i in range(count)]


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _restore(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
