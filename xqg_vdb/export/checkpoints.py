"""Checkpoints come in here: a hub id, folder or `starter:encoder` becomes a clean local folder with known conventions.

A checkpoint is a stranger's: no Python file is copied, so none can run; configuration keys that make transformers load
code (`auto_map`, `_attn_implementation*`) are stripped; pickled weights go through torch's restricted loader in another
process. What a sentence-transformers checkpoint says of its modules is reproduced, or refused by name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import orjson

from xqg_vdb.errors import MissingExtra, ModelError, reason
from xqg_vdb.export.starter_generator import PACKAGE, SOURCE, TERMS_URL, VERSION, build_generator_checkpoint
from xqg_vdb.models.encoder import ACTIVATIONS
from xqg_vdb.models.folder import (
    STARTER_ENCODER,
    STARTER_GENERATOR,
    TOKENIZER,
    EncoderSpec,
    is_hub_id,
)
from xqg_vdb.types import Pooling, Vectors, option

_SAFE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "*_*/config.json", "*_*/*.safetensors")
_HUB_ONNX = ("onnx/model.onnx", "model.onnx")
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation", "attn_impl")
_MAX_CONFIG_BYTES = 4 << 20
NO_LIMIT = 1 << 20  # tokens; transformers writes 10^30 where there is none
_TABLES = ("tokenizer.json", "vocab.json", "merges.json")  # large, and no configuration: copied as they are
_POOLING: Mapping[str, Pooling] = {
    "mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "max": "max", "max_tokens": "max",
    "lasttoken": "last", "weightedmean": "weighted-mean", "weightedmean_tokens": "weighted-mean",
}  # fmt: skip
"""Names of sentence-transformers (before 5.4 `pooling_mode_NAME: true`, since then `pooling_mode: NAME`) and ours."""


@dataclass(frozen=True)
class Checkpoint:
    """A clean local checkpoint. `onnx`: the publisher's own graph, if any; `dense`: projections after pooling."""

    path: Path
    source: str
    revision: str
    config: Mapping[str, Any]
    onnx: Path | None = None
    dense: tuple[Path, ...] = ()

    @property
    def origin(self) -> dict[str, Any]:
        """For `model.json`: a folder's name stands where nobody takes it for a name on the hub."""
        kind = {"local": "folder"}.get(self.revision, "package" if "==" in self.revision else "hub")
        name = f"folder:{Path(self.source).resolve().name}" if kind == "folder" else self.source
        architecture = (self.config.get("architectures") or [self.config["model_type"]])[0]
        return {"from": kind, "source": name, "revision": self.revision, "architecture": architecture}


def fetch_checkpoint(name: str, *, into: Path, filled: bool = False, accept_license: bool = False) -> Checkpoint:
    """A clean copy (weights linked, not copied) of checkpoint `name` in the empty folder `into`.

    filled: the starter encoder comes with its int8 graph, and needs no torch. accept_license: of the starter
    generator's terms. Raises ModelError when it is not to be found, or is no transformers checkpoint.
    """
    source, starter = name, into.with_name(f"{into.name}-starter")
    if name == STARTER_ENCODER:
        from xqg_vdb.export import starter_encoder

        build = starter_encoder.build_filled_starter if filled else starter_encoder.build_encoder_checkpoint
        origin, revision = build(starter), f"{starter_encoder.PACKAGE}=={starter_encoder.VERSION}"
    elif name == STARTER_GENERATOR:
        origin = build_generator_checkpoint(starter, accept_license=accept_license)
        source, revision = SOURCE, f"{PACKAGE}=={VERSION}"
    elif Path(name).is_dir():
        origin, revision = Path(name), "local"
    elif is_hub_id(name):
        origin, revision = _download(name)
    else:
        raise ModelError(
            f"There is no checkpoint {name!r}: give a local folder, a hub id (owner/model) or {STARTER_ENCODER!r}."
        )
    return _clean_copy(origin, into=into, source=source, revision=revision)


@dataclass(frozen=True)
class Overrides:
    """What the user knows better than the checkpoint's files; None leaves a convention as it was found."""

    pooling: Pooling | None = option(None, "[default: the checkpoint's]")
    normalize: bool | None = option(None, "Cosine or dot  [default: the checkpoint's]")
    query_prefix: str | None = option(None, "Such as 'query: '  [default: the checkpoint's]")
    passage_prefix: str | None = option(None, "Such as 'passage: '  [default: the checkpoint's]")
    max_length: int | None = option(None, "Tokens that are read of a text.", least=8)
    dim: int | None = option(None, "Numbers kept of a longer row (Matryoshka)  [default: all]", least=1, metavar="N")


def conventions(checkpoint: Checkpoint, overrides: Overrides = Overrides()) -> tuple[EncoderSpec, str]:
    """How a checkpoint wants to be used, and what told: its sentence-transformers files, else its family's rule.

    Raises ModelError that names a module, an order or a flag which cannot be reproduced and is not overridden.
    """
    family = family_conventions(checkpoint.source)
    spec = family or EncoderSpec(dim=0, pooling="mean", normalize=True)
    given = {key: value for key, value in overrides.__dict__.items() if value is not None and key != "dim"}
    values: dict[str, Any] = {**spec.__dict__, "dim": width(checkpoint), **given}
    modules = modules_of(checkpoint.path)
    kinds = " ".join(kind for kind, _ in modules)
    if kinds and not re.fullmatch("Transformer Pooling( Dense| Dropout)*( Normalize)?", kinds):
        raise ModelError(
            f"{checkpoint.source} runs {kinds.replace(' ', ', ')}; only Transformer, Pooling, Dense and Normalize in"
            " this order can be reproduced."
        )
    pooling = read_json(dict(modules).get("Pooling", checkpoint.path) / "config.json", default={}) if kinds else {}
    if pooling:
        values["pooling"] = overrides.pooling or _st_pooling(pooling)
        values["normalize"] = given.get("normalize", kinds.endswith("Normalize"))
    if checkpoint.dense:
        values["dim"] = int(read_dense(checkpoint.dense[-1])[0].shape[1])
    record = read_json(checkpoint.path / "config_sentence_transformers.json", default={})
    values.update(_prompts(record, spec) | {key: given[key] for key in given if key.endswith("_prefix")})
    values["pool_prompt"] = pooling.get("include_prompt") is not False
    values["max_length"] = overrides.max_length or longest_text(checkpoint, default=values["max_length"])
    told = "sentence-transformers files" if pooling else "family" if family else "default"
    return shortened(EncoderSpec(**values), values["dim"], overrides.dim or record.get("truncate_dim")), told


def shortened(spec: EncoderSpec, width: int, dim: int | None) -> EncoderSpec:
    """The conventions with rows cut to `dim` of their `width` numbers (None: all). Raises ModelError."""
    if not 0 < (dim or width) <= width:
        raise ModelError(f"The model makes rows of {width} numbers: --dim cannot be {dim}.")
    return replace(spec, dim=dim or width, truncated=(dim or width) < width)


def modules_of(path: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of a sentence-transformers checkpoint's modules in order, empty for other checkpoints."""
    listed = read_json(path / "modules.json", default=[])
    try:
        return [(str(m["type"]).rsplit(".", 1)[-1], path / Path(str(m.get("path", ""))).name) for m in listed]
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path / 'modules.json'} does not list modules ({error!r}).") from error


def _prompts(record: dict[str, Any], family: EncoderSpec) -> dict[str, str]:
    """Prefixes by the checkpoint's prompts; empty ones, which re-saving writes, do not wipe the family's."""
    prompts = record.get("prompts") or {}
    usual = prompts.get(record.get("default_prompt_name")) or ""
    passage = prompts.get("passage") or prompts.get("document") or usual
    return {
        "query_prefix": prompts.get("query") or usual or family.query_prefix,
        "passage_prefix": passage or family.passage_prefix,
    }


def width(checkpoint: Checkpoint) -> int:
    """Numbers of a token's vector, whatever the family calls them. Raises ModelError."""
    config = checkpoint.config
    for name in ("hidden_size", "dim", "d_model", "n_embd", "emb_dim"):
        for record in (config, config.get("text_config") or {}, config.get("encoder") or {}):
            if isinstance(value := record.get(name), int):
                return value
    raise ModelError(f"{checkpoint.source} does not say how wide its vectors are (hidden_size in config.json).")


def read_dense(module: Path) -> tuple[Vectors, Vectors, str]:
    """Weights (in, out), bias (out,) and activation of a `Dense` module. Raises ModelError for one that is not ours."""
    config = read_json(module / "config.json", default={})
    activation = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise ModelError(f"{module.name} of the checkpoint ends in {activation}; supported: {', '.join(ACTIVATIONS)}.")
    try:
        from safetensors.numpy import load_file

        weights = load_file(module / "model.safetensors")
        matrix = np.ascontiguousarray(weights["linear.weight"].T, np.float32)
    except ImportError as error:
        raise MissingExtra(f'Projections need {error.name}: pip install "xqg-vdb[export]".') from error
    except Exception as error:  # safetensors raises a class of its own
        raise ModelError(f"{module.name} of the checkpoint has no weights in safetensors ({error}).") from error
    return matrix, np.asarray(weights.get("linear.bias", np.zeros(matrix.shape[1])), np.float32), activation


def lower_cases(checkpoint: Checkpoint) -> bool:
    """Whether the original lowers texts before its tokenizer sees them."""
    return read_json(checkpoint.path / "sentence_bert_config.json", default={}).get("do_lower_case") is True


def family_conventions(source: str) -> EncoderSpec | None:
    """The published rule of a model family, recognised by the name it was published under; `dim` is left open."""
    name = source.lower().replace("_", "-")
    if "xor-tydi" in name or "xdr" in name:  # Tevatron: CLS of the last layer, no normalisation, dot product
        return EncoderSpec(0, "cls", normalize=False, max_length=128)
    if "-e5-" in f"-{name.rsplit('/', 1)[-1]}-" and "instruct" not in name:
        return EncoderSpec(0, "mean", normalize=True, query_prefix="query: ", passage_prefix="passage: ")
    if "bge-m3" in name:
        return EncoderSpec(0, "cls", normalize=True, max_length=8192)
    if "bge-" in name and "-en" in name:
        prefix = "Represent this sentence for searching relevant passages: "
        return EncoderSpec(0, "cls", normalize=True, query_prefix=prefix)
    if "labse" in name:
        return EncoderSpec(0, "cls", normalize=True, max_length=256)
    return None


def _st_pooling(record: Mapping[str, Any]) -> Pooling:
    said = record.get("pooling_mode")
    modes = [said] if isinstance(said, str) else list(said or ())
    modes = modes or [key.removeprefix("pooling_mode_") for key, value in record.items() if value is True]
    modes = [mode for mode in modes if mode != "include_prompt"]
    if len(modes) == 1 and modes[0] in _POOLING:
        return _POOLING[modes[0]]
    raise ModelError(
        f"The checkpoint pools by {' and '.join(modes) or 'nothing'}; supported: {', '.join(get_args(Pooling))}:"
        " give --pooling."
    )


def longest_text(checkpoint: Checkpoint, *, default: int) -> int:
    """Tokens that it reads of a text."""
    own = read_json(checkpoint.path / "sentence_bert_config.json", default={}).get("max_seq_length")
    if own is None:
        own = read_json(checkpoint.path / "tokenizer_config.json", default={}).get("model_max_length")
    if not isinstance(own, int) or own > NO_LIMIT:
        own = default
    table = checkpoint.config.get("max_position_embeddings")
    table = table if isinstance(table, int) else own
    if checkpoint.config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        table -= 2  # their position table starts after the padding index
    return max(8, min(own, table))


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
        names = {file.rfilename for file in info.siblings or ()}
        graph = next((file for file in _HUB_ONNX if file in names), None)
        wanted = [*_SAFE_FILES, *([graph, f"{graph}_data"] if graph else [])]
        ignored = ["*.safetensors"] if graph else []
        folder = snapshot_download(name, revision=info.sha, allow_patterns=wanted, ignore_patterns=ignored)
        return Path(folder), str(info.sha)
    except RepositoryNotFoundError:
        raise ModelError(
            f"The model hub has no model {name!r}: check the spelling; if it is private or gated, `hf auth login`."
        ) from None
    except Exception as error:  # the hub's client has had three HTTP libraries, each with errors of its own
        raise ModelError(
            f"There is no folder {name!r}, and it cannot be downloaded ({type(error).__name__}); without a "
            f"network use a local checkpoint folder, or {STARTER_ENCODER!r}, which comes from the package index."
        ) from error


def _clean_copy(origin: Path, *, into: Path, source: str, revision: str) -> Checkpoint:
    config = read_json(origin / "config.json", default=None)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{origin} has no config.json with a model_type, so it is not a transformers checkpoint.")
    onnx = next((origin / name for name in _HUB_ONNX if (origin / name).is_file()), None)
    into.mkdir(parents=True, exist_ok=True)
    if onnx is None and not list(origin.glob("*.safetensors")):
        _convert_pickles(origin, into)
    for pattern in _SAFE_FILES:
        for file in sorted(origin.glob(pattern)):
            _copy_safe(file, into / file.relative_to(origin))
    if onnx is not None:
        for file in sorted(onnx.parent.glob(onnx.name + "*")):
            _copy_safe(file, into / file.name)
    dense = tuple(folder for kind, folder in modules_of(into) if kind == "Dense")
    return Checkpoint(
        into, source, revision, strip_code_keys(config), onnx=into / onnx.name if onnx else None, dense=dense
    )


_CONVERT = """
import json, sys
def refuse(event, details):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")):
        raise RuntimeError(event)
import torch
from safetensors.torch import save_file
sys.addaudithook(refuse)
target, files = sys.argv[1], sys.argv[2:]
where = {}
for number, file in enumerate(files):
    weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = {key: value.contiguous().clone() for key, value in weights.items() if isinstance(value, torch.Tensor)}
    name = "model.safetensors" if len(files) == 1 else f"model-{number + 1:05}-of-{len(files):05}.safetensors"
    save_file(weights, f"{target}/{name}", metadata={"format": "pt"})
    where |= dict.fromkeys(weights, name)
if len(files) > 1:
    with open(f"{target}/model.safetensors.index.json", "w") as index:
        json.dump({"metadata": {}, "weight_map": where}, index)
"""


def _convert_pickles(origin: Path, into: Path) -> None:
    """Write the weights of `pytorch_model*.bin` as safetensors: by torch's restricted loader, in a process of its own.

    That process may open no connection and start no program. Raises ModelError for what the loader refuses.
    """
    files = sorted(origin.glob("pytorch_model*.bin"))
    if not files:
        others = ", ".join(sorted(p.name for p in (*origin.glob("*.bin"), *origin.glob("*.pt")))) or "no weights"
        raise ModelError(f"{origin} has {others} but neither safetensors nor pytorch_model.bin: take another revision.")
    if find_spec("torch") is None:
        raise MissingExtra('Reading pytorch_model.bin needs torch: pip install "xqg-vdb[export]".')
    command = [sys.executable, "-I", "-c", _CONVERT, str(into.resolve()), *(str(file.resolve()) for file in files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ModelError(
            f"{files[0]} is refused by torch's restricted loader ({said[:200]}), so it may hold code: take a checkpoint"
            " with safetensors."
        )


def _copy_safe(file: Path, target: Path) -> None:
    real = file.resolve()  # hub snapshots are links into the hub's own store
    if not real.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json" and file.name not in _TABLES and not file.name.endswith(".index.json"):
        record = strip_code_keys(read_json(real, default=None))
        if isinstance(record, dict) and record.get("tokenizer_class") == "TokenizersBackend":
            record["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name before transformers 5
        target.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
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
    return {key: strip_code_keys(value) for key, value in record.items() if not key.startswith(_CODE_KEYS)}


def read_json(path: Path, *, default: Any) -> Any:
    """A configuration, `default` without one. Raises ModelError for what is none."""
    if not path.is_file():  # a pipe would never end
        return default
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path} has over {_MAX_CONFIG_BYTES >> 20} MiB, too much for a configuration.")
    try:
        return cast(Any, orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}).") from error


# A checkpoint's tokenizer, for an encoder with Unicode composition (NFC) in front.


def save_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's own tokenizer.json in `folder`, or one that transformers makes. Raises ModelError."""
    made = folder / TOKENIZER
    if (checkpoint / TOKENIZER).is_file():
        shutil.copyfile(checkpoint / TOKENIZER, made)
        return made
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint), use_fast=True, local_files_only=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.save(str(made))
    except Exception as error:  # of transformers and of what it reads tokenizers with
        raise ModelError(f"{checkpoint} has no tokenizer.json and none can be made ({reason(error)}).") from error
    return made


def write_composing(source: Path, target: Path, *, lower: bool = False) -> None:
    """Write the tokenizer of `source` with NFC before its own normaliser; as it is where that begins by composing.

    lower: lower-case in front, as sentence-transformers does before tokenizing where `do_lower_case` says so.
    Raises ModelError for a file that is no tokenizer.
    """
    try:
        record = orjson.loads(source.read_bytes())
        own = record["normalizer"] or {"type": "Sequence", "normalizers": []}
        steps = own["normalizers"] if own["type"] == "Sequence" else [own]
        composes = bool(steps) and steps[0]["type"] in ("NFC", "NFKC") and not lower
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source} is not a tokenizer ({error!r}): save the checkpoint's again.") from error
    if composes:
        shutil.copyfile(source, target)
        return
    first = [{"type": "Lowercase"}] if lower else []
    record["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, *first, *steps]}
    target.write_bytes(orjson.dumps(record))


# Weights of a checkpoint in transformers, one way wherever they are needed: float32, safetensors, no code run.


TRACED = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
"""Families whose traced graph onnxruntime's attention fusion knows (all layers fuse; of the other exporter's none).

Every other family goes through `torch.export`: tracing takes branches of the example for good, silently wrong on some.
"""


T5 = ("t5", "mt5", "umt5")


def need_torch() -> None:
    """Raises MissingExtra before minutes of work; torch needs onnx, and says so late."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f'Exporting needs {error.name}: pip install "xqg-vdb[export]".') from error


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
    except Exception as error:  # of transformers, of safetensors, and of a stranger's values in the configuration
        version = transformers.__version__
        raise ModelError(f"transformers {version} cannot load {checkpoint.source}: {reason(error)}") from error


def encoder_class(checkpoint: Checkpoint) -> str:
    """The class of transformers that gives vectors of tokens. Raises ModelError for what is no text encoder."""
    kind = checkpoint.config["model_type"]
    if kind in T5:
        return "AutoModelForTextEncoding"  # the encoder alone
    if checkpoint.config.get("is_encoder_decoder"):
        raise ModelError(f"{checkpoint.source} is an encoder-decoder ({kind}): of these, only {', '.join(T5)} export.")
    return "AutoModel"


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
        for left in (folder, folder.with_name(f"{folder.name}-starter")):
            shutil.rmtree(left, ignore_errors=True)
        return fetch_checkpoint(self.name, into=folder, accept_license=self.accept_license)

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
