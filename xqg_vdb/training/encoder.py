"""Training the retriever: `train_encoder` takes pairs and any multilingual checkpoint and leaves a checkpoint.

A tied dual encoder with in-batch negatives, and hard ones where the pairs have them or they are mined. In:
`TrainingPair`s. Out: a folder for `xqg-vdb export`, which finds the conventions in its sentence-transformers files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.checkpoints import Checkpoint, conventions
from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.export import Overrides
from xqg_vdb.files import write_atomic
from xqg_vdb.model_folder import EncoderSpec
from xqg_vdb.torch_weights import load_weights
from xqg_vdb.training.base import Base
from xqg_vdb.training.encoder_batches import PairCollator
from xqg_vdb.training.pairs import TrainingPair, content_key
from xqg_vdb.training.running import Outcome, Report, need_training_packages, run_training, training_arguments
from xqg_vdb.training.schedule import Schedule
from xqg_vdb.training.whole_run import Save, carry_out, identity_of, spread

COSINE_TEMPERATURE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """How an encoder is trained.

    negatives: hard ones per pair and step. mine: how many to mine for every pair before training, by the checkpoint
    itself; skip: of what is found, leave out the best so many. temperature: None takes 0.02 for cosine, 1 for dot.
    query_tokens, passage_tokens: texts are cut there in training. ignore_copies: another copy of a question's passage
    in the batch is no negative. overrides: conventions that the checkpoint does not have or that are to change.
    dev_limit: dev pairs that are evaluated, evenly spread, against all their passages.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=64, learning_rate=2e-5))
    negatives: int = 0
    mine: int = 0
    skip: int = 0
    temperature: float | None = None
    query_tokens: int = 64
    passage_tokens: int = 192
    ignore_copies: bool = True
    overrides: Overrides = field(default_factory=Overrides)
    dev_limit: int = 1000


XQG_PRESET = EncoderSettings(
    schedule=Schedule(epochs=40, batch_size=128, learning_rate=1e-5, warmup=0.1),
    negatives=7,
    temperature=1.0,
    query_tokens=32,
    passage_tokens=128,
    ignore_copies=False,
    overrides=Overrides(pooling="cls", normalize=False, query_prefix="", passage_prefix="", max_length=128),
)
"""The xDR recipe of xQG's repository (Tevatron): CLS, dot product, no temperature, one positive and seven negatives."""


def train_encoder(
    base: Base,
    out: Path,
    *,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair] = (),
    settings: EncoderSettings | None = None,
    report: Report,
) -> Outcome:
    """Train `base` on `pairs` into the folder `out`; a run that was stopped goes on when it is called again.

    report: called with one line now and then. Raises DataError without two pairs, ModelError for a checkpoint that
    cannot be trained, MismatchError when `out` holds an unfinished run of something else, MissingExtra without torch.
    """
    settings = settings or EncoderSettings()
    need_training_packages()
    if len(pairs) < 2:
        raise DataError("In-batch negatives need two training pairs or more: give --pairs with more of them.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ModelError(
            "The encoder trains on one device, where all negatives of a batch are; run it without torchrun."
        )

    def train(checkpoint: Checkpoint, run: Path) -> tuple[Outcome, Save]:
        spec = settings.overrides.apply(conventions(checkpoint)[0])
        model, tokenizer = _load(checkpoint, seed=settings.schedule.seed)
        outcome = _run(model, tokenizer, spec, run, pairs, spread(dev, settings.dev_limit), settings, report)
        return outcome, partial(_save, model, spec)

    return carry_out(base, out, identity=identity_of("encoder", base, pairs, dev, settings), train=train)


def _run(
    model: Any,
    tokenizer: Any,
    spec: EncoderSpec,
    run: Path,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair],
    settings: EncoderSettings,
    report: Report,
) -> Outcome:
    from xqg_vdb.training.contrastive import Scoring
    from xqg_vdb.training.torch_encoder import TorchEncoder
    from xqg_vdb.training.trainers import EncoderTrainer

    schedule = settings.schedule
    arguments = training_arguments(run, schedule, evaluates=bool(dev), whole_batches=True)
    model.to(arguments.device)
    encoder = TorchEncoder(
        model, tokenizer, spec, query_tokens=settings.query_tokens, passage_tokens=settings.passage_tokens
    )
    pairs = _mined(pairs, encoder, run, settings, report)
    trainer = EncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=list(pairs),
        eval_dataset=list(dev) or None,
        data_collator=PairCollator(
            tokenizer, spec, settings.query_tokens, settings.passage_tokens, settings.negatives,
            settings.ignore_copies, schedule.seed,
        ),
    )  # fmt: skip
    temperature = settings.temperature or (COSINE_TEMPERATURE if spec.normalize else 1.0)
    whole = schedule.batch_size * (1 + settings.negatives)
    trainer.prepare(
        scoring=Scoring(spec.pooling, spec.normalize, temperature),
        chunk=schedule.micro_batch or whole,
        encoder=encoder,
        dev=dev,
    )
    trainer.watch(save_minutes=schedule.save_minutes, batch_size=schedule.batch_size, report=report)
    return run_training(trainer, run, evaluates=bool(dev), report=report)


def _mined(
    pairs: Sequence[TrainingPair], encoder: Any, run: Path, settings: EncoderSettings, report: Report
) -> Sequence[TrainingPair]:
    """The pairs with mined negatives; those of an earlier try are in the run folder, so a resumed run has the same."""
    if not settings.mine:
        return pairs
    from xqg_vdb.training.mining import mine_negatives

    kept = run / "negatives.json"
    by_key = {content_key(passage): passage for pair in pairs for passage in (pair.positive, *pair.negatives)}
    if kept.exists():
        rows = orjson.loads(kept.read_bytes())
        return [replace(p, negatives=tuple(by_key[key] for key in keys)) for p, keys in zip(pairs, rows, strict=True)]
    report(f"mining {settings.mine} hard negatives for each of {len(pairs)} pairs")
    mined = mine_negatives(pairs, encoder, count=settings.mine, skip=settings.skip)
    write_atomic(kept, orjson.dumps([[content_key(passage) for passage in pair.negatives] for pair in mined]))
    return mined


def _load(checkpoint: Checkpoint, *, seed: int) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, set_seed

    set_seed(seed)  # for weights that the checkpoint lacks, such as BERT's own pooler, which nothing here uses
    if checkpoint.dense is not None:
        raise ModelError(f"{checkpoint.source} has a projection after pooling, which cannot be trained here.")
    model = load_weights("AutoModel", checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint.path), use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot load {checkpoint.source}: {str(error)[:300]}") from error
    return model, tokenizer


def _save(model: Any, spec: EncoderSpec, finished: Path) -> None:
    model.save_pretrained(str(finished), safe_serialization=True)
    write_conventions(finished, spec)


def write_conventions(folder: Path, spec: EncoderSpec) -> None:
    """Write the sentence-transformers files from which `export` (and that library) learns how to use the weights."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if spec.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": spec.dim,
        "pooling_mode_cls_token": spec.pooling == "cls",
        "pooling_mode_mean_tokens": spec.pooling == "mean",
    }
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": spec.max_length},
        "config_sentence_transformers.json": {"prompts": {"query": spec.query_prefix, "passage": spec.passage_prefix}},
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
