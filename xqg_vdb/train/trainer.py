"""What needs torch: the losses of both trainers, an encoder in training, and transformers' `Trainer` with a clock.

Nothing imports this file before a run starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, Trainer

from xqg_vdb.calibration import LanguageMeans, TextEncoder
from xqg_vdb.evaluate.matrix import id_order, judge, per_row, search_rows
from xqg_vdb.evaluate.metrics import Metric
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.progress import STOPS, windows
from xqg_vdb.train.pairs import TrainingPair, content_key, pool_of
from xqg_vdb.train.run import Schedule, figures, spoken
from xqg_vdb.types import EncoderFacts, Vectors

REPORT_SECONDS = 30.0
METRICS = (Metric("R", 10), Metric("MRR", 10))
_ROWS = 64
_WINDOW = 4096


def question_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Sum of −log p over the tokens of `labels` (n, T) that are not −100, divided by their number in the whole batch.

    outputs.logits: (n, T, V). num_items_in_batch: their number over all micro batches of a step.
    """
    logits = outputs.logits.flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def embed(model: Any, tokens: Mapping[str, Tensor], spec: EncoderSpec) -> Tensor:
    """Rows (n, dim) float32: CLS, or the mean over real tokens, of unit length where the encoder's are.

    tokens: input_ids and attention_mask, int64 (n, length).
    """
    hidden = model(**tokens).last_hidden_state.float()
    if spec.pooling == "cls":
        rows = hidden[:, 0]
    else:
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        rows = (hidden * mask).sum(1) / mask.sum(1)
    return normalize(rows, dim=-1) if spec.normalize else rows


def embed_in_chunks(model: Any, tokens: Mapping[str, Tensor], spec: EncoderSpec, *, chunk: int) -> Tensor:
    """The same rows with the memory of `chunk` texts: gradient caching (Gao et al. 2021, arXiv 2101.06983).

    `backward` computes the rows again, chunk by chunk; dropout draws the same numbers both times.
    """
    pieces = [
        {key: value[i : i + chunk] for key, value in tokens.items()} for i in range(0, len(tokens["input_ids"]), chunk)
    ]
    return torch.cat([checkpoint(embed, model, piece, spec, use_reentrant=False) for piece in pieces])


def contrastive_loss(queries: Tensor, passages: Tensor, *, targets: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of −log softmax(q·p / temperature) at the question's own passage (Karpukhin et al. 2020).

    queries: (n, dim). passages: (m, dim), every question's positive and negatives, all of which are negatives of the
    other questions. targets: int64 (n,), row of each question's positive. same: bool (n, m), passages that are another
    copy of the question's positive; they are no negatives and are left out.
    """
    with torch.autocast(queries.device.type, enabled=False):  # the rows may come from bf16, the products must not
        scores = (queries @ passages.T / temperature).masked_fill(same, float("-inf"))
        return cross_entropy(scores, targets)


class TorchEncoder:
    """A `TextEncoder` over a transformers model in training, never calibrated; longest texts first, so little padding.

    query_tokens, passage_tokens: texts are cut there.
    """

    def __init__(
        self, model: Any, tokenizer: Any, spec: EncoderSpec, *, query_tokens: int, passage_tokens: int
    ) -> None:
        self._model, self._tokenizer, self._spec = model, tokenizer, spec
        self._query_tokens, self._passage_tokens = query_tokens, passage_tokens
        self.language_means, self.calibration = LanguageMeans(), 0.0

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
        """Rows (n, dim) float32 for questions."""
        return self._encode([self._spec.query_prefix + text for text in texts], self._query_tokens)

    def encode_passages(self, texts: Iterable[str]) -> Vectors:
        """Rows (n, dim) float32 for passages."""
        return self._encode([self._spec.passage_prefix + text for text in texts], self._passage_tokens)

    def _encode(self, texts: list[str], length: int) -> Vectors:
        rows = np.zeros((len(texts), self._spec.dim), np.float32)
        was_training = self._model.training
        self._model.eval()
        for window in windows(range(len(texts)), _WINDOW):
            for batch in windows(sorted(window, key=lambda i: -len(texts[i])), _ROWS):
                tokens = self._tokenizer(
                    [texts[i] for i in batch], padding=True, truncation=True, max_length=length, return_tensors="pt"
                )
                part = {key: tokens[key].to(self._model.device) for key in ("input_ids", "attention_mask")}
                with torch.no_grad():
                    rows[batch] = embed(self._model, part, self._spec).cpu().numpy()
        self._model.train(was_training)
        return rows


def dev_figures(encoder: TextEncoder, dev: Sequence[TrainingPair]) -> dict[str, float]:
    """`METRICS` of the questions of `dev` among its distinct positives and negatives, by dot product."""
    pool, ids = pool_of(dev), [f"{i}" for i in range(len(dev))]
    keys = list(pool)
    qrels = {i: {content_key(pair.positive): 1} for i, pair in zip(ids, dev, strict=True)}
    passages = encoder.encode_passages([passage.title_and_text for passage in pool.values()])
    questions = encoder.encode_queries([pair.query for pair in dev], calibrate=False)
    rows, _ = search_rows(questions, passages, k=10, tie_order=id_order(keys))
    judged = judge(qrels, query_ids=ids, passage_ids=keys)
    return {str(metric): float(np.mean(per_row(rows, judged, metric=metric))) for metric in METRICS}


class WatchedTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that writes a checkpoint every `save_minutes` and reports a line now and then."""

    def watch(
        self,
        schedule: Schedule,
        say: Callable[[str], None],
        *,
        loss: Callable[[Any, Mapping[str, Any]], Tensor] | None = None,
        dev: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """To be called once. loss: of a model and a batch; dev: figures, both instead of `Trainer`'s."""
        self.remove_callback(PrinterCallback)
        self._schedule, self._say, self._loss, self._dev = schedule, say, loss, dev
        self._began: tuple[float, int] | None = None
        self._saved = self._told = 0.0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch."""
        if self._loss is not None:
            return self._loss(model, inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Dev figures, logged like `Trainer`'s own."""
        if self._dev is None:
            return dict(super().evaluate(eval_dataset, ignore_keys, metric_key_prefix))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._dev().items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One step of `Trainer`; asks for a checkpoint after it when the time has come."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._saved, self._told = (now, self.state.global_step), now, now
        if STOPS or now - self._saved >= self._schedule.save_minutes * 60:
            self.control.should_save, self._saved = True, now
            self.control.should_training_stop |= bool(STOPS)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the record, and report it when it is a dev figure or the last report was long ago."""
        super().log(logs, start_time)
        step, last, now = self.state.global_step, self.state.max_steps, time.monotonic()
        if any(key.startswith("eval_") for key in logs):
            if 0 < step < last:  # before and after training, the caller says it
                self._say(f"step {step} of {last}, dev: {spoken(figures(logs))}")
        elif "loss" in logs and self._began and (now - self._told >= REPORT_SECONDS or step == last):
            start, first = self._began
            seconds = max((now - start) / max(1, step - first), 1e-9)
            self._told = now
            rate, left = self._schedule.batch_size / seconds, seconds * (last - step) / 60
            self._say(f"step {step} of {last}, loss {logs['loss']:.4f}, {rate:.2f} examples/s, {left:.0f} min to go")
