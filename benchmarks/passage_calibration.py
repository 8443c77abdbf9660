"""Passage-side calibration where it should help and where it might hurt: `load --passage-calibration` in memory.

    python benchmarks/passage_calibration.py --data-dir DATA --work /tmp/passages

alone      AfriQA: one language, nothing to gain.
same       XQuAD's 240 paragraphs in English, German and Arabic: the languages speak of the same things.
different  AfriQA's English passages with XQuAD's paragraphs in one other language: the mean of a language holds its
           topics, too, and the small language has 240 of 3,360 passages.
few        XQuAD-R with five of its eleven languages measured on n passages each, by `PRIOR`: one question in 40.

λq is the strength for questions (0, and the encoder's), λp that for passages. Recall is a mean over question languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from xqg_vdb import calibration as passage_calibration
from xqg_vdb.calibration import calibrate
from xqg_vdb.evaluate.datasets import data_folder, load_task
from xqg_vdb.evaluate.datasets.task import find_file
from xqg_vdb.evaluate.datasets.xquad import read_squad
from xqg_vdb.evaluate.matrix import row_blocks
from xqg_vdb.evaluate.systems import Material, prepare
from xqg_vdb.index.encode import encode_cached
from xqg_vdb.models.encoder import Encoder
from xqg_vdb.models.folder import encoder_folder
from xqg_vdb.types import Vectors

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FEW = ("ar", "de", "el", "hi", "th")


@dataclass(frozen=True)
class Asked:
    """Questions (q, dim) with their languages, and the passages that answer each, (q, copies)."""

    name: str
    vectors: Vectors
    langs: list[str]
    targets: NDArray[np.int64]


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Encoded texts are kept here.")
@click.option("--encoder", "model", default="starter", show_default=True)
def main(data_dir: Path | None, work: Path, model: str) -> None:
    """Print a table per pool."""
    data = data_folder(data_dir)
    with Encoder(encoder_folder(model, say=lambda line: click.echo(line, err=True))) as encoder:
        afriqa, xquad = (prepare(load_task(name, data), encoder=encoder, folder=work) for name in ("afriqa", "xquad"))
        copies = {"en": np.array(xquad.passage_vectors)}
        for lang in ("de", "ar"):
            found = read_squad(find_file(data, f"xquad-r/{lang}.json", source="XQuAD-R"))
            texts = [f"{one.title.replace('_', ' ')} {one.context}" for one in found]
            copies[lang] = np.array(encode_cached(texts, encoder=encoder, kind="passages", folder=work))
        n, size = len(afriqa.passages), len(xquad.passages)
        english = np.array(afriqa.passage_vectors)
        show("alone: AfriQA", english, ["en"] * n, [asked("AfriQA", afriqa, 0)], encoder)
        pool = np.concatenate([copies[lang] for lang in ("en", "de", "ar")])
        langs = [lang for lang in ("en", "de", "ar") for _ in range(size)]
        each = [asked(f"the {lang} copy", xquad, size * i, k=3) for i, lang in enumerate(("en", "de", "ar"))]
        show("same: XQuAD en, de, ar", pool, langs, each, encoder)
        for lang in ("de", "ar"):
            both, whose = np.concatenate([english, copies[lang]]), ["en"] * n + [lang] * size
            questions = [asked("AfriQA", afriqa, 0), asked("XQuAD", xquad, n)]
            show(f"different: AfriQA en, XQuAD {lang}", both, whose, questions, encoder)
        show_few(prepare(load_task("xquad-r", data), encoder=encoder, folder=work), encoder)


def asked(name: str, material: Material, first: int, *, k: int = 10) -> Asked:
    """The questions of a task whose passages start at row `first` of the pool, with one right passage each."""
    rows = {passage.id: first + row for row, passage in enumerate(material.passages)}
    task = material.task
    targets = np.array([rows[next(iter(task.qrels[query.id]))] for query in task.queries])
    return Asked(f"{name} R@1 R@{k}", np.array(material.question_vectors), [str(q.lang) for q in task.queries], targets)


def show(title: str, pool: Vectors, langs: Sequence[str], groups: Sequence[Asked], encoder: Encoder) -> None:
    """Recall at 1 and k for every pair of strengths."""
    click.echo(f"\n{title}\n\n| λq | λp | " + " | ".join(group.name for group in groups) + " |")
    click.echo("|---|---|" + "---|" * len(groups))
    table = passage_calibration.passage_means([(pool, langs)])
    for strength in (0.0, encoder.calibration):
        for own in STRENGTHS:
            passages = passage_calibration.calibrate_passages(
                pool, langs=langs, table=table, strength=own, normalize=True
            )
            cells = []
            for group in groups:
                questions = calibrate(
                    group.vectors, langs=group.langs, table=encoder.language_means, strength=strength, normalize=True
                )
                rank, k = ranks(questions, passages, group.targets), int(group.name.rsplit("@", 1)[1])
                cells.append(f"{macro(rank <= 1, group.langs):.3f} {macro(rank <= k, group.langs):.3f}")
            click.echo(f"| {strength:g} | {own:g} | " + " | ".join(cells) + " |")


def ranks(questions: Vectors, passages: Vectors, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each question's passage, (q,), from 1."""
    found = np.empty(len(questions), dtype=np.int64)
    for block in row_blocks(len(questions), len(passages)):
        scores = questions[block] @ passages.T
        found[block] = 1 + (scores > np.take_along_axis(scores, targets[block, None], axis=1)).sum(axis=1)
    return found


def macro(hits: NDArray[np.bool_], langs: Sequence[str]) -> float:
    """Mean over the languages of the share of hits."""
    names = np.array(langs)
    return float(np.mean([hits[names == lang].mean() for lang in sorted(set(langs))]))


def show_few(material: Material, encoder: Encoder) -> None:
    """mAP@20 when five languages' means come from n passages each, by the prior."""
    chosen = slice(None, None, 40)
    queries = material.task.queries[chosen]
    questions = calibrate(
        np.array(material.question_vectors[chosen]), langs=[query.lang for query in queries],
        table=encoder.language_means, strength=encoder.calibration, normalize=True,
    )  # fmt: skip
    pool, langs = np.array(material.passage_vectors), np.array([passage.lang for passage in material.passages])
    relevant = np.array([[passage.id in material.task.qrels[q.id] for passage in material.passages] for q in queries])
    priors, rng, usual = (0.5, 2, 5, 10, 20, 50), np.random.default_rng(0), passage_calibration.PRIOR
    click.echo("\nfew: XQuAD-R\n\n| passages | " + " | ".join(f"k = {prior:g}" for prior in priors) + " |")
    click.echo("|---|" + "---|" * len(priors))
    few = [lang for lang in FEW if lang in langs]
    for n in (n for n in (1, 4, 16, 64) if all((langs == lang).sum() >= n for lang in few)):
        kept = ~np.isin(langs, few)
        for lang in few:
            kept[rng.choice(np.flatnonzero(langs == lang), n, replace=False)] = True
        cells = []
        for prior in priors:
            passage_calibration.PRIOR = prior
            table = passage_calibration.passage_means([(pool[kept], langs[kept].tolist())])
            cells.append(average_precision(questions, moved(pool, langs, table), relevant))
        passage_calibration.PRIOR = usual
        click.echo(f"| {n} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    table = passage_calibration.passage_means([(pool, langs.tolist())])
    whole = moved(pool, langs, table)
    untouched = np.where(np.isin(langs, FEW)[:, None], pool, whole)
    for name, rows in (("all", whole), ("five languages left as they are", untouched), ("plain", pool)):
        click.echo(f"\n{name}: {average_precision(questions, rows, relevant):.3f}")


def moved(pool: Vectors, langs: NDArray[np.str_], table: passage_calibration.LanguageMeans) -> Vectors:
    """The passages at λp = 1."""
    return passage_calibration.calibrate_passages(pool, langs=langs.tolist(), table=table, strength=1.0, normalize=True)


def average_precision(questions: Vectors, passages: Vectors, relevant: NDArray[np.bool_]) -> float:
    """mAP@20."""
    scores = questions @ passages.T
    best = np.argsort(-scores, axis=1)[:, :20]
    hits = np.take_along_axis(relevant, best, axis=1)
    found = (hits * np.cumsum(hits, axis=1) / np.arange(1, 21)).sum(axis=1)
    return float(np.mean(found / np.minimum(relevant.sum(axis=1), 20)))


if __name__ == "__main__":
    main()
