"""Corpus to query file: in batches, resumable after any kill, sharded over machines, filtered on request.

While it runs, a checksummed log lies beside OUT (`OUT.shard-1-of-1`); a finished run is merged into OUT in the
published schema `{"id", "generated_queries"}` with `OUT.provenance.json` beside it. This file knows no model:
generators come ready.
"""

from __future__ import annotations

import glob
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from xqg_vdb.batching import windows
from xqg_vdb.corpus import read_corpus
from xqg_vdb.errors import MismatchError
from xqg_vdb.generation.filters import Verdicts, count_reasons, without_rejected
from xqg_vdb.generation.job import BatchGenerator, Job, Progress, Summary
from xqg_vdb.generation.merging import merge_shards, provenance_path
from xqg_vdb.generation.provenance import environment
from xqg_vdb.generation.record_log import RecordLog, rows
from xqg_vdb.records import Rejects
from xqg_vdb.types import GeneratedQueries, Passage

__all__ = ["BatchGenerator", "Job", "Progress", "Summary", "generate_file"]


def generate_file(
    corpus: Path,
    out: Path,
    *,
    generator: BatchGenerator,
    job: Job,
    rejects: Rejects | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Generate queries for every passage of `corpus` (of the shard), and merge them into `out` when there is one shard.

    Run again after a kill, it goes on where it was: at most one batch is made twice. Raises MismatchError when `out` or
    its log were made with other settings or another corpus, DataError for bad input, DiskError, LockedError,
    CorruptError.
    """
    header = _header(generator, job)
    if out.exists():
        return _finished_before(out, header)
    total = sum(1 for _ in job.shard.of(read_corpus(corpus, rejects=_fresh(rejects), detect=False)))
    path = job.shard.path(out)
    with RecordLog(path, header) as log:
        summary = _fill(log, _passages(corpus, job, rejects), generator, job, total, progress)
    if job.shard.count > 1:
        return summary
    merge_shards(out)
    return Summary(out, summary.passages, summary.queries, summary.seconds, summary.rejected, summary.resumed)


def _finished_before(out: Path, header: Mapping[str, Any]) -> Summary:
    """The summary of an OUT that an earlier run finished with the same settings.

    Raises MismatchError for any other OUT.
    """
    path = provenance_path(out)
    record = orjson.loads(path.read_bytes()) if path.is_file() else {}
    if any(record.get(key) != value for key, value in header.items() if key != "shard"):
        raise MismatchError(f"{out} is there already and was made otherwise: remove it, or give another OUT.")
    for left in out.parent.glob(f"{glob.escape(out.name)}.shard-*-of-*"):
        left.unlink()  # a kill came between the merge and its clean-up
    return Summary(out, record["passages"], record["queries"], 0.0, record["rejected"], record["passages"])


def _header(generator: BatchGenerator, job: Job) -> dict[str, Any]:
    rules = job.query_filter.rules.to_json() if job.query_filter else None
    settings = {"generator": generator.describe(), "langs": list(job.langs), "n": job.n, "filter": rules}
    return {"schema": 1, **settings, "shard": [job.shard.number, job.shard.count]}


def _fresh(rejects: Rejects | None) -> Rejects | None:
    return None if rejects is None else Rejects(rejects.max_rejects)


def _passages(corpus: Path, job: Job, rejects: Rejects | None) -> Iterator[Passage]:
    return job.shard.of(read_corpus(corpus, rejects=rejects, detect=False))


def _fill(
    log: RecordLog, passages: Iterator[Passage], generator: BatchGenerator, job: Job, total: int,
    progress: Callable[[Progress], None] | None,
) -> Summary:  # fmt: skip
    done = resumed = _skip_done(log, passages)
    totals: Counter[str] = Counter()
    for info in log.committed.commits:
        totals.update(info["rejected"])
    queries = sum(info["queries"] for info in log.committed.commits)
    before = sum(info["seconds"] for info in log.committed.commits)
    start, made = time.monotonic(), 0
    if log.committed.end is None:
        for batch in windows(passages, generator.batch_size(job.langs, job.n)):
            begun = time.monotonic()
            records, reasons = _good_records(generator, batch, job)
            count = sum(len(texts) for record in records for texts in record.queries.values())
            done, queries, made = done + len(batch), queries + count, made + count
            info = {"queries": count, "rejected": reasons, "seconds": round(time.monotonic() - begun, 3)}
            log.commit([_row(p, r) for p, r in zip(batch, records, strict=True)], rows=done, info=info)
            totals.update(reasons)
            if progress:
                progress(Progress(done, total, made, time.monotonic() - start, resumed))
        seconds = round(before + time.monotonic() - start, 3)
        log.finish({"rows": done, "queries": queries, "rejected": dict(totals), "seconds": seconds,
                    "counters": generator.counters(), **environment()})  # fmt: skip
    return Summary(log.path, done, queries, before + time.monotonic() - start, dict(totals), resumed)


def _row(passage: Passage, record: GeneratedQueries) -> dict[str, Any]:
    return {"id": record.id, "text": _text_crc(passage), "queries": {k: list(v) for k, v in record.queries.items()}}


def _text_crc(passage: Passage) -> int:
    return zlib.crc32(passage.title_and_text.encode("utf-8", "surrogatepass"))


def _skip_done(log: RecordLog, passages: Iterator[Passage]) -> int:
    """Pass over the passages that are in the log.

    Raises MismatchError when the corpus is not the one it was begun with.
    """
    for row in rows(log.path, log.committed) if log.committed.rows else ():
        passage = next(passages, None)
        if passage is None or (passage.id, _text_crc(passage)) != (row["id"], row["text"]):
            found = "the end of the corpus" if passage is None else f"passage {passage.id!r}"
            raise MismatchError(
                f"{log.path} was begun with another corpus: where it has passage {row['id']!r}, there is {found} now, "
                "or its text has changed. Use the same corpus, or another OUT."
            )
    return log.committed.rows


def _good_records(
    generator: BatchGenerator, batch: Sequence[Passage], job: Job
) -> tuple[list[GeneratedQueries], dict[str, int]]:
    """A batch's records and counts by reason; what a filter rejects is drawn once more, then left out."""
    records = generator.generate_batch(batch, langs=job.langs, n=job.n)
    if job.query_filter is None:
        return records, {}
    verdicts = job.query_filter.judge(records)
    langs = tuple(lang for lang in job.langs if any(any(verdict[lang]) for verdict in verdicts))
    again = [i for i, verdict in enumerate(verdicts) if any(map(any, verdict.values()))]
    kept = [without_rejected(record, verdict) for record, verdict in zip(records, verdicts, strict=True)]
    if again:
        second = generator.generate_batch([batch[i] for i in again], langs=langs, n=job.n, attempt=1)
        judged = job.query_filter.judge(second)
        for i, record, verdict in zip(again, second, judged, strict=True):
            kept[i] = _filled_up(kept[i], without_rejected(record, verdict), job.n)
    return kept, _counts(records, verdicts, kept)


def _filled_up(kept: GeneratedQueries, spare: GeneratedQueries, n: int) -> GeneratedQueries:
    """`kept` with what it lacks taken from `spare`."""
    filled = {
        lang: (*texts, *[text for text in spare.queries.get(lang, ()) if text not in texts])[:n]
        for lang, texts in kept.queries.items()
    }
    return GeneratedQueries(kept.id, filled)


def _counts(
    records: Sequence[GeneratedQueries], verdicts: Sequence[Verdicts], kept: Sequence[GeneratedQueries]
) -> dict[str, int]:
    made = sum(len(texts) for record in records for texts in record.queries.values())
    left = sum(len(texts) for record in kept for texts in record.queries.values())
    reasons = count_reasons(verdicts)
    return {**reasons, "replaced by a second try": sum(reasons.values()) - (made - left)} if reasons else {}
