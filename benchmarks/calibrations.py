"""Other corrections of the language gap beside centring: what each gains, from the same vectors.

    python benchmarks/calibrations.py --data-dir DATA --work /tmp/calibrations afriqa xquad xquad-r

All are estimated from the shipped question bank (36 general questions a language), so that they could ship anywhere.

centring   q - λ·μ_lang: what `search` does.
LIR        the first r right singular vectors of the language's question vectors are projected out of the question
           (Yang et al. 2021, arXiv 2109.04727); their first component is nearly μ's direction.
CSLS       q·p - β·r(p), r(p) the mean similarity of p to its 10 nearest bank questions of the question's language
           (Conneau et al. 2018 with β = 1/2): one extra component of the passage vector, per language.
passages   both sides: the passage's own language is corrected as well (pools of several languages only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from xqg_vdb import Encoder
from xqg_vdb.calibration import calibrate_passages, passage_means
from xqg_vdb.evaluate.datasets import data_folder, load_task
from xqg_vdb.evaluate.matrix import best_columns, id_order, judge, per_row, row_blocks
from xqg_vdb.evaluate.metrics import group_means, mean, parse_metrics
from xqg_vdb.evaluate.systems import Material, prepare
from xqg_vdb.fusion import unit_rows
from xqg_vdb.index.encode import encode_cached
from xqg_vdb.models.folder import encoder_folder
from xqg_vdb.texts.languages import question_bank

NEAREST = 10
Score = Callable[[slice], NDArray[np.float32]]


@click.command()
@click.argument("datasets", nargs=-1, required=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Encoded texts are kept here.")
@click.option("--encoder", "model", default="starter", show_default=True)
def main(datasets: Sequence[str], data_dir: Path | None, work: Path, model: str) -> None:
    """Print one table per dataset."""
    with Encoder(encoder_folder(model, say=lambda line: click.echo(line, err=True))) as encoder:
        for name in datasets:
            task = load_task(name, data_folder(data_dir))
            material = prepare(task, encoder=encoder, folder=work)
            langs = sorted({str(query.lang) for query in task.queries} & set(question_bank()))
            bank = {lang: _bank(lang, encoder, work) for lang in langs}
            show(material, bank, strength=encoder.calibration)


def _bank(lang: str, encoder: Encoder, work: Path) -> NDArray[np.float32]:
    texts = question_bank()[lang]
    return np.array(encode_cached(texts, encoder=encoder, kind="queries", folder=work))


def show(material: Material, bank: dict[str, NDArray[np.float32]], *, strength: float) -> None:
    """Measure every correction on one dataset."""
    task = material.task
    asked = np.array([str(query.lang) for query in task.queries])
    several = len({passage.lang for passage in material.passages}) > 1
    questions, passages = np.array(material.question_vectors), np.array(material.passage_vectors)
    systems = {"plain": (questions, passages, 0.0)}
    for value in sorted({0.5, strength, 1.0}):
        systems[f"centring λ = {value}"] = (centred(questions, asked, bank, value), passages, 0.0)
    for rank in (1, 2, 4):
        systems[f"LIR r = {rank}"] = (projected(questions, asked, bank, rank), passages, 0.0)
    for beta in (0.25, 0.5):
        systems[f"CSLS β = {beta}"] = (questions, passages, beta)
    systems[f"centring λ = {strength} + CSLS β = 0.25"] = (centred(questions, asked, bank, strength), passages, 0.25)
    if several:
        own = np.array([passage.lang for passage in material.passages])
        table = passage_means([(passages, own.tolist())])
        for value in (0.8, 1.0):
            both = calibrate_passages(passages, langs=own.tolist(), table=table, strength=value, normalize=True)
            systems[f"centring λ = {strength}, passages {value}"] = (
                centred(questions, asked, bank, strength),
                both,
                0.0,
            )
        lir = projected(passages, own, {lang: passages[own == lang] for lang in sorted(set(own))}, 1)
        systems["LIR r = 1, passages too"] = (projected(questions, asked, bank, 1), lir, 0.0)
    ranking = ("R", "MRR", "mAP", "Accuracy")  # the others look at languages, and here are only ranks
    metrics = parse_metrics([name for name in task.metrics if "@" in name and name.partition("@")[0] in ranking])
    click.echo(f"\n{task.name}: {len(task.queries)} questions, {len(material.passages)} passages\n")
    click.echo(f"| {'':42s} | " + " | ".join(map(str, metrics)) + " |\n|---|" + "---|" * len(metrics))
    judged = judge(task.qrels, query_ids=[q.id for q in task.queries], passage_ids=[p.id for p in material.passages])
    order = id_order([passage.id for passage in material.passages])
    for name, (q, p, beta) in systems.items():
        hubs = {lang: hub_term(rows, p) for lang, rows in bank.items()} if beta else {}
        rows = np.concatenate([
            best_columns(_scores(q, p, asked, hubs, beta, block), k=max(m.k for m in metrics), tie_order=order)
            for block in row_blocks(len(q), len(p))
        ])  # fmt: skip
        values = []
        for metric in metrics:
            found = dict(zip([query.id for query in task.queries], per_row(rows, judged, metric=metric), strict=True))
            values.append(mean(group_means(found, groups=task.groups)) if task.average == "groups" else mean(found))
        click.echo(f"| {name:42s} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def centred(
    rows: NDArray[np.float32], langs: NDArray[np.str_], bank: dict[str, NDArray[np.float32]], strength: float
) -> NDArray[np.float32]:
    """Unit rows of q - λ·μ."""
    moved = rows.copy()
    for lang, own in bank.items():
        moved[langs == lang] -= np.float32(strength) * own.mean(axis=0)
    return unit_rows(moved)


def projected(
    rows: NDArray[np.float32], langs: NDArray[np.str_], bank: dict[str, NDArray[np.float32]], rank: int
) -> NDArray[np.float32]:
    """Rows without their components along the first `rank` right singular vectors of their language, unit rows."""
    moved = rows.copy()
    for lang, own in bank.items():
        axes = np.linalg.svd(own, full_matrices=False)[2][:rank]
        chosen = langs == lang
        moved[chosen] -= (moved[chosen] @ axes.T) @ axes
    return unit_rows(moved)


def hub_term(questions: NDArray[np.float32], passages: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean similarity of each passage to its nearest questions, (n,)."""
    similar = passages @ questions.T
    nearest = min(NEAREST, similar.shape[1])
    return np.partition(similar, -nearest, axis=1)[:, -nearest:].mean(axis=1)


def _scores(
    questions: NDArray[np.float32],
    passages: NDArray[np.float32],
    langs: NDArray[np.str_],
    hubs: dict[str, NDArray[np.float32]],
    beta: float,
    block: slice,
) -> NDArray[np.float32]:
    scores = questions[block] @ passages.T
    if beta:
        scores -= np.float32(beta) * np.stack([hubs[lang] for lang in langs[block]])
    return scores


if __name__ == "__main__":
    main()
