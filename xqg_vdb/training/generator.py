"""Fine-tuning a query generator: `train_generator` takes pairs and a checkpoint and leaves a checkpoint.

Decoder-only models learn the `finetuned` prompt of `generation.prompts` with the loss on the question tokens alone.
In: `TrainingPair`s. Out: a folder for `xqg-vdb export --generator`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from xqg_vdb.checkpoints import Checkpoint
from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.generation.export import FINETUNED_KEY, end_tokens, save_tokenizer, start_token
from xqg_vdb.generation.prompts import finetuned
from xqg_vdb.model_folder import TOKENIZER
from xqg_vdb.training.base import Base
from xqg_vdb.training.pairs import TrainingPair, describe_pairs
from xqg_vdb.training.question_trees import Tree, collate_trees, question_trees
from xqg_vdb.training.running import (
    Outcome,
    Report,
    finish,
    hold,
    need_training_packages,
    open_run,
    run_training,
    training_arguments,
)
from xqg_vdb.training.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """How a generator is trained.

    max_passage_tokens: passages are cut there, in training and in writing. freeze_embeddings: leave the token table as
    it is; with 250,000 tokens it is most of a small model and too few pairs would only disturb it. lora: rank, 0 for
    full fine-tuning. dev_limit: dev passages that are evaluated, evenly spread.
    """

    schedule: Schedule = field(default_factory=Schedule)
    max_passage_tokens: int = 160
    max_question_tokens: int = 48
    freeze_embeddings: bool = False
    lora: int = 0
    dev_limit: int = 200


def train_generator(
    base: Base,
    out: Path,
    *,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair] = (),
    settings: GeneratorSettings | None = None,
    report: Report,
) -> Outcome:
    """Fine-tune `base` on `pairs` into the folder `out`; a run that was stopped goes on when it is called again.

    The loss is the mean negative log-probability of a question token (nats), the end token included. report: called
    with one line now and then. Raises DataError without pairs, ModelError for a checkpoint that cannot be trained,
    MismatchError when `out` holds an unfinished run of something else, MissingExtra without torch.
    """
    settings = settings or GeneratorSettings()
    need_training_packages()
    if not pairs:
        raise DataError("There is no training pair: give --pairs with at least one question and its passage.")
    record = {**asdict(settings), "schedule": settings.schedule.to_json()}
    identity = {"kind": "generator", "base": base.name, "pairs": describe_pairs(pairs), "settings": record}
    run = open_run(out, {**identity, "dev": describe_pairs(dev)})
    with hold(run):
        return _train(base, run, pairs, dev, settings, report)


def _train(
    base: Base,
    run: Path,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair],
    settings: GeneratorSettings,
    report: Report,
) -> Outcome:
    from transformers import Trainer

    checkpoint = base.fetch(run / "base")
    model = _model(checkpoint.path, settings)
    make = _tree_maker(checkpoint, run, settings)
    trees, held_out = make(pairs), make(dev)
    held_out = held_out[:: max(1, len(held_out) // settings.dev_limit)][: settings.dev_limit]
    report(f"{len(pairs)} questions about {len(trees)} passages; {_parameters(model)}")
    arguments = training_arguments(run, settings.schedule, evaluates=bool(held_out))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=trees,
        eval_dataset=held_out or None,
        data_collator=collate_trees,
        compute_loss_func=question_loss,
    )
    outcome = run_training(trainer, run, settings.schedule, evaluates=bool(held_out), report=report)
    _save(trainer.accelerator.unwrap_model(trainer.model), checkpoint.path, run, settings)
    return outcome


def question_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Sum of −log p over the tokens of `labels` (n, T) that are not −100, divided by their number in the whole batch.

    outputs.logits: (n, T, V). num_items_in_batch: their number over all micro batches of a step.
    """
    from torch.nn.functional import cross_entropy

    logits = outputs.logits.flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def _model(checkpoint: Path, settings: GeneratorSettings) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True,
            local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise ModelError(f"transformers cannot load {checkpoint}: {str(error)[:300]}") from error
    model.config.use_cache = False
    if settings.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    if settings.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=settings.lora, lora_alpha=2 * settings.lora, target_modules="all-linear"))
    return model


def _tree_maker(checkpoint: Checkpoint, run: Path, settings: GeneratorSettings) -> Callable[[Sequence[TrainingPair]], list[Tree]]:
    """What turns pairs into trees for this checkpoint; its tokenizer.json is written to `run`."""
    from tokenizers import Tokenizer

    save_tokenizer(checkpoint.path, run)
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER))
    ends = end_tokens(checkpoint, run)
    if not ends:
        raise ModelError(f"{checkpoint.source} names no end token (eos_token_id), which a generator must learn.")
    return partial(
        question_trees,
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        prompt=finetuned(max_passage_tokens=settings.max_passage_tokens),
        bos=start_token(checkpoint, run),
        eos=ends[0],
        max_question_tokens=settings.max_question_tokens,
    )


def _parameters(model: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{trained / 1e6:.1f} of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters are trained"


def _save(model: Any, base: Path, run: Path, settings: GeneratorSettings) -> None:
    """The finished checkpoint: merged weights, the base's tokenizer files, and what it was trained on."""
    finished = run / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    if settings.lora:
        model = model.merge_and_unload()
    model.config.use_cache = True
    setattr(model.config, FINETUNED_KEY, {"max_passage_tokens": settings.max_passage_tokens})
    model.save_pretrained(str(finished), safe_serialization=True)
    for pattern in ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
                    "chat_template.jinja"):  # fmt: skip
        for file in base.glob(pattern):
            shutil.copyfile(file, finished / file.name)
    finish(run, finished)
