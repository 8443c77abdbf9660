"""Queries per second beside CTranslate2, llama.cpp's server and transformers: same weights, prompts and threads.

    python benchmarks/generation_peers.py --work /tmp/generate-bench [--passages 8] [--repeats 3]

Each contender is a process of its own, which loads, warms up, and then takes its turn when it is asked (the others
stand still): four languages × three queries of 32 tokens at most about each passage, drawn from the ten best tokens,
medians. "First tokens" is the same with one token a query, which is the reading of the prompts; the rest is decoding.
Memory is the process' own (private) at its end. Equal quality: the greedy queries of
--judged prompts beside those of transformers in fp32, and the mean log-probability of their tokens under that model.

Models: one of the shape of mT5-base with random weights (which the package index does not have; CTranslate2 reads it),
and the starter generator, Gemma 3 270M (CTranslate2 in int8; llama.cpp on the starter's own GGUF file, in 4 bits, with
a slot for each language and the three queries of a prompt from one reading of it).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
from generate import DECODING, LANGS, THREADS, N, afriqa, exported, random_mt5_base, starter

from xqg_vdb.evaluate.datasets import data_folder
from xqg_vdb.export.starter_generator import _assemble
from xqg_vdb.generate.local import CausalGenerator, Seq2SeqGenerator
from xqg_vdb.generate.prompts import SEQ2SEQ_TEMPLATE, few_shot
from xqg_vdb.models.decoder import CausalModel, Decoding
from xqg_vdb.models.folder import open_model_folder
from xqg_vdb.texts.languages import english_name
from xqg_vdb.types import Passage

Writer = Callable[[Sequence[Passage], Decoding, int], list[str]]
"""Passages, settings, queries a language → the queries, passage by passage and language by language."""


def prompts(kind: str, passages: Sequence[Passage]) -> list[str]:
    """What all contenders read, as text."""
    if kind == "mt5":
        filled = [SEQ2SEQ_TEMPLATE.replace("{title}", p.title).replace("{text}", p.text) for p in passages]
        return [text.replace("{language}", english_name(lang)) for text in filled for lang in LANGS]
    few = few_shot()
    return [few.prefix + "".join(few.passage_parts(p)) + few.ending(lang) for p in passages for lang in LANGS]


def ours(kind: str, folder: Path) -> Writer:
    """Our generators, whose settings are theirs for life: one for each."""
    made: dict[tuple[Decoding, int], Any] = {}
    opened = open_model_folder(folder)
    causal = CausalModel(opened, stop=("\n",), threads=THREADS) if kind == "starter" else None

    def write(passages: Sequence[Passage], decoding: Decoding, n: int) -> list[str]:
        if (decoding, n) not in made:
            made.clear()
            made[decoding, n] = (
                CausalGenerator(causal, prompt=few_shot(), decoding=decoding)
                if causal
                else Seq2SeqGenerator(opened, decoding=decoding, threads=THREADS)
            )
        records = made[decoding, n].generate(passages, query_langs=LANGS, n=n)
        return [query for record in records for lang in LANGS for query in record.queries[lang]]

    return write


def ctranslate2(kind: str, checkpoint: Path, work: Path) -> Writer:
    """CTranslate2 in int8, its batches sorted by itself; the fixed part of a prompt is read once."""
    import ctranslate2 as ct2
    from transformers import AutoTokenizer

    folder = work / f"{kind}-ct2"
    if not folder.exists():
        ct2.converters.TransformersConverter(str(checkpoint)).convert(str(folder), quantization="int8")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    options: dict[str, Any] = {"device": "cpu", "intra_threads": THREADS, "compute_type": "int8"}
    engine = (ct2.Translator if kind == "mt5" else ct2.Generator)(str(folder), **options)
    ends = [token for token in tokenizer.get_vocab() if "\n" in tokenizer.convert_tokens_to_string([token])]

    def write(passages: Sequence[Passage], decoding: Decoding, n: int) -> list[str]:
        limit = {"max_length": 256, "truncation": True} if kind == "mt5" else {}
        read = [tokenizer.convert_ids_to_tokens(tokenizer.encode(t, **limit)) for t in prompts(kind, passages)]
        drawn = {"sampling_topk": decoding.width, "num_hypotheses": n, "beam_size": 1, "max_batch_size": 16}
        if kind == "mt5":
            results = engine.translate_batch(read, max_decoding_length=decoding.max_tokens, **drawn)
            found = [row for result in results for row in result.hypotheses]
        else:
            fixed = [same[0] for same in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*read, strict=False))]
            results = engine.generate_batch(
                [tokens[len(fixed) :] for tokens in read], static_prompt=fixed, cache_static_prompt=True,
                end_token=ends, max_length=decoding.max_tokens, include_prompt_in_result=False, **drawn,
            )  # fmt: skip
            found = [row for result in results for row in result.sequences]
        return [tokenizer.decode(tokenizer.convert_tokens_to_ids(row), skip_special_tokens=True) for row in found]

    return write


def llama(work: Path) -> Writer:
    """llama.cpp's server on the starter's GGUF file, inside this process (PyPI's `xllamacpp`, built for AVX2)."""
    import xllamacpp

    weights = work / "starter.gguf"
    if not weights.exists():
        _assemble(weights)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights)
    settings.n_parallel = len(LANGS) * N
    settings.n_ctx = 2048 * settings.n_parallel
    settings.kv_unified, settings.cache_prompt, settings.verbosity = True, True, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(settings)

    def ask(body: dict[str, Any]) -> list[str]:
        answer = server.handle_completions(body)
        return [choice["text"] for choice in answer["choices"]]

    def write(passages: Sequence[Passage], decoding: Decoding, n: int) -> list[str]:
        greedy = decoding.mode == "greedy"
        drawn = {"temperature": 0.0 if greedy else 1.0, "top_k": decoding.width, "top_p": 1.0, "min_p": 0.0, "n": n}
        bodies = [
            {"prompt": text, "max_tokens": decoding.max_tokens, "stop": ["\n"], "cache_prompt": True, **drawn}
            for text in prompts("starter", passages)
        ]
        with ThreadPoolExecutor(len(LANGS)) as pool:
            return [text for texts in pool.map(ask, bodies) for text in texts]

    return write


def transformers(kind: str, checkpoint: Path) -> Writer:
    """`generate` of transformers in fp32, one call for a prompt and its samples."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    loader = AutoModelForSeq2SeqLM if kind == "mt5" else AutoModelForCausalLM
    model = loader.from_pretrained(checkpoint, dtype=torch.float32).eval()
    lines = [i for token, i in tokenizer.get_vocab().items() if "\n" in token] if kind == "starter" else []
    ends = [tokenizer.eos_token_id, *lines]

    def write(passages: Sequence[Passage], decoding: Decoding, n: int) -> list[str]:
        drawn: dict[str, Any] = {"do_sample": False} if decoding.mode == "greedy" else {"do_sample": True, "top_k": 10}
        found = []
        for text in prompts(kind, passages):
            limit = {"max_length": 256, "truncation": True} if kind == "mt5" else {}
            asked = tokenizer(text, return_tensors="pt", return_token_type_ids=False, **limit)
            out = model.generate(
                **asked, max_new_tokens=decoding.max_tokens, num_return_sequences=n, eos_token_id=ends, **drawn
            )
            cut = 0 if kind == "mt5" else asked["input_ids"].shape[1]
            found += tokenizer.batch_decode(out[:, cut:], skip_special_tokens=True)
        return found

    return write


def opened(name: str, kind: str, checkpoint: Path, work: Path) -> Writer:
    """A contender by its name in the table."""
    if name.startswith("xqg-vdb"):
        return ours(kind, exported(checkpoint, work / f"{kind}-{name.split()[1]}", name.split()[1]))
    if name.startswith("CTranslate2"):
        return ctranslate2(kind, checkpoint, work)
    return llama(work) if name.startswith("llama.cpp") else transformers(kind, checkpoint)


def private() -> int:
    """Private memory of this process, MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def serve(name: str, kind: str, work: Path, data: Path) -> None:
    """The child: a line in, a line out."""
    checkpoint = (random_mt5_base if kind == "mt5" else starter)(work / kind)
    write = opened(name, kind, checkpoint, work)
    pool = afriqa(data, 200)
    for line in sys.stdin:
        order = json.loads(line)
        passages = [replace(p, id=f"{p.id}-{order['first']}") for p in pool[order["first"] :][: order["count"]]]
        decoding = replace(DECODING, max_tokens=order["tokens"], mode=order["mode"])
        write([], decoding, order["n"])  # who opens something for these settings does it before the clock runs
        start = time.perf_counter()
        texts = write(passages, decoding, order["n"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "texts": texts, "private": private()}), flush=True)


class Child:
    """A contender in its process."""

    def __init__(self, name: str, kind: str, options: Sequence[str]) -> None:
        argv = [sys.executable, __file__, "--child", name, "--models", kind, *options]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(0, 1, 4)

    def ask(self, first: int, count: int, tokens: int, *, mode: str = "sample", n: int = N) -> dict[str, Any]:
        """Have it write queries about `count` passages."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"first": first, "count": count, "tokens": tokens, "mode": mode, "n": n}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{") and "seconds" in (answer := json.loads(line)):
                return dict(answer)
        raise SystemExit("a contender ended; what it said stands above")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def judge(kind: str, checkpoint: Path, asked: Sequence[str]) -> Callable[[Sequence[str]], float]:
    """Mean log-probability of a token of texts after their prompts, by transformers in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    loader = AutoModelForSeq2SeqLM if kind == "mt5" else AutoModelForCausalLM
    model = loader.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def score(texts: Sequence[str]) -> float:
        sums, tokens = 0.0, 0
        for prompt, text in zip(asked, texts, strict=True):
            lead = " " if kind == "starter" else ""  # as the examples of the prompt have it; ours cuts it off
            ids = tokenizer.encode(lead + text.strip(), add_special_tokens=False)
            if not ids:
                continue
            with torch.no_grad():
                if kind == "mt5":
                    asked_ids = tokenizer(prompt, return_tensors="pt", max_length=256, truncation=True).input_ids
                    logits = model(input_ids=asked_ids, labels=torch.tensor([ids])).logits[0]
                else:
                    read = torch.tensor([tokenizer.encode(prompt) + ids])
                    logits = model(read).logits[0, -len(ids) - 1 : -1]
            sums += float(torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)].sum())
            tokens += len(ids)
        return sums / max(tokens, 1)

    return score


def names(kind: str) -> Iterator[str]:
    """Who can be asked here."""
    yield from ("xqg-vdb int8", "xqg-vdb fp32")
    if find_spec("ctranslate2"):
        yield "CTranslate2 int8"
    if find_spec("xllamacpp") and kind == "starter":
        yield "llama.cpp Q4_K_M"
    yield "transformers fp32"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints and exports (about 8 GB).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with afriqa/  [default: XQG_DATA_DIR]")
@click.option("--models", multiple=True, default=["starter", "mt5"], type=click.Choice(["starter", "mt5"]))
@click.option("--passages", default=8, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--judged", default=16, show_default=True, help="Prompts for the greedy comparison.")
@click.option("--only", multiple=True, help="Contenders, such as 'xqg-vdb int8'  [default: all that are here]")
@click.option("--child", hidden=True)
def main(
    work: Path,
    data_dir: Path | None,
    models: Sequence[str],
    passages: int,
    repeats: int,
    judged: int,
    only: Sequence[str],
    child: str | None,
) -> None:
    """Print a table for each model."""
    data = data_folder(data_dir)
    work.mkdir(parents=True, exist_ok=True)
    if child:
        return serve(child, models[0], work, data)
    options = ["--work", str(work), "--data-dir", str(data)]
    for kind in models:
        contenders = {name: Child(name, kind, options) for name in names(kind) if not only or name in only}
        greedy = {
            name: one.ask(0, max(1, judged // len(LANGS)), DECODING.max_tokens, mode="greedy", n=1)["texts"]
            for name, one in contenders.items()
        }
        first: dict[str, list[float]] = {name: [] for name in contenders}
        whole: dict[str, list[float]] = {name: [] for name in contenders}
        memory = {}
        for repeat in range(repeats):
            for name, one in contenders.items():
                click.echo(f"{kind}, repeat {repeat + 1}/{repeats}: {name}", err=True)
                at = 1 + (2 * repeat) * passages % 150
                first[name].append(one.ask(at, passages, 1)["seconds"])
                answer = one.ask(at + passages, passages, DECODING.max_tokens)
                whole[name].append(answer["seconds"])
                memory[name] = answer["private"]
        for one in contenders.values():
            one.close()
        count = passages * len(LANGS) * N
        score = judge(kind, work / kind, prompts(kind, afriqa(data, max(1, judged // len(LANGS)))))
        print(f"\n{kind}: {passages} passages × {len(LANGS)} languages × {N} queries, {THREADS} threads")
        print(f"{'':26}  queries/s  first tokens, s  decoding, s    MiB  greedy equal   log p")
        for name in contenders:
            took, read = statistics.median(whole[name]), statistics.median(first[name])
            equal = sum(
                a.strip() == b.strip() for a, b in zip(greedy[name], greedy.get("transformers fp32", ()), strict=False)
            )
            share = f"{equal}/{len(greedy[name])}" if "transformers fp32" in greedy else "–"
            print(
                f"{name:26}{count / took:>11.2f}{read:>17.2f}{took - read:>13.2f}{memory[name]:>7}"
                f"{share:>14}{score(greedy[name]):>8.3f}"
            )


if __name__ == "__main__":
    main()
