"""Training the retriever: `train_encoder` takes pairs and any multilingual checkpoint and leaves a checkpoint.

A tied dual encoder with in-batch negatives, and hard ones where the pairs have them or they are mined. In:
`TrainingPair`s. Out: a folder for `xqg-vdb export`, which finds the conventions in its sentence-transformers files.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.export.checkpoints import Base, Checkpoint, Overrides, conventions, load_weights
from xqg_vdb.files import write_atomic
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.progress import windows
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import TEXT_DENSE, digest
from xqg_vdb.train.pairs import TrainingPair, content_key
from xqg_vdb.train.run import (
    Outcome,
    Schedule,
    carry_out,
    identity_of,
    need_training_packages,
    run_training,
    spread,
    training_arguments,
)
from xqg_vdb.types import Card, Passage, PointBatch, Recipe, Search, TextEncoder, VectorStore, option

# Pairs to batches of a dual encoder: which negatives, which tokens, which passages are the same.


@dataclass(frozen=True)
class PairCollator:
    """Tokenises a batch.

    tokenizer: transformers' own. negatives: hard ones per pair, fewer where a pair has fewer. spec: prefixes.
    query_tokens, passage_tokens: texts are cut there. ignore_copies: further copies of a question's positive in the
    batch are no negatives; the paper's code does not look.
    """

    tokenizer: Any
    spec: EncoderSpec
    query_tokens: int
    passage_tokens: int
    negatives: int
    ignore_copies: bool
    seed: int

    def __call__(self, pairs: Sequence[TrainingPair]) -> dict[str, Any]:
        """queries, passages: tokens; targets: int64 (n,), rows of the positives; same: bool (n, m), the copies."""
        import torch

        # other pairs beside it in the next epoch, so other negatives
        draw = random.Random(f"{self.seed} {' '.join(pair.id for pair in pairs)}")  # noqa: S311 - no secret
        passages: list[Passage] = []
        targets: list[int] = []
        for pair in pairs:
            targets.append(len(passages))
            passages += [pair.positive, *draw.sample(pair.negatives, min(self.negatives, len(pair.negatives)))]
        keys = [content_key(passage) for passage in passages]
        same = [
            [self.ignore_copies and key == keys[target] and i != target for i, key in enumerate(keys)]
            for target in targets
        ]
        questions = [self.spec.query_prefix + pair.query for pair in pairs]
        texts = [self.spec.passage_prefix + passage.title_and_text for passage in passages]
        return {
            "queries": self._tokens(questions, self.query_tokens),
            "passages": self._tokens(texts, self.passage_tokens),
            "targets": torch.tensor(targets),
            "same": torch.tensor(same),
        }

    def _tokens(self, texts: Sequence[str], length: int) -> dict[str, Any]:
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}


# Hard negatives: the passages that an encoder ranks highest for a question and that do not answer it.

_NAME = "mining"
_WINDOW = 512


def mine_negatives(
    pairs: Sequence[TrainingPair], encoder: TextEncoder, *, count: int, skip: int = 0
) -> list[TrainingPair]:
    """Each pair with `count` mined negatives after its own; fewer when there are not so many passages.

    The pool is all positives and negatives of `pairs`. Passages that answer the same question are never negatives.
    skip: leave out the best so many of what remains; the top often holds answers that nobody marked.
    """
    pool = {content_key(p): p for pair in pairs for p in (pair.positive, *pair.negatives)}
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(content_key(pair.positive))
    most = max(len(found) for found in answers.values())
    with tempfile.TemporaryDirectory(prefix="xqg-mining-") as folder:
        store = open_store(folder)
        try:
            _write(store, [replace(passage, id=key) for key, passage in pool.items()], encoder)
            found: list[TrainingPair] = []
            for window in windows(pairs, _WINDOW):
                rows = encoder.encode_queries([pair.query for pair in window], calibrate=False)
                wanted = min(len(pool), count + skip + most + max(len(pair.negatives) for pair in window))
                hits = store.search(_NAME, rows, Search(wanted, using=TEXT_DENSE, exact=True))
                for pair, found_here in zip(window, hits, strict=True):
                    taken = answers[pair.query] | {content_key(passage) for passage in pair.negatives}
                    keys = [hit.id for hit in found_here if hit.id not in taken][skip : skip + count]
                    found.append(replace(pair, negatives=(*pair.negatives, *(pool[key] for key in keys))))
        finally:
            store.close()
    return found


def _write(store: VectorStore, passages: Sequence[Passage], encoder: TextEncoder) -> None:
    card = Card(encoder.facts, "cosine" if encoder.facts.normalize else "dot", Recipe(alpha=0.0))
    with store.writer(_NAME, card=card) as writer:
        for window in windows(passages, _WINDOW):
            rows = encoder.encode_passages([passage.title_and_text for passage in window])
            plain = [Passage(p.id, p.text, p.title, p.lang) for p in window]
            writer.upsert(PointBatch(plain, {TEXT_DENSE: rows}, [()] * len(window)))
        writer.commit(len(passages))
        writer.publish(replace(card, count=len(passages), digest=digest((p.id, p.text) for p in passages)))


COSINE_TEMPERATURE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """How an encoder is trained. ignore_copies: another copy of a question's passage in the batch is no negative.

    overrides: conventions that the checkpoint does not have or that are to change.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=64, learning_rate=2e-5))
    negatives: int = option(0, "Hard negatives per pair and step  [default: 0]", least=0)
    mine: int = option(0, "Hard negatives to find for every pair before training, by the checkpoint itself.", least=0)
    skip: int = option(0, "Leave out the best so many of those found  [default: 0]", least=0)
    temperature: float | None = option(None, "[default: 0.02 for cosine, 1 for dot]", least=0, above=True)
    query_tokens: int = option(64, "Questions are cut there in training.", least=8)
    passage_tokens: int = option(192, "Passages are cut there in training.", least=8)
    ignore_copies: bool = True
    overrides: Overrides = field(default_factory=Overrides)
    dev_limit: int = option(1000, "Dev pairs that are evaluated, evenly spread.", least=1)


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
    say: Callable[[str], None],
) -> Outcome:
    """Train `base` on `pairs` into the folder `out`; a run that was stopped goes on when it is called again.

    say: called with one line now and then. Raises DataError without two pairs, ModelError for a checkpoint that
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

    def train(checkpoint: Checkpoint, run: Path) -> tuple[Outcome, Callable[[Path], None]]:
        spec = conventions(checkpoint, settings.overrides)[0]
        model, tokenizer = _load(checkpoint, seed=settings.schedule.seed)
        outcome = _run(model, tokenizer, spec, run, pairs, spread(dev, settings.dev_limit), settings, say)
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
    say: Callable[[str], None],
) -> Outcome:
    from xqg_vdb.train.contrastive import EncoderTrainer, Scoring, TorchEncoder

    schedule = settings.schedule
    arguments = training_arguments(run, schedule, evaluates=bool(dev), whole_batches=True)
    model.to(arguments.device)
    encoder = TorchEncoder(
        model, tokenizer, spec, query_tokens=settings.query_tokens, passage_tokens=settings.passage_tokens
    )
    pairs = _mined(pairs, encoder, run, settings, say)
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
    trainer.watch(save_minutes=schedule.save_minutes, batch_size=schedule.batch_size, say=say)
    return run_training(trainer, run, evaluates=bool(dev), say=say)


def _mined(
    pairs: Sequence[TrainingPair], encoder: Any, run: Path, settings: EncoderSettings, say: Callable[[str], None]
) -> Sequence[TrainingPair]:
    """The pairs with mined negatives; those of an earlier try are in the run folder, so a resumed run has the same."""
    if not settings.mine:
        return pairs

    kept = run / "negatives.json"
    by_key = {content_key(passage): passage for pair in pairs for passage in (pair.positive, *pair.negatives)}
    if kept.exists():
        rows = orjson.loads(kept.read_bytes())
        return [replace(p, negatives=tuple(by_key[key] for key in keys)) for p, keys in zip(pairs, rows, strict=True)]
    say(f"mining {settings.mine} hard negatives for each of {len(pairs)} pairs")
    mined = mine_negatives(pairs, encoder, count=settings.mine, skip=settings.skip)
    write_atomic(kept, orjson.dumps([[content_key(passage) for passage in pair.negatives] for pair in mined]))
    return mined


def _load(checkpoint: Checkpoint, *, seed: int) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, set_seed

    set_seed(seed)  # for weights that the checkpoint lacks, such as BERT's own pooler, which nothing here uses
    if checkpoint.dense:
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
