"""Checkpoint to generator folder: traced graphs, 8-bit weights if asked, and a gate before anything is accepted.

In: a hub id, a local checkpoint folder or `starter:generator`. Out: a model folder of kind `causal-generator` or
`seq2seq-generator`. torch, transformers and onnx are needed here only (extra `export`).
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from tokenizers import Tokenizer

from xqg_vdb.errors import MismatchError, MissingExtra, ModelError
from xqg_vdb.export.checkpoints import Base, Checkpoint, finished, load_weights
from xqg_vdb.export.quantise import quantise_graph, save_graph
from xqg_vdb.files import new_folder
from xqg_vdb.generate.local import ENCODER_GRAPH
from xqg_vdb.generate.output import versions
from xqg_vdb.models.engine import open_session
from xqg_vdb.models.folder import GRAPH, TOKENIZER, ModelFolder, write_manifest
from xqg_vdb.models.forest import Forest, Stepper
from xqg_vdb.texts.corpus import read_corpus, sample_corpus

# Does a quantised generator still write what the original writes? Measured before it may be used.

LOWEST_AGREEMENT = 0.85
LARGEST_LOSS = 0.1  # nats per token
PROMPTS, TOKENS, SIGHT = 8, 16, 512


@dataclass(frozen=True)
class Agreement:
    """What `compare` measured over `tokens` greedy tokens of the original.

    exact: share of prompts for which free greedy decoding gives the very same tokens.
    token_agreement: share of places where both think the same token best, given the original's text so far.
    log_probability, original_log_probability: mean per token, of the original's text, in nats; not above the truth,
    because a
        token outside the best 512 counts as the 512th.
    """

    exact: float
    token_agreement: float
    log_probability: float
    original_log_probability: float
    tokens: int

    @property
    def accepted(self) -> bool:
        """Whether the quantised model may stand for the original."""
        loss = self.original_log_probability - self.log_probability
        return self.token_agreement >= LOWEST_AGREEMENT and loss <= LARGEST_LOSS

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"same next token {self.token_agreement:.1%}, same {TOKENS}-token answer {self.exact:.1%}, "
            f"mean log-probability {self.log_probability:.3f} against {self.original_log_probability:.3f} "
            f"over {self.tokens} tokens"
        )


def compare(original: ModelFolder, other: ModelFolder) -> Agreement:
    """Measure `other` against `original`, both of the same kind and tokenizer."""
    first = _Reader(original)
    prompts = first.prompts()
    starts = [first.start(prompt) for prompt in prompts]
    texts = [first.greedy(start) for start in starts]
    own = [first.read(start, text) for start, text in zip(starts, texts, strict=True)]
    del first, starts  # two copies of a large model at once are not needed
    second = _Reader(other)
    places = [second.start(prompt) for prompt in prompts]
    exact = [second.greedy(place) == text for place, text in zip(places, texts, strict=True)]
    read = [second.read(place, text) for place, text in zip(places, texts, strict=True)]
    return Agreement(
        exact=float(np.mean(exact)),
        token_agreement=float(np.mean(np.concatenate([same for same, _ in read]))),
        log_probability=float(np.mean(np.concatenate([value for _, value in read]))),
        original_log_probability=float(np.mean(np.concatenate([value for _, value in own]))),
        tokens=sum(map(len, texts)),
    )


class _Reader:
    """One model: prompts to trees, trees and texts to log-probabilities."""

    def __init__(self, folder: ModelFolder) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
        self.record = folder.manifest["generator"]
        self.stepper = Stepper(open_session(Path(folder.path) / GRAPH, threads=0))
        self.encoder = None
        if folder.kind == "seq2seq-generator":
            self.encoder = open_session(Path(folder.path) / "encoder.onnx", threads=0)

    def prompts(self) -> list[list[int]]:
        passages = islice(read_corpus(sample_corpus().corpus, detect=False), PROMPTS)
        ask = "Generate a German question for this passage: {}" if self.encoder else "Passage: {}\nQuestion:"
        return [list(self.tokenizer.encode(ask.format(p.text)).ids)[:200] for p in passages]

    def start(self, ids: Sequence[int]) -> tuple[Forest, list[int]]:
        """A tree and the tokens that still must be read before the first one is written."""
        if self.encoder is None:
            return self.stepper.empty(1), list(ids)
        from xqg_vdb.models.engine import ort_value

        seen = np.ones((1, len(ids)), np.bool_)
        values = self.encoder.run(None, {"tokens": np.array([ids], np.int64), "cross_mask": seen})
        names = [node.name for node in self.encoder.get_outputs()]
        context = {name: ort_value(value) for name, value in zip(names, values, strict=True)}
        return self.stepper.empty(1, {**context, "cross_mask": ort_value(seen)}), [int(self.record["start"])]

    def greedy(self, start: tuple[Forest, list[int]]) -> list[int]:
        forest, ids = replace(start[0]), start[1]
        written: list[int] = []
        while len(written) < TOKENS:
            written.append(int(_append(forest, ids, take=[len(ids) - 1], k=1)[0][0, 0]))
            ids = written[-1:]
        return written

    def read(self, start: tuple[Forest, list[int]], text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Per token of `text`: whether it is thought best (bool), and its log-probability."""
        forest, ids = replace(start[0]), [*start[1], *text[:-1]]
        places = range(len(start[1]) - 1, len(ids))
        tokens, values = _append(forest, ids, take=list(places), k=SIGHT)
        same = tokens == np.array(text)[:, None]
        found = np.where(same.any(axis=1), same.argmax(axis=1), tokens.shape[1] - 1)
        return tokens[:, 0] == np.array(text), values[np.arange(len(text)), found]


def _append(forest: Forest, ids: Sequence[int], *, take: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Read `ids`; the k best tokens and their log-probabilities (len(take), k)."""
    old, new = forest.slots, len(ids)
    mask = np.concatenate([np.ones((new, old), np.bool_), np.tril(np.ones((new, new), np.bool_))], axis=1)
    where = np.arange(old, old + new)[None]
    best = forest.step(np.array([ids], np.int64), where, mask[None], np.array(take, np.int64), k=k, norm=True)
    return best.tokens, best.log_probabilities


SEQ2SEQ = ("t5", "mt5", "umt5")
FINETUNED_KEY = "xqg_vdb_finetuned"
"""In a checkpoint's config.json: what `train generator` trained it on, `{"max_passage_tokens": int}`."""

Precision = Literal["fp32", "int8"]


def export_generator(
    checkpoint: str,
    out: Path,
    *,
    precision: Precision = "int8",
    accept_license: bool = False,
    say: Callable[[str], None] = print,
) -> ModelFolder:
    """Export `checkpoint` into the new folder `out`, which appears only when everything was accepted.

    say: called with one line per step. Raises ModelError for what cannot be exported (also when the starter's
    licence was not accepted), MismatchError when 8-bit weights change what the model writes too much, MissingExtra
    without torch.
    """
    asked = {"checkpoint": checkpoint, "precision": precision}
    if done := finished(out, asked, say=say):
        return done
    with new_folder(out, result="model") as scratch:
        say(f"reading {checkpoint}")
        source = Base(checkpoint, accept_license).fetch(scratch / "checkpoint")
        plain = _fp32_folder(source, scratch / "fp32", say=say)
        folder = plain if precision == "fp32" else _int8_folder(plain, scratch / "int8", say=say)
        manifest = write_manifest(folder.path, {**_without_files(folder.manifest), "asked": asked}).manifest
        folder.path.rename(scratch / "model")
    return ModelFolder(out, manifest)


def _fp32_folder(source: Checkpoint, folder: Path, *, say: Callable[[str], None]) -> ModelFolder:
    folder.mkdir()
    save_tokenizer(source.path, folder)
    say("tracing the model (a minute or two)")
    if source.config["model_type"] in SEQ2SEQ:
        record = {"kind": "seq2seq-generator", "generator": _trace_seq2seq(source, folder)}
    else:
        record = {"kind": "causal-generator", "generator": _trace_causal(source, folder)}
    packages = ("xqg-vdb", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")
    manifest: dict[str, Any] = {
        **record,
        **source.origin,
        "architecture": (source.config.get("architectures") or [source.config["model_type"]])[0],
        "precision": "fp32",
        "made_with": versions(packages),
        "machine": platform.machine(),
    }
    return write_manifest(folder, manifest)


def _int8_folder(plain: ModelFolder, folder: Path, *, say: Callable[[str], None]) -> ModelFolder:
    say("packing weights to 8 bits in blocks of 32")
    folder.mkdir()
    shutil.copyfile(plain.path / TOKENIZER, folder / TOKENIZER)
    for graph in plain.path.glob("*.onnx"):
        quantise_graph(graph, folder / graph.name)
    packed = write_manifest(folder, {**_without_files(plain.manifest), "precision": "int8"})
    say("comparing what both write")
    agreement = compare(plain, packed)
    say(agreement.summary)
    if not agreement.accepted:
        raise MismatchError(
            f"8-bit weights change this model too much: {agreement.summary}; nothing was written. Use --precision fp32."
        )
    return write_manifest(folder, {**_without_files(packed.manifest), "parity": asdict(agreement)})


def _without_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in ("files", "schema")}


def _trace_causal(source: Checkpoint, folder: Path) -> dict[str, Any]:
    model = _load(source, "AutoModelForCausalLM")
    from xqg_vdb.export import graphs

    if not hasattr(model, "lm_head") or not hasattr(model, "model"):
        raise ModelError(f"{source.source} ({source.config['model_type']}) is no decoder-only model of a known shape.")
    _trace(graphs.CausalGraph(model), graphs.causal_example(model.config), folder / GRAPH)
    length = int(source.config.get("max_position_embeddings") or 2048)
    return {
        "max_length": min(length, 8192),
        "bos": start_token(source, folder),
        "eos": end_tokens(source, folder),
        "chat": _chat_parts(source.path),
        "finetuned": source.config.get(FINETUNED_KEY),
    }


def _trace_seq2seq(source: Checkpoint, folder: Path) -> dict[str, Any]:
    model = _load(source, "AutoModelForSeq2SeqLM")
    from xqg_vdb.export import graphs

    _trace(graphs.EncoderGraph(model), graphs.encoder_example(model.config), folder / ENCODER_GRAPH)
    _trace(graphs.DecoderGraph(model), graphs.decoder_example(model.config), folder / GRAPH)
    start = source.config.get("decoder_start_token_id")
    start = source.config.get("pad_token_id", 0) if start is None else start
    return {"eos": end_tokens(source, folder), "start": start}


def _load(source: Checkpoint, kind: str) -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtra(
            f'Exporting needs torch and transformers ({error.name}): pip install "xqg-vdb[export]".'
        ) from error
    transformers.logging.set_verbosity_error()
    return load_weights(kind, source, attention="eager").eval()


def _trace(module: Any, face: Any, target: Path) -> None:
    import onnx

    from xqg_vdb.export import graphs

    # graphs over 2 GB are written as one file per weight: gather them
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning, and that this exporter is the older one
        traced = Path(name) / "traced.onnx"
        example, inputs, outputs, axes = face
        graphs.trace(module, example, inputs, outputs, axes, str(traced))
        save_graph(onnx.load(str(traced)), target)


def save_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write the checkpoint's tokenizer.json into `folder`. Raises ModelError when there is none to be had."""
    if (checkpoint / TOKENIZER).is_file():
        shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint), use_fast=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    except (ValueError, OSError, ImportError, AttributeError) as error:
        raise ModelError(f"{checkpoint} has no tokenizer.json and none can be made ({str(error)[:200]}).") from error


def _generation_config(source: Checkpoint) -> dict[str, Any]:
    path = source.path / "generation_config.json"
    return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}


def end_tokens(source: Checkpoint, folder: Path) -> list[int]:
    """End tokens: the checkpoint's own and, for chat models, the end of a turn."""
    from tokenizers import Tokenizer

    found: set[int] = set()
    for value in (source.config.get("eos_token_id"), _generation_config(source).get("eos_token_id")):
        found |= set(value if isinstance(value, list) else [] if value is None else [value])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    turns = (tokenizer.token_to_id(token) for token in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>"))
    return sorted(found | {token for token in turns if token is not None})


def start_token(source: Checkpoint, folder: Path) -> int | None:
    """The start token, if this tokenizer puts one in front of a text."""
    from tokenizers import Tokenizer

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
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    mark = "MESSAGE-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = str(text).partition(mark)
    return [before.removeprefix(tokenizer.bos_token or ""), after] if after else None
