"""How well does tuning without labels agree with labels? On XQuAD's 240 paragraphs, where human questions exist.

    python benchmarks/label_free.py --data-dir DATA --work /tmp/label-free

First table: the α (default pooling and λ) with the highest value by each way of asking without labels, per metric, and
MRR@10 of all human questions at the α that MRR@10 preferred.

one at a time    a language's query is held out and asked, all else folded in
other languages  the same, but only queries of other languages are folded in
same place       held out at the same place in every language: what `tune` asks

Second: `xqg-vdb tune` as it is, with the human questions and without: what it chooses, and what that is worth to the
human questions. Third: a trap: only the first 70 passages have queries, and only they are asked for. Fourth: does the
order of the languages agree (Spearman's rank correlation), as `audit` needs?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from human_queries import RECORDED
from scipy.stats import spearmanr

from xqg_vdb import Encoder
from xqg_vdb.bench.material import prepare
from xqg_vdb.datasets import data_folder, load_task
from xqg_vdb.fusion import Sums
from xqg_vdb.metrics import parse_metrics
from xqg_vdb.models import ensure_encoder
from xqg_vdb.query_vectors import QueryVectors, encode_query_files
from xqg_vdb.tuning.halves import ALPHAS, Choice, Half
from xqg_vdb.tuning.holding import hold_out
from xqg_vdb.tuning.material import Asked, Material
from xqg_vdb.tuning.pool import Pool
from xqg_vdb.tuning.search import choose
from xqg_vdb.tuning.sweep import Setting
from xqg_vdb.types import Recipe, Vectors

METRICS = ("R@1", "MRR@10", "R@10")
WITH_QUERIES = 70


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Encoded texts are kept here.")
@click.option("--encoder", "model", default="starter", show_default=True)
@click.option("--queries", type=click.Path(path_type=Path), default=RECORDED, help="The generated queries.")
def main(data_dir: Path | None, work: Path, model: str, queries: Path) -> None:
    """Print the three comparisons."""
    with Encoder(ensure_encoder(model, report=lambda line: click.echo(line, err=True))) as encoder:
        found = prepare(load_task("xquad", data_folder(data_dir)), encoder=encoder, folder=work)
        ids = [passage.id for passage in found.passages]
        flat = encode_query_files([queries], ids, encoder=encoder, folder=work)
        held, rest = hold_out(flat, ids)
        asked = found.task.queries
        human = Asked(
            [query.id for query in asked], np.array(found.question_vectors), [str(query.lang) for query in asked],
            found.task.qrels,
        )  # fmt: skip
        labels = Material(pool(ids, found.passage_vectors, flat), human, encoder, False)
        pseudo = Material(pool(ids, found.passage_vectors, rest), pseudo_questions(held, ids), encoder, True)
    curves(labels, pseudo, flat, held, rest)
    tuned(labels, pseudo)
    trap(labels, flat)
    languages(labels, pseudo)


def pool(ids: list[str], passages: Vectors, queries: QueryVectors) -> Pool:
    """All passages, with these queries."""
    return Pool(ids, np.array(passages), lambda n: queries.sums(passages=len(ids), n=n), int(queries.index.max()) + 1)


def pseudo_questions(held: QueryVectors, ids: list[str], *, lang: str | None = None) -> Asked:
    """Held-out queries as questions, of one language or of all."""
    rows = [i for i, own in enumerate(held.lang.tolist()) if lang in (None, own)]
    names = [f"{ids[held.owner[i]]}/{held.lang[i]}" for i in rows]
    qrels = {name: {ids[held.owner[i]]: 1} for name, i in zip(names, rows, strict=True)}
    return Asked(names, held.vectors[rows], held.lang[rows].tolist(), qrels)


def values(material: Material, metric: str, sums: Sums) -> list[float]:
    """Macro mean of all questions at every α."""
    (parsed,) = parse_metrics([metric])
    half = Half(material, np.arange(len(material.asked.ids)), parsed)
    points = [Setting(alpha, material.encoder.calibration) for alpha in ALPHAS]
    return [float(value) for value in half.values(sums, Recipe(), points)]


def curves(labels: Material, pseudo: Material, flat: QueryVectors, held: QueryVectors, rest: QueryVectors) -> None:
    """The preferred α of each way."""
    ids, size = list(labels.pool.ids), len(labels.pool.ids)
    every, less = flat.sums(passages=size), rest.sums(passages=size)

    def by_language(metric: str, *, own: bool) -> list[float]:
        rows = []
        for lang in held.langs:
            one = replace(pseudo, asked=pseudo_questions(held, ids, lang=lang))
            sums = {code: (less if code == lang else every)[code] for code in every if own or code != lang}
            rows.append(values(one, metric, sums))
        return list(np.mean(rows, axis=0))

    ways = {
        "human questions": {metric: values(labels, metric, every) for metric in METRICS},
        "one at a time": {metric: by_language(metric, own=True) for metric in METRICS},
        "other languages": {metric: by_language(metric, own=False) for metric in METRICS},
        "same place": {metric: values(pseudo, metric, less) for metric in METRICS},
    }
    truth = ways["human questions"]["MRR@10"]
    click.echo("\n| α preferred by | " + " | ".join(METRICS) + " | human MRR@10 there |\n|---|---|---|---|---|")
    for name, found in ways.items():
        best = {metric: int(np.argmax(np.round(curve, 9))) for metric, curve in found.items()}
        cells = " | ".join(f"{ALPHAS[best[metric]]:g}" for metric in METRICS)
        click.echo(f"| {name} | {cells} | {truth[best['MRR@10']]:.3f} |")
    default = ALPHAS.index(Recipe().alpha)
    click.echo(f"| the default recipe, α = {Recipe().alpha:g} | | | | {truth[default]:.3f} |")
    click.echo(f"\n{len(labels.asked.ids)} human questions, {len(pseudo.asked.ids)} pseudo-questions")


def tuned(labels: Material, pseudo: Material) -> None:
    """What `tune` chooses by MRR@10 either way, on all human questions."""
    (metric,) = parse_metrics(["MRR@10"])
    half = Half(labels, np.arange(len(labels.asked.ids)), metric)
    sums = labels.pool.sums(None)
    strength = labels.encoder.calibration
    rows = {"plain": (Recipe(alpha=0.0), 0.0), "calibrated": (Recipe(alpha=0.0), strength)}
    rows["default"] = (Recipe(), strength)
    for name, material in (("chosen with labels", labels), ("chosen without", pseudo)):
        chosen = choose(material, metric=metric).chosen
        rows[f"{name}: {_words(chosen)}"] = (chosen.recipe, chosen.strength)
    click.echo("\nMRR@10 of the human questions")
    for name, (recipe, strength) in rows.items():
        click.echo(f"{half.value(sums, recipe, strength):.3f}  {name}")


def trap(labels: Material, flat: QueryVectors) -> None:
    """Tune with labels where those passages alone have queries that are asked for."""
    (metric,) = parse_metrics(["MRR@10"])
    ids, human = list(labels.pool.ids), labels.asked
    few = flat.owner < WITH_QUERIES
    own = QueryVectors(flat.vectors[few], flat.owner[few], flat.index[few], flat.lang[few], 0)
    rows = [i for i, qid in enumerate(human.ids) if next(iter(human.qrels[qid])) in set(ids[:WITH_QUERIES])]
    names = [human.ids[i] for i in rows]
    asked = Asked(names, human.vectors[rows], [human.langs[i] for i in rows], {one: human.qrels[one] for one in names})
    some = Material(pool(ids, labels.pool.passages, own), asked, labels.encoder, False)
    chosen = choose(some, metric=metric).chosen
    fair = Material(labels.pool, asked, labels.encoder, False)
    bare = Recipe(alpha=0.0), labels.encoder.calibration
    rate = {name: Half(one, np.arange(len(rows)), metric) for name, one in (("some", some), ("all", fair))}
    click.echo(f"\nQueries for {WITH_QUERIES} of {len(ids)} passages, those asked for: {_words(chosen)}")
    click.echo(f"{rate['some'].value(some.pool.sums(None), *bare):.3f}  calibrated")
    click.echo(f"{rate['some'].value(some.pool.sums(None), chosen.recipe, chosen.strength):.3f}  chosen")
    click.echo(f"{rate['all'].value(fair.pool.sums(None), chosen.recipe, chosen.strength):.3f}  all have queries")


def _words(chosen: Choice) -> str:
    own = chosen.recipe
    pooling = f"shrunk{' centred' if own.center else ''}, k = {own.shrink:g}" if own.pool == "shrunk" else own.pool
    return f"{pooling}, α = {own.alpha:g}, λ = {chosen.strength:g}"


def languages(labels: Material, pseudo: Material) -> None:
    """Recall at 1 by language, calibrated and without queries folded in: human questions and pseudo-questions."""
    (metric,) = parse_metrics(["R@1"])

    def by_language(material: Material) -> Mapping[str, float]:
        half = Half(material, np.arange(len(material.asked.ids)), metric)
        found = half.by_id(material.pool.sums(None), Recipe(alpha=0.0), material.encoder.calibration)
        langs = np.array(half.langs)
        rows = np.array([found[qid] for qid in half.ids])
        return {lang: float(rows[langs == lang].mean()) for lang in sorted(set(half.langs))}

    human, generated = by_language(labels), by_language(pseudo)
    shared = sorted(human.keys() & generated.keys())
    rank = float(spearmanr([human[one] for one in shared], [generated[one] for one in shared]).statistic)
    click.echo(f"\nR@1 by language, human / pseudo (Spearman {rank:.2f} over {len(shared)} languages)")
    for lang in sorted(shared, key=lambda one: human[one]):
        click.echo(f"{lang}  {human[lang]:.3f}  {generated[lang]:.3f}")


if __name__ == "__main__":
    main()
