"""Fine-tuning a query generator: `train_generator` takes pairs and a checkpoint and leaves a checkpoint.

Decoder-only models learn the `finetuned` prompt of `generation.prompts` with the loss on the question tokens alone,
encoder-decoders the paper's prompt. In: `TrainingPair`s. Out: a folder for `xqg-vdb export --generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from xqg_vdb.checkpoints import Checkpoint
from xqg_vdb.errors import DataError, MissingExtra, ModelError
from xqg_vdb.generation.export import FINETUNED_KEY, SEQ2SEQ, end_tokens, save_tokenizer, start_token
from xqg_vdb.generation.prompts import finetuned
from xqg_vdb.model_folder import TOKENIZER
from xqg_vdb.torch_weights import load_weights
from xqg_vdb.training.base import Base
from xqg_vdb.training.pairs import TrainingPair, describe_pairs
from xqg_vdb.training.question_trees import TreeCollator, question_trees
from xqg_vdb.training.running import Outcome, Report, need_training_packages, run_training, training_arguments
from xqg_vdb.training.schedule import Schedule
from xqg_vdb.training.seq2seq_batches import Seq2SeqCollator, seq2seq_examples
from xqg_vdb.training.whole_run import Save, carry_out, identity_of, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """How a generator is trained.

    max_passage_tokens: passages are cut there; an encoder-decoder's whole prompt is. freeze_embeddings: leave the token
    tables as they are; with 250,000 tokens they are most of a small model, and few pairs would only disturb them.
    lora: rank, 0 for full fine-tuning. dev_limit: dev examples that are evaluated, evenly spread.
    """

    schedule: Schedule = field(default_factory=Schedule)
    max_passage_tokens: int = 160
    max_question_tokens: int = 48
    freeze_embeddings: bool = False
    lora: int = 0
    dev_limit: int = 200


XQG_PRESET = GeneratorSettings(
    schedule=Schedule(max_steps=2000, batch_size=128, learning_rate=1e-4, warmup=0.0, eval_every=100),
    max_passage_tokens=128,
)
"""What xQG's generators were trained with (DSI-QG step 1, written there for mT5-large); the last weights are kept."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the two architectures differ in. make: pairs to examples. collate: examples to a batch."""

    make: Callable[[Sequence[TrainingPair]], list[Any]]
    collate: Callable[[Any], dict[str, Any]]


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

    def train(checkpoint: Checkpoint, run: Path) -> tuple[Outcome, Save]:
        model = _model(checkpoint, settings)
        outcome = _run(model, _shape(checkpoint, run, model, settings), run, pairs, dev, settings, report)
        return outcome, partial(_save, model, checkpoint, settings)

    return carry_out(base, out, identity=identity_of("generator", base, pairs, dev, settings), train=train)


def _run(
    model: Any,
    shape: _Shape,
    run: Path,
    pairs: Sequence[TrainingPair],
    dev: Sequence[TrainingPair],
    settings: GeneratorSettings,
    report: Report,
) -> Outcome:
    from xqg_vdb.training.trainers import WatchedTrainer, question_loss

    examples, held_out = shape.make(pairs), spread(shape.make(dev), settings.dev_limit)
    report(f"{len(pairs)} questions about {describe_pairs(pairs)['passages']} passages; {_parameters(model)}")
    schedule = settings.schedule
    trainer = WatchedTrainer(
        model=model,
        args=training_arguments(run, schedule, evaluates=bool(held_out)),
        train_dataset=examples,
        eval_dataset=held_out or None,
        data_collator=shape.collate,
        compute_loss_func=question_loss,
    )
    trainer.watch(save_minutes=schedule.save_minutes, batch_size=schedule.batch_size, report=report)
    return run_training(trainer, run, evaluates=bool(held_out), report=report)


def _model(checkpoint: Checkpoint, settings: GeneratorSettings) -> Any:
    import transformers

    seq2seq = checkpoint.config["model_type"] in SEQ2SEQ
    kind = "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"
    model = load_weights(kind, checkpoint, attention="eager" if seq2seq else "sdpa")
    transformers.set_seed(settings.schedule.seed)  # for adapters, which start at random
    model.config.use_cache = False
    if settings.freeze_embeddings:
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.requires_grad_(False)
    return _with_adapters(model, settings.lora) if settings.lora else model


def _with_adapters(model: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra(f'--lora needs {error.name}: pip install "xqg-vdb[train]".') from error
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def _shape(checkpoint: Checkpoint, run: Path, model: Any, settings: GeneratorSettings) -> _Shape:
    from tokenizers import Tokenizer

    save_tokenizer(checkpoint.path, run)
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER))
    ends = end_tokens(checkpoint, run)
    if not ends:
        raise ModelError(f"{checkpoint.source} names no end token (eos_token_id), which a generator must learn.")

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    longest, question = settings.max_passage_tokens, settings.max_question_tokens
    if checkpoint.config["model_type"] in SEQ2SEQ:
        pad = int(model.config.pad_token_id or 0)
        start = model.config.decoder_start_token_id
        make = partial(seq2seq_examples, encode=encode, eos=ends[0], max_input=longest, max_question_tokens=question)
        return _Shape(make, Seq2SeqCollator(pad, pad if start is None else int(start)))
    trees = partial(
        question_trees,
        encode=encode,
        prompt=finetuned(max_passage_tokens=longest),
        bos=start_token(checkpoint, run),
        eos=ends[0],
        max_question_tokens=question,
    )
    return _Shape(trees, TreeCollator.of(model.config))


def _parameters(model: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{trained / 1e6:.1f} of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters are trained"


def _save(model: Any, base: Checkpoint, settings: GeneratorSettings, finished: Path) -> None:
    """Merged weights, and what the prompt must be."""
    if settings.lora:
        model = model.merge_and_unload()
    model.config.use_cache = True
    if base.config["model_type"] not in SEQ2SEQ:
        setattr(model.config, FINETUNED_KEY, {"max_passage_tokens": settings.max_passage_tokens})
    model.save_pretrained(str(finished), safe_serialization=True)
