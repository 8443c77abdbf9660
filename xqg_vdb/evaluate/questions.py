"""What became of every question: `questions.csv` of a run, and the questions won and lost between two runs.

One row a dataset and question: its text, group, cluster, the relevant passages, and of every system the value of each
metric and the first passages that it found, with their texts.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from zlib import crc32

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.datasets.task import RetrievalTask
from xqg_vdb.evaluate.records import Change, Compared
from xqg_vdb.evaluate.report.tables import clean
from xqg_vdb.evaluate.significance import RESAMPLES, compare_groups
from xqg_vdb.files import disk_errors, write_atomic

NAME = "questions.csv"
_FIRST = ("dataset", "average", "question", "group", "cluster", "text", "relevant", "relevant text")
_FOUND = (" | found", " | found text")
_SHOWN = 300
_FORMULA = re.compile(r"^(?=[=@+-])(?!-[\d.]+(?:e-\d+)?$)")  # what a spreadsheet would compute gets an apostrophe


def question_rows(
    dataset: str,
    task: RetrievalTask,
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    first: Mapping[str, Mapping[str, str]],
) -> Iterator[dict[str, str]]:
    """What systems did with the questions of one dataset; texts are cut at 300 characters, without control characters.

    values: system -> metric -> question -> value. first: system -> question -> the first passage that it found.
    """
    texts = {p.id: _short(f"{p.title}: {p.text}" if p.title else p.text) for p in task.passages}
    clusters = task.clusters()
    for query in task.queries:
        relevant = sorted(d for d, grade in task.qrels.get(query.id, {}).items() if grade > 0)
        row = dict(zip(_FIRST, (
            dataset, task.average, query.id, task.groups[query.id], clusters[query.id],
            _short(query.text), " ".join(relevant), texts.get(relevant[0], "") if relevant else "",
        ), strict=True))  # fmt: skip
        for system, measured in values.items():
            best = first[system].get(query.id, "")
            row |= {f"{system} | {metric}": repr(of[query.id]) for metric, of in measured.items() if query.id in of}
            row |= {f"{system} | found": best, f"{system} | found text": texts.get(best, "")}
        yield row


def write_questions(folder: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write `questions.csv`: of every system its metrics, then of every system what it found."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _FIRST))
    systems = list(dict.fromkeys(name.rpartition(" | ")[0] for name in names))
    columns = sorted(names, key=lambda name: (name.endswith(_FOUND), systems.index(name.rpartition(" | ")[0])))
    _write(folder / NAME, [*_FIRST, *columns], rows)
    return folder / NAME


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _FORMULA.sub("'", str(cell)) for name, cell in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))


def _short(text: str) -> str:
    return clean(text)[:_SHOWN]


def diff_runs(before: str, after: str, *, metric: str | None = None) -> list[tuple[Compared, int]]:
    """Compare two folders of `bench --out`, each `FOLDER` or `FOLDER:SYSTEM`, per dataset that both have.

    With every comparison comes how many questions are in one of the two only, and were left out. Without a system it
    is the last that both have; without a metric the first that both have. Raises DataError when a folder has no
    questions.csv, or the two have nothing in common.
    """
    (earlier, first), (later, second) = _read(before), _read(after)
    systems = [name for name in _systems(earlier) if name in _systems(later)]
    name_before, name_after = first or (systems[-1:] or [""])[0], second or first or (systems[-1:] or [""])[0]
    for name, rows, place in ((name_before, earlier, before), (name_after, later, after)):
        if name not in _systems(rows):
            raise DataError(f"{place} has no system {name!r}; it has {', '.join(_systems(rows))}: write FOLDER:SYSTEM.")
    shared = [name for name in _metrics(earlier, name_before) if name in _metrics(later, name_after)]
    wanted = metric or (shared[:1] or [""])[0]
    if wanted not in shared:
        raise DataError(f"the two have no metric {wanted!r} in common; they share {', '.join(shared) or 'none'}.")
    columns = f"{name_before} | {wanted}", f"{name_after} | {wanted}"
    datasets = [d for d in dict.fromkeys(r["dataset"] for r in earlier) if any(r["dataset"] == d for r in later)]
    parts = [
        compare_rows([[row for row in rows if row["dataset"] == name] for rows in (earlier, later)], columns)
        for name in datasets
    ]
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


def compare_rows(
    runs: Sequence[Sequence[dict[str, str]]], columns: tuple[str, str], *, resamples: int = RESAMPLES
) -> tuple[Compared, int]:
    """A column of one run's rows of a dataset against one of another's, and how many rows are in one of them only."""
    rows, others = (
        {row["question"]: row for row in run if row.get(name)} for run, name in zip(runs, columns, strict=True)
    )
    both = [qid for qid in rows if qid in others]
    dataset, average = runs[0][0]["dataset"], runs[0][0]["average"]
    if not both:
        raise DataError(f"no question of {dataset} is in both; were they asked of the same data?")
    before, after = ({q: float(of[q][name]) for q in both} for of, name in zip((rows, others), columns, strict=True))
    tested = compare_groups(
        before, after, groups={q: rows[q]["group"] for q in both}, clusters={q: rows[q]["cluster"] for q in both},
        average="groups" if average == "groups" else "queries", resamples=resamples,
    )  # fmt: skip
    won, lost = _changes(rows, others, columns)
    (baseline, _, metric), (system, _, _) = (name.rpartition(" | ") for name in columns)
    counts = (len(won), len(lost))
    found = Compared(dataset, metric, baseline, system, tested.macro, tested.groups, won, lost, counts)
    return found, len(rows.keys() ^ others.keys())


def _changes(
    rows: Mapping[str, Mapping[str, str]], others: Mapping[str, Mapping[str, str]], columns: tuple[str, str]
) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Return the questions won and lost from the first column to the second, the largest change first.

    Of equal changes languages take turns, in an order that is the same every time.
    rows, others: question -> its row of `questions.csv`.
    """
    before, after = (name.rpartition(" | ")[0] for name in columns)
    found = []
    for qid, row in rows.items():
        other = others.get(qid, {})
        if row.get(columns[0]) and other.get(columns[1]) and float(row[columns[0]]) != float(other[columns[1]]):
            found.append(Change(
                qid, row["group"], row["text"], row["relevant text"], float(row[columns[0]]), float(other[columns[1]]),
                row[f"{before} | found text"], other[f"{after} | found text"],
            ))  # fmt: skip
    found.sort(key=lambda change: crc32(change.text.encode("utf-8", "replace")))  # not one passage's questions in a row
    turns, order = Counter[tuple[float, str]](), {}
    for change in found:
        size = change.after - change.before
        turns[size, change.group] += 1
        order[change.question] = (-abs(size), turns[size, change.group])
    found.sort(key=lambda change: order[change.question])
    return tuple(change for change in found if change.after > change.before), tuple(
        change for change in found if change.after < change.before
    )


def write_changes(path: Path, diffs: Iterable[Compared]) -> None:
    """Write the questions that were won and lost as CSV, with their texts."""
    rows = [
        {"dataset": diff.dataset, "metric": diff.metric, "change": what, **asdict(change)}
        for diff in diffs
        for what, changed in (("won", diff.won), ("lost", diff.lost))
        for change in changed
    ]
    _write(path, ["dataset", "metric", "change", *Change.__dataclass_fields__], rows)
