"""One question: how long its vector takes, alone, as the first of a process, and with 100 threads asking.

    python benchmarks/latency.py                      # the starter; 200 AfriQA questions of 10 to 20 tokens

For each precision and engine that is installed: p50 and p95 of one question (engines in turn), seconds from the start
of a process to its first vector (median of three), and 100 threads that ask 10 questions each of one encoder:
questions a second, p50 and p95 of one. sentence-transformers (torch) stands beside them, asked in the same way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
from encode import processor
from tokenizers import Tokenizer

from xqg_vdb import Encoder
from xqg_vdb.evaluate.datasets import data_folder
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.export.starter_encoder import locate_weights, read_weights, write_checkpoint
from xqg_vdb.generate.output import versions
from xqg_vdb.models.engine import engines
from xqg_vdb.models.folder import STARTER, Precision, cached_model

Ask = Callable[[str], object]
COLD = "import sys; from xqg_vdb import Encoder; Encoder(sys.argv[1], engine=sys.argv[2]).encode_queries(['How far?'])"
COLD_TORCH = """import sys; from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device='cpu').encode(['query: How far?'])"""
THREADS, EACH = 100, 10


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with afriqa/  [default: XQG_DATA_DIR]")
@click.option("--questions", type=click.IntRange(min=20), default=200, show_default=True)
def main(data_dir: Path | None, questions: int) -> None:
    """Print milliseconds for each precision and engine."""
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    folders = {precision: cached_model(STARTER, precision=precision) for precision in precisions}
    texts = short(data_folder(data_dir), folders["int8"], questions)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(read_weights(locate_weights()), Path(scratch) / "checkpoint")
        asks, cold = contenders(folders, checkpoint)
        alone: dict[str, list[float]] = {name: [] for name in asks}
        for text in texts:
            for name, ask in asks.items():
                alone[name].append(seconds(ask, text))
        click.echo(" ".join(f"{k}={v}" for k, v in {"processor": processor(), **versions(PACKAGES)}.items()) + "\n")
        columns = ("p50 ms", "p95 ms", "first, s", "100 threads: q/s", "p50 ms", "p95 ms")
        click.echo(f"{'':24}" + "".join(f"{column:>18}" for column in columns))
        for name, ask in asks.items():
            rate, waits = crowd(ask, texts)
            numbers = (*milliseconds(alone[name]), first(cold[name]), rate, *milliseconds(waits))
            click.echo(f"{name:24}" + "".join(f"{number:18.1f}" for number in numbers))


PACKAGES = ("onnxruntime", "openvino", "torch")


def short(data_dir: Path, folder: Path, n: int) -> list[str]:
    """Questions of 10 to 20 tokens, the prefix not counted."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [query.text for query in read_afriqa(data_dir, split="dev").queries]
    fits = [text for text in texts if 10 <= len(tokenizer.encode(text, add_special_tokens=False)) <= 20]
    return [fits[at] for at in np.random.default_rng(0).choice(len(fits), min(n, len(fits)), replace=False)]


def one_row(encoder: Encoder, text: str) -> object:
    """The calibrated vector of a question."""
    return encoder.encode_queries([text])


def contenders(folders: dict[Precision, Path], checkpoint: Path) -> tuple[dict[str, Ask], dict[str, list[str]]]:
    """How each is asked one question, and the command that asks its first one."""
    import torch
    from sentence_transformers import SentenceTransformer

    asks: dict[str, Ask] = {}
    cold = {}
    for precision, folder in folders.items():
        for engine in engines():
            encoder, name = Encoder(folder, engine=engine), f"{precision} {engine}"
            asks[name] = partial(one_row, encoder)
            cold[name] = [sys.executable, "-c", COLD, str(folder), engine]
    torch.set_num_threads(encoder.threads)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    asks["sentence-transformers"] = lambda text: model.encode(["query: " + text], prompt="", show_progress_bar=False)
    cold["sentence-transformers"] = [sys.executable, "-c", COLD_TORCH, str(checkpoint)]
    for ask in asks.values():
        for _ in range(3):
            ask("How far is the moon from the earth?")
    return asks, cold


def seconds(ask: Ask, text: str) -> float:
    start = time.perf_counter()
    ask(text)
    return time.perf_counter() - start


def first(command: list[str]) -> float:
    """Median seconds of three processes."""
    times = [seconds(lambda _: subprocess.run(command, check=True, capture_output=True), "") for _ in range(3)]
    return float(np.median(times))


def crowd(ask: Ask, texts: list[str]) -> tuple[float, list[float]]:
    """Questions a second of 100 threads, and what each question waited."""
    asked = [texts[at % len(texts)] for at in range(THREADS * EACH)]
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        waits = list(pool.map(lambda text: seconds(ask, text), asked))
        return len(asked) / (time.perf_counter() - start), waits


def milliseconds(values: list[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    middle, high = np.quantile(values, [0.5, 0.95])
    return float(middle) * 1000, float(high) * 1000


if __name__ == "__main__":
    main()
