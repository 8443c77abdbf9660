"""What both trainers share: the run folder, transformers' arguments, going on after a kill, the finished folder.

`OUT/run/` holds an unfinished run: `identity.json` (what it depends on) and transformers' checkpoints. A checkpoint
counts when its `trainer_state.json` can be read, which `Trainer` writes last. The finished files appear in `OUT` with
config.json as the last one, and `run/` goes.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from xqg_vdb.errors import DataError, MismatchError, MissingExtra, ModelError
from xqg_vdb.export.checkpoints import Base, Checkpoint, copy_tokenizer_files
from xqg_vdb.files import lock_folder, sync_folder, write_atomic
from xqg_vdb.generate.output import versions
from xqg_vdb.progress import unbroken
from xqg_vdb.train.pairs import TrainingPair, describe_pairs, leakage
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.train.encoder import EncoderSettings
    from xqg_vdb.train.generator import GeneratorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast. threads: 0 leaves torch's own. Raises ValueError for what cannot be."""

    epochs: float = option(3.0, "Rounds through the pairs.", least=0, above=True)
    max_steps: int | None = option(None, "Instead of --epochs.", least=1)
    batch_size: int = option(16, "Per step: pairs, or a decoder-only model's passages.", least=1, varies=True)
    micro_batch: int | None = option(None, "As many in memory at a time  [default: all]", least=1)
    learning_rate: float = option(1e-4, "At its highest.", least=0, above=True, varies=True)
    warmup: float = option(0.1, "Share of the steps.", least=0, most=1)
    weight_decay: float = 0.0
    seed: int = option(313, "Of the order, and of what is drawn.")
    eval_every: int = option(0, "Steps; 0: before and after only.", least=0)
    save_minutes: float = option(10.0, "Between checkpoints.", least=0)
    threads: int = option(0, "CPU threads  [default: all]", least=1)

    def __post_init__(self) -> None:
        if not self.epochs > 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError("epochs and max_steps must be more than 0")
        if self.batch_size < 1 or (self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size):
            raise ValueError("batch_size must be 1 or more, and micro_batch between 1 and batch_size")
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            raise ValueError("learning_rate must be more than 0, and warmup between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        """What the result depends on: all but how often something is written, and the threads."""
        left_out = ("save_minutes", "threads")
        return {key: value for key, value in asdict(self).items() if key not in left_out}


_PACKAGES = ("xqg-vdb", "torch", "transformers", "accelerate", "tokenizers")


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
    """The run folder inside `out`, new or that of an unfinished run of equal `identity`.

    Raises ModelError when `out` holds a finished checkpoint or something else, MismatchError for another run.
    """
    run = out / "run"
    if (out / "config.json").exists() or (out.is_dir() and not run.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out} already holds something: remove it, or give another folder to train into.")
    run.mkdir(parents=True, exist_ok=True)
    wanted = orjson.loads(orjson.dumps(identity))
    before = _read(run / "identity.json")
    if not before:
        write_atomic(run / "identity.json", orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
        return run
    if other := sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key)):
        raise MismatchError(
            f"{run} holds an unfinished run with another {', '.join(other)}: repeat that run's command, or remove "
            "the folder to begin anew."
        )
    return run


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or half of one."""
    try:
        return dict(orjson.loads(file.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return {}


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


def run_training(trainer: Any, run: Path, *, evaluates: bool, say: Callable[[str], None]) -> Outcome:
    """Train to the end, from the last whole checkpoint in `run` if there is one; dev is evaluated before and after."""
    began, (resumed_at, checkpoint) = time.monotonic(), _last_checkpoint(run)
    baseline = run / "baseline.json"
    before: dict[str, float] = _read(baseline)
    if evaluates and not before:
        before = figures(trainer.evaluate())
        write_atomic(baseline, orjson.dumps(before))
    if before:
        say(f"dev before training: {spoken(before)}")
    if checkpoint:
        say(f"going on from step {resumed_at}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mtime may not be reliable")  # file times are not what we go by
        with unbroken() as pause:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            pause(f"step {trainer.state.global_step} is kept")
    after = figures(trainer.evaluate()) if evaluates else {}
    if after:
        say(f"dev after training: {spoken(after)}")
    steps, history = int(trainer.state.global_step), tuple(trainer.state.log_history)
    return Outcome(run.parent, steps, time.monotonic() - began, history, before, after, resumed_at)


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Dev figures without transformers' prefix and its timings."""
    told = ("runtime", "per_second", "epoch", "model_preparation_time")
    names = {key: key.removeprefix("eval_") for key in metrics if not key.endswith(told)}
    return {name: float(metrics[key]) for key, name in names.items()}


def spoken(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _last_checkpoint(run: Path) -> tuple[int, Path | None]:
    """Step and folder of the newest whole checkpoint; what a kill left half-written is removed."""
    whole: list[tuple[int, Path]] = []
    for path in run.glob("checkpoint-*"):
        if state := _read(path / "trainer_state.json"):
            whole.append((int(state["global_step"]), path))
        else:
            shutil.rmtree(path)
    return max(whole, default=(0, None))


def _write_card(folder: Path, *, identity: Mapping[str, Any], outcome: Outcome, licence: str) -> None:
    """The record beside trained weights: training.json for machines, README.md for people and the model hub."""
    import torch

    results = {
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "resumed_at": outcome.resumed_at,
        "final_loss": outcome.losses[-1] if outcome.losses else None,
        "dev_before": dict(outcome.before),
        "dev_after": dict(outcome.after),
    }
    record = {
        **identity,
        "licence": licence,
        "results": results,
        "history": [dict(entry) for entry in outcome.history],
        "made_with": versions(_PACKAGES),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    write_atomic(folder / "training.json", orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    kind, dev, settings = identity["kind"], identity["dev"], identity["settings"]
    use = "xqg-vdb export --generator THIS_FOLDER OUT" if kind == "generator" else "xqg-vdb export THIS_FOLDER OUT"
    lost = "unknown" if results["final_loss"] is None else f"{results['final_loss']:.4f}"
    settings = {**settings, **settings["schedule"]}
    lines = [
        "---", f"license: {licence.split()[0].rstrip(':')}", "tags: [xqg-vdb]", "---",
        "", f"# Fine-tuned {kind}", "",
        f"Trained by xqg-vdb {record['made_with']['xqg-vdb']} from `{identity['base']}`. To use it: `{use}`.", "",
        "## Data", "",
        f"- training: {_told(identity['pairs'])}",
        f"- dev: {_told(dev) if dev['pairs'] else 'none'}",
        *([f"- in both: {identity['leakage']}"] if dev["pairs"] else []),
        "", "## Licence", "", f"Of the base model: {licence}. The data may add conditions of its own.", "",
        "## Results", "", "| | dev before | dev after |", "|---|---|---|",
        *(f"| {name} | {outcome.before.get(name, float('nan')):.4f} | {value:.4f} |"
          for name, value in outcome.after.items()),
        "",
        f"{outcome.steps} steps, final training loss {lost}, on {record['device']}.",
        "", "## Hyper-parameters", "", "| | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items() if not isinstance(value, dict)), "",
    ]  # fmt: skip
    write_atomic(folder / "README.md", "\n".join(lines).encode())


def _told(data: Mapping[str, Any]) -> str:
    languages = ", ".join(f"{lang} {count}" for lang, count in data["languages"].items())
    return f"{data['pairs']} pairs about {data['passages']} passages ({languages}), SHA-256 {data['sha256']}"


def carry_out(
    kind: str,
    base: Base,
    out: Path,
    *,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair],
    settings: EncoderSettings | GeneratorSettings,
    train: Callable[[Checkpoint, Path], tuple[Outcome, Callable[[Path], None]]],
) -> Outcome:
    """Train `base` into the folder `out`; goes on after a stop.

    train: trains a checkpoint in the run folder; returns what became of it, and what writes the weights into a folder,
    where tokenizer and model card join them. Raises ModelError when `out` holds something else or the base cannot be
    read, MismatchError for an unfinished run of another identity, LockedError when another process is at it.
    """
    need_training_packages()
    identity = {
        "kind": kind,
        "base": base.name,
        "pairs": describe_pairs(pairs),
        "dev": describe_pairs(dev),
        "leakage": leakage(pairs, dev),
        "settings": {**asdict(settings), "schedule": settings.schedule.to_json()},
    }
    if finished_before := _finished(out, identity):
        return finished_before
    run = open_run(out, identity)
    with lock_folder(run):
        checkpoint = base.fetch(run / "base")
        outcome, save = train(checkpoint, run)
        finished = run / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        save(finished)
        copy_tokenizer_files(checkpoint, finished)
        _write_card(finished, identity=identity, outcome=outcome, licence=base.licence(checkpoint))
        for file in sorted(finished.iterdir(), key=lambda path: path.name == "config.json"):
            if file.is_dir():
                shutil.rmtree(out / file.name, ignore_errors=True)  # from a run that was killed here
            file.replace(out / file.name)  # config.json is the last one: then the folder is a checkpoint
        sync_folder(out)
        shutil.rmtree(run)
    return outcome


def _finished(out: Path, identity: Mapping[str, Any]) -> Outcome | None:
    """What the same command made before, if it came to its end: a kill may have left its run folder."""
    record, wanted = _read(out / "training.json"), orjson.loads(orjson.dumps(identity))
    if not (out / "config.json").exists() or any(record.get(key) != value for key, value in wanted.items()):
        return None
    shutil.rmtree(out / "run", ignore_errors=True)
    results = record["results"]
    return Outcome(
        out, results["steps"], results["seconds"], tuple(record["history"]), results["dev_before"],
        results["dev_after"], results["resumed_at"],
    )  # fmt: skip


def spread(examples: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, evenly spread."""
    return list(examples[:: max(1, len(examples) // limit)][:limit])
