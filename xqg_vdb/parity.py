"""The parity gate: the export and the original must give the same vectors for the same texts.

The texts are the question bank (short, all languages), the sample corpus (a paragraph each) and long passages joined
from it, so that several lengths and scripts are covered, including one longer than the model reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xqg_vdb.checkpoints import Checkpoint
from xqg_vdb.corpus import read_corpus
from xqg_vdb.encoding import Encoder
from xqg_vdb.errors import MissingExtra, ModelError
from xqg_vdb.fusion import unit_rows
from xqg_vdb.model_folder import EncoderSpec
from xqg_vdb.questions import question_bank, sample_corpus
from xqg_vdb.torch_weights import load_weights
from xqg_vdb.types import Vectors

Reference = Callable[[list[str], list[str]], tuple[Vectors, Vectors]]
"""(queries, passages) -> their rows by the original."""


@dataclass(frozen=True)
class Parity:
    """Cosines between export and original over `texts` texts, and the text that they agree on least."""

    texts: int
    cosine_min: float
    cosine_mean: float
    worst_text: str


def parity_texts() -> tuple[list[str], list[str]]:
    """Questions (one per language of the bank) and passages of three lengths, the longest beyond E5's limit."""
    questions = [lines[i % len(lines)] for i, lines in enumerate(question_bank().values())]
    passages = [passage.title_and_text for passage in read_corpus(sample_corpus().corpus, detect=False)]
    joined = [" ".join(passages[i : i + 4]) for i in range(0, 16, 4)]
    return questions, [*passages, *joined, " ".join(passages)]


def measure_parity(encoder: Encoder, reference: Reference) -> Parity:
    """Compare an exported encoder with the original on `parity_texts`."""
    questions, passages = parity_texts()
    theirs = np.concatenate(reference(questions, passages))
    ours = np.concatenate([encoder.encode_queries(questions), encoder.encode_passages(passages)])
    if theirs.shape != ours.shape:
        raise ModelError(f"The original gives rows of {theirs.shape[1]} dimensions, the export of {ours.shape[1]}.")
    cosines = np.einsum("ij,ij->i", unit_rows(ours), unit_rows(theirs))
    worst = int(np.argmin(cosines))
    return Parity(len(ours), float(cosines[worst]), float(cosines.mean()), [*questions, *passages][worst][:80])


def torch_vectors(checkpoint: Checkpoint, spec: EncoderSpec) -> Reference:
    """The original's own vectors, computed with torch and transformers in the plainest way (one text at a time)."""
    try:
        import torch
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra(f'The parity gate needs {error.name}: pip install "xqg-vdb[export]".') from error
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    model = load_weights("AutoModel", checkpoint).eval()
    dense = _torch_dense(checkpoint)

    def row(text: str) -> Vectors:
        tokens = tokenizer(text, truncation=True, max_length=spec.max_length, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state[0]
            pooled = dense(hidden[0] if spec.pooling == "cls" else hidden.mean(dim=0))
        vector: Vectors = pooled.numpy().astype(np.float32)
        return vector

    def encode(queries: list[str], passages: list[str]) -> tuple[Vectors, Vectors]:
        rows = [
            [row(spec.query_prefix + text) for text in queries],
            [row(spec.passage_prefix + text) for text in passages],
        ]
        return np.stack(rows[0]), np.stack(rows[1])

    return encode


def _torch_dense(checkpoint: Checkpoint) -> Any:
    import torch

    if checkpoint.dense is None:
        return torch.nn.Identity()
    import orjson
    from safetensors.torch import load_file

    config = orjson.loads((checkpoint.dense / "config.json").read_bytes())
    weights = load_file(checkpoint.dense / "model.safetensors")
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias="linear.bias" in weights)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    activation = getattr(torch.nn, str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1])()
    return torch.nn.Sequential(linear, activation)
