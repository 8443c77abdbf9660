"""The dual encoder's loss and its gradient, in one piece or through the gradient cache.

In: a transformers encoder and tokenised texts. Out: a loss for `backward`. Torch is needed to import this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from xqg_vdb.evaluate.matrix import id_order, judge, per_row, search_rows
from xqg_vdb.evaluate.metrics import Metric
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.progress import windows
from xqg_vdb.train.pairs import TrainingPair, content_key
from xqg_vdb.train.trainer import WatchedTrainer
from xqg_vdb.types import EncoderFacts, Pooling, Vectors

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


# The encoder as it stands during training, behind the same protocol as an exported one: for mining and dev figures.

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

    def encode_queries(
        self, texts: Iterable[str], *, question_langs: Sequence[str | None] | None = None, calibrate: bool = True
    ) -> Vectors:
        """Rows (n, dim) float32 for questions; never calibrated: there are no language means yet."""
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


METRICS = (Metric("R", 10), Metric("MRR", 10))


class EncoderTrainer(WatchedTrainer):
    """Trains a tied dual encoder on batches of `encoder_batches`, and evaluates it by retrieval."""

    def prepare(self, *, scoring: Scoring, chunk: int, encoder: TorchEncoder, dev: Sequence[TrainingPair]) -> None:
        """To be called once, before training. chunk: texts in memory at a time; at least a batch's: no cache."""
        self._scoring, self._chunk, self._encoder, self._dev = scoring, chunk, encoder, list(dev)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The contrastive loss of a batch; cached when the batch has more texts than the chunk."""
        queries, passages = inputs["queries"], inputs["passages"]
        targets, same = inputs["targets"], inputs["same"]
        if len(passages["input_ids"]) > self._chunk:
            return cached_loss(
                model, queries, passages, scoring=self._scoring, targets=targets, same=same, chunk=self._chunk
            )
        return contrastive_loss(
            embed(model, queries, self._scoring),
            embed(model, passages, self._scoring),
            targets=targets,
            same=same,
            temperature=self._scoring.temperature,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """R@10 and MRR@10 of the dev questions among all dev passages, means over the questions."""
        found = dev_figures(self._encoder, self._dev)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def dev_figures(encoder: TorchEncoder, dev: Sequence[TrainingPair]) -> dict[str, float]:
    """`METRICS` of the questions of `dev` among its distinct positives and negatives, by dot product."""
    pool = {content_key(passage): passage for pair in dev for passage in (pair.positive, *pair.negatives)}
    keys, ids = list(pool), [f"{i}" for i in range(len(dev))]
    qrels = {i: {content_key(pair.positive): 1} for i, pair in zip(ids, dev, strict=True)}
    passages = encoder.encode_passages([passage.title_and_text for passage in pool.values()])
    questions = encoder.encode_queries([pair.query for pair in dev], calibrate=False)
    rows, _ = search_rows(questions, passages, k=10, tie_order=id_order(keys))
    judged = judge(qrels, query_ids=ids, passage_ids=keys)
    return {str(metric): float(np.mean(per_row(rows, judged, metric=metric))) for metric in METRICS}
