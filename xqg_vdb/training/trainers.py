"""transformers' `Trainer` with a clock, and with the dual encoder's loss and dev figures.

Needs torch and transformers to be imported; nothing else of ours does before a run starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer

from xqg_vdb.metrics import Metric
from xqg_vdb.score_matrix import id_order, judge, per_row, search_rows
from xqg_vdb.training.contrastive import Scoring, cached_loss, contrastive_loss, embed
from xqg_vdb.training.pairs import TrainingPair, content_key
from xqg_vdb.training.running import Report, figures, spoken
from xqg_vdb.training.torch_encoder import TorchEncoder

REPORT_SECONDS = 30.0
METRICS = (Metric("R", 10), Metric("MRR", 10))


def question_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Sum of −log p over the tokens of `labels` (n, T) that are not −100, divided by their number in the whole batch.

    outputs.logits: (n, T, V). num_items_in_batch: their number over all micro batches of a step.
    """
    logits = outputs.logits.flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class WatchedTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that writes a checkpoint every `save_minutes` and reports a line now and then."""

    def watch(self, *, save_minutes: float, batch_size: int, report: Report) -> None:
        """To be called once, before training. batch_size: examples per step, for the rate."""
        self.remove_callback(PrinterCallback)
        self._every, self._examples, self._report = save_minutes * 60, batch_size, report
        self._began: tuple[float, int] | None = None
        self._saved = self._told = 0.0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One step of `Trainer`; asks for a checkpoint after it when the time has come."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._saved, self._told = (now, self.state.global_step), now, now
        if now - self._saved >= self._every:
            self.control.should_save, self._saved = True, now
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the record, and report it when it is a dev figure or the last report was long ago."""
        super().log(logs, start_time)
        step, last, now = self.state.global_step, self.state.max_steps, time.monotonic()
        if any(key.startswith("eval_") for key in logs):
            if 0 < step < last:  # before and after training, the caller says it
                self._report(f"step {step} of {last}, dev: {spoken(figures(logs))}")
        elif "loss" in logs and self._began and (now - self._told >= REPORT_SECONDS or step == last):
            start, first = self._began
            seconds = max((now - start) / max(1, step - first), 1e-9)
            self._told = now
            rate, left = self._examples / seconds, seconds * (last - step) / 60
            self._report(f"step {step} of {last}, loss {logs['loss']:.4f}, {rate:.2f} examples/s, {left:.0f} min to go")


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
    questions = encoder.encode_queries([pair.query for pair in dev])
    rows, _ = search_rows(questions, passages, k=10, tie_order=id_order(keys))
    judged = judge(qrels, query_ids=ids, passage_ids=keys)
    return {str(metric): float(np.mean(per_row(rows, judged, metric=metric))) for metric in METRICS}
