"""Alignment: a text moves to where the untrained encoder puts its translation (Reimers and Gurevych 2020).

No answers are needed, only translations, so that it comes before training on question-passage pairs. Cheap: one side
is computed once, and the other is as short as a question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xqg_vdb.errors import DataError
from xqg_vdb.files import write_atomic
from xqg_vdb.models.folder import EncoderSpec
from xqg_vdb.train.pairs import TrainingPair
from xqg_vdb.types import Vectors

if TYPE_CHECKING:
    from xqg_vdb.train.encoder import EncoderSettings

KEPT = 0.2
"""Share of a batch that stands for itself: the translation, which is to stay where it is."""


def needs_translations(pairs: Sequence[TrainingPair]) -> None:
    """Raise DataError when a pair has no translation, so that nothing says where it is to go."""
    bare = [pair.id for pair in pairs if not pair.translation.strip()]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(pairs)} pairs have no translation, the first is {bare[0]!r}: --align takes .tsv "
            'files of text and translation, lines with "translation", afriqa, or translations by name (tatoeba-all).'
        )


def aligner(
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
            [text(pair, translated=draw.random() < KEPT) for pair in pairs],
            padding=True, truncation=True, max_length=settings.query_tokens, return_tensors="pt",
        )  # fmt: skip
        wanted = torch.tensor([rows[text(pair, translated=True)] for pair in pairs])
        return {
            "texts": {key: encoded[key] for key in ("input_ids", "attention_mask")},
            "goals": goals[wanted],
            "same": (wanted[:, None] == wanted) & ~torch.eye(len(pairs), dtype=torch.bool),
        }

    return batch
