"""Miniature benchmarks in their publishers' formats, whose words the hashing encoder knows, and suites over them."""

from __future__ import annotations

import json
import random

import numpy as np

from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.evaluate.run import run_suite
from xqg_vdb.evaluate.workbench import Workbench
from xqg_vdb.testing import HashEncoder

WORDS = [f"w{i}" for i in range(60)]
DIM = 32


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_afriqa(folder, *, per_lang=12, seed=0, langs=("hau", "zul")):
    """Dev files of some languages; a question shares words with its passage, and has one of its language."""
    rng = random.Random(seed)
    place = folder / "afriqa"
    place.mkdir(parents=True, exist_ok=True)
    for lang in langs:
        rows = []
        for number in range(per_lang):
            context = sentence(rng, 9)
            words = context.split()
            question = " ".join([*rng.sample(words, 3), sentence(rng, 2), f"{lang}word"])
            row = {"id": number, "title": f"title {number} {lang}", "context": context, "question_lang": question}
            row |= {"question_translated": question, "answer_pivot": {"text": [words[0]], "answer_start": [0]}}
            rows.append(json.dumps(row))
        (place / f"gold_span_passages.afriqa.{lang}.en.dev.json").write_text("\n".join(rows))
    return folder


def write_queries(path, task, *, n=3, langs=("ha", "zu"), seed=1, skip=()):
    """Generated queries about every passage: words of it and a word of the language."""
    rng = random.Random(seed)
    lines = []
    for passage in task.passages:
        if passage.id in skip:
            continue
        words = passage.text.split()
        queries = {lang: [" ".join([*rng.sample(words, 3), f"{lang}word"]) for _ in range(n)] for lang in langs}
        lines.append(json.dumps({"id": passage.id, "generated_queries": queries}))
    path.write_text("\n".join(lines))
    return path


def encoder(*, calibration=0.7):
    """A hashing encoder with a bank of two languages."""
    rng = np.random.default_rng(7)
    means = {lang: rng.standard_normal(DIM).astype(np.float32) * 0.2 for lang in ("ha", "zu")}
    bank = LanguageMeans(means, {"ha": 30, "zu": 30}, "bank")
    return HashEncoder(dim=DIM, calibration=calibration, language_means=bank)


def run(suite, tmp_path, *, made=None, store=None, command="", resamples=200, **options):
    """The report of a suite over the miniature data in `tmp_path`."""
    made, out = made or encoder(), options.pop("out", tmp_path / "out")
    kept = options.pop("vectors", out / "vectors")
    bench = Workbench(suite, lambda name: made, out, kept, tmp_path, **options)
    return run_suite(bench, store=store, command=command, resamples=resamples)


def value(report, system, metric="R@10"):
    return next(r.headline.value for r in report.results if (r.system, r.metric) == (system, metric))
