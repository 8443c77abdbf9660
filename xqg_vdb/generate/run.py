"""Corpus to query file: in batches, resumable after any kill, sharded over machines, filtered on request.

While it runs, a checksummed log lies beside OUT (`OUT.shard-1-of-1`); a finished run is merged into OUT in the
published schema `{"id", "generated_queries"}`, and a digest of the passage, with `OUT.provenance.json` beside it. This
file knows no model: generators come ready.
"""

from __future__ import annotations

import glob
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import orjson

from xqg_vdb.batching import windows
from xqg_vdb.errors import DataError, MismatchError, ServerError, XqgError
from xqg_vdb.generate.filters import QueryFilter, Verdicts, count_reasons, without_rejected
from xqg_vdb.generate.output import (
    SCHEMA,
    EarlierQueries,
    Plan,
    Shard,
    environment,
    in_batches,
    merge_shards,
    passage_digest,
    planned,
    provenance_path,
)
from xqg_vdb.journal import RecordLog, rows
from xqg_vdb.progress import Progress, silent, unbroken
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.queries import read_queries
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import GeneratedQueries, Passage

SILENT = 32  # passages in a row without an answer of use, after which a run stops
REPLACED = "replaced by a second try"

# What the runner is asked for and what it reports: job and summary; and what it needs of a generator.


class BatchGenerator(Protocol):
    """What the runner needs of a generator. Equal calls give equal records, whatever was called before.

    tries_again: what it wrote nothing about may succeed in a later run. failure: why it wrote nothing the last time.
    """

    tries_again: bool = False
    failure: str = ""

    def batch_size(self, query_langs: Sequence[str], n: int) -> int:
        """Passages per batch; a function of its arguments and the settings alone."""
        ...

    def generate_batch(
        self, batch: Sequence[Passage], *, query_langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """One record per passage, in order."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that the queries depend on: model fingerprint, prompt, settings, seed. A JSON-able dict."""
        ...

    def examples(self) -> tuple[str, ...]:
        """Questions in the prompt that must not come back."""
        return ()

    def counters(self) -> dict[str, float]:
        """Counts and seconds so far: passages cut, seconds per phase, tokens, failed requests."""
        ...

    def generate(
        self, passages: Iterable[Passage], *, query_langs: Sequence[str], n: int
    ) -> Iterator[GeneratedQueries]:
        """One record per passage, in input order; greedy gives one query per language whatever n is."""
        for batch in windows(passages, self.batch_size(query_langs, n)):
            yield from self.generate_batch(batch, query_langs=query_langs, n=n)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run. path is OUT, or the finished shard's log.

    Rejected counts queries by reason when filtered; reused, passages by the earlier output that their queries are from;
    gaps, passages that have no query in one language or more.
    """

    path: Path
    passages: int
    queries: int
    seconds: float
    rejected: Mapping[str, int]
    resumed: int = 0
    reused: Mapping[str, int] = field(default_factory=dict)
    gaps: int = 0


@dataclass(frozen=True)
class Job:
    """What to generate: languages (normalised and checked), queries per language, which shard, filtered or not."""

    query_langs: tuple[str, ...]
    n: int
    shard: Shard = field(default_factory=Shard)
    query_filter: QueryFilter | None = None

    def __post_init__(self) -> None:
        if not self.query_langs:
            raise DataError("No language was given: name at least one, such as -l sw.")
        codes = [normalize(lang) for lang in self.query_langs]
        if len(set(codes)) < len(codes):
            raise DataError(f"A language is named twice in {', '.join(self.query_langs)}.")
        if self.n < 1:
            raise DataError(f"n must be 1 or more, got {self.n}.")
        object.__setattr__(self, "query_langs", tuple(codes))


def generate_file(
    corpus: Path,
    out: Path,
    *,
    generator: BatchGenerator,
    job: Job,
    reuse: Path | None = None,
    rejects: Rejects | None = None,
    progress: Progress = silent,
) -> Summary:
    """Generate queries for every passage of `corpus` (of the shard), and merge them into `out` when there is one shard.

    reuse: an output of an earlier run with the same settings; what it has about unchanged passages is taken from it.
    progress: counts passages, without those of which an earlier output has everything.
    Run again after a kill, it goes on where it was: at most one batch is made twice. Run again after its end, it asks
    an endpoint once more about passages that have no query. Raises ServerError or DataError when nothing was written,
    MismatchError when `out`, its log or `reuse` were made with other settings, or the first two from another corpus.
    """
    if reuse is not None and reuse.resolve() == out.resolve():
        raise DataError(f"{out} cannot be reused and written at once: give another OUT.")
    header = _header(generator, job)
    if out.exists():
        summary = _finished_before(out, header, read_corpus(corpus, rejects=_fresh(rejects), detect=False))
        if not (summary.gaps and generator.tries_again and job.shard.count == 1):
            for left in out.parent.glob(f"{glob.escape(out.name)}.shard-*-of-*"):
                left.unlink()  # a kill came between the merge and its clean-up
            return summary
        reuse = out
    with ExitStack() as stack:
        earlier = None
        if reuse is not None:
            earlier = stack.enter_context(closing(EarlierQueries(reuse, header=header, gaps=generator.tries_again)))
        total = sum(
            1 for plan in planned(_passages(corpus, job, _fresh(rejects)), job.query_langs, earlier) if plan.missing
        )
        with RecordLog(job.shard.path(out), header) as log:
            summary = _fill(log, _passages(corpus, job, rejects), generator, job, earlier, total, progress)
    if job.shard.count == 1:
        merge_shards(out, over=reuse == out)
        summary = replace(summary, path=out)
    return summary


def _finished_before(out: Path, header: Mapping[str, Any], passages: Iterable[Passage]) -> Summary:
    """The summary of an OUT that an earlier run finished with the same settings and corpus.

    Raises MismatchError for any other OUT.
    """
    path = provenance_path(out)
    record = orjson.loads(path.read_bytes()) if path.is_file() else {}
    if any(record.get(key) != value for key, value in header.items() if key not in ("shard", "schema")):
        raise MismatchError(f"{out} is there already and was made otherwise: remove it, or give another OUT.")
    gaps = 0
    for written, passage in zip_longest(read_queries(out), passages):
        same = written is not None and passage is not None and written.id == passage.id
        if not same or written.passage_digest not in ("", passage_digest(passage)):
            raise MismatchError(
                f"{out} is there already and was made from another corpus: give another OUT, with --reuse {out} to "
                "write only what is new."
            )
        gaps += not all(written.queries.get(lang) for lang in header["langs"])
    count, reused = record["passages"], record.get("reused", {})
    return Summary(out, count, record["queries"], 0.0, record["rejected"], count, reused, gaps)


def _header(generator: BatchGenerator, job: Job) -> dict[str, Any]:
    rules = job.query_filter.rules.to_json() if job.query_filter else None
    settings = {"generator": generator.describe(), "langs": list(job.query_langs), "n": job.n, "filter": rules}
    return {"schema": SCHEMA, **settings, "shard": [job.shard.number, job.shard.count]}


def _fresh(rejects: Rejects | None) -> Rejects | None:
    return None if rejects is None else Rejects(rejects.max_rejects)


def _passages(corpus: Path, job: Job, rejects: Rejects | None) -> Iterator[Passage]:
    return job.shard.of(read_corpus(corpus, rejects=rejects, detect=False))


@dataclass
class _Tally:
    """What the commits of a log add up to; `new` counts what was generated, the rest is from an earlier output."""

    queries: int = 0
    new_passages: int = 0
    new_queries: int = 0
    seconds: float = 0.0
    gaps: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)

    def add(self, info: Mapping[str, Any]) -> None:
        self.queries += info["queries"]
        self.new_passages += info["new_passages"]
        self.new_queries += info["new_queries"]
        self.seconds += info["seconds"]
        self.gaps += info.get("gaps", 0)
        self.rejected.update(info["rejected"])
        self.reused.update(info["reused"])


def _fill(
    log: RecordLog, passages: Iterator[Passage], generator: BatchGenerator, job: Job, earlier: EarlierQueries | None,
    total: int, progress: Progress,
) -> Summary:  # fmt: skip
    done = resumed = _skip_done(log, passages)
    tally, silent_for = _Tally(), 0
    for info in log.committed.commits:
        tally.add(info)
    before, start = tally.seconds, time.monotonic()
    if log.committed.end is None:
        progress("passages", tally.new_passages, total)
        plans = planned(passages, job.query_langs, earlier)
        for batch in _till_stopped(in_batches(plans, lambda langs: generator.batch_size(langs, job.n)), tally, total):
            begun = time.monotonic()
            lines, counts = _written(generator, batch, job)
            silent_for = 0 if counts["new_queries"] or counts["rejected"] else silent_for + counts["new_passages"]
            if silent_for >= SILENT:
                raise _nothing_written(log, tally, generator, silent_for)
            reused = {} if earlier is None else {earlier.name: sum(bool(plan.known) for plan in batch)}
            info = {**counts, "reused": reused, "seconds": round(time.monotonic() - begun, 3)}
            done += len(batch)
            log.commit(lines, rows=done, info=info)
            tally.add(info)
            progress("passages", tally.new_passages, total)
        if tally.new_passages and not tally.queries:
            raise _nothing_written(log, tally, generator, tally.new_passages)
        log.finish({"rows": done, "queries": tally.queries, "gaps": tally.gaps, "rejected": dict(tally.rejected),
                    "reused": dict(tally.reused), "seconds": round(before + time.monotonic() - start, 3),
                    "counters": generator.counters(), **environment()})  # fmt: skip
    seconds = before + time.monotonic() - start
    rejected, reused = dict(tally.rejected), dict(tally.reused)
    return Summary(log.path, done, tally.queries, seconds, rejected, resumed, reused, tally.gaps)


def _till_stopped(batches: Iterable[list[Plan]], tally: _Tally, total: int) -> Iterator[list[Plan]]:
    """The batches; Ctrl-C ends them when the last one is committed."""
    with unbroken() as pause:
        for batch in batches:
            yield batch
            pause(f"{tally.new_passages} of {total} passages are kept")


def _nothing_written(log: RecordLog, tally: _Tally, generator: BatchGenerator, passages: int) -> XqgError:
    """The error of a run without queries; its log is removed when there is none in it, so that nothing is skipped."""
    if not tally.queries:
        log.path.unlink()
    rejected = {reason: count for reason, count in tally.rejected.items() if count and reason != REPLACED}
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        return DataError(f"The filter rejected every query ({reasons}): leave --filter out and look, or --skip a rule.")
    if generator.failure:
        return ServerError(f"No query for {passages} passages in a row. The last answer from {generator.failure}.")
    return DataError(f"The generator wrote no query for {passages} passages: take another model or --prompt.")


def _written(generator: BatchGenerator, batch: Sequence[Plan], job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A batch's rows with all queries, and its counts; passages that lack the same languages are written together."""
    queries = [dict(plan.known) for plan in batch]
    reasons: Counter[str] = Counter()
    new = 0
    for langs in dict.fromkeys(plan.missing for plan in batch if plan.missing):
        places = [i for i, plan in enumerate(batch) if plan.missing == langs]
        records, rejected = _good_records(generator, [batch[i].passage for i in places], langs, job)
        reasons.update(rejected)
        for i, record in zip(places, records, strict=True):
            queries[i].update(record.queries)
            new += sum(map(len, record.queries.values()))
    rows = [
        {
            "id": plan.passage.id,
            "digest": passage_digest(plan.passage),
            "queries": {lang: found[lang] for lang in job.query_langs},
        }
        for plan, found in zip(batch, queries, strict=True)
    ]
    count = sum(len(texts) for found in queries for texts in found.values())
    made = sum(bool(plan.missing) for plan in batch)
    gaps = sum(not all(found[lang] for lang in job.query_langs) for found in queries)
    return rows, {
        "queries": count, "new_passages": made, "new_queries": new, "gaps": gaps, "rejected": dict(reasons),
    }  # fmt: skip


def _skip_done(log: RecordLog, passages: Iterator[Passage]) -> int:
    """Pass over the passages that are in the log.

    Raises MismatchError when the corpus is not the one it was begun with.
    """
    for row in rows(log.path, log.committed) if log.committed.rows else ():
        passage = next(passages, None)
        if passage is None or (passage.id, passage_digest(passage)) != (row["id"], row["digest"]):
            found = "the end of the corpus" if passage is None else f"passage {passage.id!r}"
            raise MismatchError(
                f"{log.path} was begun with another corpus: where it has passage {row['id']!r}, there is {found} now, "
                "or its text has changed. Use the same corpus, or another OUT."
            )
    return log.committed.rows


def _good_records(
    generator: BatchGenerator, batch: Sequence[Passage], langs: tuple[str, ...], job: Job
) -> tuple[list[GeneratedQueries], dict[str, int]]:
    """A batch's records and counts by reason; what a filter rejects is drawn once more, then left out."""
    records = generator.generate_batch(batch, query_langs=langs, n=job.n)
    if job.query_filter is None:
        return records, {}
    verdicts = job.query_filter.judge(records)
    langs = tuple(lang for lang in langs if any(any(verdict[lang]) for verdict in verdicts))
    again = [i for i, verdict in enumerate(verdicts) if any(map(any, verdict.values()))]
    kept = [without_rejected(record, verdict) for record, verdict in zip(records, verdicts, strict=True)]
    if again:
        second = generator.generate_batch([batch[i] for i in again], query_langs=langs, n=job.n, attempt=1)
        judged = job.query_filter.judge(second)
        for i, record, verdict in zip(again, second, judged, strict=True):
            kept[i] = _filled_up(kept[i], without_rejected(record, verdict), verdicts[i], job.n)
    return kept, _counts(records, verdicts, kept)


def _filled_up(kept: GeneratedQueries, spare: GeneratedQueries, verdict: Verdicts, n: int) -> GeneratedQueries:
    """`kept` with what it lost taken from `spare`: only where it lost something, whatever others in the batch lost."""
    filled = {
        lang: (*texts, *[text for text in spare.queries[lang] if text not in texts])[:n]
        if any(verdict[lang])
        else texts
        for lang, texts in kept.queries.items()
    }
    return GeneratedQueries(kept.id, filled)


def _counts(
    records: Sequence[GeneratedQueries], verdicts: Sequence[Verdicts], kept: Sequence[GeneratedQueries]
) -> dict[str, int]:
    made = sum(len(texts) for record in records for texts in record.queries.values())
    left = sum(len(texts) for record in kept for texts in record.queries.values())
    reasons = count_reasons(verdicts)
    return {**reasons, REPLACED: sum(reasons.values()) - (made - left)} if reasons else {}
