"""Pairs to batches of a dual encoder: which negatives, which tokens, which passages are the same.

Everything follows from the pairs of the batch alone, so a resumed run sees the batches of an unbroken one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xqg_vdb.model_folder import EncoderSpec
from xqg_vdb.training.pairs import TrainingPair, content_key
from xqg_vdb.types import Passage


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
