"""Passages per second: this package against what one would use instead, same weights, same texts, same threads.

    python benchmarks/encode.py                       # 128 AfriQA passages, 5 repeats, 2 threads
    python benchmarks/encode.py --passages 3120 --repeats 3 --json

Contenders, in one run, repeats interleaved, medians: `Encoder` on the int8 and the fp32 export; a plain loop that
sorts by length and feeds onnxruntime batches of 32; fastembed's own pipeline on the very same two graphs;
sentence-transformers (torch) on the checkpoint; `Encoder` with every other engine that is installed; and, where
optimum-intel and nncf are, sentence-transformers' OpenVINO backend as it is and in its int8. Every contender's vectors
are compared with those of sentence-transformers, so nobody wins by doing less, and each engine's passages are searched
with the fp32 export's questions: may they share a collection?
"""

from __future__ import annotations

import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import orjson
from tokenizers import Tokenizer

from xqg_vdb import Encoder
from xqg_vdb.evaluate.datasets import data_folder
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.export.checkpoints import STARTER_ENCODER
from xqg_vdb.export.encoder import export
from xqg_vdb.export.gate import parity_texts
from xqg_vdb.export.starter_encoder import locate_weights, read_weights, write_checkpoint
from xqg_vdb.generate.output import versions
from xqg_vdb.models.engine import cpu_has_vnni, engines
from xqg_vdb.models.folder import STARTER, Precision, cached_model
from xqg_vdb.types import Vectors

Contender = Callable[[list[str]], Vectors]
PREFIX = "passage: "


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with afriqa/  [default: XQG_DATA_DIR or ../shared/data]"
)
@click.option(
    "--passages", type=click.IntRange(min=8), default=128, show_default=True, help="A seeded sample of the 3,120."
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(data_dir: Path | None, passages: int, repeats: int, threads: int, as_json: bool) -> None:
    """Print a table of passages per second with ratios."""
    texts, questions = sample(data_dir, passages)
    with tempfile.TemporaryDirectory() as scratch:
        contenders = build(Path(scratch), threads)
        reference = contenders["sentence-transformers"](texts[:32])
        cosines = {
            name: float(np.sum(encode(texts[:32]) * reference, axis=1).min()) for name, encode in contenders.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        rows: dict[str, Vectors] = {}
        for repeat in range(repeats):
            for name, encode in contenders.items():
                click.echo(f"repeat {repeat + 1}/{repeats}: {name}", err=True)
                start = time.perf_counter()
                rows[name] = encode(texts)
                seconds[name].append(time.perf_counter() - start)
        with Encoder(cached_model(STARTER, precision="fp32"), threads=threads) as encoder:
            asked = encoder.encode_queries(list(questions), calibrate=False)
    shared = agreement(asked, rows, np.array(list(questions.values())))
    rates = {name: len(texts) / statistics.median(own) for name, own in seconds.items()}
    setup = {
        "passages": len(texts), "repeats": repeats, "threads": threads, "vnni": cpu_has_vnni(),
        "processor": processor(), **versions(("onnxruntime", "openvino", "torch")),
    }  # fmt: skip
    if as_json:
        record = {"setup": setup, "passages_per_second": rates, "cosine_min": cosines, "with_fp32_questions": shared}
        click.echo(orjson.dumps(record).decode())
        return
    show(rates, cosines, setup)
    shares(rates, texts, threads)
    click.echo("\nquestions by the fp32 export: R@10, hits shared with all-fp32's ten")
    for name, (recall, same) in shared.items():
        click.echo(f"{name:30s}{recall:11.3f}{same:12.4f}")


def sample(data_dir: Path | None, n: int) -> tuple[list[str], dict[str, int]]:
    """N passages, drawn with a fixed seed so that lengths are those of the whole set; questions with their passage."""
    task = read_afriqa(data_folder(data_dir), translated=True)
    pool = list(task.passages)
    chosen = np.random.default_rng(0).choice(len(pool), min(n, len(pool)), replace=False)
    places = {pool[number].id: place for place, number in enumerate(chosen)}
    answered = {
        question.text: places[passage]
        for question in task.queries
        for passage in task.qrels[question.id]
        if passage in places
    }
    return [pool[number].title_and_text for number in chosen], answered


def agreement(asked: Vectors, rows: dict[str, Vectors], answers: np.ndarray) -> dict[str, tuple[float, float]]:
    """Each of our contenders' passages under the fp32 export's questions: R@10, and the share of fp32's ten hits."""
    ten = {name: np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :10] for name, vectors in rows.items()}
    wanted = ten["xqg-vdb fp32"]
    return {
        name: (float((hits == answers[:, None]).any(axis=1).mean()),
               float((hits[:, :, None] == wanted[:, None, :]).any(axis=2).mean()))
        for name, hits in ten.items() if name.startswith("xqg-vdb")
    }  # fmt: skip


def build(scratch: Path, threads: int) -> dict[str, Contender]:
    """Every contender, loaded and ready."""
    checkpoint = write_checkpoint(read_weights(locate_weights()), scratch / "checkpoint")
    contenders: dict[str, Contender] = {}
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    for precision in precisions:
        folder = cached_model(STARTER, precision=precision)
        if not (folder / "model.json").is_file():
            export(STARTER_ENCODER, folder, precision=precision, say=lambda line: click.echo(line, err=True))
        contenders[f"xqg-vdb {precision}"] = Encoder(folder, threads=threads).encode_passages
        contenders[f"sorted onnxruntime loop {precision}"] = sorted_loop(folder, threads)
        contenders[f"fastembed {precision}"] = fastembed(folder, checkpoint, scratch / precision, threads)
        for engine in engines()[1:]:
            contenders[f"xqg-vdb {precision} {engine}"] = Encoder(
                folder, engine=engine, threads=threads
            ).encode_passages
    contenders["sentence-transformers"] = sentence_transformers(checkpoint, threads)
    if find_spec("optimum") and find_spec("nncf") and find_spec("openvino"):
        contenders |= sentence_transformers_openvino(checkpoint, threads)
    return contenders


def sorted_loop(folder: Path, threads: int) -> Contender:
    """What an engineer writes in ten minutes: sort by length, batches of 32, one session on all threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")

    def encode(texts: list[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = np.zeros((len(texts), 384), np.float32)
        for start in range(0, len(order), 32):
            chosen = order[start : start + 32]
            encodings = tokenizer.encode_batch([PREFIX + texts[i] for i in chosen])
            ids, mask = np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})[0]
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            rows[chosen] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return rows

    return encode


def fastembed(folder: Path, checkpoint: Path, place: Path, threads: int) -> Contender:
    """Fastembed's pipeline on our graph; it has no prefixes of its own, so the texts bring them."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    place.mkdir()
    for file in (*checkpoint.glob("*.json"), folder / "tokenizer.json", folder / "model.onnx"):
        (place / file.name).unlink(missing_ok=True)
        (place / file.name).symlink_to(file.resolve())
    name = f"local/{place.name}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding(model_name=name, specific_model_path=str(place), threads=threads)
    return lambda texts: np.stack(list(model.embed([PREFIX + text for text in texts])))


def sentence_transformers(checkpoint: Path, threads: int) -> Contender:
    """sentence-transformers with its defaults (batches of 32, sorted by length)."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    return lambda texts: model.encode([PREFIX + text for text in texts], prompt="", show_progress_bar=False)


def sentence_transformers_openvino(checkpoint: Path, threads: int) -> dict[str, Contender]:
    """Its OpenVINO backend: as it is (bf16 where the CPU has it), and in the int8 of optimum-intel.

    The latter is what `export_static_quantized_openvino_model` does, with the texts of our own gate to calibrate on.
    """
    import nncf
    from optimum.intel.openvino import OVConfig, OVQuantizationConfig, OVQuantizer
    from sentence_transformers import SentenceTransformer

    def opened(folder: Path) -> Any:
        told = {"ov_config": {"INFERENCE_NUM_THREADS": threads}}
        return SentenceTransformer(str(folder), device="cpu", backend="openvino", model_kwargs=told)

    def encode(model: Any) -> Contender:
        return lambda texts: model.encode([PREFIX + text for text in texts], prompt="", show_progress_bar=False)

    plain, int8 = opened(checkpoint), checkpoint.with_name("openvino-int8")
    shutil.copytree(checkpoint, int8, ignore=shutil.ignore_patterns("*.safetensors", "openvino"))
    questions, passages = parity_texts()
    feeds = [dict(plain.tokenizer([text], return_tensors="np", truncation=True)) for text in [*questions, *passages]]
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(feeds)))
    OVQuantizer.from_pretrained(opened(checkpoint)[0].auto_model).quantize(
        nncf.Dataset(feeds), save_directory=int8, ov_config=config
    )
    return {"sent.-tr. openvino": encode(plain), "sent.-tr. openvino int8": encode(opened(int8))}


def processor() -> str:
    """The CPU's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(rates: dict[str, float], cosines: dict[str, float], setup: dict[str, object]) -> None:
    """The table: rates, ratios to the two neighbours, and how close each one's vectors are to torch's."""
    click.echo(" ".join(f"{key}={value}" for key, value in setup.items()) + "\n")
    click.echo(f"{'':30s}{'passages/s':>11s}{'× sent.-tr.':>12s}{'× fastembed':>12s}{'cosine min':>11s}")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        precision = "int8" if "int8" in name else "fp32"
        ratios = rate / rates["sentence-transformers"], rate / rates[f"fastembed {precision}"]
        click.echo(f"{name:30s}{rate:11.1f}{ratios[0]:12.2f}{ratios[1]:12.2f}{cosines[name]:11.4f}")
    ours = rates["xqg-vdb int8"]
    click.echo(f"\nint8 against sentence-transformers: {ours / rates['sentence-transformers']:.2f} ×")
    click.echo(f"int8 against fastembed on the same int8 graph: {ours / rates['fastembed int8']:.2f} ×")


def shares(rates: dict[str, float], texts: list[str], threads: int) -> None:
    """What of the fastest matrix products here, large and square, the weights' products of each of ours are.

    Attention, norms and all else are not counted as work, only as time.
    """
    import torch

    tokenizer = Tokenizer.from_file(str(cached_model(STARTER) / "tokenizer.json"))
    tokens = sum(min(512, len(tokenizer.encode(PREFIX + text))) for text in texts) / len(texts)
    work = 2 * 12 * (4 * 384 * 384 + 2 * 384 * 1536) * tokens
    torch.set_num_threads(threads)
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16), "int8": peak(torch.int8)}
    told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items())
    click.echo(f"\nbillions of operations a second in products of 1,024 x 1,024 (torch): {told}")
    for name, rate in rates.items():
        if name.startswith("xqg-vdb"):
            precision = "int8" if "int8" in name else "bf16" if "bf16" in name else "fp32"
            click.echo(f"{name:30s}{rate * work / peaks[precision]:7.2f} of the peak in {precision}")


def peak(kind: Any) -> float:
    """Operations a second, the best of sixty products."""
    import torch

    size = 1024
    whole = kind == torch.int8
    one, other = (torch.randint(-9, 9, (size, size), dtype=kind) if whole else torch.randn(size, size).to(kind)
                  for _ in range(2))  # fmt: skip
    best = float("inf")
    for _ in range(60):
        start = time.perf_counter()
        torch._int_mm(one, other) if whole else one @ other
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
