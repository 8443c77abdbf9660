"""Filter a finished query file: by the rules; no second try (there is no generator here).

In: a query file, perhaps with its provenance. Out: another one, whose provenance says what was left out and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.files import open_lines, write_atomic
from xqg_vdb.generation.filters import QueryFilter, count_reasons, without_rejected
from xqg_vdb.generation.merging import provenance_path
from xqg_vdb.queries import write_queries
from xqg_vdb.types import GeneratedQueries

WINDOW = 256  # records whose languages are detected together


def filter_file(queries: Path, out: Path, *, query_filter: QueryFilter) -> dict[str, Any]:
    """Write the good queries of `queries` to `out`; return its provenance: that of `queries`, `filter` and `rejected`.

    Raises DataError when `out` is there already or a line of `queries` is no record of generated queries.
    """
    if out.exists():
        raise DataError(f"{out} is there already: remove it, or give another OUT.")
    counts: Counter[str] = Counter()
    kept = write_queries(out, _kept(queries, query_filter, counts))
    source = provenance_path(queries)
    record = orjson.loads(source.read_bytes()) if source.is_file() else {}
    if not counts:
        out.unlink()
        raise DataError(f"{queries} holds no generated queries; write some with `xqg-vdb generate`.")
    left = counts.pop("kept", 0)
    provenance = {
        **record,
        "filter": query_filter.rules.to_json(),
        "passages": kept,
        "queries": left,
        "rejected": dict(sorted(counts.items())),
    }
    write_atomic(provenance_path(out), orjson.dumps(provenance, option=orjson.OPT_INDENT_2) + b"\n")
    return provenance


def _kept(queries: Path, query_filter: QueryFilter, counts: Counter[str]) -> Iterator[GeneratedQueries]:
    records = _records(queries)
    while window := list(islice(records, WINDOW)):
        verdicts = query_filter.judge(window)
        counts.update(count_reasons(verdicts))
        for record, verdict in zip(window, verdicts, strict=True):
            good = without_rejected(record, verdict)
            counts["kept"] += sum(map(len, good.queries.values()))
            yield good


def _records(path: Path) -> Iterator[GeneratedQueries]:
    for number, _, line in open_lines(path):
        try:
            record = orjson.loads(bytes(line)) if isinstance(line, bytes) else {}
            yield GeneratedQueries(
                str(record["id"]), {lang: tuple(map(str, texts)) for lang, texts in record["generated_queries"].items()}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} line {number} is no record of generated queries.") from None
