"""What needs torch: both losses, the rows of an encoder in training, and transformers' `Trainer` with a clock.

Nothing imports this file before a run starts.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, Trainer, TrainingArguments

from xqg_vdb.errors import DataError
from xqg_vdb.files import write_atomic
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.progress import STOPS, unbroken, windows
from xqg_vdb.train.run import Job, Outcome, Schedule, read_object
from xqg_vdb.types import Vectors

REPORT_SECONDS = 30.0
_ROWS = 64
_WINDOW = 4096
_Loss = Callable[[Any, Mapping[str, Any]], Tensor]  # of a model and a batch


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


def alignment_loss(rows: Tensor, goals: Tensor, *, same: Tensor, temperature: float) -> Tensor:
    """Half the squared distance to the goals, half `contrastive_loss` among them; both in units of the temperature.

    rows, goals: (n, dim), row i is to come to goal i. same: bool (n, n), further copies of a row's own goal.
    """
    near = (rows - goals).square().sum(-1).mean() / (2 * temperature)
    targets = torch.arange(len(rows), device=rows.device)
    return (near + contrastive_loss(rows, goals, targets=targets, same=same, temperature=temperature)) / 2


def embed_texts(model: Any, tokenizer: Any, texts: list[str], spec: EncoderSpec, *, length: int) -> Vectors:
    """Rows (n, dim) float32 by the model as it stands, of texts cut at `length` tokens; longest first: pads little."""
    rows = np.zeros((len(texts), spec.dim), np.float32)
    was_training = model.training
    model.eval()
    for window in windows(range(len(texts)), _WINDOW):
        for batch in windows(sorted(window, key=lambda i: -len(texts[i])), _ROWS):
            tokens = tokenizer(
                [texts[i] for i in batch], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            part = {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                rows[batch] = embed(model, part, spec).cpu().numpy()
    model.train(was_training)
    return rows


class _WatchedTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that writes a checkpoint every `save_minutes` and reports a line now and then."""

    def watch(self, job: Job[Any], *, loss: _Loss | None, dev: Callable[[], dict[str, float]] | None) -> None:
        """To be called once. loss: of a model and a batch; dev: figures, both instead of `Trainer`'s."""
        self.remove_callback(PrinterCallback)
        self._schedule, self._say, self._loss, self._dev = job.settings.schedule, job.say, loss, dev
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
                self._say(f"step {step} of {last}, dev: {_spoken(_figures(logs))}")
        elif "loss" in logs and self._began and (now - self._told >= REPORT_SECONDS or step == last):
            start, first = self._began
            seconds = max((now - start) / max(1, step - first), 1e-9)
            self._told = now
            rate, left = self._schedule.batch_size / seconds, seconds * (last - step) / 60
            self._say(f"step {step} of {last}, loss {logs['loss']:.4f}, {rate:.2f} examples/s, {left:.0f} min to go")


def _arguments(run: Path, schedule: Schedule, *, evaluates: bool, whole_batches: bool) -> TrainingArguments:
    """`TrainingArguments` for a schedule: bf16 on CUDA (on a CPU if told), one device a process, nothing sent anywhere.

    whole_batches: do not accumulate gradients over micro batches, because a loss sees all of a batch.
    """
    if schedule.threads:
        torch.set_num_threads(schedule.threads)
    cuda = torch.cuda.is_available()
    micro = schedule.batch_size if whole_batches else schedule.micro_batch or schedule.batch_size
    if schedule.batch_size % micro:
        raise DataError(f"The batch size {schedule.batch_size} is no multiple of the micro batch {micro}.")
    every = schedule.eval_every if evaluates else 0
    # the same share of the steps; transformers 5 knows the newer name only
    warmup = "warmup_ratio" if hasattr(TrainingArguments, "warmup_ratio") else "warmup_steps"
    arguments = TrainingArguments(
        **{warmup: schedule.warmup},
        output_dir=str(run),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=schedule.batch_size // micro,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        seed=schedule.seed,
        eval_strategy="steps" if every else "no",
        eval_steps=every or None,
        save_strategy="no",  # `_WatchedTrainer` saves by the clock
        save_total_limit=1,
        logging_steps=1,  # a resumed run then logs the very losses of an unbroken one
        bf16=schedule.bf16 or bool(cuda and torch.cuda.is_bf16_supported()),
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to=[],
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # DataParallel would split rows that belong together; torchrun uses all devices
    return arguments


def run_training(
    job: Job[Any],
    model: Any,
    run: Path,
    *,
    examples: list[Any],
    held_out: list[Any],
    collate: Callable[[Any], dict[str, Any]],
    loss: _Loss | None = None,
    dev: Callable[[], dict[str, float]] | None = None,
) -> Outcome:
    """Train to the end, from the last whole checkpoint in `run` if there is one; dev is evaluated before and after.

    loss: of a model and a whole batch, instead of `question_loss`. dev: figures instead of that loss on `held_out`.
    """
    began, (resumed_at, last) = time.monotonic(), _last_checkpoint(run)
    evaluates, say = bool(held_out), job.say
    trainer = _WatchedTrainer(
        model=model,
        args=_arguments(run, job.settings.schedule, evaluates=evaluates, whole_batches=loss is not None),
        train_dataset=examples,
        eval_dataset=held_out or None,
        data_collator=collate,
        compute_loss_func=None if loss else question_loss,
    )
    trainer._loss_shifts_labels = False  # labels lie beside their logits: transformers 5 would not count the first
    trainer.watch(job, loss=loss, dev=dev)
    before: dict[str, float] = read_object(run / "baseline.json")
    if evaluates and not before:
        before = _figures(trainer.evaluate())
        write_atomic(run / "baseline.json", orjson.dumps(before))
    if before:
        say(f"dev before training: {_spoken(before)}")
    if last:
        say(f"continuing from step {resumed_at}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mtime may not be reliable")  # file times are not what we go by
        with unbroken() as pause:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            pause(f"step {trainer.state.global_step} is kept")
    after = _figures(trainer.evaluate()) if evaluates else {}
    if after:
        say(f"dev after training: {_spoken(after)}")
    steps, history = int(trainer.state.global_step), tuple(trainer.state.log_history)
    return Outcome(run.parent, steps, time.monotonic() - began, history, before, after, resumed_at)


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Dev figures without transformers' prefix and its timings."""
    told = ("runtime", "per_second", "epoch", "model_preparation_time")
    names = {key: key.removeprefix("eval_") for key in metrics if not key.endswith(told)}
    return {name: float(metrics[key]) for key, name in names.items()}


def _spoken(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _last_checkpoint(run: Path) -> tuple[int, Path | None]:
    """Step and folder of the newest whole checkpoint; what a kill left half-written is removed."""
    whole: list[tuple[int, Path]] = []
    for path in run.glob("checkpoint-*"):
        if state := read_object(path / "trainer_state.json"):
            whole.append((int(state["global_step"]), path))
        else:
            shutil.rmtree(path)
    return max(whole, default=(0, None))
