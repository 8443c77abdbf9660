"""What would perfect queries be worth? xQG with people's own questions about a passage in place of generated ones.

    python benchmarks/human_queries.py --data-dir DATA --work /tmp/human

XQuAD has about five human questions to each of its 240 paragraphs, in eleven languages. Every second question of a
paragraph is asked; the others are its "generated queries", so no asked question is folded in, in no language. Rows:

generated     the recorded queries of a 270M generator, all eleven languages (`--queries`).
human         the paragraph's other questions: all eleven languages, one a language, English alone, all languages but
              the asked question's.
human, other  those of another paragraph, rolled by one within the same languages: the content control.

Recipe of `load` (shrunk, centred), questions calibrated by the bank; only α differs, and 0 is calibration alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from xqg_vdb import Encoder
from xqg_vdb.evaluate.datasets import data_folder, load_task
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.matrix import Setting, id_order, judge, sweep
from xqg_vdb.evaluate.metrics import group_means, mean, parse_metrics
from xqg_vdb.evaluate.significance import compare_groups
from xqg_vdb.evaluate.systems import Material, prepare
from xqg_vdb.fusion import Sums, fuse
from xqg_vdb.index.encode import QueryVectors, encode_query_files
from xqg_vdb.models.folder import encoder_folder
from xqg_vdb.types import Recipe, Vectors

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
TESTED = 0.3
"""The α at which rows are tested against calibration alone and against each other."""

METRICS = parse_metrics(("R@1", "MRR@10"))
RECORDED = Path(__file__).parent / "queries" / "xquad-en.starter.filtered.jsonl"
Values = dict[tuple[str, float], dict[str, float]]
"""(metric, α) -> question id -> value"""


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Encoded texts are kept here.")
@click.option("--encoder", "model", default="starter", show_default=True)
@click.option("--queries", type=click.Path(path_type=Path), default=RECORDED, help="The generated queries.")
def main(data_dir: Path | None, work: Path, model: str, queries: Path) -> None:
    """Print R@1 and MRR@10 by α, and the differences at α = 0.3."""
    with Encoder(encoder_folder(model, say=lambda line: click.echo(line, err=True))) as encoder:
        material = prepare(load_task("xquad", data_folder(data_dir)), encoder=encoder, folder=work)
        size, ids = len(material.passages), [passage.id for passage in material.passages]
        asked, human = halves(material)
        generated = encode_query_files([queries], ids, encoder=encoder, folder=work).sums(passages=size)
        own, first = human.sums(passages=size), human.sums(passages=size, n=1)
        # rolled by one: neighbours are of the same article, as a careless generator's queries would be
        other = {lang: (np.roll(rows, 1, axis=0), np.roll(counts, 1)) for lang, (rows, counts) in own.items()}
        found: dict[str, Values] = {}
        for lang in human.langs:
            rest = {one: table for one, table in own.items() if one != lang}
            systems = {"generated": generated, "human": own, "human, one a language": first}
            systems |= {"human, English": {"en": own["en"]}, "human, all but its own": rest, "human, other": other}
            for name, sums in systems.items():
                values = measured(material, asked[lang], lang, sums, encoder)
                for key, several in values.items():
                    found.setdefault(name, {}).setdefault(key, {}).update(several)
    show(found, material.task)


def halves(material: Material) -> tuple[dict[str, list[int]], QueryVectors]:
    """Rows of the asked questions by language, and the other half as if it had been generated."""
    task = material.task
    rows = {passage.id: row for row, passage in enumerate(material.passages)}
    owner = [rows[next(iter(task.qrels[query.id]))] for query in task.queries]
    asked: dict[str, list[int]] = {}
    kept: list[int] = []
    index: list[int] = []
    turn: dict[tuple[str, int], int] = {}  # the languages list a paragraph's questions in one order
    for i, query in enumerate(task.queries):
        lang = str(query.lang)
        turn[lang, owner[i]] = turn.get((lang, owner[i]), -1) + 1
        if turn[lang, owner[i]] % 2:
            kept.append(i)
            index.append(turn[lang, owner[i]] // 2)
        else:
            asked.setdefault(lang, []).append(i)
    langs = np.array([str(task.queries[i].lang) for i in kept])
    vectors = np.array(material.question_vectors[kept])
    return asked, QueryVectors(vectors, np.array(owner)[kept], np.array(index), langs, 0)


def measured(material: Material, asked: Sequence[int], lang: str, sums: Sums, encoder: Encoder) -> Values:
    """Values of the asked questions of one language at every α."""
    ids = [material.task.queries[i].id for i in asked]
    passage_ids = [passage.id for passage in material.passages]
    judged = judge(material.task.qrels, query_ids=ids, passage_ids=passage_ids)
    table, questions = encoder.language_means, material.question_vectors[list(asked)]

    def fused(alpha: float) -> Vectors:
        recipe = Recipe(alpha=alpha)
        return fuse(material.passage_vectors, sums, recipe=recipe, means=table.means, normalize=True)

    settings = [Setting(alpha, encoder.calibration) for alpha in ALPHAS]
    swept = {
        metric: sweep(
            settings, questions, fused, table=table, langs=[lang] * len(asked), judged=judged, metric=metric,
            tie_order=id_order(passage_ids),
        )
        for metric in METRICS
    }  # fmt: skip
    return {
        (str(metric), alpha): dict(zip(ids, values.tolist(), strict=True))
        for metric, rows in swept.items()
        for alpha, values in zip(ALPHAS, rows, strict=True)
    }


def show(found: dict[str, Values], task: RetrievalTask) -> None:
    """A table per metric, and the tests."""
    for metric in map(str, METRICS):
        click.echo(f"\n{metric} by α\n\n| | " + " | ".join(f"{alpha:g}" for alpha in ALPHAS) + " |")
        click.echo("|---|" + "---|" * len(ALPHAS))
        for name, values in found.items():
            cells = (mean(group_means(values[metric, alpha], groups=task.groups)) for alpha in ALPHAS)
            click.echo(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    click.echo(f"\nDifferences at α = {TESTED:g} (paired sign-flip test over all languages)\n")
    pairs = [(name, name, 0.0) for name in found]  # against calibration alone
    pairs += [("human", "generated", TESTED), ("human", "human, other", TESTED)]
    pairs += [("human", f"human, {less}", TESTED) for less in ("one a language", "English", "all but its own")]
    for metric in map(str, METRICS):
        for system, baseline, alpha in pairs:
            macro = compare_groups(
                found[baseline][metric, alpha], found[system][metric, TESTED], groups=task.groups,
                clusters=task.clusters(),
            ).macro  # fmt: skip
            against = baseline if alpha else "calibration alone"
            click.echo(f"{metric} {system} - {against}: {macro.difference:+.3f}, p = {macro.p_permutation:.4f}")


if __name__ == "__main__":
    main()
