"""Filter a finished query file: by the rules, and by an encoder; no second try (there is no generator here).

In: a query file, perhaps with its provenance. Out: another one, whose provenance says what was left out and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import DataError
from xqg_vdb.files import open_lines, write_atomic
from xqg_vdb.generation.filters import QueryFilter, count_reasons, judge_by_encoder, without_rejected
from xqg_vdb.generation.merging import provenance_path
from xqg_vdb.queries import write_queries
from xqg_vdb.types import GeneratedQueries, TextEncoder

WINDOW = 256  # records whose languages are detected together


@dataclass(frozen=True, slots=True)
class EncoderCheck:
    """What the encoder is asked, with the corpus that the queries are about; see `filters.judge_by_encoder`.

    All vectors lie in memory: meant for some 100,000 passages.
    """

    encoder: TextEncoder
    corpus: Path
    top_k: int | None = 10
    percentile: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict for the provenance."""
        made_by = self.encoder.facts.fingerprint
        return {"encoder": made_by, "corpus": self.corpus.name, "top_k": self.top_k, "percentile": self.percentile}


def filter_file(
    queries: Path, out: Path, *, query_filter: QueryFilter, check: EncoderCheck | None = None
) -> dict[str, Any]:
    """Write the good queries of `queries` to `out`; return its provenance: that of `queries`, `filter` and `rejected`.

    check: what passes the rules must also pass this; the records then come in the corpus' order.
    Raises DataError when `out` is there already or a line of `queries` is no record of generated queries.
    """
    if out.exists():
        raise DataError(f"{out} is there already: remove it, or give another OUT.")
    counts: Counter[str] = Counter()
    records = _kept(queries, query_filter, counts)
    kept = write_queries(out, records if check is None else _checked(records, check, counts))
    source = provenance_path(queries)
    record = orjson.loads(source.read_bytes()) if source.is_file() else {}
    if not counts:
        out.unlink()
        raise DataError(f"{queries} holds no generated queries; write some with `xqg-vdb generate`.")
    left = counts.pop("kept", 0)
    provenance = {
        **record,
        "filter": {**query_filter.rules.to_json(), **({} if check is None else check.to_json())},
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


def _checked(
    records: Iterator[GeneratedQueries], check: EncoderCheck, counts: Counter[str]
) -> Iterator[GeneratedQueries]:
    """The records whose passage is in the corpus, with the queries that the encoder finds good."""
    by_id = {record.id: record for record in records}
    passages = list(read_corpus(check.corpus, detect=False))
    # passages without queries are searched as well
    asked = [by_id.pop(passage.id, GeneratedQueries(passage.id, {})) for passage in passages]
    lost = sum(len(texts) for record in by_id.values() for texts in record.queries.values())
    verdicts = judge_by_encoder(
        asked, passages, encoder=check.encoder, top_k=check.top_k, percentile=check.percentile
    )  # fmt: skip
    found = count_reasons(verdicts)
    counts.update(found)
    if lost:
        counts["no such passage"] = lost
    counts["kept"] -= lost + sum(found.values())
    for record, verdict in zip(asked, verdicts, strict=True):
        if record.queries:
            yield without_rejected(record, verdict)


def _records(path: Path) -> Iterator[GeneratedQueries]:
    for number, _, line in open_lines(path):
        try:
            record = orjson.loads(bytes(line)) if isinstance(line, bytes) else {}
            yield GeneratedQueries(
                str(record["id"]), {lang: tuple(map(str, texts)) for lang, texts in record["generated_queries"].items()}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} line {number} is no record of generated queries.") from None
