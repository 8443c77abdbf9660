"""What 8 bits and other engines change in what is found: R@10 beside the fp32 export's, and the change's interval.

    python benchmarks/precision.py                    # the starter, AfriQA and XQuAD, every engine that is installed
    python benchmarks/precision.py --model models/e5-int8 --base models/e5-fp32 --every 5

AfriQA's questions (dev, train) and XQuAD's (every fifth, eleven languages) search the English passages of AfriQA and
XQuAD, once as they are and once calibrated as the folder says. Each row encodes both passages and questions, except the
last ones, where only the passages are another engine's: may they share a collection? Below each is how near its vectors
are.
Intervals: paired bootstrap over questions (95 %), of the mean over languages. Needs the extra `bench`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click
import numpy as np

from xqg_vdb import Encoder
from xqg_vdb.calibration import calibrate
from xqg_vdb.evaluate.datasets import data_folder
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.datasets.xquad import read_xquad
from xqg_vdb.evaluate.significance import compare
from xqg_vdb.models.engine import Engine, engines
from xqg_vdb.models.folder import STARTER, cached_model
from xqg_vdb.types import Vectors

Rows = tuple[Vectors, dict[str, Vectors]]


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with afriqa/ and xquad-r/  [default: XQG_DATA_DIR]"
)
@click.option("--model", type=click.Path(path_type=Path), help="In int8  [default: the starter]")
@click.option("--base", type=click.Path(path_type=Path), help="In fp32  [default: the starter]")
@click.option("--every", type=click.IntRange(min=1), default=5, show_default=True, help="Of XQuAD's questions.")
@click.option("--only", multiple=True, help="Rows, such as 'int8 openvino'  [default: all]")
def main(data_dir: Path | None, model: Path | None, base: Path | None, every: int, only: tuple[str, ...]) -> None:
    """Print R@10 and its change for each precision and engine, plain and calibrated."""
    tasks = read(data_folder(data_dir), every)
    folders = {"fp32": base or cached_model(STARTER, precision="fp32"), "int8": model or cached_model(STARTER)}
    names = [f"{precision} {engine}" for precision in folders for engine in engines()]
    rows: dict[str, Rows] = {}
    for name in names:
        if name == names[0] or not only or name in only:
            click.echo(f"encoding: {name}", err=True)
            precision, engine = name.split(" ")
            rows[name] = encoded(folders[precision], cast(Engine, engine), tasks)
    click.echo(f"{'':48}" + "".join(f"{task.name + ', ' + kind:>40}" for task in tasks for kind in KINDS))
    base_rows = rows[names[0]]
    for name, own in rows.items():
        line(name, tasks, base_rows, own)
        click.echo(f"{'  cosine to the first row, mean and lowest':48}{cosines(base_rows, own):>40}")
    for name, (passages, _) in rows.items():
        if name != names[0] and name.startswith("fp32"):
            line(f"passages {name}, questions {names[0]}", tasks, base_rows, (passages, base_rows[1]))
    eight = f"int8 {engines()[0]}"
    for name, (passages, _) in rows.items():
        if eight in rows and name != eight and name.startswith("int8"):
            line(f"passages {name}, questions {eight}", tasks, rows[eight], (passages, rows[eight][1]))


KINDS = ("plain", "calibrated")


def read(data_dir: Path, every: int) -> list[RetrievalTask]:
    """The tasks; the last has the passages of all."""
    xquad = read_xquad(data_dir, distractors=True)
    asked = [query.id for at, query in enumerate(xquad.queries) if at % every == 0 and query.lang != "en"]
    return [*(read_afriqa(data_dir, split=split) for split in ("dev", "train")), xquad.narrowed(asked)]


def encoded(folder: Path, engine: Engine, tasks: list[RetrievalTask]) -> Rows:
    """Rows of the passages of the last task, which has those of all, and of each task's questions, by name and kind."""
    with Encoder(folder, engine=engine) as encoder:
        questions = {}
        for task in tasks:
            texts, langs = [query.text for query in task.queries], [query.lang for query in task.queries]
            plain = encoder.encode_queries(texts, calibrate=False)
            questions[f"{task.name}, plain"] = plain
            questions[f"{task.name}, calibrated"] = calibrate(
                plain, langs=langs, table=encoder.language_means, strength=encoder.calibration, normalize=True
            )
        return encoder.encode_passages(passage.title_and_text for passage in tasks[-1].passages), questions


def found(task: RetrievalTask, kind: str, rows: Rows, all_ids: list[str]) -> dict[str, float]:
    """Whether each question's passage is among its first ten."""
    kept = {passage.id for passage in task.passages}
    places = np.array([at for at, name in enumerate(all_ids) if name in kept])
    scores = rows[1][f"{task.name}, {kind}"] @ rows[0][places].T
    ten = places[np.argsort(-scores, axis=1, kind="stable")[:, :10]]
    return {
        query.id: float(any(all_ids[at] in task.qrels[query.id] for at in hits))
        for query, hits in zip(task.queries, ten, strict=True)
    }


def cosines(base: Rows, own: Rows) -> str:
    """Of the passages' vectors, and of the plain questions of all tasks, which are shorter and so rounded more."""
    plain = [name for name in base[1] if name.endswith(KINDS[0])]
    questions = np.concatenate([np.einsum("nd,nd->n", base[1][name], own[1][name]) for name in plain])
    passages = np.einsum("nd,nd->n", base[0], own[0])
    parts = (("passages", passages), ("questions", questions))
    return ", ".join(f"{part} {found.mean():.4f} {found.min():.4f}" for part, found in parts)


def line(name: str, tasks: list[RetrievalTask], base: Rows, own: Rows) -> None:
    """R@10, change and interval, for each task and kind."""
    click.echo(f"{name:48}" + "".join(f"{cell:>40}" for cell in cells(tasks, base, own)))


def cells(tasks: list[RetrievalTask], base: Rows, own: Rows) -> Iterator[str]:
    all_ids = [passage.id for passage in tasks[-1].passages]
    for task in tasks:
        for kind in KINDS:
            was, now = (found(task, kind, rows, all_ids) for rows in (base, own))
            change = compare(was, now, groups=task.groups)
            low, high = change.interval or (0.0, 0.0)
            yield f"{change.system:.4f} {change.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
