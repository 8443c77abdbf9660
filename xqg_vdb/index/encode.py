"""Corpus and generated queries into a build folder: the expensive half of a load, resumable window by window."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans, TextEncoder, language_means
from xqg_vdb.errors import DataError, MismatchError
from xqg_vdb.fusion import Counts
from xqg_vdb.index.build import Build, Window, fill_build
from xqg_vdb.progress import Progress, silent, traced
from xqg_vdb.texts.corpus import read_corpus
from xqg_vdb.texts.languages import without_long_blanks
from xqg_vdb.texts.queries import QueryFile, row_digest
from xqg_vdb.texts.records import Rejects, hash64, open_lines
from xqg_vdb.types import EncoderFacts, GeneratedQueries, Passage, Vectors

Row = tuple[Passage, GeneratedQueries | None]


class EarlierBuild:
    """Rows of earlier build folders, found by their digests: of a changed corpus only what is new is encoded.

    Raises MismatchError for folders of another encoder, DataError, CorruptError.
    """

    def __init__(self, folders: Iterable[str | Path], *, encoder: EncoderFacts) -> None:
        self._rows = Build(Path(), encoder.fingerprint, encoder.dim, complete=True, files=(), starts=(0,))
        for folder in folders:
            build = Build.open(folder)
            if build.fingerprint != encoder.fingerprint:
                raise MismatchError(
                    f"The vectors in {build.path} were made with another encoder ({build.fingerprint}, this is "
                    f"{encoder.fingerprint}): leave out --reuse {build.path}."
                )
            self._rows = self._rows.joined(build)
        digests = self._rows.digests()
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def find(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each of `digests` (m,) lies, for `take`; -1 for none."""
        if not len(self._digests):
            return np.full(len(digests), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        return np.where(self._digests[at] == digests, self._order[at], -1)

    def take(self, rows: NDArray[np.int64]) -> Window:
        """The rows at these places, none of them -1."""
        return self._rows.take(rows)


def encode_corpus(
    corpus: Path, *, encoder: TextEncoder, queries: QueryFile | None, path: Path, reuse: Sequence[str | Path] = (),
    rejects: Rejects | None = None, default_lang: str | None = None,
    split: Callable[[Passage], Sequence[Passage]] | None = None, cut: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> tuple[Build, str, int]:  # fmt: skip
    """Encode every passage and its queries into the build folder `path`, continuing where an earlier run stopped.

    cut: gets what `count_cut` counts. Returns the build, `rows_digest` of the corpus, and how many passage
    vectors came from the builds `reuse` of this encoder. The corpus is read even when everything is encoded: to see
    that it is the same, and for the counts of `rejects`.
    Raises DataError for a bad corpus, MismatchError when `path` was made from another corpus, other queries or another
    encoder, LockedError, DiskError, CorruptError.
    """
    total = count_lines(corpus) if split is None else None
    payloads = hashlib.blake2b(digest_size=16)
    facts, known, reused = encoder.facts, EarlierBuild(reuse, encoder=encoder.facts), list[int]()

    def digests(rows: Sequence[Row]) -> NDArray[np.uint64]:
        payloads.update(b"".join(payload_bytes(passage) for passage, _ in rows))
        if cut is not None:
            count_cut(rows, encoder, cut)
        return digests_of(rows)

    def encode(rows: Sequence[Row], digests: NDArray[np.uint64]) -> Window:
        window, old = encode_rows(rows, digests, encoder, known)
        reused.append(old)
        return window

    # languages are not encoded: detecting them can wait
    rows = read_rows(corpus, queries=queries, rejects=rejects, default_lang=default_lang, split=split, detect=False)
    build = fill_build(
        path, rows, dim=facts.dim, fingerprint=facts.fingerprint, digests=digests, encode=encode,
        say=lambda done: progress("encoding", done, total),
        texts=lambda row: 1 + sum(map(len, row[1].queries.values())) if row[1] else 1,
        at_once=getattr(encoder, "at_once", 1),  # of an encoder on a cluster
    )  # fmt: skip
    return build, combined_digest(build.digests(), payloads.hexdigest()), sum(reused)


def read_rows(
    corpus: Path, *, queries: QueryFile | None, rejects: Rejects | None = None, default_lang: str | None = None,
    split: Callable[[Passage], Sequence[Passage]] | None = None, detect: bool = True,
) -> Iterator[Row]:  # fmt: skip
    """Each passage of the corpus with its generated queries, in corpus order; `detect`: find out missing languages.

    split: makes chunks of a document; each has all of the document's queries, so that its vector depends on no other.
    """
    whole = split is None
    for passage in read_corpus(corpus, rejects=rejects, default_lang=default_lang, detect=detect, whole=whole):
        given = queries.get(passage.id) if queries is not None else None
        for part in [passage] if split is None else split(passage):
            yield part, given


def count_cut(rows: Sequence[Row], encoder: TextEncoder, cut: dict[str, Any]) -> None:
    """Add what the encoder leaves unread: how many `passages`, their `tokens`, how many are `lost`, the `first` ids.

    Nothing is counted where the tokenizer is elsewhere.
    """
    most: int = getattr(encoder, "most_tokens", None) or 0
    # a token has a byte at least; half as many are told for what a normaliser may add
    long = [passage for passage, _ in rows if most and 2 * len(passage.title_and_text.encode(errors="replace")) > most]
    texts = [encoder.facts.passage_prefix + without_long_blanks(passage.title_and_text) for passage in long]
    for passage, spans in zip(long, getattr(encoder, "token_spans", list)(texts) if texts else (), strict=True):
        if len(spans) > most:
            for what, more in {"passages": 1, "tokens": len(spans), "lost": len(spans) - most}.items():
                cut[what] = cut.get(what, 0) + more
            cut["first"] = [*cut.get("first", ()), passage.id][:5]


def cut_in_words(cut: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for a report, where anything was cut."""
    if cut:
        ids = ", ".join(cut["first"]) + (", …" if cut["passages"] > len(cut["first"]) else "")
        room = min(200, (cut["tokens"] - cut["lost"]) // cut["passages"] * 3 // 4)  # the prefix takes some, too
        yield (
            f"{cut['passages']:,} passages are longer than what the encoder reads: {cut['lost'] / cut['tokens']:.0%} of"
            f" their tokens are in no vector ({ids}); load with --chunk {room}:{room // 5} to search all of them"
        )


def count_lines(corpus: Path) -> int | None:
    """How many passages a corpus holds at most, for progress bars; None where counting would mean unpacking it."""
    if corpus.suffix not in (".jsonl", ".tsv") or not corpus.is_file():
        return None
    return sum(1 for _ in open_lines(corpus))


def digests_of(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """What tells one passage with its queries from another, (n,)."""
    return np.array([row_digest(*row) for row in rows], dtype=np.uint64)


def rows_digest(rows: Iterable[Row]) -> str:
    """Of all that a load stores, in order: what is encoded, and then what is not (`Card.rows_digest`)."""
    payloads, digests = hashlib.blake2b(digest_size=16), array("Q")
    for passage, queries in rows:
        digests.append(row_digest(passage, queries))
        payloads.update(payload_bytes(passage))
    return combined_digest(np.array(digests, np.uint64), payloads.hexdigest())


def combined_digest(digests: NDArray[np.uint64], payloads: str) -> str:
    """Of rows in their order, and of what is stored but not encoded (languages, other fields)."""
    return hashlib.blake2b(digests.tobytes() + payloads.encode(), digest_size=16).hexdigest()


def payload_bytes(passage: Passage) -> bytes:
    """What is stored of a passage and not encoded."""
    span = [] if passage.span is None else [passage.span]
    return orjson.dumps([passage.lang, passage.meta, *span], option=orjson.OPT_SORT_KEYS)


def encode_rows(
    rows: Sequence[Row], digests: NDArray[np.uint64], encoder: TextEncoder, known: EarlierBuild
) -> tuple[Window, int]:
    """A window, and how many of its passage vectors were known. New texts keep the window's order."""
    whole = known.find(digests)
    # a passage that had no queries then: its vector serves, and its sums are none
    at = np.where(whole >= 0, whole, known.find(digests_of([(passage, None) for passage, _ in rows])))
    new, old = np.flatnonzero(at < 0), np.flatnonzero(at >= 0)
    vectors = np.empty((len(rows), encoder.facts.dim), dtype=np.float32)
    if len(new):
        with traced("encode", {"texts": len(new), "encoder": encoder.facts.source}):
            vectors[new] = encoder.encode_passages([rows[row][0].title_and_text for row in new.tolist()])
    sums = query_sums([None if at >= 0 else queries for at, (_, queries) in zip(whole, rows, strict=True)], encoder)
    if len(old):
        earlier = known.take(at[old])
        vectors[old] = earlier.passages
        for lang, (totals, counts) in earlier.sums.items():
            both = sums.setdefault(lang, (np.zeros_like(vectors), np.zeros(len(rows), np.int32)))
            has = old[counts > 0]
            both[0][has], both[1][has] = totals[counts > 0], counts[counts > 0]
    return Window([passage.id for passage, _ in rows], digests, vectors, sums), len(old)


def query_sums(rows: Sequence[GeneratedQueries | None], encoder: TextEncoder) -> dict[str, tuple[Vectors, Counts]]:
    """Per language the sum of each row's query vectors and their number; all languages are encoded in one stream."""
    each = {id(queries): queries for queries in rows}  # chunks have their document's together: encoded once
    flat = _flat(each.values())
    if not flat:
        return {}
    texts, owner, index, lang = zip(*flat, strict=True)
    vectors = encoder.encode_queries(texts, calibrate=False)
    sums = QueryVectors(vectors, np.array(owner), np.array(index), np.array(lang)).sums(passages=len(each))
    if len(each) == len(rows):
        return sums
    places = {key: place for place, key in enumerate(each)}
    place = np.array([places[id(queries)] for queries in rows])
    return {lang: (total[place], counts[place]) for lang, (total, counts) in sums.items()}


def _flat(
    rows: Iterable[GeneratedQueries | None], langs: Sequence[str] | None = None
) -> list[tuple[str, int, int, str]]:
    """Every query (of these languages) with its row, its number there and its language."""
    return [
        (text, row, number, lang)
        for row, queries in enumerate(rows)
        if queries is not None
        for lang, texts in sorted(queries.queries.items())
        if langs is None or lang in langs
        for number, text in enumerate(texts)
    ]


# Vectors of texts, kept on disk under a name made of the texts and the encoder: encoded once, whatever asks for them.


def encode_cached(
    texts: Sequence[str], *, encoder: TextEncoder, kind: Literal["queries", "passages"], folder: Path,
    progress: Progress = silent, stage: str = "encoding",
) -> Vectors:  # fmt: skip
    """Rows (len(texts), dim) float32; encoded now where `folder` does not hold them yet.

    kind: which have different prefixes; queries are not calibrated. Raises LockedError, DiskError,
    CorruptError, DataError.
    """
    facts = encoder.facts
    encode = encoder.encode_passages if kind == "passages" else partial(encoder.encode_queries, calibrate=False)
    place = folder / f"{kind}-{facts.fingerprint}-{digest_of(texts)}"
    build = fill_build(
        place,
        texts,
        dim=facts.dim,
        fingerprint=facts.fingerprint,
        digests=lambda part: np.array([hash64(text.encode("utf-8", "surrogatepass")) for text in part], np.uint64),
        encode=lambda part, digests: Window([""] * len(part), digests, encode(part), {}),
        say=lambda done: progress(stage, done, len(texts)),
    )
    return build.passages()


def digest_of(texts: Sequence[str]) -> str:
    """16 hexadecimal digits for a list of texts, order included."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


# Generated queries as vectors one by one, where a build folder has only their sums: for experiments and for tuning.


@dataclass(frozen=True)
class QueryVectors:
    """Generated queries of one task, flat: query i belongs to passage row owner[i] and is the index[i]-th of lang[i].

    vectors (m, dim) float32; owner, index (m,) int64; lang (m,) str. unused: records that belong to no passage.
    """

    vectors: Vectors
    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    lang: NDArray[np.str_]
    unused: int = 0

    @property
    def langs(self) -> list[str]:
        """The languages, sorted."""
        return sorted(set(self.lang.tolist()))

    def sums(
        self, *, passages: int, n: int | None = None, langs: Sequence[str] | None = None
    ) -> dict[str, tuple[Vectors, Counts]]:
        """Per language the sum over each passage's first n query vectors (passages, dim), and how many (passages,)."""
        sums: dict[str, tuple[Vectors, Counts]] = {}
        for lang in self.langs if langs is None else langs:
            rows = (self.lang == lang) if n is None else (self.lang == lang) & (self.index < n)
            total = np.zeros((passages, self.vectors.shape[1]), dtype=np.float32)
            np.add.at(total, self.owner[rows], self.vectors[rows])
            sums[lang] = (total, np.bincount(self.owner[rows], minlength=passages).astype(np.int32))
        return sums

    def means(self) -> LanguageMeans:
        """The mean query vector of each language."""
        by_lang = {lang: self.vectors[self.lang == lang] for lang in self.langs}
        return language_means(by_lang, source="generated queries")


def encode_query_files(
    files: Sequence[Path], ids: Iterable[str], *, encoder: TextEncoder, folder: Path,
    langs: Sequence[str] | None = None, progress: Progress = silent,
) -> QueryVectors:  # fmt: skip
    """Encode the generated queries of the passages `ids` in that order, or take them from `folder`.

    langs: only these. Raises DataError when the files have none for any of them.
    """
    with QueryFile(files) as table:
        flat = _flat((table.get(passage) for passage in ids), langs)
        unused = table.unused_count
    if not flat:
        raise DataError(
            f"{', '.join(map(str, files))}: no query belongs to any of these passages; are the ids the corpus's own?"
        )
    texts, owner, index, lang = zip(*flat, strict=True)
    vectors = encode_cached(
        texts, encoder=encoder, kind="queries", folder=folder, progress=progress,
        stage=f"queries of {files[0].name}",
    )  # fmt: skip
    return QueryVectors(vectors, np.array(owner), np.array(index), np.array(lang), unused)
