"""An original and its export, compared: what they are, an encoder's rows, a generator's tokens."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import MissingExtra, ModelError, XqgError, reason
from xqg_vdb.export.checkpoints import (
    NO_LIMIT,
    TRACED,
    Checkpoint,
    Overrides,
    conventions,
    encoder_class,
    fetch_checkpoint,
    load_weights,
    lower_cases,
    modules_of,
    need_torch,
    read_dense,
    width,
)
from xqg_vdb.fusion import unit_rows
from xqg_vdb.generate.local import ENCODER_GRAPH
from xqg_vdb.models.encoder import ACTIVATIONS, POOL, Encoder
from xqg_vdb.models.engine import open_session, ort_value
from xqg_vdb.models.folder import GRAPH, TOKENIZER, EncoderSpec, ModelFolder
from xqg_vdb.models.forest import Bools, Forest, Stepper
from xqg_vdb.search.rerank import open_pairs
from xqg_vdb.texts.corpus import read_corpus, sample_corpus
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Vectors

# What a checkpoint is, before anything is exported.


def explain(checkpoint: str, overrides: Overrides | None = None) -> dict[str, Any]:
    """What an encoder's checkpoint is: `facts` by name, each (the original software's, the export's), and `refused`."""
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        source = fetch_checkpoint(checkpoint, into=Path(scratch) / "checkpoint")
        ours: dict[str, Any] = {}
        theirs: dict[str, Any] = {}
        software = "not asked"
        try:
            ours = _ours(source, overrides or Overrides())
        except ModelError as error:
            refused.append(str(error))
        try:
            software, theirs = _theirs(source) if modules_of(source.path) else _of_transformers(source)
        except MissingExtra as error:
            software = f"not asked ({error})"
        except ModelError as error:
            refused.append(str(error))
    names = dict.fromkeys([*theirs, *ours])
    facts = {name: (theirs.get(name), ours.get(name)) for name in names}
    return {**source.origin, "software": software, "facts": facts, "refused": refused}


def _ours(source: Checkpoint, overrides: Overrides) -> dict[str, Any]:
    spec, told = conventions(source, overrides)
    return {
        "modules": ", ".join(kind for kind, _ in modules_of(source.path)) or "Transformer, Pooling",
        "pooling": spec.pooling,
        "prompt is pooled": spec.pool_prompt,
        "query prompt": spec.query_prefix,
        "passage prompt": spec.passage_prefix,
        "longest text": spec.max_length,
        "normalised": spec.normalize,
        "dimensions": spec.dim,
        "projections": [f"{w.shape[0]} to {w.shape[1]}, {name}" for w, _, name in map(read_dense, source.dense)],
        "lower-cased": lower_cases(source),
        "tokenizer": TOKENIZER if (source.path / TOKENIZER).is_file() else "made by transformers",
        "graph": "the checkpoint's own" if source.onnx else "made by torch",
        "told by": told,
    }


def _theirs(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Name and version of the original software, and what it would do. Raises ModelError, MissingExtra."""
    model = sentence_transformer(source)
    prompts = {name: prompt for name, prompt in (model.prompts or {}).items() if prompt}
    usual = prompts.get(model.default_prompt_name, "")
    parts = {type(module).__name__: module for module in model}
    pooling = parts.get("Pooling")
    dense = [module for module in model if type(module).__name__ == "Dense"]
    return f"sentence-transformers {version('sentence-transformers')}", {
        "modules": ", ".join(type(module).__name__ for module in model),
        "pooling": getattr(pooling, "pooling_mode", None) or (pooling and pooling.get_pooling_mode_str()),
        "prompt is pooled": bool(pooling and pooling.include_prompt),
        "query prompt": prompts.get("query", usual),
        "passage prompt": prompts.get("passage") or prompts.get("document", usual),
        "longest text": model.max_seq_length,
        "normalised": "Normalize" in parts,
        "dimensions": parts["Dense"].out_features if dense else model[0].get_embedding_dimension(),
        "projections": [f"{d.in_features} to {d.out_features}, {type(d.activation_function).__name__}" for d in dense],
        "lower-cased": bool(getattr(model[0], "do_lower_case", False)),
        "tokenizer": type(model.tokenizer).__name__,
    }


def _of_transformers(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """The same of a checkpoint without modules: transformers pools nothing and knows no prompts."""
    need_torch()
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):  # no weights
            model = getattr(transformers, encoder_class(source)).from_config(config, trust_remote_code=False)
    except XqgError:
        raise
    except Exception as error:
        version = transformers.__version__
        raise ModelError(f"transformers {version} cannot load {source.source}: {reason(error)}") from error
    encoder_inputs(source, model)
    tokenizer = _tokenizer(source)
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or NO_LIMIT)
    return f"transformers {transformers.__version__}, which pools nothing and knows no prompts", {
        "modules": type(model).__name__,
        "longest text": longest if longest < NO_LIMIT else "no limit",
        "dimensions": width(source),
        "lower-cased": bool(getattr(tokenizer, "do_lower_case", False)),
        "tokenizer": type(tokenizer).__name__,
    }


def _tokenizer(source: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of transformers and of what it reads tokenizers with
        raise ModelError(f"transformers cannot load the tokenizer of {source.source}: {reason(error)}") from error


def encoder_inputs(checkpoint: Checkpoint, model: Any, *, cross: bool = False) -> list[str]:
    """The inputs of the graph, segments only where they matter. Raises ModelError for a model that reads no text."""
    taken = inspect.signature(model.forward).parameters
    segments = checkpoint.config["model_type"] in TRACED or (cross and "token_type_ids" in taken)
    segments = segments and int(checkpoint.config.get("type_vocab_size") or 0) > 1
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    missing = [name for name in names if name not in taken]
    if missing:
        raise ModelError(f"{checkpoint.source} takes no {', '.join(missing)}, so it is no text encoder.")
    return names


# An encoder's rows.


def parity_texts() -> tuple[list[str], list[str]]:
    """Questions (one per language of the bank) and passages of three lengths, the longest beyond E5's limit."""
    questions = [lines[i % len(lines)] for i, lines in enumerate(question_bank(romanised=False).values())]
    passages = [passage.title_and_text for passage in read_corpus(sample_corpus().corpus, detect=False)]
    joined = [" ".join(passages[i : i + 4]) for i in range(0, 16, 4)]
    return questions, [*passages, *joined, " ".join(passages)]


def measure_parity(encoder: Encoder, original: tuple[Vectors, Vectors]) -> dict[str, Any]:
    """Cosines between an exported encoder and the original's rows of `parity_texts`, and the text it knows least.

    same_hits: of the ten hits of the original's questions, how many are the same when the passages are the export's.
    """
    questions, passages = parity_texts()
    theirs = np.concatenate(original)
    if encoder.facts.dim < theirs.shape[1] and encoder.spec.truncated:
        theirs = theirs[:, : encoder.spec.dim]
    ours = np.concatenate([encoder.encode_queries(questions, calibrate=False), encoder.encode_passages(passages)])
    if theirs.shape != ours.shape:
        raise ModelError(f"The original gives rows of {theirs.shape[1]} dimensions, the export of {ours.shape[1]}.")
    cosines = np.einsum("ij,ij->i", unit_rows(ours), unit_rows(theirs))
    worst = int(np.argmin(cosines))
    asked, new, old = theirs[: len(questions)], ours[len(questions) :], theirs[len(questions) :]
    ten, wanted = (np.argsort(-(asked @ rows.T), axis=1, kind="stable")[:, :10] for rows in (new, old))
    same = (ten[:, :, None] == wanted[:, None, :]).any(axis=2)
    return {
        "texts": len(ours), "cosine_min": float(cosines[worst]), "cosine_mean": float(cosines.mean()),
        "same_hits": float(same.mean()), "worst_text": [*questions, *passages][worst][:80],
    }  # fmt: skip


def measure_pairs(checkpoint: Checkpoint, made: ModelFolder) -> float:
    """How far a cross-encoder's scores are from those of its torch model, at most, over pairs of `parity_texts`."""
    import torch
    from transformers import AutoTokenizer

    questions, passages = parity_texts()
    pairs = [(question, passages[i * 7 % len(passages)]) for i, question in enumerate(questions)] + [
        (questions[0], passage) for passage in passages
    ]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    model = load_weights("AutoModelForSequenceClassification", checkpoint).eval()
    cut: dict[str, Any] = {"truncation": True, "max_length": made.manifest["cross"]["max_length"]}
    with torch.inference_mode():
        logits = [float(model(**tokenizer(*pair, return_tensors="pt", **cut)).logits[0, 0]) for pair in pairs]
    wanted = ACTIVATIONS[made.manifest["cross"]["activation"]](np.array(logits))
    score = open_pairs(made, threads=0)
    ours = np.concatenate([score(pairs[start : start + 8])[0] for start in range(0, len(pairs), 8)])
    return float(np.abs(ours - wanted).max())


def torch_vectors(checkpoint: Checkpoint, spec: EncoderSpec) -> tuple[Vectors, Vectors]:
    """The original software's rows of `parity_texts`, text by text: sentence-transformers' for its checkpoints."""
    row = _sentence_transformers_row(checkpoint) if modules_of(checkpoint.path) else _transformers_row(checkpoint, spec)
    questions, passages = parity_texts()
    asked = np.stack([row(spec.query_prefix, text) for text in questions])
    return asked, np.stack([row(spec.passage_prefix, text) for text in passages])


def sentence_transformer(checkpoint: Checkpoint) -> Any:
    """The checkpoint in its original software. Raises MissingExtra, ModelError."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtra(f'The parity gate needs {error.name}: pip install "xqg-vdb[export]".') from error
    try:
        return SentenceTransformer(str(checkpoint.path), device="cpu", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of transformers too, and of a stranger's values in the configuration
        raise ModelError(f"sentence-transformers cannot load {checkpoint.source}: {reason(error)}") from error


def _sentence_transformers_row(checkpoint: Checkpoint) -> Callable[[str, str], Vectors]:
    model = sentence_transformer(checkpoint)
    return lambda prompt, text: np.asarray(model.encode([text], prompt=prompt, show_progress_bar=False)[0], np.float32)


def _transformers_row(checkpoint: Checkpoint, spec: EncoderSpec) -> Callable[[str, str], Vectors]:
    need_torch()
    import torch

    tokenizer, model = _tokenizer(checkpoint), load_weights(encoder_class(checkpoint), checkpoint).eval()
    taken = inspect.signature(model.forward).parameters  # DistilBERT takes no segments

    def row(prompt: str, text: str) -> Vectors:
        tokens = tokenizer(prompt + text, truncation=True, max_length=spec.max_length, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**{name: tokens[name] for name in tokens if name in taken}).last_hidden_state.numpy()
        vector: Vectors = POOL[spec.pooling](hidden, np.ones(hidden.shape[:2], np.bool_))[0]
        return vector

    return row


# A generator's logits, beside those of transformers.

LARGEST_DIFFERENCE = 1e-3
"""Of logits, as a share of the largest where that is above one: far above rounding, far below any other model."""


def measure_logits(model: Any, folder: ModelFolder) -> dict[str, Any]:
    """The largest difference between the logits of the fp32 export and of `model`, over texts of the export's own."""
    import torch

    reader, tokens, worst = _Reader(folder), 0, 0.0
    for prompt in reader.prompts()[:4]:
        start = reader.start(prompt)
        text = reader.greedy(start)
        ids = [*start[1], *text[:-1]]
        best = replace(start[0]).append(ids, take=range(len(ids) - len(text), len(ids)), k=SIGHT, norm=True)
        given = {"input_ids": prompt, "decoder_input_ids": ids} if reader.encoder else {"input_ids": ids}
        with torch.no_grad():
            logits = model(**{name: torch.tensor([value]) for name, value in given.items()}).logits[0, -len(text) :]
        theirs = torch.gather(logits, 1, torch.tensor(best.tokens)).numpy()
        norms = torch.logsumexp(logits, dim=1).numpy()
        differ = max(np.abs(theirs - best.scores).max(), np.abs(norms - best.log_norm).max())
        worst = max(worst, float(differ) / max(1.0, float(logits.abs().max())))
        tokens += len(text)
    return {"logits_differ": worst, "tokens": tokens}


# A generator's tokens: does a quantised one still write what the original writes?

LOWEST_AGREEMENT = 0.85
LARGEST_LOSS = 0.1  # nats per token
PROMPTS, TOKENS, SIGHT = 8, 16, 512


def measure_agreement(original: ModelFolder, other: ModelFolder) -> tuple[dict[str, Any], str, bool]:
    """`other` against `original`, of the same kind and tokenizer, over greedy tokens of the original.

    exact: share of prompts for which free greedy decoding gives the very same tokens. token_agreement: share of places
    where both think the same token best, given the original's text so far. log_probability, original_log_probability:
    mean per token of the original's text, in nats; a token outside the best 512 counts as the 512th. Also returns one
    line for people, and whether `other` may stand for the original.
    """
    first = _Reader(original)
    prompts = first.prompts()
    starts = [first.start(prompt) for prompt in prompts]
    texts = [first.greedy(start) for start in starts]
    theirs = np.concatenate([first.read(start, text)[1] for start, text in zip(starts, texts, strict=True)]).mean()
    del first, starts  # two copies of a large model at once are not needed
    second = _Reader(other)
    places = [second.start(prompt) for prompt in prompts]
    exact = np.mean([second.greedy(place) == text for place, text in zip(places, texts, strict=True)])
    read = [second.read(place, text) for place, text in zip(places, texts, strict=True)]
    same, ours = (np.concatenate(parts).mean() for parts in zip(*read, strict=True))
    tokens = sum(map(len, texts))
    record = {
        "exact": float(exact), "token_agreement": float(same), "log_probability": float(ours),
        "original_log_probability": float(theirs), "tokens": tokens,
    }  # fmt: skip
    summary = (
        f"same next token {same:.1%}, same {TOKENS}-token answer {exact:.1%}, mean log-probability {ours:.3f} against"
        f" {theirs:.3f} over {tokens} tokens"
    )
    return record, summary, bool(same >= LOWEST_AGREEMENT and theirs - ours <= LARGEST_LOSS)


class _Reader:
    """One model: prompts to trees, trees and texts to log-probabilities."""

    def __init__(self, folder: ModelFolder) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.first = folder.manifest["generator"].get("start")
        self.stepper = Stepper(open_session(folder.path / GRAPH, threads=0))
        seq2seq = folder.kind == "seq2seq-generator"
        self.encoder = open_session(folder.path / ENCODER_GRAPH, threads=0) if seq2seq else None

    def prompts(self) -> list[list[int]]:
        passages = islice(read_corpus(sample_corpus().corpus, detect=False), PROMPTS)
        ask = "Generate a German question for this passage: {}" if self.encoder else "Passage: {}\nQuestion:"
        return [list(self.tokenizer.encode(ask.format(p.text)).ids)[:200] for p in passages]

    def start(self, ids: list[int]) -> tuple[Forest, list[int]]:
        """A tree and the tokens that still must be read before the first one is written."""
        if self.encoder is None:
            return self.stepper.empty(1), ids
        seen = np.ones((1, len(ids)), np.bool_)
        values = self.encoder.run(None, {"tokens": np.array([ids], np.int64), "cross_mask": seen})
        names = [node.name for node in self.encoder.get_outputs()]
        context = {name: ort_value(value) for name, value in zip(names, values, strict=True)}
        return self.stepper.empty(1, {**context, "cross_mask": ort_value(seen)}), [int(self.first)]

    def greedy(self, start: tuple[Forest, list[int]]) -> list[int]:
        forest, ids = replace(start[0]), start[1]
        written: list[int] = []
        while len(written) < TOKENS:
            written.append(int(forest.append(ids, take=[len(ids) - 1], k=1).tokens[0, 0]))
            ids = written[-1:]
        return written

    def read(self, start: tuple[Forest, list[int]], text: list[int]) -> tuple[Bools, NDArray[np.float32]]:
        """Per token of `text`: whether it is thought best, and its log-probability."""
        ids = [*start[1], *text[:-1]]
        best = replace(start[0]).append(ids, take=range(len(start[1]) - 1, len(ids)), k=SIGHT, norm=True)
        same = best.tokens == np.array(text)[:, None]
        found = np.where(same.any(axis=1), same.argmax(axis=1), same.shape[1] - 1)
        return same[:, 0], best.log_probabilities[np.arange(len(text)), found]
