"""What every benchmark becomes: one frozen record of passages, questions and judgements, whatever the format.

The readers beside this file know formats; this one knows none. It also holds what they share: looking for files under
--data-dir with an error that says where to get them, and passages that are read anew each time they are iterated.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from xqg_vdb.errors import DataError
from xqg_vdb.evaluate.metrics import Average, Qrels, asked_passage
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.texts.languages import english_name, near_matches, normalize
from xqg_vdb.texts.records import BadRecord, Rejects, Source, has_content, parse_object, read_objects, record_id
from xqg_vdb.types import UNKNOWN_LANGUAGE, Passage, Question

POOL = "pool"
"""The key of `Passage.meta` that says to which pool a passage of a pooled task belongs."""


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """One benchmark, ready to run.

    name: as in reports, with the variant. passages: may be iterated again and again; a list when they fit in memory.
    queries: with language. qrels: question id -> passage id -> grade; empty for tasks judged by answer strings.
    answers: question id -> gold answer strings, or None. metrics: in the publisher's convention: names for
    `metrics.parse_metrics`, or `R@2kt`, `R@5kt` (`answer_recall`), or `F1@1` (`nearest_f1`).
    groups: question id -> what results are broken down by: the language (`und` without one) unless given.
    average: the publisher's headline is the mean over `queries`, or over `groups` (macro).
    pooled: every group has its own pool, `Passage.meta["pool"]`.
    notes: counts for the report, such as rows skipped and why.
    topics: question id -> a name that it shares with its translations and with questions of the same passage, where
    the relevant passages alone do not tell; see `clusters`.
    not_itself: a passage with the question's own id is not among what it finds (BEIR's rule).
    """

    name: str
    passages: Iterable[Passage]
    queries: tuple[Question, ...]
    qrels: Qrels
    metrics: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, tuple[str, ...]] | None = None
    average: Average = "groups"
    pooled: bool = False
    notes: Mapping[str, int | str] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    not_itself: bool = False

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", {query.id: query.lang or UNKNOWN_LANGUAGE for query in self.queries})

    def narrowed(self, kept: Iterable[str]) -> RetrievalTask:
        """The task with these questions only, in its own order; all passages stay."""
        ids = set(kept)
        return replace(
            self,
            queries=tuple(query for query in self.queries if query.id in ids),
            qrels={qid: grades for qid, grades in self.qrels.items() if qid in ids},
            groups={qid: group for qid, group in self.groups.items() if qid in ids},
            answers=self.answers and {qid: golds for qid, golds in self.answers.items() if qid in ids},
        )

    def clusters(self) -> dict[str, str]:
        """Question id -> what it shares with others: its `topics` entry, else the passage that it asks for."""
        asked = {query.id: asked_passage(self.qrels.get(query.id, {})) for query in self.queries}
        return {
            qid: self.topics.get(qid) or (f"question {qid}" if passage is None else f"passage {passage}")
            for qid, passage in asked.items()
        }


def sampled_questions(task: RetrievalTask, n: int) -> RetrievalTask:
    """The task with n questions of each group, spread over clusters, in its own order; all passages stay.

    One question a group in turn, each time from the cluster that has been asked about least in any group; which of
    equals is decided by a hash of its id, so that the same n gives the same questions everywhere.
    """
    clusters, asked, kept = task.clusters(), Counter[str](), set[str]()
    order = {q.id: hashlib.blake2b(q.id.encode(), digest_size=8, key=b"xqg questions 1").digest() for q in task.queries}
    waiting: dict[str, set[str]] = {}
    for qid in order:
        waiting.setdefault(task.groups[qid], set()).add(qid)
    for _, group in product(range(n), sorted(waiting)):
        if waiting[group]:
            qid = min(waiting[group], key=lambda qid: (asked[clusters[qid]], order[qid], qid))
            waiting[group].remove(qid)
            kept.add(qid)
            asked[clusters[qid]] += 1
    return task.narrowed(kept)


def find_file(data_dir: Path, *names: str, source: str) -> Path:
    """Return the first of `names` that exists under `data_dir`, plain or with `.gz`.

    Raises DataError that says what is missing, where it was looked for and that `source` has it.
    """
    path = look_for(data_dir, *names)
    if path is None:
        raise DataError(missing(data_dir, *names, source=source))
    return path


def look_for(data_dir: Path, *names: str) -> Path | None:
    """Return the first of `names` that exists under `data_dir`, plain or with `.gz`, or None."""
    candidates = [data_dir / variant for name in names for variant in (name, f"{name}.gz")]
    return next((path for path in candidates if path.exists()), None)


def missing(data_dir: Path, *names: str, source: str) -> str:
    """Say that none of `names` is under `data_dir`, and where to get them."""
    also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    return f"{names[0]}{also} is not in {data_dir}; get it from {source}, or point --data-dir (XQG_DATA_DIR) to it."


def language_files(
    data_dir: Path, *patterns: str, langs: Sequence[str] | None = None, source: str
) -> list[tuple[str, Path]]:
    """The file of each language that the folder has: what stands for {lang} in `patterns`, and where, sorted.

    `*` in a pattern stands for anything, and files may end in `.gz`. Of several patterns the first that has a language
    gives its files. langs: these only, by the files' names of languages. DataError when there is no file for one.
    """
    found: dict[str, tuple[int, list[Path]]] = {}
    for rank, pattern in enumerate(patterns):
        shape = re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\{lang\}", r"(?P<lang>[\w-]+)", 1)
        named = re.compile(shape.replace(r"\{lang\}", "(?P=lang)") + r"(\.gz)?")
        for path in sorted(data_dir.glob(re.sub(r"\*+", "*", pattern.replace("{lang}", "*") + "*"))):
            match = named.fullmatch(path.relative_to(data_dir).as_posix())
            if match is None or language_code(match["lang"]) is None:
                continue
            first, paths = found.setdefault(match["lang"], (rank, []))
            if first == rank and path.with_suffix("") not in paths:  # the plain file comes before its own .gz
                paths.append(path)
    for lang in langs if langs is not None else [] if found else ["{lang}"]:
        if lang not in found:
            raise DataError(missing(data_dir, *(p.replace("{lang}", lang) for p in patterns), source=source))
    return [(lang, path) for lang in sorted(langs or found) for path in found[lang][1]]


def language_code(name: str) -> str | None:
    """The code of a language that a file names by a code (`swa`, `zh_cn`) or in English; None for other words."""
    try:
        return normalize(name.replace("_", "-"))
    except DataError:
        code = next(iter(near_matches(name, limit=1)), "")
        return code if code and english_name(code).lower() == name.lower() else None


_Row = TypeVar("_Row")


def read_rows(path: Path, what: str, parse: Callable[[dict[str, Any]], _Row]) -> Iterator[_Row]:
    """The objects of a JSON-lines file, each through `parse`; what: name of a row, for the error of another one."""
    for source, record in read_objects(path, Rejects()):
        try:
            yield parse(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} line {source.line}: not {what} ({error!r}).") from error


# Large passage files of benchmarks (Wikipedia and the like), streamed; `corpus.read_corpus` does the reading.

ENGLISH_WIKIPEDIA = ("enwiki_20190201_w100.tsv", "psgs_w100.tsv", "corpus.tsv", "corpus.jsonl")
"""Names under which an English passage collection is looked for: XOR-TyDi's, DPR's, and plain ones."""


class CorpusFiles:
    """The passages of corpus files in order, read anew each time it is iterated; a title alone is a text.

    files: by pool, "" for one pool of all. A pool is a language; ids in it become `{pool}:{id}`, because publishers
    count from zero in every language, and `meta["pool"]` is set. lang: language of passages that name none, outside.
    skipped: records that the last pass could not use, such as blank texts: their ids ("" where none can be read) and
    what is wrong with them.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]], *, lang: str = UNKNOWN_LANGUAGE) -> None:
        self._files, self._lang = dict(files), lang
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Passage]:
        self.skipped = []
        for pool, paths in self._files.items():
            rejects, prefix = Skipped(), f"{pool}:" if pool else ""
            lang = pool or self._lang
            for passage in read_corpus(*paths, rejects=rejects, default_lang=lang, detect=False, title_only=True):
                meta = {**passage.meta, POOL: pool} if pool else passage.meta
                yield replace(passage, id=prefix + passage.id, meta=meta)
            self.skipped += [(docid and prefix + docid, fault) for docid, fault in rejects.records]


class Skipped(Rejects):
    """Keeps the ids and faults of records that cannot be used."""

    def __init__(self) -> None:
        super().__init__(max_rejects=sys.maxsize)
        self.records: list[tuple[str, str]] = []

    def reject(self, source: Source, reason: str) -> None:
        """Count `source` as refused."""
        super().reject(source, reason)
        self.records.append((_id_of(source), f"{source.file} line {source.line}: {reason}"))


def _id_of(source: Source) -> str:
    """The id of a refused line, "" where it has none that can be read."""
    try:
        return record_id(parse_object(source.raw))
    except BadRecord:
        first, tab, _ = source.raw.decode("utf-8", "replace").partition("\t")
        return first.strip() if tab else ""


def such_as(ids: Iterable[str]) -> str:
    """Some of the ids in parentheses, for a note."""
    return f" (such as {', '.join(map(repr, sorted(ids)[:3]))})"


def with_corpus_notes(task: RetrievalTask, skipped: Sequence[tuple[str, str]] = ()) -> RetrievalTask:
    """The task with notes of what its corpus lacks, whose files are read once; each question once.

    skipped: ids and faults of records that could not be used when the passages were read before. Raises DataError when
    a relevant passage is among what cannot be used: the results would be wrong. Also for questions without a text, two
    of one id, and none at all.
    """
    task = replace(task, queries=tuple(dict.fromkeys(task.queries)))
    if not (ids := Counter(query.id for query in task.queries)):
        raise DataError(f"{task.name} has no question with judgements: do its files belong together?")
    for query in task.queries:
        if not isinstance(query.text, str) or not has_content(query.text):
            raise DataError(f"{task.name}: question {query.id!r} has no text: correct its file, or take it out.")
        if ids[query.id] > 1:
            raise DataError(f"{task.name}: two questions have the id {query.id!r}: correct their file.")
    if not isinstance(task.passages, CorpusFiles | list):
        return task
    asked = {query.id for query in task.queries}
    relevant = {docid for of in task.qrels.values() for docid, grade in of.items() if grade > 0}
    lacking, of_itself = set(relevant), 0
    for passage in task.passages:
        lacking.discard(passage.id)
        of_itself += passage.id in asked
    skipped = [*skipped, *(task.passages.skipped if isinstance(task.passages, CorpusFiles) else ())]
    for docid, fault in skipped:
        if docid in relevant or (lacking and not docid):
            raise DataError(
                f"{fault}; so {docid or sorted(lacking)[0]!r}, which the qrels call relevant, would be left out: "
                "correct the corpus, or take that passage out of the qrels."
            )
    notes = {
        f"records of the corpus skipped (first: {skipped[0][1]})" if skipped else "": len(skipped),
        f"relevant passages that are not in the corpus{such_as(lacking)}": len(lacking),
        "questions with the id of a passage, which they do not find (BEIR's rule)": of_itself if task.not_itself else 0,
    }
    return replace(task, notes={**task.notes, **{what: n for what, n in notes.items() if n}})
