"""What both trainers share: the run folder, transformers' arguments, going on after a kill, the finished folder.

`OUT/run/` holds an unfinished run: `identity.json` (what it depends on) and transformers' checkpoints. A checkpoint
counts when its `trainer_state.json` can be read, which `Trainer` writes last. The finished files appear in `OUT` with
config.json as the last one, and `run/` goes.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, MismatchError, MissingExtra, ModelError
from xqg_vdb.files import lock_folder, sync_folder, write_atomic
from xqg_vdb.training.schedule import Schedule

RUN = "run"
Report = Callable[[str], None]

_IDENTITY = "identity.json"


@dataclass(frozen=True)
class Outcome:
    """What a finished training run reports.

    folder: the checkpoint. history: transformers' log, one record per step and evaluation. before, after: dev figures.
    """

    folder: Path
    steps: int
    seconds: float
    history: tuple[Mapping[str, Any], ...]
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    resumed_at: int = 0

    @property
    def losses(self) -> list[float]:
        """Training loss of every step."""
        return [float(record["loss"]) for record in self.history if "loss" in record]


def need_training_packages() -> None:
    """Raise MissingExtra unless torch, transformers and accelerate are installed; silence transformers' own lines."""
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtra(f'Training needs {error.name}: pip install "xqg-vdb[train]".') from error
    transformers.logging.set_verbosity_error()


def open_run(out: Path, identity: Mapping[str, Any]) -> Path:
    """The run folder inside `out`, new or that of an unfinished run of equal `identity`; hold it with `lock_folder`.

    Raises ModelError when `out` holds a finished checkpoint or something else, MismatchError for another run.
    """
    run = out / RUN
    if (out / "config.json").exists() or (out.is_dir() and not run.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out} already holds something: remove it, or give another folder to train into.")
    run.mkdir(parents=True, exist_ok=True)
    wanted = orjson.loads(orjson.dumps(identity))
    try:
        found = orjson.loads((run / _IDENTITY).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        write_atomic(run / _IDENTITY, orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
        return run
    other = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if other:
        raise MismatchError(
            f"{run} holds an unfinished run with another {', '.join(other)}: repeat that run's command, or remove "
            "the folder to begin anew."
        )
    return run


def training_arguments(run: Path, schedule: Schedule, *, evaluates: bool, whole_batches: bool = False) -> Any:
    """`TrainingArguments` for a schedule: bf16 on CUDA, fp32 on CPU, one device per process, nothing sent anywhere.

    whole_batches: do not accumulate gradients over micro batches, because a loss sees all of a batch.
    """
    import torch
    from transformers import TrainingArguments

    if schedule.threads:
        torch.set_num_threads(schedule.threads)
    cuda = torch.cuda.is_available()
    micro = schedule.batch_size if whole_batches else schedule.micro_batch or schedule.batch_size
    if schedule.batch_size % micro:
        raise DataError(f"The batch size {schedule.batch_size} is no multiple of the micro batch {micro}.")
    every = schedule.eval_every if evaluates else 0
    arguments = TrainingArguments(
        output_dir=str(run),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=schedule.batch_size // micro,
        learning_rate=schedule.learning_rate,
        warmup_ratio=schedule.warmup,
        weight_decay=schedule.weight_decay,
        seed=schedule.seed,
        eval_strategy="steps" if every else "no",
        eval_steps=every or None,
        save_strategy="no",  # `WatchedTrainer` saves by the clock
        save_total_limit=1,
        logging_steps=1,  # a resumed run then logs the very losses of an unbroken one
        bf16=bool(cuda and torch.cuda.is_bf16_supported()),
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


def run_training(trainer: Any, run: Path, *, evaluates: bool, report: Report) -> Outcome:
    """Train to the end, from the last whole checkpoint in `run` if there is one; dev is evaluated before and after."""
    began = time.monotonic()
    checkpoint = _last_checkpoint(run)
    state = _state(checkpoint) if checkpoint else {}
    before: dict[str, float] = {}
    baseline = run / "baseline.json"
    if evaluates and baseline.exists():
        before = orjson.loads(baseline.read_bytes())
    elif evaluates:
        before = figures(trainer.evaluate())
        write_atomic(baseline, orjson.dumps(before))
    if before:
        report(f"dev before training: {spoken(before)}")
    if checkpoint:
        report(f"going on from step {state['global_step']}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mtime may not be reliable")  # file times are not what we go by
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = figures(trainer.evaluate()) if evaluates else {}
    if after:
        report(f"dev after training: {spoken(after)}")
    return Outcome(
        run.parent,
        steps=int(trainer.state.global_step),
        seconds=time.monotonic() - began,
        history=tuple(trainer.state.log_history),
        before=before,
        after=after,
        resumed_at=int(state.get("global_step", 0)),
    )


def new_finished(run: Path) -> Path:
    """An empty folder in `run` to put the finished files into."""
    finished = run / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir()
    return finished


def finish(run: Path, finished: Path) -> None:
    """Move what is in `finished` (a folder in `run`) to the output folder, config.json last, and remove `run`."""
    out = run.parent
    for file in sorted(finished.iterdir(), key=lambda path: path.name == "config.json"):
        file.replace(out / file.name)
    sync_folder(out)
    shutil.rmtree(run)


def hold(run: Path) -> Any:
    """A lock on the run folder, to be closed. Raises LockedError when another process trains there."""
    return lock_folder(run)


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Dev figures without transformers' prefix and its timings."""
    told = ("runtime", "per_second", "epoch", "model_preparation_time")
    names = {key: key.removeprefix("eval_") for key in metrics if not key.endswith(told)}
    return {name: float(metrics[key]) for key, name in names.items()}


def spoken(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads((checkpoint / "trainer_state.json").read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}


def _last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint; what a kill left half-written is removed."""
    whole: list[tuple[int, Path]] = []
    for path in run.glob("checkpoint-*"):
        state = _state(path)
        if state:
            whole.append((int(state["global_step"]), path))
        else:
            shutil.rmtree(path)
    return max(whole)[1] if whole else None
