"""The original software: what it makes of a checkpoint, its weights, and its rows beside those of an export."""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_vdb.errors import MissingExtra, ModelError, reason
from xqg_vdb.export.checkpoints import (
    NO_LIMIT,
    NOTHING,
    POOLING,
    Checkpoint,
    Overrides,
    conventions,
    modules_of,
    read_dense,
    read_json,
    text_module,
    width,
)
from xqg_vdb.files import damage, damaged_weights
from xqg_vdb.fusion import unit_rows
from xqg_vdb.models.encoder import POOL, Encoder
from xqg_vdb.models.folder import TOKENIZER, EncoderSpec
from xqg_vdb.texts.corpus import read_corpus, sample_corpus
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Vectors

# What an encoder's checkpoint is, before anything is exported.


def export_facts(source: Checkpoint, overrides: Overrides) -> dict[str, Any]:
    """How an export would use it. Raises ModelError for what would be refused."""
    spec, told = conventions(source, overrides)
    if source.onnx is None and find_spec("transformers"):
        model_class(source)
        check_code(source)
    prompts = read_json(source.path / "config_sentence_transformers.json", default={}).get("prompts") or {}
    used = (spec.query_prefix, spec.passage_prefix, None, "")
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
        "lower-cased": bool(text_module(source).get("do_lower_case")),
        "tokenizer": TOKENIZER if (source.path / TOKENIZER).is_file() else "made by transformers",
        "graph": "the checkpoint's own" if source.onnx else "made by torch",
        "ranked by": "cosine" if spec.normalize else "dot product",
        "prompts that are not used": [f"{name}: {text!r}" for name, text in prompts.items() if text not in used],
        "told by": told,
    }


def original_facts(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Name and version of the original software, and what it would do. Raises ModelError, MissingExtra."""
    if not modules_of(source.path):
        return _of_transformers(source)
    model = sentence_transformer(source)
    prompts = {name: prompt for name, prompt in (model.prompts or {}).items() if prompt}
    usual = prompts.get(model.default_prompt_name, "")
    parts = [(type(module).__name__, module) for module in model]
    pooling, dense = dict(parts).get("Pooling"), [module for kind, module in parts if kind == "Dense"]
    return f"sentence-transformers {version('sentence-transformers')}", {
        "modules": ", ".join(kind for kind, _ in parts),
        "pooling": POOLING.get(pooling.pooling_mode) if pooling else None,
        "prompt is pooled": bool(pooling and pooling.include_prompt),
        "query prompt": prompts.get("query", usual),
        "passage prompt": model.prompts.get("document") or usual,
        "longest text": model.max_seq_length,
        "normalised": "Normalize" in dict(parts),
        "dimensions": model.get_embedding_dimension(),
        "projections": [f"{d.in_features} to {d.out_features}, {type(d.activation_function).__name__}" for d in dense],
        "lower-cased": bool(getattr(model[0], "do_lower_case", False)),
        "tokenizer": type(model.tokenizer).__name__,
        "ranked by": {"dot": "dot product"}.get(model.similarity_fn_name, model.similarity_fn_name),
    }


def _of_transformers(source: Checkpoint) -> tuple[str, dict[str, Any]]:
    """The same of a checkpoint without modules: transformers pools nothing and knows no prompts."""
    software, model = without_weights(source, model_class(source))
    encoder_inputs(source, model)
    tokenizer = load_tokenizer(source.path)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or NO_LIMIT)
    return f"{software}, which pools nothing and knows no prompts", {
        "modules": type(model).__name__,
        "longest text": longest if longest < NO_LIMIT else "no limit",
        "dimensions": width(source),
        "lower-cased": bool(getattr(tokenizer, "do_lower_case", False)),
        "tokenizer": type(tokenizer).__name__,
    }


def encoder_inputs(checkpoint: Checkpoint, model: Any, *, cross: bool = False) -> list[str]:
    """The inputs of the graph, segments only where they matter. Raises ModelError for a model that reads no text."""
    taken = inspect.signature(model.forward).parameters
    segments = checkpoint.config["model_type"] in TRACED or (cross and "token_type_ids" in taken)
    segments = segments and int(checkpoint.config.get("type_vocab_size") or 0) > 1
    # its tokenizer decides: without them a model takes zeros for both texts of a pair
    segments = segments and "token_type_ids" in load_tokenizer(checkpoint.path).model_input_names
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    if missing := [name for name in names if name not in taken]:
        raise ModelError(f"{checkpoint.source} takes no {', '.join(missing)}, so it is no text encoder.")
    if hasattr(model, "get_text_features"):  # CLIP and its like
        raise ModelError(f"{checkpoint.source} embeds images and texts ({type(model).__name__}): {ELSEWHERE}.")
    return names


# Weights of a checkpoint in transformers, one way wherever they are needed: float32, safetensors, no code run.


TRACED = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
"""Families whose forward has no branches, so that tracing is right, and leaves a graph that runs faster.

Every other family goes through `torch.export`: tracing takes branches of the example for good, silently wrong on some.
"""


T5 = ("t5", "mt5", "umt5")
CORRECT = "; correct its config.json, take another revision, or pip install -U transformers."
COPY = "copy tokenizer.json of the model that it was trained from."
ELSEWHERE = "let a server run it (`generate --endpoint URL`, `export URL OUT --model NAME`)"
"""What to do with a model that cannot be exported."""


def need_torch(purpose: str = "Exporting", *, extra: str = "export", also: str = "onnx", of: str = "") -> None:
    """Raises MissingExtra before minutes of work, or a download `of` a model; torch and others then say errors only."""
    try:
        for name in (also, "torch", "transformers"):  # torch needs onnx, and says so late
            import_module(name)
    except ImportError as error:
        then = f"; {of} is downloaded from the model hub after that" if of and not Path(of).is_dir() else ""
        raise MissingExtra(f'{purpose} needs {error.name}: pip install "xqg-vdb[{extra}]"{then}.') from error
    import transformers

    hub = import_module("huggingface_hub.utils")
    downloads = not hub.are_progress_bars_disabled()
    logging.getLogger("torch").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # also that of downloads, which is wanted
    if downloads:
        hub.enable_progress_bars()


def load_weights(kind: str, checkpoint: Checkpoint, *, attention: str | None = None) -> Any:
    """The model, in training mode. kind: a class of transformers, such as AutoModel. attention: None takes its default.

    Needs torch and transformers. Raises ModelError for what transformers cannot load.
    """
    import torch
    import transformers

    software, _ = without_weights(checkpoint, kind)
    try:
        model, loaded = getattr(transformers, kind).from_pretrained(
            str(checkpoint.path), dtype=torch.float32, attn_implementation=attention, use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # of transformers, of safetensors, and of a stranger's values in the configuration
        why = f"{software} cannot load {checkpoint.source}: {reason(error)}{CORRECT}"
        raise ModelError(damaged_weights(checkpoint.path, checkpoint.source) or why) from error
    if wrong := sorted(key if isinstance(key, str) else key[0] for key in loaded["mismatched_keys"]):  # 5 says more
        raise ModelError(
            f"size mismatch: {len(wrong)} weights of {checkpoint.source}, such as {wrong[0]}, have other sizes than its"
            f" config.json says{CORRECT}"
        )
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):  # which nothing here uses
        why = "its files are incomplete, or of another model"
        why = "it has experts, which that class does not know" if _has_experts(checkpoint) else why
        those = f"{len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise ModelError(f"{checkpoint.source} lacks {those}: {why}.")
    return model


def without_weights(source: Checkpoint, kind: str) -> tuple[str, Any]:
    """Transformers' name and version, and its model without weights. Raises ModelError, MissingExtra."""
    need_torch()
    import torch
    import transformers

    if source.onnx is None:
        check_code(source)
    held = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    software = f"transformers {transformers.__version__}"
    try:
        config = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        config.pruned_heads = {}  # cannot be cut out where there are no numbers
        with torch.device("meta"):
            model = getattr(transformers, kind).from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{software} cannot load {source.source}: {reason(error)}{CORRECT}") from error
    if held and (numbers := sum(w.numel() for w in model.parameters())) > max(2 * held, 1 << 29):  # too much memory
        why = f"{source.source} has {held:,} bytes of weights, its config.json speaks of {numbers:,} numbers{CORRECT}"
        raise ModelError(damaged_weights(source.path, source.source) or why)
    return software, model


def check_code(checkpoint: Checkpoint) -> None:
    """Raise ModelError where transformers' own class would not compute what the checkpoint's publisher computes."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as KNOWN

    kind, source, code = checkpoint.config["model_type"], checkpoint.source, checkpoint.code
    own = next((code[name] for name in code if name.startswith("AutoModel")), None)
    if own and str(code.get("AutoConfig", "")).rpartition(".")[2] != KNOWN.get(kind):
        knows = f"has a {kind} that may compute something else" if kind in KNOWN else f"knows no type {kind!r}"
        raise ModelError(
            f"{source} brings Python code of its own ({own}), which is never run, and transformers"
            f" {transformers.__version__} {knows}: take a checkpoint without auto_map in its config.json, or one with"
            " an ONNX graph."
        )
    if quantised := checkpoint.config.get("quantization_config"):
        method = quantised.get("quant_method") or "what its quantization_config says"
        raise ModelError(f"{source} has weights quantised by {method}: export the checkpoint they were made from.")
    running = transformers.__version__
    if tuple(map(int, running.split(".")[:2])) >= (5, 2):
        return
    if checkpoint.config.get("is_causal") is False or _has_experts(checkpoint):
        is_one = "is a mixture of experts" if _has_experts(checkpoint) else "reads both ways (is_causal: false)"
        why = f"{source} {is_one}, which transformers {running} does not export"
        raise ModelError(f'{why}: pip install "transformers>=5.2".')


def _has_experts(checkpoint: Checkpoint) -> bool:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(isinstance(number := checkpoint.config.get(name), int) and number > 1 for name in names)


def model_class(checkpoint: Checkpoint, *, writes: bool = False) -> str:
    """The class of transformers that gives vectors of tokens, or that writes. Raises ModelError where there is none."""
    kind = checkpoint.config["model_type"]
    if kind in T5:
        return "AutoModelForSeq2SeqLM" if writes else "AutoModelForTextEncoding"  # the encoder alone
    if checkpoint.config.get("is_encoder_decoder"):
        raise ModelError(
            f"{checkpoint.source} is an encoder-decoder ({kind}): of these, only {', '.join(T5)} export: {ELSEWHERE}."
        )
    return "AutoModelForCausalLM" if writes else "AutoModel"


def write_graph(source: Checkpoint, target: Path, *, cross: bool = False, say: Callable[[str], None]) -> None:
    """Write `target`, the publisher's own graph or torch's. Raises ModelError, MissingExtra."""
    if source.onnx is None:
        say("exporting to ONNX (about a minute)")
        need_torch()
        from xqg_vdb.export import graphs

        return graphs.write_encoder(source, target, cross=cross)
    say(f"using the ONNX graph that {source.source} ships")
    if broken := damage(source.onnx):
        raise ModelError(f"{broken} Or delete its onnx folder.")
    for file in source.path.glob(source.onnx.name + "*"):
        shutil.copyfile(file, target.parent / (target.name if file.name == source.onnx.name else file.name))


# A checkpoint's tokenizer.


def load_tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's tokenizer in transformers. Raises ModelError."""
    from transformers import AutoTokenizer

    if not any(file for pattern in ("tokenizer*", "vocab*", "*.model") for file in checkpoint.glob(pattern)):
        raise ModelError(f"The checkpoint has no tokenizer: {COPY}")
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of transformers and of what it reads tokenizers with
        raise ModelError(f"transformers cannot load the checkpoint's tokenizer: {reason(error)}; {COPY}") from error


def save_tokenizer(source: Checkpoint, folder: Path, *, ask: bool = True) -> Path:
    """Write tokenizer.json: the checkpoint's own, or where transformers reads texts otherwise or needs none, its one.

    ask: whether transformers, which may change what stands there by tokenizer_config.json, is asked. Raises ModelError,
    also for a tokenizer of another model, whose tokens this one does not know.
    """
    own, made = source.path / TOKENIZER, folder / TOKENIZER
    texts = [text for lines in question_bank().values() for text in (lines[0], lines[0].upper())] + parity_texts()[1]
    try:
        if own.is_file():
            shutil.copyfile(own, made)
        if not own.is_file() or (ask and (source.path / "tokenizer_config.json").is_file()):
            with suppress(*([ModelError] if own.is_file() else [])):
                theirs = load_tokenizer(source.path)
                if not own.is_file() or theirs(texts)["input_ids"] != _ids(own, texts):
                    theirs.backend_tokenizer.save(str(made))
        largest = max(max(ids, default=0) for ids in _ids(made, texts))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"The checkpoint's tokenizer is none that can be read ({reason(error)}): {COPY}") from error
    if largest >= (known := source.config.get("vocab_size") or NO_LIMIT):
        raise ModelError(
            f"The tokenizer of {source.source} writes tokens up to {largest}, and the model knows {known} of them, so"
            f" it is of another model: {COPY}"
        )
    return made


def _ids(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_truncation()
    reader.no_padding()
    return [encoding.ids for encoding in reader.encode_batch(texts)]


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
    theirs = unit_rows(theirs) if encoder.spec.normalize else theirs  # that ranks by cosine, whatever its rows' length
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


def torch_vectors(checkpoint: Checkpoint, spec: EncoderSpec, overrides: Overrides = NOTHING) -> tuple[Vectors, Vectors]:
    """The original software's rows of `parity_texts`, text by text: sentence-transformers' for its checkpoints."""
    known = modules_of(checkpoint.path)
    row = _sentence_transformers_row(checkpoint, spec, overrides) if known else _transformers_row(checkpoint, spec)
    questions, passages = parity_texts()
    try:
        # the longest first: BigBird leaves its sparse attention for good at the first short text
        found = [row(spec.passage_prefix, text) for text in reversed(passages)]
        return np.stack([row(spec.query_prefix, text) for text in questions]), np.stack(found[::-1])
    except Exception as error:  # of torch, of tokenizers, and of what a stranger's configuration makes of them
        raise ModelError(
            f"The original software cannot encode with {checkpoint.source} ({type(error).__name__}: {reason(error)}):"
            " if its texts are too long, give a lower --max-length."
        ) from error


def sentence_transformer(checkpoint: Checkpoint, kind: str = "SentenceTransformer") -> Any:
    """The checkpoint in its original software. kind: a class of it. Raises MissingExtra, ModelError."""
    need_torch()
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingExtra(f'The parity gate needs {error.name}: pip install "xqg-vdb[export]".') from error
    cross = kind == "CrossEncoder"
    without_weights(checkpoint, "AutoModelForSequenceClassification" if cross else model_class(checkpoint))
    try:
        return getattr(sentence_transformers, kind)(
            str(checkpoint.path), device="cpu", local_files_only=True, trust_remote_code=False,
            model_kwargs={"dtype": "float32"},  # whatever the weights are stored in: as they are exported
        )  # fmt: skip
    except Exception as error:  # of transformers too, and of a stranger's values in the configuration
        raise ModelError(f"sentence-transformers cannot load {checkpoint.source}: {reason(error)}{CORRECT}") from error


def _sentence_transformers_row(
    checkpoint: Checkpoint, spec: EncoderSpec, overrides: Overrides
) -> Callable[[str, str], Vectors]:
    """What sentence-transformers computes with the overrides of its own settings, and without a limit with ours."""
    model = sentence_transformer(checkpoint)
    if overrides.max_length or (model.max_seq_length or NO_LIMIT) >= NO_LIMIT:
        model.max_seq_length = spec.max_length
    if overrides.pooling:
        model[1].pooling_mode = next(name for name, ours in POOLING.items() if ours == overrides.pooling)
    if overrides.dim:
        model.truncate_dim = None

    return lambda prompt, text: np.asarray(model.encode([text], prompt=prompt, show_progress_bar=False)[0], np.float32)


def _transformers_row(checkpoint: Checkpoint, spec: EncoderSpec) -> Callable[[str, str], Vectors]:
    need_torch()
    import torch

    tokenizer, model = load_tokenizer(checkpoint.path), load_weights(model_class(checkpoint), checkpoint).eval()
    taken = inspect.signature(model.forward).parameters  # DistilBERT takes no segments

    def row(prompt: str, text: str) -> Vectors:
        tokens = tokenizer(prompt + text, truncation=True, max_length=spec.max_length, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**{name: tokens[name] for name in tokens if name in taken}).last_hidden_state.numpy()
        vector: Vectors = POOL[spec.pooling](hidden, np.ones(hidden.shape[:2], np.bool_))[0]
        return vector

    return row
