"""Load all English AfriQA gold passages and ask the dev questions in their own languages: what calibration gains.

    python examples/afriqa.py --data-dir ../shared/data --encoder starter

3,120 passages, 1,579 questions in six African languages and their human English translations. No generated queries: the
lines differ only in what is subtracted from the question's vector. Reads the publisher's files; downloads nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import orjson

from xqg_vdb import Encoder, Retriever, load
from xqg_vdb.evaluate.datasets import data_folder
from xqg_vdb.evaluate.datasets.afriqa import read_afriqa
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.models.folder import encoder_folder
from xqg_vdb.store import open_store
from xqg_vdb.types import Question, Search

K = 10


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with afriqa/  [default: XQG_DATA_DIR or ../shared/data]"
)
@click.option("--encoder", "model", default="starter", show_default=True)
@click.option("--path", type=click.Path(path_type=Path), help="Keep the collection here  [default: a temporary folder]")
@click.option("--json", "as_json", is_flag=True)
def main(data_dir: Path | None, model: str, path: Path | None, as_json: bool) -> None:
    """Print R@1, R@10 and MRR@10 for plain and calibrated questions."""
    folder = data_folder(data_dir)
    dev, train = read_afriqa(folder, split="dev"), read_afriqa(folder, split="train")
    english = read_afriqa(folder, split="dev", translated=True)
    with tempfile.TemporaryDirectory() as scratch:
        place = path or Path(scratch)
        corpus, questions = Path(scratch) / "corpus.jsonl", Path(scratch) / "train-questions.jsonl"
        write_corpus(corpus, dev)
        write_questions(questions, train.queries)
        store = open_store(place)
        with Encoder(encoder_folder(model, say=lambda line: click.echo(line, err=True))) as encoder:
            start = time.perf_counter()
            options = {"encoder": encoder, "store": store, "options": LoadOptions(build=place / "vectors")}
            collection = load(corpus, "afriqa", **options).collection
            click.echo(f"loaded {collection.count()} passages in {time.perf_counter() - start:.0f} s", err=True)
            from_train = load(corpus, "afriqa-train-questions", questions=questions, **options).collection
            rows = {
                "plain": measure(Retriever(encoder, collection, calibration=0.0), dev),
                "calibrated: question bank": measure(Retriever(encoder, collection), dev),
                "calibrated: language detected": measure(Retriever(encoder, collection), forget_languages(dev)),
                "calibrated: one mean for all": measure(
                    Retriever(encoder, collection), forget_languages(dev, to="und")
                ),
                "calibrated: train questions": measure(Retriever(encoder, from_train), dev),
                "English questions, plain": measure(Retriever(encoder, collection, calibration=0.0), english),
                "English questions, calibrated": measure(Retriever(encoder, collection), as_english(english)),
            }
            strength = encoder.calibration
        store.close()
    if as_json:
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    show(rows, questions=len(dev.queries), strength=strength)


def measure(retriever: Retriever, task: RetrievalTask) -> dict[str, float]:
    """Micro R@10 and MRR@10 over questions; macro (over languages) R@1 and R@10; R@10 per language."""
    found = retriever.run(task.queries, Search(K))
    ranks = {
        a.question.id: next((r for r, hit in enumerate(a.hits, 1) if task.qrels[a.question.id].get(hit.id)), None)
        for a in found
    }
    groups = sorted({task.groups[q.id] for q in task.queries})
    own = {group: [ranks[q.id] for q in task.queries if task.groups[q.id] == group] for group in groups}

    def recall(of: Sequence[int | None], k: int) -> float:
        return sum(rank is not None and rank <= k for rank in of) / len(of)

    return {
        "micro R@10": recall(list(ranks.values()), 10),
        "macro R@1": sum(recall(of, 1) for of in own.values()) / len(own),
        "macro R@10": sum(recall(of, 10) for of in own.values()) / len(own),
        "MRR@10": sum(1 / rank for rank in ranks.values() if rank) / len(ranks),
        **{group: recall(of, 10) for group, of in own.items()},
    }


def forget_languages(task: RetrievalTask, *, to: str | None = None) -> RetrievalTask:
    """The same questions, their language not told (None: detect it) or told to be unknown."""
    return replace(task, queries=[Question(query.id, query.text, to) for query in task.queries])


def as_english(task: RetrievalTask) -> RetrievalTask:
    """The translated questions, told to be English."""
    return replace(task, queries=[Question(query.id, query.text, "en") for query in task.queries])


def write_corpus(path: Path, task: RetrievalTask) -> None:
    """The passages as JSON lines, the format that `xqg-vdb load` reads."""
    records = ({"id": p.id, "title": p.title, "text": p.text, "lang": "en"} for p in task.passages)
    path.write_bytes(b"\n".join(orjson.dumps(record) for record in records))


def write_questions(path: Path, queries: Sequence[Question]) -> None:
    """The train questions as JSON lines, for `load --questions`."""
    path.write_bytes(b"\n".join(orjson.dumps({"id": q.id, "text": q.text, "lang": q.lang}) for q in queries))


def show(rows: dict[str, dict[str, float]], *, questions: int, strength: float) -> None:
    """One line per system."""
    columns = list(rows["plain"])
    click.echo(f"AfriQA dev, {questions} questions, λ = {strength}; the last columns are R@10 per language\n")
    click.echo(f"{'':31s}" + "".join(f"{name:>11s}" for name in columns))
    for name, row in rows.items():
        click.echo(f"{name:31s}" + "".join(f"{row[column]:11.3f}" for column in columns))


if __name__ == "__main__":
    main()
