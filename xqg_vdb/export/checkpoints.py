"""Checkpoints come in here: a hub id, folder or `starter:encoder` becomes a clean local folder with known conventions.

A checkpoint is a stranger's: no Python file is copied, so none can run; configuration keys that make transformers load
code (`auto_map`, `_attn_implementation*`) are stripped; pickled weights go through torch's restricted loader in another
process. What a sentence-transformers checkpoint says of its modules is reproduced, or refused by name.
The copy lies flat: the transformer at its top, whatever folder it was in, and the other modules in folders below.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import orjson

from xqg_vdb.errors import MissingExtra, ModelError, printable
from xqg_vdb.export.starter_generator import PACKAGE, SOURCE, VERSION, build_generator_checkpoint
from xqg_vdb.files import damage
from xqg_vdb.models.encoder import ACTIVATIONS
from xqg_vdb.models.folder import STARTER_ENCODER, STARTER_GENERATOR, EncoderSpec, family_conventions, is_hub_id
from xqg_vdb.types import Pooling, Vectors, option

_SAFE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "*.jinja")
_HUB_ONNX = ("onnx/model.onnx", "model.onnx")
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation", "attn_impl")
_MAX_CONFIG_BYTES = 4 << 20
LEAST_TOKENS = 8  # of a text that are worth reading
NO_LIMIT = 1 << 20  # tokens; transformers writes 10^30 where there is none
_TABLES = ("tokenizer.json", "vocab.json", "merges.json")  # large, and no configuration: copied as they are
POOLING: Mapping[str, Pooling] = {
    "mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last", "weightedmean": "weighted-mean",
}  # fmt: skip
"""Names of sentence-transformers (before 5.4 `pooling_mode_NAME_token(s): true`, since `pooling_mode: NAME`), ours."""
_HARMLESS = frozenset({
    "trust_remote_code", "attn_implementation", "torch_dtype", "dtype", "device_map", "add_pooling_layer",
    "unpad_inputs", "use_memory_efficient_attention", "padding_side", "use_fast",
})  # fmt: skip
"""What sentence-transformers may pass to transformers and no row depends on."""
_USUAL_STEPS = {"last_hidden_state", "token_embeddings", "feature-extraction", "forward"}
_TYPES: Mapping[str, Any] = {
    "model_type": str, "architectures": list, "auto_map": dict, "text_config": dict, "quantization_config": dict,
    "max_seq_length": int, "model_max_length": int | float, "max_position_embeddings": int | float,
    "prompts": dict, "default_prompt_name": str, "similarity_fn_name": str, "truncate_dim": int,
    "modality_config": dict, "activation_function": str, "activation_fn": str, "id2label": dict,
    "sentence_transformers": dict, "base_model_name_or_path": str, "vocab_size": int, "num_hidden_layers": int,
    "type_vocab_size": int, "layer_norm_eps": int | float, "rms_norm_eps": int | float, "hidden_act": str,
    "module_input_name": str, "module_output_name": str, "transformer_task": str,
}  # fmt: skip
"""Of values that are read here, whatever file they stand in; null is allowed too."""
_LEFT = re.compile(rb'"truncation"\s*:\s*\{[^{}]*"direction"\s*:\s*"Left"')  # texts lose their beginning
_ABSURD = re.compile(
    r'"(?:n|num|inner)_(?:\w+_)?(?:layers?|experts|groups|blocks?|networks|labels|num)":(?:-|\d{4}|[\d.]+e)[\d.e+]*'
)  # building that many would not end


@dataclass(frozen=True)
class Checkpoint:
    """A clean local checkpoint. `onnx`: the publisher's own graph, if any; `dense`: projections after pooling.

    code: classes of the publisher's own Python code, by the name of transformers' class that they stand for.
    """

    path: Path
    source: str
    revision: str
    config: Mapping[str, Any]
    onnx: Path | None = None
    dense: tuple[Path, ...] = ()
    code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """For `model.json`: a folder's name stands where nobody takes it for a name on the hub."""
        kind = {"local": "folder"}.get(self.revision, "package" if "==" in self.revision else "hub")
        name = f"folder:{Path(self.source).resolve().name}" if kind == "folder" else self.source
        architecture = str((self.config.get("architectures") or [self.config["model_type"]])[0])
        return {"from": kind, "source": name, "revision": self.revision, "architecture": architecture}


def fetch_checkpoint(name: str, *, into: Path, filled: bool = False, accept_license: bool = False) -> Checkpoint:
    """A clean copy (weights linked, not copied) of checkpoint `name` in the empty folder `into`.

    filled: the starter encoder comes with its int8 graph, and needs no torch. accept_license: of the starter
    generator's terms. Raises ModelError when it is not to be found, or is no transformers checkpoint.
    """
    source, starter = name, into.with_name(f"{into.name}-starter")
    if name == STARTER_ENCODER:
        from xqg_vdb.export import starter_encoder

        weights = starter_encoder.read_weights(starter_encoder.locate_weights())
        origin = starter_encoder.write_checkpoint(weights, starter, filled=filled)
        revision = f"{starter_encoder.PACKAGE}=={starter_encoder.VERSION}"
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
    max_length: int | None = option(None, "Tokens that are read of a text.", least=LEAST_TOKENS)
    dim: int | None = option(None, "Numbers kept of a longer row (Matryoshka)  [default: all]", least=1, metavar="N")

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


NOTHING = Overrides()


def conventions(checkpoint: Checkpoint, overrides: Overrides = NOTHING) -> tuple[EncoderSpec, str]:
    """How a checkpoint wants to be used, and what told: its sentence-transformers files, else its family's rule.

    Raises ModelError that names a module, an order or a flag which cannot be reproduced and is not overridden.
    """
    family, given = family_conventions(checkpoint.source), overrides.given
    spec = family or EncoderSpec(dim=0, pooling="mean", normalize=True)
    modules = modules_of(checkpoint.path)
    ends_in = _check_modules(checkpoint.source, modules)
    record = read_json(checkpoint.path / "config_sentence_transformers.json", default={})
    values: dict[str, Any] = {**spec.__dict__, **_prompts(record, spec)}
    _check_text_module(checkpoint)
    if modules:
        pooling = read_json(dict(modules)["Pooling"] / "config.json", default={})
        if not pooling and "pooling" not in given:
            raise ModelError(f"{checkpoint.source} has a Pooling module without a config.json: give --pooling.")
        values["pooling"] = overrides.pooling or _st_pooling(pooling)
        values["pool_prompt"] = bool(pooling.get("include_prompt", True))
        ranked_by = record.get("similarity_fn_name")
        values["normalize"] = ends_in == "Normalize" or ranked_by in ("cosine", None)  # sentence-transformers' default
        if ranked_by in ("euclidean", "manhattan") and "normalize" not in given and not values["normalize"]:
            raise ModelError(f"{checkpoint.source} ranks by {ranked_by} distance: give --normalize or --no-normalize.")
    elif checkpoint.origin["architecture"].endswith("ForCausalLM") and not (overrides.pooling or family):
        raise ModelError(
            f"{checkpoint.source} is a language model ({checkpoint.origin['architecture']}) that says nothing of"
            " pooling: --generator exports it as a generator; as an encoder, give --pooling."
        )
    whole = int(read_dense(checkpoint.dense[-1])[0].shape[1]) if checkpoint.dense else width(checkpoint)
    values["max_length"] = overrides.max_length or longest_text(checkpoint, default=values["max_length"])
    told = "sentence-transformers files" if modules else "family" if family else "default"
    cut = min(record.get("truncate_dim") or whole, whole)  # the original cuts nothing where there is less
    return shortened(EncoderSpec(**values | given | {"dim": whole}), whole, overrides.dim or cut), told


def shortened(spec: EncoderSpec, width: int, dim: int | None) -> EncoderSpec:
    """The conventions with rows cut to `dim` of their `width` numbers (None: all). Raises ModelError."""
    if not 0 < (dim := width if dim is None else dim) <= width:
        raise ModelError(f"The model makes rows of {width} numbers: --dim cannot be {dim}.")
    return replace(spec, dim=dim, truncated=dim < width)


def modules_of(path: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of a sentence-transformers checkpoint's modules in order, empty for other checkpoints.

    The kind of a class that is not sentence-transformers' own is its whole name. Raises ModelError.
    """
    modules = []
    try:
        for module in read_json(path / "modules.json", default=[]):
            kind, folder = str(module["type"]), Path(str(module.get("path", "")))
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError(f"a folder {folder}")
            modules.append((re.sub(r"^sentence_transformers\.(.*\.)?", "", kind), path / folder))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ModelError(f"{path / 'modules.json'} does not list modules ({error!r}).") from error
    return modules


def _check_modules(source: str, modules: list[tuple[str, Path]]) -> str:
    """The last module's kind. Raises ModelError for an order or a kind that cannot be reproduced."""
    kinds = " ".join(kind for kind, _ in modules)
    if kinds and not re.fullmatch("Transformer Pooling( Dense| Dropout)*( Normalize)?", kinds):
        raise ModelError(
            f"{source} runs {printable(kinds.replace(' ', ', '))}; only Transformer, Pooling, Dense and Normalize in"
            " this order can be reproduced: let a server run it (`export URL OUT --model NAME`)."
        )
    return kinds.rpartition(" ")[2]


def text_module(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of the module Transformer; before 2021 its name had the architecture in it."""
    names = ["sentence_bert_config.json", *sorted(p.name for p in checkpoint.path.glob("sentence_*_config.json"))]
    return next((record for name in names if (record := read_json(checkpoint.path / name, default={}))), {})


def _check_text_module(checkpoint: Checkpoint) -> None:
    record = text_module(checkpoint)
    passed = {f"{key}.{name}" for key, value in record.items() if re.search("_(args|kwargs)$", key) and value
              for name in (value if isinstance(value, dict) else [f"{value}"]) if name not in _HARMLESS}  # fmt: skip
    text = (record.get("modality_config") or {"text": {}}).get("text")
    given = {record.get("module_output_name") or "forward", record.get("transformer_task") or "forward"}
    given |= set(map(str, text.values())) if isinstance(text, dict) else {f"modality_config.text = {text}"}
    tokenizer = read_json(checkpoint.path / "tokenizer_config.json", default={})
    table = checkpoint.path / "tokenizer.json"
    left = table.is_file() and _LEFT.search(table.read_bytes()) and "left"
    passed |= {"truncation_side"} if (tokenizer.get("truncation_side") or left or "right") != "right" else set()
    if other := sorted(passed | (given - _USUAL_STEPS)):
        raise ModelError(
            f"{checkpoint.source} changes what its transformer does by {printable(', '.join(other))}"
            " (sentence_bert_config.json, tokenizer_config.json, tokenizer.json), which cannot be reproduced."
        )


def _prompts(record: dict[str, Any], family: EncoderSpec) -> dict[str, str]:
    """Prefixes by the checkpoint's prompts; empty ones, which re-saving writes, do not wipe the family's."""
    prompts = record.get("prompts") or {}
    if other := {name: text for name, text in prompts.items() if not isinstance(text, str | None)}:
        raise ModelError(f"config_sentence_transformers.json has prompts that are no texts ({other!r:.80}).")
    usual = prompts.get(record.get("default_prompt_name")) or ""
    passage = next((text for name in ("document", "passage", "corpus") if (text := prompts.get(name))), usual)
    query = prompts.get("query") or usual
    return {"query_prefix": query or family.query_prefix, "passage_prefix": passage or family.passage_prefix}


def width(checkpoint: Checkpoint) -> int:
    """Numbers of a token's vector, whatever the family calls them. Raises ModelError."""
    records = [checkpoint.config, *map(checkpoint.config.get, ("text_config", "encoder"))]
    for name in ("hidden_size", "dim", "d_model", "n_embd", "emb_dim"):
        for record in records:
            if isinstance(record, dict) and isinstance(value := record.get(name), int):
                return value
    raise ModelError(f"{checkpoint.source} does not say how wide its vectors are (hidden_size in config.json).")


def read_dense(module: Path) -> tuple[Vectors, Vectors, str]:
    """Weights (in, out), bias (out,) and activation of a `Dense` module. Raises ModelError for one that is not ours."""
    config = read_json(module / "config.json", default={})
    told = config.get("activation_function", "")
    activation = "Identity" if told is None else told.rsplit(".", 1)[-1] if told.startswith("torch.") else "Tanh"
    reads = config.get("module_input_name") or "sentence_embedding"
    gives = config.get("module_output_name") or reads
    if {reads, gives} != {"sentence_embedding"}:
        raise ModelError(
            f"{module.name} of the checkpoint projects {reads} to {gives}, not sentence_embedding to itself."
        )
    if activation not in ACTIVATIONS:
        raise ModelError(f"{module.name} of the checkpoint ends in {activation}; supported: {', '.join(ACTIVATIONS)}.")
    try:
        from safetensors.numpy import load_file

        weights = load_file(module / "model.safetensors")
        matrix = np.ascontiguousarray(weights["linear.weight"].T, np.float32)
        bias = np.asarray(weights.get("linear.bias", np.zeros(matrix.shape[1])), np.float32)
    except ImportError as error:
        raise MissingExtra(f'Projections need {error.name}: pip install "xqg-vdb[export]".') from error
    except Exception as error:  # safetensors raises a class of its own
        why = damage(module / "model.safetensors") or f"It has no linear.weight ({error})."
        raise ModelError(f"{module.name} of the checkpoint cannot be read. {why}") from error
    return matrix, bias, activation


def _st_pooling(record: Mapping[str, Any]) -> Pooling:
    said = record.get("pooling_mode")
    modes = [*map(str, said)] if isinstance(said, list) else [str(said)] if said else []
    modes = modes or [
        re.sub("^pooling_mode_|(?<=cls|max|ean)_tokens?$", "", key) for key, value in record.items()
        if value and key.startswith("pooling_mode_")
    ] or ["mean"]  # fmt: skip
    if len(modes) == 1 and modes[0] in POOLING:
        return POOLING[modes[0]]
    raise ModelError(
        f"The checkpoint pools by {' and '.join(modes)}; supported: {', '.join(get_args(Pooling))}: give --pooling."
    )


def longest_text(checkpoint: Checkpoint, *, default: int) -> int:
    """Tokens that it reads of a text."""
    told = given = text_module(checkpoint).get("max_seq_length")
    if told is None:
        told = read_json(checkpoint.path / "tokenizer_config.json", default={}).get("model_max_length")
    table = int(checkpoint.config.get("max_position_embeddings") or NO_LIMIT)
    if checkpoint.config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        table -= 2  # their position table starts after the padding index
    if told is None or told > NO_LIMIT:  # sentence-transformers reads as far as the table goes
        told = table if modules_of(checkpoint.path) and table < NO_LIMIT else default
    elif any("rope" in key for key in checkpoint.config) and (given or not modules_of(checkpoint.path)):
        table = NO_LIMIT  # angles go on where the number of trained positions ends
    if (longest := int(min(told, table))) < LEAST_TOKENS:
        raise ModelError(f"{checkpoint.source} reads {longest} tokens of a text: give --max-length {LEAST_TOKENS}.")
    return longest


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
        names = {file.rfilename for file in info.siblings or ()}
        graph = next((file for file in _HUB_ONNX if file in names), None)
        safe = {str(Path(name).parent) for name in names if name.endswith(".safetensors")}
        pickled = [n for n in names if Path(n).match("pytorch_model*.bin") and str(Path(n).parent) not in safe]
        wanted = [*_SAFE_FILES, *([graph, f"{graph}_data"] if graph else []), *pickled]
        ignored = ["model*.safetensors", "pytorch_model*.bin"] if graph else []
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
    modules = modules_of(origin)
    top = modules[0][1] if modules else origin
    config = read_json(top / "config.json", default={})
    adapter = read_json(top / "adapter_config.json", default={})
    if adapter or not config.get("model_type"):
        _check_modules(source, modules)
        raise ModelError(f"{origin} {_what_it_is(origin, adapter)}")
    onnx = next((origin / name for name in _HUB_ONNX if (origin / name).is_file()), None)
    if onnx is None and not {"model.safetensors", "model.safetensors.index.json"} & {p.name for p in top.iterdir()}:
        _convert_pickles(top, into)
    for home in dict.fromkeys((origin, top)):
        _copy_files(home, into)
    listed = read_json(origin / "modules.json", default=[])
    for i, (kind, folder) in enumerate(modules):
        listed[i]["path"] = "" if folder in (top, origin) else re.sub(r"\W", "_", f"{i}_{kind}")[:80]
        if listed[i]["path"]:
            _copy_files(folder, into / listed[i]["path"])
            if list(folder.glob("pytorch_model.bin")) and not list(folder.glob("*.safetensors")):
                _convert_pickles(folder, into / listed[i]["path"])
    if modules:
        (into / "modules.json").write_bytes(orjson.dumps(listed))
    for file in sorted(onnx.parent.glob(onnx.name + "*")) if onnx else []:
        _copy_safe(file, into / file.name)
    return Checkpoint(
        into, source, revision, strip_code_keys(config), onnx=into / onnx.name if onnx else None,
        dense=tuple(folder for kind, folder in modules_of(into) if kind == "Dense"), code=config.get("auto_map") or {},
    )  # fmt: skip


def _copy_files(home: Path, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted({file for pattern in _SAFE_FILES for file in home.glob(pattern)}):
        _copy_safe(file, place / file.name)


def _what_it_is(origin: Path, adapter: Any) -> str:
    if adapter:
        return (
            f"is an adapter of {adapter.get('base_model_name_or_path') or 'another model'}: merge it into that one"
            " (peft's merge_and_unload, then save_pretrained) and export the result."
        )
    if list(origin.glob("*.gguf")):
        return "has GGUF files, made from a checkpoint: export that, or let llama.cpp serve them and export its URL."
    return "has no config.json with a model_type, so it is not a transformers checkpoint."


_CONVERT = """
import contextlib, os, sys
def refuse(event, details):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")):
        raise RuntimeError(event)
most = 4 * sum(map(os.path.getsize, sys.argv[2:])) + (1 << 28)
import torch
from safetensors.torch import save_file
with contextlib.suppress(ImportError, ValueError):  # Windows has none, and a limit may be lower already
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_DATA, (most + (4 << 30), most + (4 << 30)))
sys.addaudithook(refuse)
weights = {}
for file in sys.argv[2:]:
    found = torch.load(file, map_location="cpu", weights_only=True)
    print("loaded")
    found = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if (size := sum(value.numel() * value.element_size() for value in found.values())) > most:
        raise MemoryError(f"{size:,} bytes of numbers in a file of {os.path.getsize(file):,}")
    weights |= {key: value.contiguous().clone() for key, value in found.items()}
    print("read")
save_file(weights, sys.argv[1], metadata={"format": "pt"})
"""


def _convert_pickles(origin: Path, into: Path) -> None:
    """Write the weights of `pytorch_model*.bin` as safetensors: by torch's restricted loader, in a process of its own.

    That process may open no connection and start no program, and has not much more memory and disk than the files need:
    a tensor may say that it is any size. Raises ModelError for what the loader refuses.
    """
    files = sorted(origin.glob("pytorch_model*.bin"))
    if not files:
        kinds = ("*.safetensors", "*.bin", "*.pt", "*.h5", "*.msgpack", "*.gguf", "*.index.json")
        others = ", ".join(sorted(p.name for kind in kinds for p in origin.glob(kind))) or "no weights"
        raise ModelError(f"{origin} has {others}, not model.safetensors or pytorch_model.bin: take another revision.")
    if find_spec("torch") is None:
        raise MissingExtra('Reading pytorch_model.bin needs torch: pip install "xqg-vdb[export]".')
    into.mkdir(parents=True, exist_ok=True)
    paths = [str(path.resolve()) for path in (into / "model.safetensors", *files)]
    command = [sys.executable, "-Iuc", _CONVERT, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it was killed"]
        said = next((line.strip() for line in lines if "nsupported" in line), lines[-1])
        done_with = len(done.stdout.split())  # two words for each file
        file, refused = [*files, files[-1]][done_with // 2], done_with in range(0, 2 * len(files), 2)
        why = "is refused by torch's restricted loader" if refused else "holds no plain weights by name"
        why += f" ({said.partition(' Please use')[0][:200]})" + (", so it may hold code" if refused else "")
        raise ModelError(f"{damage(file) or f'{file} {why}: take a checkpoint with safetensors.'}")


def _copy_safe(file: Path, target: Path) -> None:
    real = file.resolve()  # hub snapshots are links into the hub's own store
    if not real.is_file():
        return
    if file.name in _TABLES and (broken := damage(real)):
        raise ModelError(broken)
    if file.suffix == ".json" and file.name not in _TABLES and not file.name.endswith(".index.json"):
        record = strip_code_keys(read_json(real, default={} if "config" in file.name else None))
        if file.name == "tokenizer_config.json":  # names of before transformers 5, which knows them, too
            if record.get("tokenizer_class") == "TokenizersBackend":
                record["tokenizer_class"] = "PreTrainedTokenizerFast"
            if isinstance(record.get("extra_special_tokens"), list):
                record["additional_special_tokens"] = record.pop("extra_special_tokens")
        target.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    elif file.suffix in (".safetensors", ".onnx") or file.name.endswith("_data"):
        target.symlink_to(real)
    else:
        shutil.copyfile(real, target)


def strip_code_keys(record: Any) -> Any:
    """The JSON value without keys that make transformers load code: `auto_map`, `_attn_implementation*`."""
    if isinstance(record, dict):
        return {key: strip_code_keys(value) for key, value in record.items() if not key.startswith(_CODE_KEYS)}
    return [strip_code_keys(item) for item in record] if isinstance(record, list) else record


def read_json(path: Path, *, default: Any) -> Any:
    """A configuration, `default` without one. Raises ModelError for what is none."""
    if not path.is_file():  # a pipe would never end
        return default
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path} has over {_MAX_CONFIG_BYTES >> 20} MiB, too much for a configuration.")
    try:
        found = cast(Any, orjson.loads(path.read_bytes()))
        whole = orjson.dumps(found).decode()  # refuses what is nested too deep
    except (OSError, orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise ModelError(damage(path) or f"{path} cannot be read as JSON ({error}).") from error
    if absurd := _ABSURD.search(whole if path.name == "config.json" else ""):
        raise ModelError(f"{path} has {absurd[0]}, as no model has.")
    if isinstance(default, dict) and not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not names with values.")
    for key in _TYPES.keys() & (found if "config" in path.name and isinstance(found, dict) else {}):
        if not isinstance(value := found[key], _TYPES[key] | None) or isinstance(value, bool):
            wanted = getattr(_TYPES[key], "__name__", _TYPES[key])
            raise ModelError(f"{path} has {key} = {value!r:.80}, where a value of type {wanted} belongs.")
    return found
