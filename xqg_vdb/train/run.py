"""What both trainers share: the run folder, transformers' arguments, continuing after a kill, the finished folder.

`OUT/run/` holds an unfinished run: `identity.json` (what it depends on) and transformers' checkpoints. A checkpoint
counts when its `trainer_state.json` can be read, which `Trainer` writes last. The finished files appear in `OUT` with
config.json as the last one, and `run/` goes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from xqg_vdb.errors import MismatchError, ModelError
from xqg_vdb.export.checkpoints import Checkpoint, fetch_checkpoint
from xqg_vdb.export.gate import need_torch
from xqg_vdb.export.starter_generator import TERMS_URL
from xqg_vdb.files import lock_folder, sync_folder, write_atomic
from xqg_vdb.generate.output import versions
from xqg_vdb.models.folder import STARTER_ENCODER, STARTER_GENERATOR
from xqg_vdb.train.pairs import TrainingPair, describe_pairs, leakage
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.train.encoder import EncoderSettings
    from xqg_vdb.train.generator import GeneratorSettings

Settings = TypeVar("Settings", "EncoderSettings", "GeneratorSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast. threads: None leaves torch's own. Raises ValueError for what cannot be."""

    epochs: float = option(3.0, "Rounds through the pairs.", least=0, above=True)
    max_steps: int | None = option(None, "Steps, instead of --epochs.", least=1)
    batch_size: int = option(16, "Per step: pairs, or a decoder-only model's passages.", least=1, varies=True)
    micro_batch: int | None = option(None, "How many of them in memory at a time  [default: all]", least=1)
    learning_rate: float = option(1e-4, "The highest one.", least=0, above=True, varies=True)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises.", least=0, most=1)
    weight_decay: float = 0.0
    seed: int = option(313, "Decides the order, and what is drawn.")
    eval_every: int = option(0, "Evaluate after so many steps; 0: before and after only.", least=0)
    save_minutes: float = option(10.0, "Minutes between checkpoints.", least=0)
    threads: int | None = option(None, "CPU threads  [default: all]", least=1)
    bf16: bool = option(False, "Also on a CPU: half the time where it has AVX512-BF16 or AMX.")

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


@dataclass(frozen=True)
class Job(Generic[Settings]):
    """What is trained, into which folder, on which pairs, and how.

    base: a hub id, folder, `starter:encoder` or `starter:generator`. dev: pairs to evaluate on. accept_license: of the
    starter generator's terms. say: called with one line now and then.
    """

    base: str
    out: Path
    settings: Settings
    pairs: Sequence[TrainingPair]
    dev: Sequence[TrainingPair] = ()
    accept_license: bool = False
    say: Callable[[str], None] = print


_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template.jinja",
)  # fmt: skip
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

    @property
    def results(self) -> dict[str, Any]:
        """The figures by name."""
        loss = self.losses[-1] if self.losses else None
        figures = {"steps": self.steps, "seconds": round(self.seconds, 1), "final_loss": loss}
        return figures | {"dev_before": dict(self.before), "dev_after": dict(self.after)}


def open_run(out: Path, identity: Mapping[str, Any]) -> Path:
    """The run folder inside `out`, new or that of an unfinished run of equal `identity`.

    Raises ModelError when `out` holds a finished checkpoint or something else, MismatchError for another run.
    """
    run = out / "run"
    if (out / "config.json").exists() or (out.is_dir() and not run.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out} already holds something: remove it, or give another folder to train into.")
    run.mkdir(parents=True, exist_ok=True)
    wanted = orjson.loads(orjson.dumps(identity))
    before = read_object(run / "identity.json")
    if not before:
        write_atomic(run / "identity.json", orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
        return run
    if other := sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key)):
        raise MismatchError(
            f"{run} holds an unfinished run with another {', '.join(other)}: repeat that run's command, or remove "
            "the folder to begin anew."
        )
    return run


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or half of one."""
    try:
        return dict(orjson.loads(file.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return {}


def _write_card(folder: Path, *, identity: Mapping[str, Any], outcome: Outcome, licence: str) -> None:
    """The record beside trained weights: training.json for machines, README.md for people and the model hub."""
    import torch

    results = {**outcome.results, "resumed_at": outcome.resumed_at}
    record = {
        **identity, "licence": licence, "results": results, "history": [dict(entry) for entry in outcome.history],
        "made_with": versions(_PACKAGES), "device": "cuda" if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
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


def _licence(base: str, checkpoint: Checkpoint) -> str:
    """The licence that the base's own model card names; what is trained from it inherits it."""
    if base == STARTER_GENERATOR:
        return f"gemma ({TERMS_URL}, which bind derivatives too)"
    if base == STARTER_ENCODER:
        return "mit (intfloat/multilingual-e5-small)"
    readme = checkpoint.path / "README.md"
    text = readme.read_text("utf-8", "replace")[:20_000] if readme.is_file() else ""
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", text, re.MULTILINE)
    return found[1] if found else "unknown: find out before you publish these weights"


def _told(data: Mapping[str, Any]) -> str:
    languages = ", ".join(f"{lang} {count}" for lang, count in data["languages"].items())
    return f"{data['pairs']} pairs about {data['passages']} passages ({languages}), SHA-256 {data['sha256']}"


def carry_out(
    kind: str,
    job: Job[Settings],
    train: Callable[[Job[Settings], Checkpoint, Path], tuple[Outcome, Callable[[Path], None]]],
) -> Outcome:
    """Do a job; continues after a stop.

    train: trains a checkpoint in the run folder; returns what became of it, and what writes the weights into a folder,
    where tokenizer and model card join them. Raises ModelError when `out` holds something else or the base cannot be
    read, MismatchError for an unfinished run of another identity, LockedError when another process is at it.
    """
    need_torch("Training", extra="train", also="accelerate")
    out = job.out
    identity = {
        "kind": kind,
        "base": job.base,
        "pairs": describe_pairs(job.pairs),
        "dev": describe_pairs(job.dev),
        "leakage": leakage(job.pairs, job.dev),
        "settings": {**asdict(job.settings), "schedule": job.settings.schedule.to_json()},
    }
    if finished_before := _finished(out, identity):
        return finished_before
    run = open_run(out, identity)
    with lock_folder(run):
        for left in (run / "base", run / "base-starter"):  # by an earlier try
            shutil.rmtree(left, ignore_errors=True)
        checkpoint = fetch_checkpoint(job.base, into=run / "base", accept_license=job.accept_license)
        outcome, save = train(job, checkpoint, run)
        finished = run / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        save(finished)
        for file in (file for pattern in _TOKENIZER_FILES for file in checkpoint.path.glob(pattern)):
            shutil.copyfile(file, finished / file.name)  # training does not touch the vocabulary
        _write_card(finished, identity=identity, outcome=outcome, licence=_licence(job.base, checkpoint))
        for file in sorted(finished.iterdir(), key=lambda path: path.name == "config.json"):
            if file.is_dir():
                shutil.rmtree(out / file.name, ignore_errors=True)  # from a run that was killed here
            file.replace(out / file.name)  # config.json is the last one: then the folder is a checkpoint
        sync_folder(out)
        shutil.rmtree(run)
    return outcome


def _finished(out: Path, identity: Mapping[str, Any]) -> Outcome | None:
    """What the same command made before, if it came to its end: a kill may have left its run folder."""
    record, wanted = read_object(out / "training.json"), orjson.loads(orjson.dumps(identity))
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
