"""`xqg-vdb export` and `xqg-vdb train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from xqg_vdb.cli.options import PATH, F, command, say, show, takes
from xqg_vdb.errors import printable

if TYPE_CHECKING:
    from xqg_vdb.export.checkpoints import Overrides
    from xqg_vdb.train.encoder import EncoderSettings
    from xqg_vdb.train.generator import GeneratorSettings
    from xqg_vdb.train.pairs import Sources, TrainingPair
    from xqg_vdb.train.run import Outcome

S = TypeVar("S", "EncoderSettings", "GeneratorSettings")

licence_option = click.option(
    "--accept-license", is_flag=True, help="Accept the terms that starter:generator comes under."
)


@command(
    example="xqg-vdb export starter:encoder\n"
    "xqg-vdb export intfloat/multilingual-e5-small models/e5 --precision fp32\n"
    "xqg-vdb export starter:generator --accept-license\n"
    "xqg-vdb export http://localhost:8080/v1 models/tei \\\n    --model intfloat/multilingual-e5-large\n"
    "xqg-vdb export cross:cross-encoder/ms-marco-MiniLM-L6-v2"
)
@click.argument("checkpoint")
@click.argument("out", required=False, type=PATH)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), help="[default: int8, but fp32 of cross:]")
@takes("overrides", "xqg_vdb.export.encoder.Overrides")
@click.option("--model", metavar="NAME", help="What CHECKPOINT, a URL, calls its model.")
@click.option("--explain", is_flag=True, help="Say what CHECKPOINT is and what is refused; export nothing.")
@click.option("--generator", is_flag=True, help="CHECKPOINT writes queries (mT5 or a causal model).")
@licence_option
def export(
    checkpoint: str,
    out: Path | None,
    precision: Literal["int8", "fp32"] | None,
    overrides: Overrides,
    model: str | None,
    explain: bool,
    generator: bool,
    accept_license: bool,
) -> None:
    """Export a checkpoint to an ONNX model folder, and check that it computes what the original computes.

    CHECKPOINT is a hub id, a local folder, starter:encoder or starter:generator; the starters come from the package
    index. Without OUT, hub ids and starters go to the cache, where other commands find them by name.

    cross: and a checkpoint is a cross-encoder, for `search --rerank cross:MODEL`; it is exported in fp32.

    CHECKPOINT may also be the URL, up to /v1, of an OpenAI-compatible server (OpenAI, TEI, vLLM, Ollama, llama.cpp;
    its key in XQG_VDB_ENCODER_KEY or OPENAI_API_KEY), or of TEI's own /embed, where --query-prefix prompt_name:query
    lets the server put its prompt of that name before questions. OUT then holds its conventions and its calibration,
    and is an encoder like any other.
    """
    from xqg_vdb.export.encoder import explain as describe
    from xqg_vdb.export.encoder import export as run

    if explain:
        record = describe(checkpoint, overrides, generator=generator, accept_license=accept_license)
        show(record, map(printable, _explained(record)))
        return
    folder = run(
        checkpoint, out, precision=precision, overrides=overrides, generator=generator, accept_license=accept_license,
        model=model, say=say,
    )  # fmt: skip
    if folder.kind != "encoder":
        show({"path": str(folder.path), **folder.manifest}, [f"{folder.path}  {folder.kind}"])
        return
    lines = [f"{folder.path}  fingerprint {folder.fingerprint}"]
    if parity := folder.manifest["parity"]:
        lowest, mean = parity["cosine_min"], parity["cosine_mean"]
        lines.append(f"parity   cosine min {lowest:.4f}, mean {mean:.4f} ({parity['texts']} texts)")
    if speed := folder.manifest["speed"]:
        lines.append(f"speed    {speed['passages_per_second']} passages/s on {speed['threads']} threads")
    for engine, figures in folder.manifest.get("engines", {}).items():
        said = f"{figures['passages_per_second']} passages/s" if figures["passages_per_second"] else "refused"
        best = "  fastest here: --engine" if engine == folder.manifest["fastest_engine"] else ""
        lines.append(f"{engine:<14}{said}, cosine min {figures['cosine_min']:.5f}{best}")
    lines.append(f"calibration λ = {folder.recommended_calibration} ({len(folder.language_means().means)} languages)")
    show({"path": str(folder.path), "fingerprint": folder.fingerprint, **folder.manifest}, lines)


def _explained(record: dict[str, Any]) -> Iterator[str]:
    source, kind, place, software = (record[name] for name in ("source", "kind", "from", "software"))
    yield f"{source}, read as {kind}, from a {place}; original software: {software}"
    rows = [("", "original", "export")]
    rows += [(name, _shown(theirs), _shown(ours)) for name, (theirs, ours) in record["facts"].items()]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, original, ours in rows:
        yield f"{name:<{first}}  {original:<{second}}  {ours}".rstrip()
    for sentence in record["refused"]:
        yield f"refused: {sentence}"


def _shown(value: Any) -> str:
    if isinstance(value, str) and (value != value.strip() or not value.isprintable()):
        return repr(value)  # the space at a prompt's end counts
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


@click.group()
def train() -> None:
    """Train a retriever or a query generator on question-passage pairs.

    \b
    Example:
      xqg-vdb train encoder starter:encoder e5-mine --pairs train.jsonl \\
          --dev dev.jsonl
    """  # noqa: D301 - \b is click's


def training_options(settings: str) -> Callable[[F], F]:
    """What is trained, on which pairs, how long and how fast; `settings`: the trainer's own record."""

    def add(function: F) -> F:
        for option in (
            takes("own", settings, changes=True),
            takes("schedule", "xqg_vdb.train.run.Schedule", changes=True),
            click.option("--preset", type=click.Choice(["xqg"]), help="The paper's recipe; other options change it."),
            takes("sources", "xqg_vdb.train.pairs.Sources"),
            click.argument("out", type=PATH),
            click.argument("checkpoint"),
        ):
            function = option(function)
        return function

    return add


def _read(sources: Sources) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training and dev pairs; a missing extra is said before minutes of reading."""
    from xqg_vdb.export.gate import need_torch

    need_torch("Training", extra="train", also="accelerate")
    return sources.read(say)


def _changed(start: S, schedule: Mapping[str, Any], own: Mapping[str, Any]) -> S:
    """The settings with what the user said; epochs that were asked for are not cut by a preset's steps."""
    before = replace(start.schedule, max_steps=None) if "epochs" in schedule else start.schedule
    return replace(start, schedule=replace(before, **schedule), **own)


@command(
    of=train,
    example="xqg-vdb train generator starter:generator gemma-afriqa --accept-license \\\n    --freeze-embeddings \\\n"
    "    --pairs afriqa --dev afriqa --drop-leaks --english also\n"
    "xqg-vdb export --generator gemma-afriqa models/gemma-afriqa",
)
@training_options("xqg_vdb.train.generator.GeneratorSettings")
@licence_option
def generator(
    checkpoint: str,
    out: Path,
    sources: Sources,
    preset: str | None,
    schedule: dict[str, Any],
    own: dict[str, Any],
    accept_license: bool,
) -> None:
    """Fine-tune the query generator CHECKPOINT on pairs.

    CHECKPOINT is a hub id, a folder or starter:generator; OUT is then a checkpoint for `xqg-vdb export --generator`. A
    run that was stopped continues when the same command is run again.
    """
    from xqg_vdb.train.generator import XQG_PRESET, GeneratorSettings, train_generator
    from xqg_vdb.train.run import Job

    pairs, dev = _read(sources)
    settings = _changed(XQG_PRESET if preset else GeneratorSettings(), schedule, own)
    _show(train_generator(Job(checkpoint, out, settings, pairs, dev, accept_license, say)))


@command(
    of=train,
    example="xqg-vdb train encoder starter:encoder e5-afriqa --pairs afriqa \\\n"
    "    --dev afriqa --drop-leaks --micro-batch 16\n"
    "xqg-vdb export e5-afriqa models/e5-afriqa",
)
@training_options("xqg_vdb.train.encoder.EncoderSettings")
@takes("overrides", "xqg_vdb.export.encoder.Overrides", changes=True)
def encoder(
    checkpoint: str,
    out: Path,
    sources: Sources,
    preset: str | None,
    schedule: dict[str, Any],
    own: dict[str, Any],
    overrides: dict[str, Any],
) -> None:
    """Train the dense retriever CHECKPOINT on pairs.

    CHECKPOINT is a hub id, a folder or starter:encoder; OUT is then a checkpoint for `xqg-vdb export`. With
    --micro-batch, gradients are cached: a batch of any size needs the memory of that many texts. A run that was stopped
    continues when the same command is run again.
    """
    from xqg_vdb.train.encoder import XQG_PRESET, EncoderSettings, train_encoder
    from xqg_vdb.train.run import Job

    pairs, dev = _read(sources)
    settings = _changed(XQG_PRESET if preset else EncoderSettings(), schedule, own)
    settings = replace(settings, overrides=replace(settings.overrides, **overrides))
    _show(train_encoder(Job(checkpoint, out, settings, pairs, dev, say=say)))


def _show(outcome: Outcome) -> None:
    lines = [f"{outcome.folder}  {outcome.steps} steps in {outcome.seconds:.0f} s"]
    for name, value in outcome.after.items():
        lines.append(f"dev {name:<8}{outcome.before.get(name, float('nan')):.4f} -> {value:.4f}")
    show({"path": str(outcome.folder), **outcome.results}, lines)
