"""Fine-tuning a query generator: `train_generator` takes pairs and a checkpoint and leaves a checkpoint.

Decoder-only models learn the `finetuned` prompt of `generation.prompts` with the loss on the question tokens alone,
encoder-decoders the paper's prompt. In: `TrainingPair`s. Out: a folder for `xqg-vdb export --generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.export.checkpoints import Checkpoint
from xqg_vdb.export.gate import T5, load_weights, model_class, save_tokenizer
from xqg_vdb.export.generator import FINETUNED_KEY, end_tokens, start_token
from xqg_vdb.generate.prompts import SEQ2SEQ_TEMPLATE, CausalPrompt, finetuned, passage_tokens, seq2seq_tokens
from xqg_vdb.models.folder import TOKENIZER
from xqg_vdb.train.pairs import TrainingPair, content_key, describe_pairs
from xqg_vdb.train.run import Job, Outcome, Schedule, carry_out, spread
from xqg_vdb.types import option

BRANCHES = 8  # of one tree; a passage with more questions becomes several trees


class _Tree(NamedTuple):
    """shared: ids of the start token, the prefix and the passage.

    branches: per question the ids that name the language, and those of the question with the end token.
    """

    shared: tuple[int, ...]
    branches: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def question_trees(
    pairs: Sequence[TrainingPair],
    *,
    encode: Callable[[str], list[int]],
    prompt: CausalPrompt,
    bos: int | None,
    eos: int,
    max_question_tokens: int,
) -> list[_Tree]:
    """One tree per passage, in the order in which passages first occur. encode: text to ids without special tokens."""
    start = [] if bos is None else [bos]
    groups: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        groups.setdefault(content_key(pair.positive), []).append(pair)
    trees = []
    for members in groups.values():
        ids, _ = passage_tokens(encode, prompt, members[0].positive, room=prompt.max_passage_tokens)
        branches = [
            (
                tuple(encode(prompt.ending(pair.lang))),
                (*encode(" " + " ".join(pair.query.split()))[:max_question_tokens], eos),
            )
            for pair in members
        ]
        shared = tuple(start + encode(prompt.prefix) + ids)
        trees += [_Tree(shared, tuple(branches[i : i + BRANCHES])) for i in range(0, len(branches), BRANCHES)]
    return trees


def tree_collator(config: Any) -> Callable[[Sequence[_Tree]], dict[str, Any]]:
    """`tree_batch` as a transformers configuration asks for it."""
    kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
    sliding = "sliding_attention" in kinds if kinds else True
    window = int(getattr(config, "sliding_window", None) or 0) if sliding else 0
    return partial(tree_batch, window=window, kinds=kinds)


def tree_batch(trees: Sequence[_Tree], *, window: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Trees in one row of S tokens with T question tokens.

    window: places that a sliding layer looks back, 0 when there are no such layers. kinds: the model's layer types, for
    models that take a mask for each; () for one mask.
    input_ids, position_ids: int64 (1, S). attention_mask: bool (1, 1, S, S), True where a token is seen, or one per
    layer type. logits_to_keep: int64 (T,), the places that predict a question token. labels: int64 (1, T), those.
    """
    import torch

    def causal(length: int) -> torch.Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril()

    ids: list[int] = []
    places: list[int] = []
    keep: list[int] = []
    labels: list[int] = []
    length = sum(
        len(shared) + sum(len(named) + len(target) - 1 for named, target in branches) for shared, branches in trees
    )
    mask = torch.zeros(length, length, dtype=torch.bool)
    for shared, branches in trees:
        start, trunk = len(ids), len(ids) + len(shared)
        ids += shared
        places += range(len(shared))
        mask[start:trunk, start:trunk] = causal(len(shared))
        for named, target in branches:
            at = len(ids)
            ids += [*named, *target[:-1]]
            places += range(len(shared), len(shared) + len(ids) - at)
            keep += range(at + len(named) - 1, len(ids))
            labels += target
            mask[at : len(ids), start:trunk] = True
            mask[at : len(ids), at : len(ids)] = causal(len(ids) - at)
    where = torch.tensor(places)
    near = mask & (where[:, None] - where[None, :] < window) if window else mask
    by_kind = {kind: (near if kind == "sliding_attention" else mask)[None, None] for kind in kinds}
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": where[None],
        "attention_mask": by_kind or near[None, None],
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([labels]),
    }


def seq2seq_batch(examples: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad: int, start: int) -> dict[str, Any]:
    """Ids that an encoder reads, and those of the question with the end token, padded.

    pad, start: ids that fill up and that the decoder begins with.
    input_ids, attention_mask: int64 (n, S). decoder_input_ids, labels: int64 (n, T); −100 where nothing is.
    """
    import torch

    def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    prompts, targets = zip(*examples, strict=True)
    return {
        "input_ids": padded(prompts, pad),
        "attention_mask": padded([(1,) * len(prompt) for prompt in prompts], 0),
        "decoder_input_ids": padded([(start, *target[:-1]) for target in targets], pad),
        "labels": padded(targets, -100),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """How a generator is trained.

    freeze_embeddings: with 250,000 tokens the tables are most of a small model, and few pairs would only disturb them.
    """

    schedule: Schedule = field(default_factory=Schedule)
    max_passage_tokens: int = option(160, "Longest passage, or encoder-decoder's prompt; the rest is cut.", least=16)
    max_question_tokens: int = 48
    freeze_embeddings: bool = option(False, "Leave the token tables as they are.")
    dev_limit: int = option(200, "Dev examples, evenly spread.", least=1)


XQG_PRESET = GeneratorSettings(
    schedule=Schedule(max_steps=2000, batch_size=128, learning_rate=1e-4, warmup=0.0, eval_every=100),
    max_passage_tokens=128,
)
"""What xQG's generators were trained with (DSI-QG step 1, written there for mT5-large); the last weights are kept."""


def train_generator(job: Job[GeneratorSettings]) -> Outcome:
    """Fine-tune a query generator; a run that was stopped continues when it is called again.

    The loss is the mean negative log-probability of a question token (nats), the end token included. Raises DataError
    without pairs, ModelError for a checkpoint that cannot be trained, MismatchError when `out` holds an unfinished run
    of something else, MissingExtra without torch.
    """
    if not job.pairs:
        raise DataError("There is no training pair: give --pairs with at least one question and its passage.")
    return carry_out("generator", job, _train)


def _train(job: Job[GeneratorSettings], checkpoint: Checkpoint, run: Path) -> tuple[Outcome, Callable[[Path], None]]:
    from xqg_vdb.train.trainer import run_training

    settings, pairs = job.settings, job.pairs
    model = _model(checkpoint, settings)
    make, collate = _shape(checkpoint, run, model, settings)
    trained, all_ = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6 for every in (0, 1))
    job.say(
        f"{len(pairs)} questions about {describe_pairs(pairs)['passages']} passages; "
        f"{trained:.1f} of {all_:.1f} M parameters are trained"
    )
    held_out = spread(make(job.dev), settings.dev_limit)
    outcome = run_training(job, model, run, examples=make(pairs), held_out=held_out, collate=collate)
    return outcome, partial(_save, model, checkpoint, settings)


def _model(checkpoint: Checkpoint, settings: GeneratorSettings) -> Any:
    import transformers

    seq2seq = checkpoint.config["model_type"] in T5
    model = load_weights(model_class(checkpoint, writes=True), checkpoint, attention="eager" if seq2seq else "sdpa")
    transformers.set_seed(settings.schedule.seed)  # for dropout
    model.config.use_cache = False
    if settings.freeze_embeddings:
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.requires_grad_(False)
    return model


def _shape(
    checkpoint: Checkpoint, run: Path, model: Any, settings: GeneratorSettings
) -> tuple[Callable[..., list[Any]], Any]:
    """What makes examples of pairs, and what makes a batch of them: all in which the architectures differ."""
    from tokenizers import Tokenizer

    save_tokenizer(checkpoint, run)
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER))
    ends = end_tokens(checkpoint, run)
    if not ends:
        raise ModelError(f"{checkpoint.source} names no end token (eos_token_id), which a generator must learn.")

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    longest, question = settings.max_passage_tokens, settings.max_question_tokens
    if checkpoint.config["model_type"] in T5:
        pad = int(model.config.pad_token_id or 0)
        start = model.config.decoder_start_token_id

        def examples(pairs: Sequence[TrainingPair]) -> list[Any]:
            """The paper's prompt in, the question's tokens out."""
            prompt = partial(seq2seq_tokens, encode, SEQ2SEQ_TEMPLATE, max_input=longest, eos=ends[0])
            return [
                (prompt(p.positive, lang=p.lang)[0], (*encode(" ".join(p.query.split()))[:question], ends[0]))
                for p in pairs
            ]

        return examples, partial(seq2seq_batch, pad=pad, start=pad if start is None else int(start))
    trees = partial(
        question_trees, encode=encode, prompt=finetuned(max_passage_tokens=longest), bos=start_token(checkpoint, run),
        eos=ends[0], max_question_tokens=question,
    )  # fmt: skip
    return trees, tree_collator(model.config)


def _save(model: Any, base: Checkpoint, settings: GeneratorSettings, finished: Path) -> None:
    """The weights, and what the prompt must be."""
    model.config.use_cache = True
    if base.config["model_type"] not in T5:
        setattr(model.config, FINETUNED_KEY, {"max_passage_tokens": settings.max_passage_tokens})
    model.save_pretrained(str(finished), safe_serialization=True)
