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

from xqg_vdb.errors import DataError, MissingExtra, ModelError
from xqg_vdb.export.checkpoints import Base, Checkpoint, load_weights
from xqg_vdb.export.generator import FINETUNED_KEY, SEQ2SEQ, end_tokens, save_tokenizer, start_token
from xqg_vdb.generate.prompts import SEQ2SEQ_TEMPLATE, CausalPrompt, finetuned, passage_tokens, seq2seq_tokens
from xqg_vdb.models.folder import TOKENIZER
from xqg_vdb.train.pairs import TrainingPair, content_key, describe_pairs
from xqg_vdb.train.run import (
    Outcome,
    Report,
    Save,
    Schedule,
    carry_out,
    identity_of,
    need_training_packages,
    run_training,
    spread,
    training_arguments,
)

# Training examples of a decoder-only generator: a passage read once, its questions branching from it.

BRANCHES = 8  # of one tree; a passage with more questions becomes several trees


@dataclass(frozen=True, slots=True)
class Branch:
    """ending: ids that name the language; target: ids of the question, with the end token."""

    ending: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """shared: ids of the start token, the prefix and the passage."""

    shared: tuple[int, ...]
    branches: tuple[Branch, ...]


def question_trees(
    pairs: Sequence[TrainingPair],
    *,
    encode: Callable[[str], list[int]],
    prompt: CausalPrompt,
    bos: int | None,
    eos: int,
    max_question_tokens: int,
) -> list[Tree]:
    """One tree per passage, in the order in which passages first occur. encode: text to ids without special tokens."""
    start = [] if bos is None else [bos]
    groups: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        groups.setdefault(content_key(pair.positive), []).append(pair)
    trees = []
    for members in groups.values():
        ids, _ = passage_tokens(encode, prompt, members[0].positive, room=prompt.max_passage_tokens)
        branches = [
            Branch(
                tuple(encode(prompt.ending(pair.lang))),
                (*encode(" " + " ".join(pair.query.split()))[:max_question_tokens], eos),
            )
            for pair in members
        ]
        shared = tuple(start + encode(prompt.prefix) + ids)
        trees += [Tree(shared, tuple(branches[i : i + BRANCHES])) for i in range(0, len(branches), BRANCHES)]
    return trees


@dataclass(frozen=True, slots=True)
class TreeCollator:
    """Puts trees into one row.

    window: places that a sliding layer looks back, 0 when there are no such layers. kinds: the model's layer types, for
    models that take a mask for each; () for one mask.
    """

    window: int = 0
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Any) -> TreeCollator:
        """What a transformers configuration asks for."""
        kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
        sliding = "sliding_attention" in kinds if kinds else True
        return cls(int(getattr(config, "sliding_window", None) or 0) if sliding else 0, kinds)

    def __call__(self, trees: Sequence[Tree]) -> dict[str, Any]:
        """One row of S tokens with T question tokens.

        input_ids, position_ids: int64 (1, S). attention_mask: bool (1, 1, S, S), True where a token is seen, or one per
        layer type. logits_to_keep: int64 (T,), the places that predict a question token. labels: int64 (1, T), those.
        """
        import torch

        row = _Row()
        for tree in trees:
            row.add(tree)
        mask = torch.zeros(len(row.ids), len(row.ids), dtype=torch.bool)
        for start, trunk, at, end in row.spans:
            mask[at:end, start:trunk] = True
            mask[at:end, at:end] = torch.ones(end - at, end - at, dtype=torch.bool).tril()
        places = torch.tensor(row.places)
        near = mask & (places[:, None] - places[None, :] < self.window) if self.window else mask
        by_kind = {kind: (near if kind == "sliding_attention" else mask)[None, None] for kind in self.kinds}
        return {
            "input_ids": torch.tensor([row.ids]),
            "position_ids": places[None],
            "attention_mask": by_kind or near[None, None],
            "logits_to_keep": torch.tensor(row.keep),
            "labels": torch.tensor([row.labels]),
        }


@dataclass(slots=True)
class _Row:
    """A row that grows by trees. spans: tree start, end of what is shared, start and end of what sees it and itself."""

    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, tree: Tree) -> None:
        start, shared = len(self.ids), len(tree.shared)
        self.ids += tree.shared
        self.places += range(shared)
        self.spans.append((start, start, start, start + shared))
        for branch in tree.branches:
            at = len(self.ids)
            self.ids += [*branch.ending, *branch.target[:-1]]
            self.places += range(shared, shared + len(self.ids) - at)
            self.spans.append((start, start + shared, at, len(self.ids)))
            self.keep += range(at + len(branch.ending) - 1, len(self.ids))
            self.labels += branch.target


# Training examples of an encoder-decoder generator: the paper's prompt in, the question's tokens out.


@dataclass(frozen=True, slots=True)
class Example:
    """prompt: ids that the encoder reads; target: ids of the question, with the end token."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


def seq2seq_examples(
    pairs: Sequence[TrainingPair],
    *,
    encode: Callable[[str], list[int]],
    eos: int,
    max_input: int,
    max_question_tokens: int,
) -> list[Example]:
    """One example per pair, in order. encode: text to ids without special tokens."""
    return [
        Example(
            tuple(seq2seq_tokens(encode, SEQ2SEQ_TEMPLATE, p.positive, lang=p.lang, max_input=max_input, eos=eos)[0]),
            (*encode(" ".join(p.query.split()))[:max_question_tokens], eos),
        )
        for p in pairs
    ]


@dataclass(frozen=True, slots=True)
class Seq2SeqCollator:
    """Pads a batch. pad, start: ids that fill up and that the decoder begins with."""

    pad: int
    start: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """input_ids, attention_mask: int64 (n, S). decoder_input_ids, labels: int64 (n, T); −100 where nothing is."""
        import torch

        prompts, targets = [e.prompt for e in examples], [e.target for e in examples]
        shifted = [(self.start, *target[:-1]) for target in targets]
        return {
            "input_ids": torch.tensor(_padded(prompts, self.pad)),
            "attention_mask": torch.tensor(_padded([(1,) * len(prompt) for prompt in prompts], 0)),
            "decoder_input_ids": torch.tensor(_padded(shifted, self.pad)),
            "labels": torch.tensor(_padded(targets, -100)),
        }


def _padded(rows: Sequence[tuple[int, ...]], value: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [[*row, *([value] * (longest - len(row)))] for row in rows]


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
    from xqg_vdb.train.trainer import WatchedTrainer, question_loss

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
