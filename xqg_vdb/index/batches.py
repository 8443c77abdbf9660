"""A load in steps over Arrow tables, for engines that spread work over machines (Ray Data, Spark, Daft).

Every step is a callable of picklable arguments that opens what it needs where it runs, and calls what `load` calls.
Tables of the same 512 rows as the windows of a load make the same points, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xqg_vdb.calibration import LanguageMeans, TextEncoder
from xqg_vdb.errors import MismatchError
from xqg_vdb.fusion import Counts
from xqg_vdb.index.build import Window
from xqg_vdb.index.encode import EarlierBuild, Row, combined_digest, digests_of, encode_rows, payload_bytes
from xqg_vdb.index.write import means_of, points, query_totals
from xqg_vdb.store import open_store
from xqg_vdb.store.layout import Digest
from xqg_vdb.texts.corpus import as_passage, with_languages
from xqg_vdb.texts.queries import as_queries
from xqg_vdb.texts.tables import arrow_rows
from xqg_vdb.types import Card, Passage, PointBatch, Vectors

if TYPE_CHECKING:
    from xqg_vdb.store.server.store import ServerStore

_VECTOR = "vector "


@dataclass
class Encode:
    """A table of passages, with the fields that a line of a corpus has, into their vectors and query sums by language.

    Generated queries stand in the column `generated_queries`, as an object or as JSON. encoder: a model's folder, or an
    encoder that can be pickled; fingerprint: of the encoder that the driver has. Raises DataError for a row that is no
    passage, MismatchError for another encoder.
    """

    encoder: str | TextEncoder
    fingerprint: str
    default_lang: str | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """The encoded rows."""
        encoder = _opened(self.encoder) if isinstance(self.encoder, str) else self.encoder
        if encoder.facts.fingerprint != self.fingerprint:
            raise MismatchError(
                f"This worker's encoder {encoder.facts.source} has the fingerprint {encoder.facts.fingerprint}, the"
                f" driver's {self.fingerprint}: give all machines the same model folder."
            )
        rows = rows_of(table, default_lang=self.default_lang)
        window, _ = encode_rows(rows, digests_of(rows), encoder, EarlierBuild((), encoder=encoder.facts))
        return _encoded(window, [passage for passage, _ in rows])


def rows_of(table: pa.Table, *, default_lang: str | None = None) -> list[Row]:
    """What the rows of a table say. Raises DataError for one that is no passage, or whose queries are none."""
    rows = [row for batch in table.to_batches() for row in arrow_rows(batch, {})]
    given = [row.pop("generated_queries", None) for row in rows]
    passages = list(with_languages(map(as_passage, rows), default_lang, detect=True))
    objects = [orjson.loads(queries) if isinstance(queries, str) else queries for queries in given]
    return [
        (passage, as_queries({"id": passage.id, "generated_queries": queries}) if queries else None)
        for passage, queries in zip(passages, objects, strict=True)
    ]


@lru_cache(maxsize=1)
def _opened(folder: str) -> TextEncoder:
    from xqg_vdb.models.encoder import Encoder  # brings onnxruntime

    return Encoder(folder, threads=1)


def _encoded(window: Window, passages: list[Passage]) -> pa.Table:
    """Row by row; `sums` lists a language, a count and a sum for each language that a passage has queries in."""
    dim = window.passages.shape[1]
    entries = sorted(
        (row, lang) for lang, (_, counts) in window.sums.items() for row in np.flatnonzero(counts).tolist()
    )
    totals = [window.sums[lang][0][row] for row, lang in entries]
    kinds = pa.array([lang for _, lang in entries], pa.string())
    counts = pa.array([window.sums[lang][1][row] for row, lang in entries], pa.int32())
    sums = _matrix(np.array(totals, np.float32).reshape(len(entries), dim))
    starts = np.searchsorted([row for row, _ in entries], np.arange(len(window) + 1)).astype(np.int32)
    return _passages_table(passages).append_column("row", pa.array(window.digests)).append_column(
        "vector", _matrix(window.passages)
    ).append_column(
        "sums", pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays([kinds, counts, sums], _SUM))
    )  # fmt: skip


_SUM = ["lang", "count", "sum"]


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
    found: Vectors = _one(column).flatten().to_numpy().reshape(len(column), column.type.list_size)
    return found


# What the driver must know of everything that was encoded: a row for each table, and those to one.


def totals(encoded: pa.Table) -> pa.Table:
    """One row of an encoded table: how many passages, a digest of them, and the queries' sums and counts."""
    window, passages = _decoded(encoded)
    digest = combined_digest(window.digests, hashlib.sha256(b"".join(map(payload_bytes, passages))).hexdigest())
    sums = [{"lang": lang, "sum": total.tolist(), "count": n} for lang, (total, n) in query_totals(window).items()]
    kind = pa.list_(pa.struct([("lang", pa.string()), ("sum", pa.list_(pa.float64())), ("count", pa.int64())]))
    return pa.table({"rows": [len(window)], "digest": [digest], "sums": pa.array([sums], kind)})


def combined(parts: Iterable[Mapping[str, Any]]) -> tuple[int, str, LanguageMeans]:
    """Of the rows of `totals` in the corpus's order: how many passages, their digest, and the queries' means."""
    count, digest = 0, hashlib.blake2b(digest_size=16)

    def each() -> Iterator[dict[str, tuple[NDArray[np.float64], int]]]:
        nonlocal count
        for part in parts:
            count += part["rows"]
            digest.update(part["digest"].encode())
            yield {entry["lang"]: (np.array(entry["sum"]), entry["count"]) for entry in part["sums"]}

    means = means_of(each())
    return count, digest.hexdigest(), means


@dataclass
class Fuse:
    """Encoded rows into the points of a collection of this card: passages, vectors by name, languages, digests."""

    card: Card

    def __call__(self, table: pa.Table) -> pa.Table:
        """The points."""
        (batch,) = points([_decoded(table)], self.card)
        made = _passages_table(batch.passages).append_column("row", pa.array(batch.rows, pa.string()))
        made = made.append_column("query_langs", pa.array(batch.query_langs, pa.list_(pa.string())))
        for name, rows in batch.vectors.items():
            made = made.append_column(_VECTOR + name, _matrix(rows))
        return made


@dataclass
class Upsert:
    """Points into the unpublished `version` on the server at `url`, with patience; says how many, and their digest.

    The key comes from XQG_VDB_API_KEY of the machine that it runs on. Writing points again changes nothing. Raises
    DataError that names the passage which the server refuses, ServerError when it stays away.
    """

    url: str
    version: str
    card: Card

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row: points, digest."""
        passages = _passages(table)
        vectors = {name.removeprefix(_VECTOR): _rows(table[name]) for name in table.column_names if _VECTOR in name}
        batch = PointBatch(passages, vectors, table["query_langs"].to_pylist(), rows=table["row"].to_pylist())
        digest = Digest()
        for passage in passages:
            digest.add(passage.id, passage.text)
        with _connected(self.url).helper(self.version, card=self.card) as writer:
            writer.upsert(batch)
        return pa.table({"points": [len(passages)], "digest": [digest.hexdigest()]})


@lru_cache(maxsize=1)
def _connected(url: str) -> ServerStore:
    return cast("ServerStore", open_store(url=url))


def digest_of_parts(parts: Iterable[str]) -> str:
    """The digest of a collection from those of its parts, in any order."""
    return f"{sum(int(part, 16) for part in parts) % (1 << 128):032x}"
