"""Training the retriever: `train_encoder` takes pairs and any multilingual checkpoint and leaves a checkpoint.

A tied dual encoder with in-batch negatives, and hard ones where the pairs have them or they are mined; or alignment, by
translations. In: `TrainingPair`s. Out: a folder for `xqg-vdb export`, which finds the conventions in its files.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from xqg_vdb.errors import DataError, ModelError
from xqg_vdb.evaluate.matrix import id_order, judge, per_row, search_rows
from xqg_vdb.evaluate.metrics import Metric
from xqg_vdb.export.checkpoints import Checkpoint, Overrides, conventions
from xqg_vdb.export.gate import load_tokenizer, load_weights, model_class
from xqg_vdb.export.starter_encoder import convention_files
from xqg_vdb.files import write_atomic
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.train.pairs import TrainingPair, content_key, pool_of
from xqg_vdb.train.run import Job, Outcome, Schedule, carry_out, spread
from xqg_vdb.types import Passage, Vectors, option

_Pairs = Sequence[TrainingPair]
_Encode = Callable[[_Pairs], tuple[Vectors, Vectors]]  # of their questions, and of their pool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """How an encoder is trained. ignore_copies: another copy of a question's passage in the batch is no negative.

    overrides: conventions that the checkpoint does not have or that are to change.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=64, learning_rate=2e-5))
    negatives: int = option(0, "Hard negatives per pair and step  [default: 0]", least=0)
    mine: int = option(0, "Hard negatives to find for every pair before training, by the checkpoint itself.", least=0)
    skip: int = option(0, "Leave out so many of the best found  [default: 0]", least=0)
    temperature: float | None = option(None, "[default: 0.02 for cosine, 1 for dot]", least=0, above=True)
    query_tokens: int = option(64, "Longest question in training; the rest is cut.", least=8)
    passage_tokens: int = option(192, "Longest passage in training; the rest is cut.", least=8)
    ignore_copies: bool = True
    align: bool = option(False, "Move every text to its translation's vector instead; needs no answers.")
    align_passages: float = option(0.3, "Share of --align's pairs encoded as passages.", least=0, most=1)
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


def pair_batch(pairs: _Pairs, *, tokenizer: Any, spec: EncoderSpec, settings: EncoderSettings) -> dict[str, Any]:
    """Pairs as a batch of a dual encoder: fewer negatives where a pair has fewer.

    queries, passages: tokens. targets: int64 (n,), rows of the positives. same: bool (n, m), further copies of a
    question's positive, also in other languages, which are no negatives if `settings.ignore_copies`; the paper's code
    does not look.
    """
    import torch

    # other pairs beside it in the next epoch, so other negatives
    draw = random.Random(f"{settings.schedule.seed} {' '.join(pair.id for pair in pairs)}")  # noqa: S311 - no secret
    passages: list[Passage] = []
    targets: list[int] = []
    for pair in pairs:
        targets.append(len(passages))
        negatives = draw.sample(pair.negatives, min(settings.negatives, len(pair.negatives)))
        passages += [pair.positive, *negatives]
    keys = [content_key(passage) for passage in passages]
    same = [
        [
            settings.ignore_copies and i != target and (key == keys[target] or key in pair.copies)
            for i, key in enumerate(keys)
        ]
        for pair, target in zip(pairs, targets, strict=True)
    ]

    def tokens(texts: list[str], length: int) -> dict[str, Any]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    texts = [spec.passage_prefix + passage.title_and_text for passage in passages]
    return {
        "queries": tokens([spec.query_prefix + pair.query for pair in pairs], settings.query_tokens),
        "passages": tokens(texts, settings.passage_tokens),
        "targets": torch.tensor(targets),
        "same": torch.tensor(same),
    }


# Alignment: a text moves to where the untrained encoder puts its translation (Reimers and Gurevych 2020), for which no
# answers are needed. One side is computed once, and the other is as short as a question.

_KEPT = 0.2
"""Share of a batch that stands for itself: the translation, which is to stay where it is."""


def _need_translations(pairs: Sequence[TrainingPair]) -> None:
    """Raise DataError when a pair has no translation, so that nothing says where it is to go."""
    bare = [pair.id for pair in pairs if not pair.translation.strip()]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(pairs)} pairs have no translation, the first is {bare[0]!r}: --align takes .tsv "
            'files of text and translation, lines with "translation", afriqa, or translations by name (tatoeba-all).'
        )


def align_batches(
    pairs: Sequence[TrainingPair],
    run: Path,
    *,
    tokenizer: Any,
    spec: EncoderSpec,
    settings: EncoderSettings,
    embed: Callable[[list[str]], Vectors],
) -> Callable[[Sequence[TrainingPair]], dict[str, Any]]:
    """What makes a batch of pairs: `texts`, tokens; `goals`, float32 (n, dim); `same`, bool (n, n), equal goals.

    embed: rows of texts by the untrained encoder; they are kept in the run folder, for a run that is stopped.
    """
    import torch

    seed, share = settings.schedule.seed, settings.align_passages

    def text(pair: TrainingPair, *, translated: bool) -> str:
        as_passage = random.Random(f"{seed} {pair.id}").random() < share  # noqa: S311 - no secret
        prefix = spec.passage_prefix if as_passage else spec.query_prefix
        return prefix + (pair.translation if translated else pair.query)

    texts, kept = sorted({text(pair, translated=True) for pair in pairs}), run / "goals.npy"
    if not kept.exists():
        write_atomic(kept, embed(texts).astype("<f4").tobytes())
    goals = torch.frombuffer(bytearray(kept.read_bytes()), dtype=torch.float32).view(len(texts), -1)
    rows = {text: row for row, text in enumerate(texts)}

    def batch(pairs: Sequence[TrainingPair]) -> dict[str, Any]:
        draw = random.Random(f"{seed} {' '.join(pair.id for pair in pairs)}")  # noqa: S311 - no secret
        encoded = tokenizer(
            [text(pair, translated=draw.random() < _KEPT) for pair in pairs],
            padding=True, truncation=True, max_length=settings.query_tokens, return_tensors="pt",
        )  # fmt: skip
        wanted = torch.tensor([rows[text(pair, translated=True)] for pair in pairs])
        return {
            "texts": {key: encoded[key] for key in ("input_ids", "attention_mask")},
            "goals": goals[wanted],
            "same": (wanted[:, None] == wanted) & ~torch.eye(len(pairs), dtype=torch.bool),
        }

    return batch


METRICS = (Metric("R", 10), Metric("MRR", 10))


def dev_figures(dev: _Pairs, encode: _Encode) -> dict[str, float]:
    """`METRICS` of the questions of `dev` among its distinct positives and negatives, by dot product."""
    keys, ids = list(pool_of(dev)), [f"{i}" for i in range(len(dev))]
    qrels = {i: {content_key(pair.positive): 1} for i, pair in zip(ids, dev, strict=True)}
    rows, _ = search_rows(*encode(dev), k=10, tie_order=id_order(keys))
    judged = judge(qrels, query_ids=ids, passage_ids=keys)
    return {str(metric): float(np.mean(per_row(rows, judged, metric=metric))) for metric in METRICS}


def mine_negatives(pairs: _Pairs, encode: _Encode, *, count: int, skip: int = 0) -> list[TrainingPair]:
    """Each pair with the `count` passages that rank highest and that do not answer, after its own.

    The pool is all positives and negatives of `pairs`. Passages that answer the same question are never negatives.
    skip: leave out the best so many of what remains; the top often holds answers that nobody marked.
    """
    pool = pool_of(pairs)
    keys = list(pool)
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(content_key(pair.positive))
    taken = [answers[pair.query] | pair.copies | {content_key(passage) for passage in pair.negatives} for pair in pairs]
    rows, _ = search_rows(*encode(pairs), k=count + skip + max(map(len, taken)), tie_order=id_order(keys))
    mined = []
    for pair, others, ranked in zip(pairs, taken, rows.tolist(), strict=True):
        best = [keys[row] for row in ranked if keys[row] not in others][skip : skip + count]
        mined.append(replace(pair, negatives=(*pair.negatives, *(pool[key] for key in best))))
    return mined


def train_encoder(job: Job[EncoderSettings]) -> Outcome:
    """Train an encoder; a run that was stopped continues when it is called again.

    Raises DataError without two pairs, ModelError for a checkpoint that cannot be trained, MismatchError when `out`
    holds an unfinished run of something else, MissingExtra without torch.
    """
    if len(job.pairs) < 2:
        raise DataError("In-batch negatives need two training pairs or more: give --pairs with more of them.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ModelError(
            "The encoder trains on one device, where all negatives of a batch are; run it without torchrun."
        )
    if job.settings.align:
        _need_translations(job.pairs)
        if job.settings.mine or job.settings.negatives:
            raise DataError("Alignment knows no hard negatives: leave --mine and --negatives to the training after it.")
    return carry_out("encoder", job, _train)


def _train(job: Job[EncoderSettings], checkpoint: Checkpoint, run: Path) -> tuple[Outcome, Callable[[Path], None]]:
    from xqg_vdb.train.trainer import (
        alignment_loss,
        contrastive_loss,
        embed,
        embed_in_chunks,
        embed_texts,
        run_training,
    )

    settings, schedule = job.settings, job.settings.schedule
    spec, _ = conventions(checkpoint, settings.overrides)
    model, tokenizer = _load(checkpoint, spec, seed=schedule.seed)
    temperature = settings.temperature or (0.02 if spec.normalize else 1.0)
    chunk = schedule.micro_batch or schedule.batch_size * (1 + settings.negatives)

    def rows(texts: list[str], length: int) -> Vectors:
        return embed_texts(model, tokenizer, texts, spec, length=length)

    def encode(pairs: _Pairs) -> tuple[Vectors, Vectors]:
        questions = [spec.query_prefix + pair.query for pair in pairs]
        passages = [spec.passage_prefix + passage.title_and_text for passage in pool_of(pairs).values()]
        return rows(questions, settings.query_tokens), rows(passages, settings.passage_tokens)

    def loss(model: Any, batch: Any) -> Any:
        side = batch["texts"] if settings.align else batch["passages"]
        apply = embed if len(side["input_ids"]) <= chunk else partial(embed_in_chunks, chunk=chunk)
        if settings.align:
            moved = apply(model, side, spec)
            return alignment_loss(moved, batch["goals"], same=batch["same"], temperature=temperature)
        return contrastive_loss(
            apply(model, batch["queries"], spec), apply(model, side, spec),
            targets=batch["targets"], same=batch["same"], temperature=temperature,
        )  # fmt: skip

    if settings.align:
        job.say(f"encoding the translations of {len(job.pairs)} pairs")
        collate = align_batches(
            job.pairs, run, tokenizer=tokenizer, spec=spec, settings=settings,
            embed=partial(rows, length=settings.query_tokens),
        )  # fmt: skip
    else:
        collate = partial(pair_batch, tokenizer=tokenizer, spec=spec, settings=settings)
    held_out = spread(job.dev, settings.dev_limit)
    outcome = run_training(
        job, model, run, examples=_mined(job, encode, run), held_out=held_out, collate=collate, loss=loss,
        dev=partial(dev_figures, held_out, encode),
    )  # fmt: skip
    return outcome, partial(_save, model, spec)


def _mined(job: Job[EncoderSettings], encode: _Encode, run: Path) -> list[TrainingPair]:
    """The pairs with mined negatives; those of an earlier try are in the run folder, so a resumed run has the same."""
    pairs, settings = job.pairs, job.settings
    if not settings.mine:
        return list(pairs)
    kept, pool = run / "negatives.json", pool_of(pairs)
    if kept.exists():
        rows = orjson.loads(kept.read_bytes())
        return [replace(p, negatives=tuple(pool[key] for key in keys)) for p, keys in zip(pairs, rows, strict=True)]
    job.say(f"mining {settings.mine} hard negatives for each of {len(pairs)} pairs")
    mined = mine_negatives(pairs, encode, count=settings.mine, skip=settings.skip)
    write_atomic(kept, orjson.dumps([[content_key(passage) for passage in pair.negatives] for pair in mined]))
    return mined


def _load(checkpoint: Checkpoint, spec: EncoderSpec, *, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import set_seed

    set_seed(seed)  # for weights that the checkpoint lacks, such as BERT's own pooler, which nothing here uses
    if checkpoint.dense:
        raise ModelError(f"{checkpoint.source} has a projection after pooling, which cannot be trained here.")
    if spec.pooling not in ("cls", "mean") or not spec.pool_prompt or spec.truncated:
        raise ModelError(
            f"{checkpoint.source} does not pool by cls or mean over all tokens, which alone is trained here."
        )
    model = load_weights(model_class(checkpoint), checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    return model, load_tokenizer(checkpoint.path)


def _save(model: Any, spec: EncoderSpec, finished: Path) -> None:
    """The weights, and the sentence-transformers files from which `export` learns how to use them."""
    model.save_pretrained(str(finished), safe_serialization=True)
    (finished / "1_Pooling").mkdir(exist_ok=True)
    for name, content in convention_files(spec).items():
        write_atomic(finished / name, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
