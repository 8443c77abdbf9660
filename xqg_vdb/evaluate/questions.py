"""What became of every question: `questions.csv` of a run, and the questions won and lost between two runs.

One row a dataset and question: its text, group, cluster, the relevant passages, and of every system the value of each
metric and the first passages that it found, with their texts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.metrics import Average
from xqg_vdb.evaluate.records import Difference
from xqg_vdb.evaluate.report.tables import clean
from xqg_vdb.evaluate.significance import compare_groups
from xqg_vdb.files import disk_errors, write_atomic
from xqg_vdb.types import Passage

NAME = "questions.csv"
_FIRST = ("dataset", "average", "question", "group", "cluster", "text", "relevant", "relevant text")
_SHOWN = 300


@dataclass(frozen=True)
class Asked:
    """What systems did with the questions of one dataset.

    values: system -> metric -> question -> value. first: system -> question -> the first passage that it found.
    """

    dataset: str
    task: RetrievalTask
    passages: Sequence[Passage]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    first: Mapping[str, Mapping[str, str]]


def write_questions(folder: Path, asked: Sequence[Asked]) -> Path:
    """Write `questions.csv`; texts are cut at 300 characters and have no control characters."""
    systems = {s: list(values) for part in asked for s, values in part.values.items()}
    columns = [f"{system} | {metric}" for system, metrics in systems.items() for metric in metrics]
    columns += [f"{system} | {what}" for system in systems for what in ("found", "found text")]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIRST, *dict.fromkeys(columns)], restval="", lineterminator="\n")
    writer.writeheader()
    for part in asked:
        writer.writerows(_rows(part))
    write_atomic(folder / NAME, text.getvalue().encode("utf-8", "replace"))
    return folder / NAME


def _rows(part: Asked) -> Iterator[dict[str, str]]:
    texts, clusters = {p.id: _short(p.title_and_text) for p in part.passages}, part.task.clusters()
    for query in part.task.queries:
        relevant = sorted(d for d, grade in part.task.qrels.get(query.id, {}).items() if grade > 0)
        row = dict(zip(_FIRST, (
            part.dataset, part.task.average, query.id, part.task.groups[query.id], clusters[query.id],
            _short(query.text), " ".join(relevant), texts.get(relevant[0], "") if relevant else "",
        ), strict=True))  # fmt: skip
        for system, values in part.values.items():
            row |= {f"{system} | {m}": repr(of[query.id]) for m, of in values.items() if query.id in of}
            best = part.first[system].get(query.id, "")
            row |= {f"{system} | found": best, f"{system} | found text": texts.get(best, "")}
        yield row


def _short(text: str) -> str:
    return clean(text)[:_SHOWN]


@dataclass(frozen=True)
class Change:
    """One question whose value differs: what was asked, what answers it, and what either system found first."""

    question: str
    group: str
    text: str
    relevant: str
    before: float
    after: float
    found_before: str
    found_after: str


@dataclass(frozen=True)
class Diff:
    """Two runs on the questions that both have: the paired comparison, all questions won and all lost."""

    dataset: str
    metric: str
    before: str
    after: str
    compared: Difference
    won: Sequence[Change]
    lost: Sequence[Change]
    only_one: int


def diff_runs(before: str, after: str, *, metric: str | None = None) -> list[Diff]:
    """Compare two folders of `bench --out`, each `FOLDER` or `FOLDER:SYSTEM`, per dataset that both have.

    Without a system it is the last that both have; without a metric the first that both have. Raises DataError when
    a folder has no questions.csv, or the two have nothing in common.
    """
    (one, first), (other, second) = _read(before), _read(after)
    systems = [name for name in _systems(one) if name in _systems(other)]
    name_before, name_after = first or (systems[-1:] or [""])[0], second or first or (systems[-1:] or [""])[0]
    for name, rows, place in ((name_before, one, before), (name_after, other, after)):
        if name not in _systems(rows):
            raise DataError(f"{place} has no system {name!r}; it has {', '.join(_systems(rows))}: write FOLDER:SYSTEM.")
    shared = [name for name in _metrics(one, name_before) if name in _metrics(other, name_after)]
    wanted = metric or (shared[:1] or [""])[0]
    if wanted not in shared:
        raise DataError(f"the two have no metric {wanted!r} in common; they share {', '.join(shared) or 'none'}.")
    columns = f"{name_before} | {wanted}", f"{name_after} | {wanted}"
    datasets = [d for d in dict.fromkeys(row["dataset"] for row in one) if any(row["dataset"] == d for row in other)]
    parts = [_diff([[r for r in rows if r["dataset"] == d] for rows in (one, other)], columns) for d in datasets]
    if not parts:
        raise DataError(f"{before} and {after} have no dataset in common.")
    return parts


def _read(place: str) -> tuple[list[dict[str, str]], str]:
    """The rows of a folder's questions, and the system that was named behind it."""
    folder, system = place, ""
    if not Path(folder).exists() and ":" in folder:
        folder, _, system = place.rpartition(":")
    path = Path(folder) / NAME
    if not path.is_file():
        raise DataError(f"{folder} is no run: it has no {NAME}; give a folder that `xqg-vdb bench --out` filled.")
    with disk_errors(path):
        text = path.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not set(_FIRST) <= set(rows[0]):
        raise DataError(f"{path} holds no questions of a benchmark; make it again with xqg-vdb bench.")
    return rows, system


def _systems(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [name.rpartition(" | ")[0] for name in rows[0] if name.endswith(" | found")]


def _metrics(rows: Sequence[Mapping[str, str]], system: str) -> list[str]:
    names = [name.removeprefix(f"{system} | ") for name in rows[0] if name.startswith(f"{system} | ")]
    return [name for name in names if name not in ("found", "found text")]


def _diff(runs: Sequence[Sequence[dict[str, str]]], columns: tuple[str, str]) -> Diff:
    one, other = runs
    rows = {row["question"]: row for row in one if row[columns[0]]}
    others = {row["question"]: row for row in other if row[columns[1]]}
    both = [qid for qid in rows if qid in others]
    if not both:
        raise DataError(f"no question of {one[0]['dataset']} is in both; were they asked of the same data?")
    before, after = {q: float(rows[q][columns[0]]) for q in both}, {q: float(others[q][columns[1]]) for q in both}
    average: Average = "groups" if rows[both[0]]["average"] == "groups" else "queries"
    compared = compare_groups(
        before, after, groups={q: rows[q]["group"] for q in both}, clusters={q: rows[q]["cluster"] for q in both},
        average=average,
    )  # fmt: skip
    systems = [column.rpartition(" | ")[0] for column in columns]
    changes = [
        Change(
            q, rows[q]["group"], rows[q]["text"], rows[q]["relevant text"], before[q], after[q],
            rows[q][f"{systems[0]} | found text"], others[q][f"{systems[1]} | found text"],
        )
        for q in both
        if before[q] != after[q]
    ]  # fmt: skip
    return Diff(
        dataset=one[0]["dataset"],
        metric=columns[0].rpartition(" | ")[2],
        before=systems[0],
        after=systems[1],
        compared=compared.macro,
        won=sorted((c for c in changes if c.after > c.before), key=lambda c: c.before - c.after),
        lost=sorted((c for c in changes if c.after < c.before), key=lambda c: c.after - c.before),
        only_one=len(rows.keys() ^ others.keys()),
    )


def write_changes(path: Path, diffs: Sequence[Diff]) -> None:
    """Write the questions that were won and lost as CSV, with their texts."""
    text = io.StringIO()
    names = list(Change.__dataclass_fields__)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "metric", "change", *names])
    for diff in diffs:
        for what, changes in (("won", diff.won), ("lost", diff.lost)):
            writer.writerows([diff.dataset, diff.metric, what, *(getattr(c, name) for name in names)] for c in changes)
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))
