"""Checkpoint to ONNX model folder: torch's export, an int8 variant, and a parity gate before anything is accepted.

torch, transformers and onnx are needed here only (extra `export`); not at all for a repository that has its graph.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xqg_vdb.calibration import measure_calibration, save_means
from xqg_vdb.errors import DataError, MismatchError, MissingExtra, ModelError, reason
from xqg_vdb.export.checkpoints import (
    NOTHING,
    Checkpoint,
    Overrides,
    conventions,
    fetch_checkpoint,
    modules_of,
    read_dense,
    shortened,
    text_module,
)
from xqg_vdb.export.gate import (
    export_facts,
    measure_parity,
    need_torch,
    original_facts,
    parity_texts,
    save_tokenizer,
    torch_vectors,
    write_graph,
)
from xqg_vdb.export.generator import cross_record, describe_generator, fill_cross, fill_generator, original_cross_facts
from xqg_vdb.export.quantise import quantize_int8, tokens_first, write_composing
from xqg_vdb.export.starter_encoder import stored_rows
from xqg_vdb.files import new_folder
from xqg_vdb.generate.output import versions
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.engine import cpu_has_vnni, engines
from xqg_vdb.models.folder import (
    CALIBRATION,
    CROSS,
    DENSE,
    GRAPH,
    STARTER,
    STARTER_ENCODER,
    STARTER_GENERATOR,
    TOKENIZER,
    EncoderSpec,
    ModelFolder,
    Precision,
    cached_model,
    family_conventions,
    finished,
    is_hub_id,
    open_model_folder,
    write_manifest,
)
from xqg_vdb.models.remote import CANARY, CANARY_TEXTS, PROMPT, Remote, ask_endpoint, takes_prompts
from xqg_vdb.progress import bars
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Vectors

_Say = Callable[[str], None]  # told one line a step
_Embed = Callable[[list[str]], Any]
FP32_COSINE = 0.9999
INT8_COSINE = 0.98


def _fill_encoder(
    checkpoint: str, precision: Precision, overrides: Overrides, scratch: Path, asked: Mapping[str, Any], say: _Say
) -> None:
    say(f"reading {checkpoint}")
    # the int8 starter, used as it wants to be used, comes with its graph and needs no torch
    filled = checkpoint == STARTER_ENCODER and precision == "int8" and overrides == NOTHING
    source = fetch_checkpoint(checkpoint, into=scratch / "checkpoint", filled=filled)
    spec, learned_from = conventions(source, overrides)
    say(f"conventions from {learned_from}: {spec.pooling} pooling, normalize={spec.normalize}, dim {spec.dim}")
    folder = scratch / "model"
    folder.mkdir()
    _write_graphs(source, folder, spec, precision=precision, say=say)
    manifest = {
        "kind": "encoder", **source.origin, "encoder": asdict(spec), "conventions_from": learned_from,
        "precision": precision, "made_with": versions(("onnxruntime", "tokenizers", "xqg-vdb")),
        "machine": {"processor": platform.machine(), "vnni": cpu_has_vnni()}, "asked": asked,
    }  # fmt: skip
    write_manifest(folder, manifest)
    manifest |= _gate(source, folder, spec, overrides, precision=precision, say=say)
    _calibrate(folder, manifest, say=say)


def _calibrate(folder: Path, manifest: dict[str, Any], *, say: _Say, embed: _Embed | None = None) -> None:
    """Measure and write the language means and the gain of calibration, and with it the manifest again."""
    say("measuring language means and the gain of calibration")
    with Encoder(folder, calibration=0.0, embed=embed) as encoder:
        table, manifest["calibration"] = measure_calibration(encoder)
    (folder / CALIBRATION).write_bytes(save_means(table))
    write_manifest(folder, manifest)


REMOTE_LENGTH = 8192
"""Tokens, where nobody knows what a server reads of a text: it cuts by itself."""


def _fill_remote(
    server: str | _Embed, model: str, overrides: Overrides, scratch: Path, asked: Mapping[str, Any], say: _Say
) -> None:
    """Of an encoder that runs elsewhere: its conventions, its language means, and the rows of a few texts.

    By those every opening checks the model. Rows are given length 1 unless `normalize` says otherwise.
    """
    say(f"asking {model}")
    url, embed = (server, None) if isinstance(server, str) else (None, server)
    with closing(Remote(embed, name=model) if embed else ask_endpoint(str(url), model)) as remote:
        rows = remote.rows(CANARY_TEXTS)
    if not np.ptp(rows, axis=0).any():
        raise ModelError(f"{model} gives {len(rows)} different texts one and the same vector: it tells none apart.")
    width = rows.shape[1]
    family, changed = family_conventions(model), overrides.given
    start = family or EncoderSpec(width, "mean", normalize=True, max_length=REMOTE_LENGTH)
    spec = shortened(replace(start, **changed), width, changed.get("dim"))
    if PROMPT in spec.query_prefix + spec.passage_prefix and not takes_prompts(str(url)):
        raise DataError(f"{PROMPT}NAME is for a server's own /embed; give {model} the prompt itself as a prefix.")
    folder = scratch / "model"
    folder.mkdir()
    np.savez(folder / CANARY, rows=rows)
    manifest: dict[str, Any] = {
        "kind": "encoder", "from": "server" if url else "callable", "source": model, "revision": "",
        "remote": {"url": url, "model": model}, "encoder": asdict(spec), "precision": "remote",
        "conventions_from": "family" if family else "default", "asked": asked,
        "made_with": versions(["xqg-vdb"]), "parity": None, "speed": None,
    }  # fmt: skip
    write_manifest(folder, manifest)
    _calibrate(folder, manifest, say=say, embed=embed)


def _is_filled_starter(source: Checkpoint) -> bool:
    return source.source == STARTER_ENCODER and source.onnx is not None


def _write_graphs(source: Checkpoint, folder: Path, spec: EncoderSpec, *, precision: Precision, say: _Say) -> None:
    fp32 = folder.with_name("fp32") / GRAPH
    fp32.parent.mkdir()
    write_graph(source, fp32, say=say)
    if source.onnx is not None:
        tokens_first(fp32)
    if source.dense:
        arrays: dict[str, Any] = {"activations": []}
        for i, (weight, bias, activation) in enumerate(map(read_dense, source.dense)):
            arrays |= {f"{i}.weight": weight, f"{i}.bias": bias}
            arrays["activations"].append(activation)
        np.savez(folder / DENSE, **arrays)
    made, lower = save_tokenizer(source, fp32.parent, ask=source.onnx is None), text_module(source).get("do_lower_case")
    write_composing(made, folder / TOKENIZER, lower=bool(lower))
    if precision == "int8" and not _is_filled_starter(source):
        say(f"quantising to int8 for a CPU {'with' if cpu_has_vnni() else 'without'} VNNI")
        quantize_int8(fp32, folder / GRAPH, samples=_sample_ids(folder / TOKENIZER, spec))
    else:
        for file in fp32.parent.glob("*.onnx*"):
            shutil.move(file, folder / file.name)


def _sample_ids(tokenizer: Path, spec: EncoderSpec) -> list[NDArray[np.int64]]:
    """Token ids of two questions per language of the bank and of the sample corpus, each a row of its own."""
    from tokenizers import Tokenizer

    _, passages = parity_texts()
    questions = [text for texts in question_bank(romanised=False).values() for text in texts[:2]]
    texts = [spec.query_prefix + text for text in questions] + [spec.passage_prefix + text for text in passages]
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.enable_truncation(spec.max_length)
    return [np.array([encoding.ids], dtype=np.int64) for encoding in reader.encode_batch(texts)]


def _gate(
    source: Checkpoint, folder: Path, spec: EncoderSpec, overrides: Overrides, *, precision: Precision, say: _Say
) -> dict[str, Any]:
    """Parity and speed of every engine that is here; raises MismatchError instead of accepting what differs."""
    say("comparing with the original")
    wanted = FP32_COSINE if precision == "fp32" else INT8_COSINE
    measured: dict[str, Any] = {}
    rows, parity, speed = _original_rows(source, folder, spec, overrides, precision=precision), {}, {}
    for engine in engines():  # onnxruntime, which is always here, comes first, and what it computes decides
        with Encoder(folder, engine=engine, calibration=0.0) as encoder:
            figures, timed = measure_parity(encoder, rows), _speed(encoder)
        lowest, hits = figures["cosine_min"], figures["same_hits"]
        if not measured:
            parity, speed = figures, timed
            say(f"cosine to the original, {parity['texts']} texts: min {lowest:.5f}, mean {parity['cosine_mean']:.5f}")
            if not lowest >= wanted:
                own = "Its own graph may be of other weights: delete its onnx folder." if source.onnx else ""
                raise MismatchError(
                    f"The {precision} export is not the model it was made from: lowest cosine {lowest:.5f}, wanted"
                    f" {wanted} (text {parity['worst_text']!r}); nothing was written. "
                    + ("Try --precision fp32." if precision == "int8" else own or "Please report the checkpoint.")
                )
        rate = timed["passages_per_second"] if lowest >= wanted else 0.0
        measured[engine] = {"cosine_min": lowest, "same_hits": hits, "passages_per_second": rate}
        told = f"{rate} passages/s" if rate else "refused"
        say(f"{engine}: {told}, lowest cosine {lowest:.5f}, {hits:.2%} of ten hits the same")
    fastest = max(measured, key=lambda name: measured[name]["passages_per_second"])
    return {"parity": parity, "speed": speed, "engines": measured, "fastest_engine": fastest}


def _original_rows(
    source: Checkpoint, folder: Path, spec: EncoderSpec, overrides: Overrides, *, precision: Precision
) -> tuple[Vectors, Vectors]:
    """Of the original software; without it, or without weights, of the publisher's own fp32 graph."""
    if _is_filled_starter(source):
        return stored_rows()
    if source.onnx is None:
        return torch_vectors(source, spec, overrides)
    if not source.code and find_spec("sentence_transformers") and list(source.path.glob("*.safetensors")):
        with suppress(ModelError):  # a model that only its publisher's code knows
            return torch_vectors(source, spec, overrides)
    original = folder
    if precision == "int8":
        original = folder.with_name("fp32")
        for name in (TOKENIZER, DENSE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, original / name)
        write_manifest(original, {"kind": "encoder", "source": "fp32", "encoder": asdict(spec)})
    questions, passages = parity_texts()
    with Encoder(original, calibration=0.0) as encoder:
        return encoder.encode_queries(questions, calibrate=False), encoder.encode_passages(passages)


def _speed(encoder: Encoder) -> dict[str, Any]:
    _, passages = parity_texts()
    encoder.encode_passages(passages[:8])
    start = time.perf_counter()
    encoder.encode_passages(passages)
    rate = len(passages) / (time.perf_counter() - start)
    return {"passages_per_second": round(rate, 1), "threads": encoder.threads, "texts": "sample corpus"}


# Models by name: the exported folder of MODEL, exporting it into the cache the first time it is asked for.


def export_on_first_use(checkpoint: str, out: Path, precision: Precision, say: _Say | None) -> None:
    """Export an encoder that somebody asked for by name; without a `say` a log line and a bar say so."""
    if is_hub_id(checkpoint):
        need_torch(of=checkpoint)
    (say or logging.getLogger("xqg_vdb").warning)(f"exporting {checkpoint} once, into {out}")
    steps = count(1)
    with bars(unit=" steps") as show:
        export(checkpoint, out, precision=precision, say=say or (lambda line: show(line, next(steps), None)))


def export(
    checkpoint: str | _Embed,
    out: str | Path | None = None,
    *,
    precision: Precision | None = None,
    overrides: Overrides | None = None,
    generator: bool = False,
    accept_license: bool = False,
    model: str | None = None,
    say: _Say | None = None,
) -> ModelFolder:
    """Export a hub id, a checkpoint folder, `starter:encoder` or `starter:generator`, checked against the original.

    Or a server's URL (OpenAI-compatible, up to `/v1`), or a callable from texts to rows: the folder then says what runs
    there, `model`, and how it is calibrated. out: a new folder; without one, hub ids and starters go to the cache,
    where they are found by name. precision: int8, but fp32 of a cross-encoder. overrides: an encoder's conventions.
    generator: the checkpoint writes queries. say: told each step, by default the log. Raises ModelError, MismatchError
    when the export does not compute what the original does, MissingExtra, ServerError.
    """
    tell, overrides = say or logging.getLogger("xqg_vdb").info, overrides or NOTHING
    checkpoint = os.fspath(checkpoint) if isinstance(checkpoint, os.PathLike) else checkpoint
    if precision not in ("int8", "fp32", None):
        raise DataError(f"precision must be int8 or fp32, found {precision!r:.80}.")
    if not isinstance(checkpoint, str) or checkpoint.startswith(("http://", "https://")):
        if out is None or not model:
            raise DataError("An encoder that runs elsewhere needs the folder OUT and --model NAME.")
        asked = {"checkpoint": checkpoint if isinstance(checkpoint, str) else "None", "model": model, **overrides.given}
        return _made(Path(out), asked, partial(_fill_remote, checkpoint, model, overrides), tell)
    if is_hub_id(name := checkpoint.removeprefix(CROSS)):
        need_torch(of=name)
    if out is None and name not in (STARTER_ENCODER, STARTER_GENERATOR) and not is_hub_id(name):
        raise ModelError(f"Say where to export the folder {checkpoint!r} to: xqg-vdb export {checkpoint} OUT")
    cross, precision = name != checkpoint, precision or ("int8" if name == checkpoint else "fp32")
    known = STARTER if checkpoint == STARTER_ENCODER else checkpoint
    target = Path(out) if out is not None else cached_model(known, precision=precision)
    if cross and precision == "int8":
        raise ModelError("Cross-encoders are exported in fp32 alone: leave --precision away.")
    if cross:
        return _made(target, {"checkpoint": checkpoint}, partial(fill_cross, name), tell)
    asked = {"checkpoint": checkpoint, "precision": precision}
    if generator or checkpoint == STARTER_GENERATOR:
        return _made(target, asked, partial(fill_generator, checkpoint, precision, accept_license), tell)
    return _made(target, asked | overrides.given, partial(_fill_encoder, checkpoint, precision, overrides), tell)


def _made(
    out: Path, asked: dict[str, Any], fill: Callable[[Path, Mapping[str, Any], _Say], None], say: _Say
) -> ModelFolder:
    """The new folder `out`, which appears only when all was accepted; one that the very same made before is as good.

    fill: makes `model` in a scratch folder, whose manifest says what was `asked` for.
    """
    if done := finished(out, asked, say=say):
        return done
    with new_folder(out, result="model") as scratch:
        fill(scratch, asked, say)
    return open_model_folder(out)


def explain(
    checkpoint: str, overrides: Overrides = NOTHING, *, generator: bool = False, accept_license: bool = False
) -> dict[str, Any]:
    """What a checkpoint is: `facts` by name, each (the original software's, the export's), and `refused`."""
    refused: list[str] = []
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    software = "not asked"
    with tempfile.TemporaryDirectory() as scratch:
        name, cross = checkpoint.removeprefix(CROSS), checkpoint.startswith(CROSS)
        source = fetch_checkpoint(name, into=Path(scratch) / "checkpoint", accept_license=accept_license)
        # of a model that writes text, and says nothing of vectors
        plain = not modules_of(source.path) and family_conventions(source.source) is None and overrides == NOTHING
        text = str(source.origin["architecture"]).endswith(("ForCausalLM", "ForConditionalGeneration"))
        writes = generator or checkpoint == STARTER_GENERATOR or (plain and text and not cross)
        try:
            if writes:
                software, theirs, ours = describe_generator(source)
            else:
                ours = cross_record(source) if cross else export_facts(source, overrides)
                save_tokenizer(source, Path(scratch), ask=False)  # refuses that of another model
        except (ModelError, MissingExtra) as error:
            refused.append(str(error))
        try:
            if not writes:
                software, theirs = (original_cross_facts if cross else original_facts)(source)
        except MissingExtra as error:
            software = f"not asked ({error})"
        except Exception as error:  # also what a stranger's values make of the original software
            said = str(error) if isinstance(error, ModelError) else f"its own software fails: {reason(error)}"
            if source.onnx and not writes:  # then its own graph is what an export is compared with
                software = f"not asked ({said})"
            else:
                refused.append(said)
    facts = {name: (theirs.get(name), ours.get(name)) for name in dict.fromkeys([*theirs, *ours])}
    kind = "generator" if writes else "cross-encoder" if cross else "encoder"
    return {**source.origin, "kind": kind, "software": software, "facts": facts, "refused": [*dict.fromkeys(refused)]}
