"""Checkpoints to folders of generators and cross-encoders: torch's export, and a gate before anything is accepted.

In: a hub id, a local checkpoint folder or `starter:generator`. Out: a model folder of kind `causal-generator`,
`seq2seq-generator` or `cross-encoder`. torch, transformers and onnx are needed here only (extra `export`).
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xqg_vdb.errors import MismatchError, ModelError
from xqg_vdb.export.checkpoints import Checkpoint, fetch_checkpoint, longest_text, read_json
from xqg_vdb.export.gate import (
    ELSEWHERE,
    T5,
    load_tokenizer,
    load_weights,
    model_class,
    need_torch,
    parity_texts,
    save_tokenizer,
    sentence_transformer,
    without_weights,
    write_graph,
)
from xqg_vdb.export.quantise import quantise_graph
from xqg_vdb.generate.local import ENCODER_GRAPH, Seq2SeqGenerator
from xqg_vdb.generate.output import versions
from xqg_vdb.models.decoder import CausalModel, Decoding
from xqg_vdb.models.encoder import ACTIVATIONS
from xqg_vdb.models.folder import GRAPH, TOKENIZER, ModelFolder, Precision, write_manifest
from xqg_vdb.models.forest import Bools, Forest
from xqg_vdb.search.rerank import open_pairs
from xqg_vdb.texts.corpus import read_corpus, sample_corpus

_Say = Callable[[str], None]  # told one line a step
FINETUNED_KEY = "xqg_vdb_finetuned"
"""In a checkpoint's config.json: what `train generator` trained it on, `{"max_passage_tokens": int}`."""


def fill_generator(
    checkpoint: str, precision: Precision, accept_license: bool, scratch: Path, asked: Mapping[str, Any], say: _Say
) -> None:
    """Make the folder `model` of a generator in `scratch`.

    Raises ModelError for what cannot be exported (also when the starter's licence was not accepted), MismatchError when
    8-bit weights change what the model writes too much, MissingExtra without torch.
    """
    say(f"reading {checkpoint}")
    source = fetch_checkpoint(checkpoint, into=scratch / "checkpoint", accept_license=accept_license)
    plain = _fp32_folder(source, scratch / "fp32", say=say)
    folder = plain if precision == "fp32" else _int8_folder(plain, scratch / "int8", say=say)
    write_manifest(folder.path, {**folder.manifest, "asked": asked})
    folder.path.rename(scratch / "model")


CROSS_PARITY = 1e-4
"""Most that a score of a cross-encoder's export may be off the original's."""


def fill_cross(checkpoint: str, scratch: Path, asked: Mapping[str, Any], say: _Say) -> None:
    """Make the folder `model` of a cross-encoder (a classifier of text pairs with one logit) in `scratch`, in fp32.

    Raises ModelError for what is none, MismatchError when the graph does not score as the original, MissingExtra.
    """
    say(f"reading {checkpoint}")
    source, folder = fetch_checkpoint(checkpoint, into=scratch / "checkpoint"), scratch / "model"
    folder.mkdir()
    record = cross_record(source)
    write_graph(source, folder / GRAPH, cross=True, say=say)
    save_tokenizer(source, folder, ask=source.onnx is None)
    manifest = {"kind": "cross-encoder", **source.origin, "cross": record, "precision": "fp32", "asked": asked}
    made = write_manifest(folder, {**manifest, "made_with": versions(("xqg-vdb", "torch", "transformers"))})
    if source.onnx is None:
        off = measure_pairs(source, made)
        say(f"scores of pairs compared with the original: {off:.1e} apart at most")
        if not off <= CROSS_PARITY:
            raise MismatchError(f"The graph's scores are {off:.1e} off those of {checkpoint}; nothing was written.")
        write_manifest(folder, {**made.manifest, "parity": {"difference_max": off}})


def measure_pairs(checkpoint: Checkpoint, made: ModelFolder) -> float:
    """How far a cross-encoder's scores are from those of the original, at most, over pairs of `parity_texts`."""
    questions, passages = parity_texts()
    pairs = [(question, passages[i * 7 % len(passages)]) for i, question in enumerate(questions)] + [
        (questions[0], passage) for passage in passages
    ]
    original = sentence_transformer(checkpoint, "CrossEncoder")
    original.max_seq_length = made.manifest["cross"]["max_length"]
    wanted = np.array([original.predict([pair], show_progress_bar=False)[0] for pair in pairs])
    score = open_pairs(made, threads=0)
    ours = np.concatenate([score(pairs[start : start + 8])[0] for start in range(0, len(pairs), 8)])
    return float(np.abs(ours - wanted).max())


def cross_record(source: Checkpoint) -> dict[str, Any]:
    """What is done to a logit, by the files of sentence-transformers, and tokens read. Raises ModelError for others."""
    kind, labels = source.origin["architecture"], len(source.config.get("id2label") or "01")
    if not kind.endswith("ForSequenceClassification") or labels != 1:
        raise ModelError(
            f"{source.source} is {kind} with {labels} labels; a cross-encoder is a model ForSequenceClassification"
            " with one."
        )
    own = read_json(source.path / "config_sentence_transformers.json", default={}).get("activation_fn")
    theirs = (source.config.get("sentence_transformers") or {}).get("activation_fn")
    told = own or theirs or source.config.get("sbert_ce_default_activation_function") or "Sigmoid"
    name = str(told).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ModelError(f"{source.source} puts {told} on its logits; supported: {', '.join(ACTIVATIONS)}.")
    return {"activation": name, "max_length": longest_text(source, default=512)}


def original_cross_facts(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Name and version of sentence-transformers, and what it would do with a cross-encoder."""
    model = sentence_transformer(source, "CrossEncoder")
    return f"sentence-transformers {version('sentence-transformers')}", {
        "modules": type(model[0].model).__name__,
        "activation": type(model.activation_fn).__name__,
        "max_length": model.max_seq_length,
    }


def describe_generator(source: Checkpoint) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name and version of transformers, and facts by name: its class, and what an export would record."""
    software, model = without_weights(source, model_class(source, writes=True))
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(source, Path(name))
        record = _record(source, model, Path(name))
    kind = "encoder and decoder" if source.config["model_type"] in T5 else "decoder"
    return software, {"modules": type(model).__name__}, {"modules": kind, **record, "chat": bool(record.get("chat"))}


def _fp32_folder(source: Checkpoint, folder: Path, *, say: _Say) -> ModelFolder:
    need_torch()
    folder.mkdir()
    save_tokenizer(source, folder)
    say("exporting to ONNX (a minute or two)")
    from xqg_vdb.export import graphs

    seq2seq = source.config["model_type"] in T5
    model = load_weights(model_class(source, writes=True), source, attention="eager").eval()
    record = _record(source, model, folder)
    if seq2seq:
        graphs.write_seq2seq(model, folder / ENCODER_GRAPH, folder / GRAPH, source.source)
    else:
        graphs.write_causal(model, folder / GRAPH, source.source)
    made_with = versions(("xqg-vdb", "torch", "transformers", "onnx", "onnxruntime", "tokenizers"))
    kind = "seq2seq-generator" if seq2seq else "causal-generator"
    facts = {"kind": kind, "generator": record, "precision": "fp32", "made_with": made_with}
    plain = write_manifest(folder, {**facts, **source.origin, "machine": platform.machine()})
    say("comparing with the original")
    parity = measure_logits(model, plain)
    say(f"logits differ by {parity['logits_differ']:.1e} over {parity['tokens']} tokens")
    if not parity["logits_differ"] <= LARGEST_DIFFERENCE:
        raise MismatchError(
            f"The export of {source.source} ({source.config['model_type']}) is not the model it was made from: logits"
            f" differ by {parity['logits_differ']:.1e}, allowed are {LARGEST_DIFFERENCE}; nothing was written."
        )
    return write_manifest(folder, {**plain.manifest, "parity": parity})


def _int8_folder(plain: ModelFolder, folder: Path, *, say: _Say) -> ModelFolder:
    say("packing weights to 8 bits in blocks of 32")
    folder.mkdir()
    shutil.copyfile(plain.path / TOKENIZER, folder / TOKENIZER)
    for graph in plain.path.glob("*.onnx"):
        quantise_graph(graph, folder / graph.name)
    packed = write_manifest(folder, {**plain.manifest, "precision": "int8"})
    say("comparing what both write")
    agreement, summary, accepted = measure_agreement(plain, packed)
    say(summary)
    if not accepted:
        raise MismatchError(
            f"8-bit weights change this model too much: {summary}; nothing was written. Use --precision fp32."
        )
    return write_manifest(folder, {**packed.manifest, "parity": {**plain.manifest["parity"], **agreement}})


def _record(source: Checkpoint, model: Any, folder: Path) -> dict[str, Any]:
    """What a generator's folder says of its model. Raises ModelError for one whose shape is not known."""
    config, eos = source.config, end_tokens(source, folder)
    if config["model_type"] in T5:
        start = config.get("decoder_start_token_id")
        return {"eos": eos, "start": config.get("pad_token_id", 0) if start is None else start}
    if not hasattr(model, "lm_head") or not hasattr(model, "model"):
        raise ModelError(f"{source.source} ({config['model_type']}) is no decoder of a known shape: {ELSEWHERE}.")
    if other := set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{source.source} has layers of {', '.join(sorted(other))}; only those of full and sliding attention can"
            f" be exported: {ELSEWHERE}."
        )
    return {
        "max_length": min(int(config.get("max_position_embeddings") or 2048), 8192),
        "bos": start_token(source, folder),
        "eos": eos,
        "chat": _chat_parts(source.path),
        "finetuned": config.get(FINETUNED_KEY),
    }


def end_tokens(source: Checkpoint, folder: Path) -> list[int]:
    """End tokens: the checkpoint's own and, for chat models, the end of a turn."""
    found: set[int] = set()
    for config in (source.config, read_json(source.path / "generation_config.json", default={})):
        value = config.get("eos_token_id")
        found |= set(value if isinstance(value, list) else [] if value is None else [value])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    turns = (tokenizer.token_to_id(token) for token in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>"))
    return sorted(found | {token for token in turns if token is not None})


def start_token(source: Checkpoint, folder: Path) -> int | None:
    """The start token, if this tokenizer puts one in front of a text."""
    tokenizer, bos = Tokenizer.from_file(str(folder / TOKENIZER)), source.config.get("bos_token_id")
    ids = tokenizer.encode("a").ids
    return int(bos) if isinstance(bos, int) and ids and ids[0] == bos else None


def _chat_parts(checkpoint: Path) -> list[str] | None:
    """What a chat template puts before and after one user message (without the start token); None for a base model."""
    config = checkpoint / "tokenizer_config.json"
    if not (checkpoint / "chat_template.jinja").is_file() and b"chat_template" not in (
        config.read_bytes() if config.is_file() else b""
    ):
        return None
    tokenizer = load_tokenizer(checkpoint)
    mark = "MESSAGE-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = str(text).partition(mark)
    return [before.removeprefix(tokenizer.bos_token or ""), after] if after else None


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
        given = {"input_ids": prompt, "decoder_input_ids": ids} if reader.seq2seq else {"input_ids": ids}
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
        self.seq2seq = folder.kind == "seq2seq-generator"
        self.model: CausalModel | Seq2SeqGenerator
        self.model = Seq2SeqGenerator(folder, decoding=Decoding()) if self.seq2seq else CausalModel(folder, stop=())

    def prompts(self) -> list[list[int]]:
        passages = islice(read_corpus(sample_corpus().corpus, detect=False), PROMPTS)
        ask = "Generate a German question for this passage: {}" if self.seq2seq else "Passage: {}\nQuestion:"
        return [list(self.model.tokenizer.encode(ask.format(p.text)).ids)[:200] for p in passages]

    def start(self, ids: list[int]) -> tuple[Forest, list[int]]:
        """A tree and the tokens that still must be read before the first one is written."""
        if isinstance(self.model, Seq2SeqGenerator):
            return self.model.read([ids]), [self.model.start]
        return self.model.forest(1), ids

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
