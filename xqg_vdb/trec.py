"""TREC run and qrels files and tab-separated topics: what other evaluation tools exchange.

Run lines are `qid Q0 docid rank score tag`, qrels lines `qid 0 docid grade`, both split at white space; qrels may be
BEIR's tab-separated `query-id corpus-id score` with a header. Files that end in `.gz` are read and written compressed.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from xqg_vdb.errors import DataError
from xqg_vdb.files import LongLine, open_lines, write_atomic
from xqg_vdb.metrics import Qrels, Run, ranked

_BEIR_HEADER = ["query-id", "corpus-id", "score"]


def write_run(path: str | Path, run: Run, *, tag: str) -> None:
    """Write `run` best first under the one tie rule, ranks from 1, scores in full; tag: name of the system, no spaces.

    trec_eval ignores the rank and breaks ties by descending id, so tied scores may be counted differently there.
    Raises DataError for ids that hold white space, NaN scores or repeated passages.
    """
    lines = (
        f"{_word(qid)} Q0 {_word(docid)} {rank} {score!r} {_word(tag)}\n"
        for qid in sorted(run)
        for rank, (docid, score) in enumerate(ranked(run[qid]), start=1)
    )
    _write(Path(path), lines)


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write TREC qrels, sorted by question and passage. DataError for ids that hold white space."""
    lines = (
        f"{_word(qid)} 0 {_word(docid)} {grade}\n"
        for qid in sorted(qrels)
        for docid, grade in sorted(qrels[qid].items())
    )
    _write(Path(path), lines)


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Read question id -> (passage id, score), in the file's order; the scores decide, not the rank column.

    Raises DataError, with file and line, for malformed lines and for a file without any.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    for place, fields in _rows(Path(path)):
        if len(fields) != 6:
            raise DataError(f"{place}: expected `qid Q0 docid rank score tag`, found {len(fields)} fields.")
        run.setdefault(fields[0], []).append((fields[2], _number(fields[4], place)))
    if not run:
        raise DataError(f"{path} holds no run lines.")
    return run


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read question id -> passage id -> grade, from TREC qrels or a BEIR qrels TSV (known by its header).

    Raises DataError, with file and line, for malformed lines and for a file without any.
    """
    qrels: dict[str, dict[str, int]] = {}
    width = 4
    for place, fields in _rows(Path(path)):
        if fields == _BEIR_HEADER and not qrels:
            width = 3
            continue
        if len(fields) != width:
            expected = "`qid 0 docid grade`" if width == 4 else "`query-id corpus-id score`"
            raise DataError(f"{place}: expected {expected}, found {len(fields)} fields.")
        qrels.setdefault(fields[0], {})[fields[-2]] = int(_number(fields[-1], place))
    if not qrels:
        raise DataError(f"{path} holds no qrels lines.")
    return qrels


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read lines of two tab-separated columns without a header: topics (question id, question), sentences (id, text).

    Both are stripped; blank lines do not count. Raises DataError, with the line, for a line without a tab.
    """
    pairs: list[tuple[str, str]] = []
    for number, _, raw in open_lines(path):
        if isinstance(raw, LongLine) or (raw.strip() and b"\t" not in raw):
            raise DataError(f"{path} line {number}: expected two columns with a tab between them.")
        if raw.strip():
            first, _, second = raw.decode("utf-8", "replace").partition("\t")
            pairs.append((first.strip(), second.strip()))
    return pairs


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    for number, _, raw in open_lines(path):
        place = f"{path} line {number}"
        if isinstance(raw, LongLine):
            raise DataError(f"{place}: {raw.size:,} bytes is too long for a TREC line.")
        fields = raw.decode("utf-8", "replace").split()
        if fields:
            yield place, fields


def _number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: {text!r} is not a number.")
    return number


def _word(text: str) -> str:
    if len(text.split()) != 1 or text != text.strip():
        raise DataError(f"{text!r} cannot stand in a TREC file, whose columns are split at white space; rename it.")
    return text


def _write(path: Path, lines: Iterable[str]) -> None:
    data = "".join(lines).encode()
    # mtime 0: equal runs give equal files
    write_atomic(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
