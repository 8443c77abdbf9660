"""Checkpoint to ONNX model folder: optimum's export, an int8 variant, and a parity gate before anything is accepted.

In: a hub id, a local folder or `starter:encoder`. Out: a model folder (`model_folder.py`). torch, transformers,
optimum and onnx are needed here only (extra `export`), and not at all for a hub repository that ships a suitable ONNX
file as fp32.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import save_means
from xqg_vdb.calibration_gain import measure_calibration
from xqg_vdb.checkpoints import Checkpoint, conventions, fetch_checkpoint
from xqg_vdb.encoding import Encoder
from xqg_vdb.errors import MismatchError, MissingExtra, ModelError
from xqg_vdb.model_folder import (
    CALIBRATION,
    GRAPH,
    TOKENIZER,
    EncoderSpec,
    ModelFolder,
    open_model_folder,
    write_manifest,
)
from xqg_vdb.onnx_graphs import append_dense, cpu_has_vnni, quantize_int8
from xqg_vdb.parity import Reference, measure_parity, parity_texts, torch_vectors
from xqg_vdb.questions import question_bank
from xqg_vdb.tokenizer_copy import copy_tokenizer
from xqg_vdb.types import Pooling, Vectors

Precision = Literal["fp32", "int8"]
Report = Callable[[str], None]

FP32_COSINE = 0.9999
INT8_COSINE = 0.98


@dataclass(frozen=True)
class Overrides:
    """What the user knows better than the checkpoint's files; None leaves a convention as it was found."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_length: int | None = None

    def apply(self, spec: EncoderSpec) -> EncoderSpec:
        """`spec` with the given values in place."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return replace(spec, **given)


def export_encoder(
    checkpoint: str,
    out: Path,
    *,
    precision: Precision = "int8",
    overrides: Overrides | None = None,
    report: Report = print,
) -> ModelFolder:
    """Export `checkpoint` into the new folder `out` and return it; `out` appears only when everything was accepted.

    report: called with one line per step. Raises ModelError for a checkpoint that cannot be read, MismatchError (with
    the measured and the wanted cosine) when the export does not compute what the original computes, MissingExtra
    without torch.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} exists and is not empty: remove it, or export to another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        report(f"reading {checkpoint}")
        source = fetch_checkpoint(checkpoint, into=Path(scratch) / "checkpoint")
        spec, learned_from = conventions(source)
        spec = (overrides or Overrides()).apply(spec)
        report(f"conventions from {learned_from}: {spec.pooling} pooling, normalize={spec.normalize}, dim {spec.dim}")
        folder = Path(scratch) / "model"
        folder.mkdir()
        _write_graphs(source, folder, spec, precision=precision, report=report)
        manifest = _manifest(source, spec, precision=precision, learned_from=learned_from)
        write_manifest(folder, manifest)
        manifest["parity"], manifest["speed"] = _gate(source, folder, spec, precision=precision, report=report)
        report("measuring language means and the gain of calibration")
        with Encoder(folder, calibration=0.0) as encoder:
            table, manifest["calibration"] = measure_calibration(encoder)
        (folder / CALIBRATION).write_bytes(save_means(table))
        write_manifest(folder, manifest)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return open_model_folder(out)


def _write_graphs(source: Checkpoint, folder: Path, spec: EncoderSpec, *, precision: Precision, report: Report) -> None:
    fp32 = folder.with_name("fp32") / GRAPH
    fp32.parent.mkdir()
    if source.onnx is not None:
        report(f"using the ONNX graph that {source.source} ships")
        for file in source.path.glob(source.onnx.name + "*"):
            shutil.copyfile(file, fp32.parent / (GRAPH if file.name == source.onnx.name else file.name))
    else:
        report("exporting to ONNX (about a minute)")
        _optimum_export(source.path, fp32.parent)
    if source.dense is not None:
        append_dense(fp32, source.dense)
    copy_tokenizer(source.path, fp32.parent, folder)
    if precision == "int8":
        report(f"quantising to int8 for a CPU {'with' if cpu_has_vnni() else 'without'} VNNI")
        quantize_int8(
            fp32,
            folder / GRAPH,
            num_heads=int(source.config.get("num_attention_heads", 0)),
            hidden=int(source.config["hidden_size"]),
            samples=_sample_ids(folder / TOKENIZER, spec),
        )
    else:
        for file in fp32.parent.glob("*.onnx*"):
            shutil.move(file, folder / file.name)


def _sample_ids(tokenizer: Path, spec: EncoderSpec) -> list[NDArray[np.int64]]:
    """Token ids of two questions per language of the bank and of the sample corpus, each a row of its own."""
    from tokenizers import Tokenizer

    _, passages = parity_texts()
    questions = [text for texts in question_bank().values() for text in texts[:2]]
    texts = [spec.query_prefix + text for text in questions] + [spec.passage_prefix + text for text in passages]
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.enable_truncation(spec.max_length)
    return [np.array([encoding.ids], dtype=np.int64) for encoding in reader.encode_batch(texts)]


def _optimum_export(checkpoint: Path, out: Path) -> None:
    try:
        import transformers
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise MissingExtra(
            f'Exporting needs torch and optimum ({error.name}): pip install "xqg-vdb[export]".'
        ) from error
    import warnings

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(
            str(checkpoint),
            output=str(out),
            task="feature-extraction",
            library_name="transformers",
            do_validation=False,  # our own gate compares more
            trust_remote_code=False,
            local_files_only=True,
            device="cpu",
        )


def _manifest(source: Checkpoint, spec: EncoderSpec, *, precision: Precision, learned_from: str) -> dict[str, Any]:
    packages = ("onnxruntime", "tokenizers", "xqg-vdb")
    return {
        "kind": "encoder",
        "source": source.source,
        "revision": source.revision,
        "architecture": (source.config.get("architectures") or [source.config["model_type"]])[0],
        "encoder": asdict(spec),
        "conventions_from": learned_from,
        "precision": precision,
        "made_with": {name: version(name) for name in packages},
        "machine": {"processor": platform.machine(), "vnni": cpu_has_vnni()},
    }


def _gate(
    source: Checkpoint, folder: Path, spec: EncoderSpec, *, precision: Precision, report: Report
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The measured parity and speed; raises MismatchError instead of accepting an export that differs."""
    report("comparing with the original")
    with Encoder(folder, calibration=0.0) as encoder:
        if source.onnx is not None and precision == "fp32":
            return None, _speed(encoder)
        reference = torch_vectors(source, spec) if source.onnx is None else _fp32_vectors(folder, spec)
        parity = measure_parity(encoder, reference)
        wanted = FP32_COSINE if precision == "fp32" else INT8_COSINE
        report(
            f"cosine to the original, {parity.texts} texts: min {parity.cosine_min:.5f}, mean {parity.cosine_mean:.5f}"
        )
        if not parity.cosine_min >= wanted:
            raise MismatchError(
                f"The {precision} export is not the model it was made from: lowest cosine {parity.cosine_min:.5f}, "
                f"wanted {wanted} (text {parity.worst_text!r}); nothing was written. "
                + ("Try --precision fp32." if precision == "int8" else "Please report the checkpoint.")
            )
        return asdict(parity), _speed(encoder)


def _fp32_vectors(folder: Path, spec: EncoderSpec) -> Reference:
    """Reference rows from the publisher's own fp32 graph, when there is no torch model to ask."""
    fp32 = folder.with_name("fp32")
    shutil.copyfile(folder / TOKENIZER, fp32 / TOKENIZER)
    write_manifest(fp32, {"kind": "encoder", "source": "fp32", "encoder": asdict(spec)})

    def encode(queries: list[str], passages: list[str]) -> tuple[Vectors, Vectors]:
        with Encoder(fp32, calibration=0.0) as encoder:
            return encoder.encode_queries(queries), encoder.encode_passages(passages)

    return encode


def _speed(encoder: Encoder) -> dict[str, Any]:
    _, passages = parity_texts()
    encoder.encode_passages(passages[:8])
    start = time.perf_counter()
    encoder.encode_passages(passages)
    rate = len(passages) / (time.perf_counter() - start)
    return {"passages_per_second": round(rate, 1), "threads": encoder.threads, "texts": "sample corpus"}
