"""Queries per second: our decoding against the recipe of the xQG authors' README, on the same weights.

The recipe is `transformers.pipeline(..., num_return_sequences=n)`, one call per (passage, language). Two models: one of
the shape of mT5-base with random weights (the real one is not in the package index), and the starter generator. Two
threads, AfriQA passages, four languages, three queries each, top-k sampling (k = 10).

    python benchmarks/generate.py --data-dir ../shared/data --work /tmp/generate-bench [--json out.json]

The recipe is slow, so it is timed on the first --reference-passages only: its time per call does not depend on their
number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
sys.path.insert(0, str(Path(__file__).parents[1]))

from xqg_vdb.export.encoder import export  # noqa: E402
from xqg_vdb.export.starter_generator import build_generator_checkpoint  # noqa: E402
from xqg_vdb.generate.local import (  # noqa: E402
    CausalGenerator,
    Seq2SeqGenerator,
)
from xqg_vdb.generate.prompts import SEQ2SEQ_TEMPLATE, few_shot  # noqa: E402
from xqg_vdb.models.decoder import CausalModel, Decoding  # noqa: E402
from xqg_vdb.models.folder import open_model_folder  # noqa: E402
from xqg_vdb.texts.languages import english_name  # noqa: E402
from xqg_vdb.types import Passage  # noqa: E402

LANGS, N = ["de", "sw", "ar", "zh"], 3
DECODING = Decoding(top_k=10, max_tokens=32)


def afriqa(folder: Path, count: int) -> list[Passage]:
    found: dict[str, Passage] = {}
    for path in sorted((folder / "afriqa").glob("*.dev.json")):
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            if record["context"] and record["context"] not in found:
                found[record["context"]] = Passage(str(len(found)), record["context"], title=record["title"] or "")
    return list(islice(found.values(), count))


def random_mt5_base(folder: Path) -> Path:
    """A checkpoint of mT5-base's shape, with the tokenizer of the starter encoder (as large a vocabulary)."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import MT5Config, MT5ForConditionalGeneration

    from xqg_vdb.export.starter_encoder import locate_weights, read_weights, write_checkpoint

    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=250112, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, eos_token_id=2,
        pad_token_id=1,
    )  # fmt: skip
    MT5ForConditionalGeneration(config).save_pretrained(folder)
    if not (folder.parent / "e5").exists():
        write_checkpoint(read_weights(locate_weights()), folder.parent / "e5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder.parent / "e5" / name).read_bytes())
    return folder


def starter(folder: Path) -> Path:
    return folder if folder.exists() else build_generator_checkpoint(folder, accept_license=True)


def exported(checkpoint: Path, out: Path, precision: str) -> Path:
    if not out.exists():
        tell = partial(print, "  ", file=sys.stderr)
        export(str(checkpoint), out, precision=precision, generator=True, say=tell)
    return out


def time_recipe(kind: str, checkpoint: Path, passages: list[Passage]) -> float:
    """Queries per second of the README's way."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    torch.set_num_threads(THREADS)
    options = {"do_sample": True, "top_k": 10, "num_return_sequences": N, "max_new_tokens": DECODING.max_tokens}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if kind == "mt5":
        run = pipeline(
            "text2text-generation", model=AutoModelForSeq2SeqLM.from_pretrained(checkpoint), tokenizer=tokenizer
        )
        options |= {"truncation": True}
    else:
        run = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer=tokenizer)
        lines = [i for token, i in tokenizer.get_vocab().items() if "\n" in token]
        options |= {"return_full_text": False, "eos_token_id": [tokenizer.eos_token_id, *lines]}
    prompt = few_shot()

    def text(passage: Passage, lang: str) -> str:
        if kind == "mt5":
            filled = SEQ2SEQ_TEMPLATE.replace("{language}", english_name(lang)).replace("{title}", passage.title)
            return filled.replace("{text}", passage.text)
        return prompt.prefix + "".join(prompt.passage_parts(passage)) + prompt.ending(lang)

    run(text(passages[0], LANGS[0]), **options)
    start = time.perf_counter()
    for passage in passages:
        for lang in LANGS:
            run(text(passage, lang), **options)
    return len(passages) * len(LANGS) * N / (time.perf_counter() - start)


def time_ours(kind: str, folder: Path, passages: list[Passage]) -> tuple[float, dict[str, float]]:
    """Queries per second, and the share of each phase."""
    opened = open_model_folder(folder)
    if kind == "mt5":
        generator = Seq2SeqGenerator(opened, decoding=DECODING, threads=THREADS)
        clock = generator.clock
    else:
        model = CausalModel(opened, stop=("\n",), threads=THREADS)
        generator = CausalGenerator(model, prompt=few_shot(), decoding=DECODING)
        clock = model.clock
    list(generator.generate(passages[:1], query_langs=LANGS, n=N))
    clock.seconds.clear()
    start = time.perf_counter()
    made = list(generator.generate([replace(p, id=f"{p.id}b") for p in passages], query_langs=LANGS, n=N))
    seconds = time.perf_counter() - start
    queries = sum(len(texts) for record in made for texts in record.queries.values())
    shares = {phase: round(spent / seconds, 3) for phase, spent in clock.seconds.items()}
    return queries / seconds, {**shares, "other": round(1 - sum(shares.values()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("XQG_DATA_DIR", "../shared/data")))
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and exports (about 8 GB)")
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--reference-passages", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=["starter", "mt5"], choices=["starter", "mt5"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data_dir / "afriqa").is_dir():
        sys.exit(f"skipped: no AfriQA passages in {options.data_dir} (give --data-dir or XQG_DATA_DIR)")
    options.work.mkdir(parents=True, exist_ok=True)
    passages = afriqa(options.data_dir, options.passages)
    report = {"passages": len(passages), "langs": LANGS, "n": N, "threads": THREADS, "decoding": DECODING.to_json()}
    for kind in options.models:
        checkpoint = (random_mt5_base if kind == "mt5" else starter)(options.work / kind)
        recipe = time_recipe(kind, checkpoint, passages[: options.reference_passages])
        print(f"{kind:8} recipe      {recipe:7.3f} queries/s")
        report[kind] = {"recipe": recipe}
        for precision in options.precisions:
            folder = exported(checkpoint, options.work / f"{kind}-{precision}", precision)
            rate, shares = time_ours(kind, folder, passages)
            report[kind][precision] = {"queries_per_second": rate, "ratio": rate / recipe, "time": shares}
            spent = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
            print(f"{kind:8} ours {precision}   {rate:7.3f} queries/s   {rate / recipe:5.1f} x   ({spent})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
