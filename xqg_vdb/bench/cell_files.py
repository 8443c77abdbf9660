"""What a cell holds, and its file: finished cells are kept under all that they depend on, and skipped."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.bench.spent import Spent
from xqg_vdb.errors import CorruptError
from xqg_vdb.files import write_atomic
from xqg_vdb.metrics import Run
from xqg_vdb.trec import write_run


@dataclass(frozen=True)
class Cell:
    """What one system did on one dataset.

    values: metric -> question id -> value. seconds: by phase. tokenizer: of the answer recall, if there was any.
    shares: question language -> passage language -> share of the first 20, where the passages have several languages.
    cost: bytes of vectors a passage and milliseconds a look-up, unless all was ranked in memory; milliseconds of a
        question's expansion and reranking. notes: what a reader must know of them.
    """

    values: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    tokenizer: str = ""
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def cell_key(facts: Mapping[str, Any]) -> str:
    """A name for everything that a cell depends on, 24 hexadecimal digits."""
    raw = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(raw, digest_size=12).hexdigest()


def with_spent(cell: Cell, spent: Spent) -> Cell:
    """The cell with what one of its methods cost."""
    return replace(
        cell,
        seconds={**cell.seconds, spent.method: round(spent.seconds, 3)},
        cost={**cell.cost, **spent.cost()},
        notes=(*cell.notes, *spent.notes),
    )


def save_cell(path: Path, cell: Cell, *, run: Path, found: Run) -> None:
    """Keep a cell and its run as a TREC file; the cell comes last, so that where it is, the run is too."""
    write_run(run, found, tag="xqg-vdb")
    write_atomic(path, gzip.compress(orjson.dumps(asdict(cell)), mtime=0))


def load_cell(path: Path) -> Cell | None:
    """A kept cell, None when there is none. CorruptError for a damaged file."""
    if not path.is_file():
        return None
    try:
        record = orjson.loads(gzip.decompress(path.read_bytes()))
        return Cell(**{"cost": {}, **record})
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is damaged ({error}): remove it, and the cell is computed again.") from error
