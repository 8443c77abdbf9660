"""Corpus to query file: in batches, resumable after any kill, sharded over machines, filtered on request.

While it runs, a checksummed log lies beside OUT (`OUT.shard-1-of-1`); a finished run is merged into OUT in the
published schema `{"id", "generated_queries"}`, and a digest of the passage, with `OUT.provenance.json` beside it. This
file knows no model: generators come ready.
"""

from __future__ import annotations

import glob
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from xqg_vdb.errors import DataError, MismatchError, ServerError, XqgError
from xqg_vdb.generate.filters import REPLACED, QueryFilter, reasons_in
from xqg_vdb.generate.output import (
    SCHEMA,
    Summary,
    environment,
    log_path,
    merge_shards,
    provenance_path,
    read_provenance,
)
from xqg_vdb.journal import RecordLog, differences, rows
from xqg_vdb.models.decoder import row_key
from xqg_vdb.progress import Progress, in_order, silent, unbroken, windows
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.queries import QueryFile, count_queries, read_queries, row_digest
from xqg_vdb.texts.records import Rejects
from xqg_vdb.types import GeneratedQueries, Passage

SILENT = 32  # passages in a row without an answer of use, after which a run stops
LONGEST = 4096
"""Passages of a batch at most, most of them known: a kill loses no more, and no more texts are in memory."""


class BatchGenerator:
    """What the runner needs of a generator. Equal calls give equal records, whatever was called before.

    settings: all that the queries depend on, as a JSON-able dict: model fingerprint, prompt, decoding, seed.
    examples: questions in the prompt that must not come back. rows: texts that are written together.
    tries_again: what it wrote nothing about may succeed in a later run. failure: why it wrote nothing the last time.
    at_once: batches that it can be asked for at a time.
    """

    settings: dict[str, Any]
    examples: tuple[str, ...] = ()
    seed: int
    rows: int = 32  # keep the cores busy
    greedy: bool = False
    tries_again: bool = False
    failure: str = ""
    at_once: int = 1

    @property
    def fingerprint(self) -> str:
        """Of its model; empty for one that is asked over a network."""
        return str(self.settings.get("fingerprint", ""))

    def samples(self, n: int) -> int:
        """Queries of a passage and language, where n are wanted."""
        return 1 if self.greedy else n

    def batch_size(self, query_langs: Sequence[str], n: int) -> int:
        """Passages per batch; a function of its arguments and the settings alone."""
        return max(1, self.rows // max(1, len(query_langs) * self.samples(n)))

    def generate_batch(
        self, batch: Sequence[Passage], *, query_langs: Sequence[str], n: int, attempt: int = 0
    ) -> list[GeneratedQueries]:
        """One record per passage, in order. attempt: 1 for another draw with other numbers."""
        count, seed = self.samples(n), self.seed + attempt
        keys = [row_key(seed, p.id, lang, i) for p in batch for lang in query_langs for i in range(count)]
        texts = windows(self._texts(batch, query_langs, keys, count), count)
        if self.tries_again:  # then an empty text is an answer that did not come, not a query to be judged
            texts = (list(filter(None, several)) for several in texts)
        return [GeneratedQueries(p.id, {lang: tuple(next(texts)) for lang in query_langs}) for p in batch]

    def _texts(self, batch: Sequence[Passage], langs: Sequence[str], keys: Sequence[int], count: int) -> list[str]:
        """`count` texts per passage and language, each by the random numbers of its key."""
        raise NotImplementedError

    def counters(self) -> dict[str, float]:
        """Counts and seconds so far: passages cut, seconds per phase, tokens, failed requests."""
        raise NotImplementedError

    def generate(
        self, passages: Iterable[Passage], *, query_langs: Sequence[str], n: int
    ) -> Iterator[GeneratedQueries]:
        """One record per passage, in input order; greedy gives one query per language whatever n is."""
        for batch in windows(passages, self.batch_size(query_langs, n)):
            yield from self.generate_batch(batch, query_langs=query_langs, n=n)


@dataclass(frozen=True)
class Job:
    """What to generate: languages (normalised and checked), queries per language, which shard, filtered or not.

    shard: `i/n` for every n-th passage, from the i-th on.
    """

    query_langs: tuple[str, ...]
    n: int
    shard: str = "1/1"
    query_filter: QueryFilter | None = None

    def __post_init__(self) -> None:
        if not self.query_langs:
            raise DataError("No language was given: name at least one, such as -l sw.")
        codes = [normalize(lang) for lang in self.query_langs]
        if len(set(codes)) < len(codes):
            raise DataError(f"A language is named twice in {', '.join(self.query_langs)}.")
        if self.n < 1:
            raise DataError(f"n must be 1 or more, got {self.n}.")
        if not re.fullmatch(r"\d{1,6}/\d{1,6}", self.shard) or not 1 <= self.part[0] <= self.part[1]:
            raise DataError(f"--shard takes i/n with 1 <= i <= n, such as 1/4, not {self.shard!r}.")
        object.__setattr__(self, "query_langs", tuple(codes))

    @property
    def part(self) -> tuple[int, int]:
        """The shard's number, and how many there are."""
        number, count = map(int, self.shard.split("/"))
        return number, count


def generate_file(
    corpus: Path, out: Path, *, generator: BatchGenerator, job: Job, reuse: Path | None = None,
    rejects: Rejects | None = None, progress: Progress = silent,
) -> Summary:  # fmt: skip
    """Generate queries for every passage of `corpus` (of the shard), and merge them into `out` when there is one shard.

    reuse: an output of an earlier run with the same settings; what it has about unchanged passages is taken from it.
    progress: counts passages, without those of which an earlier output has everything.
    Run again after a kill, it continues where it was: at most one batch is made twice. Run again after its end, it asks
    an endpoint once more about passages that have no query. Raises ServerError or DataError when nothing was written,
    MismatchError when `out`, its log or `reuse` were made with other settings, or the first two from another corpus.
    """
    if reuse is not None and reuse.resolve() == out.resolve():
        raise DataError(f"{out} cannot be reused and written at once: give another OUT.")
    rules = job.query_filter.to_json() if job.query_filter else None
    header = {"schema": SCHEMA, "generator": generator.settings, "langs": list(job.query_langs), "n": job.n,
              "filter": rules, "shard": list(job.part)}  # fmt: skip
    number, count = job.part
    whole = hashlib.blake2b(digest_size=8)

    def passages(rejects: Rejects | None) -> Iterator[Passage]:
        def noted(passage: Passage) -> Passage:
            whole.update(passage_digest(passage).encode())
            return passage

        return islice(map(noted, read_corpus(corpus, rejects=rejects, detect=False)), number - 1, None, count)

    first_pass = None if rejects is None else Rejects(rejects.max_rejects)
    if out.exists():
        summary = _finished_before(out, header, read_corpus(corpus, rejects=first_pass, detect=False))
        if not (summary.gaps and generator.tries_again and count == 1):
            for left in out.parent.glob(f"{glob.escape(out.name)}.shard-*-of-*"):
                left.unlink()  # a kill came between the merge and its clean-up
            return summary
        first_pass, reuse = None if rejects is None else Rejects(rejects.max_rejects), out
    with _earlier(reuse, header, gaps=generator.tries_again) as known:
        total = sum(bool(plan.missing) for plan in _planned(passages(first_pass), job, known))
        digest = whole.hexdigest()  # of all passages, so that only shards of one corpus are merged
        with RecordLog(log_path(out, number, count), header) as log:
            reader = passages(rejects)
            summary = Summary(log.path, _skip_done(log, reader), resumed=log.committed.rows)
            for info in log.committed.commits:
                summary.add(info)
            if log.committed.end is None:
                source = None if reuse is None else reuse.name
                _fill(log, _planned(reader, job, known), generator, job, summary, source, total, progress)
                told = {"corpus": digest, "counters": generator.counters(), **environment()}
                log.finish({"rows": summary.passages, **summary.counts(), **told})
    if count == 1:
        merge_shards(out, over=reuse == out)
        summary.path = out
    return summary


def _finished_before(out: Path, header: Mapping[str, Any], passages: Iterable[Passage]) -> Summary:
    """The summary of an OUT that an earlier run finished with the same settings and corpus.

    Raises MismatchError for any other OUT.
    """
    if out.is_dir():
        raise DataError(f"{out} is a folder: name the file in it that is to be written, such as queries.jsonl.")
    path = provenance_path(out)
    record = orjson.loads(path.read_bytes()) if path.is_file() else {}
    if any(record.get(key) != value for key, value in header.items() if key not in ("shard", "schema")):
        raise MismatchError(f"{out} is there already and was made otherwise: give another OUT, or remove it.")
    gaps = 0
    for written, passage in zip_longest(read_queries(out), passages):
        same = written is not None and passage is not None and written.id == passage.id
        if not same or written.passage_digest not in ("", passage_digest(passage)):
            raise MismatchError(
                f"{out} is there already and was made from another corpus: give another OUT, with --reuse {out} to "
                "write only what is new."
            )
        gaps += not all(written.queries.get(lang) for lang in header["langs"])
    count, rejected, reused = record["passages"], Counter(record["rejected"]), Counter(record.get("reused", {}))
    return Summary(out, count, record["queries"], 0.0, rejected, count, reused, gaps)


def _skip_done(log: RecordLog, passages: Iterator[Passage]) -> int:
    """Pass over the passages that are in the log, and count them.

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


def _fill(
    log: RecordLog, plans: Iterator[_Plan], generator: BatchGenerator, job: Job, summary: Summary, source: str | None,
    total: int, progress: Progress,
) -> None:  # fmt: skip
    """Write what is missing, batch by batch; Ctrl-C ends it when a batch is committed."""
    in_vain = 0
    progress("passages", summary.new_passages, total)
    with unbroken() as pause:
        begun, batches = time.monotonic(), _in_batches(plans, lambda langs: generator.batch_size(langs, job.n))
        written = in_order(lambda batch: _written(generator, batch, job), batches, at_once=generator.at_once)
        for batch, (lines, info) in written:
            in_vain = 0 if info["new_queries"] or info["rejected"] else in_vain + info["new_passages"]
            if in_vain >= SILENT:
                raise _nothing_written(log, summary, generator, in_vain)
            info["reused"] = {source: sum(bool(plan.known) for plan in batch)} if source else {}
            info["seconds"], begun = round(time.monotonic() - begun, 3), time.monotonic()
            summary.passages += len(batch)
            log.commit(lines, rows=summary.passages, info=info)
            summary.add(info)
            progress("passages", summary.new_passages, total)
            pause(f"{summary.new_passages} of {total} passages are kept")
    if summary.new_passages and not summary.queries:
        raise _nothing_written(log, summary, generator, summary.new_passages)


def _nothing_written(log: RecordLog, summary: Summary, generator: BatchGenerator, passages: int) -> XqgError:
    """The error of a run without queries; its log is removed when there is none in it, so that nothing is skipped."""
    if not summary.queries:
        log.path.unlink()
    rejected = {reason: count for reason, count in summary.rejected.items() if count and reason != REPLACED}
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        return DataError(f"The filter rejected every query ({reasons}): leave --filter out and look, or --skip a rule.")
    if generator.failure:
        return ServerError(f"No query for {passages} passages in a row. The last answer from {generator.failure}.")
    return DataError(f"The generator wrote no query for {passages} passages: take another model or --prompt.")


def _written(
    generator: BatchGenerator, batch: Sequence[_Plan], job: Job
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """A batch's rows with all queries, and its counts; passages that lack the same languages are written together."""
    queries = [dict(plan.known) for plan in batch]
    reasons: Counter[str] = Counter()
    new = 0
    for langs in dict.fromkeys(plan.missing for plan in batch if plan.missing):
        places = [i for i, plan in enumerate(batch) if plan.missing == langs]
        records, rejected = good_records(generator, [batch[i].passage for i in places], langs, job)
        reasons.update(rejected)
        for i, record in zip(places, records, strict=True):
            queries[i].update(record.queries)
            new += count_queries(record)
    lines: list[Mapping[str, Any]] = [
        {"id": p.id, "digest": passage_digest(p), "queries": {lang: texts[lang] for lang in job.query_langs}}
        for (p, *_), texts in zip(batch, queries, strict=True)
    ]
    return lines, {
        "queries": sum(len(texts) for line in lines for texts in line["queries"].values()),
        "new_passages": sum(bool(plan.missing) for plan in batch),
        "new_queries": new,
        "gaps": sum(not all(line["queries"].values()) for line in lines),
        "rejected": dict(reasons),
    }


def good_records(
    generator: BatchGenerator, batch: Sequence[Passage], langs: tuple[str, ...], job: Job
) -> tuple[list[GeneratedQueries], dict[str, int]]:
    """A batch's records and counts by reason; what a filter rejects is drawn once more, then left out."""
    records = generator.generate_batch(batch, query_langs=langs, n=job.n)
    if job.query_filter is None:
        return records, {}
    judged = job.query_filter.judge(records)
    kept = [good for good, _ in judged]
    again = [i for i, (_, faults) in enumerate(judged) if faults]
    if again:
        langs = tuple(lang for lang in langs if any(lang in faults for _, faults in judged))
        second = generator.generate_batch([batch[i] for i in again], query_langs=langs, n=job.n, attempt=1)
        for i, (spare, _) in zip(again, job.query_filter.judge(second), strict=True):
            queries = dict(kept[i].queries)
            for lang in judged[i][1]:  # only where it lost something, whatever others in the batch lost
                more = [text for text in spare.queries[lang] if text not in queries[lang]]
                queries[lang] = (*queries[lang], *more)[: job.n]
            kept[i] = GeneratedQueries(kept[i].id, queries)
    reasons = reasons_in(judged)
    if reasons:
        reasons[REPLACED] = sum(reasons.values()) - sum(map(count_queries, records)) + sum(map(count_queries, kept))
    return kept, reasons


# Queries of an earlier run for a corpus that has changed since: what it wrote about passages that are as they were.

_Known = Callable[[Passage], Mapping[str, tuple[str, ...]]]


def passage_digest(passage: Passage) -> str:
    """16 hex digits of id, title and text: all that a prompt and its random numbers take from a passage."""
    return f"{row_digest(passage, None):016x}"


@contextmanager
def _earlier(path: Path | None, header: Mapping[str, Any], *, gaps: bool) -> Iterator[_Known]:
    """What a finished output has about a passage that is as it was, by language; nothing where there is no output.

    header: the settings of the run that reuses it. gaps: languages without a query are missing. Raises DataError when
    it has no provenance beside it or is no query file, MismatchError that names the settings which differ, or when its
    records have no digests of their passages.
    """
    if path is None:
        yield lambda passage: {}
        return
    langs = _shared_languages(path, read_provenance(path), header)
    with QueryFile([path]) as table:
        if not next(table.records(table.unused(1)[0])).passage_digest:
            raise MismatchError(
                f"{path} does not say which texts its queries are about: give --reuse the file that `xqg-vdb "
                "generate` wrote, not one that was filtered afterwards, or leave --reuse out."
            )

        def known(passage: Passage) -> Mapping[str, tuple[str, ...]]:
            digest = passage_digest(passage)
            for record in table.records(passage.id):
                if record.passage_digest == digest and record.queries.keys() >= set(langs):
                    return {lang: record.queries[lang] for lang in langs if record.queries[lang] or not gaps}
            return {}

        yield known


def _shared_languages(path: Path, record: Mapping[str, Any], header: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages that an output and the run have in common. Raises MismatchError when other settings differ."""
    found, wanted = _exact_settings(record, header), _exact_settings(header, header)
    # a filter knows the examples of all languages, and judges a query by them
    if header["filter"] is not None and set(record["langs"]) != set(header["langs"]):
        found["langs"], wanted["langs"] = sorted(record["langs"]), sorted(header["langs"])
    changed = differences(found, wanted)
    if changed:
        raise MismatchError(
            f"{path} was made with other settings ({'; '.join(changed)}): use the same ones, or leave --reuse out."
        )
    langs = tuple(lang for lang in header["langs"] if lang in record["langs"])
    if not langs:
        raise MismatchError(f"{path} has queries in {', '.join(record['langs'])} only: leave --reuse out.")
    return langs


def _exact_settings(record: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, of the keys that a header has.

    Languages do not influence each other; where a checkpoint once lay says nothing, the fingerprint everything. Files
    of 0.1.0 also recorded a number of beams, which sampling never used.
    """
    kept = {key: record.get(key) for key in header if key not in ("shard", "langs")}
    generator = kept.get("generator")
    if isinstance(generator, Mapping):
        exact = {key: value for key, value in generator.items() if key not in ("source", "revision")}
        if isinstance(decoding := exact.get("decoding"), Mapping):
            exact["decoding"] = {key: value for key, value in decoding.items() if key != "beams"}
        kept["generator"] = exact
    return kept


class _Plan(NamedTuple):
    """A passage, its known queries by language, and the languages that are left to write."""

    passage: Passage
    known: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]


def _planned(passages: Iterable[Passage], job: Job, known_of: _Known) -> Iterator[_Plan]:
    for passage in passages:
        known = known_of(passage)
        yield _Plan(passage, known, tuple(lang for lang in job.query_langs if lang not in known))


def _in_batches(plans: Iterable[_Plan], size: Callable[[Sequence[str]], int]) -> Iterator[list[_Plan]]:
    """Consecutive plans, as many as fill one of the generator's batches (`size` passages for the same languages).

    Without known queries these are plain batches. They depend on where the first one begins and on nothing before it,
    so that a resumed run forms those of an unbroken one.
    """
    batch: list[_Plan] = []
    waiting: Counter[tuple[str, ...]] = Counter()
    for plan in plans:
        batch.append(plan)
        if plan.missing:
            waiting[plan.missing] += 1
        if len(batch) == LONGEST or (plan.missing and waiting[plan.missing] == size(plan.missing)):
            yield batch
            batch, waiting = [], Counter()
    if batch:
        yield batch
