"""A load in steps over Arrow tables, for engines that spread work over machines (Ray Data, Spark, Daft).

Every step is a callable of picklable arguments that opens what it needs where it runs, and calls what `load` and
`generate_file` call. Tables of the same 512 rows as the windows of a load make the same points, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans, TextEncoder
from xqg_vdb.errors import DataError, MismatchError, XqgError
from xqg_vdb.files import atomic_file, disk_errors, make_folder
from xqg_vdb.fusion import Counts
from xqg_vdb.generate.run import BatchGenerator, Job, good_records, passage_digest
from xqg_vdb.index.build import Window
from xqg_vdb.index.encode import EarlierBuild, Row, combined_digest, digests_of, encode_rows, payload_bytes
from xqg_vdb.index.write import means_of, points, query_totals
from xqg_vdb.models.decoder import Decoding
from xqg_vdb.progress import windows
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import content_hash, digest_of
from xqg_vdb.texts.corpus import as_passage, with_languages
from xqg_vdb.texts.languages import normalize
from xqg_vdb.texts.queries import QueryFile, as_queries
from xqg_vdb.texts.records import hash64
from xqg_vdb.texts.tables import arrow_rows
from xqg_vdb.types import Card, Passage, PointBatch, Vectors

_VECTOR = "vector "
_OURS = {"generated_queries", "passage_digest"}
_query_files = lru_cache(maxsize=1)(QueryFile)
_connected = lru_cache(maxsize=1)(lambda url: cast(Any, open_store(url=url)))


@dataclass
class Encode:
    """A table of passages, with the fields that a line of a corpus has, into their vectors and query sums by language.

    Generated queries stand in the column `generated_queries`, as an object or as JSON, or in the files `queries`.
    encoder: a model's folder, or an encoder that can be pickled; fingerprint: of the encoder that the driver has.
    work: a folder that all machines see; what was encoded is kept there, found again, and not returned.
    Raises DataError for a row that is no passage, MismatchError for another encoder.
    """

    encoder: str | TextEncoder
    fingerprint: str
    default_lang: str | None = None
    queries: tuple[str, ...] = ()
    work: str | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """The encoded rows; with `work` their `totals`, and the `file` that they are in."""
        encoder = _opened(self.encoder) if isinstance(self.encoder, str) else self.encoder
        refuse_another("encoder", encoder.facts.fingerprint, self.fingerprint)
        rows = rows_of(table, default_lang=self.default_lang)
        if self.queries:
            if any(queries for _, queries in rows):
                raise DataError("The dataset has generated_queries, and files of queries are given: give one of them.")
            rows = [(passage, _query_files(self.queries).get(passage.id)) for passage, _ in rows]
        digests, payloads = digests_of(rows), [payload_bytes(passage) for passage, _ in rows]

        def encoded() -> pa.Table:
            window, _ = encode_rows(rows, digests, encoder, EarlierBuild((), encoder=encoder.facts))
            return _encoded(window, [passage for passage, _ in rows])

        made, path = _kept(self.work, [self.fingerprint.encode(), digests.tobytes(), *payloads], encoded)
        return made if self.work is None else totals(made).append_column("file", pa.array([path]))


@dataclass
class GenerateQueries:
    """A table of passages with their queries in the column `generated_queries` (JSON), those of `generate_file`.

    model: a generator's folder; fingerprint: of the one that the driver has. prompt, decoding: as in `open_generator`.
    work: a folder that all machines see, in which finished tables are kept and found again.
    """

    model: str
    fingerprint: str
    job: Job
    prompt: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    work: str | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with its new columns."""
        generator = _generator(self.model, self.job.query_langs, self.prompt, self.decoding)
        refuse_another("generator", generator.settings["fingerprint"], self.fingerprint)
        passages = [
            passage for passage, _ in rows_of(table.drop_columns(_OURS & set(table.column_names)), detect=False)
        ]
        digests = [passage_digest(passage) for passage in passages]

        def generated() -> pa.Table:
            rules = self.job.query_filter and replace(self.job.query_filter, examples=generator.examples)
            job, texts = replace(self.job, query_filter=rules), []
            for batch in windows(passages, generator.batch_size(job.query_langs, job.n)):
                records, _ = good_records(generator, batch, job.query_langs, job)
                texts += [orjson.dumps(dict(record.queries)).decode() for record in records]
            return pa.table({"generated_queries": texts, "passage_digest": digests})

        settings = repr((generator.settings, self.job)).encode()
        made, _ = _kept(self.work, [settings, *map(str.encode, digests)], generated)
        return pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **made.to_pydict()})


def refuse_another(what: str, found: str, expected: str) -> None:
    """Raise MismatchError for a worker's model that is not the driver's."""
    if found != expected:
        raise MismatchError(
            f"This worker's {what} has the fingerprint {found}, the driver's {expected}: give all machines the same"
            " model folder."
        )


def _kept(work: str | None, made_of: Iterable[bytes], make: Callable[[], pa.Table]) -> tuple[pa.Table, str]:
    """A table and its file in a work folder, if there is one, where it is found again by what it is made of."""
    if work is None:
        return make(), ""
    digest = hashlib.blake2b(digest_size=16)
    for part in made_of:
        digest.update(len(part).to_bytes(8, "little") + part)
    name = digest.hexdigest()
    path = Path(work, name[:2], f"{name}.parquet")
    with suppress(XqgError, pa.ArrowException):  # not there, or damaged
        return _read(path), str(path)
    table = make()
    with disk_errors(path.parent):
        make_folder(path.parent)
    with atomic_file(path) as file:
        pq.write_table(table, file, write_page_checksum=True)
    return table, str(path)


def _read(path: str | Path) -> pa.Table:
    with disk_errors(path):
        return pq.read_table(path, page_checksum_verification=True)


def rows_of(table: pa.Table, *, default_lang: str | None = None, detect: bool = True) -> list[Row]:
    """What the rows of a table say. Raises DataError for one that is no passage, or whose queries are none."""
    rows = [row for batch in table.to_batches() for row in arrow_rows(batch, {})]
    given = [row.pop("generated_queries", None) for row in rows]
    fallback = None if default_lang is None else normalize(default_lang)
    passages = list(with_languages(map(as_passage, rows), fallback, detect=detect))
    try:
        objects = [orjson.loads(queries or "null") if isinstance(queries, str) else queries for queries in given]
    except orjson.JSONDecodeError as error:
        raise DataError(f"{error.doc!r:.60} in generated_queries is no JSON ({error}).") from error
    return [
        (passage, as_queries({"id": passage.id, "generated_queries": queries}) if queries else None)
        for passage, queries in zip(passages, objects, strict=True)
    ]


@lru_cache(maxsize=1)
def _opened(folder: str) -> TextEncoder:
    from xqg_vdb.models.encoder import Encoder  # brings onnxruntime

    return Encoder(folder, threads=1)


@lru_cache(maxsize=1)
def _generator(model: str, langs: tuple[str, ...], prompt: str | None, decoding: Decoding) -> BatchGenerator:
    from xqg_vdb.generate.local import open_generator  # brings onnxruntime

    return open_generator(model, query_langs=langs, prompt=prompt, decoding=decoding, threads=1)


def _encoded(window: Window, passages: list[Passage]) -> pa.Table:
    """Row by row; `sums` lists a language, a count and a sum for each language that a passage has queries in."""
    row_of_sums = pa.list_(pa.float32(), window.passages.shape[1])
    kind = pa.list_(pa.struct([("lang", pa.string()), ("count", pa.int32()), ("sum", row_of_sums)]))
    sums = [
        [{"lang": lang, "count": n[row], "sum": total[row]} for lang, (total, n) in window.sums.items() if n[row]]
        for row in range(len(window))
    ]
    made = _passages_table(passages).append_column("row", pa.array(window.digests))
    return made.append_column("vector", _matrix(window.passages)).append_column("sums", pa.array(sums, kind))


def _decoded(table: pa.Table) -> tuple[Window, list[Passage]]:
    """The window that `_encoded` wrote, and its passages."""
    passages, vectors = _passages(table), _rows(table["vector"])
    sums: dict[str, tuple[Vectors, Counts]] = {}
    listed = _one(table["sums"])
    owners = np.repeat(np.arange(len(table)), pc.list_value_length(listed).to_numpy(zero_copy_only=False))
    langs, counts, totals = listed.flatten().flatten()
    names, numbers, rows = np.array(langs.to_pylist(), np.str_), counts.to_numpy(), _rows(totals)
    for lang in sorted(set(names.tolist())):
        both = sums[lang] = np.zeros_like(vectors), np.zeros(len(table), np.int32)
        both[0][owners[names == lang]] = rows[names == lang]
        both[1][owners[names == lang]] = numbers[names == lang]
    digests = table["row"].to_numpy()
    return Window([passage.id for passage in passages], digests, vectors, sums), passages


def _passages_table(passages: Iterable[Passage]) -> pa.Table:
    columns = [(p.id, p.text, p.title, p.lang, orjson.dumps(dict(p.meta)).decode()) for p in passages]
    names = ("id", "text", "title", "lang", "meta")
    return pa.table({name: pa.array([row[at] for row in columns], pa.string()) for at, name in enumerate(names)})


def _passages(table: pa.Table) -> list[Passage]:
    rows = table.select(["id", "text", "title", "lang", "meta"]).to_pylist()
    return [Passage(**{**row, "meta": orjson.loads(row["meta"])}) for row in rows]


def _matrix(rows: Vectors) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])


def _one(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _rows(column: Any) -> Vectors:
    width = getattr(column.type, "list_size", -1)  # some engines make plain lists of those of fixed size
    found: Vectors = _one(column).flatten().to_numpy().reshape(len(column), width)
    return found


# What the driver must know of everything that was encoded: a row for each table, and those to one.


def totals(encoded: pa.Table) -> pa.Table:
    """One row of an encoded table: its ids as hashes, digests of rows and points, the queries' sums and counts."""
    window, passages = _decoded(encoded)
    digest = combined_digest(window.digests, hashlib.sha256(b"".join(map(payload_bytes, passages))).hexdigest())
    points = sum(content_hash(passage.id, passage.text) for passage in passages)
    ids = np.array([hash64(docid.encode()) for docid in window.ids], np.uint64)
    sums = [{"lang": lang, "sum": total.tolist(), "count": n} for lang, (total, n) in query_totals(window.sums).items()]
    kind = pa.list_(pa.struct([("lang", pa.string()), ("sum", pa.list_(pa.float64())), ("count", pa.int64())]))
    row = {"ids": [ids.tobytes()], "digest": [digest], "points": [digest_of(points)], "sums": pa.array([sums], kind)}
    return pa.table(row)


def combined(parts: Iterable[Mapping[str, Any]]) -> tuple[int, str, str, LanguageMeans, list[str]]:
    """Of the rows of `totals` in the corpus's order: how many passages, digests of rows and points, queries' means.

    Last the files of a work folder, if there is one. Raises DataError where two passages have the same id.
    """
    ids, rows, points, files = bytearray(), hashlib.blake2b(digest_size=16), 0, list[str]()

    def each() -> Iterator[dict[str, tuple[NDArray[np.float64], int]]]:
        nonlocal points
        for part in parts:
            ids.extend(part["ids"])
            rows.update(part["digest"].encode())
            points += int(part["points"], 16)
            files.extend([part["file"]] if "file" in part else [])
            yield {entry["lang"]: (np.array(entry["sum"]), entry["count"]) for entry in part["sums"]}

    means, hashes = means_of(each()), np.frombuffer(ids, np.uint64)
    if not len(hashes):
        raise DataError("The dataset holds no passage.")
    order = np.argsort(hashes, kind="stable")
    if len(again := np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])):
        at = again[order[again + 1].argmin()]
        first, second = order[at : at + 2] + 1
        raise DataError(f"Rows {first} and {second} of the dataset have the same id: leave one of them out.")
    return len(hashes), rows.hexdigest(), digest_of(points), means, files


@dataclass
class Fuse:
    """Encoded rows, or the `file` that holds them, into points: passages, vectors by name, languages, digests."""

    card: Card

    def __call__(self, table: pa.Table) -> pa.Table:
        """The points of a collection of this card."""
        if "file" in table.column_names:
            table = pa.concat_tables(map(_read, table["file"].to_pylist()))
        (batch,) = points([_decoded(table)], self.card)
        made = _passages_table(batch.passages).append_column("row", pa.array(batch.rows, pa.string()))
        made = made.append_column("query_langs", pa.array(batch.query_langs, pa.list_(pa.string())))
        for name, rows in batch.vectors.items():
            made = made.append_column(_VECTOR + name, _matrix(rows))
        return made


@dataclass
class Upsert:
    """Points into the unpublished `version` on the server at `url`, with patience; says how many.

    The key comes from XQG_VDB_API_KEY of the machine that it runs on. Writing points again changes nothing. Raises
    DataError that names the passage which the server refuses, ServerError when it stays away.
    """

    url: str
    version: str
    card: Card

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: how many points."""
        passages = _passages(table)
        vectors = {name.removeprefix(_VECTOR): _rows(table[name]) for name in table.column_names if _VECTOR in name}
        batch = PointBatch(passages, vectors, table["query_langs"].to_pylist(), rows=table["row"].to_pylist())
        with _connected(self.url).helper(self.version, card=self.card) as writer:
            writer.upsert(batch)
        return pa.table({"points": [len(passages)]})
